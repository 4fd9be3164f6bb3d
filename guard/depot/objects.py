"""What the depot's files are called, and what is known of each."""

from __future__ import annotations

import mimetypes
import os
import re
from dataclasses import dataclass
from typing import Any

#: What a file is called in the depot: its SHA-256, and what its name ends in.
KEY = re.compile(r"[0-9a-f]{64}(?:\.[a-z0-9]{1,12})?")
#: What probes are called; no file is.
PROBE = "guarded-probe"
#: What obstore calls a file in a folder that it has not written whole.
PART = re.compile(rf"(?:{KEY.pattern}|guarded-probe-[0-9a-f]+)#\d+")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,12}")


def make_key(sha256: str, filename: str) -> str:
    """What a file of that content and name is called in the depot."""
    suffix = os.path.splitext(filename)[1].lower()
    return f"{sha256}{suffix if _SUFFIX.fullmatch(suffix) else ''}"


class WrongBytesError(Exception):
    """A file has other bytes than its name says."""


@dataclass(frozen=True)
class Stored:
    """A file in the depot. `modified_s` is by the depot's own clock: when it was put, or put again."""

    key: str
    bytes: int
    modified_s: float
    tag: str


def guess_type(key: str) -> str:
    """The media type for who gets the file from the storage itself: none that a browser would run."""
    guessed = mimetypes.guess_type(key)[0] or ""
    is_harmless = guessed.partition("/")[0] in ("image", "video", "audio") and "xml" not in guessed
    return guessed if is_harmless else "application/octet-stream"


def describe(meta: Any) -> Stored:
    return Stored(str(meta["path"]), int(meta["size"]), meta["last_modified"].timestamp(), str(meta["e_tag"]))
