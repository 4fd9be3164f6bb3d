"""Nobody hears how a job ends before that is on disk: not while the disk is full, and not while the store is silent."""

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chaos.conftest import assert_settled_once, newest_real, small_disk, transitions_at
from chaos.faults import Faults
from contract.client import (
    Client,
    Socket,
    assert_ended_badly,
    assert_native_error,
    assert_refusal,
    assert_succeeded,
    connected,
    files_announced,
    gated,
    node,
    open_gate,
    picture,
    save,
    text,
    types_of,
    unique,
)
from contract.conftest import kinds
from contract.sse import Reader
from contract.test_webhooks import Receiver, secret_of

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, sandbox_kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

__all__ = ["small_disk"]

#: What is the guard's alone need not be tried on every ComfyUI: each start costs ten seconds of a core.
SANDBOX_AND_NEWEST = [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()]
#: Longer than the worker once waited for the store before it went on without. On a real ComfyUI the guard is the same.
SILENCE_S, REAL_SILENCE_S = 12.0, 4.0
OPEN = {"queued", "dispatched", "running", "validating"}
HOOKED = {"GUARDED_WEBHOOKS__ALLOW_HTTP": "true", "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8"}
EVERY = [*OPEN, "succeeded", "failed", "cancelled"]


class Disk:
    """The disk under a server's job database, and how it fails."""

    def __init__(self, folder: Path, how: str, faults: Faults) -> None:
        self.how = how
        self._folder = folder
        self._faults = faults
        self._reader: sqlite3.Connection | None = None

    @property
    def database(self) -> Path:
        return self._folder / "db" / "guarded.db"

    @property
    def environment(self) -> dict[str, str]:
        return {"GUARDED_STORE__URL": f"sqlite:///{self.database}", **self._faults.environment}

    async def fail(self, client: Client) -> None:
        if self.how == "silent":
            self._faults.silence()
            return
        # A reader that stays keeps SQLite from writing over what its log has on disk already.
        self._reader = sqlite3.connect(self.database, isolation_level=None)
        self._reader.execute("BEGIN")
        self._reader.execute("SELECT count(*) FROM jobs").fetchone()
        self._faults.fill(really=True)
        answer = await client.polled(lambda: client.submit(text()), lambda answer: answer.status != 200)
        assert_refusal(answer, "disk_full")

    def heal(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._faults.end()


@pytest.fixture
def disk(small_disk: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Disk:
    return Disk(small_disk, request.param, Faults(tmp_path / "faults", small_disk))


@dataclass
class Ears:
    """Listens for one job on every channel of its server."""

    client: Client
    native: Socket
    guarded: Socket
    stream: Reader
    receiver: Receiver
    client_id: str
    job_id: str = ""
    waiting: Any = None
    #: What `?wait` was answered.
    answers: list[str] = field(default_factory=list)

    async def submit(self, prompt: dict[str, Any], **guard: Any) -> str:
        hook = {"url": self.receiver.url, "events": EVERY}
        guard = {"webhook": hook, **guard}
        self.job_id = await self.client.admitted(prompt, client_id=self.client_id, guard=guard)
        self.waiting = asyncio.create_task(self.wait_for_the_end())
        return self.job_id

    async def wait_for_the_end(self) -> None:
        while not self.answers or self.answers[-1] in OPEN:
            self.answers.append((await self.client.job(self.job_id, wait_s=5))["state"])

    async def begun(self) -> None:
        """Wait until the job runs, and the sockets have heard that there is one."""
        await self.client.running(self.job_id)
        for socket in (self.native, self.guarded):
            await self.client.polled(lambda socket=socket: asyncio.sleep(0, self.remaining_on(socket)), bool)

    def remaining_on(self, socket: Socket) -> int:
        """How many jobs the last `status` counted."""
        counts = [event["data"]["status"]["exec_info"] for event in socket.seen if event["type"] == "status"]
        return int(counts[-1]["queue_remaining"])

    def said_on(self, socket: Socket) -> list[dict[str, Any]]:
        return [event for event in socket.about(self.job_id) if event["type"] != "guarded"]

    def states_on(self, socket: Socket) -> list[str]:
        events = [event["data"] for event in socket.seen if event["type"] == "guarded"]
        return [data["state"] for data in events if data["event"] == "state" and data["job_id"] == self.job_id]

    def nulls_on(self, socket: Socket) -> list[dict[str, Any]]:
        """With these ComfyUI says that a prompt is over."""
        return [event for event in self.said_on(socket) if event["type"] == "executing" and not event["data"]["node"]]

    def was_told_all_finished(self, socket: Socket) -> bool:
        """Whether a `progress_state` has said that every node is done."""
        told = [event["data"]["nodes"] for event in self.said_on(socket) if event["type"] == "progress_state"]
        return any([node["state"] for node in nodes.values()] == ["finished"] for nodes in told)

    def states_of(self, told: list[Any]) -> list[str]:
        return [each["state"] for each in told if each["job_id"] == self.job_id]

    async def assert_nothing_heard(self) -> None:
        """Only the state before, and what comes with it."""
        for socket in (self.native, self.guarded):
            said = types_of(self.said_on(socket))
            assert not {"execution_success", "execution_error", "execution_interrupted"} & set(said), said
            assert files_announced(socket.about(self.job_id)) == []
            assert self.nulls_on(socket) == []
            assert not self.was_told_all_finished(socket)
            assert set(self.states_on(socket)) <= OPEN
            assert self.remaining_on(socket) >= 1
        assert set(self.states_of(self.stream.of("state"))) <= OPEN
        assert {told.data["state"] for told in self.receiver.of(self.job_id)} <= OPEN
        assert set(self.answers) <= OPEN
        assert not self.waiting.done()
        assert (await self.client.job(self.job_id))["state"] in OPEN
        assert await self.client.get(f"/history/{self.job_id}") == {}
        assert self.job_id not in await self.client.get("/history")
        assert await self.client.get(f"/guarded/history/{self.job_id}") == {}
        assert self.job_id in await self.client.native_running()
        assert (await self.listed("/guarded/api/jobs"))["status"] == "in_progress"
        native = await self.client.request("GET", f"/api/jobs/{self.job_id}")
        assert native.status == 404 or native.json["status"] == "in_progress"
        for line in self.client.host.log.read_text(errors="replace").splitlines():
            assert f"job {self.job_id} " not in line or not any(f" {state}" in line for state in EVERY[-3:]), line

    async def listed(self, path: str) -> Any:
        return next(job for job in (await self.client.get(path))["jobs"] if job["id"] == self.job_id)

    async def hear_the_end(self, state: str) -> None:
        """Every channel tells this one end, and no other."""
        job = await self.client.settled(self.job_id)
        assert job["state"] == state
        for socket in (self.native, self.guarded):
            await self.client.polled(lambda socket=socket: asyncio.sleep(0, self.nulls_on(socket)), bool)
            said = types_of(self.said_on(socket))
            assert said.count("execution_success") == (state == "succeeded"), said
            assert said.count("execution_error") == (state != "succeeded"), said
            assert "execution_interrupted" not in said or state == "cancelled", said
            assert bool(files_announced(self.said_on(socket))) is (state == "succeeded")
            assert self.was_told_all_finished(socket) is (state == "succeeded")
            assert len(self.nulls_on(socket)) == 1
        entry = await self.client.native_entry(self.job_id)
        if state == "succeeded":
            assert entry["status"]["status_str"] == "success"
            assert_succeeded(job)
        else:
            assert_native_error(entry)
        await self.waiting
        assert self.answers[-1] == state
        await self.client.polled(lambda: asyncio.sleep(0, self.receiver.of(self.job_id)), _ended)
        await self.client.polled(
            lambda: asyncio.sleep(0, self.stream.of("state")), lambda told: state in self.states_of(told)
        )
        for told in (
            [each.data["state"] for each in self.receiver.of(self.job_id)],
            self.states_of(self.stream.of("state")),
        ):
            assert [each for each in told if each not in OPEN] == [state], told


def _ended(told: list[Any]) -> bool:
    return any(each.data["state"] not in OPEN for each in told)


@contextlib.asynccontextmanager
async def listening(client: Client) -> Any:
    """Ears on every channel. They stop when the block ends, or the server does."""
    receiver = Receiver(secret_of(client.base))
    await receiver.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(receiver.stop)
        client_id = uuid.uuid4().hex
        native = await stack.enter_async_context(client.socket("/ws", client_id))
        guarded = await stack.enter_async_context(client.socket("/guarded/ws", client_id))
        stream = Reader(client.session, f"{client.host.url}/guarded/events")

        async def drain(coming: Callable[[], Any]) -> None:
            with contextlib.suppress(aiohttp.ClientError, AssertionError, ConnectionError):
                while True:
                    await coming()

        async def read() -> None:
            async for _told in stream.events():
                pass
            raise ConnectionError

        ears = Ears(client, native, guarded, stream, receiver, client_id)
        tasks = [asyncio.create_task(drain(each)) for each in (native.next, guarded.next, read)]
        try:
            yield ears
        finally:
            for task in [*tasks, *([ears.waiting] if ears.waiting else [])]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def finish(client: Client, prefix: str) -> None:
    """Return once only the run's end is to come."""
    open_gate(client.base, prefix)
    await client.wrote(prefix)


async def stops(client: Client) -> float:
    """How many running jobs were told to stop."""
    lines = (await client.request("GET", "/guarded/metrics")).content.decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith('guarded_interrupts_total{how="stop"}'))


async def keeps_silent(ears: Ears) -> None:
    silence_s = REAL_SILENCE_S if ears.client.host.kind.real else SILENCE_S
    for _ in range(int(silence_s / 2)):
        await ears.assert_nothing_heard()
        await asyncio.sleep(2)
    await ears.assert_nothing_heard()


@pytest.mark.parametrize("then", ["heals", "killed"])
@pytest.mark.parametrize("disk", ["full", "silent"], indirect=True)
@pytest.mark.parametrize("kind", kinds())
async def test_a_success_is_heard_once_it_is_on_disk_and_not_before(server, disk: Disk, kind: HostKind, then: str):
    mode = {"GUARDED_NATIVE__MODE": "guarded" if then == "heals" else "open"}
    host: HostProcess = server(kind, **disk.environment, **HOOKED, **mode).start()
    async with connected(host) as client, listening(client) as ears:
        job_id = await ears.submit(gated(prefix := unique()))
        await ears.begun()
        await disk.fail(client)
        await finish(client, prefix)
        await keeps_silent(ears)
        if then == "heals":
            disk.heal()
            await ears.hear_the_end("succeeded")
            await client.assert_takes_jobs()
            return
        host.kill()
        disk.heal()
    host.start()
    async with connected(host) as client:
        job = await client.settled(job_id)
        assert_succeeded(job)
        assert job["attempts"] == 2, "it ran again, since nobody had been told"
    assert_settled_once(transitions_at(disk.database)[job_id])


@pytest.mark.parametrize("disk", ["full", "silent"], indirect=True)
@pytest.mark.parametrize("kind", SANDBOX_AND_NEWEST)
async def test_of_a_cancel_and_a_success_the_first_one_is_heard_and_no_other(server, disk: Disk, kind: HostKind):
    """The run ends well all the same: its node asks for no interrupt."""
    host: HostProcess = server(kind, **disk.environment, **HOOKED).start()
    async with connected(host) as client, listening(client) as ears:
        job_id = await ears.submit(gated(prefix := unique()))
        await ears.begun()
        await disk.fail(client)
        deleting = asyncio.create_task(client.request("DELETE", f"/guarded/jobs/{job_id}"))
        await client.polled(lambda: stops(client), bool)  # else the success would be first
        await finish(client, prefix)
        await keeps_silent(ears)
        assert_refusal(refusal := await deleting, "server_unavailable", 503)
        assert int(refusal.headers["Retry-After"]) >= 1
        disk.heal()
        await ears.hear_the_end("cancelled")
        assert_ended_badly(await client.job(job_id), "cancelled")
        await client.assert_takes_jobs()
    assert_settled_once(transitions_at(disk.database)[job_id])


@pytest.mark.parametrize("disk", ["full", "silent"], indirect=True)
@pytest.mark.parametrize("kind", SANDBOX_AND_NEWEST)
async def test_a_hung_job_is_left_behind_at_once_and_closed_once_its_ending_is_on_disk(
    server, disk: Disk, kind: HostKind
):
    grace = {"GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "1"}
    host: HostProcess = server(kind, **disk.environment, **HOOKED, **grace).start()
    async with connected(host) as client, listening(client) as ears:
        prompt = {"1": node("FaultHangC", seconds=3600.0, seed=0), "2": save()}
        job_id = await ears.submit(prompt)
        await ears.begun()
        await disk.fail(client)
        deleting = asyncio.create_task(client.request("DELETE", f"/guarded/jobs/{job_id}"))
        entry = await client.native_entry(await client.native_submit(picture()))
        assert entry["status"]["status_str"] == "success", "another worker has taken over"
        await keeps_silent(ears)
        disk.heal()
        assert_refusal(await deleting, "server_unavailable", 503)
        await ears.hear_the_end("cancelled")
        assert_ended_badly(await client.job(job_id), "cancelled")
        (told,) = [
            data
            for event, data in (await client.native_entry(job_id))["status"]["messages"]
            if event == "execution_error"
        ]
        assert told["exception_type"].endswith("CancelledError")
        await client.assert_takes_jobs()
    assert_settled_once(transitions_at(disk.database)[job_id])


@pytest.mark.parametrize("disk", ["full", "silent"], indirect=True)
async def test_while_no_ending_can_be_written_no_job_is_let_in_or_begins(server, disk: Disk):
    host: HostProcess = server(
        **disk.environment, GUARDED_STORE__STALLED_AFTER_S="1", GUARDED_QUEUE__MAX_JOBS="2"
    ).start()
    async with connected(host) as client:
        job_id = await client.admitted(gated(prefix := unique()))
        await client.running(job_id)
        await disk.fail(client)
        await finish(client, prefix)

        async def ready() -> int:
            return (await client.request("GET", "/guarded/ready")).status

        async def problems() -> list[str]:
            # A full disk is said at once; that nothing begins either, once it has lasted.
            return list((await client.request("GET", "/guarded/ready")).json.get("problems", []))

        await client.polled(problems, lambda names: "store stalled" in names)
        assert await ready() == 503
        refusal = await client.submit(text())
        body = assert_refusal(refusal, "server_unavailable", 503)
        assert body["error"]["extra_info"]["problems"] == ["store stalled"]
        assert int(refusal.headers["Retry-After"]) >= 1
        assert "store_stalled" in [alarm["code"] for alarm in (await client.get("/guarded/stats"))["alarms"]]
        disk.heal()
        await client.polled(ready, lambda status: status == 200)
        assert_succeeded(await client.settled(job_id))
        await client.assert_takes_jobs()
