"""Files that callers send: where each owner's lie, and how those of one request come there.

A file that comes with a prompt is named by its content, so that the same picture, sent by a bot a thousand times, is
stored once. It is written beside its place first (`.incoming`) and moved there while
the request is looked at; if that ends in a refusal, and no other request has named it meanwhile, it is taken away.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import DiskFullError, GuardError, InvalidRequestError, PayloadTooLargeError, ServerUnavailableError
from ..host import Names
from ..results.containers import sniff
from ..settings import UploadsSettings
from .names import FOLDER, media_suffix, upload_folder

#: What is still on its way in. No owner's folder has such a name, since theirs end in a hash.
INCOMING = f"{FOLDER}/.incoming"
_HEAD_BYTES = 32

#: MIME type → suffix, for what is recognised by its first bytes; a name may lie.
_SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "audio/wav": ".wav",
    "video/quicktime": ".mov",
    "audio/mp4": ".m4a",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mpeg": ".mp3",
}


@dataclass(frozen=True)
class UploadedFile:
    """One file of a form, received whole.

    Attributes:
        field, filename: what the form calls it; `filename` may be empty.
        sha256: of its bytes, in hexadecimal.
        suffix: by its content, else by its name; may be empty.
        path: where it lies until it is placed.
    """

    field: str
    filename: str
    sha256: str
    suffix: str
    path: Path

    def stored_as(self, owner: str) -> str:
        """Its name as a loader node gives it."""
        return f"{upload_folder(owner)}/{self.sha256}{self.suffix}"


class Incoming:
    """A file on its way in. Each method blocks on the disk: not for the event loop."""

    def __init__(self, folder: Path, field: str, filename: str, max_bytes: int) -> None:
        self._field = field
        self._filename = filename
        self._max_bytes = max_bytes
        self._size = 0
        self._head = b""
        self._digest = hashlib.sha256()
        self.path = folder / uuid.uuid4().hex
        with translate_disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = open(self.path, "xb", buffering=0)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Raises PayloadTooLargeError, DiskFullError, ServerUnavailableError."""
        self._size += len(data)
        if self._size > self._max_bytes:
            raise PayloadTooLargeError(
                f"The file {(self._filename or self._field)[:100]} is over {self._max_bytes} bytes.",
                extra_info={"field": self._field, "max_file_bytes": self._max_bytes},
            )
        if len(self._head) < _HEAD_BYTES:
            self._head += data[:_HEAD_BYTES]
        self._digest.update(data)
        with translate_disk_errors():
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> UploadedFile:
        """All of it has come."""
        with translate_disk_errors():
            self._file.close()
        if not self._size:
            raise InvalidRequestError(f"The file {self._field[:100]} is empty.", extra_info={"field": self._field})
        kind = sniff(self._head[:_HEAD_BYTES])
        suffix = _SUFFIXES[kind.mime] if kind is not None else media_suffix(self._filename)
        return UploadedFile(self._field, self._filename, self._digest.hexdigest(), suffix, self.path)

    def discard(self) -> None:
        """Delete it, unless it has been placed."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class Uploads:
    """The files of requests under way.

    Attributes:
        settings: how large and how many.
    """

    def __init__(self, settings: UploadsSettings, input_folder: Callable[[], Path]) -> None:
        self.settings = settings
        self._input_folder = input_folder
        self._lock = threading.Lock()  # held for a rename or an unlink
        #: Stored names that requests under way have placed, and those of them that nobody else knows.
        self._held: Counter[str] = Counter()
        self._fresh: set[str] = set()

    def tidy(self) -> None:
        """Delete what an earlier process was receiving when it died. Blocks on the disk; before requests come."""
        with suppress(OSError):
            for path in (self._input_folder() / INCOMING).iterdir():
                path.unlink(missing_ok=True)

    def start_file(self, field: str, filename: str) -> Incoming:
        """A place to write a file to. Blocks on the disk."""
        folder = self._input_folder() / INCOMING
        return Incoming(folder, field, filename, self.settings.max_file_bytes)

    @asynccontextmanager
    async def place(self, owner: str, files: Iterable[UploadedFile]) -> AsyncIterator[None]:
        """Inside the block each file lies under its stored name; after a refusal (a GuardError) no longer.

        After any other exception it stays: whether its job exists, nobody knows then.
        """
        paths = {file.stored_as(owner): file.path for file in files}
        placed: list[str] = []
        try:
            for name, path in paths.items():
                await asyncio.to_thread(self._place_file, name, path)
                placed.append(name)
            yield
        except GuardError:
            await asyncio.to_thread(self._release, placed, False)
            raise
        except BaseException:
            self._release(placed, True)
            raise
        else:
            self._release(placed, True)

    def _place_file(self, name: str, path: Path) -> None:
        target = self._input_folder() / name
        with self._lock, translate_disk_errors():
            there = target.exists()
            _move(path, target)
            self._held[name] += 1
            if not there:
                self._fresh.add(name)

    def _release(self, names: Iterable[str], admitted: bool) -> None:
        with self._lock:
            for name in names:
                if admitted:
                    self._fresh.discard(name)
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]
                    if name in self._fresh:
                        self._fresh.discard(name)
                        with suppress(OSError):
                            (self._input_folder() / name).unlink()


def map_names(files: Iterable[UploadedFile], owner: str) -> dict[str, str | None]:
    """What a prompt may call the files → their stored names; None where two different ones have that name.

    A part's field comes before another part's file name.
    """
    found: dict[str, str | None] = {}
    for called in ("filename", "field"):
        level: dict[str, str | None] = {}
        for file in files:
            stored, name = file.stored_as(owner), getattr(file, called)
            if name:
                level[name] = stored if level.get(name, stored) == stored else None
        found.update(level)
    return found


def rename_inputs(
    graph: Mapping[str, Any],
    stored: Mapping[str, str | None],
    file_inputs: Callable[[str], Mapping[str, Names]],
) -> set[str]:
    """Put the stored names into the loader inputs that name a file of the request; the stored names in use.

    Args:
        graph: API format, its shape checked; changed in place.
        stored: see :func:`map_names`.
        file_inputs: Host.file_inputs.

    Raises:
        InvalidRequestError: a name that two different files have.
    """
    used = set()
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if not isinstance(value, str) or value not in stored:
                continue
            if file_inputs(node["class_type"]).get(name) is Names.FILE:
                target = stored[value]
                if target is None:
                    raise InvalidRequestError(
                        f"Node {node_id[:100]!r} names {value[:100]!r}, and two different files are called that.",
                        extra_info={"node_id": node_id, "input": name, "value": value},
                    )
                node["inputs"][name] = target
                used.add(target)
    return used


def _move(path: Path, target: Path) -> None:
    """Over what is there: it has the same bytes, and is as good as new for the janitor."""
    for attempt in range(10):
        try:
            os.replace(path, target)
            return
        except FileNotFoundError:
            if attempt == 9:
                raise
            target.parent.mkdir(parents=True, exist_ok=True)  # the janitor deletes empty folders
        except PermissionError:
            if not target.exists():
                raise
            os.utime(target)  # Windows, while somebody reads it
            return


#: Too long, or not to be written there; a folder by the name of a file, or the other way round.
_BAD_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
)


@contextmanager
def translate_disk_errors() -> Iterator[None]:
    """What the disk says, as an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError("There is no space for the file.") from error
        if error.errno in _BAD_NAME:
            raise InvalidRequestError("The disk does not take a file of that name.") from error
        raise ServerUnavailableError("The file cannot be stored.", details=error.strerror or "") from error
