"""Name what a check of a result can find, in an array or in a file."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Fault(str, enum.Enum):
    """What can be wrong with pixels, frames or sound."""

    NAN = "nan"  # NaN or infinite values
    FLAT = "flat"  # one colour
    BLACK = "black"  # nothing brighter than results.black_level
    WHITE = "white"  # nothing darker than 255 - results.flat_levels
    TRANSPARENT = "transparent"  # its alpha hides everything
    SPECKLE = "speckle"  # holes that decoded NaN leaves
    FROZEN = "frozen"  # every frame shows the same
    BLANK_FRAMES = "blank_frames"  # too many of the frames are blank
    WRONG_SIZE = "wrong_size"
    TOO_FEW_FRAMES = "too_few_frames"
    TOO_SHORT = "too_short"
    NO_AUDIO = "no_audio"
    SILENT = "silent"


@dataclass(frozen=True)
class Finding:
    """One fault: what was measured, against what, and where.

    Attributes:
        measured, limit: in the unit that `text` names.
        frame: index of the first frame that shows it; None where it concerns no single frame.
    """

    fault: Fault
    text: str
    measured: float | None = None
    limit: float | None = None
    frame: int | None = None

    def facts(self) -> dict[str, Any]:
        """For an error's `extra_info`."""
        facts = {"check": self.fault.value, "measured": self.measured, "limit": self.limit, "frame": self.frame}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True)
class Facts:
    """What a file is like, and what is wrong with it.

    Attributes:
        audio: whether it has a sound track that can be decoded.
        width, height: in pixels; None for sound.
        frames: how many were decoded or, where not all were, how many the file says it has; None for a still.
        shown_s: how long a still is shown, where its file says so.
        findings: the worst first.
        warnings: short names of what is odd but no reason to refuse it.
    """

    kind: str = "image"
    audio: bool = False
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    shown_s: float | None = None
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
