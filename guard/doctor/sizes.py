"""Sizes as people read them."""

from __future__ import annotations


def format_size(count: float) -> str:
    """1024 to the next unit, as on the page."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
