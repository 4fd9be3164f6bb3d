"""One thing that happened to a job, as every reader gets it."""

from __future__ import annotations

import functools
import json
import marshal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from typing_extensions import TypedDict

from ..host import Progress
from ..job import Job, ProgressBody
from ..store import Standing

STATE = "state"
POSITION = "position"
PROGRESS = "progress"
PREVIEW = "preview"
ALARM = "alarm"

_dumps = json.JSONEncoder(ensure_ascii=False).encode


class AlarmEvent(TypedDict):
    """Something that an operator should look at; `job_id` where it concerns one job."""

    code: str
    job_id: str | None
    message: str


class ProgressEvent(ProgressBody):
    """How far a running job is."""

    job_id: str


class PreviewEvent(TypedDict):
    """A picture of a running job, in Base64."""

    job_id: str
    mime: str
    data: str


@dataclass(frozen=True, eq=False)
class Event:
    """One thing that happened, as every reader gets it. docs/events.md has `data` by `name`.

    Attributes:
        make: makes `data`; called once, and only where somebody looks at it.
        job: whose it is, as it was then (of a position: as it stands in the queue); None for an alarm.
        id: of a state: its number, durable and growing over all jobs, to resume from. None for all else.
    """

    name: str
    make: Callable[[], Mapping[str, object]]
    job: Job | Standing | None = None
    id: int | None = None

    @functools.cached_property
    def size(self) -> int:
        """About how many bytes of memory it takes for what a job's nodes reported."""
        outputs = self.job.result.outputs if isinstance(self.job, Job) else None
        try:
            return len(marshal.dumps(outputs, 2)) if outputs else 0
        except ValueError:  # it has what did not come out of JSON, which takes the longer way
            return len(self.frame)

    @functools.cached_property
    def data(self) -> Mapping[str, object]:
        return self.make()

    @functools.cached_property
    def text(self) -> str:
        """`data` as JSON in one line, encoded once for all readers."""
        text = _dumps(self.data)
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: a file name that is no UTF-8, say
            text = json.dumps(self.data)
        return text

    @functools.cached_property
    def frame(self) -> bytes:
        """The event as a server-sent one."""
        numbered = f"id: {self.id}\n" if self.id is not None else ""
        return f"{numbered}event: {self.name}\ndata: {self.text}\n\n".encode()


def state_event(job: Job, progress: Progress | None = None) -> Event:
    return Event(STATE, lambda: job.body(progress=progress.body() if progress else None), job, job.event_id)


def progress_event(job: Job, progress: Progress) -> Event:
    def make() -> ProgressEvent:
        return {"job_id": job.job_id, **progress.body()}

    return Event(PROGRESS, make, job)


def preview_event(job: Job, mime: str, data: str) -> Event:
    body: PreviewEvent = {"job_id": job.job_id, "mime": mime, "data": data}
    return Event(PREVIEW, lambda: body, job)
