"""Metrics for Prometheus: what is counted as it happens, and what is read when somebody scrapes.

What happens to jobs is counted from the store's changes, each of which is told once, when it is durable: nothing is
counted twice, whoever asked for it. All else is read where it is known. `docs/metrics.md` is generated from the table
(`python <folder> metrics`).
"""

from __future__ import annotations

import importlib
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import FAMILY, ServerUnavailableError
from ..host import Host
from ..janitor import Janitor
from ..job import Job, JobState
from ..life.health import Health
from ..life.watchdog import Watchdog
from ..settings import Settings
from ..store import Store
from .gpu import Gpus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Template names that get a line of their own; whatever comes after them shares one.
TEMPLATES = 50
OWN_GRAPH, OTHER = "(own graph)", "(other)"

_WAIT_S = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_RUN_S = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 3600)
_CHECK_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_DELIVERY_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True)
class Family:
    """One metric. A counter's name ends in `_total`; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


ADMITTED = Family("guarded_jobs_admitted_total", "counter", "Jobs that were admitted.")
SETTLED = Family(
    "guarded_jobs_settled_total",
    "counter",
    "Jobs that ended: outcome is succeeded, failed or cancelled, code the error code (empty for success).",
    ("outcome", "code"),
)
WAIT = Family(
    "guarded_job_wait_seconds",
    "histogram",
    "From admission until the worker took the job for the first time.",
    buckets=_WAIT_S,
)
RUN = Family(
    "guarded_job_run_seconds",
    "histogram",
    "How long jobs that succeeded ran, by template: (own graph) for a prompt of the caller's own, (other) for "
    f"templates after the first {TEMPLATES} names.",
    ("template",),
    _RUN_S,
)
REFUSALS = Family("guarded_admission_refusals_total", "counter", "Prompts that were refused, by error code.", ("code",))
FACE_CHECKS = Family(
    "guarded_face_checks_total", "counter", "Pictures checked for faces: passed, or the error code.", ("outcome",)
)
FACE_CHECK_TIME = Family(
    "guarded_face_check_seconds", "histogram", "How long a check for faces took.", buckets=_CHECK_S
)
DELIVERIES = Family(
    "guarded_webhook_deliveries_total",
    "counter",
    "Attempts to deliver a webhook: delivered, failed, gone, refused (by our own rules) or unreachable.",
    ("outcome",),
)
DELIVERY_TIME = Family(
    "guarded_webhook_delivery_seconds",
    "histogram",
    "How long an attempt to deliver a webhook took.",
    buckets=_DELIVERY_S,
)

TIMEOUTS = Family(
    "guarded_timeouts_total",
    "counter",
    "Running prompts that exceeded a limit: job (its time), stall (no progress), native (a prompt that did not come "
    "through the guard). A job that waited too long counts as code queue_timeout of guarded_jobs_settled_total.",
    ("limit",),
)
INTERRUPTS = Family(
    "guarded_interrupts_total",
    "counter",
    "Running prompts that were stopped: stop (a timeout or a cancel), inject (an exception was raised in one that "
    "does not check for a stop).",
    ("how",),
)
REPLACEMENTS = Family(
    "guarded_worker_replacements_total",
    "counter",
    "Workers that were replaced: hung or dead.",
    ("reason",),
)
QUEUED = Family("guarded_queue_jobs", "gauge", "Jobs that wait for a slot.")
SLOTS = Family("guarded_slots", "gauge", "Slots in front of the GPU (queue.max_jobs).")
SLOTS_USED = Family("guarded_slots_used", "gauge", "Slots that a job holds.")
READY = Family("guarded_ready", "gauge", "1 while the server takes jobs, as /guarded/ready says.")
WORKER_UP = Family("guarded_worker_up", "gauge", "1 while a thread serves ComfyUI's queue.")
DISOWNED = Family("guarded_workers_disowned", "gauge", "Workers that hang in a node and were left behind.")
GPU_INFO = Family("guarded_gpu_info", "gauge", "1, for each GPU that the driver shows.", ("gpu", "name", "uuid"))
GPU_BUSY = Family("guarded_gpu_utilization_ratio", "gauge", "Share of the time in which the GPU worked.", ("gpu",))
VRAM_USED = Family("guarded_gpu_memory_used_bytes", "gauge", "VRAM in use by all processes.", ("gpu",))
VRAM_SIZE = Family("guarded_gpu_memory_size_bytes", "gauge", "Size of the VRAM.", ("gpu",))
DISK_FREE = Family("guarded_disk_free_bytes", "gauge", "Free space on the disk of a root.", ("root",))
DISK_SIZE = Family("guarded_disk_size_bytes", "gauge", "Size of the disk of a root.", ("root",))
ROOT_FILES = Family("guarded_root_files", "gauge", "Files in a root; counted once somebody asks.", ("root",))
ROOT_BYTES = Family("guarded_root_bytes", "gauge", "Size of the files in a root.", ("root",))
WOULD_FREE = Family(
    "guarded_sweep_would_free_bytes", "gauge", "Bytes that the next sweep would free because of age.", ("root",)
)
SWEEPS = Family("guarded_sweeps_total", "counter", "Sweeps of the janitor, without dry runs.")
SWEPT_FILES = Family("guarded_sweep_deleted_files_total", "counter", "Files that sweeps deleted.")
SWEPT_BYTES = Family("guarded_sweep_freed_bytes_total", "counter", "Bytes that sweeps freed.")
SWEPT_JOBS = Family("guarded_sweep_forgotten_jobs_total", "counter", "Records of settled jobs that sweeps deleted.")
SWEEP_ERRORS = Family("guarded_sweep_errors_total", "counter", "Errors in sweeps.")

#: Counted as it happens.
COUNTED = (ADMITTED, SETTLED, WAIT, RUN, REFUSALS, FACE_CHECKS, FACE_CHECK_TIME, DELIVERIES, DELIVERY_TIME)
#: Read when somebody scrapes.
READ = (
    *(TIMEOUTS, INTERRUPTS, REPLACEMENTS, QUEUED, SLOTS, SLOTS_USED, READY, WORKER_UP, DISOWNED),
    *(GPU_INFO, GPU_BUSY, VRAM_USED, VRAM_SIZE, DISK_FREE, DISK_SIZE, ROOT_FILES, ROOT_BYTES, WOULD_FREE),
    *(SWEEPS, SWEPT_FILES, SWEPT_BYTES, SWEPT_JOBS, SWEEP_ERRORS),
)

_TERMINAL_CODES = tuple(code for code, error in FAMILY.items() if error.status is None and code != "cancelled")
_Labels = tuple[str, ...]


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """What is counted as it happens. Any thread; nothing here waits, and none of it needs prometheus-client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Family, dict[_Labels, int]] = {
            family: defaultdict(int) for family in COUNTED if family.kind == "counter"
        }
        self._histograms: dict[Family, dict[_Labels, _Histogram]] = {
            family: {} for family in COUNTED if family.kind == "histogram"
        }
        #: Open jobs that a change was told of: another `queued` of theirs is no admission.
        self._known: set[str] = set()
        self._templates: set[str] = set()
        # A rate needs a zero to begin from.
        self._counters[ADMITTED][()] = 0
        self._counters[SETTLED].update({("succeeded", ""): 0, ("cancelled", "cancelled"): 0})
        self._counters[SETTLED].update({("failed", code): 0 for code in _TERMINAL_CODES})
        self._counters[FACE_CHECKS]["passed",] = 0

    def changed(self, job: Job) -> None:
        """A job's new state is durable. The store's thread."""
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
            self._observe(RUN, (job.settled_at_ms - job.started_at_ms) / 1000, self._template(job.template))

    def refused(self, code: str) -> None:
        """A prompt was not let in."""
        self._add(REFUSALS, code)

    def face_checked(self, outcome: str, took_s: float) -> None:
        """A picture was looked at; `outcome` is `passed` or an error code."""
        self._add(FACE_CHECKS, outcome)
        self._observe(FACE_CHECK_TIME, took_s)

    def delivered(self, outcome: str, took_s: float) -> None:
        """A webhook was tried; `outcome` is one of a few words."""
        self._add(DELIVERIES, outcome)
        self._observe(DELIVERY_TIME, took_s)

    def samples(self) -> Iterator[tuple[Family, _Labels, int | _Histogram]]:
        """Everything counted so far."""
        with self._lock:
            found: list[tuple[Family, _Labels, int | _Histogram]] = [
                (family, labels, value) for family, values in self._counters.items() for labels, value in values.items()
            ]
            for family, histograms in self._histograms.items():
                for labels, histogram in histograms.items():
                    copy = _Histogram(histogram.bounds)
                    copy.counts, copy.sum = list(histogram.counts), histogram.sum
                    found.append((family, labels, copy))
        yield from found

    def _add(self, family: Family, *labels: str) -> None:
        with self._lock:
            self._counters[family][labels] += 1

    def _observe(self, family: Family, value: float, *labels: str) -> None:
        with self._lock:
            histograms = self._histograms[family]
            if labels not in histograms:
                histograms[labels] = _Histogram(family.buckets)
            histograms[labels].observe(max(value, 0.0))

    def _template(self, name: str) -> str:
        """A label for it; there are never more than a few dozen. The store's thread."""
        if not name:
            return OWN_GRAPH
        if name not in self._templates and len(self._templates) >= TEMPLATES:
            return OTHER
        self._templates.add(name)
        return name


