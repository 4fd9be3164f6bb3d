# Over 400 lines: one job, and each of its parts as JSON.
"""A job as data: its state, the states that may follow, and its JSON."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, WithJsonSchema
from typing_extensions import NotRequired, TypedDict

from . import messages, outgoing
from .errors import FAMILY, LONGEST_REASON, ErrorCode, GuardError, clip, clip_all
from .outgoing import (
    AS_IT_COMES,
    Converted,
    ConvertedBody,
    InlineBody,
    NewPut,
    Put,
    PutBody,
    ResultOptions,
    ResultsBody,
)
from .owners import hide, hide_in
from .spent import CostBody, Spent, make_cost_body
from .weight import ANYWHERE, Placement


class JobState(str, enum.Enum):
    """Where a job stands; docs/architecture.md says what moves it on."""

    QUEUED = "queued"  # admitted and durable, waiting for a slot
    DISPATCHED = "dispatched"  # holds a lease, in ComfyUI's own queue
    RUNNING = "running"  # the worker has it; the job clock runs
    VALIDATING = "validating"  # executed; its files are being checked
    SUCCEEDED = "succeeded"  # its files exist and passed
    FAILED = "failed"  # one error code, refunded
    CANCELLED = "cancelled"  # by its owner or an operator, refunded

    @property
    def settled(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
OPEN = frozenset(JobState) - TERMINAL
WAITING = frozenset({JobState.QUEUED, JobState.DISPATCHED})

#: The states that may follow each. A restart leads back to `queued`. A dispatched job may succeed: its `running` was
#: never written where the disk failed when the worker took the job.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.DISPATCHED, JobState.FAILED, JobState.CANCELLED}),
    JobState.DISPATCHED: frozenset({JobState.QUEUED, JobState.RUNNING, *TERMINAL}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.VALIDATING, *TERMINAL}),
    JobState.VALIDATING: frozenset({JobState.QUEUED, *TERMINAL}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


#: ComfyUI's three folders for files, as a file's `type` calls them.
Root = Literal["output", "temp", "input"]
ROOTS: tuple[Root, ...] = get_args(Root)
RESULT_ROOTS: tuple[Root, ...] = ("output", "temp")  # those that a job's results lie in


class ProgressBody(TypedDict):
    """The current node's own steps, and per cent over all nodes that the job has to run."""

    value: float
    max: float
    node_id: str | None
    node_title: str | None
    percent: int


class ArtifactBody(TypedDict):
    """One result file, as it was when it passed the checks; `url` has it. `inline` is in answers about that one job."""

    index: int
    node_id: str
    kind: str
    filename: str
    subfolder: str
    type: Annotated[str, WithJsonSchema({"type": "string", "enum": list(RESULT_ROOTS)})]
    bytes: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: int | None
    height: int | None
    duration_s: float | None
    warnings: list[str]
    frames: int | None
    fps: float | None
    url: str
    converted: ConvertedBody | None
    inline: NotRequired[InlineBody]


class JobError(TypedDict):
    """Why a job ended badly."""

    code: ErrorCode
    message: str
    user_message: str
    retryable: bool
    details: dict[str, Any]


class JobBody(TypedDict):
    """A job. Times are milliseconds since the epoch; `error` is null and `refund` false where it succeeded.

    `retry_of` is the job that this one repeats. `shortened` is there in lists, where long texts are cut or left out;
    the job by itself has them.
    """

    job_id: str
    prompt_id: str
    state: JobState
    position: int | None
    eta_s: float | None
    owner: str
    template: str | None
    parameters: dict[str, Any] | None
    converted: bool
    priority: int
    attempts: int
    created_at_ms: int
    started_at_ms: int | None
    settled_at_ms: int | None
    timeout_s: float
    progress: ProgressBody | None
    outputs: dict[str, Any]
    artifacts: list[ArtifactBody]
    error: JobError | None
    refund: bool | None
    metadata: dict[str, Any]
    user: str | None
    idempotency_key: str | None
    retry_of: str | None
    cost: CostBody | None
    results: ResultsBody | None
    puts: list[PutBody]
    shortened: NotRequired[bool]


