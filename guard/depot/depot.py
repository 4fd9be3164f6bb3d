"""Put files into the depot under their content, and get them out again as they were put in."""

from __future__ import annotations

import io
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import ServerUnavailableError
from ..signal import Signal
from . import folder as folders
from .address import Address, open_storage
from .digests import PIECE_BYTES, Digests, holds
from .mark import Agree, check_mark
from .objects import KEY, PART, PROBE, Stored, WrongBytesError, describe, guess_type
from .reader import PART_BYTES, Reader, read_checked

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

log = logging.getLogger("guarded.depot")

#: Files up to this size are put and read in one piece, of which the memory holds one.
WHOLE_BYTES = 8 << 20
#: How long one request may take, and the first answer to a connection.
REQUEST_S, CONNECT_S = 30, 5
#: While the depot fails, somebody asks so often whether it is back.
LOOK_S = 2.0
#: Once it has answered, so often.
LOOK_WELL_S = 60.0
#: How long a signed address is good.
SIGNED_S = 60
_REMEMBERED = 4096
#: A file whose bytes are not those that its name says is read so often.
READS = 2
#: What an S3 says of a file where there is no bucket either.
_NO_BUCKET = "NoSuchBucket"


class Depot:
    """The files of all boxes. Any thread but the event loop: each call waits for the storage.

    Attributes:
        trouble: why it has not been of use since the start; None once it has answered. No job is taken until then.
        failing: why the last request failed, until one succeeds.
        skew_s: by how much its clock is ahead of ours; None until it is known.
    """

    def __init__(self, address: Address, known: Path | None = None, agree: Agree | None = None) -> None:
        """`known`: the file in which this box notes which folder it has used; None: it notes nothing. `agree`: in a
        fleet, asks which one the others use."""
        self._known = known
        self._agree = agree
        self.address = address
        self.trouble: str | None = "the depot has not been looked at yet"
        self.failing: str | None = None
        self.skew_s: float | None = None
        #: Something was done: what, how it went, and the bytes of it. Called on any thread.
        self.acted: Signal[[str, str, int]] = Signal()
        #: It answers again, or for the first time. Called on any thread.
        self.returned: Signal[[]] = Signal()
        #: By which the folder is known since it was looked at.
        self._mark = ""
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._is_broken = False
        #: What was found to have its bytes: its tag, and the digests of its pieces; by key, those used last.
        self._right: OrderedDict[str, tuple[str, tuple[bytes, ...]]] = OrderedDict()
        self._opened: LocalStore | S3Store | None = None

    @property
    def can_sign(self) -> bool:
        """Whether it makes addresses by which others get a file: see :meth:`sign`."""
        return self.address.folder is None

    @property
    def is_away(self) -> bool:
        return self.trouble is not None or self.failing is not None

    def watch(self) -> None:
        """Look at it now and then, for ever: a thread of its own."""

        def look() -> None:
            while True:
                self._failed.clear()
                try:
                    self.look()
                except Exception:
                    log.exception("the depot cannot be looked at")
                if self.is_away or self._failed.wait(LOOK_WELL_S):
                    time.sleep(LOOK_S)

        threading.Thread(target=look, name="guarded-depot", daemon=True).start()

    def look(self) -> None:
        """See whether a file can be put, read and deleted; see the three attributes. Raises nothing."""
        with suppress(ServerUnavailableError), self._asking("probe"):
            # Each box its own, as two at once would meet.
            if self.address.folder is not None:
                check_mark(self.address.folder, self._known, self._agree)
                self._agree = None  # from now on the box knows by itself
                self._mark = folders.read_mark(self.address.folder) if self._known is not None else ""
            name = f"{PROBE}-{secrets.token_hex(8)}"
            began_s = time.time()
            if self.address.folder is not None:
                folders.write(self.address.folder, self._mark, name, [name.encode()])
            else:
                self._obstore.put(self._store, name, name.encode())
            found = self._stat(name)
            ended_s = time.time()
            got = bytes(self._obstore.get(self._store, name).bytes())
            self._obstore.delete(self._store, name)
            if found is None or got != name.encode():
                raise _errors().GenericError("what was put into it is not there")
            # An S3 tells the time in whole seconds.
            early_s, late_s = found.modified_s - ended_s, found.modified_s + 1 - began_s
            self.skew_s = 0.0 if early_s <= 0 <= late_s else min(early_s, late_s, key=abs)

    def stat(self, key: str, *, is_sure: bool = True) -> Stored | None:
        """Raises ServerUnavailableError. `is_sure` False: whoever asks puts it in where it is not there."""
        with self._asking("stat"):
            return self._stat(key, is_sure=is_sure)

    def put(self, key: str, handle: IO[bytes]) -> None:
        """Put the file in; nobody ever sees a part of it, or other bytes than its name says. One that is there is new
        again.

        Raises WrongBytesError, ServerUnavailableError, OSError where the file cannot be read.
        """
        handle.seek(0)
        data = handle.read(WHOLE_BYTES + 1)
        about: dict[str, Any] = {"attributes": {"Content-Type": guess_type(key)}} if self.can_sign else {}
        with self._asking("put") as done:
            digests = Digests(len(data) > WHOLE_BYTES)
            pieces = read_checked(data, handle, key[:64], done, digests)
            if self.address.folder is not None:
                # obstore makes a folder that is not there, and asks nobody whether it is the same.
                folders.write(self.address.folder, self._mark, key, pieces)
                if (found := self._stat(key)) is None:
                    raise OSError("what was put into it is not there")
                tag = found.tag
            elif len(data) <= WHOLE_BYTES:
                tag = self._obstore.put(self._store, key, b"".join(pieces), use_multipart=False, **about)["e_tag"]
            else:
                tag = self._obstore.put(
                    self._store, key, pieces, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=2, **about
                )["e_tag"]
            self._remember(key, f"{tag}-{sum(done)}", digests)

    def fetch(self, key: str, target: Path) -> bool:
        """Write the file to a path at which there is none. False where the depot does not have it: then there may be
        something else there now.

        Raises ServerUnavailableError, OSError where the disk refuses.
        """
        with self._asking("get") as done:
            found = self._stat(key)
            if found is None:
                return False

            with open(target, "xb") as file:

                def write(pieces: Iterator[bytes]) -> None:
                    file.seek(0)
                    file.truncate()
                    file.writelines(pieces)

                return self._read_right(found, done, write) is not None

    def open(self, key: str, size: int) -> tuple[IO[bytes], float] | None:
        """Open the file, and say when it was put in. None where it is not there, or has other bytes.

        A large one is read through once in a process before it is trusted, and compared again as it is read: reading
        raises ConnectionError where what comes is not what it was. Raises ServerUnavailableError.
        """
        with self._asking("get") as done:
            found = self._stat(key)
            if found is None or found.bytes != size:
                return None
            if size <= WHOLE_BYTES:
                file = io.BytesIO()

                def write(pieces: Iterator[bytes]) -> None:
                    file.seek(0)
                    file.writelines(pieces)

                digests = self._read_right(found, done, write)
                file.seek(0)
                return (file, found.modified_s) if digests is not None else None
            if (pieces := self._check(found, done)) is None:
                return None
        handle: Any = Reader(lambda begin, length: self._read_on(found, pieces, begin, length), size)
        return handle, found.modified_s

    def is_right(self, found: Stored) -> bool:
        """Whether the file has its bytes; read through once in a process. Raises ServerUnavailableError."""
        with self._asking("get") as done:
            return self._check(found, done) is not None

    def list_all(self) -> Iterator[Stored]:
        """List the files. Raises ServerUnavailableError."""
        with self._asking("list"):
            for metas in self._obstore.list(self._store):
                for meta in metas:
                    if KEY.fullmatch(str(meta["path"])):
                        yield describe(meta)

    def delete(self, key: str) -> None:
        """Raises ServerUnavailableError."""
        with self._asking("delete"), suppress(FileNotFoundError):
            self._obstore.delete(self._store, key)

    def tidy(self, before_s: float) -> None:
        """Delete what puts and probes have left behind that were killed before that time by its clock.

        Raises ServerUnavailableError.
        """
        with self._asking("list"):
            for metas in self._obstore.list(self._store):
                for meta in metas:
                    if str(meta["path"]).startswith(f"{PROBE}-") and describe(meta).modified_s < before_s:
                        self._obstore.delete(self._store, str(meta["path"]))
            if self.address.folder is not None:
                # What obstore has begun to write there, and does not list.
                for path in self.address.folder.iterdir():
                    if PART.fullmatch(path.name) and path.stat().st_mtime < before_s:
                        path.unlink(missing_ok=True)

    def sign(self, key: str) -> str:
        """An address by which whoever has it gets the file for a minute. Raises ServerUnavailableError."""
        with self._asking("sign"):
            return str(self._obstore.sign(self._store, "GET", key, timedelta(seconds=SIGNED_S)))

    def note_slow(self, waited_s: float) -> None:
        """Somebody has waited that long for it: until it answers again, nobody else does."""
        if self.failing is None:
            log.error("the depot %s has not answered for %.0f s", self.address.shown, waited_s)
            self.failing = f"the depot {self.address.shown} has not answered for {waited_s:.0f} s"
            self._is_broken = True
            self._failed.set()

    # Within. -------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> LocalStore | S3Store:
        # obstore makes a folder that is not there, on whichever disk that is then: its own may not be there now.
        if self.address.folder is not None and not self.address.folder.is_dir():
            raise OSError(f"there is no folder {self.address.folder}")
        if self._opened is None:
            self._opened = open_storage(self.address, REQUEST_S, CONNECT_S)
        return self._opened

    @property
    def _obstore(self) -> Any:
        import obstore

        return obstore

    @contextmanager
    def _asking(self, what: str) -> Iterator[list[int]]:
        """Turn the storage's errors in the block into ours, and note how it went; the block notes the bytes."""
        if self._is_broken and what != "probe":
            raise make_refusal()  # nobody but the watch waits for what has not answered
        done: list[int] = []
        try:
            yield done
        except (ServerUnavailableError, WrongBytesError, GeneratorExit):
            raise
        except (_errors().BaseError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of our own disk
            self._note_failure(what, error, done)
            raise make_refusal() from None
        else:
            self.acted(what, "ok", sum(done))
            self._note_success()

    def _note_failure(self, what: str, error: BaseException, done: list[int]) -> None:
        self.acted(what, "failed", sum(done))
        self._is_broken = True
        self._failed.set()
        why = self.address.hide(error)
        is_new = self.failing is None if self.trouble is None else why not in self.trouble
        if is_new:
            log.error("the depot %s cannot be used: %s", self.address.shown, why)
        if self.trouble is not None:
            self.trouble = f"the depot {self.address.shown} cannot be used: {why}"
        else:
            self.failing = f"the depot {self.address.shown} fails: {why}"

    def _note_success(self) -> None:
        self._is_broken = False
        if self.is_away:
            log.info("the depot %s answers", self.address.shown)
            self.trouble = self.failing = None
            self.returned()

    def _stat(self, key: str, *, is_sure: bool = True) -> Stored | None:
        store = self._store
        try:
            return describe(self._obstore.head(store, key))
        except FileNotFoundError:
            if self.address.folder is not None:
                folders.check_still(self.address.folder, self._mark)
            elif is_sure:
                self._check_bucket(store, key)
            return None

    def _check_bucket(self, store: LocalStore | S3Store, key: str) -> None:
        """Raises GenericError where the bucket itself is gone: what is asked of a file that is not there says which."""
        try:
            self._obstore.get_range(store, key, start=0, length=1)
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise _errors().GenericError("there is no such bucket") from None

    def _read_on(self, found: Stored, pieces: tuple[bytes, ...], begin: int, length: int) -> bytes:
        """Read whole pieces, and return of them what was asked for.

        Raises ConnectionError: whoever reads has begun to answer.
        """
        first = begin - begin % PIECE_BYTES
        last = min(-(-(begin + length) // PIECE_BYTES) * PIECE_BYTES, found.bytes)
        for _ in range(READS):
            try:
                with self._asking("get") as done:
                    data = self._read_range(found.key, first, last - first)
                    done.append(len(data))
            except ServerUnavailableError:
                raise ConnectionResetError("the depot has failed while a file was read") from None
            if holds(pieces, first, data):
                return data[begin - first :][:length]
        log.error("%s in the depot has other bytes than before", found.key)
        with self._lock:
            self._right.pop(found.key, None)
        raise ConnectionResetError("the file has changed in the depot while it was read")

    def _read_all(self, found: Stored, done: list[int], digests: Digests) -> Iterator[bytes]:
        for begin in range(0, found.bytes, PART_BYTES):
            piece = self._read_range(found.key, begin, min(PART_BYTES, found.bytes - begin))
            digests.add(piece)
            done.append(len(piece))
            yield piece

    def _read_range(self, key: str, begin: int, length: int) -> bytes:
        data = bytes(self._obstore.get_range(self._store, key, start=begin, length=length))
        if len(data) != length:  # that says nothing of the file
            raise _errors().GenericError(f"{len(data)} of {length} bytes came")
        return data

    def _check(self, found: Stored, done: list[int]) -> tuple[bytes, ...] | None:
        """The digests of the file's pieces; None where it has other bytes than its name says."""
        mark = f"{found.tag}-{found.bytes}"
        with self._lock:
            known = self._right.get(found.key)
            if known is not None and known[0] == mark:
                self._right.move_to_end(found.key)
                return known[1]
        digests = self._read_right(found, done, lambda pieces: deque(pieces, 0))
        return digests.list_pieces() if digests is not None else None

    def _read_right(self, found: Stored, done: list[int], take: Callable[[Iterator[bytes]], object]) -> Digests | None:
        """Read the file for `take`; twice, where something has changed on its way. None: it has other bytes."""
        for _ in range(READS):
            digests = Digests(found.bytes > WHOLE_BYTES)
            take(self._read_all(found, done, digests))
            if digests.sha256 == found.key[:64]:
                self._remember(found.key, f"{found.tag}-{found.bytes}", digests)
                return digests
        log.error("%s in the depot has other bytes than its name says", found.key)
        return None

    def _remember(self, key: str, mark: str, digests: Digests) -> None:
        with self._lock:
            self._right[key] = mark, digests.list_pieces()
            self._right.move_to_end(key)
            while len(self._right) > _REMEMBERED:
                self._right.popitem(last=False)


def make_refusal() -> ServerUnavailableError:
    """What a caller is told; the log and the operator's pages say why."""
    return ServerUnavailableError(
        "The storage of files cannot be used now.", extra_info={"problems": ["depot unavailable"]}, retry_after_s=10
    )


def _errors() -> Any:
    from obstore import exceptions

    return exceptions
