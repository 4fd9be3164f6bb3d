"""What the figures are as JSON."""

# Without `from __future__ import annotations`: compiling each annotation from its text would make a start slower.
from typing import Literal

from typing_extensions import NotRequired, TypedDict

from ..janitor.bodies import RootBody
from ..life.health import AlarmBody


class GpuBody(TypedDict):
    """The GPU that ComfyUI runs on; null is what the driver does not say."""

    name: str
    utilization_percent: int | None
    vram_used_bytes: int | None
    vram_total_bytes: int | None
    temperature_celsius: int | None


class OutcomesBody(TypedDict):
    """How many succeeded, failed and were cancelled, and how long a success ran on average."""

    succeeded: int
    failed: int
    cancelled: int
    average_run_s: float | None


class WindowBody(OutcomesBody):
    """What ended in a time, with the share of successes among the jobs that nobody cancelled; and what was refused."""

    jobs: int
    success_rate: float | None
    by_code: dict[str, int]
    refused: dict[str, int]


class HourBody(OutcomesBody):
    """What ended in an hour by the clock."""

    from_ms: int


class QueueCounts(TypedDict):
    """How many jobs wait and run."""

    queued: int
    running: int
    max_jobs: int


class SlowestBody(TypedDict):
    """The run times of a template's successes; template "" is the callers' own graphs."""

    template: str
    jobs: int
    median_run_s: float
    p95_run_s: float


class FailingBody(TypedDict):
    """How many of an owner's jobs ended, and failed."""

    owner: str
    jobs: int
    failed: int


class WorkerBody(TypedDict):
    """ComfyUI's worker, and those that hang in a node and were left behind."""

    alive: bool
    running: str | None
    replaced: int
    disowned: int


class WarmupRunBody(TypedDict):
    """A warm-up: `cold` (it is to run), `running`, `warm` or `failed`; why it failed last, and what it took last."""

    name: str
    state: str
    error: str | None
    took_s: float | None


class WarmupBody(TypedDict):
    """The warm-ups of this server; `ready`: `/guarded/ready` waits for none of them any more."""

    ready: bool
    runs: list[WarmupRunBody]


BoxState = Literal["alive", "late", "gone", "draining"]


class BoxRunBody(TypedDict):
    """A job that a box runs; `since_ms` is null until it has begun."""

    job_id: str
    owner: str
    template: str
    state: str
    since_ms: int | None


class BoxBody(TypedDict):
    """A box of the fleet; null is what it does not say.

    `late`: it was not heard of for a third of its lease; `gone`: for all of it. `differs`: in its `version`, from most
    boxes; in its `settings`, from the box that answers; in its machine's `clock`, from the database's.
    """

    box: str
    is_this: bool
    state: BoxState
    beat_at_ms: int
    url: str | None
    version: str | None
    gpu: str | None
    gpu_bytes: int | None
    max_jobs: int
    runs: list[BoxRunBody]
    problems: list[str]
    clock_off_s: float
    differs: list[str]


class StatsBody(TypedDict):
    """The figures; `failing`, `gpu`, `disk`, `worker`, `warmup`, `alarms` and `unseen_alarms` are for operators, and so
    is `fleet`, where the server is in one.
    """

    now_ms: int
    windows: dict[str, WindowBody]
    queue: QueueCounts
    slowest: list[SlowestBody]
    chart: list[HourBody]
    refused_since_ms: int
    failing: NotRequired[dict[str, list[FailingBody]]]
    gpu: NotRequired[GpuBody | None]
    disk: NotRequired[dict[str, RootBody]]
    worker: NotRequired[WorkerBody]
    warmup: NotRequired[WarmupBody]
    alarms: NotRequired[list[AlarmBody]]
    unseen_alarms: NotRequired[int]
    fleet: NotRequired[list[BoxBody]]
