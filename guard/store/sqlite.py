"""The job store in an SQLite file, on the server's own disk."""

from __future__ import annotations

from pathlib import Path

from ..clock import Clock
from .engine import Engine
from .held_file import Survives
from .slices import Limits
from .table_store import TableStore
from .upkeep import Upkeep


class SqliteStore(TableStore):
    """The store on this server's own disk."""

    _engine: Engine

    def __init__(
        self,
        path: Path,
        clock: Clock,
        survives: Survives = "power_cut",
        limits: Limits | None = None,
        *,
        open_now: bool = True,
    ) -> None:
        """Open or create the database; blocks, so call it before the event loop serves.

        Args:
            survives: what submits and verdicts survive: see `store.survives`.
            limits: how long bodies are kept, and how large the database may become; None: for ever, and no limit.
            open_now: otherwise :meth:`serve` opens it.

        Raises:
            StoreLockedError: another process has the file open.
            StoreTooNewError: a later version wrote it; it is left as it is.
            StoreUnusableError: the disk refuses.
        """
        super().__init__(clock, Upkeep(path, clock, limits or Limits()))
        self._engine = Engine(path, self._transitions.load, self._publish, survives, self._upkeep)
        self._begin(open_now)

    @property
    def path(self) -> Path:
        return self._engine.path
