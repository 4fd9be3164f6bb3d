"""Store the files that come with prompts, each in its owner's folder.

A file's name there is made of its content, so that a picture that a bot sends a thousand times is stored once. It is
received into `.incoming`, and moved to its place before its prompt is checked. If the prompt is refused, and no other
request has used the file meanwhile, it is deleted again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ..client import LOCAL
from ..errors import (
    DiskFullError,
    GuardError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServerUnavailableError,
)
from ..graph import Names
from ..owners import FOLDER, folder_of
from ..quotas import Parcel
from ..quotas.threads import decode_beside, run_beside, search_beside
from ..results.containers import sniff
from ..settings import UploadsSettings
from .content import check_content
from .jpegs import keep_one_picture
from .names import media_suffix
from .upright import is_mirrored, turn_upright

#: Files that are still being received. No owner's folder has such a name, because theirs end in a hash.
INCOMING = f"{FOLDER}/.incoming"
_HEAD_BYTES = 32

#: First bytes of pictures and films that the checks of results do not judge → suffix.
_OTHERS = (
    (re.compile(rb"BM.{8}", re.DOTALL), ".bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), ".tiff"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), ".avi"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), ".avif"),
    (re.compile(rb".{4}ftyp(?:heic|heix|mif1|msf1)", re.DOTALL), ".heic"),
)

_JPEG = ".jpg"
#: A film that is nothing but JPEGs, one after the other, says so in its name alone.
_STREAM = re.compile(r"\.mjpe?g$", re.I)
#: MIME type → suffix, for files that their first bytes identify; a name may lie.
_SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": _JPEG,
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
        field, filename: its names in the form; `filename` may be empty.
        sha256: of its bytes as they came, in hexadecimal.
        suffix: from its content, else from its name; may be empty.
        path: where it lies until `Uploads.place` moves it.
        is_media: whether its first bytes are those of a picture, film or sound.
        is_empty: no byte of it has come.
        kept_sha256: of what is kept of it, where not all is; else empty.
        is_mirrored: it is a picture that has to be turned upright.
    """

    field: str
    filename: str
    sha256: str
    suffix: str
    path: Path
    is_media: bool = True
    is_empty: bool = False
    kept_sha256: str = ""
    is_mirrored: bool = False

    def stored_as(self, owner: str) -> str:
        """Its name for a loader node."""
        return f"{folder_of(owner)}/{self.stored_name}"

    @property
    def stored_name(self) -> str:
        """The same as its owner sees it."""
        return f"{self.kept_sha256 or self.sha256}{self.suffix}"


class Incoming:
    """A file that is being received. Each method blocks on the disk: not for the event loop."""

    def __init__(self, folder: Path, field: str, filename: str, max_bytes: int, parcel: Parcel) -> None:
        """`parcel` is what counts it for its owner."""
        self._field = field
        self._filename = filename
        self.max_bytes = max_bytes
        self._parcel = parcel
        self._size = 0
        self._head = b""
        self._digest = hashlib.sha256()
        self.path = folder / uuid.uuid4().hex
        with translate_disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = open(self.path, "xb", buffering=0)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Raises PayloadTooLargeError, QuotaExceededError, DiskFullError, ServerUnavailableError."""
        self._parcel.take(len(data))
        self._size += len(data)
        if self._size > self.max_bytes:
            raise PayloadTooLargeError(
                f"The file {(self._filename or self._field)[:100]} is over {self.max_bytes} bytes.",
                extra_info={"field": self._field, "max_file_bytes": self.max_bytes},
            )
        if len(self._head) < _HEAD_BYTES:
            self._head += data[:_HEAD_BYTES]
        self._digest.update(data)
        with translate_disk_errors():
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> UploadedFile:
        """Close the file. Of a phone's photo the picture alone is kept."""
        known, kept, mirrored = _find_suffix(self._head[:_HEAD_BYTES]), "", False
        with translate_disk_errors():
            self._file.close()
            if not _STREAM.search(self._filename):
                if known == _JPEG:
                    kept = keep_one_picture(self.path)
                mirrored = is_mirrored(self.path, known)
        suffix, digest = known or media_suffix(self._filename), self._digest.hexdigest()
        told = self._field, self._filename, digest, suffix, self.path
        return UploadedFile(*told, bool(known), not self._size, kept, mirrored)

    def discard(self) -> None:
        """Delete the file, unless it was moved to its place."""
        self._file.close()
        self.path.unlink(missing_ok=True)


async def finish(incoming: Incoming) -> UploadedFile:
    """Close a file that has come, and turn a mirrored picture upright. Event loop. Raises GuardError."""
    file = await run_beside(incoming.finish)
    return await decode_beside(_turn, file) if file.is_mirrored else file


