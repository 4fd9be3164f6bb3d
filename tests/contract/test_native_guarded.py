"""`native.mode = "guarded"`: clients of ComfyUI's own routes, the editor among them, go through the guard and need not
know it."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import jsonschema
import pytest
from contract.client import (
    Answer,
    Client,
    KeyedClient,
    Socket,
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_native_error,
    assert_succeeded,
    connected,
    files_announced,
    node,
    picture,
    raises,
    sleep,
    text,
    types_of,
    unique,
)
from contract.conftest import hosts, kinds, put_photo, serves
from contract.test_access import make_key

from comfyui_guarded.tests.hosts.launch import HostProcess

GUARDED = {"GUARDED_NATIVE__MODE": "guarded"}


@pytest.fixture(scope="module", params=kinds())
def guarded_host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = HostProcess(request.param, tmp_path_factory.mktemp("guarded"), environment=GUARDED)
    put_photo(process.base)
    with process:
        yield process


@pytest.fixture
async def native(guarded_host: HostProcess) -> AsyncIterator[Client]:
    async with connected(guarded_host) as client:
        yield client


@contextlib.asynccontextmanager
async def busy(client: Client) -> AsyncIterator[str]:
    """A prompt that runs for as long as the block."""
    prompt_id = await client.native_submit(sleep(3600))
    await client.taken(prompt_id)
    try:
        yield prompt_id
    finally:
        await client.cancel(prompt_id)


def remaining(event: dict) -> int:
    return event["data"]["status"]["exec_info"]["queue_remaining"]


async def test_a_prompt_is_a_guarded_job_and_its_client_sees_comfyui(native):
    async with native.socket() as socket:
        body = {
            "prompt": picture(),
            "client_id": socket.client_id,
            "extra_data": {"extra_pnginfo": {"workflow": {"id": "w", "nodes": [], "links": []}}},
            "prompt_id": str(uuid.uuid4()),
        }
        answer = await native.request("POST", "/api/prompt", body, headers={"Comfy-Usage-Source": "editor"})
        assert answer.status == 200, answer
        assert answer.json.keys() >= {"prompt_id", "number", "node_errors"}
        assert "error" not in answer.json
        assert answer.json["prompt_id"] == body["prompt_id"]
        events = await socket.until_end_of(body["prompt_id"])
        entry = (await native.get(f"/history/{body['prompt_id']}"))[body["prompt_id"]]
    assert types_of(events)[0] == "execution_start"
    assert types_of(events)[-2:] == ["execution_success", "executing"]
    assert len(files_announced(events)) == 1
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["2"]["images"] == files_announced(events)
    assert_succeeded(await native.settled(body["prompt_id"]))


async def test_a_bad_prompt_is_refused_as_comfyui_refuses_it(native):
    answer = await native.request("POST", "/prompt", {"prompt": {"1": node("SaveImage", filename_prefix="x")}})
    assert answer.status == 400
    assert answer.json["error"]["type"] == "prompt_outputs_failed_validation"
    assert answer.json["node_errors"]["1"]["errors"]
    for raw in (b"no json", b"[]", b'{"prompt": {"1": null}}', b'{"prompt": {}, "extra_data": null}'):
        answer = await native.request("POST", "/prompt", raw=raw)
        assert (answer.status, set(answer.json["error"])) == (400, {"type", "message", "details", "extra_info"})


async def test_a_result_that_fails_the_checks_is_not_announced(native):
    async with native.socket() as socket:
        prompt = {"1": node("FaultTinyFile", filename_prefix=unique(), seed=0)}
        prompt_id = await native.native_submit(prompt, client_id=socket.client_id)
        assert_heard_only_an_error(await socket.until_end_of(prompt_id))
        assert_native_error((await native.get(f"/history/{prompt_id}"))[prompt_id])


#: What ComfyUI's panels demand of a failed job, as the schemas in comfyui-frontend-package 1.49.6 have it. One job that
#: breaks them empties the whole panel.
FAILED_JOB = {
    "type": "object",
    "required": ["id", "status", "create_time"],
    "properties": {
        "id": {"type": "string"},
        "status": {"enum": ["failed", "cancelled"]},
        "create_time": {"type": "number"},
        "execution_start_time": {"type": ["number", "null"]},
        "execution_end_time": {"type": ["number", "null"]},
        "outputs_count": {"type": ["number", "null"]},
        "workflow_id": {"type": ["string", "null"]},
        "priority": {"type": "number"},
        "execution_error": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/error"}]},
    },
    "$defs": {
        "error": {
            "type": "object",
            "required": ["node_id", "node_type", "exception_message", "exception_type", "traceback"],
            "properties": {
                "prompt_id": {"type": "string"},
                "timestamp": {"type": "number"},
                "executed": {"type": "array", "items": {"type": "string"}},
                "traceback": {"type": "array", "items": {"type": "string"}},
            }
            | {name: {"type": "string"} for name in ("node_id", "node_type", "exception_message", "exception_type")},
        }
    },
}


async def test_however_a_job_has_ended_comfyuis_panels_can_list_it(native):
    async with native.socket() as socket:
        ended = [
            await native.native_submit(prompt, client_id=socket.client_id)
            for prompt in (raises("value_error", "x"), {"1": node("FaultTinyFile", filename_prefix=unique(), seed=0)})
        ]
        for prompt_id in ended:
            await socket.until_end_of(prompt_id)
        async with busy(native) as running:
            await native.cancel(waiting := await native.native_submit(picture(), client_id=socket.client_id))
            await socket.until_end_of(waiting)
            await native.cancel(running)
        ended += [waiting, running]
        events = [event["data"] for event in socket.seen if event["type"] == "execution_error"]
        histories = [(await native.get(f"/history/{prompt_id}"))[prompt_id] for prompt_id in ended]
    told = [data for entry in histories for event, data in entry["status"]["messages"] if event == "execution_error"]
    assert (len(events), len(told)) == (3, 4)
    for error in (*events, *told):
        jsonschema.validate(error, FAILED_JOB["$defs"]["error"])
    for prompt_id in ended:
        answer = await native.request("GET", f"/api/jobs/{prompt_id}")
        if answer.status == 200:  # since ComfyUI 0.8
            jsonschema.validate(answer.json, FAILED_JOB)


async def test_what_waits_is_in_the_queue_like_what_comfyui_has(native):
    async with busy(native) as running:
        waiting = [await native.native_submit(picture(prefix := unique()), client_id="tab") for _ in range(3)]
        # A look reads prompts for a short time only, and shows the others without theirs.
        queue = await native.polled(
            lambda: native.get("/queue"), lambda queue: all(row[2] for row in queue["queue_pending"])
        )
        assert [row[1] for row in queue["queue_running"]] == [running]
        assert [row[1] for row in queue["queue_pending"]] == waiting
        assert {len(row) for rows in queue.values() for row in rows} == {5}
        number, _prompt_id, prompt, extra_data, outputs = queue["queue_pending"][-1]
        assert isinstance(number, int)
        assert prompt["2"]["inputs"]["filename_prefix"] == prefix
        assert (extra_data["client_id"], outputs) == ("tab", ["2"])
        assert isinstance(extra_data["create_time"], int)
        assert (await native.get("/prompt"))["exec_info"]["queue_remaining"] == 4
        async with native.socket() as socket:
            assert remaining(socket.seen[0]) == 4
            await native.native_submit(text())
            await socket.until(lambda event: event["type"] == "status" and remaining(event) == 5)
        jobs = await native.request("GET", "/api/jobs?status=pending")
        if jobs.status == 200:  # since ComfyUI 0.8
            assert {job["id"] for job in jobs.json["jobs"]} > set(waiting)
            (job,) = [job for job in jobs.json["jobs"] if job["id"] == waiting[0]]
            assert job["status"] == "pending"
    for prompt_id in waiting:
        assert_succeeded(await native.settled(prompt_id))


@pytest.mark.parametrize("door", ["", "/guarded"])
async def test_from_the_answer_to_the_history_a_job_is_never_out_of_sight(native, door):
    """Clients take a job that is in neither for lost."""
    open_jobs: set[str] = set()
    submitted = asyncio.Event()
    looks = 0

    async def submit() -> None:
        for _ in range(20):
            open_jobs.add(await native.native_submit(text(unique())))
        submitted.set()

    async def watch() -> None:
        nonlocal looks
        while not submitted.is_set() or open_jobs:
            expected = set(open_jobs)
            queue = await native.get(f"{door}/queue")
            queued = {row[1] for row in queue["queue_running"] + queue["queue_pending"]}
            for prompt_id in expected - queued:
                assert await native.get(f"{door}/history/{prompt_id}"), f"{prompt_id} is nowhere"
                open_jobs.discard(prompt_id)
            looks += 1

    await asyncio.gather(submit(), watch())
    assert looks > 5


async def test_what_is_deleted_from_the_queue_is_cancelled(native):
    await assert_cancels(native, lambda unwanted: native.request("POST", "/queue", {"delete": [unwanted]}))


@hosts(serves("/api/jobs/{job_id}/cancel"), "guarded_host")
async def test_what_is_cancelled_as_newer_editors_do_it_is_cancelled(native):
    answer = await assert_cancels(native, lambda unwanted: native.request("POST", f"/api/jobs/{unwanted}/cancel", {}))
    assert answer.json == {"cancelled": True}


async def assert_cancels(native: Client, cancel: Callable[[str], Awaitable[Answer]]) -> Answer:
    """Of two prompts in ComfyUI's queue behind one that runs, the second is cancelled and the first goes on."""
    async with busy(native), native.socket() as socket:
        wanted = await native.native_submit(picture())
        unwanted = await native.native_submit(picture(), client_id=socket.client_id)
        answer = await cancel(unwanted)
        assert answer.status == 200, answer
        events = await socket.until_end_of(unwanted)
        assert_heard_only_an_error(events)
        assert_native_error((await native.get(f"/history/{unwanted}"))[unwanted])
        assert unwanted in await native.get("/history")
        assert await native.native_queue() == [*await native.native_running(), wanted]
    assert_ended_badly(await native.settled(unwanted), "cancelled")
    assert_succeeded(await native.settled(wanted))
    return answer


