"""Give free slots to waiting jobs."""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import wrap_future
from concurrent.futures import Future
from typing import Any, Protocol

from ..access.client_ids import ClientIds
from ..errors import GuardError, InternalError
from ..host import Host
from ..host_words import explain_refusal, host_body
from ..job import Job, JobState
from ..settings import QueueSettings
from ..store import Claimed
from ..wake import Wake
from .health import Health
from .runs import Runs
from .secrets import Secrets
from .settle import Settler

log = logging.getLogger("guarded.queue")


class Queue(Protocol):
    """What the dispatcher asks of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leased(self) -> int: ...
    def claim(self, holder: str, max_jobs: int) -> Future[Claimed | None]: ...


class Dispatcher:
    """Gives free slots to waiting jobs. One task on the event loop."""

    def __init__(
        self,
        settings: QueueSettings,
        store: Queue,
        host: Host,
        health: Health,
        settler: Settler,
        runs: Runs,
        secrets: Secrets,
        client_ids: ClientIds,
        holder: str,
    ) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._settler = settler
        self._runs = runs
        self._secrets = secrets
        self._client_ids = client_ids
        self._holder = holder
        self._wake = Wake()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Event loop, once every custom node is loaded."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="guarded-dispatcher")

    def follow(self, job: Job) -> None:
        """A new state is durable: wake up if a job waits now. The store's thread."""
        if job.state is JobState.QUEUED:
            self.wake()

    def wake(self) -> None:
        """A job waits, a slot is free, or the worker is back. Any thread.

        Without a free slot this does nothing: the next release wakes the dispatcher.
        """
        if self._store.leased < self._settings.max_jobs:
            self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                while await self.turn():
                    pass
            except Exception as error:
                # The store fails, or our code does. Try again: the queue must go on once that is over.
                log.error("no job can be dispatched: %s", error, exc_info=not isinstance(error, GuardError))
                await asyncio.sleep(1)
                continue
            await self._wake.wait()

    async def turn(self) -> bool:
        """Dispatch one job. False: there is no slot, no job or no worker, so wait until somebody calls :meth:`wake`."""
        max_jobs = self._settings.max_jobs
        if not self._store.queued or self._store.leased >= max_jobs or self._health.problems():
            return False
        claimed = await wrap_future(self._store.claim(self._holder, max_jobs))
        if claimed is None:
            return False
        try:
            await self._dispatch(claimed)
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception(
                    "job %s could not be handed to the host",
                    claimed.job.job_id,
                    extra={"job_id": claimed.job.job_id, "quotes_prompt": True},
                )
                error = InternalError("The host did not take the job.", details=f"{type(error).__name__}: {error}")
            self._settler.end(claimed.job, error)
            self._runs.released(claimed.job.job_id)
        return True

    async def _dispatch(self, claimed: Claimed) -> None:
        job = claimed.job
        self._runs.expect(job)
        body: dict[str, Any] = host_body(json.loads(claimed.body), job.job_id)
        client_id = self._client_ids.of_job(job.job_id, job.owner, job.client_id)
        body["client_id"] = client_id
        body["extra_data"] = {**body.get("extra_data", {}), **(self._secrets.of(job.job_id) if job.has_secrets else {})}
        refusal = await self._host.dispatch(job.job_id, client_id, body)
        if refusal is not None:
            raise explain_refusal(refusal, body["prompt"], self._host)
