"""How long until a waiting job begins: by how long jobs like those before it took, or nothing rather than a guess."""

from __future__ import annotations

import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable

from ..clock import Clock
from ..job import Job, JobState, Kind
from ..store import Run, Waiting

#: Run times remembered of each template and each shape, and how many make a median worth saying.
RECENT = 20
ENOUGH = 3
#: A median is said where half of the run times lie within this share of it, or within a second.
SPREAD = 0.5
SLACK_S = 1.0
#: Templates and shapes remembered; those that were seen last.
KINDS = 1000
#: A job that has run longer than usual still needs this share of the usual time, as far as anybody can tell.
LEFT_AT_LEAST = 0.1

_ALL = Kind("", "")


class Estimates:
    """The run times of the last successes, and who runs now. Any thread."""

    def __init__(self, clock: Clock, runs: Iterable[Run] = ()) -> None:
        """`runs`: of earlier processes, oldest first."""
        self._clock = clock
        self._lock = threading.Lock()
        #: By template, by shape (a Kind without the other), and of all jobs (the empty Kind).
        self._recent: OrderedDict[Kind, deque[float]] = OrderedDict()
        self._usual_s: dict[Kind, float | None] = {}
        #: The jobs that hold a slot, with the time at which they began to run.
        self._under_way: dict[str, tuple[Kind, int | None]] = {}
        for run in runs:
            self._learn(run.kind, run.run_ms / 1000)

    def changed(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        with self._lock:
            if job.state in (JobState.DISPATCHED, JobState.RUNNING):
                self._under_way[job.job_id] = (job.kind, job.started_at_ms)
            else:
                self._under_way.pop(job.job_id, None)
            if job.state is JobState.SUCCEEDED and job.started_at_ms is not None and job.settled_at_ms is not None:
                self._learn(job.kind, (job.settled_at_ms - job.started_at_ms) / 1000)

    def starts_in_s(self, waiting: Waiting) -> float | None:
        """When a job that waits so may begin; None where too little is known of those before it."""
        total_s = self.rest_s()
        for kind, count in waiting.ahead.items():
            usual_s = self.usual_s(kind)
            if usual_s is None or total_s is None:
                return None
            total_s += usual_s * count
        return None if total_s is None else round(total_s, 1)

    def usual_s(self, kind: Kind) -> float | None:
        """How long such a job runs: by its template, else by its shape, else as all jobs do; None where that varies."""
        for known in _known(kind):
            if len(self._recent.get(known, ())) >= ENOUGH:
                return self._usual_s[known]  # where its like vary too much, all others say even less
        return None

    def rest_s(self) -> float | None:
        """How long the jobs that hold a slot still need: ComfyUI runs one after the other."""
        with self._lock:
            under_way = list(self._under_way.values())
        total_s = 0.0
        for kind, started_at_ms in under_way:
            usual_s = self.usual_s(kind)
            if usual_s is None:
                return None
            run_s = (self._clock.now_ms() - started_at_ms) / 1000 if started_at_ms is not None else 0.0
            total_s += max(usual_s - run_s, usual_s * LEFT_AT_LEAST)
        return total_s

    def _learn(self, kind: Kind, run_s: float) -> None:
        for known in _known(kind):
            recent = self._recent.setdefault(known, deque(maxlen=RECENT))
            self._recent.move_to_end(known)
            recent.append(run_s)
            self._usual_s[known] = usual(recent)
        while len(self._recent) > KINDS:
            forgotten, _recent = self._recent.popitem(last=False)
            self._usual_s.pop(forgotten, None)


def _known(kind: Kind) -> list[Kind]:
    """As what a job's time is remembered, the nearest first."""
    own = [Kind(kind.template, "")] if kind.template else []
    alike = [Kind("", kind.shape)] if kind.shape else []
    return [*own, *alike, _ALL]


def usual(run_times_s: Iterable[float]) -> float | None:
    """The median; None where there are too few, or half of them lie too far from it."""
    seen = list(run_times_s)
    if len(seen) < ENOUGH:
        return None
    low_s, median_s, high_s = statistics.quantiles(seen, n=4, method="inclusive")
    if max(median_s - low_s, high_s - median_s) > max(SPREAD * median_s, SLACK_S):
        return None
    return median_s