async def test_what_is_deleted_and_then_interrupted_ends_in_whatever_moment_that_comes(native):
    """A client of ComfyUI's own does both as one: what was no longer in the queue has begun to run."""
    for _ in range(10):
        prompt_id = await native.native_submit(sleep(3600, steps=100_000))
        await native.request("POST", "/queue", {"delete": [prompt_id]})
        await native.request("POST", "/interrupt", {"prompt_id": prompt_id})
        assert (await native.settled(prompt_id))["error"]["code"] in {"cancelled", "interrupted"}


async def test_cancelling_the_last_job_that_comfyui_has_leaves_those_that_the_guard_has(sandbox_client):
    """ComfyUI deletes the last prompt of its queue by wiping that."""
    client = await sandbox_client(**GUARDED, GUARDED_QUEUE__MAX_JOBS="2")
    async with busy(client):
        handed_on, waiting = [await client.native_submit(picture()) for _ in range(2)]
        await client.polled(lambda: client.job(handed_on), lambda job: job["state"] == "dispatched")
        await client.cancel(handed_on)
        assert_ended_badly(await client.settled(handed_on), "cancelled")
    assert_succeeded(await client.settled(waiting))


async def test_clearing_the_queue_cancels_what_waits_and_leaves_what_runs(native):
    async with busy(native) as running:
        waiting = [await native.native_submit(picture()) for _ in range(3)]
        assert (await native.request("POST", "/queue", {"clear": True})).status == 200
        for prompt_id in waiting:
            assert_ended_badly(await native.settled(prompt_id), "cancelled")
        assert await native.native_queue() == [running]
    assert_succeeded(await native.run(text()))


