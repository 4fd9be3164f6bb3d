"""Count the figures for operators and owners of bots: what ended, how fast, what waits, how the machine is."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from asyncio import wrap_future
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from ..client import Client
from ..clock import Clock
from ..errors import GuardError
from ..host import Host
from ..janitor import Janitor
from ..job import Job, JobState
from ..life.health import Health
from ..life.watchdog import Watchdog
from ..settings import QueueSettings
from ..store import Counts, Ended
from .alarms import Alarms
from .bodies import FailingBody, OutcomesBody, SlowestBody, StatsBody, WarmupBody, WindowBody
from .fleet import FleetView
from .gpu import Gpus
from .refusals import Refusals

#: An answer serves whoever asks within this time.
HOLDS_S = 3.0
HOUR_MS = 3_600_000
WINDOWS_MS = {"1h": HOUR_MS, "24h": 24 * HOUR_MS, "7d": 7 * 24 * HOUR_MS}
CHART_HOURS = 24
#: A verdict gets its time before its commit, which takes a while on a disk in trouble. An hour is final after this.
LATE_MS = 60_000
#: Run times are compared by template over this many of the last jobs.
RECENT_JOBS = 2_000
SLOWEST = 10
FAILING = 20


@dataclass(frozen=True)
class Tally:
    """How many jobs ended, how many of them had begun to run, and how long these ran in all."""

    jobs: int = 0
    runs: int = 0
    run_ms: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.jobs + other.jobs, self.runs + other.runs, self.run_ms + other.run_ms)


#: By code; None for success.
Codes = dict["str | None", Tally]
#: By owner; None for everybody together.
Owners = dict["str | None", Codes]


class Records(Protocol):
    """What the figures are counted from: see :class:`guard.store.Store`."""

    def count_jobs(self, owner: str | None = None) -> Future[Counts]: ...
    def count_endings(self, from_ms: int, before_ms: int) -> Future[list[Ended]]: ...
    def list_template_runs_ms(self, owner: str | None, limit: int, since_ms: int) -> Future[list[tuple[str, int]]]: ...
    def list_jobs(
        self, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None = None
    ) -> Future[list[Job]]: ...


class Stats:
    """Answers `/guarded/stats`. Event loop; the store's reader thread counts, an hour's jobs at a time.

    Hours that are over do not change, so each is counted once and kept: a week of a million jobs costs no more than its
    last two hours.
    """

    def __init__(
        self,
        settings: QueueSettings,
        store: Records,
        host: Host,
        health: Health,
        watchdog: Watchdog,
        janitor: Janitor,
        gpus: Gpus,
        refusals: Refusals,
        alarms: Alarms,
        clock: Clock,
        warmup: Callable[[], WarmupBody] = lambda: {"ready": True, "runs": []},
        fleet: FleetView | None = None,
    ) -> None:
        """`fleet`: the boxes, where this server is one of several."""
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._watchdog = watchdog
        self._janitor = janitor
        self._gpus = gpus
        self._refusals = refusals
        self._alarms = alarms
        self._clock = clock
        self._warmup = warmup
        self._fleet = fleet
        self._lock = asyncio.Lock()
        self._hours: dict[int, Owners] = {}
        #: When the store was last counted, the parts of each window, and the hours of the chart.
        self._counted: tuple[float, dict[str, list[Owners]], list[tuple[int, Owners]]] | None = None
        self._answers: dict[str | None, tuple[float, StatsBody]] = {}

    async def body(self, client: Client) -> StatsBody:
        """The figures as JSON: all of them for an operator, those of its own jobs for another client.

        An operator has an answer even while the database cannot be read, since its alarms say so; figures of jobs are
        missing in it. Raises GuardError for another client.
        """
        owner = client.sees_only
        async with self._lock:
            now_s = time.monotonic()
            self._answers = {who: answer for who, answer in self._answers.items() if now_s < answer[0] + HOLDS_S}
            if owner not in self._answers:
                try:
                    self._answers[owner] = now_s, await self._count_figures(owner)
                except GuardError:
                    if not client.operator:
                        raise
                    self._answers[owner] = now_s, self._lack_figures()
            figures = self._answers[owner][1]
        return await self._add_machine(figures) if client.operator else figures

    async def _count_figures(self, owner: str | None) -> StatsBody:
        now_ms = self._clock.now_ms()
        windows, chart = await self._count_endings(now_ms)
        counts = await wrap_future(self._store.count_jobs(owner))
        since_ms = now_ms - max(WINDOWS_MS.values())
        runs = await wrap_future(self._store.list_template_runs_ms(owner, RECENT_JOBS, since_ms))
        figures: StatsBody = {
            "now_ms": now_ms,
            "windows": {
                name: window(_merge(owner, parts), self._refusals.by_code(owner, WINDOWS_MS[name]))
                for name, parts in windows.items()
            },
            "queue": {"queued": counts.queued, "running": counts.running, "max_jobs": self._count_slots()},
            "slowest": slowest(runs),
            "chart": [{"from_ms": from_ms, **outcomes(_merge(owner, [hour]))} for from_ms, hour in chart],
            "refused_since_ms": self._refusals.since_ms,
        }
        if owner is None:
            figures["failing"] = {name: failing(parts) for name, parts in windows.items()}
        return figures

    def _lack_figures(self) -> StatsBody:
        return {
            "now_ms": self._clock.now_ms(),
            "windows": {name: window({}, self._refusals.by_code(None, ms)) for name, ms in WINDOWS_MS.items()},
            "queue": {"queued": 0, "running": 0, "max_jobs": self._count_slots()},
            "slowest": [],
            "chart": [],
            "refused_since_ms": self._refusals.since_ms,
        }

    def _count_slots(self) -> int:
        return self._settings.max_jobs if self._fleet is None else self._fleet.count_slots()

    async def _add_machine(self, figures: StatsBody) -> StatsBody:
        running: list[Job] = []
        unseen = 0
        with contextlib.suppress(GuardError):
            unseen = await self._alarms.count_unseen()
            running = await wrap_future(
                self._store.list_jobs(None, frozenset({JobState.RUNNING, JobState.VALIDATING}), limit=1)
            )
        if self._fleet is not None:
            with contextlib.suppress(GuardError):
                figures = {**figures, "fleet": await self._fleet.list_bodies()}
        gpu = self._gpus.ours
        return {
            **figures,
            "gpu": gpu.body() if gpu is not None else None,
            "disk": self._janitor.roots(),
            "worker": {
                "alive": self._host.worker_alive(),
                "running": running[0].job_id if running else None,
                "replaced": self._watchdog.replacements,
                "disowned": self._host.hung_workers(),
            },
            "warmup": self._warmup(),
            "alarms": self._health.alarms(),
            "unseen_alarms": unseen,
        }

    async def _count_endings(self, now_ms: int) -> tuple[dict[str, list[Owners]], list[tuple[int, Owners]]]:
        """Everybody's jobs that ended: the parts of each window, and the hours of the chart."""
        now_s = time.monotonic()
        if self._counted is None or now_s >= self._counted[0] + HOLDS_S:
            windows = {name: await self._count_parts(now_ms - ms, now_ms + 1) for name, ms in WINDOWS_MS.items()}
            this_hour = now_ms // HOUR_MS
            chart = [
                (hour * HOUR_MS, await self._count_hour(hour, now_ms))
                for hour in range(this_hour - CHART_HOURS + 1, this_hour + 1)
            ]
            oldest = (now_ms - max(WINDOWS_MS.values())) // HOUR_MS
            self._hours = {hour: owners for hour, owners in self._hours.items() if hour >= oldest}
            self._counted = now_s, windows, chart
        return self._counted[1], self._counted[2]

    async def _count_parts(self, from_ms: int, before_ms: int) -> list[Owners]:
        """The time from `from_ms` to `before_ms`: whole hours, and the rest at either end."""
        first, last = -(-from_ms // HOUR_MS), before_ms // HOUR_MS
        return [
            await self._count(from_ms, first * HOUR_MS),
            *[await self._count_hour(hour, before_ms) for hour in range(first, last)],
            await self._count(last * HOUR_MS, before_ms),
        ]

    async def _count_hour(self, hour: int, now_ms: int) -> Owners:
        if hour not in self._hours:
            owners = await self._count(hour * HOUR_MS, (hour + 1) * HOUR_MS)
            if (hour + 1) * HOUR_MS + LATE_MS > now_ms:
                return owners
            self._hours[hour] = owners
        return self._hours[hour]

    async def _count(self, from_ms: int, before_ms: int) -> Owners:
        owners: Owners = {None: {}}
        for ended in await wrap_future(self._store.count_endings(from_ms, before_ms)):
            tally = Tally(ended.jobs, ended.runs, ended.run_ms)
            owners.setdefault(ended.owner, {})[ended.code] = tally
            owners[None][ended.code] = owners[None].get(ended.code, Tally()) + tally
        return owners


def _merge(owner: str | None, parts: Iterable[Owners]) -> Codes:
    """The owner's tallies over all the parts."""
    codes: Codes = {}
    for part in parts:
        for code, tally in part.get(owner, {}).items():
            codes[code] = codes.get(code, Tally()) + tally
    return codes


def failing(parts: list[Owners]) -> list[FailingBody]:
    """The owners whose jobs failed, with the most failures first."""
    found: dict[str, FailingBody] = {}
    for part in parts:
        for owner, codes in part.items():
            if owner is not None:
                entry = found.setdefault(owner, {"owner": owner, "jobs": 0, "failed": 0})
                for code, tally in codes.items():
                    entry["jobs"] += tally.jobs
                    entry["failed"] += tally.jobs if code not in (None, "cancelled") else 0
    failed = [entry for entry in found.values() if entry["failed"]]
    return sorted(failed, key=lambda entry: (-entry["failed"], entry["owner"]))[:FAILING]


def outcomes(codes: Mapping[str | None, Tally]) -> OutcomesBody:
    """How many jobs succeeded, failed and were cancelled, and how long a success ran on average."""
    good, cancelled = codes.get(None, Tally()), codes.get("cancelled", Tally())
    return {
        "succeeded": good.jobs,
        "failed": sum(tally.jobs for tally in codes.values()) - good.jobs - cancelled.jobs,
        "cancelled": cancelled.jobs,
        "average_run_s": round(good.run_ms / good.runs / 1000, 3) if good.runs else None,
    }


def window(codes: Mapping[str | None, Tally], refused: dict[str, int]) -> WindowBody:
    """The outcomes, the share of successes among jobs that nobody cancelled, how often each code occurred; refusals."""
    totals = outcomes(codes)
    decided = totals["succeeded"] + totals["failed"]
    worst = sorted(((code, tally.jobs) for code, tally in codes.items() if code), key=lambda item: (-item[1], item[0]))
    return {
        "jobs": decided + totals["cancelled"],
        **totals,
        "success_rate": round(totals["succeeded"] / decided, 4) if decided else None,
        "by_code": dict(worst),
        "refused": refused,
    }


def slowest(runs: Iterable[tuple[str, int]]) -> list[SlowestBody]:
    """The templates whose runs take longest; template "" is the callers' own graphs."""
    by_template: dict[str, list[int]] = {}
    for template, run_ms in runs:
        by_template.setdefault(template, []).append(run_ms)
    medians = {template: statistics.median(times) for template, times in by_template.items()}
    return [
        {
            "template": template,
            "jobs": len(by_template[template]),
            "median_run_s": round(medians[template] / 1000, 3),
            "p95_run_s": round(_p95(by_template[template]) / 1000, 3),
        }
        for template in sorted(medians, key=lambda name: (-medians[name], name))[:SLOWEST]
    ]


def _p95(values: list[int]) -> int:
    """The smallest value that 95 per cent of the values do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
