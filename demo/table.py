"""Print the tour's table, line by line as things happen."""

from __future__ import annotations

import os
import sys
from typing import Any

_WIDTHS = (5, 44, 26, 26, 6, 7)
_TEXT_AT_MOST = 92


class Table:
    """Print rows, and count the wrong ones."""

    def __init__(self) -> None:
        self.rows = 0
        self.wrong = 0
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.name != "nt"

    def print(self, text: str = "") -> None:
        print(text, flush=True)

    def print_head(self) -> None:
        self.print(_align("", "what was done", "expected", "happened", "refund", "ran"))
        self.print("-" * (sum(_WIDTHS) + 2 * len(_WIDTHS) - 2))

    def print_scene(self, title: str) -> None:
        self.print(self._colour(title, "1"))

    def print_row(
        self,
        what: str,
        expected: str,
        happened: str,
        *,
        refund: bool | None = None,
        ran: str = "",
        details: str = "",
        faults: tuple[str, ...] = (),
    ) -> None:
        """Print one outcome.

        Args:
            details: what the user gets, on a line of its own: the file, or the text.
            faults: what else is wrong; they make the row wrong even if `happened` is right.
        """
        right = expected == happened and not faults
        self.rows += 1
        self.wrong += not right
        mark = f"{'ok' if right else 'WRONG':{_WIDTHS[0]}}"
        shown_refund = {True: "yes", False: "no", None: ""}[refund]
        line = _align("", what, expected, happened, shown_refund, ran)[_WIDTHS[0] :]
        self.print(self._colour(mark, "32" if right else "1;31") + line)
        if details:
            self.print(" " * (_WIDTHS[0] + 2) + self._colour(details, "2"))
        for fault in faults:
            self.print(" " * (_WIDTHS[0] + 2) + self._colour(f"WRONG: {fault}", "31"))

    def print_job(self, what: str, expected: str, job: dict[str, Any], *, faults: tuple[str, ...] = ()) -> None:
        """Print the outcome of a job, from its JSON; its refund must fit its state."""
        if job["refund"] is not (job["state"] != "succeeded"):
            faults = (*faults, f"refund is {job['refund']}")
        self.print_row(
            what,
            expected,
            describe_outcome(job),
            refund=job["refund"],
            ran=_format_run(job),
            details=list_files(job) if job["error"] is None else quote(job["error"]["user_message"]),
            faults=faults,
        )

    def _colour(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._coloured else text


def describe_outcome(job: dict[str, Any]) -> str:
    """State and error code: `failed generation_timeout`."""
    code = (job["error"] or {}).get("code", "")
    return job["state"] if code in ("", job["state"]) else f"{job['state']} {code}"


def list_files(job: dict[str, Any]) -> str:
    """`name.png 512 × 512 101 KB`, for every artifact."""
    return ", ".join(
        f"{artifact['filename']} {artifact['width']} × {artifact['height']} {artifact['bytes'] / 1024:.0f} KB"
        for artifact in job["artifacts"]
    )


def quote(text: str | None) -> str:
    if not text:
        return ""
    return f"«{text if len(text) <= _TEXT_AT_MOST else text[: _TEXT_AT_MOST - 1] + '…'}»"


def _format_run(job: dict[str, Any]) -> str:
    if job["started_at_ms"] is None or job["settled_at_ms"] is None:
        return "–"
    return f"{(job['settled_at_ms'] - job['started_at_ms']) / 1000:.2f} s"


def _align(*cells: str) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