class Exposition:
    """The whole of it as Prometheus reads it. Looks only at values that are at hand: it waits for no disk or driver."""

    def __init__(
        self,
        metrics: Metrics,
        settings: Settings,
        store: Store,
        host: Host,
        health: Health,
        watchdog: Watchdog,
        janitor: Janitor,
        gpus: Gpus,
    ) -> None:
        self._metrics = metrics
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._watchdog = watchdog
        self._janitor = janitor
        self._gpus = gpus

    def text(self) -> bytes:
        """A scrape. Some milliseconds of work: not for the event loop.

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
        registry.register(_Collector(core, [*self._metrics.samples(), *self._read()]))
        found: bytes = library.generate_latest(registry)
        return found

    def _read(self) -> Iterator[tuple[Family, _Labels, float]]:
        counts = self._watchdog.counts
        for limit in ("job", "stall", "native"):
            yield TIMEOUTS, (limit,), counts[f"timeout {limit}"]
        for how in ("stop", "inject"):
            yield INTERRUPTS, (how,), counts[how]
        for reason in ("hung", "dead"):
            yield REPLACEMENTS, (reason,), counts[f"replace {reason}"]
        yield QUEUED, (), self._store.queued
        yield SLOTS, (), self._settings.queue.max_jobs
        yield SLOTS_USED, (), self._store.leased
        yield READY, (), not self._health.refusals()
        yield WORKER_UP, (), self._host.worker_alive()
        yield DISOWNED, (), self._host.hung_workers()
        yield from self._gpu()
        yield from self._disk()
        totals = self._janitor.body()["totals"]
        for family, name in (
            *((SWEEPS, "sweeps"), (SWEPT_FILES, "files"), (SWEPT_BYTES, "bytes"), (SWEPT_JOBS, "jobs")),
            (SWEEP_ERRORS, "errors"),
        ):
            yield family, (), totals[name]

    def _gpu(self) -> Iterator[tuple[Family, _Labels, float]]:
        for gpu in self._gpus.all:
            label = (str(gpu.index),)
            yield GPU_INFO, (*label, gpu.name, gpu.uuid), 1
            if gpu.utilization_percent is not None:
                yield GPU_BUSY, label, gpu.utilization_percent / 100
            if gpu.vram_used_bytes is not None and gpu.vram_total_bytes is not None:
                yield VRAM_USED, label, gpu.vram_used_bytes
                yield VRAM_SIZE, label, gpu.vram_total_bytes

    def _disk(self) -> Iterator[tuple[Family, _Labels, float]]:
        named = (
            *((DISK_FREE, "free_bytes"), (DISK_SIZE, "total_bytes"), (ROOT_FILES, "files"), (ROOT_BYTES, "bytes")),
            (WOULD_FREE, "would_free_bytes"),
        )
        for root, facts in self._janitor.roots().items():
            for family, name in named:
                if (value := facts[name]) is not None:
                    yield family, (root,), value


class _Collector:
    """Samples as the families of prometheus-client, in the order of the table, those without samples too."""

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
            made = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in self._samples[family]:
                if isinstance(value, _Histogram):
                    made.add_metric(labels, _buckets(value), value.sum)
                else:
                    made.add_metric(labels, float(value))
            yield made


def _buckets(histogram: _Histogram) -> list[tuple[str, int]]:
    """Each with all that is below it, as Prometheus has them."""
    found, total = [], 0
    for bound, count in zip((*map(str, map(float, histogram.bounds)), "+Inf"), histogram.counts, strict=True):
        total += count
        found.append((bound, total))
    return found


def markdown() -> str:
    """`docs/metrics.md`, whole."""
    lines = [
        "# Metrics",
        "",
        "Generated from `guard/operators/metrics.py` by `python <folder> metrics`; do not edit.",
        "",
        "`GET /guarded/metrics` answers operators in Prometheus' text format. From another machine it wants a key with",
        "the scope `operate`:",
        "",
        "```yaml",
        "scrape_configs:",
        "  - job_name: guarded",
        "    metrics_path: /guarded/metrics",
        "    authorization: {credentials_file: /etc/prometheus/guarded.key}",
        '    static_configs: [{targets: ["gpu-box:8188"]}]',
        "```",
        "",
        "A scrape waits for no disk, driver or queue. Counters begin at zero with each start of the server. On Linux",
        "there are also `process_resident_memory_bytes`, `process_cpu_seconds_total` and the other `process_…` metrics",
        "of prometheus-client.",
        "",
        "| metric | type | labels | what it says |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{family.name}` | {family.kind} | {', '.join(family.labels)} | {family.help} |"
            for family in (*COUNTED, *READ)
        ),
        "",
        "## Questions",
        "",
        "| what | PromQL |",
        "| --- | --- |",
        *(f"| {what} | `{query}` |" for what, query in _QUESTIONS),
        "",
    ]
    return "\n".join(lines)


_QUESTIONS = (
    (
        "success rate over an hour, without cancelled jobs",
        'sum(rate(guarded_jobs_settled_total{outcome="succeeded"}[1h])) / '
        'sum(rate(guarded_jobs_settled_total{outcome!="cancelled"}[1h]))',
    ),
    (
        "average generation time",
        "sum(rate(guarded_job_run_seconds_sum[1h])) / sum(rate(guarded_job_run_seconds_count[1h]))",
    ),
    (
        "95 % of a template's runs are shorter than",
        "histogram_quantile(0.95, sum by (template, le) (rate(guarded_job_run_seconds_bucket[1h])))",
    ),
    ("why jobs fail", 'sum by (code) (increase(guarded_jobs_settled_total{outcome="failed"}[24h]))'),
    ("alarm: the server takes no jobs", "guarded_ready == 0"),
    ("alarm: jobs hang", "increase(guarded_worker_replacements_total[1h]) > 0"),
    ("alarm: the disk is nearly full", "guarded_disk_free_bytes / guarded_disk_size_bytes < 0.05"),
)
