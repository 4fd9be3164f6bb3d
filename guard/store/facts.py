"""Facts about jobs that the store takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..job import Job, JobState, Kind


@dataclass(frozen=True)
class Waiting:
    """How a queued job stands: 1 is next; `running` jobs hold the slots.

    `ahead`: how many of which kind come before it; far back, by their share in the whole queue.
    """

    position: int
    running: int
    ahead: Mapping[Kind, float]


@dataclass(frozen=True)
class Standing:
    """A queued job in the order in which all would be served."""

    job_id: str
    owner: str
    client_id: str | None
    locale: str
    kind: Kind


@dataclass(frozen=True)
class Run:
    """How long a job ran that succeeded."""

    kind: Kind
    run_ms: int


@dataclass(frozen=True)
class Submitted:
    """A job that is in the store for good. `replayed`: it had been already, under the same idempotency key."""

    job: Job
    waiting: Waiting | None
    replayed: bool = False


@dataclass(frozen=True)
class IdempotencyKey:
    """A caller's key for one request, the digest of that request's body, and since when the key counts."""

    key: str
    body_digest: str
    since_ms: int = 0


@dataclass(frozen=True)
class Claimed:
    """A job that has just been given a lease, with the body to dispatch."""

    job: Job
    body: bytes


@dataclass(frozen=True)
class Settled:
    """The job after a settle. `won`: this very verdict ended it."""

    job: Job
    won: bool


@dataclass(frozen=True)
class Changes:
    """Jobs as they were after each change of state, in the order in which those happened.

    `up_to`: the number of the last change that was looked at; `head`: of the last that there is.
    """

    jobs: list[Job]
    up_to: int
    head: int


@dataclass(frozen=True)
class Counts:
    """How many jobs wait, hold a slot, and run."""

    queued: int
    leased: int
    running: int


@dataclass(frozen=True)
class Ended:
    """How many jobs of one owner ended in one way; `code` is None for success.

    `runs` of them had begun to run, `run_ms` long in all.
    """

    owner: str
    code: str | None
    jobs: int
    runs: int
    run_ms: int


@dataclass(frozen=True)
class Entry:
    """A job, with the body that it was submitted with."""

    job: Job
    body: bytes


@dataclass(frozen=True)
class Listing:
    """What ComfyUI's `/api/jobs` may be asked for.

    Attributes:
        workflow_id: of the editor, in `extra_data.extra_pnginfo.workflow`; None: any.
        by_run_time: sort by how long a job ran, else by its age.
    """

    states: frozenset[JobState]
    workflow_id: str | None = None
    by_run_time: bool = False
    ascending: bool = False
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class Page:
    """Some of the jobs found, each with its workflow's id, and how many were found in all."""

    jobs: tuple[tuple[Job, str | None], ...]
    total: int


@dataclass(frozen=True)
class Recovery:
    """What a start found of an earlier process's jobs."""

    requeued: int
    settled: tuple[Job, ...]
