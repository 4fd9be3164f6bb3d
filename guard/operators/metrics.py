"""Metrics for Prometheus: counted as things happen, or read when somebody scrapes.

Jobs are counted from the store's changes. The store reports each change once, when it is durable, so nothing counts
twice. All other values are read from whoever knows them. `python <folder> metrics` generates `docs/metrics.md` from the
table in :mod:`.families` (:mod:`.metrics_page`).
"""

from __future__ import annotations

import importlib
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ..errors import FAMILY, ServerUnavailableError
from ..host import Host
from ..janitor import Janitor
from ..job import Job, JobState
from ..life.health import Health
from ..life.watchdog import Watchdog
from ..settings import QueueSettings
from ..spent import Spent
from ..store import Size
from .families import (
    ADMITTED,
    COUNTED,
    DELIVERIES,
    DELIVERY_TIME,
    DEPOT_BYTES,
    DEPOT_REQUESTS,
    DEPOT_WAITING,
    DISK_FREE,
    DISK_SIZE,
    DISOWNED,
    FACE_CHECK_TIME,
    FACE_CHECKS,
    FLEET_BOXES,
    FLEET_INFO,
    FLEET_SLOTS,
    FLEET_SLOTS_USED,
    FLEET_VERSIONS,
    GPU_BUSY,
    GPU_INFO,
    GPU_TIME,
    INTERRUPTS,
    OF_FLEET,
    OVER_QUOTA,
    PUTS,
    QUEUED,
    READ,
    READY,
    REFUSALS,
    REPLACEMENTS,
    ROOT_BYTES,
    ROOT_FILES,
    RUN,
    SETTLED,
    SLOTS,
    SLOTS_USED,
    STORE_FREE,
    STORE_LIMIT,
    STORE_LOG,
    STORE_SIZE,
    STORE_THINNED,
    SWEEP_ERRORS,
    SWEEPS,
    SWEPT_BYTES,
    SWEPT_FILES,
    SWEPT_JOBS,
    TEMPLATES,
    TIMEOUTS,
    VRAM_SIZE,
    VRAM_USED,
    WAIT,
    WORKER_UP,
    WOULD_FREE,
    Family,
)
from .fleet import STATES, FleetView
from .gpu import Gpus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OWN_GRAPH, OTHER = "(own graph)", "(other)"

_TERMINAL_CODES = tuple(code for code, error in FAMILY.items() if error.status is None and code != "cancelled")
_Labels = tuple[str, ...]


