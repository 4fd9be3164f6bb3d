"""What the store takes and gives besides jobs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..job import Job, JobState, Kind
from ..quotas import Taking
from ..weight import VramBody

#: What ComfyUI's queue shows of a job besides its id and its prompt: number, time of the submit, client id, outputs to
#: execute; and its owner. A plain tuple of plain values: Python's garbage collector, which holds up all threads, passes
#: over those.
Head = tuple[int, int, str | None, tuple[str, ...], str]


@dataclass(frozen=True)
class Waiting:
    """Where a queued job stands.

    Attributes:
        position: 1 is next.
        running: jobs that hold a slot.
        ahead: how many jobs of each kind come before it. Far back in a long queue this is an estimate, from each
            kind's share of the whole queue.
    """

    position: int
    running: int
    ahead: Mapping[Kind, float]


@dataclass(frozen=True)
class Standing:
    """A queued job, in a list of all of them in the order in which they will run."""

    job_id: str
    owner: str
    client_id: str | None
    locale: str
    kind: Kind


@dataclass(frozen=True)
class Run:
    """The run time of one job that succeeded."""

    kind: Kind
    run_ms: int


@dataclass(frozen=True)
class Submitted:
    """A job that is on disk. `replayed`: an earlier request with the same idempotency key made it.

    `waiting` is None once it is no longer queued. `vram`: what admission has found that it takes of the card's memory.
    """

    job: Job
    waiting: Waiting | None
    replayed: bool = False
    vram: VramBody | None = None


@dataclass(frozen=True)
class Bounds:
    """How many jobs may wait, of all, of a submit's owner and of its user, and how many bytes the bodies of its owner's
    open jobs may have; None is no limit. `takings`: what it takes of limits that boxes share."""

    max_queued: int
    max_queued_of_owner: int | None
    max_queued_of_user: int | None
    max_bytes_of_owner: int | None
    takings: Sequence[Taking]


@dataclass(frozen=True)
class IdempotencyKey:
    """A caller's key for one request, the digest of the request's body, and the time before which a key is too old."""

    key: str
    body_digest: str
    since_ms: int = 0


@dataclass(frozen=True)
class Claimed:
    """A job that has just taken a slot, with the body to dispatch."""

    job: Job
    body: bytes


@dataclass(frozen=True)
class Settled:
    """The job after a settle. `won`: this verdict ended it, and no earlier one."""

    job: Job
    won: bool


@dataclass(frozen=True)
class Changes:
    """Jobs as they were after each change of state, in order.

    Attributes:
        up_to: number of the last change that was read.
        head: number of the last change that there is.
    """

    jobs: list[Job]
    up_to: int
    head: int


@dataclass(frozen=True)
class Arrival:
    """A change that another box has made: the job after it, its state before (None: it came in), its place in line."""

    job: Job
    before: JobState | None
    place: float


@dataclass(frozen=True)
class Counts:
    """How many jobs wait, hold a slot, and run."""

    queued: int
    leased: int
    running: int


@dataclass(frozen=True)
class Ended:
    """How many jobs of one owner ended in one way.

    Attributes:
        code: the verdict's; None for success.
        runs: how many of the jobs had begun to run.
        run_ms: their run times added up.
    """

    owner: str
    code: str | None
    jobs: int
    runs: int
    run_ms: int


@dataclass(frozen=True)
class Entry:
    """A job and the body that it was submitted with; None: the job has settled, and its body is gone."""

    job: Job
    body: bytes | None


@dataclass(frozen=True)
class Listing:
    """A query of ComfyUI's `/api/jobs`.

    Attributes:
        workflow_id: the editor's, from `extra_data.extra_pnginfo.workflow`; None: any.
        by_run_time: sort by run time, otherwise by the time of the submit.
    """

    states: frozenset[JobState]
    workflow_id: str | None = None
    by_run_time: bool = False
    ascending: bool = False
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class Page:
    """Some of the jobs that match, each with its workflow's id, and how many match in all."""

    jobs: tuple[tuple[Job, str | None], ...]
    total: int


@dataclass(frozen=True)
class Wanted:
    """What jobs must be like, for `Store.search`; None, or nothing: any.

    Attributes:
        code: of the error that it ended with.
        text: its id or how that begins, its idempotency key, its client id, or the text of a value of its metadata.
        metadata: by its name, what the text of a value is: a string's own, or any other value's as JSON.
        created_after_ms: created at that time or later; created_before_ms: before that.
        settled_after_ms: settled at that time or later; the last to settle then comes first.
    """

    states: frozenset[JobState] | None = None
    code: str | None = None
    text: str | None = None
    template: str | None = None
    user: str | None = None
    idempotency_key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    settled_after_ms: int | None = None


@dataclass(frozen=True)
class Found:
    """Jobs that match, and where to go on; `next` is None where there are no more."""

    jobs: tuple[Job, ...]
    next: int | None


@dataclass(frozen=True)
class Recovery:
    """What became of an earlier process's open jobs: how many wait again, and which ended."""

    requeued: int
    settled: tuple[Job, ...]


@dataclass(frozen=True)
class Size:
    """The bytes of the database's file, of the free pages in it, and of the log beside it."""

    bytes: int
    free_bytes: int
    log_bytes: int

    @property
    def used_bytes(self) -> int:
        return self.bytes - self.free_bytes
