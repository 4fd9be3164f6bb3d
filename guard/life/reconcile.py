"""Free the slots of jobs that the host no longer has, whatever has become of them.

Slots are not counted by what the host reports: a pack may empty ComfyUI's queue by itself, a commit may fail, and a
fault of ours may lose a report. Each turn compares the slots in the store with what the host really has.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Protocol

from ..errors import WorkerDiedError
from ..host import Host
from ..job import Job
from .dispatcher import Dispatcher
from .runs import Runs
from .settle import Settler

log = logging.getLogger("guarded.queue")


class Leases(Protocol):
    """What the reconciler asks of the job store: see :class:`guard.store.Store`."""

    @property
    def leases(self) -> frozenset[str]: ...
    def get(self, job_id: str) -> Future[Job | None]: ...
    def find_token(self, job_id: str) -> str | None: ...


class Reconciler:
    """Settles and frees jobs that hold a slot and were found missing twice in a row."""

    def __init__(self, store: Leases, host: Host, settler: Settler, runs: Runs, dispatcher: Dispatcher) -> None:
        self._store = store
        self._host = host
        self._settler = settler
        self._runs = runs
        self._dispatcher = dispatcher
        #: What was missing at the turn before.
        self._missing: frozenset[str] = frozenset()
        #: What is being freed.
        self._freeing: dict[str, Future[Job | None]] = {}

    def turn(self) -> None:
        """Compare. The watchdog's thread."""
        # In this order, in which a job goes from hand to hand: it is missing nowhere on its way.
        leases = self._store.leases
        handing = self._dispatcher.handing()
        if handing is None:
            return
        missing = leases - handing - self._host.held()
        for job_id in missing & self._missing:
            self._free(job_id)
        self._missing = missing
        self._freeing = {job_id: looking for job_id, looking in self._freeing.items() if job_id in missing}

    def _free(self, job_id: str) -> None:
        looking = self._freeing.get(job_id)
        if looking is not None and not looking.done():
            return
        self._host.let_go(job_id)  # before the end is told: its socket hears as of a job that never ran
        self._freeing[job_id] = looking = self._store.get(job_id)
        looking.add_done_callback(lambda done: self._end(job_id, done))

    def _end(self, job_id: str, done: Future[Job | None]) -> None:
        """Settle the job, unless it has its verdict, and free its slot. The reader's thread."""
        if done.cancelled() or done.exception() is not None:
            return  # the next turn tries again
        job = done.result()
        if job is not None and not job.state.settled and self._settler.verdict_of(job_id) is None:
            log.error(
                "job %s is no longer in ComfyUI's queue, and nobody has said why", job_id, extra={"job_id": job_id}
            )
            job = job.evolve(token=self._store.find_token(job_id))
            self._settler.end(job, WorkerDiedError("ComfyUI's queue no longer has the job."))
        self._runs.released(job_id)