async def test_the_interrupt_button_ends_the_running_job(native):
    async with native.socket() as socket:
        prompt_id = await native.native_submit(sleep(3600, steps=100_000), client_id=socket.client_id)
        await native.inside_a_node(prompt_id)
        await native.request("POST", "/interrupt", {"prompt_id": prompt_id})
        assert_heard_only_an_error(await socket.until_end_of(prompt_id))
    assert_ended_badly(await native.settled(prompt_id), "interrupted")


async def test_a_guarded_job_of_the_other_door_is_in_the_queue_too(native):
    async with busy(native):
        job_id = await native.admitted(picture())
        assert job_id in await native.native_queue()
    assert_succeeded(await native.settled(job_id))
    assert (await native.get(f"/history/{job_id}"))[job_id]["status"]["completed"] is True


async def assert_a_clear_is_for_ones_own(native: Client) -> None:
    """Whoever clears ComfyUI's queue ends none of another owner's jobs, wherever these wait."""
    bot = KeyedClient(native, make_key(native.base, f"bot{uuid.uuid4().hex[:8]}"))
    await native.polled(lambda: bot.request("GET", "/guarded/prompt"), lambda answer: answer.status == 200)
    async with busy(native) as running:
        theirs, mine = [await bot.admitted(picture())], [await native.native_submit(picture())]
        theirs += [await bot.admitted(picture()) for _ in range(2)]
        mine += [await native.native_submit(picture())]
        await native.polled(native.native_queue, lambda queue: {running, *theirs, *mine} == set(queue))
        assert (await native.request("POST", "/queue", {"clear": True})).status == 200
        for job_id in mine:
            assert_ended_badly(await native.settled(job_id), "cancelled")
        await native.polled(native.native_queue, lambda queue: set(queue) == {running, *theirs})
        assert {(await native.job(job_id))["settled_at_ms"] for job_id in theirs} == {None}
        mine = [await native.native_submit(picture())]
        assert (await bot.request("POST", "/queue", {"clear": True})).status == 200
        for job_id in theirs:
            assert_ended_badly(await native.settled(job_id), "cancelled")
        await native.polled(native.native_queue, lambda queue: {running, mine[0]} == set(queue))
        theirs = [await bot.admitted(picture())]
        assert (await native.request("POST", "/queue", {"delete": theirs})).status == 200  # an operator, by its id
        assert_ended_badly(await native.settled(theirs[0]), "cancelled")
        theirs = [await bot.admitted(picture())]
    for job_id in (*mine, *theirs):
        assert_succeeded(await native.settled(job_id))


