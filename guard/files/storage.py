"""Everything that serves `files.url`, or the little that there is without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from ..clock import Clock
from ..depot import Depot, read_address
from ..depot.holders import Holders
from ..depot.mark import KNOWN, Agree
from ..depot.outcomes import Depositor, Deposits, PutAll
from ..depot.results import Results
from ..fleet import Membership, Signatures, read_or_make_name
from ..host import Host
from ..settings import Settings
from ..store import Box, Member, Store
from .given import Given
from .inputs import Inputs
from .uploads import Uploads

#: In a box's status: whether its depot is away.
AWAY = "depot_away"

_FAILS = "The storage of files fails: prompts with files are refused, and results wait on this box."


class Warnings(Protocol):
    """Where it tells operators how it stands: see :class:`guard.life.health.Health`."""

    def watch(self, name: str, text: str | Callable[[], str], is_so: Callable[[], bool]) -> None: ...
    def warn(self, name: str, text: str, is_so: Callable[[], bool]) -> None: ...
    def hold_ready(self, name: str, is_so: Callable[[], bool]) -> None: ...


class Storage:
    """What of all that there is; each part is None without a depot, but for `results`."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        uploads: Uploads,
        store: Store,
        clock: Clock,
        health: Warnings,
        own: Path,
        count: Callable[[str, str, int], None],
        agree: Agree | None = None,
        member: Member | None = None,
        given: Given | None = None,
    ) -> None:
        """`own`: our own folder. `count` hears what is asked of the depot: see `Depot.acted`. `agree` as for a depot.
        `member`: this server in its fleet. `given`: the files of its running jobs.

        Raises SettingsError.
        """
        url = settings.files.url
        self.depot = depot = Depot(read_address(url), own / KNOWN, agree) if url else None
        name = read_or_make_name(own) if depot is not None else ""

        def find_own() -> str:
            return name if member is None else member.box

        self._holders = Holders(store, clock, find_own) if depot is not None else None
        self.results = Results(host, depot, self._holders)
        self._member, self._membership = member, cast(Membership | None, None)
        self.inputs: Inputs | None = None
        self.deposits: Deposits | None = None
        self._depositor: Depositor | None = None
        if depot is None:
            return
        self.inputs = Inputs(
            depot, host, uploads, store, settings.janitor.input_max_age_s, self.results, given, self._runs_elsewhere
        )
        self.deposits = deposits = Deposits(
            depot, self.results, store, clock, settings.results.check_timeout_s, find_own
        )
        self._depositor = Depositor(deposits, depot, store, has_others=member is not None)
        store.changed.subscribe(deposits.follow)
        store.opened.subscribe(lambda _recovery: deposits.begin())
        deposits.filled.subscribe(self._depositor.wake)
        depot.returned.subscribe(deposits.hurry)
        depot.acted.subscribe(count)
        # No job is taken before it has answered once.
        health.watch(
            "depot unavailable", lambda: f"No job is taken or run: {depot.trouble}.", lambda: depot.trouble is not None
        )
        health.warn("depot fails", _FAILS, lambda: depot.failing is not None)
        # Who is sent to another box finds the files there.
        health.hold_ready("depot unavailable", lambda: depot.failing is not None and bool(self._list_better()))
        depot.watch()

    def join(self, membership: Membership | None, signatures: Signatures | None) -> None:
        """Ask the other boxes of the fleet, if there are any, for what the depot does not have yet."""
        if self._holders is not None and membership is not None and signatures is not None:
            self._holders.join(membership, signatures)
        if self.depot is not None and membership is not None:
            self._membership = membership
            membership.looked.subscribe(lambda _boxes: self._tell())

    def _tell(self) -> None:
        """Let the other boxes know whether the depot is there for this one."""
        assert self._member is not None
        assert self.depot is not None
        self._member.tell(AWAY, self.depot.is_away or None)

    def _list_better(self) -> list[Box]:
        """The other boxes that live and have their depot, as far as they know. Any thread."""
        if self._membership is None or self._member is None:
            return []
        others = (box for box in self._membership.boxes if box.is_alive and box.box != self._member.box)
        return [box for box in others if box.status.get(AWAY) is not True]

    def _runs_elsewhere(self) -> bool:
        return any(box.max_jobs > 0 for box in self._list_better())

    @property
    def put_all(self) -> PutAll | None:
        return self.deposits.put_all if self.deposits is not None else None

    @property
    def bring(self) -> Callable[[Mapping[str, Any], str, int], Awaitable[None]] | None:
        return self.inputs.bring_patiently if self.inputs is not None else None

    def count_unstored(self) -> int:
        """The results that the depot does not have yet, about."""
        return self.deposits.waiting if self.deposits is not None else 0

    def start(self) -> list[asyncio.Task[None]]:
        """Go on with what the depot does not have yet. Event loop."""
        endless = (self._depositor.run, self._depositor.adopt) if self._depositor is not None else ()
        return [asyncio.create_task(each()) for each in endless]
