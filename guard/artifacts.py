"""Checks of result files: is every file that a job reported really there, and what it claims to be?

Runs on a thread of its own with a time limit; nothing here touches the event loop. Files are judged by content, not
by name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image

from .errors import GuardError, ResultCorruptError, ResultMissingError, ResultTooSmallError
from .host import Outcome, ReportedFile
from .job import Artifact
from .settings import ResultsSettings

log = logging.getLogger("guarded.artifacts")

T = TypeVar("T")

_ROOTS = ("output", "temp")
_SNIFF_BYTES = 32


def check(outcome: Outcome, settings: ResultsSettings) -> tuple[Artifact, ...]:
    """The artifacts of a run that the host calls a success.

    Nodes that report text or other data instead of files count as they are.

    Raises:
        ResultMissingError: nothing was reported at all, or a file that is not there or not inside its folder.
        ResultTooSmallError, ResultCorruptError: the first file that fails.
    """
    if not any(_reports_something(output) for output in outcome.outputs.values()):
        raise ResultMissingError("The job ended without any result.")
    return tuple(
        _artifact(index, file, settings)
        for index, file in enumerate(file for file in outcome.files if file.type in _ROOTS)
    )


def within(timeout_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, done on a thread of its own.

    Raises:
        ResultCorruptError: it took longer than `timeout_s`; the thread is left to end by itself.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="guarded-checks", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not outcome:
        raise ResultCorruptError(f"The result could not be checked within {timeout_s:g} s.")
    return outcome[0]


def quarantine(files: Iterable[ReportedFile], folder: Path) -> None:
    """Move a refused job's files aside, out of the reach of every route, for the operator to look at."""
    for file in files:
        if file.type not in _ROOTS or file.path is None:
            continue
        try:
            if not stat.S_ISREG(os.lstat(file.path).st_mode):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(file.path, folder / f"{len(os.listdir(folder))}-{file.path.name}")
        except OSError as error:
            log.warning("could not set %s aside: %s", file.filename, error)


def _reports_something(output: Any) -> bool:
    return bool(output) and (not isinstance(output, dict) or any(output.values()))