def _turn(file: UploadedFile) -> UploadedFile:
    with translate_disk_errors():
        return replace(file, kept_sha256=turn_upright(file.path, file.suffix) or file.kept_sha256)


def _find_suffix(head: bytes) -> str:
    """The suffix that fits a file's first bytes; empty for what is no picture, film or sound."""
    if (kind := sniff(head)) is not None:
        return _SUFFIXES[kind.mime]
    return next((suffix for begin, suffix in _OTHERS if begin.match(head)), "")


class Uploads:
    """The files of requests that are being decided.

    Attributes:
        settings: how many files there may be, and how large.
    """

    def __init__(self, settings: UploadsSettings, input_folder: Callable[[], Path]) -> None:
        self.settings = settings
        self._input_folder = input_folder
        self._lock = threading.Lock()  # held for a rename or an unlink
        #: The stored names that requests under way use, and those of them that were not there before.
        self._held: Counter[str] = Counter()
        self._fresh: set[str] = set()

    def tidy(self) -> None:
        """Delete what an earlier process was receiving when it died. Blocks, so call it before requests come."""
        with suppress(OSError):
            for path in (self._input_folder() / INCOMING).iterdir():
                path.unlink(missing_ok=True)

    def start_file(self, field: str, filename: str, parcel: Parcel | None = None) -> Incoming:
        """Begin to receive a file of that parcel's. Blocks on the disk."""
        folder = self._input_folder() / INCOMING
        return Incoming(folder, field, filename, self.settings.max_file_bytes, parcel or Parcel())

    @asynccontextmanager
    async def place(self, owner: str, files: Iterable[UploadedFile]) -> AsyncIterator[None]:
        """Keep each file under its stored name during the block, and after it unless a GuardError left the block.

        Raises BadImageError where a file of a key's refers to other files.

        After any other exception the files stay, because nobody knows then whether the job exists.
        """
        files = list(files)
        if owner != LOCAL.owner:
            for file in files:
                check = run_beside if file.is_media else search_beside
                await check(check_content, file.path, file.filename or file.field)
        paths = {file.stored_as(owner): file.path for file in files}
        names: list[str] = []
        try:
            for name, path in paths.items():
                await run_beside(self._place_file, name, path)
                names.append(name)
            yield
        except GuardError:
            await run_beside(self._release, names, False)
            raise
        except BaseException:
            self._release(names, True)
            raise
        else:
            self._release(names, True)

    def _place_file(self, name: str, path: Path) -> None:
        target = self._input_folder() / name
        with self._lock, translate_disk_errors():
            was_there = target.exists()
            _move(path, target)
            self._held[name] += 1
            if not was_there:
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


def measure(files: Iterable[UploadedFile]) -> int:
    """The bytes of files that are not in their places yet. Blocks on the disk."""
    return sum(file.path.stat().st_size for file in files)


def map_names(files: Iterable[UploadedFile], owner: str) -> dict[str, str | None]:
    """Map what a prompt may call the files to their stored names; to None where two different files have that name.

    The field of one part wins over the file name of another.
    """
    stored_names: dict[str, str | None] = {}
    for attribute in ("filename", "field"):
        level: dict[str, str | None] = {}
        for file in files:
            stored, name = file.stored_as(owner), getattr(file, attribute)
            if name:
                level[name] = stored if level.get(name, stored) == stored else None
        stored_names.update(level)
    return stored_names


def rename_inputs(
    graph: Mapping[str, Any],
    stored: Mapping[str, str | None],
    file_inputs: Callable[[str], Mapping[str, Names]],
) -> set[str]:
    """Put the stored names into the loader inputs that name a file of the request. Returns the names that were put in.

    Args:
        graph: API format, its shape checked; changed in place.
        stored: see :func:`map_names`.
        file_inputs: Host.file_inputs.

    Raises:
        InvalidRequestError: an input gives a name that two different files have.
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
    """Move the file over one that may be there: it has the same bytes, and for the janitor it is new again."""
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
            os.utime(target)  # on Windows, while somebody reads the file
            return


#: The name is too long, or has letters that the disk does not take; or a folder has the name of a file, or a file
#: that of a folder.
_BAD_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
)


@contextmanager
def translate_disk_errors() -> Iterator[None]:
    """Turn the disk's errors in the block into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError("There is no space for the file.") from error
        if error.errno in _BAD_NAME:
            raise InvalidRequestError("The disk does not take a file of that name.") from error
        raise ServerUnavailableError("The file cannot be stored.", details=error.strerror or "") from error
