"""Judge what the checks found: which faults refuse a job and with which error, and which are only warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import (
    GuardError,
    PolicyViolationError,
    ResultBlankError,
    ResultCorruptError,
    ResultIncompleteError,
    ResultTooSmallError,
)
from ..job import Artifact
from ..settings import ResultsSettings
from .expected import Expected
from .findings import Facts, Fault, Finding

#: The error that each fault settles a job with.
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
#: The setting that turns a fault into a warning.
_OPTIONAL: dict[Fault, str] = {
    Fault.FLAT: "refuse_blank",
    Fault.BLACK: "refuse_blank",
    Fault.WHITE: "refuse_blank",
    Fault.TRANSPARENT: "refuse_blank",
    Fault.BLANK_FRAMES: "refuse_blank",
    Fault.FROZEN: "refuse_frozen",
    Fault.SILENT: "refuse_silent",
}
#: A single frame may be shown for this many times its share of a second: times in GIFs are rounded.
_LONGEST_FRAME = 1.5
#: Faults of a picture that a mask may have: one of an opaque photo is black.
_PLAIN = frozenset({Fault.FLAT, Fault.BLACK, Fault.WHITE, Fault.TRANSPARENT})
#: Suffixes that promise something: a file that bears one and is of no kind we know is broken.
_CLAIMS = {
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image", ".gif": "image",
    ".mp4": "video", ".webm": "video", ".mov": "video", ".mkv": "video",
    ".wav": "audio", ".mp3": "audio", ".flac": "audio", ".ogg": "audio",
}  # fmt: skip


def claimed_kind(filename: str) -> str | None:
    """What a file's name promises: `image`, `video` or `audio`; None: nothing."""
    return _CLAIMS.get(Path(filename).suffix.lower())


def judge(
    artifact: Artifact, facts: Facts, asked: Expected, settings: ResultsSettings, *, alone: bool = True
) -> Artifact:
    """Return the artifact with its facts and warnings. `alone`: it is the only file of its node.

    Raises:
        ResultBlankError, ResultCorruptError, ResultIncompleteError, ResultTooSmallError: for the first finding that
            no setting turns into a warning.
    """
    warnings = list(facts.warnings)
    suffix = Path(artifact.filename).suffix.lower()
    where = {"node_id": artifact.node_id, "filename": artifact.filename}
    if suffix in (".mp4", ".mov", ".mkv") and facts.kind == "audio":
        raise ResultCorruptError(f"{artifact.filename} has no pictures.", extra_info=where)
    if suffix in _CLAIMS and _CLAIMS[suffix] != facts.kind and suffix != ".webm":
        warnings.append("misnamed")
    findings = [*facts.findings, *_compare(facts, asked, settings, warnings, alone)]
    rate = artifact.bytes / facts.duration_s if facts.kind == "video" and facts.duration_s else None
    if rate is not None and rate < settings.expected_video_bytes_per_s:
        if settings.strict_bitrate:
            raise ResultTooSmallError(
                f"{artifact.filename} has {rate:.0f} bytes a second; "
                f"{settings.expected_video_bytes_per_s} were expected.",
                extra_info={
                    **where,
                    "bytes_per_s": round(rate),
                    "min_bytes_per_s": settings.expected_video_bytes_per_s,
                },
            )
        warnings.append("low_bitrate")
    for finding in findings:
        if asked.mask and finding.fault in _PLAIN:
            continue
        if finding.fault in _OPTIONAL and not getattr(settings, _OPTIONAL[finding.fault]):
            warnings.append(finding.fault.value)
            continue
        raise make_error(finding, artifact.filename, **where)
    return replace(
        artifact,
        kind=facts.kind,
        width=facts.width,
        height=facts.height,
        duration_s=facts.duration_s,
        frames=facts.frames,
        fps=facts.fps,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def check_pixels(artifacts: Iterable[Artifact], max_pixels: int) -> None:
    """Refuse pictures that a key's limit does not allow, whichever node has made them so large; 0: there is none.

    As `max_pixels` is asked of prompts: all pictures of one node together; of a film, one of its pictures.

    Raises:
        PolicyViolationError: names the node.
    """
    made: Counter[str] = Counter()
    for artifact in artifacts:
        made[artifact.node_id] += (artifact.width or 0) * (artifact.height or 0)
        if max_pixels and made[artifact.node_id] > max_pixels:
            pixels = made[artifact.node_id]
            raise PolicyViolationError(
                f"Node {artifact.node_id[:100]} gives {pixels} pixels; at most {max_pixels} are allowed.",
                details="key.max_pixels",
                extra_info={"node_id": artifact.node_id, "value": pixels, "limit": max_pixels},
            )


def make_error(finding: Finding, name: str, **facts: Any) -> GuardError:
    """Make the typed error for a finding in the file or input called `name`; `facts` go into its `extra_info`."""
    return _ERRORS[finding.fault](f"{name}: {finding.text}.", extra_info={**facts, **finding.facts()})


def _compare(
    facts: Facts, asked: Expected, settings: ResultsSettings, warnings: list[str], alone: bool
) -> Iterator[Finding]:
    """Find where the file falls short of what the graph asked its writer for. One that is longer is only odd."""
    if facts.kind == "audio":
        return
    if facts.kind == "image":
        if (asked.audio or asked.perhaps_audio) and (facts.frames is not None or asked.fps):
            warnings.append("no_audio")
        if facts.frames is None:
            # Pillow merges equal frames: a film of such is a plain picture. Beside others it is one of their frames.
            is_long = bool(facts.shown_s and asked.fps and facts.shown_s * asked.fps > _LONGEST_FRAME)
            if is_long or (asked.many and alone):
                yield Finding(Fault.FROZEN, "all its frames are one", 0, settings.frozen_levels)
            return
    short = 1 - settings.duration_tolerance
    if asked.frames is not None and asked.frames > 1:
        frames = facts.frames or 1
        few = frames < asked.frames * short and frames < asked.frames - 1
        duration_s, asked_s = facts.duration_s, asked.duration_s
        if facts.kind == "video" and duration_s is not None and asked_s is not None and asked.fps:
            frame_s = 1.01 / asked.fps  # a little over one, since durations are rounded
            if duration_s < asked_s * short and duration_s < asked_s - frame_s:
                text = f"it is {duration_s:.3g} s long; the graph asks for {asked_s:.3g} s"
                yield Finding(Fault.TOO_SHORT, text, duration_s, round(asked_s, 3))
            elif duration_s > asked_s * (1 + settings.duration_tolerance) + frame_s:
                warnings.append("longer_than_asked")
        elif few and (duration_s is None or asked_s is None or duration_s < asked_s * short):
            # Writers of GIF and WEBP merge equal frames and round their durations, so either may be right.
            text = f"it has {frames} frames; the graph asks for {asked.frames}"
            yield Finding(Fault.TOO_FEW_FRAMES, text, frames, asked.frames)
    if facts.kind == "video" and not facts.audio:
        if asked.audio:
            yield Finding(Fault.NO_AUDIO, "it has no sound, but the graph gives it one")
        elif asked.perhaps_audio:
            warnings.append("no_audio")