def _artifact(index: int, file: ReportedFile, settings: ResultsSettings) -> Artifact:
    facts = {"node_id": file.node_id, "filename": file.filename}
    if file.path is None:
        raise ResultMissingError(f"{file.filename} does not lie in the {file.type} folder.", extra_info=facts)
    try:
        handle = open(file.path, "rb")  # noqa: SIM115 - closed below; only the opening itself may say "missing"
    except OSError:
        raise ResultMissingError(f"{file.filename} was reported but is not there.", extra_info=facts) from None
    with handle:
        status = os.fstat(handle.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ResultMissingError(f"{file.filename} is not a file.", extra_info=facts)
        kind = _sniff(handle.read(_SNIFF_BYTES))
        found = Artifact(
            index=index,
            node_id=file.node_id,
            kind=kind.name if kind else "other",
            filename=file.filename,
            subfolder=file.subfolder,
            type=file.type,
            bytes=status.st_size,
            sha256="",
        )
        floor = _floor(found.kind, file.filename, settings)
        if status.st_size < floor:
            raise ResultTooSmallError(
                f"{file.filename} has {status.st_size} bytes; at least {floor} were expected.",
                extra_info={**facts, "bytes": status.st_size, "min_bytes": floor},
            )
        if kind is None:
            if Path(file.filename).suffix.lower() in _CLAIMS:
                raise ResultCorruptError(f"{file.filename} is not what its name says.", extra_info=facts)
            found = replace(found, warnings=("unknown_kind",))
        else:
            handle.seek(0)
            try:
                found = kind.decode(handle, found, settings)
            except GuardError:
                raise
            except Exception as error:
                raise ResultCorruptError(
                    f"{file.filename} does not decode.", details=f"{type(error).__name__}: {error}", extra_info=facts
                ) from None
        return replace(found, sha256=_sha256(handle))


def is_unchanged(artifact: Artifact, path: Path) -> bool:
    """Whether the file at `path` still has the artifact's bytes. Reads it whole: not for the event loop."""
    try:
        with open(path, "rb") as handle:
            return os.fstat(handle.fileno()).st_size == artifact.bytes and _sha256(handle) == artifact.sha256
    except OSError:
        return False


def _sha256(handle: IO[bytes]) -> str:
    handle.seek(0)
    digest = hashlib.sha256()
    while chunk := handle.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Kind:
    name: str
    decode: Callable[[Any, Artifact, ResultsSettings], Artifact]


#: Names that promise something; a file that bears one and is nothing we know is broken.
_CLAIMS = {
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image", ".gif": "image",
    ".mp4": "video", ".webm": "video", ".mov": "video", ".mkv": "video",
    ".wav": "audio", ".mp3": "audio", ".flac": "audio", ".ogg": "audio",
}  # fmt: skip


def _floor(kind: str, filename: str, settings: ResultsSettings) -> int:
    claimed = _CLAIMS.get(Path(filename).suffix.lower())
    if "video" in (kind, claimed):
        return settings.min_video_bytes
    if "image" in (kind, claimed):
        return settings.min_image_bytes
    return 1


def _sniff(head: bytes) -> _Kind | None:
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")):
        return _Kind("image", _image)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _Kind("image", _image)
    if head[4:8] == b"ftyp" or head.startswith(b"\x1a\x45\xdf\xa3"):
        return _Kind("video", _media)
    if (head[:4] == b"RIFF" and head[8:12] == b"WAVE") or head.startswith((b"fLaC", b"OggS", b"ID3")):
        return _Kind("audio", _media)
    if head[:1] == b"\xff" and head[1:2] in (b"\xfb", b"\xf3", b"\xf2", b"\xfa"):
        return _Kind("audio", _media)
    return None


def _image(handle: Any, found: Artifact, settings: ResultsSettings) -> Artifact:
    """Every frame decoded. Other packs switch Pillow's tolerance of cut files on for the whole process, so the
    file's own end mark is looked for as well."""
    _image_end(handle, found)
    handle.seek(0)
    with Image.open(handle, formats=("PNG", "JPEG", "WEBP", "GIF", "MPO")) as image:
        width, height = image.size
        frames = getattr(image, "n_frames", 1)
        if width * height * frames > settings.max_image_pixels:
            raise ResultCorruptError(
                f"{found.filename} has {width} × {height} × {frames} pixels, more than results.max_image_pixels.",
                extra_info={"node_id": found.node_id, "filename": found.filename},
            )
        for frame in range(frames):
            image.seek(frame)
            image.load()
    return replace(found, width=width, height=height)


def _image_end(handle: Any, found: Artifact) -> None:
    handle.seek(0)
    head = handle.read(12)
    handle.seek(max(found.bytes - 4096, 0))
    tail = handle.read()
    if head.startswith(b"\x89PNG"):
        whole = b"IEND" in tail
    elif head.startswith(b"\xff\xd8"):
        whole = b"\xff\xd9" in tail
    elif head.startswith(b"RIFF"):
        whole = int.from_bytes(head[4:8], "little") + 8 <= found.bytes
    else:
        whole = b"\x3b" in tail
    if not whole:
        raise EOFError("the file ends before its end mark")


def _media(handle: Any, found: Artifact, settings: ResultsSettings) -> Artifact:
    """Opened, its streams found, and every packet of the first one decoded."""
    import av  # heavy: only when there is a video or a sound to look at

    with av.open(handle, mode="r") as container:
        streams = container.streams.video or container.streams.audio
        if not streams:
            raise ValueError("it has neither pictures nor sound")
        stream = streams[0]
        frames = 0
        last_s = 0.0
        for frame in container.decode(stream):
            frames += 1
            if frame.time is not None:
                last_s = float(frame.time)
        if not frames:
            raise ValueError("it has no frames")
        duration_s = container.duration / av.time_base if container.duration else last_s
        if stream.type == "video":
            # A container may promise more than is there: a file cut off behind its index.
            rate = float(stream.average_rate or 0)
            if rate and stream.frames and frames < stream.frames:
                raise EOFError(f"{frames} of {stream.frames} frames are there")
            return replace(
                found, kind="video", width=stream.width, height=stream.height, duration_s=round(duration_s, 3)
            )
        return replace(found, kind="audio", duration_s=round(duration_s, 3))
