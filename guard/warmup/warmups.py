"""When each warm-up runs, and whether the server is warm.

A warm-up runs while nothing else waits or runs: after the start, and again after the host has freed its models. A job
that comes meanwhile waits for the one that runs, and the others wait for the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..clock import Clock
from ..errors import GuardError, InternalError
from ..host import Host
from ..host_words import explain_refusal, host_body
from ..job import JobState, Verdict
from ..life.contain import contain
from ..life.health import Health
from ..operators.bodies import WarmupBody
from ..settings import WarmupSettings
from ..wake import LoopCaller, Wake
from .entries import Entry, Prompts, list_entries
from .mark import Mark
from .runs import WarmupRuns, make_job

log = logging.getLogger("guarded.warmup")

#: How often one is tried before the server does without it, and so many processes may die of it.
TRIES = 2
#: After a failure, and while something else runs.
PAUSE_S = 1.0

_FAILED = "A warm-up has failed, so the first job of its kind will load its models itself; the doctor says why."


class State(str, enum.Enum):
    """How far a warm-up is."""

    COLD = "cold"  # it is to run
    RUNNING = "running"
    WARM = "warm"  # it has succeeded, and nothing was freed since
    FAILED = "failed"  # it is not tried again before the next start


class Queue(Protocol):
    """What is asked of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    @property
    def leased(self) -> int: ...


@dataclass
class _Warmup:
    entry: Entry
    state: State = State.COLD
    tries: int = 0
    error: str | None = None
    took_s: float | None = None
    #: The models were freed as it ran.
    is_spoilt: bool = False


