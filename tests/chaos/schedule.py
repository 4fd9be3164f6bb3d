"""What happens to a server and its jobs, as a list of steps, and what must be true when all of it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from chaos.ears import CUT, Ears, facts_of
from chaos.faults import Books, Faults
from contract.client import (
    PATIENCE_S,
    TERMINAL,
    Answer,
    Client,
    Prompt,
    assert_refusal,
    assert_succeeded,
    connected,
    node,
    picture,
    raises,
    save,
    sleep,
    text,
)

from comfyui_guarded.tests.hosts.launch import READY_WITHIN_S, HostProcess

#: After this the server says that it cannot write (`store.stalled_after_s`).
STALLED_AFTER_S = 1.0

#: name → the prompt, and its timeout
KINDS: dict[str, tuple[Callable[[], Prompt], float | None]] = {
    "text": (text, None),
    "picture": (picture, None),
    "slow": (lambda: sleep(0.4, steps=10), None),
    "error": (lambda: raises("value_error"), None),
    "no memory": (lambda: raises("out_of_memory"), None),
    "exit": (lambda: raises("system_exit"), None),
    "bad picture": (lambda: {"1": node("FaultTruncatedImage", filename_prefix="channels", seed=0)}, None),
    "hang in C": (lambda: {"1": node("FaultHangC", seconds=0.6, seed=0), "2": save()}, None),
    "too long": (lambda: sleep(60), 0.3),
    "hang in C, too long": (lambda: {"1": node("FaultHangC", seconds=1.0, seed=0), "2": save()}, 0.3),
    "late picture": (
        lambda: {"1": node("FaultLateImage", seconds=0.8, filename_prefix="channels", seed=0)},
        0.3,
    ),
    "dead worker": (
        lambda: {"1": node("FaultKillWorker", when="handing_back", kind="system_exit", seed=0), "2": save()},
        None,
    ),
}


#: name → how somebody stops a job
WAYS: dict[str, tuple[str, str, Any]] = {
    "DELETE": ("DELETE", "/guarded/jobs/{id}", None),
    "interrupt": ("POST", "/interrupt", {"prompt_id": "{id}"}),
    "delete": ("POST", "/queue", {"delete": ["{id}"]}),
    "clear": ("POST", "/queue", {"clear": True}),
    "guarded interrupt": ("POST", "/guarded/interrupt", {"prompt_id": "{id}"}),
    "guarded delete": ("POST", "/guarded/queue", {"delete": ["{id}"]}),
    "guarded cancel": ("POST", "/guarded/api/jobs/{id}/cancel", {}),
    "interrupt all": ("POST", "/interrupt", {}),
    "guarded interrupt all": ("POST", "/guarded/interrupt", {}),
    "guarded clear": ("POST", "/guarded/queue", {"clear": True}),
}
#: Those that name no job.
SWEEPS = frozenset({"clear", "interrupt all", "guarded interrupt all", "guarded clear"})
#: The codes of jobs that somebody has stopped.
STOPPED = frozenset({"cancelled", "interrupted"})


@dataclass
class Play:
    """A schedule that is being played on a server."""

    client: Client
    faults: Faults
    ears: Ears
    books: Books
    mode: str
    ids: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    #: Those that a stop may have hit, and how many stops are under way that may hit any.
    aimed_at: set[str] = field(default_factory=set)
    sweeping: int = 0
    draining: bool = False
    #: ComfyUI's own prompts that nothing has ended but they themselves.
    native: set[str] = field(default_factory=set)
    requests: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def host(self) -> HostProcess:
        return self.client.host

    def ask(self, request: Any) -> None:
        """In the background: while the store is silent there is no answer."""
        self.requests.append(asyncio.create_task(self._asked(request)))

    async def _asked(self, request: Any) -> None:
        with contextlib.suppress(*CUT):
            await request

    @contextlib.contextmanager
    def aiming(self, job_id: str, way: str) -> Iterator[None]:
        """Inside the block, somebody stops the job, or whatever there is."""
        self.aimed_at |= {*self.ids} if way in SWEEPS else {job_id}
        self.sweeping += way in SWEEPS
        if way in SWEEPS:
            self.native.clear()
        try:
            yield
        finally:
            self.sweeping -= way in SWEEPS

    def pick(self, at: int) -> str | None:
        return self.ids[at % len(self.ids)] if self.ids else None

    async def within(self, seconds: float, look: Callable[[], Any]) -> bool:
        """Whether it became true; a schedule goes on either way."""
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            with contextlib.suppress(*CUT):
                if await look():
                    return True
            await asyncio.sleep(0.02)
        return False


# The steps. ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submit:
    kind: str
    #: `guarded`, `wait`, or `native` where ComfyUI's own route is the guard's.
    way: str = "guarded"

    async def play(self, play: Play) -> None:
        job_id = str(uuid.uuid4())
        play.ids.append(job_id)
        if play.sweeping:
            play.aimed_at.add(job_id)
        play.ears.follow(job_id, answered=False, hooked=False)
        answering = asyncio.create_task(self._submit(play, job_id))
        play.ask(answering)
        await asyncio.wait({answering}, timeout=0.3)  # most answers come at once

    async def _submit(self, play: Play, job_id: str) -> None:
        make, timeout_s = KINDS[self.kind]
        body: dict[str, Any] = {"prompt": make(), "prompt_id": job_id, "client_id": play.ears.client_id}
        native = self.way == "native" and play.mode == "guarded" and timeout_s is None
        if not native:
            body["guard"] = {"webhook": {"url": play.ears.receiver.url}}
            if timeout_s is not None:
                body["guard"]["timeout_s"] = timeout_s
        path = "/prompt" if native else "/guarded/prompt" + ("?wait=30" if self.way == "wait" else "")
        answer = await play.client.request("POST", path, body)
        if answer.status != 200:
            assert_typed(answer)
            play.refused.add(job_id)
            play.ears.forget(job_id)
            return
        play.ears.follow(job_id, answered=True, hooked=not native)
        if self.way == "wait" and not native and "job" in answer.json["guard"]:
            play.ears.hear_job("submit?wait", answer.json["guard"]["job"])


@dataclass(frozen=True)
class Pause:
    seconds: float

    async def play(self, play: Play) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Runs:
    """Wait until a job runs, or a moment."""

    which: int

    async def play(self, play: Play) -> None:
        if job_id := play.pick(self.which):
            await play.within(0.5, lambda: self._runs(play, job_id))

    async def _runs(self, play: Play, job_id: str) -> bool:
        return job_id in await play.client.native_running()


@dataclass(frozen=True)
class Full:
    really: bool = False

    async def play(self, play: Play) -> None:
        play.faults.fill(really=self.really)


@dataclass(frozen=True)
class Room:
    async def play(self, play: Play) -> None:
        play.faults.empty()


@dataclass(frozen=True)
class Silent:
    async def play(self, play: Play) -> None:
        play.faults.silence()


@dataclass(frozen=True)
class Speaks:
    async def play(self, play: Play) -> None:
        play.faults.speak()


@dataclass(frozen=True)
class Gate:
    """The next commit with that step stops, before or after it."""

    when: str
    step: str

    async def play(self, play: Play) -> None:
        play.faults.gate(self.when, self.step)


@dataclass(frozen=True)
class Reached:
    """Wait until the gate is reached, or a moment."""

    async def play(self, play: Play) -> None:
        await play.faults.reached()


@dataclass(frozen=True)
class InBooks:
    """The last job is in that state by now, as the database has it."""

    state: str

    async def play(self, play: Play) -> None:
        assert play.books.state(play.ids[-1]) == self.state


@dataclass(frozen=True)
class Stop:
    """Somebody stops a job; `twice` at the same moment."""

    which: int
    way: str
    twice: bool = False

    async def play(self, play: Play) -> None:
        if job_id := play.pick(self.which):
            for _ in range(1 + self.twice):
                play.ask(self._stop(play, job_id))
            await asyncio.sleep(0.01)

    async def _stop(self, play: Play, job_id: str) -> None:
        method, path, body = WAYS[self.way]
        if body is not None:
            body = json.loads(json.dumps(body).replace("{id}", job_id))
        path = path.replace("{id}", job_id)
        with play.aiming(job_id, self.way):
            answer = await play.client.request(method, path, body)
        if answer.status >= 500:
            assert_typed(answer)
        elif self.way == "DELETE" and answer.status == 200:
            play.ears.hear_job("DELETE", answer.json)


@dataclass(frozen=True)
class Native:
    """A prompt of ComfyUI's own, where its route is not the guard's: it takes its turn among the jobs."""

    async def play(self, play: Play) -> None:
        if play.mode != "guarded":
            with contextlib.suppress(*CUT):
                prompt_id = await asyncio.wait_for(play.client.native_submit(sleep(0.2, steps=10)), 1.0)
                if not play.sweeping:
                    play.native.add(prompt_id)


@dataclass(frozen=True)
class Drain:
    """An operator drains the server, or ends that."""

    off: bool

    async def play(self, play: Play) -> None:
        play.draining = not self.off
        with contextlib.suppress(*CUT):
            await play.client.request("POST", f"/guarded/drain?off={int(self.off)}")


@dataclass(frozen=True)
class Kill:
    """SIGKILL; at the gate, if there is one. `checks_at_once`: how many the next process has."""

    checks_at_once: int | None = None

    async def play(self, play: Play) -> None:
        await play.faults.reached()
        await asyncio.to_thread(play.host.kill)
        play.native.clear()
        play.faults.end()
        if self.checks_at_once is not None:
            play.host.set(GUARDED_RESULTS__CHECKS_AT_ONCE=str(self.checks_at_once))
        await start(play.host)


@dataclass(frozen=True)
class Term:
    """SIGTERM, and a new process."""

    async def play(self, play: Play) -> None:
        play.faults.end()
        os.kill(play.host.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(play.host.wait, PATIENCE_S)
        await asyncio.to_thread(play.host.kill)
        play.native.clear()
        await start(play.host)


@dataclass(frozen=True)
class Stalled:
    """While something waits to be written for too long, the server says that it takes no jobs, and takes none."""

    async def play(self, play: Play) -> None:
        if not (play.faults.silent or play.faults.full) or play.draining:  # then nothing comes that would have to wait
            return
        if play.faults.silent:
            await Submit("text").play(play)  # something that waits
        elif not await play.within(1.5, lambda: self._is_over(play)):
            return
        # Not for another reason: a worker that hangs is replaced, and then the server takes jobs for a moment.
        await play.client.polled(
            lambda: play.client.request("GET", "/guarded/ready"),
            lambda ready: ready.status == 503 and "store stalled" in ready.json["problems"],
        )
        answer = await asyncio.wait_for(play.client.submit(text()), PATIENCE_S)
        assert_refusal(answer, "server_unavailable", 503)
        assert int(answer.headers["Retry-After"]) >= 1, answer

    async def _is_over(self, play: Play) -> bool:
        """Whether a job has run to its end, and nothing of that is on disk."""
        running = {job_id for job_id in play.ids if play.books.state(job_id) in ("running", "validating")}
        return bool(running) and not running & set(await play.client.native_running())


async def start(host: HostProcess) -> None:
    """Start the server, and wait until it takes jobs, or would but for an operator's drain."""
    host.spawn()
    ends_s = time.monotonic() + READY_WITHIN_S
    async with connected(host) as client:
        while True:
            with contextlib.suppress(*CUT):
                ready = await client.request("GET", "/guarded/ready")
                if ready.status == 200 or ready.json.get("problems") == ["draining"]:
                    return
            assert host.alive, host.log_tail()
            assert time.monotonic() < ends_s, host.log_tail()
            await asyncio.sleep(0.05)


