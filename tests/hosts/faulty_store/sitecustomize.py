"""Faults in a server's job database. `tests/chaos/faults.py` has the other end, and says what they are.

Python imports this by its name before anything else where PYTHONPATH names its folder. Only connections to `guarded.db`
are touched, and of those only commits that wrote something.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAULTY_STORE"])
LOOK_S = 0.005
ENDINGS = frozenset({"succeeded", "failed", "cancelled"})

_connect = sqlite3.connect


class Connection(sqlite3.Connection):
    """Obeys the files in FOLDER at each commit: `full`, `silent` and `gate`."""

    _before = (0, 0, frozenset[str]())

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        word = sql.lstrip()[:6].upper()
        if word == "COMMIT" and self.in_transaction:
            with self._faults():
                return super().execute(sql, *parameters)
        cursor = super().execute(sql, *parameters)
        if word.startswith("BEGIN"):
            self._before = self._look()
        return cursor

    def commit(self) -> None:
        with self._faults() if self.in_transaction else contextlib.nullcontext():
            super().commit()

    @contextlib.contextmanager
    def _faults(self) -> Any:
        changes, event_id, leases = self._before
        after = self._look()
        if after[0] == changes:
            yield  # it has only read
            return
        states = super().execute("SELECT state FROM transitions WHERE event_id > ?", (event_id,))
        said = {"settled" if state in ENDINGS else state for (state,) in states}
        if leases - after[2]:
            said.add("released")
        _wait_while(lambda: (FOLDER / "silent").exists())
        _stop_at("before", said)
        if (FOLDER / "full").exists():
            self._fill()
        yield
        _stop_at("after", said)

    def _look(self) -> tuple[int, int, frozenset[str]]:
        """How much was changed, the last transition, the leases."""
        with contextlib.suppress(sqlite3.OperationalError):  # no such table: it is being made
            ((event_id,),) = super().execute("SELECT coalesce(max(event_id), 0) FROM transitions")
            leases = frozenset(job_id for (job_id,) in super().execute("SELECT job_id FROM leases"))
            return self.total_changes, event_id, leases
        return self.total_changes, 0, frozenset()

    def _fill(self) -> None:
        """Raises what SQLite raises where the disk has no room for a page more."""
        ((pages,),) = super().execute("PRAGMA page_count")
        super().execute(f"PRAGMA max_page_count = {pages}").fetchall()
        try:
            super().execute("CREATE TABLE ballast AS SELECT zeroblob(1 << 28) AS x")
        finally:
            super().execute("PRAGMA max_page_count = 1073741823").fetchall()


def _wait_while(true: Callable[[], bool]) -> None:
    while true():
        time.sleep(LOOK_S)


def _stop_at(when: str, said: set[str]) -> None:
    """Stay here until the gate is taken away, or the process dies."""
    gate = FOLDER / "gate"
    try:
        wanted = gate.read_text().split()
    except FileNotFoundError:
        return
    if wanted[:1] == [when] and said.intersection(wanted[1:]):
        (FOLDER / "reached").touch()
        _wait_while(gate.exists)


def connect(database: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
    if "guarded.db" in os.fsdecode(database):
        options.setdefault("factory", Connection)
    return _connect(database, *arguments, **options)


sqlite3.connect = connect  # type: ignore[assignment]