@dataclass(frozen=True)
class Artifact:
    """One result file of a job, as it was when it passed the checks.

    `type` and `subfolder` are ComfyUI's: the root (`output` or `temp`) and the folder below it. An owner is shown the
    part below its own folder.
    """

    index: int
    node_id: str
    kind: str
    filename: str
    subfolder: str
    type: str
    bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    duration_s: float | None = None
    warnings: tuple[str, ...] = ()
    frames: int | None = None
    fps: float | None = None
    converted: Converted | None = None

    @property
    def copy(self) -> Artifact | None:
        """The converted copy as a file of its own; None where there is none."""
        made = self.converted
        if made is None or made.error is not None:
            return None
        return replace(self, **made.facts(), warnings=(), converted=None)

    def body(self, job_id: str) -> ArtifactBody:
        """The artifact of that job as JSON."""
        url = f"/guarded/jobs/{job_id}/artifacts/{self.index}"
        return {
            "index": self.index,
            "node_id": self.node_id,
            "kind": self.kind,
            "filename": self.filename,
            "subfolder": hide(self.subfolder),
            "type": self.type,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "width": self.width,
            "height": self.height,
            "duration_s": self.duration_s,
            "warnings": list(self.warnings),
            "frames": self.frames,
            "fps": self.fps,
            "url": url,
            "converted": self.converted.body(url) if self.converted is not None else None,
        }


@dataclass(frozen=True)
class Verdict:
    """How a job ends: a terminal state and, unless it succeeded, the reason."""

    state: JobState
    code: str | None = None
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def evolve(self, **changes: Any) -> Verdict:
        return replace(self, **changes)

    @classmethod
    def of(cls, error: GuardError) -> Verdict:
        state = JobState.CANCELLED if error.code == "cancelled" else JobState.FAILED
        details = dict(error.extra_info)
        if error.details:
            details["details"] = error.details
        return cls(state, error.code, clip(error.message, LONGEST_REASON), clip_all(details, LONGEST_REASON))


SUCCESS = Verdict(JobState.SUCCEEDED)


@dataclass(frozen=True)
class Result:
    """What an ended run left: ComfyUI's outputs, the files that passed, and what it took."""

    outputs: dict[str, Any] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    spent: Spent | None = None
    unstored: tuple[outgoing.Unstored, ...] = field(default=(), compare=False)
    stored: tuple[outgoing.StoredFile, ...] = field(default=(), compare=False)

    def evolve(self, **changes: Any) -> Result:
        return replace(self, **changes)


class Kind(NamedTuple):
    """What jobs that take about as long have in common."""

    template: str
    shape: str


@dataclass(frozen=True)
class Webhook:
    """Where to report a job, and which of its states (their values)."""

    url: str
    events: tuple[str, ...] = tuple(sorted(state.value for state in TERMINAL))


@dataclass(frozen=True)
class NewJob:
    """An admitted prompt on its way into the store.

    Attributes:
        body: the request that `/guarded/prompt` received, as JSON text, without secrets.
        shape: a short name for graphs of the same node classes; estimates go by it.
        template: the one that rendered the prompt, or ""; parameters: those in force, with the seed.
        order: ComfyUI's `number`, if given; the smaller goes first among its owner's jobs. front: it heads their line.
        outputs_to_execute: ids of the output nodes that ComfyUI will run.
        has_secrets: it needs values that exist only in memory and do not survive a restart.
        workflow_id: that of the editor's workflow; converted: the guard made the prompt of one in the editor's format.
        user: the owner's own user, "" for none: an owner's users take turns. retry_of: the job that this one repeats.
        results: in what form its results are wanted; puts: where they go; inputs: what the depot has.
        placement: which server of a fleet runs it.
    """

    job_id: str
    owner: str
    body: bytes
    created_at_ms: int
    timeout_s: float
    locale: str
    priority: int = 0
    order: float | None = None
    front: bool = False
    client_id: str | None = None
    shape: str = ""
    template: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs_to_execute: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    has_secrets: bool = False
    webhook: Webhook | None = None
    workflow_id: str | None = None
    converted: bool = False
    user: str = ""
    retry_of: str | None = None
    results: ResultOptions = AS_IT_COMES
    puts: tuple[NewPut, ...] = ()
    inputs: tuple[outgoing.StoredFile, ...] = ()
    placement: Placement = ANYWHERE