class _Histogram:
    """How often a value fell below each bound, and the sum of the values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """Counts things as they happen. Any thread; no method waits, or needs prometheus-client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Family, dict[_Labels, float]] = {
            family: defaultdict(int) for family in COUNTED if family.kind == "counter"
        }
        self._histograms: dict[Family, dict[_Labels, _Histogram]] = {
            family: {} for family in COUNTED if family.kind == "histogram"
        }
        #: Open jobs that were counted: if one becomes `queued` again, that is no admission.
        self._known: set[str] = set()
        self._templates: set[str] = set()
        # Prometheus computes a rate only from a series that begins with zero.
        self._counters[ADMITTED][()] = 0
        self._counters[SETTLED].update({("succeeded", ""): 0, ("cancelled", "cancelled"): 0})
        self._counters[SETTLED].update({("failed", code): 0 for code in _TERMINAL_CODES})
        self._counters[FACE_CHECKS]["passed",] = 0

    def follow(self, job: Job) -> None:
        """Count a job's new state, which is durable. The store's thread."""
        if job.state is JobState.QUEUED and job.job_id not in self._known:
            self._add(ADMITTED)
        if job.state is JobState.RUNNING and job.attempts == 1 and job.started_at_ms is not None:
            self._observe(WAIT, (job.started_at_ms - job.created_at_ms) / 1000)
        if not job.state.settled:
            self._known.add(job.job_id)
            return
        self._known.discard(job.job_id)
        code = job.verdict.code if job.verdict is not None else None
        self._add(SETTLED, job.state.value, code or "")
        if job.state is JobState.SUCCEEDED and job.started_at_ms is not None and job.settled_at_ms is not None:
            self._observe(RUN, (job.settled_at_ms - job.started_at_ms) / 1000, self._label_of(job.template))

    def follow_other(self, job: Job) -> None:
        """Note a job that another box of the fleet has changed, which counts it. The store's thread."""
        if job.state.settled:
            self._known.discard(job.job_id)
        else:
            self._known.add(job.job_id)

    def count_spent(self, job: Job, spent: Spent) -> None:
        """Count what a run took of the worker."""
        self._add(GPU_TIME, job.owner, self._label_of(job.template), by=spent.run_ms / 1000)

    def count_refusal(self, code: str, _owner: str) -> None:
        """Count a prompt that was refused with that error code."""
        self._add(REFUSALS, code)

    def count_over_quota(self, of: str) -> None:
        """Count a stream, or request, that was refused as one too many."""
        self._add(OVER_QUOTA, of)

    def count_face_check(self, outcome: str, took_s: float) -> None:
        """Count a check for faces; `outcome` is `passed` or an error code."""
        self._add(FACE_CHECKS, outcome)
        self._observe(FACE_CHECK_TIME, took_s)

    def count_delivery(self, outcome: str, took_s: float) -> None:
        """Count an attempt to deliver a webhook; `outcome` is as in :attr:`guard.events.outbox.Attempt.outcome`."""
        self._add(DELIVERIES, outcome)
        self._observe(DELIVERY_TIME, took_s)

    def count_put(self, outcome: str, _took_s: float) -> None:
        """The same of an attempt to put a result to an address."""
        self._add(PUTS, outcome)

    def count_depot(self, what: str, outcome: str, size: int) -> None:
        """Count a request to the depot: `put`, `get` and the like; `ok` or `failed`; the bytes that went."""
        self._add(DEPOT_REQUESTS, what, outcome)
        self._add(DEPOT_BYTES, what, by=size)

    def samples(self) -> Iterator[tuple[Family, _Labels, float | _Histogram]]:
        """Everything that was counted so far."""
        with self._lock:
            samples: list[tuple[Family, _Labels, float | _Histogram]] = [
                (family, labels, value) for family, values in self._counters.items() for labels, value in values.items()
            ]
            for family, histograms in self._histograms.items():
                for labels, histogram in histograms.items():
                    copy = _Histogram(histogram.bounds)
                    copy.counts, copy.sum = list(histogram.counts), histogram.sum
                    samples.append((family, labels, copy))
        yield from samples

    def _add(self, family: Family, *labels: str, by: float = 1) -> None:
        with self._lock:
            self._counters[family][labels] += by

    def _observe(self, family: Family, value: float, *labels: str) -> None:
        with self._lock:
            histograms = self._histograms[family]
            if labels not in histograms:
                histograms[labels] = _Histogram(family.buckets)
            histograms[labels].observe(max(value, 0.0))

    def _label_of(self, name: str) -> str:
        """The label for a template; there are never more than `TEMPLATES` and two. The store's thread."""
        if not name:
            return OWN_GRAPH
        if name not in self._templates and len(self._templates) >= TEMPLATES:
            return OTHER
        self._templates.add(name)
        return name


