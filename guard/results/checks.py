"""The files of a job that has run: which are its own, whether each is what it claims to be, and where the bad ones go.

Runs on a thread of its own with a time limit; nothing here touches the event loop. Files are judged by content, not
by name: :mod:`.containers` says what a file is and whether it is all there, :mod:`.image_files` and :mod:`.film_files`
decode it, :mod:`.content` says whether it shows anything, :mod:`.expected` what the graph asked for.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import (
    GuardError,
    ResultBlankError,
    ResultCorruptError,
    ResultIncompleteError,
    ResultMissingError,
    ResultTooSmallError,
)
from ..host import Outcome, ReportedFile
from ..job import RESULT_ROOTS, Artifact
from ..settings import ResultsSettings
from . import expected, film_files, image_files
from .budget import Budget, BudgetFile
from .containers import Kind, sniff
from .expected import Expected
from .findings import Facts, Fault, Finding
from .opener import hash_file

log = logging.getLogger("guarded.artifacts")

T = TypeVar("T")

SNIFF_BYTES = 64

#: What each fault settles a job with.
_ERRORS: dict[Fault, type[GuardError]] = {
    Fault.NAN: ResultCorruptError,
    Fault.SPECKLE: ResultCorruptError,
    Fault.FROZEN: ResultCorruptError,
    Fault.FLAT: ResultBlankError,
    Fault.BLACK: ResultBlankError,
    Fault.WHITE: ResultBlankError,
    Fault.TRANSPARENT: ResultBlankError,
    Fault.BLANK_FRAMES: ResultBlankError,
    Fault.SILENT: ResultBlankError,
    Fault.WRONG_SIZE: ResultIncompleteError,
    Fault.TOO_FEW_FRAMES: ResultIncompleteError,
    Fault.TOO_SHORT: ResultIncompleteError,
    Fault.NO_AUDIO: ResultIncompleteError,
}
#: Faults that a setting turns into a warning.
_OPTIONAL: dict[Fault, str] = {
    Fault.FLAT: "refuse_blank",
    Fault.BLACK: "refuse_blank",
    Fault.WHITE: "refuse_blank",
    Fault.TRANSPARENT: "refuse_blank",
    Fault.BLANK_FRAMES: "refuse_blank",
    Fault.FROZEN: "refuse_frozen",
    Fault.SILENT: "refuse_silent",
}


def check(outcome: Outcome, settings: ResultsSettings, budget: Budget | None = None) -> tuple[Artifact, ...]:
    """The artifacts of a run that the host calls a success.

    Nodes that report text or other data instead of files count as they are. Files that a node reported out of the
    host's cache, without having run, belong to an earlier job and are left out.

    Raises:
        ResultMissingError: nothing of its own was reported, or a file that is not there or not inside its folder.
        ResultTooSmallError, ResultCorruptError, ResultBlankError, ResultIncompleteError: the first file that fails;
            `extra_info` has the node, the file and, where pixels, frames or sound are at fault, the measurement.
    """
    if not any(_reports_something(output) for output in own_outputs(outcome).values()):
        raise ResultMissingError("The job ended without any result of its own.")
    budget = budget or Budget(settings)
    return tuple(
        _artifact(index, file, expected.infer(outcome.prompt, file.node_id), settings, budget)
        for index, file in enumerate(file for file in own_files(outcome) if file.type in RESULT_ROOTS)
    )


def own_files(outcome: Outcome) -> tuple[ReportedFile, ...]:
    """The files that this very run reported."""
    return tuple(file for file in outcome.files if file.node_id not in outcome.cached)


def own_outputs(outcome: Outcome) -> dict[str, Any]:
    """ComfyUI's outputs without the files of nodes that did not run: those names may be anybody's by now. Text and
    other data out of the cache are as good as new."""
    from_cache = {file.node_id for file in outcome.files} & outcome.cached
    return {node_id: output for node_id, output in outcome.outputs.items() if node_id not in from_cache}


def run_within(timeout_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, done on a thread of its own.

    Raises:
        ResultCorruptError: it took longer than `timeout_s`; the thread is left to end by itself. The checks keep to a
            :class:`Budget` that ends earlier, so that this is for a single call into C that does not return.
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


def _reports_something(output: Any) -> bool:
    return bool(output) and (not isinstance(output, Mapping) or any(output.values()))


def _artifact(index: int, file: ReportedFile, asked: Expected, settings: ResultsSettings, budget: Budget) -> Artifact:
    facts = {"node_id": file.node_id, "filename": file.filename}
    if file.path is None:
        raise ResultMissingError(f"{file.filename} does not lie in the {file.type} folder.", extra_info=facts)
    try:
        # Not blocking, for what is no file but a pipe that nobody writes to.
        handle = os.fdopen(os.open(file.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY), "rb")
    except OSError:
        raise ResultMissingError(f"{file.filename} was reported but is not there.", extra_info=facts) from None
    with handle:
        status = os.fstat(handle.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ResultMissingError(f"{file.filename} is not a file.", extra_info=facts)
        kind = sniff(handle.read(SNIFF_BYTES))
        artifact = Artifact(
            index=index,
            node_id=file.node_id,
            kind=kind.name if kind else "other",
            filename=file.filename,
            subfolder=file.subfolder,
            type=file.type,
            bytes=status.st_size,
            sha256="",
        )
        claimed = _CLAIMS.get(Path(file.filename).suffix.lower())
        floor = _floor((artifact.kind, claimed), settings)
        if status.st_size < floor:
            raise ResultTooSmallError(
                f"{file.filename} has {status.st_size} bytes; at least {floor} were expected.",
                extra_info={**facts, "bytes": status.st_size, "min_bytes": floor},
            )
        if kind is None:
            if claimed is not None:
                raise ResultCorruptError(f"{file.filename} is not what its name says.", extra_info=facts)
            artifact = replace(artifact, warnings=("unknown_kind",))
        else:
            try:
                found = inspect(handle, kind, status.st_size, settings, budget)
            except GuardError as error:
                error.extra_info.update(facts)
                raise
            except Exception as error:
                raise ResultCorruptError(
                    f"{file.filename} does not decode.", details=f"{type(error).__name__}: {error}", extra_info=facts
                ) from None
            artifact = _judged(artifact, found, asked, settings)
        return replace(artifact, sha256=hash_file(handle, budget))


_BINARY: int = getattr(os, "O_BINARY", 0)

#: Names that promise something; a file that bears one and is nothing we know is broken.
_CLAIMS = {
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image", ".gif": "image",
    ".mp4": "video", ".webm": "video", ".mov": "video", ".mkv": "video",
    ".wav": "audio", ".mp3": "audio", ".flac": "audio", ".ogg": "audio",
}  # fmt: skip


def _floor(kinds: tuple[str | None, ...], settings: ResultsSettings) -> int:
    if "video" in kinds:
        return settings.min_video_bytes
    if "image" in kinds:
        return settings.min_image_bytes
    return 1


def inspect(handle: IO[bytes], kind: Kind, size: int, settings: ResultsSettings, budget: Budget) -> Facts:
    """What a file is like and what is wrong with it.

    Raises:
        ResultCorruptError: the time is up.
        Exception: it is cut off or does not decode; whatever Pillow, libav or a structure walk raised.
    """
    file = BudgetFile(handle, budget)
    kind.whole(file, size)  # type: ignore[arg-type]
    budget.check()
    if kind.name == "image":
        return image_files.check(file, kind, settings, budget)
    return film_files.check(file, kind, settings, budget)


def _judged(artifact: Artifact, found: Facts, asked: Expected, settings: ResultsSettings) -> Artifact:
    """The artifact with what was found, and its warnings.

    Raises:
        ResultBlankError, ResultCorruptError, ResultIncompleteError, ResultTooSmallError: for the first finding that
            no setting turns into a warning.
    """
    warnings = list(found.warnings)
    suffix = Path(artifact.filename).suffix.lower()
    if suffix in (".mp4", ".mov", ".mkv") and found.kind == "audio":
        raise ResultCorruptError(
            f"{artifact.filename} has no pictures.",
            extra_info={"node_id": artifact.node_id, "filename": artifact.filename},
        )
    if suffix in _CLAIMS and _CLAIMS[suffix] != found.kind and suffix != ".webm":
        warnings.append("misnamed")
    findings = [*found.findings, *_against(found, asked, settings, warnings)]
    rate = artifact.bytes / found.duration_s if found.kind == "video" and found.duration_s else None
    if rate is not None and rate < settings.expected_video_bytes_per_s:
        if settings.strict_bitrate:
            raise ResultTooSmallError(
                f"{artifact.filename} has {rate:.0f} bytes a second; "
                f"{settings.expected_video_bytes_per_s} were expected.",
                extra_info={
                    "node_id": artifact.node_id,
                    "filename": artifact.filename,
                    "bytes_per_s": round(rate),
                    "min_bytes_per_s": settings.expected_video_bytes_per_s,
                },
            )
        warnings.append("low_bitrate")
    for finding in findings:
        if finding.fault in _OPTIONAL and not getattr(settings, _OPTIONAL[finding.fault]):
            warnings.append(finding.fault.value)
            continue
        raise make_error(finding, artifact.filename, node_id=artifact.node_id, filename=artifact.filename)
    return replace(
        artifact,
        kind=found.kind,
        width=found.width,
        height=found.height,
        duration_s=found.duration_s,
        frames=found.frames,
        fps=found.fps,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def make_error(finding: Finding, name: str, **facts: Any) -> GuardError:
    """The typed error for a finding in what is called `name`."""
    return _ERRORS[finding.fault](f"{name}: {finding.text}.", extra_info={**facts, **finding.facts()})


def _against(found: Facts, asked: Expected, settings: ResultsSettings, warnings: list[str]) -> Iterable[Finding]:
    """Where the file falls short of what the graph asked its writer for. Longer is only odd."""
    moving = found.kind == "video" or found.frames is not None
    if found.kind == "audio" or not (moving or asked.fps):
        return
    short = 1 - settings.duration_tolerance
    if asked.frames is not None and asked.frames > 1:
        frames = found.frames or 1
        few = frames < asked.frames * short and frames < asked.frames - 1
        duration_s, asked_s = found.duration_s, asked.duration_s
        if found.kind == "video" and duration_s is not None and asked_s is not None and asked.fps:
            frame_s = 1.01 / asked.fps  # a little over one, since durations are rounded
            if duration_s < asked_s * short and duration_s < asked_s - frame_s:
                text = f"it is {duration_s:.3g} s long; the graph asks for {asked_s:.3g} s"
                yield Finding(Fault.TOO_SHORT, text, duration_s, round(asked_s, 3))
            elif duration_s > asked_s * (1 + settings.duration_tolerance) + frame_s:
                warnings.append("longer_than_asked")
        elif few and (duration_s is None or asked_s is None or duration_s < asked_s * short):
            # Writers of GIF and WEBP merge equal frames and round their durations, so that either may do.
            text = f"it has {frames} frames; the graph asks for {asked.frames}"
            yield Finding(Fault.TOO_FEW_FRAMES, text, frames, asked.frames)
    if found.kind == "video" and not found.audio:
        if asked.audio:
            yield Finding(Fault.NO_AUDIO, "it has no sound, and the graph gives it one")
        elif asked.perhaps_audio:
            warnings.append("no_audio")


# What has passed. --------------------------------------------------------------------------------------------


# What has not. -----------------------------------------------------------------------------------------------
