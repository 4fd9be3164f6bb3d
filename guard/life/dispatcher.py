"""Give free slots to waiting jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ..access.client_ids import ClientIds
from ..errors import GuardError, InternalError
from ..files.names import owner_folder
from ..host import Host
from ..host_words import explain_refusal, host_body
from ..job import Job, JobState
from ..owners import renew
from ..quotas.threads import work
from ..settings import QueueSettings
from ..signal import Signal
from ..store import Claimed
from ..wake import LoopCaller, Wake, wrap_future
from .contain import contain, explain, find_failure, find_stack
from .health import Health
from .returns import Returns
from .runs import START_WAIT_S, Runs, log_start
from .secrets import Secrets
from .settle import Settler

log = logging.getLogger("guarded.queue")

#: How often the dispatcher looks for work although nobody has woken it.
LOOK_S = 1.0
#: How long after its job's time a turn must come back.
LATE_S = 10.0
#: So many times the prompt of a job that has begun is read, `LOOK_S` apart, where the store fails.
READS = 10


class Queue(Protocol):
    """What the dispatcher asks of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leased(self) -> int: ...
    def claim(self, holder: str, max_jobs: int) -> Future[Claimed | None]: ...
    def begin(self, holder: str, max_jobs: int, is_ready: Callable[[str], bool]) -> Future[Job | None]: ...
    def hand_over(self, job_id: str) -> Future[None]: ...
    def find_body(self, job_id: str) -> Future[tuple[bytes | None, int | None]]: ...