class Warmups:
    """The task that runs them. Event loop, but for what says otherwise."""

    def __init__(
        self,
        settings: WarmupSettings,
        store: Queue,
        host: Host,
        health: Health,
        runs: WarmupRuns,
        prompts: Prompts,
        clock: Clock,
        own: Path,
    ) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._health = health
        self._runs = runs
        self._prompts = prompts
        self._clock = clock
        self._mark = Mark(own)
        self._warmups = [_Warmup(entry) for entry in list_entries(settings.runs)]
        self._began_s = time.monotonic()
        self._is_ready = not self._warmups
        self._wake = Wake()
        self._loop = LoopCaller()
        runs.freed = self._note_freed
        health.hold_ready("warming up", lambda: not self.is_ready())
        health.warn("warmup failed", _FAILED, lambda: any(each.state is State.FAILED for each in self._warmups))

    def is_ready(self) -> bool:
        """Whether each has had its chance. Once it has, it stays so. Any thread."""
        if not self._is_ready:
            over = time.monotonic() - self._began_s > self._settings.ready_after_s
            self._is_ready = over or all(each.state in (State.WARM, State.FAILED) for each in self._warmups)
            if over:
                log.warning("ready without every warm-up: warmup.ready_after_s is over")
        return self._is_ready

    def describe(self) -> WarmupBody:
        """For operators. Any thread."""
        return {
            "ready": self.is_ready(),
            "runs": [
                {"name": each.entry.name, "state": each.state.value, "error": each.error, "took_s": each.took_s}
                for each in self._warmups
            ],
        }

    def list_faults(self) -> list[str]:
        """What is wrong with them, in sentences that name them. Any thread but the event loop's."""
        faults = []
        for each in self._warmups:
            try:
                self._prompts.make(each.entry)
            except GuardError as error:
                faults.append(f"{each.entry.name}: {error.message}")
            else:
                if each.state is State.FAILED:
                    faults.append(f"{each.entry.name}: {each.error}")
        return faults

    def try_again(self) -> None:
        """Something has come that one may have lacked. Any thread."""
        self._loop.call(lambda: self._cool_down(State.FAILED))

    async def run(self) -> None:
        """Until it is cancelled; at once over where none is wanted."""
        if not self._warmups:
            return
        self._loop.bind()
        self._prompts.bind()
        self._began_s = time.monotonic()
        await asyncio.to_thread(self._skip_deadly)
        has_counts = True
        while True:
            warmup = next((each for each in self._warmups if each.state is State.COLD), None)
            if warmup is None:
                if has_counts:
                    # Only now may the next start try again what was left out: had one of the others ended the process,
                    # they would end it by turns for ever.
                    await asyncio.to_thread(self._mark.clear)
                    has_counts = False
                await self._wake.wait(60)
            elif self._is_busy():
                await asyncio.sleep(PAUSE_S)
            else:
                has_counts = True
                await self._warm_up(warmup)

    def _is_busy(self) -> bool:
        """Whether anything waits or runs that somebody wants, or nothing can run."""
        return bool(self._health.problems() or self._store.queued or self._store.leased or self._host.held())

    def _note_freed(self, own: bool) -> None:
        """The host frees its models. The worker's thread."""
        self._loop.call(lambda: self._cool_down(State.WARM) if not own else self._cool_down_after_own())

    def _cool_down(self, state: State) -> None:
        for each in self._warmups:
            if each.state is state:
                each.state, each.tries = State.COLD, 0
        self._wake.set()

    def _cool_down_after_own(self) -> None:
        """A warm-up has just run, and the models are freed: it may do that by itself, each time."""
        for each in self._warmups:
            each.is_spoilt = each.state is State.RUNNING
            if each.state is State.WARM and each.tries < TRIES:
                each.state = State.COLD
        self._wake.set()

    def _skip_deadly(self) -> None:
        counts = self._mark.read()
        for each in self._warmups:
            if (begun := counts.get(each.entry.fingerprint, 0)) >= TRIES:
                each.state, each.error = State.FAILED, f"The process has ended {begun} times while it ran."
                log.error("warm-up %s is left out: %s", each.entry.name, each.error)

    async def _warm_up(self, warmup: _Warmup) -> None:
        warmup.state, warmup.tries, warmup.is_spoilt = State.RUNNING, warmup.tries + 1, False
        await asyncio.to_thread(self._mark.begin, warmup.entry.fingerprint)
        began_s = time.monotonic()
        try:
            verdict = await self._run(warmup.entry)
        except Exception as error:
            if not isinstance(error, GuardError):
                log.exception("warm-up %s failed", warmup.entry.name, extra={"quotes_prompt": True})
                error = InternalError(f"{type(error).__name__}: {error}")
            verdict = Verdict.of(error)
        if not self._health.restarting:
            await asyncio.to_thread(self._mark.end, warmup.entry.fingerprint)
        warmup.took_s = round(time.monotonic() - began_s, 1)
        if verdict.state is JobState.SUCCEEDED:
            warmup.state = State.COLD if warmup.is_spoilt and warmup.tries < TRIES else State.WARM
            warmup.error = None
            log.info("warm-up %s took %.1f s", warmup.entry.name, warmup.took_s)
            return
        warmup.error = f"{verdict.code}: {verdict.message}"
        warmup.state = State.COLD if warmup.tries < TRIES else State.FAILED
        log.warning("warm-up %s failed (%d of %d): %s", warmup.entry.name, warmup.tries, TRIES, warmup.error)
        await asyncio.sleep(PAUSE_S)

    async def _run(self, entry: Entry) -> Verdict:
        """Raises GuardError, and whatever ComfyUI's or a pack's code raises."""
        prompt = await asyncio.to_thread(self._prompts.make, entry)
        job = make_job(str(uuid.uuid4()), self._settings.timeout_s, self._clock.now_ms())
        ended: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

        def tell(verdict: Verdict) -> None:
            self._loop.call(lambda: None if ended.done() else ended.set_result(verdict))

        client_id = uuid.uuid4().hex
        body = {**host_body(prompt.body, job.job_id), "client_id": client_id}
        self._runs.expect(job, tell)
        try:
            refusal = await contain(
                lambda: self._host.dispatch(job.job_id, client_id, body, "", hidden=True), job.timeout_s
            )
            if refusal is not None:
                raise explain_refusal(refusal, body["prompt"], self._host)
        except BaseException as error:
            self._runs.end(job.job_id, Verdict.of(InternalError("It did not come into ComfyUI's queue.")))
            with contextlib.suppress(Exception):
                self._host.stop(job.job_id)
            raise error
        return await ended