class Queue(Protocol):
    """What the metrics show of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leased(self) -> int: ...
    @property
    def size(self) -> Size: ...
    @property
    def thinned(self) -> tuple[int, int]: ...
    @property
    def max_bytes(self) -> int: ...


class Exposition:
    """Answers a scrape. Reads only values that are in memory: it does not wait for a disk or a driver."""

    def __init__(
        self,
        metrics: Metrics,
        settings: QueueSettings,
        store: Queue,
        host: Host,
        health: Health,
        watchdog: Watchdog,
        janitor: Janitor,
        gpus: Gpus,
        count_unstored: Callable[[], int] = lambda: 0,
        fleet: FleetView | None = None,
    ) -> None:
        """`count_unstored`: the results that the depot does not have yet. `fleet`: this is one of its boxes."""
        self._metrics = metrics
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._watchdog = watchdog
        self._janitor = janitor
        self._gpus = gpus
        self._count_unstored = count_unstored
        self._fleet = fleet

    def text(self) -> bytes:
        """All metrics in Prometheus' text format. Takes some milliseconds: not for the event loop.

        Raises:
            ServerUnavailableError: prometheus-client is not installed.
        """
        try:
            library = importlib.import_module("prometheus_client")
            core = importlib.import_module("prometheus_client.core")
        except ImportError as error:
            raise ServerUnavailableError(
                "The metrics need the package prometheus-client, which is not installed.",
                details=str(error),
                extra_info={"package": "prometheus-client"},
                retry_after_s=60,
            ) from None
        registry = core.CollectorRegistry()
        library.ProcessCollector(registry=registry)
        registry.register(_Collector(core, [*self._metrics.samples(), *self._choose_samples()]))
        text: bytes = library.generate_latest(registry)
        return text

    def _choose_samples(self) -> Iterator[tuple[Family, _Labels, float]]:
        """Without what another box of the fleet tells."""
        if self._fleet is None:
            yield from self._read_samples()
            return
        is_keeper = self._fleet.is_keeper
        yield FLEET_INFO, (self._fleet.box, self._fleet.version()), 1
        for sample in (*self._read_samples(), *self._read_fleet(self._fleet)):
            if is_keeper or sample[0] not in OF_FLEET:
                yield sample

    def _read_fleet(self, fleet: FleetView) -> Iterator[tuple[Family, _Labels, float]]:
        counts = fleet.count_states()
        for state in STATES:
            yield FLEET_BOXES, (state,), counts[state]
        yield FLEET_VERSIONS, (), fleet.count_versions()
        yield FLEET_SLOTS, (), fleet.count_slots()
        yield FLEET_SLOTS_USED, (), fleet.count_running()

    def _read_samples(self) -> Iterator[tuple[Family, _Labels, float]]:
        counts = self._watchdog.counts
        for limit in ("job", "stall", "native"):
            yield TIMEOUTS, (limit,), counts[f"timeout {limit}"]
        for how in ("stop", "inject"):
            yield INTERRUPTS, (how,), counts[how]
        for reason in ("hung", "dead"):
            yield REPLACEMENTS, (reason,), counts[f"replace {reason}"]
        yield QUEUED, (), self._store.queued
        yield SLOTS, (), self._settings.max_jobs
        yield SLOTS_USED, (), self._store.leased
        yield READY, (), not self._health.refusals()
        yield WORKER_UP, (), self._host.worker_alive()
        yield DISOWNED, (), self._host.hung_workers()
        yield DEPOT_WAITING, (), self._count_unstored()
        yield from self._read_gpus()
        yield from self._read_roots()
        totals = self._janitor.body()["totals"]
        yield SWEEPS, (), totals["sweeps"]
        yield SWEPT_FILES, (), totals["files"]
        yield SWEPT_BYTES, (), totals["bytes"]
        yield SWEPT_JOBS, (), totals["jobs"]
        yield SWEEP_ERRORS, (), totals["errors"]
        size = self._store.size
        yield STORE_SIZE, (), size.bytes
        yield STORE_FREE, (), size.free_bytes
        yield STORE_LOG, (), size.log_bytes
        yield STORE_LIMIT, (), self._store.max_bytes
        yield STORE_THINNED, (), self._store.thinned[0]

    def _read_gpus(self) -> Iterator[tuple[Family, _Labels, float]]:
        for gpu in self._gpus.all:
            label = (str(gpu.index),)
            yield GPU_INFO, (*label, gpu.name, gpu.uuid), 1
            if gpu.utilization_percent is not None:
                yield GPU_BUSY, label, gpu.utilization_percent / 100
            if gpu.vram_used_bytes is not None and gpu.vram_total_bytes is not None:
                yield VRAM_USED, label, gpu.vram_used_bytes
                yield VRAM_SIZE, label, gpu.vram_total_bytes

    def _read_roots(self) -> Iterator[tuple[Family, _Labels, float]]:
        for root, facts in self._janitor.roots().items():
            yield DISK_FREE, (root,), facts["free_bytes"]
            yield DISK_SIZE, (root,), facts["total_bytes"]
            counts = (
                (ROOT_FILES, facts["files"]),
                (ROOT_BYTES, facts["bytes"]),
                (WOULD_FREE, facts["would_free_bytes"]),
            )
            for family, count in counts:
                if count is not None:
                    yield family, (root,), count


class _Collector:
    """Turns samples into the families of prometheus-client, in the order of the table, with or without samples."""

    def __init__(self, core: Any, samples: Iterable[tuple[Family, _Labels, float | _Histogram]]) -> None:
        self._core = core
        self._samples: dict[Family, list[tuple[_Labels, float | _Histogram]]] = defaultdict(list)
        for family, labels, value in samples:
            self._samples[family].append((labels, value))

    def collect(self) -> Iterator[Any]:
        kinds = {
            "counter": self._core.CounterMetricFamily,
            "gauge": self._core.GaugeMetricFamily,
            "histogram": self._core.HistogramMetricFamily,
        }
        for family in (*COUNTED, *READ):
            metric = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in self._samples[family]:
                if isinstance(value, _Histogram):
                    metric.add_metric(labels, _buckets(value), value.sum)
                else:
                    metric.add_metric(labels, float(value))
            yield metric


def _buckets(histogram: _Histogram) -> list[tuple[str, int]]:
    """Cumulative counts, as Prometheus wants them: each bucket includes those below it."""
    buckets, total = [], 0
    for bound, count in zip((*map(str, map(float, histogram.bounds)), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
