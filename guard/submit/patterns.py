"""Patterns of the settings, for names of node classes and hosts."""

from __future__ import annotations

import re
from collections.abc import Sequence


def compile_patterns(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Compile the patterns into one; None for none. Only `*` and `?` are wild, because class names have brackets."""
    wild = (re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") for pattern in patterns)
    return re.compile("|".join(wild), re.DOTALL) if patterns else None
