"""Tell a model file that is whole from one that a broken download has left."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

#: safetensors' own limit for its header.
_LONGEST_HEADER = 100_000_000
#: Sizes in manifests are rounded, and repositories store a file anew with another header now and then.
_SHARE, _ROUNDED = 0.9, 1_000_000


def find_fault(path: Path, size_mb: int) -> str | None:
    """What is wrong with the file, as the end of a sentence about it; None where it seems whole.

    Remembered by size and time of change, since headers of large models have megabytes.
    """
    try:
        status = os.stat(path)
        return _find_fault(str(path), status.st_size, status.st_mtime_ns, size_mb)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


@functools.lru_cache(maxsize=512)
def _find_fault(path: str, size: int, _changed_ns: int, size_mb: int) -> str | None:
    if not size:
        return "is empty"
    if path.endswith((".safetensors", ".sft")):
        return _find_fault_of_safetensors(path, size)
    if size < size_mb * 1_000_000 * _SHARE - _ROUNDED:
        return f"has {size / 1e6:.0f} of about {size_mb} MB; the download seems to have broken off"
    return None


def _find_fault_of_safetensors(path: str, size: int) -> str | None:
    """The header lists every tensor with its place, so the size is known to the byte."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size, _LONGEST_HEADER):
            return "is no safetensors file; a web page may have been saved in its place"
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "has a header that cannot be read"
    whole = 8 + length + end
    if size < whole:
        return f"has {size / 1e6:.0f} of {whole / 1e6:.0f} MB; the download has broken off"
    return None
