"""Keep each owner's files within its quota: those on this server, and those in the depot."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import GuardError
from ..owners import folder_of
from ..quotas import FILE_BYTES, FilesHeld
from .depot import DepotSweep
from .folder import Folder
from .oldest import delete_oldest, remove_empty
from .report import Report, Tally
from .rules import Root
from .sweep import Stopped, Sweep
from .walk import Candidate

log = logging.getLogger("guarded.janitor")

#: Above this share of the quota the oldest files go, until they are down to that one: the walk is not for each file.
BEGIN_AT, END_AT = 0.9, 0.8
#: Some nodes leave files that nobody reports. An owner's are measured so often, or for this share of the time.
MEASURE_S, MEASURE_SHARE = 600.0, 0.02
#: Other servers put files into the depot, too; the database knows them all.
MEASURE_DEPOT_S = 10.0
#: An owner with too much, of which nothing may be deleted, is looked at no more often than this, or for that share.
AGAIN_S, AGAIN_SHARE = 10.0, 0.1


@dataclass(frozen=True)
class _Look:
    """When an owner's files were looked at, how long that took, and whether there was still too much after it."""

    at_s: float = -math.inf
    took_s: float = 0.0
    is_stuck: bool = False


class FileQuotas:
    """Measures what owners have, and deletes the oldest of it where that is too much. The janitor's thread."""

    _measure_s = MEASURE_S

    def __init__(
        self, held: FilesHeld, find_quotas: Callable[[], Mapping[str, int]], make_sweep: Callable[[Report], Sweep]
    ) -> None:
        """`find_quotas`: by owner, the bytes that its files may have; whoever has no quota is left out."""
        self._held = held
        self._find_quotas = find_quotas
        self._make_sweep = make_sweep
        self._looks: dict[str, _Look] = {}

    def turn(self, now_s: float, *, may_delete: bool) -> list[Report]:
        """Look at the owners whose turn it is at `now_s`. Returns what was deleted. Raises Stopped."""
        quotas = self._find_quotas()
        self._held.watch(quotas)
        self._looks = {owner: self._looks.get(owner, _Look()) for owner in quotas}
        reports = []
        for owner, most in quotas.items():
            look = self._looks[owner]
            if look.at_s > now_s:  # somebody set the machine's clock back
                look = _Look()
            due_s = look.at_s + max(self._measure_s, look.took_s / MEASURE_SHARE)
            again_s = look.at_s + max(AGAIN_S if look.is_stuck else 0.0, look.took_s / AGAIN_SHARE)
            if now_s >= due_s or (self._held.count(owner) > most * BEGIN_AT and now_s >= again_s):
                report = Report(round(now_s * 1000), dry_run=False)
                began_s = time.monotonic()
                self._look_at(owner, most, report, may_delete)
                report.duration_s = time.monotonic() - began_s
                is_stuck = self._held.count(owner) > most * BEGIN_AT
                self._looks[owner] = _Look(now_s, report.duration_s, is_stuck)
                if report.files or report.errors:
                    reports.append(report)
        return reports

    def _look_at(self, owner: str, most: int, report: Report, may_delete: bool) -> None:
        begun = self._held.begin_measuring(owner)
        try:
            sweep = self._make_sweep(report)
            held = self._measure(owner, sweep)
            if held > most * BEGIN_AT and may_delete:
                with sweep.informed():
                    self._make_room(owner, held - int(most * END_AT), sweep)
                held -= report.oldest.bytes + FILE_BYTES * (report.oldest.files + report.folders)
            self._held.end_measuring(owner, held, begun)
        except Stopped:
            raise
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception("the files of %s cannot be measured", owner)
            report.add_error("", error)

    def _measure(self, owner: str, sweep: Sweep) -> int:
        """What is in the owner's folder below each root, folders included."""
        counted = Report(0, sweep.dry_run)
        for root in sweep.rules.roots:
            sweep.walk(root, _Nothing(), counted, folder_of(owner))
        files = sum(tally.bytes + FILE_BYTES * tally.files for tally in counted.seen.values())
        return files + FILE_BYTES * counted.seen_folders

    def _make_room(self, owner: str, over: int, sweep: Sweep) -> None:
        """Delete what comes to `over` bytes, if there is so much that may go."""
        remove_empty(sweep, sweep.rules.roots, folder_of(owner))
        left = over - FILE_BYTES * sweep.report.folders

        def is_enough(freed: Tally) -> bool:
            return freed.bytes + FILE_BYTES * freed.files >= left

        delete_oldest(sweep, sweep.rules.roots, is_enough, folder_of(owner))


class DepotQuotas(FileQuotas):
    """The same for what the depot has. Every server measures it; one deletes."""

    _measure_s = MEASURE_DEPOT_S

    def __init__(
        self,
        held: FilesHeld,
        find_quotas: Callable[[], Mapping[str, int]],
        make_sweep: Callable[[Report], Sweep],
        depot: DepotSweep,
        is_keeper: Callable[[], bool],
    ) -> None:
        """`is_keeper`: whether this server is the one that deletes."""
        super().__init__(held, find_quotas, make_sweep)
        self._depot = depot
        self._is_keeper = is_keeper

    def turn(self, now_s: float, *, may_delete: bool) -> list[Report]:
        return super().turn(now_s, may_delete=may_delete and self._is_keeper())

    def _measure(self, owner: str, sweep: Sweep) -> int:
        return self._depot.count(owner)

    def _make_room(self, owner: str, over: int, sweep: Sweep) -> None:
        self._depot.delete_oldest(owner, over, sweep)


class _Nothing:
    """Lets everything stay."""

    def cutoff_s(self, max_age_s: float | None) -> float:
        return -math.inf

    def visit(
        self, root: Root, folder: Folder, prefix: str, candidates: list[Candidate], max_age_s: float | None
    ) -> bool:
        return False

    def remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        return False
