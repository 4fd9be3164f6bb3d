"""Nothing that a prompt does takes the server down for the next one: the shield, the ladder, the drain.

On the sandbox and on every real ComfyUI; each test leaves its server with a worker that takes jobs.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from contract.client import (
    Client,
    Prompt,
    Socket,
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_native_error,
    assert_refusal,
    assert_succeeded,
    connected,
    files_announced,
    node,
    picture,
    raises,
    save,
    sleep,
    text,
    types_of,
    unique,
)
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostProcess

pytestmark = pytest.mark.chaos

GRACE_S, STALL_S, NATIVE_S = 1.0, 3.0, 4.0
#: The promise is `interrupt_grace_s` + 2 s; a machine that is busy with other things gets ten times that.
NEXT_JOB_WITHIN_S = 10 * (GRACE_S + 2)
#: Of a hang that its thread is not waited for: it outlives the ladder on any machine.
LONG_S = 120.0


@pytest.fixture(scope="module", params=kinds())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    environment = {
        "GUARDED_WATCHDOG__INTERRUPT_GRACE_S": f"{GRACE_S:g}",
        "GUARDED_WATCHDOG__STALL_TIMEOUT_S": f"{STALL_S:g}",
        "GUARDED_WATCHDOG__NATIVE_TIMEOUT_S": f"{NATIVE_S:g}",
        "GUARDED_WATCHDOG__MAX_DISOWNED": "8",
    }
    with HostProcess(request.param, tmp_path_factory.mktemp("ladder"), environment=environment) as process:
        yield process


@pytest.fixture
async def client(server: HostProcess) -> AsyncIterator[Client]:
    async with connected(server) as client:
        yield client
        await client.assert_takes_jobs()
        assert (await client.request("GET", "/guarded/ready")).status == 200
        entry = await client.native_entry(await client.native_submit(picture()))
        assert entry["status"]["status_str"] == "success", entry


def hang(class_type: str, seconds: float = LONG_S, **inputs) -> Prompt:
    return {"1": node(class_type, seconds=seconds, seed=0, **inputs), "2": save()}


def mine(when: str, kind: str) -> Prompt:
    return {"1": node("FaultKillWorker", when=when, kind=kind, seed=0), "2": save()}


def late_picture(seconds: float, prefix: str) -> Prompt:
    return {"1": node("FaultLateImage", seconds=seconds, filename_prefix=prefix, seed=0)}


async def hung_workers(client: Client) -> int:
    return int((await client.get("/guarded/health"))["hung_workers"])


def was_replaced(client: Client, prompt_id: str) -> bool:
    lines = client.host.log.read_text(errors="replace").splitlines()
    return any(prompt_id in line and "another worker has taken over" in line for line in lines)


async def next_to(client: Client, prompt: Prompt, code: str, **options) -> str:
    """Run the prompt, which ends with that code, and a good one behind it, which must not wait for long."""
    async with client.busy():  # both are in before the first can do harm
        job_id = await client.admitted(prompt, **options)
        behind = await client.admitted(picture())
    assert_ended_badly(await client.settled(job_id), code)
    began_s = time.monotonic()
    assert_succeeded(await client.settled(behind))
    assert time.monotonic() - began_s < NEXT_JOB_WITHIN_S
    return job_id


async def all_said_of(client: Client, socket: Socket, prompt_id: str) -> list[dict]:
    """What the socket has heard of it by now: events come in order, so whatever was sent before has arrived."""
    later = await client.admitted(text(), client_id=socket.client_id)
    await socket.until_end_of(later)
    return socket.about(prompt_id)


# The shield. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["system_exit", "keyboard_interrupt", "value_error"])
async def test_what_a_node_raises_in_a_native_prompt_fails_that_prompt_and_not_the_worker(client, kind):
    async with client.socket() as socket:
        prompt_id = await client.native_submit(raises(kind), client_id=socket.client_id)
        heard = await socket.until_end_of(prompt_id)
    assert_native_error(await client.native_entry(prompt_id))
    assert_heard_only_an_error(heard)
    assert "found dead" not in client.host.log.read_text(errors="replace").rpartition(prompt_id)[2]


@pytest.mark.parametrize("kind", ["system_exit", "keyboard_interrupt"])
async def test_what_a_node_raises_in_a_guarded_job_fails_that_job_with_its_name(client, kind):
    async with client.socket() as socket:
        job_id = await next_to(client, raises(kind, "a reason"), "generation_failed", client_id=socket.client_id)
        assert_heard_only_an_error(await socket.until_end_of(job_id))
    details = (await client.job(job_id))["error"]["details"]
    assert details["exception_type"] == {"system_exit": "SystemExit", "keyboard_interrupt": "KeyboardInterrupt"}[kind]
    assert "a reason" in details["exception_message"]
    assert_native_error(await client.native_entry(job_id))


async def test_a_native_prompt_with_a_node_that_has_no_inputs_fails_and_not_the_worker(client):
    poisoned = {**picture(), "9": {"class_type": "FaultSleep"}}
    prompt_id = await client.native_submit(poisoned)
    began_s = time.monotonic()
    await client.assert_takes_jobs()
    assert time.monotonic() - began_s < NEXT_JOB_WITHIN_S
    assert_native_error(await client.native_entry(prompt_id))


async def test_a_native_prompt_that_the_queue_cannot_even_copy_is_gone_and_not_the_worker(client):
    deep: dict = {}
    for _ in range(900):
        deep = {"a": deep}
    prompt_id = await client.native_submit(picture(), extra_data=deep)
    assert await client.polled(client.native_queue, lambda queue: prompt_id not in queue) is not None
    began_s = time.monotonic()
    await client.assert_takes_jobs()
    assert time.monotonic() - began_s < NEXT_JOB_WITHIN_S


# Hangs. ----------------------------------------------------------------------------------------------------------

#: How each ends, with the worker or without it.
HANGS = {
    "a call into C": (hang("FaultHangC"), "replaced"),
    "a loop in Python": (hang("FaultHangPython"), "kept"),
    "short sleeps without a check": (sleep(LONG_S, checks=False), "kept"),
    "an async node that awaits": (hang("FaultAsyncHang"), "kept"),
    "a node that swallows exceptions": (hang("FaultSwallow", catches="Exception"), "kept"),
    "a node that swallows everything": (hang("FaultSwallow", catches="BaseException"), "replaced"),
    "threads that check": (hang("FaultThreads"), "kept"),
}


@pytest.mark.parametrize("name", HANGS)
async def test_the_next_job_soon_succeeds_after(client, name):
    prompt, worker = HANGS[name]
    async with client.socket() as socket:
        options = {"guard": {"timeout_s": 0.5}, "client_id": socket.client_id}
        job_id = await next_to(client, prompt, "generation_timeout", **options)
        assert_heard_only_an_error(await socket.until_end_of(job_id))
    assert was_replaced(client, job_id) is (worker == "replaced")
    assert_native_error(await client.native_entry(job_id))
    assert job_id not in await client.native_running()


async def test_a_cancelled_job_that_cannot_be_stopped_is_left_behind_too(client):
    job_id = await client.admitted(hang("FaultHangC"))
    await client.inside_a_node(job_id)  # before that, an interrupt ends it
    assert_ended_badly(await client.cancel(job_id), "cancelled")
    began_s = time.monotonic()
    await client.assert_takes_jobs()
    assert time.monotonic() - began_s < NEXT_JOB_WITHIN_S
    assert was_replaced(client, job_id)


async def test_a_worker_that_hangs_between_two_jobs_while_others_wait_is_left_behind(client):
    """No job runs there that could be late."""
    assert_succeeded(await client.run(hang("FaultHangBetween")))
    began_s, before = time.monotonic(), await hung_workers(client)
    behind, native = await client.admitted(picture()), await client.native_submit(picture())
    assert_succeeded(await client.settled(behind))
    assert (await client.native_entry(native))["status"]["status_str"] == "success"
    assert time.monotonic() - began_s < NEXT_JOB_WITHIN_S + 3 * GRACE_S
    assert await hung_workers(client) == before + 1


async def test_what_a_worker_that_was_left_behind_brings_in_the_end_is_dropped(client):
    prefix = unique("late")
    async with client.socket() as socket:
        options = {"guard": {"timeout_s": 0.5}, "client_id": socket.client_id}
        before = await hung_workers(client)
        job_id = await client.admitted(late_picture(5.0, prefix), **options)
        behind = await client.admitted(picture(), client_id=socket.client_id)
        job = await client.settled(job_id)
        assert_ended_badly(job, "generation_timeout")
        assert_succeeded(await client.settled(behind))
        assert was_replaced(client, job_id)
        heard = await all_said_of(client, socket, job_id)
        entry = await client.native_entry(job_id)
        # The picture is written while a later job runs, for the same socket; it is nobody's.
        running = await client.admitted(sleep(60.0, steps=150), client_id=socket.client_id)
        await client.inside_a_node(running)
        folder = client.base / "output"
        await client.polled(lambda: _names(folder, prefix), bool)
        await client.polled(lambda: hung_workers(client), lambda count: count <= before)
        assert (await client.job(running))["state"] == "running", "the one worker that counts goes on"
        await client.cancel(running)
        assert await all_said_of(client, socket, job_id) == heard
        assert [file["filename"] for file in files_announced(socket.seen) if prefix in file["filename"]] == []
    assert await client.native_entry(job_id) == entry
    assert_native_error(entry)
    assert await client.job(job_id) == job


async def _names(folder, prefix):
    return [path.name for path in folder.iterdir() if path.name.startswith(prefix)]


async def test_a_job_without_progress_is_ended_long_before_its_deadline(client):
    job_id = await next_to(client, sleep(3600), "generation_timeout")
    assert (await client.job(job_id))["error"]["details"] == {"stall_timeout_s": STALL_S}


async def test_a_job_that_goes_from_node_to_node_is_not_stalled(client):
    """Longer than the limit altogether, though no node is."""
    prompt = {"0": node("FaultSleep", seconds=0.9, checks_interrupt=True, steps=0, seed=0)}
    for number, before in zip(range(1, 4), itertools.count(), strict=False):
        step = node("FaultSleep", seconds=0.9, checks_interrupt=True, steps=0, seed=0, image=[str(before), 0])
        prompt[str(number)] = step
    assert_succeeded(await client.run({**prompt, "9": save("3")}))


# Prompts of others. ----------------------------------------------------------------------------------------------


async def test_a_hung_native_prompt_is_ended_and_the_guarded_job_behind_it_runs(client):
    async with client.socket() as socket:
        prompt_id = await client.native_submit(hang("FaultHangC"), client_id=socket.client_id)
        behind = await client.admitted(picture())
        assert_succeeded(await client.settled(behind))
        heard = await socket.until_end_of(prompt_id)
    assert was_replaced(client, prompt_id)
    assert_heard_only_an_error(heard)
    assert_native_error(await client.native_entry(prompt_id))


async def test_a_native_prompt_over_its_limit_that_checks_is_interrupted_and_keeps_the_worker(client):
    prompt_id = await client.native_submit(sleep(3600))
    entry = await client.native_entry(prompt_id)
    assert (entry["status"]["status_str"], entry["outputs"]) == ("error", {})
    assert not was_replaced(client, prompt_id)


# A dead worker. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["system_exit", "runtime_error"])
async def test_a_worker_that_dies_under_a_job_settles_it_and_is_replaced(client, kind):
    async with client.socket() as socket:
        job_id = await next_to(client, mine("handing_back", kind), "worker_died", client_id=socket.client_id)
        assert_heard_only_an_error(await socket.until_end_of(job_id))
    assert_native_error(await client.native_entry(job_id))
    said = client.host.log.read_text(errors="replace").rpartition("ComfyUI's worker thread died of this error:")[2]
    assert "a mine" in said, "the log says what killed it"
    assert "another has taken over" in said


async def test_a_worker_that_dies_under_a_native_prompt_is_found_and_replaced_and_the_prompt_has_an_end(client):
    async with client.socket() as socket:
        prompt_id = await client.native_submit(mine("handing_back", "system_exit"), client_id=socket.client_id)
        heard = await socket.until_end_of(prompt_id)
    assert types_of(heard).count("execution_error") == 1
    assert_native_error(await client.native_entry(prompt_id))
    assert prompt_id not in await client.native_running()


@pytest.mark.parametrize("kind", ["system_exit", "runtime_error"])
async def test_a_worker_that_dies_between_two_jobs_takes_neither_with_it(client, kind):
    async with client.busy():
        jobs = [await client.admitted(mine("between_prompts", kind)), await client.admitted(picture())]
    for job_id in jobs:
        assert_succeeded(await client.settled(job_id))


# The drain. ------------------------------------------------------------------------------------------------------


async def test_a_drain_lets_the_running_job_end_and_takes_no_other_until_it_is_called_off(client):
    running = await client.admitted(sleep(1.5, steps=20))
    waiting = await client.admitted(text())
    await client.running(running)
    try:
        assert (await client.request("POST", "/guarded/drain")).json == {"draining": True}
        assert (await client.request("POST", "/guarded/drain")).json == {"draining": True}
        ready = await client.request("GET", "/guarded/ready")
        assert (ready.status, ready.json["problems"]) == (503, ["draining"])
        refused = await client.submit(text())
        assert_refusal(refused, "server_unavailable", 503)
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await client.get("/guarded/health"))["status"] == "ok"
        assert_succeeded(await client.settled(running))
        # Time enough for a dispatcher that would not heed it.
        await asyncio.sleep(0.3)
        assert (await client.job(waiting))["state"] == "queued"
    finally:
        assert (await client.request("POST", "/guarded/drain?off=1")).json == {"draining": False}
    assert_succeeded(await client.settled(waiting))


async def test_a_drain_is_begun_and_ended_in_words_and_by_no_others(client):
    try:
        assert (await client.request("POST", "/guarded/drain", {"draining": True})).json == {"draining": True}
        for body in ({"draining": "false"}, {"draining": None}, {"off": True}):
            assert_refusal(await client.request("POST", "/guarded/drain", body), "invalid_request", 400)
        assert (await client.request("GET", "/guarded/ready")).json["problems"] == ["draining"]
    finally:
        assert (await client.request("POST", "/guarded/drain", {"draining": False})).json == {"draining": False}
    await client.assert_takes_jobs()


async def test_nobody_else_drains_the_server(client):
    answer = await client.request("POST", "/guarded/drain", headers={"X-Forwarded-For": "203.0.113.9"})
    assert_refusal(answer, "unauthorized", 401)
    assert (await client.request("GET", "/guarded/ready")).status == 200