async def test_clearing_the_queue_ends_no_job_of_an_owner_with_a_key(native):
    await assert_a_clear_is_for_ones_own(native)


async def test_nor_one_that_waits_in_comfyuis_own_queue(sandbox_client):
    await assert_a_clear_is_for_ones_own(await sandbox_client(**GUARDED, GUARDED_QUEUE__MAX_JOBS="4"))


async def test_a_key_from_elsewhere_has_its_own_queue_and_socket_at_the_root(native):
    key = make_key(native.base, name := f"bot{uuid.uuid4().hex[:8]}")
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "203.0.113.9"}
    await native.polled(lambda: native.request("GET", "/queue", headers=headers), lambda answer: answer.status == 200)
    client_id = "tab"
    url = f"{native.host.url}/ws?clientId={client_id}"
    async with busy(native), native.session.ws_connect(url, headers=headers) as ws:
        socket = Socket(ws, client_id)
        assert (await socket.next())["data"] == {"status": {"exec_info": {"queue_remaining": 0}}, "sid": client_id}
        body = {"prompt": text(), "client_id": client_id}
        answer = await native.request("POST", "/prompt", body, headers=headers)
        assert answer.status == 200, answer
        prompt_id = answer.json["prompt_id"]
        queue = (await native.request("GET", "/queue", headers=headers)).json
        assert [row[1] for row in queue["queue_pending"]] == [prompt_id]
        assert queue["queue_running"] == []
        assert (await native.job(prompt_id))["owner"] == name
        # The machine's own owner sees it in ComfyUI's queue, and stops it there.
        assert prompt_id in await native.native_queue()
        await native.request("POST", "/queue", {"delete": [prompt_id]})
        assert_heard_only_an_error(await socket.until_end_of(prompt_id))


# On the sandbox alone. ---------------------------------------------------------------------------------------


async def test_a_job_that_is_ended_by_the_watchdog_is_in_the_history_at_once(sandbox_client):
    client = await sandbox_client(**GUARDED, GUARDED_WATCHDOG__JOB_TIMEOUT_S="0.5", GUARDED_WATCHDOG__INJECT="false")
    async with client.socket() as socket:
        prompt_id = await client.native_submit(sleep(3, checks=False), client_id=socket.client_id)
        await socket.until(lambda event: event["type"] == "execution_error")
        assert_native_error((await client.get(f"/history/{prompt_id}"))[prompt_id])


async def test_the_verdict_is_in_the_history_after_a_restart_until_it_is_deleted(sandbox_client):
    client = await sandbox_client(**GUARDED)
    good = await client.native_submit(picture())
    assert_succeeded(job := await client.settled(good))
    async with busy(client):
        bad = await client.native_submit(picture())
        await client.cancel(bad)
    client.host.kill()
    client.host.start()
    entry = (await client.get(f"/history/{good}"))[good]
    assert (entry["status"]["status_str"], entry["outputs"]) == ("success", job["outputs"])
    assert len(entry["prompt"]) == 5
    assert entry["prompt"][1] == good
    assert_native_error((await client.get(f"/history/{bad}"))[bad])
    listed = await client.get(f"/api/jobs/{good}")
    assert (listed["id"], listed["status"]) == (good, "completed")
    await client.request("POST", "/history", {"delete": [good]})
    assert await client.get(f"/history/{good}") == {}
    assert_succeeded(await client.job(good))