@dataclass(frozen=True)
class Job:
    """A job as the store knows it. Times are milliseconds since the epoch, None where it has not happened.

    `event_id` is the number of its last change of state: it grows over all jobs, and is never used twice. `round` is
    its turn among its owner's users (`guard/store/line.py`). `shortened`: it comes from a list, and what is large of it
    is cut or left out. `body_bytes` is its body's size, also when that is gone; 0: never noted. `token`: of its run.
    """

    job_id: str
    number: int
    owner: str
    state: JobState
    priority: int
    attempts: int
    created_at_ms: int
    started_at_ms: int | None
    settled_at_ms: int | None
    timeout_s: float
    locale: str
    client_id: str | None
    shape: str
    template: str
    parameters: dict[str, Any]
    outputs_to_execute: tuple[str, ...]
    metadata: dict[str, Any]
    has_secrets: bool
    converted: bool = False
    event_id: int = 0
    webhook: Webhook | None = None
    user: str = ""
    round: int = 0
    idempotency_key: str | None = None
    body_bytes: int = 0
    retry_of: str | None = None
    results: ResultOptions = AS_IT_COMES
    puts: tuple[Put, ...] = ()
    verdict: Verdict | None = None
    result: Result = Result()
    shortened: bool = False
    token: str | None = None

    @property
    def kind(self) -> Kind:
        return Kind(self.template, self.shape)

    def evolve(self, **changes: Any) -> Job:
        return Job(**{**vars(self), **changes})  # `replace` looks at each field: a third of the time

    def error_body(self, locale: str | None = None) -> JobError | None:
        """The `error` of the job's JSON; None unless it ended badly."""
        if self.verdict is None or self.verdict.code is None:
            return None
        return {
            "code": self.verdict.code,
            "message": hide(self.verdict.message),
            "user_message": messages.text_of_end(self.verdict.code, locale or self.locale),
            "retryable": FAMILY[self.verdict.code].retryable,
            "details": hide_in(self.verdict.details),
        }

    def body(
        self,
        *,
        position: int | None = None,
        eta_s: float | None = None,
        progress: ProgressBody | None = None,
        locale: str | None = None,
    ) -> JobBody:
        """The job as JSON, the same wherever one is shown."""
        body: JobBody = {
            "job_id": self.job_id,
            "prompt_id": self.job_id,
            "state": self.state,
            "position": position,
            "eta_s": eta_s,
            "owner": self.owner,
            "template": self.template or None,
            "parameters": self.parameters if self.template else None,
            "converted": self.converted,
            "priority": self.priority,
            "attempts": self.attempts,
            "created_at_ms": self.created_at_ms,
            "started_at_ms": self.started_at_ms,
            "settled_at_ms": self.settled_at_ms,
            "timeout_s": self.timeout_s,
            "progress": progress,
            "outputs": hide_in(self.result.outputs),
            "artifacts": [artifact.body(self.job_id) for artifact in self.result.artifacts],
            "error": self.error_body(locale),
            "refund": self.state is not JobState.SUCCEEDED if self.state.settled else None,
            "metadata": self.metadata,
            "user": self.user or None,
            "idempotency_key": self.idempotency_key,
            "retry_of": self.retry_of,
            "cost": make_cost_body(self.result.spent, self.created_at_ms, self.started_at_ms, self.settled_at_ms),
            "results": self.results.body() if self.results != AS_IT_COMES else None,
            "puts": [put.body() for put in self.puts],
        }
        if self.shortened:
            body["shortened"] = True
        return body