Step = (
    Submit
    | Native
    | Pause
    | Runs
    | InBooks
    | Full
    | Room
    | Silent
    | Speaks
    | Gate
    | Reached
    | Stop
    | Drain
    | Kill
    | Term
    | Stalled
)


def assert_typed(answer: Answer) -> None:
    """A refusal that says when to come again, where it is of the server's making."""
    guard = assert_refusal(answer)["guard"]
    if answer.status >= 500:
        assert guard["code"] in ("server_unavailable", "disk_full"), answer
        assert int(answer.headers["Retry-After"]) >= 1, answer


# The whole. ------------------------------------------------------------------------------------------------------


async def played(host: HostProcess, faults: Faults, books: Books, mode: str, jobs_api: bool, steps: list[Step]) -> None:
    """Play the steps, let everything end, and assert that everybody was told the truth."""
    async with connected(host) as client:
        ears = Ears(client, books, merged=mode == "guarded", jobs_api=jobs_api)
        play = Play(client, faults, ears, books, mode)
        async with ears.listening():
            for step in steps:
                await step.play(play)
            await settle(play)
            await all_heard(play, killed=any(isinstance(step, Kill | Term) for step in steps))
        assert_true(play)


async def settle(play: Play) -> None:
    """The disk is well again and the server up: all jobs end, and nothing stays taken."""
    play.faults.end()
    if not play.host.alive:
        await start(play.host)
    await Drain(off=True).play(play)
    done, waiting = await asyncio.wait(play.requests, timeout=PATIENCE_S) if play.requests else (set(), set())
    assert not waiting, f"{len(waiting)} requests are never answered\n{play.host.log_tail()}"
    for task in done:
        task.result()
    client = play.client
    await client.polled(lambda: client.request("GET", "/guarded/ready"), lambda answer: answer.status == 200)
    for job_id in list(play.ears.known):
        if not play.ears.known[job_id] and play.books.state(job_id) is None:
            play.ears.forget(job_id)  # its submit died with the server, before it was on disk
            continue
        job = await client.settled(job_id)
        play.ears.hear_job("settled", job)
    await client.polled(lambda: figures(client), lambda seen: seen == {"slots_used": 0.0, "queue_jobs": 0.0})
    for prompt_id in play.native:
        assert (await client.native_entry(prompt_id))["status"]["status_str"] == "success", prompt_id
    assert_succeeded(await client.run(text()))


