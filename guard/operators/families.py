"""The table of metrics: name, kind, help, labels and buckets of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: So many template names get a label of their own; the names after them share one.
TEMPLATES = 50

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
GPU_TIME = Family(
    "guarded_gpu_seconds_total",
    "counter",
    "Seconds that runs took of the worker, by owner and template, whatever became of the job; not those that died with "
    "the process, which `GET /guarded/spending` has too.",
    ("owner", "template"),
)
REFUSALS = Family("guarded_admission_refusals_total", "counter", "Prompts that were refused, by error code.", ("code",))
OVER_QUOTA = Family(
    "guarded_over_quota_total",
    "counter",
    "What was refused with quota_exceeded: streams, requests, incoming_bytes and the like.",
    ("of",),
)
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
PUTS = Family(
    "guarded_result_puts_total",
    "counter",
    "Attempts to put a result to its owner's address: delivered, failed, gone, refused (by our own rules, or because "
    "it has expired) or unreachable.",
    ("outcome",),
)

DEPOT_REQUESTS = Family(
    "guarded_depot_requests_total",
    "counter",
    "What was asked of the storage of files (`files.url`): what is put, get, stat, list, delete, sign or probe, "
    "outcome is ok or failed.",
    ("what", "outcome"),
)
DEPOT_BYTES = Family(
    "guarded_depot_bytes_total", "counter", "Bytes that went into it (put) and came from it (get).", ("what",)
)
DEPOT_WAITING = Family("guarded_depot_waiting_files", "gauge", "Results that it does not have yet.")

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
READY = Family("guarded_ready", "gauge", "1 while the server takes jobs; /guarded/ready also waits for warm-ups.")
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
STORE_SIZE = Family("guarded_store_size_bytes", "gauge", "Size of the job database's file.")
STORE_FREE = Family("guarded_store_free_bytes", "gauge", "Bytes of it that are free.")
STORE_LOG = Family("guarded_store_log_bytes", "gauge", "Size of the log beside it.")
STORE_LIMIT = Family("guarded_store_limit_bytes", "gauge", "How large it may become (`store.max_bytes`; 0: no limit).")
STORE_THINNED = Family("guarded_store_thinned_total", "counter", "Prompts of settled jobs that were deleted.")
FLEET_INFO = Family(
    "guarded_fleet_info",
    "gauge",
    "1, where the server is a box of a fleet: its name and its version.",
    ("box", "version"),
)
FLEET_BOXES = Family(
    "guarded_fleet_boxes",
    "gauge",
    "Boxes of the fleet: alive, draining, late (not heard of for a third of the lease) or gone (for all of it, within "
    "the last day).",
    ("state",),
)
FLEET_VERSIONS = Family("guarded_fleet_versions", "gauge", "How many versions of this package they have.")
FLEET_SLOTS = Family("guarded_fleet_slots", "gauge", "Slots of all boxes that live.")
FLEET_SLOTS_USED = Family("guarded_fleet_slots_used", "gauge", "Jobs that they have under way.")

#: Of a fleet as a whole: one of its boxes tells them, so that sums count nothing twice.
OF_FLEET = frozenset(
    {QUEUED, STORE_SIZE, STORE_FREE, STORE_LOG, STORE_LIMIT, FLEET_BOXES, FLEET_VERSIONS, FLEET_SLOTS, FLEET_SLOTS_USED}
)

#: Counted as it happens.
COUNTED = (
    *(ADMITTED, SETTLED, WAIT, RUN, GPU_TIME, REFUSALS, OVER_QUOTA),
    *(FACE_CHECKS, FACE_CHECK_TIME, DELIVERIES, DELIVERY_TIME, PUTS),
    *(DEPOT_REQUESTS, DEPOT_BYTES),
)
#: Read when somebody scrapes.
READ = (
    *(TIMEOUTS, INTERRUPTS, REPLACEMENTS, QUEUED, SLOTS, SLOTS_USED, READY, WORKER_UP, DISOWNED, DEPOT_WAITING),
    *(GPU_INFO, GPU_BUSY, VRAM_USED, VRAM_SIZE, DISK_FREE, DISK_SIZE, ROOT_FILES, ROOT_BYTES, WOULD_FREE),
    *(SWEEPS, SWEPT_FILES, SWEPT_BYTES, SWEPT_JOBS, SWEEP_ERRORS),
    *(STORE_SIZE, STORE_FREE, STORE_LOG, STORE_LIMIT, STORE_THINNED),
    *(FLEET_INFO, FLEET_BOXES, FLEET_VERSIONS, FLEET_SLOTS, FLEET_SLOTS_USED),
)
