"""Check the files of a job that has run: are they its own, and is each what it claims to be?

Runs on a thread of its own with a time limit (:mod:`.within`); nothing here touches the event loop. Files are judged
by content, not by name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import IO, Any

from ..errors import (
    DiskFullError,
    GenerationFailedError,
    GuardError,
    InternalError,
    ResultCorruptError,
    ResultMissingError,
    ResultTooSmallError,
    ServerUnavailableError,
)
from ..host import Outcome, ReportedFile
from ..job import RESULT_ROOTS, Artifact
from ..settings import ResultsSettings
from ..store.listed import cut_texts
from ..store.repair import sync as sync_to_disk
from . import expected, film_files, image_files
from .apart import hear_odd_apart
from .budget import Budget, BudgetFile
from .containers import Kind, sniff
from .expected import Expected
from .findings import Facts, Fault, Finding
from .judgement import claimed_kind, judge, make_error
from .opener import hash_file
from .others import check_other

#: A text that a node reports is kept up to this length.
TEXT_CHARS = 2**20
#: Bytes from a file's head that tell its kind.
SNIFF_BYTES = 64
#: A PNG of no more bytes and pixels is looked at in a moment, whatever is in it.
QUICK_BYTES, QUICK_PIXELS = 2**22, 2**22
#: A film as pictures, of a file that is there: FFmpeg fills in no number where the name has any other mark.
_UNNUMBERED = re.compile(r"\.%\d+d\.\w+$")
#: Do not block on a pipe that nobody writes to.
_READ: int = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def check(outcome: Outcome, settings: ResultsSettings, budget: Budget | None = None) -> tuple[Artifact, ...]:
    """Check a run that the host calls a success, and return its artifacts.

    Nodes that report text or other data instead of files count as they are. Files that a node reported from the
    host's cache, without having run, belong to an earlier job and are left out.

    Raises:
        GenerationFailedError: the nodes reported more texts and other data than is kept of a job.
        ResultMissingError: nothing of its own was reported, or a file that is not there or not inside its folder.
        ResultTooSmallError, ResultCorruptError, ResultBlankError, ResultIncompleteError: the first file that fails;
            `extra_info` has the node, the file and, where pixels, frames or sound are at fault, the measurement.
    """
    outputs = own_outputs(outcome)
    if not any(_has_content(output) for output in outputs.values()):
        raise ResultMissingError("The job ended without any result of its own.")
    if settings.max_outputs_bytes and (size := len(json.dumps(outputs))) > settings.max_outputs_bytes:
        raise GenerationFailedError(
            f"The job's nodes report {size} bytes besides its files; results.max_outputs_bytes is "
            f"{settings.max_outputs_bytes}."
        )
    budget = budget or Budget(settings)
    files = result_files(outcome)
    made = Counter(file.node_id for file in files)
    return tuple(
        _check_file(index, file, _ask(outcome, file), settings, budget, alone=made[file.node_id] == 1)
        for index, file in enumerate(files)
    )


def _ask(outcome: Outcome, file: ReportedFile) -> Expected:
    """What was asked of the file's node. It may say itself that its picture moves, as ComfyUI's writers do; not that a
    PNG does, since SaveAnimatedPNG of ComfyUI 0.3.64 says so of one frame, too."""
    if file.node_id in outcome.masks:
        return Expected(mask=True)
    asked = expected.infer(outcome.prompt, file.node_id)
    output = outcome.outputs.get(file.node_id)
    says_so = isinstance(output, Mapping) and output.get("animated") == [True]
    return replace(asked, many=True) if says_so and not file.filename.lower().endswith(".png") else asked


def own_files(outcome: Outcome) -> tuple[ReportedFile, ...]:
    """The files that this very run reported."""
    return tuple(file for file in outcome.files if file.node_id not in outcome.cached)


def are_quick(outcome: Outcome) -> bool:
    """Whether a run made no files but small PNGs: no call into C is long then, and none can hang."""
    return all(_is_small_png(file) for file in (*own_files(outcome), *outcome.byproducts))


def _is_small_png(file: ReportedFile) -> bool:
    if file.path is None:
        return False
    try:
        number = os.open(file.path, _READ)
    except OSError:
        return False
    try:  # a file object would take longer than all of this
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_size > QUICK_BYTES:
            return False
        head = os.read(number, SNIFF_BYTES)
    except OSError:
        return False
    finally:
        os.close(number)
    kind = sniff(head)
    if kind is None or kind.format != "png" or head[12:16] != b"IHDR":
        return False
    return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big") <= QUICK_PIXELS


def result_files(outcome: Outcome) -> list[ReportedFile]:
    """The files of the artifacts of :func:`check`, in their order. One that is named several times is the first one's,
    in whatever spelling: of equal savers ComfyUI runs one."""
    files = [file for file in own_files(outcome) if file.type in RESULT_ROOTS]
    first = {file.path or (file.type, file.subfolder, file.filename): file for file in reversed(files)}
    return list(first.values())[::-1]


def sync(outcome: Outcome) -> None:
    """Wait until the run's output files are on the disk, with their names. Temp files do not outlive a restart anyway.

    Raises:
        DiskFullError: there was no room for what has been written.
        ResultCorruptError: the disk could not write it.
    """
    files = {file.path: file for file in own_files(outcome) if file.type == "output" and file.path is not None}
    # With the folders in which there may be a new name: the file's, or a subfolder's.
    depths = {path: 1 + len(PurePath(file.subfolder).parts) for path, file in files.items()}
    folders = {folder for path, depth in depths.items() for folder in path.parents[:depth]}
    for path in [*files, *folders]:
        try:
            sync_to_disk(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(f"The disk is full: {path.name} could not be kept.") from None
            if error.errno == errno.EIO:
                raise ResultCorruptError(f"The disk could not write {path.name}.", details=str(error)) from None
            # There are file systems that cannot do this, and files that may be read only.


def own_outputs(outcome: Outcome) -> dict[str, Any]:
    """ComfyUI's outputs without the files of nodes that did not run: those names may be anybody's by now. Text and
    other data from the cache are as good as new. A longer text than `TEXT_CHARS` is cut, and says so at its end."""
    from_cache = {file.node_id for file in outcome.files} & outcome.cached
    return {
        node_id: cut_texts(output, TEXT_CHARS)
        for node_id, output in outcome.outputs.items()
        if node_id not in from_cache
    }


def inspect(handle: IO[bytes], kind: Kind, size: int, settings: ResultsSettings, budget: Budget) -> Facts:
    """Say what a file is like and what is wrong with it.

    Raises:
        ResultCorruptError: the time is up.
        InternalError: it cannot be looked at now.
        Exception: it is cut off or does not decode; whatever Pillow, libav or the walk through its structure raised.
    """
    file = BudgetFile(handle, budget)
    kind.check_whole(file, size)  # type: ignore[arg-type]
    budget.check()
    if kind.name == "image":
        return image_files.check(file, kind, settings, budget)
    try:
        hear_odd_apart(handle, kind)
    except ServerUnavailableError as error:
        raise InternalError("A result cannot be looked at now.", details=error.details) from None
    return film_files.check(file, kind, settings, budget)


def _has_content(output: Any) -> bool:
    return bool(output) and (not isinstance(output, Mapping) or any(output.values()))


def _check_file(
    index: int, file: ReportedFile, asked: Expected, settings: ResultsSettings, budget: Budget, *, alone: bool
) -> Artifact:
    where = {"node_id": file.node_id, "filename": file.filename}
    with _open_file(file, where) as handle:
        status = os.fstat(handle.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ResultMissingError(f"{file.filename} is not a file.", extra_info=where)
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
        claimed = claimed_kind(file.filename)
        min_bytes = 1 if asked.mask else _min_bytes((artifact.kind, claimed), settings)
        if status.st_size < min_bytes:
            raise ResultTooSmallError(
                f"{file.filename} has {status.st_size} bytes; at least {min_bytes} were expected.",
                extra_info={**where, "bytes": status.st_size, "min_bytes": min_bytes},
            )
        if _UNNUMBERED.search(file.filename):
            finding = Finding(Fault.TOO_FEW_FRAMES, "its pictures were written one over the other", 1)
            raise make_error(finding, file.filename, **where)
        if kind is None and claimed is not None:
            raise ResultCorruptError(f"{file.filename} is not what its name says.", extra_info=where)
        try:
            if kind is None:
                check_other(BudgetFile(handle, budget), file.filename, status.st_size)
                facts = None
            else:
                facts = inspect(handle, kind, status.st_size, settings, budget)
        except GuardError as error:
            error.extra_info.update(where)
            raise
        except Exception as error:
            raise ResultCorruptError(
                f"{file.filename} does not decode.", details=f"{type(error).__name__}: {error}", extra_info=where
            ) from None
        if facts is None:
            artifact = replace(artifact, warnings=("unknown_kind",))
        else:
            artifact = judge(artifact, facts, asked, settings, alone=alone)
        return replace(artifact, sha256=hash_file(handle, budget))


def _open_file(file: ReportedFile, where: Mapping[str, Any]) -> IO[bytes]:
    if file.path is None:
        raise ResultMissingError(f"{file.filename} does not lie in the {file.type} folder.", extra_info=where)
    try:
        return os.fdopen(os.open(file.path, _READ), "rb")
    except OSError:
        raise ResultMissingError(f"{file.filename} was reported but is not there.", extra_info=where) from None


def _min_bytes(kinds: tuple[str | None, ...], settings: ResultsSettings) -> int:
    if "video" in kinds:
        return settings.min_video_bytes
    if "image" in kinds:
        return settings.min_image_bytes
    return 1
