"""Estimate when a waiting job begins, from the run times of jobs like those before it; never guess."""

from __future__ import annotations

import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable

from ..clock import Clock
from ..job import Job, JobState, Kind
from ..store import Run, Waiting

#: So many run times of each template and each shape are kept; a median needs so many.
RECENT = 20
ENOUGH = 3
#: A median counts if half of the run times lie within this share of it, or within `SLACK_S`.
SPREAD = 0.5
SLACK_S = 1.0
#: So many templates and shapes are kept, those that ran last.
KINDS = 1000
#: A job that has run longer than usual is taken to need this share of the usual time still,
LEFT_AT_LEAST = 0.1
#: until it has run so many times as long: then it is late, and nobody knows when it ends.
LATE = 1.5


class Estimates:
    """Knows the run times of the last successes, and the jobs that run now. Any thread."""

    def __init__(self, clock: Clock, runs: Iterable[Run] = ()) -> None:
        """`runs`: see :meth:`learn`."""
        self._clock = clock
        self._lock = threading.Lock()
        #: By template and by shape: a Kind without the other.
        self._recent: OrderedDict[Kind, deque[float]] = OrderedDict()
        self._usual_s: dict[Kind, float | None] = {}
        #: The jobs that hold a slot: their kind, and when they began to run (None: not yet).
        self._under_way: dict[str, tuple[Kind, int | None]] = {}
        self.learn(runs)

    def learn(self, runs: Iterable[Run]) -> None:
        """Take up the runs of earlier processes, oldest first, before any of this one."""
        with self._lock:
            for run in runs:
                self._learn(run.kind, run.run_ms / 1000)

    def follow(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        with self._lock:
            if job.state in (JobState.DISPATCHED, JobState.RUNNING):
                self._under_way[job.job_id] = (job.kind, job.started_at_ms)
            else:
                self._under_way.pop(job.job_id, None)
            if job.state is JobState.SUCCEEDED and job.started_at_ms is not None and job.settled_at_ms is not None:
                self._learn(job.kind, (job.settled_at_ms - job.started_at_ms) / 1000)

    def starts_in_s(self, waiting: Waiting) -> float | None:
        """In how many seconds the job may begin; None where too little is known of the jobs before it."""
        total_s = self.rest_s()
        for kind, count in waiting.ahead.items():
            usual_s = self.usual_s(kind)
            if usual_s is None or total_s is None:
                return None
            total_s += usual_s * count
        return None if total_s is None else round(total_s, 1)

    def usual_s(self, kind: Kind) -> float | None:
        """How long such a job usually runs: by its template, else its shape; None where none ran or that varies."""
        for known in _kinds_of(kind):
            if len(self._recent.get(known, ())) >= ENOUGH:
                return self._usual_s[known]  # if jobs so alike vary too much, others tell even less
        return None

    def rest_s(self) -> float | None:
        """How long the jobs that hold a slot still need, one after the other; None where that is not known.

        Of a job that has run for `LATE` times its usual time it is not.
        """
        with self._lock:
            under_way = list(self._under_way.values())
        total_s = 0.0
        for kind, started_at_ms in under_way:
            usual_s = self.usual_s(kind)
            if usual_s is None:
                return None
            run_s = (self._clock.now_ms() - started_at_ms) / 1000 if started_at_ms is not None else 0.0
            if run_s > LATE * usual_s + SLACK_S:
                return None
            total_s += max(usual_s - run_s, usual_s * LEFT_AT_LEAST)
        return total_s

    def _learn(self, kind: Kind, run_s: float) -> None:
        for known in _kinds_of(kind):
            recent = self._recent.setdefault(known, deque(maxlen=RECENT))
            self._recent.move_to_end(known)
            recent.append(run_s)
            self._usual_s[known] = usual_run_s(recent)
        while len(self._recent) > KINDS:
            oldest, _recent = self._recent.popitem(last=False)
            self._usual_s.pop(oldest, None)


def _kinds_of(kind: Kind) -> list[Kind]:
    """The kinds under which a run time is kept: by template, by shape."""
    own = [Kind(kind.template, "")] if kind.template else []
    alike = [Kind("", kind.shape)] if kind.shape else []
    return [*own, *alike]


def usual_run_s(run_times_s: Iterable[float]) -> float | None:
    """The median; None where there are too few times, or half of them lie too far from it."""
    times_s = list(run_times_s)
    if len(times_s) < ENOUGH:
        return None
    low_s, median_s, high_s = statistics.quantiles(times_s, n=4, method="inclusive")
    if max(median_s - low_s, high_s - median_s) > max(SPREAD * median_s, SLACK_S):
        return None
    return median_s