async def figures(client: Client) -> dict[str, float]:
    metrics = (await client.request("GET", "/guarded/metrics")).content.decode()
    return {
        name: float(re.search(rf"^guarded_{name} (\S+)$", metrics, re.MULTILINE)[1])
        for name in ("slots_used", "queue_jobs")
    }


async def all_heard(play: Play, *, killed: bool) -> None:
    """Every channel that must tell of each job has done so."""
    channels = ["poll", "?wait", "SSE", "SSE of the job", "/guarded/history", "/guarded/api/jobs"]
    # What ComfyUI has in memory, and a socket of its own, do not survive; and the rest of what a kill cuts off behind
    # the verdict, which a socket has then received, is not said again.
    channels += ["/guarded/ws"] if killed else ["/guarded/ws", "/guarded/ws guarded", "/guarded/ws over", "/ws over"]
    ears = play.ears

    def missing() -> list[str]:
        return [
            f"{channel}: {job_id}"
            for job_id in ears.known
            for channel in [
                *channels,
                *["webhook"] * (job_id in ears.hooked),
                *["/guarded/queue"] * ears.known[job_id],
            ]
            if not ears.has_heard(channel, job_id)
        ]

    async def everywhere() -> bool:
        return not missing()

    if not await play.within(PATIENCE_S / 2, everywhere):
        raise AssertionError(f"never told: {missing()}\n{play.host.log_tail()}")


