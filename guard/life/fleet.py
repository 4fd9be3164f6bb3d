"""What this server's runs have to do with its place in the fleet, if it is in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Protocol, cast

from ..access.keys import KeyFile, KeyPlace, Keys
from ..access.shared_keys import SharedKeys
from ..access.tokens import Links, Tokens
from ..clock import Clock
from ..depot.mark import Agree
from ..errors import ServerUnavailableError
from ..fleet import Lease, Membership, agreed, read_or_make_name, rename
from ..host import Host
from ..settings import Settings
from ..store import Box, Member, Store
from ..store.key_rows import KeyTable
from .dispatcher import Dispatcher
from .health import Health
from .returns import Queue
from .runs import Runs
from .settle import Settler
from .watchdog import Watchdog

LOST = (
    "No job is taken or run: this server has lost its place in the fleet, and joins again once its runs are over and "
    "the database has answered a beat."
)
UNANSWERED = (
    "No job is taken: the database answers no beat of this box, and the others will take its jobs. Each box needs five "
    "connections, one of them for its beats: has the database, or the pooler before it, so many?"
)
DEPOT_DIFFERS = (
    "No job is taken or run: files.url is another one here than on the boxes that were there before, which are"
)
SECRET_DIFFERS = (
    "No job is taken or run: fleet.secret is another one here than on the boxes that were there before, which are"
)

#: How long whoever looks at the depot waits for the database.
_PATIENCE_S = 15.0

#: In a box's status: whether its janitor sweeps by itself.
SWEEPS = "sweeps"


class FleetTables(KeyTable, Links, Protocol):
    """What a fleet's store has besides: see :class:`guard.store.postgres_fleet.FleetStore`."""

    def agree_on_depot(self, place: str, mark: str) -> Future[str]: ...


def make_member(settings: Settings, own: Path, find_vram: Callable[[], int | None]) -> Member | None:
    """This server as a box of a fleet; None where it has its queue for itself.

    `own` is our own folder; `find_vram` asks for the bytes of the card's memory.
    """
    fleet = settings.fleet
    if not fleet.enabled:
        return None
    vram_bytes = find_vram()
    member = Member(
        read_or_make_name(own),
        int(fleet.lease_s * 1000),
        settings.queue.max_jobs,
        url=fleet.url or None,
        vram_mb=None if vram_bytes is None else vram_bytes // 2**20,
        affinity_wait_ms=int(fleet.affinity_wait_s * 1000),
    )
    member.tell(agreed.STATUS, agreed.digest(settings))
    member.tell(SWEEPS, settings.janitor.enabled)
    return member


def find_store(member: Member | None, store: Store) -> Queue | None:
    """The store as one that gives jobs back to a fleet."""
    return None if member is None else cast(Queue, store)


def share_access(member: Member | None, store: Store, own: Path, keys: Keys, tokens: Tokens) -> KeyPlace:
    """Let keys and links of the whole fleet count here; returns where the keys are kept."""
    if member is None:
        return KeyFile(own)
    tables = cast(FleetTables, store)
    tokens.join(tables)
    shared = SharedKeys(tables)
    keys.join(shared)
    return shared


def make_agree(member: Member | None, store: Store) -> Agree | None:
    """Lets the boxes agree on the folder of their depot; None where there is one server alone."""
    if member is None:
        return None
    tables = cast(FleetTables, store)

    def agree(place: str, mark: str) -> str:
        """Blocks. Raises ServerUnavailableError."""
        try:
            return tables.agree_on_depot(place, mark).result(_PATIENCE_S)
        except FutureTimeoutError:
            raise ServerUnavailableError("The fleet's database does not answer.", retry_after_s=10) from None

    return agree


def make_has_lost(member: Member | None) -> Callable[[], bool]:
    """Says whether the jobs that this server has begun are no longer its own."""
    return lambda: member is not None and member.epoch is None


def make_is_keeper(membership: Membership | None) -> Callable[[], bool]:
    """Says whether this server is the one that sweeps what all share: the first whose janitor is on."""
    return lambda: membership is None or membership.is_first_of(SWEEPS)


def make_find_card(membership: Membership | None, host: Host) -> Callable[[], int | None]:
    """Says how many bytes the largest card has that may run a job; None: nobody knows, of one of them at least."""

    def find() -> int | None:
        boxes = membership.boxes if membership is not None else ()
        sizes = [box.vram_mb for box in boxes if box.is_alive and box.max_jobs > 0]
        if not sizes:
            return host.video_memory()
        known = [size for size in sizes if size is not None]
        return max(known) * 2**20 if len(known) == len(sizes) else None

    return find


def keep_membership(
    member: Member | None,
    store: Store,
    host: Host,
    clock: Clock,
    health: Health,
    settler: Settler,
    runs: Runs,
    dispatcher: Dispatcher,
    watchdog: Watchdog,
    own: Path,
) -> Membership | None:
    """Once the database is open, keep this server in its fleet, and stop its runs where it has lost its place.

    None where it is in none. `own` is our own folder.
    """
    if member is None:
        return None

    def is_clear() -> bool:
        return dispatcher.handing() == frozenset() and not runs.list_ids() and not settler.has_ends_of_runs

    def stop_runs(_why: str) -> None:
        for job_id in {*runs.list_ids(), *(dispatcher.handing() or ())}:
            settler.stop(job_id)

    health.has_others = True
    host.mark_names(lambda: member.box.removeprefix("box-"))
    membership = Membership(cast(Lease, store), clock, is_clear, lambda: rename(own))
    membership.lost.subscribe(stop_runs)
    membership.joined.subscribe(lambda _recovery: dispatcher.wake())
    store.opened.subscribe(lambda _recovery: membership.begin())
    watchdog.turned.subscribe(membership.turn)
    health.watch("beats unanswered", UNANSWERED, lambda: store.trouble is None and not membership.is_beating)
    health.watch("not in the fleet", LOST, lambda: store.trouble is None and not membership.is_member)
    member.tell(agreed.SINCE, clock.now_ms())

    def watch_others(problem: str, text: str, find: Callable[[str, Sequence[Box]], list[str]]) -> None:
        def find_them() -> list[str]:
            return find(member.box, membership.boxes)

        health.watch(problem, lambda: f"{text} {', '.join(find_them())}.", lambda: bool(find_them()))

    watch_others("depot differs", DEPOT_DIFFERS, agreed.list_other_depots)
    watch_others("secret differs", SECRET_DIFFERS, agreed.list_other_secrets)
    return membership