class Dispatcher:
    """Gives free slots to waiting jobs: a task on the event loop, which the watchdog's thread supervises, and between
    two prompts ComfyUI's worker itself (see :class:`guard.host.Supplier`).
    """

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
        bring: Callable[[Mapping[str, Any], str, int], Awaitable[None]] | None = None,
        returns: Returns | None = None,
    ) -> None:
        """`bring`: brings the files here that a prompt of that owner names, where they are kept elsewhere too.

        `returns`: takes what another server may be able to run.
        """
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._settler = settler
        self._runs = runs
        self._secrets = secrets
        self._client_ids = client_ids
        self._holder = holder
        self._bring = bring
        self._returns = returns
        self._wake = Wake()
        self._loop = LoopCaller()
        self._task: asyncio.Task[None] | None = None
        self._begins_again = False
        self._expects_slot = False
        #: Held for a moment, where a job changes from one of these to the next.
        self._lock = threading.Lock()
        #: How many claims are under way: nobody knows their jobs yet.
        self._claims = 0
        #: The jobs that are being handed to the host, each with the monotonic time by which that must be over.
        self._handing: dict[str, float] = {}
        #: What does that, by job.
        self._handovers: dict[str, asyncio.Task[None]] = {}
        #: The jobs that were ended meanwhile.
        self._ended: set[str] = set()
        #: The jobs that have begun as far as the store knows, and of which the host had nothing to put any more.
        self._anew: deque[Job] = deque()
        #: The task had ended or hung and was started again: a code and a message. Called on the watchdog's thread.
        self.alarmed: Signal[[str, str]] = Signal()
        health.watch("dispatcher down", "Nothing is dispatched: the dispatcher has ended or hangs.", self.is_down)

    def start(self) -> None:
        """Event loop, once every custom node is loaded."""
        self._loop.bind()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="guarded-dispatcher")

    def follow(self, job: Job) -> None:
        """A new state is durable: wake up if a job waits now. The store's thread."""
        if job.state is JobState.QUEUED:
            self.wake()

    def wake(self) -> None:
        """A job waits, a slot is free, or the worker is back. Any thread.

        Without a waiting job or a free slot this does nothing: the next submit or release wakes the dispatcher. While
        the worker is between two prompts it begins the next job itself, or says that it goes on.
        """
        if self._store.queued and self._store.leased < self._settings.max_jobs and not self._host.is_between():
            self._wake.set()

    def expect_slot(self) -> None:
        """A slot is being freed: the store frees it before it comes to a claim that is handed in now. Any thread."""
        self._expects_slot = True
        if not self._host.is_between():
            self._wake.set()

    def expect_stop(self, job_id: str) -> None:
        """Somebody ends the job before its own end: if it is not with the host yet, it never will be. Any thread."""
        with self._lock:
            if not self._claims and job_id not in self._handing:
                return
            self._ended.add(job_id)
        self._loop.call(lambda: self._leave(job_id))

    # What others see of it. Any thread. ----------------------------------------------------------------------

    def is_down(self) -> bool:
        """Whether the task has ended, or does not come back from a turn."""
        return self._task is not None and (self._task.done() or self._is_late())

    def handing(self) -> frozenset[str] | None:
        """The jobs that have a slot and are not with the host yet; None while nobody knows, as one is being claimed."""
        with self._lock:
            return None if self._claims else frozenset(self._handing)

    def supervise(self) -> None:
        """Start the task again where it has ended or hangs. The watchdog's thread, at every turn."""
        task = self._task
        if task is None or self._begins_again or not self.is_down():
            return
        self._begins_again = True
        message = "the dispatcher has ended" if task.done() else "the dispatcher does not come back from a turn"
        log.error("%s; it is started again\n%s", message, find_stack(task), exc_info=find_failure(task))
        self.alarmed("dispatcher_restarted", f"{message}; it was started again")
        self._loop.call(self._begin_again)

    # The event loop. -----------------------------------------------------------------------------------------

    def _begin_again(self) -> None:
        self._begins_again = False
        if self._task is not None:
            self._task.cancel()
        with self._lock:
            for job_id in self._handovers:
                self._handing.pop(job_id, None)
        self.start()

    def _leave(self, job_id: str) -> None:
        if (handover := self._handovers.get(job_id)) is not None:
            handover.cancel()

    def _is_late(self) -> bool:
        with self._lock:
            return any(time.monotonic() > due_s for due_s in self._handing.values())

    async def _run(self) -> None:
        while True:
            try:
                while await self.turn():
                    pass
            except Exception as error:
                # The store fails, or our code does. Try again: the queue must go on once that is over.
                if not isinstance(error, GuardError):  # of its own troubles the store tells
                    log.exception("no job can be dispatched")
                await asyncio.sleep(1)
                continue
            await self._wake.wait(LOOK_S)

    async def turn(self) -> bool:
        """Dispatch one job. False: there is no slot, no job or no worker, so wait until somebody calls :meth:`wake`."""
        if self._anew:
            await self._dispatch_anew(self._anew.popleft())
            return True
        max_jobs = self._settings.max_jobs
        if self._host.is_between():
            return False  # the worker is about to begin the next job, and says when it goes on
        expects_slot, self._expects_slot = self._expects_slot, False
        if not self._store.queued or (self._store.leased >= max_jobs and not expects_slot):
            return False
        self._note_claim()
        claimed = None
        try:
            # Only now, so that a drain either keeps this from beginning or knows of it.
            if not self._health.hindrances():
                claimed = await wrap_future(self._store.claim(self._holder, max_jobs))
        finally:
            self._note_claimed(claimed.job if claimed is not None else None, LATE_S)
        if claimed is None:
            return False
        try:
            await self._hand_over(claimed.job, partial(self._dispatch, claimed))
        finally:
            self._note_handed(claimed.job.job_id)
        return True

    async def _dispatch_anew(self, job: Job) -> None:
        """Hand a job over that has begun, from its prompt on: it goes first, and nothing else keeps it from that."""
        with self._lock:
            self._handing[job.job_id] = time.monotonic() + job.timeout_s + LATE_S
        try:
            await self._hand_over(job, partial(self._read_and_dispatch, job))
        finally:
            self._note_handed(job.job_id)

    async def _read_and_dispatch(self, job: Job) -> None:
        body = await self._read_body(job.job_id)
        if body is None:
            raise InternalError("The job's prompt is no longer in the database.")
        await self._dispatch(Claimed(job, body), first=True)

    async def _read_body(self, job_id: str) -> bytes | None:
        for _ in range(READS - 1):
            with suppress(GuardError):  # of its own troubles the store tells
                return (await wrap_future(self._store.find_body(job_id)))[0]
            await asyncio.sleep(LOOK_S)
        return (await wrap_future(self._store.find_body(job_id)))[0]

    def _note_claim(self) -> None:
        """Any thread."""
        with self._lock:
            if not self._claims and not self._handing:
                self._ended.clear()
            self._claims += 1

    def _note_claimed(self, job: Job | None, late_s: float) -> None:
        """A claim is over; its job is being handed to the host. Any thread."""
        with self._lock:
            self._claims -= 1
            if job is not None:
                self._handing[job.job_id] = time.monotonic() + job.timeout_s + late_s

    def _note_handed(self, job_id: str) -> bool:
        """Whoever ends the job from now on finds it with the host; returns whether somebody has before. Any thread."""
        with self._lock:
            self._handing.pop(job_id, None)
            return job_id in self._ended

    async def _hand_over(self, job: Job, dispatch: Callable[[], Awaitable[None]]) -> None:
        """Hand the job to the host. Whatever ComfyUI's or a pack's code raises there costs this job and no more."""
        if self._is_ended(job.job_id):
            self._runs.released(job.job_id)
            return
        self._runs.expect(job)
        self._handovers[job.job_id] = asyncio.ensure_future(contain(dispatch, job.timeout_s))
        try:
            await self._handovers[job.job_id]
        except BaseException as raised:
            was_ended = job.job_id in self._ended
            error = None if was_ended else explain(job, raised)
            goes_back = error is not None and self._returns is not None and self._returns.takes(job, error)
            if error is not None and not goes_back:
                self._settler.end(job, error)
            if job.job_id not in self._host.held():
                self._runs.released(job.job_id)
            elif was_ended:  # it was handed over just before
                self._host.stop(job.job_id)
            if error is not None and self._returns is not None and goes_back:
                self._returns.give_back(job, error, partial(self._end_refused, job, error))
            if not (was_ended or isinstance(raised, Exception)):
                raise
        else:
            if job.job_id in self._ended:
                self._host.stop(job.job_id)
        finally:
            del self._handovers[job.job_id]

    def _is_ended(self, job_id: str) -> bool:
        return job_id in self._ended or self._settler.verdict_of(job_id) is not None

    def _end_refused(self, job: Job, error: GuardError, is_elsewhere: bool) -> None:
        if not is_elsewhere:
            self._settler.end(job, error)

    async def _dispatch(self, claimed: Claimed, *, first: bool = False) -> None:
        job = claimed.job
        body = host_body(await work(len(claimed.body), _parse, claimed.body), job.job_id)
        if self._bring is not None:
            await self._bring(body["prompt"], job.owner, len(claimed.body))
        client_id = self._client_ids.of_job(job.job_id, job.owner, job.client_id)
        body["client_id"] = client_id
        body["extra_data"] = {**body.get("extra_data", {}), **(self._secrets.of(job.job_id) if job.has_secrets else {})}
        refusal = await self._host.dispatch(job.job_id, client_id, body, owner_folder(job.owner), first=first)
        if refusal is not None:
            raise explain_refusal(refusal, body["prompt"], self._host)
        # If the process dies from now on, this prompt's validation was not the reason.
        self._store.hand_over(job.job_id)

    # ComfyUI's worker, between two prompts. ------------------------------------------------------------------

    def begin_next(self) -> bool:
        if not self._store.queued:
            return False
        self._note_claim()
        if self._health.hindrances():
            self._note_claimed(None, 0.0)
            return False
        beginning = self._store.begin(self._holder, self._settings.max_jobs, self._host.is_ready)
        # From the commit, as the log of an ending comes from its own: so the two are in order.
        beginning.add_done_callback(log_start)
        try:
            job = beginning.result(START_WAIT_S)
        except FutureTimeoutError:
            # Native prompts wait behind this. If the store gets that far after all, the job goes to ComfyUI's queue.
            beginning.cancel()
            beginning.add_done_callback(lambda done: self._loop.call(lambda: self._begin_late(done)))
            return False
        except GuardError:  # of its own troubles the store tells
            job = None
        self._note_claimed(job, math.inf)
        if job is None:
            return False
        self._expects_slot = False  # the job has it
        return self._hand_over_begun(job)

    def go_on(self) -> None:
        self._runs.go_on()
        if self._expects_slot and self._store.queued:
            self._wake.set()
        else:
            self.wake()

    def _begin_late(self, done: Future[Job | None]) -> None:
        """Event loop."""
        try:
            job = done.result()
        except (GuardError, FutureCancelledError):
            job = None
        self._note_claimed(job, math.inf)
        if job is not None:
            self._hand_over_begun(job)

    def _hand_over_begun(self, job: Job) -> bool:
        """Hand a job to the host that has begun as far as the store knows. Any thread."""
        job_id = job.job_id
        is_put = is_gone = False
        try:
            if not self._is_ended(job_id):
                self._runs.expect(job)
                client_id = self._client_ids.of_job(job_id, job.owner, job.client_id)
                is_put = self._host.put(job_id, client_id, owner_folder(job.owner))
                is_gone = not is_put
        except Exception as raised:
            if job_id not in self._ended:
                self._settler.end(job, explain(job, raised))
        finally:
            # Of one that is gone, since a file was stored again after the commit, the dispatcher's task says so.
            was_ended = not is_gone and self._note_handed(job_id)
        if is_gone:
            self._anew.append(job)
            self._wake.set()
        elif job_id not in self._host.held():
            self._runs.released(job_id)
        elif was_ended:
            self._host.stop(job_id)
        return is_put


def _parse(body: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(renew(body))
    return parsed