def assert_true(play: Play) -> None:
    ears = play.ears
    assert ears.wrong == [], ears.wrong
    for job_id in play.refused:
        assert play.books.state(job_id) is None, f"{job_id} was refused, and is there"
    for job_id in ears.known:
        heard = [each for each in ears.heard if each.job_id == job_id]
        story = f"{job_id}:\n" + "\n".join(map(str, heard))
        endings = play.books.endings(job_id)
        assert len(endings) == 1, f"{endings} of {story}"
        assert [each for each in heard if each.false] == [], f"told, and not on disk: {story}"
        assert {each.good for each in heard} - {None} == {endings[0] == "succeeded"}, f"two endings: {story}"
        assert len({each.facts for each in heard if each.facts}) == 1, f"two endings: {story}"
        assert play.books.state(job_id) in TERMINAL
        codes = {each.facts[1] for each in heard if each.facts}
        assert job_id in play.aimed_at or not codes & STOPPED, f"nobody has stopped it: {story}"
    # One that was cut off by a kill comes again, under its old id.
    webhooks = {told.id: told for told in ears.receiver.got}
    for job_id in ears.hooked:
        told = [each for each in webhooks.values() if each.job_id == job_id]
        assert len(told) == 1, f"{job_id}: {told}"
        assert facts_of(told[0].data)[0] == play.books.state(job_id)
