"""Give jobs back to a fleet's queue that this server cannot run and another one may be able to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from ..errors import (
    BadImageError,
    DiskFullError,
    GuardError,
    InvalidWorkflowError,
    MissingModelError,
    MissingNodeError,
    OutOfMemoryError,
    ServerUnavailableError,
)
from ..job import Job
from ..store import Refused
from .settle import Settler

log = logging.getLogger("guarded.fleet")

#: What another server may answer otherwise: it has other nodes, models or versions, a larger card, room, or the depot.
_ELSEWHERE = {
    MissingNodeError.code: Refused(MissingNodeError.code, is_of_needs=True),
    MissingModelError.code: Refused(MissingModelError.code, is_of_needs=True),
    InvalidWorkflowError.code: Refused(InvalidWorkflowError.code),
    OutOfMemoryError.code: Refused(OutOfMemoryError.code, wants_memory=True),
    DiskFullError.code: Refused(DiskFullError.code),
    # Admission has found its inputs, so the file is missing here.
    BadImageError.code: Refused(BadImageError.code),
    ServerUnavailableError.code: Refused(ServerUnavailableError.code),
}


class Queue(Protocol):
    """What this asks of the job store: see :class:`guard.store.postgres_fleet.FleetStore`."""

    def put_back(self, job_id: str, token: str, refused: Refused) -> Future[bool]: ...


class _Waiting(NamedTuple):
    job: Job
    refused: Refused
    end: Callable[[bool], None]


class Returns:
    """Any thread; no method waits. What the store cannot write is handed in again."""

    def __init__(self, store: Queue | None, settler: Settler) -> None:
        """`store`: None where this server has its queue for itself, and every refusal is final."""
        self._store = store
        self._settler = settler
        self._again: list[_Waiting] = []

    def takes(self, job: Job, error: GuardError) -> bool:
        """Whether another server may be able to run the job, which cannot be run here for that error."""
        return self._store is not None and job.token is not None and error.code in _ELSEWHERE

    def give_back(self, job: Job, error: GuardError, end: Callable[[bool], None]) -> None:
        """Give the job back, once its slot is free here. `end` hears whether it was, or is to end with that error.

        On any thread.
        """
        self._hand_in(_Waiting(job, _ELSEWHERE[error.code], end))

    def turn(self) -> None:
        """Hand in again what the store refused. The watchdog's thread, at every turn."""
        again, self._again = self._again, []
        for waiting in again:
            self._hand_in(waiting)

    def _hand_in(self, waiting: _Waiting) -> None:
        job = waiting.job
        if self._store is None or job.token is None or self._settler.has_lost(job):
            waiting.end(True)  # whoever has taken its jobs has this one, too
            return
        future = self._store.put_back(job.job_id, job.token, waiting.refused)
        future.add_done_callback(lambda done: self._take_answer(waiting, done))

    def _take_answer(self, waiting: _Waiting, done: Future[bool]) -> None:
        """The store's thread."""
        if done.cancelled() or done.exception() is not None:
            self._again.append(waiting)
            return
        if done.result():
            job_id, code = waiting.job.job_id, waiting.refused.code
            log.info("job %s waits for another server: %s here", job_id, code, extra={"job_id": job_id})
        waiting.end(done.result())
