"""The table that the tour prints, line by line as things happen."""

from __future__ import annotations

import os
import sys
from typing import Any

_WIDTHS = (5, 44, 26, 26, 6, 7)
_TEXT_AT_MOST = 92


class Table:
    """Prints rows and keeps count of the wrong ones."""

    def __init__(self) -> None:
        self.rows = 0
        self.wrong = 0
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.name != "nt"

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def head(self) -> None:
        self.say(_columns("", "what was done", "expected", "happened", "refund", "ran"))
        self.say("-" * (sum(_WIDTHS) + 2 * len(_WIDTHS) - 2))

    def scene(self, title: str) -> None:
        self.say(self._dressed(title, "1"))

    def row(
        self,
        what: str,
        expected: str,
        happened: str,
        *,
        refund: bool | None = None,
        ran: str = "",
        told: str = "",
        faults: tuple[str, ...] = (),
    ) -> None:
        """One outcome.

        Args:
            told: what the user gets of it, on a line of its own: the file, or the text.
            faults: what else is not as it should be; it makes the row wrong although `happened` is right.
        """
        right = expected == happened and not faults
        self.rows += 1
        self.wrong += not right
        mark = f"{'ok' if right else 'WRONG':{_WIDTHS[0]}}"
        shown_refund = {True: "yes", False: "no", None: ""}[refund]
        line = _columns("", what, expected, happened, shown_refund, ran)[_WIDTHS[0] :]
        self.say(self._dressed(mark, "32" if right else "1;31") + line)
        if told:
            self.say(" " * (_WIDTHS[0] + 2) + self._dressed(told, "2"))
        for fault in faults:
            self.say(" " * (_WIDTHS[0] + 2) + self._dressed(f"WRONG: {fault}", "31"))

    def job(self, what: str, expected: str, job: dict[str, Any], *, faults: tuple[str, ...] = ()) -> None:
        """The outcome of a job, from its JSON. Whether the refund fits the state is looked at here."""
        if job["refund"] is not (job["state"] != "succeeded"):
            faults = (*faults, f"refund is {job['refund']}")
        self.row(
            what,
            expected,
            outcome(job),
            refund=job["refund"],
            ran=_seconds(job),
            told=files(job) if job["error"] is None else quoted(job["error"]["user_message"]),
            faults=faults,
        )

    def _dressed(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._coloured else text


def outcome(job: dict[str, Any]) -> str:
    """State and code, as one reads them: `failed generation_timeout`."""
    code = (job["error"] or {}).get("code", "")
    return job["state"] if code in ("", job["state"]) else f"{job['state']} {code}"


def files(job: dict[str, Any]) -> str:
    """`name.png 512 × 512 101 KB`, for every artifact."""
    return ", ".join(
        f"{artifact['filename']} {artifact['width']} × {artifact['height']} {artifact['bytes'] / 1024:.0f} KB"
        for artifact in job["artifacts"]
    )


def quoted(text: str | None) -> str:
    if not text:
        return ""
    return f"«{text if len(text) <= _TEXT_AT_MOST else text[: _TEXT_AT_MOST - 1] + '…'}»"


def _seconds(job: dict[str, Any]) -> str:
    if job["started_at_ms"] is None or job["settled_at_ms"] is None:
        return "–"
    return f"{(job['settled_at_ms'] - job['started_at_ms']) / 1000:.2f} s"


def _columns(*cells: str) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
