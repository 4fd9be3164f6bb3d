"""Make converted copies of results that have passed: of pictures through Pillow, of films through PyAV.

Runs after the checks, on a thread of its own. A copy is written in the guard's own folder and moved beside the original
once it is whole. Whatever goes wrong with it, the original has passed and stays: the copy only says why it is missing.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from ..errors import ResultCorruptError
from ..host import ReportedFile
from ..job import Artifact
from ..outgoing import FILM_FORMATS, PICTURE_FORMATS, Converted, ResultOptions
from ..settings import ResultsSettings
from ..store.repair import sync as sync_to_disk
from . import convert_films, convert_pictures, within
from .containers import sniff
from .opener import hash_file, holds
from .sink import NotConvertedError, Sink

log = logging.getLogger("guarded.artifacts")

FOLDER = "converting"
#: What a name has of the original's, in bytes, so that the copy's name is none that a disk refuses.
_STEM_BYTES = 180
_SUFFIXES = {"jpeg": "jpg"}
#: Pillow and libav raise what they like; a fault of the machine's is worth a line.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@functools.cache
def list_formats() -> frozenset[str]:
    """The formats that this server can write. The first call takes some 10 ms."""
    return frozenset(convert_pictures.list_formats() | convert_films.list_formats())


class Converter:
    """Makes the copies of one server. Any thread, not the event loop."""

    def __init__(self, settings: ResultsSettings, folder: Path, *, syncs: bool) -> None:
        """`folder`: where copies lie until they are whole; what an earlier process left there is deleted. `syncs`: a
        copy counts once it is on the disk."""
        self._settings = settings
        self._folder = folder
        self._syncs = syncs
        shutil.rmtree(folder, ignore_errors=True)

    def convert(
        self,
        files: Sequence[ReportedFile],
        artifacts: Sequence[Artifact],
        options: ResultOptions,
        *,
        is_late: bool = False,
    ) -> tuple[Artifact, ...]:
        """Make a copy of each file that the format is for; of others none. Raises nothing.

        `is_late`: no time is left for it.
        """
        if options.format is None:
            return tuple(artifacts)
        until_s = time.monotonic() + (0 if is_late else self._settings.convert_timeout_s)
        return tuple(
            self._convert(file, artifact, options, until_s) for file, artifact in zip(files, artifacts, strict=True)
        )

    def _convert(self, file: ReportedFile, artifact: Artifact, options: ResultOptions, until_s: float) -> Artifact:
        assert options.format is not None
        wanted = {"image": PICTURE_FORMATS, "video": FILM_FORMATS}.get(artifact.kind, ())
        if options.format not in wanted or file.path is None:
            return artifact
        try:
            made = self._make(file.path, artifact, options, until_s)
        except NotConvertedError as error:
            made = Converted(options.format, error.reason)
        except Exception as error:
            is_full = isinstance(error, OSError) and error.errno in _NO_ROOM
            made = Converted(options.format, "disk_full" if is_full else "failed")
            log.warning(
                "%s was not converted to %s: %s: %s", artifact.filename, options.format, type(error).__name__, error
            )
        warnings = (*artifact.warnings, "not_converted") if made.error is not None else artifact.warnings
        return replace(artifact, converted=made, warnings=warnings)

    def _make(self, path: Path, artifact: Artifact, options: ResultOptions, until_s: float) -> Converted:
        """Raises NotConvertedError, OSError, and what the codecs raise."""
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise NotConvertedError("too_slow")
        self._folder.mkdir(parents=True, exist_ok=True)
        name = _name_copy(artifact, options)
        part = self._folder / f"{threading.get_ident()}-{time.monotonic_ns()}"
        with open(path, "rb") as handle, open(part, "x+b") as target:
            try:
                sink = Sink(target, self._settings.convert_max_bytes, until_s)
                try:
                    size = within.run_within(left_s, lambda: _write(handle, sink, artifact, options, self._settings))
                except ResultCorruptError:  # a call into C takes longer than it may, and is left behind
                    raise NotConvertedError("too_slow") from None
                finally:
                    sink.give_up()
                target.flush()
                digest = hash_file(target)
                length = os.fstat(target.fileno()).st_size
                _move(part, path.parent / name)
            finally:
                part.unlink(missing_ok=True)
        if self._syncs:
            sync_to_disk(path.parent / name)
            sync_to_disk(path.parent)
        return Converted(options.format or "", None, name, length, digest, *size)


def discard(files: Sequence[ReportedFile], artifacts: Sequence[Artifact]) -> None:
    """Delete the copies of files that have not passed after all."""
    for file, artifact in zip(files, artifacts, strict=False):
        if artifact.copy is not None and file.path is not None:
            (file.path.parent / artifact.copy.filename).unlink(missing_ok=True)


def _write(
    handle: IO[bytes], sink: Sink, artifact: Artifact, options: ResultOptions, settings: ResultsSettings
) -> tuple[int, int]:
    """Write the copy; return its width and height."""
    if not holds(artifact, handle):  # overwritten meanwhile, which ends the job
        raise NotConvertedError("failed")
    kind = sniff(handle.read(64))
    handle.seek(0)
    assert kind is not None
    if artifact.kind == "image":
        return convert_pictures.convert(handle, kind, sink, options, settings.convert_max_pixels)
    return convert_films.convert(handle, kind, sink, options)


def _name_copy(artifact: Artifact, options: ResultOptions) -> str:
    """A name beside the original: the same for the same content and options, and no saver's."""
    about = f"{artifact.sha256} {options.format} {options.quality} {options.max_side}"
    stem = os.fsencode(os.path.splitext(artifact.filename)[0])[:_STEM_BYTES].decode("utf-8", "ignore")
    suffix = _SUFFIXES.get(options.format or "", options.format)
    return f"{stem}~{hashlib.sha256(about.encode()).hexdigest()[:12]}.{suffix}"


def _move(part: Path, target: Path) -> None:
    try:
        os.replace(part, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            shutil.copyfile(part, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
