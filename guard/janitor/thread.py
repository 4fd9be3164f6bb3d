"""When to sweep: every so often, when the disk runs short, and when somebody asks."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from ..clock import Clock
from ..depot import Depot
from ..errors import DiskFullError, GuardError, ServerUnavailableError
from ..host import Folders
from ..quotas import FilesHeld
from ..settings import JanitorSettings
from ..signal import Signal
from .bodies import CountBody, DiskBody, JanitorBody, RoomBody, RootBody, SweepTotals
from .depot import DepotSweep
from .disk import list_disks, measure_room
from .folder import HANDLES
from .in_use import InUse
from .marker import Marker
from .native import Native
from .oldest import pause_after, relieve_all
from .quotas import DepotQuotas, FileQuotas
from .records import Records, describe_records
from .report import Report, Tally, summarize
from .rules import Rules, absolute_roots
from .sweep import Stopped, Sweep

log = logging.getLogger("guarded.janitor")

#: The time between two looks at the free space. A fast disk can write some 2 GB meanwhile.
LOOK_S = 2.0
#: After a start, wait this long for the other packs to register their model folders and for the server to come up.
FIRST_SWEEP_S = 60.0
#: How long a count of the files in the roots stays good; on a large disk counting takes this share of the time at most.
COUNT_AGAIN_S = 300.0
COUNT_SHARE = 0.01
#: Sweeps remembered.
HISTORY = 20


class Janitor:
    """Keeps the three roots, the quarantine and the job history small. The thread only calls :meth:`turn`."""

    def __init__(
        self,
        settings: JanitorSettings,
        records: Records | None,
        folders: Callable[[], Folders],
        own: Path | None,
        clock: Clock,
        *,
        create_marker: bool = True,
        on_delete: Callable[[str], None] | None = None,
        handles: bool = HANDLES,
        blind_after_s: float = math.inf,
        held: FilesHeld | None = None,
        held_in_depot: FilesHeld | None = None,
        find_quotas: Callable[[], Mapping[str, int]] = dict,
        depot: Depot | None = None,
        is_keeper: Callable[[], bool] = lambda: True,
    ) -> None:
        """`own`: the guard's own folder, with the marker of the first start and the quarantine in it; without one,
        each start is the first. `on_delete` hears of each file and folder. `blind_after_s`: see :class:`.sweep.Sweep`.
        `held`, `held_in_depot`, `find_quotas`: what each owner has, which the janitor measures, and how much it may
        have of each. `is_keeper`:
        whether this server looks after the depot and the records, which several may share, when nobody asks.
        """
        self._settings = settings
        self._records = records
        self._folders = folders
        self._own = own
        self._clock = clock
        self._handles = handles
        self._blind_after_s = blind_after_s
        self.marker = Marker(own, time.time(), create=create_marker)
        self.native = Native(settings, self.marker)
        self.in_use = InUse(lambda: absolute_roots(folders()))
        self._condition = threading.Condition()
        self._asked: deque[tuple[bool, Future[Report]]] = deque()
        self._closed = False
        self._sweeping = threading.Lock()
        self._reports: deque[Report] = deque(maxlen=HISTORY)
        self._totals: SweepTotals = {"sweeps": 0, "files": 0, "bytes": 0, "jobs": 0, "errors": 0}
        self._disks: list[DiskBody] = []
        self._room: dict[str, RoomBody] = {}
        self._thinned: dict[str, None] = {}
        self._counted: dict[str, CountBody] = {}
        self._quotas = [FileQuotas(held or FilesHeld(), find_quotas, self._make_sweep)]
        self._is_keeper = is_keeper
        self._depot = DepotSweep(depot, records) if depot and records else None
        if self._depot:
            in_depot = held_in_depot or FilesHeld()
            self._quotas.append(DepotQuotas(in_depot, find_quotas, self._make_sweep, self._depot, is_keeper))
        self._existing: tuple[int, int] | None = None
        self._count_wanted = False
        self._count_due_s = float("-inf")
        self._full: dict[str, int] | None = None
        self._short = False
        #: The disk has become too full to let jobs in: called with a message on the janitor's thread.
        self.disk_filled: Signal[[str]] = Signal()
        self._due_s: float | None = None
        self._relief_due_s = float("-inf")
        self._last_s = float("-inf")
        self._on_delete = on_delete
        self._thread = threading.Thread(target=self._loop, name="guarded-janitor", daemon=True)

    def start(self) -> None:
        log.info("%s", self.native.describe())
        self._thread.start()

    def close(self) -> None:
        """End the thread, and a sweep under way at its next batch."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(5)

    # What others ask, on any thread. ----------------------------------------------------------------------------

    def ask(self, dry_run: bool) -> Future[Report]:
        """Sweep as soon as possible."""
        future: Future[Report] = Future()
        with self._condition:
            if self._closed or not self._thread.is_alive():
                future.set_exception(ServerUnavailableError("The janitor does not run."))
            else:
                self._asked.append((dry_run, future))
                self._condition.notify()
        return future

    def adopt(self) -> None:
        """Treat files from before the first start like all others. Writes a file: not for the event loop."""
        self.marker.adopt()

    def decide(self, sweep: bool) -> None:
        """Take the operator's word on what no job has made: see :meth:`.native.Native.decide`."""
        self.native.decide(sweep)
        self._count_due_s = float("-inf")

    def disk_full(self) -> DiskFullError | None:
        """Why no job is accepted, if so: the free space is below its floor."""
        full = self._full
        if full is None:
            return None
        details = f"Only {full['free_bytes']} bytes are free."
        return DiskFullError("The disk is almost full.", details=details, extra_info=full, retry_after_s=60)

    def body(self) -> JanitorBody:
        """How it stands, as JSON: sweeps, newest first."""
        self._count_wanted |= self.native.sweep is not True
        return {
            "enabled": self._settings.enabled,
            "sweeping": self._sweeping.locked(),
            "first_start_ms": round(self.marker.first_start_s * 1000),
            "adopted": self._adopted,
            "native": self.native.body(),
            "next_sweep_at_ms": round(self._due_s * 1000) if self._due_s is not None else None,
            "disks": self._disks,
            "database": describe_records(self._records),
            "totals": self._totals.copy(),
            "sweeps": [report.body() for report in reversed(list(self._reports))],
        }

    def roots(self) -> dict[str, RootBody]:
        """By root: the room on its disk, its files, and what the next sweep would free by age.

        The files are counted once somebody asks, and again after some minutes; until then they are None.
        """
        self._count_wanted = True
        unknown: CountBody = {"files": None, "bytes": None, "would_free_files": None, "would_free_bytes": None}
        counted = self._counted
        return {root: {**room, **counted.get(root, unknown)} for root, room in self._room.items()}

    def existing(self) -> tuple[int, int] | None:
        """The files and bytes from before the first start that are left alone; None until they have been counted."""
        self._count_wanted = True
        return self._existing

    # The thread. ---------------------------------------------------------------------------------------------

    def turn(self, now_s: float) -> float:
        """Do what is due at `now_s` (seconds since the epoch, as for files). Return when to look again."""
        if now_s < self._last_s and self._due_s is not None:
            # Somebody set the machine's clock back: keep the time between two sweeps.
            self._due_s -= self._last_s - now_s
            self._relief_due_s -= self._last_s - now_s
            self._count_due_s -= self._last_s - now_s
        self._last_s = now_s
        if self._due_s is None:
            self._due_s = now_s + min(FIRST_SWEEP_S, self._settings.interval_s) if self._settings.enabled else None
        self._look_at_disks()
        while self._asked:
            dry_run, future = self._asked.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.sweep(now_s, dry_run))
                except BaseException as error:
                    future.set_exception(error if isinstance(error, GuardError) else _early_end())
                    if not isinstance(error, (GuardError, Stopped)):
                        raise
        relieve = self._settings.enabled and self._short and now_s >= self._relief_due_s
        due = self._due_s is not None and now_s >= self._due_s
        if due:
            self._due_s = now_s + self._settings.interval_s
        if due or relieve:
            free = self._sum_free()
            is_keeper = self._is_keeper()
            report = self.sweep(now_s, relieve=relieve, in_depot=due and is_keeper, forgets=is_keeper)
            self._look_at_disks()
            if self._short and relieve:
                self._relief_due_s = now_s + pause_after(report, self._sum_free() - free)
        for quotas in self._quotas:
            for report in quotas.turn(now_s, may_delete=self._settings.enabled):
                self._note(report)
        if self._count_wanted and now_s >= self._count_due_s:
            self.count(now_s)
        return now_s + LOOK_S

    def sweep(
        self,
        now_s: float,
        dry_run: bool = False,
        *,
        relieve: bool = True,
        in_depot: bool = True,
        forgets: bool = True,
    ) -> Report:
        """Sweep now, on this thread. The report says what went wrong.

        Args:
            relieve, in_depot: where the disk is short of space, go on with the oldest files; sweep the depot, too.
            forgets: delete the records of jobs that ended long ago.

        Raises:
            Stopped: the server is ending.
        """
        with self._sweeping:
            report = self._run_sweep(now_s, dry_run, relieve, in_depot, forgets)
            self._note(report)
            return report

    def _note(self, report: Report) -> None:
        self._reports.append(report)
        if not report.dry_run:
            for name in ("files", "bytes", "jobs", "errors"):
                self._totals[name] += getattr(report, name)
            self._totals["sweeps"] += 1
        self._count_due_s = float("-inf")  # whoever asked looks at the folders' figures next
        log.info("%s", summarize(report))

    def _run_sweep(
        self, now_s: float, dry_run: bool, relieve: bool, in_depot: bool = False, forgets: bool = False
    ) -> Report:
        report = Report(round(now_s * 1000), dry_run)
        began_s = time.monotonic()
        try:
            sweep = self._make_sweep(report)
            for problem in sweep.rules.problems:
                report.add_error("", problem)
            disks = list_disks(root.path for root in sweep.rules.roots) if relieve else []
            in_depots = [self._depot.run] if in_depot and self._depot else []
            sweep.run(partial(relieve_all, disks), *in_depots, forgets=forgets)
        except Stopped:
            raise
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception("a sweep failed")
            report.add_error("", error)
        report.duration_s = time.monotonic() - began_s
        return report

    def _make_sweep(self, report: Report) -> Sweep:
        return Sweep(
            Rules(self._settings, self._folders(), self._own),
            now_s=report.started_at_ms / 1000,
            past_until_s=0.0 if self._adopted else self.marker.first_start_s,
            report=report,
            in_use=self.in_use,
            records=self._records,
            stopped=lambda: self._closed,
            on_delete=self._on_delete,
            handles=self._handles,
            blind_after_s=self._blind_after_s,
            native=self.native.sweep is True,
            thinned=self._thinned,
        )

    def count(self, now_s: float) -> None:
        """Rehearse the next sweep for its figures. The thread, or the command line, which has none."""
        self._count_wanted = False
        report = self._run_sweep(max(self._due_s or now_s, now_s), dry_run=True, relieve=False)
        self._counted = {
            root: {
                "files": tally.files,
                "bytes": tally.bytes,
                "would_free_files": report.deleted.get(root, Tally()).files,
                "would_free_bytes": report.deleted.get(root, Tally()).bytes,
            }
            for root, tally in report.seen.items()
        }
        past = report.kept.get("existing", Tally())
        self._existing = past.files, past.bytes
        self.native.note(report)
        self._count_due_s = now_s + max(COUNT_AGAIN_S, report.duration_s / COUNT_SHARE)

    @property
    def _adopted(self) -> bool:
        return self._settings.adopt_existing or self.marker.adopted

    def _sum_free(self) -> int:
        return sum(disk["free_bytes"] for disk in self._disks)

    def _look_at_disks(self) -> None:
        """Look how much room there is on each disk that matters."""
        states: list[DiskBody] = []
        settings = self._settings
        folders = self._folders()
        roots = [path for path in folders.roots().values() if path is not None]
        swept = {disk.device for disk in list_disks(roots)}
        self._short = False
        for disk in list_disks([*roots, *([self._own] if self._own is not None else [])]):
            try:
                total, free = disk.total(), disk.free()
            except OSError as error:
                log.debug("cannot tell the free space of %s: %s", disk.path, error)
                continue
            state: Literal["ok", "short", "full"] = "ok"
            if free < settings.floor_free_bytes:
                state = "full"
            elif free < settings.min_free_bytes:
                state = "short"
            self._short |= state != "ok" and disk.device in swept and free < settings.min_free_bytes
            states.append({"path": str(disk.path), "total_bytes": total, "free_bytes": free, "state": state})
        self._relieve_records()
        full = next((disk for disk in states if disk["state"] == "full"), None)
        if full is not None and self._full is None:
            log.error("the disk is almost full (%d bytes free): jobs are refused", full["free_bytes"])
            self.disk_filled(f"The disk is almost full ({full['free_bytes']} bytes free): jobs are refused.")
        elif full is None and self._full is not None:
            log.info("the disk has room again: jobs are accepted")
        # First, so that whoever is told of a full disk is refused there.
        self._full = {"free_bytes": full["free_bytes"], "floor_free_bytes": settings.floor_free_bytes} if full else None
        self._disks = states
        self._room = measure_room(folders)

    def _relieve_records(self) -> None:
        """Tell the job database how much its disk lacks. Its prompts of settled jobs go together with the files."""
        if self._records is None or self._records.path is None:
            return  # nobody's, or on a disk that is not ours to look after
        settings, wanted = self._settings, 0
        for disk in list_disks([self._records.path.parent]):
            with suppress(OSError):
                if settings.enabled and (free := disk.free()) < settings.min_free_bytes:
                    wanted = settings.target_free_bytes - free
        self._records.relieve(wanted)

    def _loop(self) -> None:
        wait_s = 0.0
        while True:
            with self._condition:
                if not self._closed and not self._asked:
                    self._condition.wait(wait_s)
                if self._closed:
                    break
            # A clock that jumps ahead makes files look older than they are: the wall clock may jump at any time, and
            # ours keeps an error of the start. The earlier of the two deletes less.
            now_s = min(self._clock.aging_ms() / 1000, time.time())
            try:
                wait_s = self.turn(now_s) - now_s
            except Stopped:
                break
            except Exception:
                log.exception("the janitor failed; it goes on")
                wait_s = LOOK_S
        while self._asked:
            with suppress(Exception):
                self._asked.popleft()[1].set_exception(_early_end())


def _early_end() -> ServerUnavailableError:
    return ServerUnavailableError("The sweep ended early.")