async def test_the_hosts_history_does_not_grow_by_jobs_that_it_never_ran(sandbox_client, tmp_path):
    pack = tmp_path / "base0" / "custom_nodes" / "short_history"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(
        "import execution\n\nexecution.MAXIMUM_HISTORY_SIZE = 3\nNODE_CLASS_MAPPINGS = {}\n"
    )
    client = await sandbox_client(**GUARDED)
    async with busy(client):
        for _ in range(6):
            await client.cancel(last := await client.native_submit(text()))
        history = await client.polled(lambda: client.get("/history"), lambda history: last in history)
    assert len(history) == 3


async def test_a_cleared_queue_does_not_fill_the_hosts_history_and_each_job_is_found_by_its_id(sandbox_client):
    client = await sandbox_client(**GUARDED, GUARDED_LIMITS__JOBS_PER_MINUTE="0")
    async with busy(client):
        waiting = [await client.native_submit(text(unique())) for _ in range(220)]
        await client.request("POST", "/queue", {"clear": True})
        history = await client.polled(lambda: client.get("/history"), lambda history: waiting[-1] in history)
        assert waiting[0] not in history
        assert len(history) == 200
        for job_id in (waiting[0], waiting[-1]):
            assert_native_error((await client.get(f"/history/{job_id}"))[job_id])


async def test_a_pack_may_delete_what_waits_by_more_than_its_id(sandbox_client):
    client = await sandbox_client(**GUARDED)
    async with busy(client) as running:
        others = await client.native_submit(text(unique()), client_id="other")
        its = await client.native_submit(text(unique()), client_id="its")
        for deleted in (True, False):
            answer = await client.request("POST", "/guarded_faults/queue/of/its/delete", {})
            assert answer.json == {"deleted": deleted}
            assert_ended_badly(await client.settled(its), "cancelled")
        assert await client.native_queue() == [running, others]


async def test_what_waited_before_a_restart_is_in_the_queue_after_it(sandbox_client):
    client = await sandbox_client(**GUARDED)
    running = await client.native_submit(sleep(3600))
    await client.running(running)
    waiting = [await client.native_submit(picture()) for _ in range(2)]
    client.host.kill()
    client.host.start()
    await client.polled(client.native_running, lambda rows: rows == [running])
    assert await client.native_queue() == [running, *waiting]
    assert (await client.get("/prompt"))["exec_info"]["queue_remaining"] == 3
    await client.request("POST", "/queue", {"clear": True})
    await client.cancel(running)
    for prompt_id in waiting:
        assert_ended_badly(await client.settled(prompt_id), "cancelled")


async def test_deleting_the_last_prompt_that_comfyui_has_leaves_the_others(sandbox_client):
    """ComfyUI empties its whole queue where it holds one item only."""
    client = await sandbox_client(**GUARDED, GUARDED_QUEUE__MAX_JOBS="2")
    async with busy(client):
        handed_on = await client.native_submit(picture())
        await client.reached(handed_on, "dispatched")
        waiting = await client.native_submit(picture())
        await client.request("POST", "/queue", {"delete": [handed_on]})
        assert_ended_badly(await client.settled(handed_on), "cancelled")
        assert waiting in await client.native_queue()
    assert_succeeded(await client.settled(waiting))


async def test_a_full_queue_is_429_in_comfyuis_shape(sandbox_client):
    client = await sandbox_client(**GUARDED, GUARDED_QUEUE__MAX_QUEUED="1")
    async with busy(client):
        await client.native_submit(text())
        answer = await client.request("POST", "/prompt", {"prompt": text()})
        assert (answer.status, answer.json["error"]["type"]) == (429, "queue_full")
        await client.request("POST", "/queue", {"clear": True})


@pytest.mark.parametrize("mode", ["open", "closed"])
async def test_in_the_other_modes_comfyuis_own_queue_is_its_own(sandbox_client: Callable, mode: str):
    client = await sandbox_client(GUARDED_NATIVE__MODE=mode)
    async with client.busy():
        job_id = await client.admitted(picture())
        assert job_id not in await client.native_queue()
        native = await client.native_submit(text())
        assert (await client.request("GET", f"/guarded/jobs/{native}")).status == 404
    await client.settled(job_id)
