"""ComfyUI's routes below /guarded, as its clients use them, limited to the caller."""

import asyncio
import json
import uuid

import pytest
from contract.client import (
    PlainClient,
    assert_ended_badly,
    assert_native_error,
    assert_refusal,
    assert_succeeded,
    picture,
    raises,
    sleep,
    text,
)
from contract.conftest import hosts, serves

BASES = ("/guarded", "/guarded/api", "/api/guarded", "/api/guarded/api")


# Routes. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
async def test_every_route_answers_as_comfyuis(client, base):
    """Under the prefix, and once more below /api."""
    native = {path: await client.request("GET", path) for path in ("/prompt", "/queue", "/embeddings", "/system_stats")}
    for path, theirs in native.items():
        ours = await client.request("GET", base + path)
        assert ours.status == theirs.status == 200, ours
        assert ours.headers["Content-Type"] == theirs.headers["Content-Type"], path
        assert ours.json.keys() == theirs.json.keys() if isinstance(theirs.json, dict) else ours.json == theirs.json
    info = (await client.request("GET", f"{base}/object_info/LoadImage")).json
    assert info == (await client.request("GET", "/object_info/LoadImage")).json
    assert (await client.request("GET", f"{base}/object_info/NoSuchNode")).json == {}
    job_id = (await client.request("POST", f"{base}/prompt", {"prompt": text()})).json["prompt_id"]
    await client.settled(job_id)
    assert list(await client.get(f"{base}/history/{job_id}")) == [job_id]
    assert job_id in await client.get(f"{base}/history?max_items=5")
    jobs = base.removesuffix("/api") if base.endswith("/guarded/api") else base
    assert (await client.get(f"{jobs}/api/jobs/{job_id}"))["status"] == "completed"


async def test_the_whole_object_info_is_comfyuis(client):
    theirs = await client.get("/object_info")
    if theirs != await client.get("/object_info"):  # some make the folders that they list
        theirs = await client.get("/object_info")
    assert await client.get("/guarded/object_info") == theirs


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/guarded/nothing"), ("GET", "/guarded/api/nothing"), ("POST", "/guarded//nothing"),
     ("GET", "//guarded/nothing"), ("GET", "/guarded/view"), ("GET", "/guarded/view?filename=none.png"),
     ("GET", "/guarded/api/jobs/4b2f7c1e-0000-4000-8000-000000000000")],
)  # fmt: skip
async def test_a_404_is_json(client, method, path):
    assert_refusal(await client.request(method, path), "not_found", 404)


@pytest.mark.parametrize("path", ["/guarded//prompt", "//guarded/prompt", "//guarded//prompt", "/guarded//api//prompt",
                                  "/api//guarded/prompt", "/guarded/prompt?token_of=x&extra_query=1&x"])  # fmt: skip
async def test_doubled_slashes_and_further_query_parameters_are_put_up_with(client, path):
    answer = await client.request("POST", path, {"prompt": text(), "client_id": "c"})
    assert answer.status == 200, answer
    job_id = answer.json["prompt_id"]
    await client.settled(job_id)
    base = path.partition("prompt")[0]
    assert list(await client.get(f"{base}history/{job_id}?x=1")) == [job_id]


async def test_nothing_is_redirected(client):
    for path in ("/guarded/", "/guarded/prompt", "/guarded/prompt/", "/guarded//prompt", "/guarded/api/"):
        for method in ("GET", "POST"):
            async with client.session.request(method, client.host.url + path, allow_redirects=False) as response:
                assert not 300 <= response.status < 400, (method, path)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain", "x", ""])
async def test_the_content_type_of_a_body_is_never_looked_at(client, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await client.request("POST", "/guarded/prompt", {"prompt": text()}, headers=headers)
    assert answer.status == 200, answer
    body = {"delete": [answer.json["prompt_id"]]}
    assert (await client.request("POST", "/guarded/queue", body, headers=headers)).status == 200


# Submitting. -------------------------------------------------------------------------------------------------


async def test_the_answer_is_a_200_with_comfyuis_keys_and_no_error(client):
    mine = str(uuid.uuid4())
    for body in ({"prompt_id": mine, "client_id": "me"}, {"prompt_id": str(uuid.uuid4()), "client_id": ""}, {}):
        answer = await client.request("POST", "/guarded/prompt", {"prompt": text(), **body})
        assert answer.status == 200
        assert answer.json.keys() >= {"prompt_id", "number", "node_errors"}
        assert "error" not in answer.json
        assert answer.json["prompt_id"] == body.get("prompt_id", answer.json["prompt_id"])
        await client.settled(answer.json["prompt_id"])
    row = (await client.get(f"/guarded/history/{mine}"))[mine]["prompt"]
    assert (row[1], row[3]["client_id"]) == (mine, "me")


async def test_without_wait_a_submit_is_answered_while_others_run(client):
    async with client.busy():
        answer = await client.submit(text())
        assert (answer.status, answer.json["guard"]["state"]) == (200, "queued")
        # One that follows on the first `executed` of another waits, and is not turned away.
        assert (await client.submit(text())).status == 200
        await client.request("POST", "/guarded/queue", {"clear": True})


async def test_a_refusal_has_comfyuis_error_in_it(client):
    for graph in ({}, {"1": {"class_type": "NoSuchNode", "inputs": {}}}, {"1": 5}):
        answer = await client.request("POST", "/guarded/prompt", {"prompt": graph})
        body = assert_refusal(answer)
        assert answer.status in (400, 422)
        assert isinstance(body["error"], dict)


# While it lives. ---------------------------------------------------------------------------------------------


def test_a_job_is_never_out_of_sight_from_its_200_to_its_history(host):
    """Looked at in between, again and again: history before queue, as a client must where a job may end meanwhile."""
    client = PlainClient(host)
    try:
        for _ in range(20):
            answer = client.post(json.dumps({"prompt": text()}).encode())
            job_id = answer.json["prompt_id"]
            while True:
                queue = client.get("/guarded/queue").json
                if job_id in [row[1] for row in queue["queue_running"] + queue["queue_pending"]]:
                    assert client.get("/guarded/prompt").json["exec_info"]["queue_remaining"] >= 0
                    continue
                assert list(client.get(f"/guarded/history/{job_id}").json) == [job_id]
                break
    finally:
        client.close()


async def test_the_queue_has_comfyuis_rows(client):
    async with client.busy() as running:
        extra = {"extra_pnginfo": {"workflow": {"id": "w"}}}
        waiting = await client.admitted(text("waits"), client_id="me", extra_data=extra)
        queue = await client.get("/guarded/queue")
        assert [row[1] for row in queue["queue_running"]] == [running]
        ((number, prompt_id, prompt, extra_data, outputs),) = queue["queue_pending"]
        assert (prompt_id, prompt, outputs) == (waiting, text("waits"), ["1"])
        assert isinstance(number, int)
        assert extra_data == {**extra, "client_id": "me", "create_time": extra_data["create_time"]}
        assert await client.get("/guarded/prompt") == {"exec_info": {"queue_remaining": 2}}
        listed = (await client.get("/guarded/api/jobs?status=pending,in_progress"))["jobs"]
        assert {(job["id"], job["status"], job.get("workflow_id")) for job in listed} == {
            (running, "in_progress", None),
            (waiting, "pending", "w"),
        }
        await client.cancel(waiting)


async def test_what_the_guard_adds_to_a_prompt_is_not_shown(client):
    job = await client.run(picture())
    entry = (await client.get(f"/guarded/history/{job['job_id']}"))[job["job_id"]]
    assert "_guarded" not in json.dumps(entry["prompt"])


async def test_a_history_entry_is_comfyuis(client):
    """Against what ComfyUI itself keeps of the same run."""
    job = await client.run(picture(), client_id="me")
    job_id = job["job_id"]
    ours = (await client.get(f"/guarded/history/{job_id}"))[job_id]
    theirs = await client.native_entry(job_id)
    assert ours.keys() == theirs.keys() | {"guard"}
    assert ours["outputs"] == theirs["outputs"]
    assert ours["meta"] == theirs["meta"]
    assert {name: ours["status"][name] for name in ("status_str", "completed")} == {
        name: theirs["status"][name] for name in ("status_str", "completed")
    }
    for mine, native in zip(ours["prompt"], theirs["prompt"], strict=True):
        assert type(mine) is type(native) or isinstance(mine, (int, float))
    assert ours["prompt"][1] == job_id
    told = [event for event, _data in theirs["status"]["messages"] if event != "execution_cached"]
    assert [event for event, _data in ours["status"]["messages"]] == told
    assert all(len(message) == 2 for message in ours["status"]["messages"])


@hosts(serves("/api/jobs"))
async def test_jobs_are_listed_as_comfyui_lists_them(client):
    """Against its own /api/jobs."""
    good = (await client.run(picture()))["job_id"]
    bad = (await client.run(raises("value_error")))["job_id"]
    for job_id in (good, bad):
        ours = await client.get(f"/guarded/api/jobs/{job_id}")
        theirs = await client.request("GET", f"/api/jobs/{job_id}")
        assert theirs.status == 200
        assert ours.keys() == theirs.json.keys()
        for name in ("id", "status", "outputs", "outputs_count", "preview_output"):
            assert ours.get(name) == theirs.json.get(name), name
        assert ours["workflow"].keys() == theirs.json["workflow"].keys()


async def test_a_job_that_ended_badly_shows_comfyuis_error_in_history(client):
    job = await client.run(raises("value_error"))
    assert_native_error((await client.get(f"/guarded/history/{job['job_id']}"))[job["job_id"]])
    timed_out = await client.run(sleep(3600, steps=100_000), guard={"timeout_s": 0.2})
    assert_ended_badly(timed_out, "generation_timeout")
    assert_native_error((await client.get(f"/guarded/history/{timed_out['job_id']}"))[timed_out["job_id"]])


async def test_history_comes_in_comfyuis_order_and_pages(client, keys):
    client = keys.of(client, "mine")
    await client.request("POST", "/guarded/history", {"clear": True})
    ids = [(await client.run(text(str(number))))["job_id"] for number in range(4)]
    assert list(await client.get("/guarded/history")) == ids
    assert list(await client.get("/guarded/history?max_items=2")) == ids[2:]
    assert list(await client.get("/guarded/history?max_items=2&offset=1")) == ids[1:3]
    assert list(await client.get("/guarded/history?offset=3")) == ids[3:]
    assert await client.get("/guarded/history?max_items=0") == {}
    assert_refusal(await client.request("GET", "/guarded/history?max_items=x"), "invalid_request")


async def test_what_is_deleted_from_history_is_out_of_comfyuis_view_only(client, keys):
    client = keys.of(client, "mine")
    ids = [(await client.run(text(str(number))))["job_id"] for number in range(2)]
    answer = await client.request("POST", "/guarded/history", {"delete": [ids[0], "no such id"]})
    assert (answer.status, answer.content) == (200, b"")
    assert await client.get(f"/guarded/history/{ids[0]}") == {}
    assert_refusal(await client.request("GET", f"/guarded/api/jobs/{ids[0]}"), "not_found")
    assert ids[1] in await client.get("/guarded/history")
    assert_succeeded(await client.job(ids[0]))
    await client.request("POST", "/guarded/history", {"clear": True})
    assert await client.get("/guarded/history") == {}
    assert (await client.get("/guarded/api/jobs"))["pagination"]["total"] == 0


async def test_api_jobs_filters_sorts_and_pages(client, keys):
    client = keys.of(client, "mine")
    await client.request("POST", "/guarded/history", {"clear": True})
    workflow = {"extra_pnginfo": {"workflow": {"id": "w1"}}}
    slow = (await client.run(sleep(0.3), extra_data=workflow))["job_id"]
    quick = (await client.run(text()))["job_id"]
    bad = (await client.run(raises("value_error")))["job_id"]

    async def ids(query):
        return [job["id"] for job in (await client.get(f"/guarded/api/jobs?{query}"))["jobs"]]

    assert await ids("") == [bad, quick, slow]
    assert await ids("sort_order=asc") == [slow, quick, bad]
    assert await ids("status=completed") == [quick, slow]
    assert await ids("workflow_id=w1") == [slow]
    assert (await ids("sort_by=execution_duration"))[0] == slow
    assert await ids("limit=1&offset=1") == [quick]
    page = (await client.get("/guarded/api/jobs?limit=1&offset=1"))["pagination"]
    assert page == {"offset": 1, "limit": 1, "total": 3, "has_more": True}
    for query in ("status=done", "sort_by=x", "sort_order=x", "limit=0", "limit=x", "offset=x"):
        assert_refusal(await client.request("GET", f"/guarded/api/jobs?{query}"), "invalid_request")


# Stopping. ---------------------------------------------------------------------------------------------------


async def test_an_interrupt_ends_the_running_job_alone(client):
    running = await client.admitted(sleep(3600, steps=100_000))
    await client.inside_a_node(running)
    waiting = await client.admitted(text())
    answer = await client.request("POST", "/guarded/interrupt", {"prompt_id": waiting})
    assert (answer.status, (await client.job(waiting))["state"]) == (200, "queued")
    answer = await client.request("POST", "/guarded/interrupt", {"prompt_id": running})
    assert (answer.status, answer.content) == (200, b"")
    assert_ended_badly(await client.settled(running), "cancelled")
    assert_succeeded(await client.settled(waiting))
    assert (await client.get(f"/guarded/api/jobs/{running}"))["status"] == "cancelled"


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"prompt_id": null}', b'{"prompt_id": ""}'])
async def test_an_interrupt_of_nothing_in_particular_ends_what_runs(client, raw):
    running = await client.admitted(sleep(3600, steps=100_000))
    await client.inside_a_node(running)
    assert (await client.request("POST", "/guarded/interrupt", raw=raw)).status == 200
    assert_ended_badly(await client.settled(running), "cancelled")


@pytest.mark.parametrize(
    "path", ["/guarded/interrupt", "/guarded/queue", "/guarded/history", "/guarded/api/jobs/cancel"]
)
@pytest.mark.parametrize("raw", [b"[]", b"null", b'"x"', b"{", b"\xff", b"[" * 100_000])
async def test_a_command_that_makes_no_sense_stops_nothing(client, path, raw):
    async with client.busy() as running:
        assert_refusal(await client.request("POST", path, raw=raw), "invalid_request")
        assert (await client.job(running))["state"] == "running"


async def test_the_queue_is_cleared_and_the_running_job_goes_on(client):
    async with client.busy() as running:
        waiting = [await client.admitted(text(str(number))) for number in range(3)]
        answer = await client.request("POST", "/guarded/queue", {"delete": [waiting[0], running, "x"]})
        assert (answer.status, answer.content) == (200, b"")
        assert_ended_badly(await client.job(waiting[0]), "cancelled")
        assert (await client.job(waiting[1]))["state"] == "queued"
        assert (await client.request("POST", "/guarded/queue", {"clear": True})).status == 200
        assert_ended_badly(await client.job(waiting[2]), "cancelled")
        assert await client.guarded_queue() == [running]


async def test_jobs_are_cancelled_as_newer_clients_do_it(client):
    running = await client.admitted(sleep(3600, steps=100_000))
    await client.inside_a_node(running)
    waiting = await client.admitted(text())
    assert (await client.request("POST", f"/guarded/api/jobs/{waiting}/cancel")).json == {"cancelled": True}
    assert (await client.request("POST", f"/guarded/api/jobs/{waiting}/cancel")).json == {"cancelled": False}
    answer = await client.request("POST", "/guarded/api/jobs/cancel", {"job_ids": [running, str(uuid.uuid4())]})
    assert answer.json == {"cancelled": True}
    assert_ended_badly(await client.settled(running), "cancelled")


# Whose. ------------------------------------------------------------------------------------------------------


async def test_nobody_sees_or_stops_the_jobs_of_another_key(client, keys):
    mine, yours = keys.of(client, "mine"), keys.of(client, "yours")
    running = await mine.admitted(sleep(3600, steps=100_000))
    await mine.inside_a_node(running)
    waiting = await mine.admitted(text())
    assert await yours.get("/guarded/queue") == {"queue_running": [], "queue_pending": []}
    assert await yours.get("/guarded/prompt") == {"exec_info": {"queue_remaining": 0}}
    assert not {running, waiting} & {job["id"] for job in (await yours.get("/guarded/api/jobs"))["jobs"]}
    assert_refusal(await yours.request("GET", f"/guarded/api/jobs/{running}"), "not_found")
    for path, body in (
        ("/guarded/interrupt", {"prompt_id": running}),
        ("/guarded/interrupt", {}),
        ("/guarded/queue", {"clear": True}),
        ("/guarded/queue", {"delete": [waiting]}),
    ):
        assert (await yours.request("POST", path, body)).status == 200
    for path in (f"/guarded/api/jobs/{running}/cancel", f"/guarded/api/jobs/{waiting}/cancel"):
        assert (await yours.request("POST", path)).json == {"cancelled": False}
    # An operator stops by id whatever it names, but "whatever runs" is its own.
    await client.request("POST", "/guarded/interrupt", {})
    await client.request("POST", "/guarded/queue", {"clear": True})
    assert (await mine.job(running))["state"] == "running"
    assert (await mine.job(waiting))["state"] == "queued"
    assert len(await mine.guarded_queue()) == 2
    await client.request("POST", "/guarded/interrupt", {"prompt_id": running})
    assert_ended_badly(await mine.settled(running), "cancelled")
    await mine.settled(waiting)
    assert await yours.get(f"/guarded/history/{waiting}") == {}
    assert waiting not in await yours.get("/guarded/history")
    await yours.request("POST", "/guarded/history", {"delete": [waiting]})
    await yours.request("POST", "/guarded/history", {"clear": True})
    assert {running, waiting} <= (await mine.get("/guarded/history")).keys()


@pytest.mark.parametrize("base", BASES)
async def test_versions_and_the_command_line_are_shown_to_operators_only(client, keys, base):
    shown = await keys.of(client, "mine").get(f"{base}/system_stats")
    whole = await client.get(f"{base}/system_stats")
    ((ours, theirs),) = zip(shown["devices"], whole["devices"], strict=True)
    assert ours.keys() == theirs.keys()
    assert (ours["name"], ours["vram_total"]) == (theirs["name"], theirs["vram_total"])  # what is free changes
    assert shown["system"].keys() == whole["system"].keys()
    for name, value in whole["system"].items():
        known = shown["system"][name]
        assert type(known) is type(value), name  # clients check that
        if name in ("os", "ram_total"):
            assert known == value
        elif not isinstance(value, int):
            assert not known, name
    assert whole["system"]["argv"]
    assert whole["system"]["python_version"].startswith("3.")


@pytest.mark.parametrize(
    "path",
    ["/guarded/jobs", "/guarded/nothing", "/guarded/view?filename=none.png", "/api/guarded/history", "/queue", "/x"],
)
async def test_no_answer_names_the_server_software(client, keys, path):
    for sender in (client, keys.of(client, "mine")):
        assert "Server" not in (await sender.request("GET", path)).headers


async def test_an_operator_clears_its_own_history_alone(client, keys):
    theirs = (await keys.of(client, "mine").run(text()))["job_id"]
    own = (await client.run(text()))["job_id"]
    await client.request("POST", "/guarded/history", {"clear": True})
    history = await client.get("/guarded/history")
    assert theirs in history
    assert own not in history


async def test_many_jobs_at_once_are_all_in_the_queue(client):
    async with client.busy():
        ids = await asyncio.gather(*(client.admitted(text(str(number))) for number in range(30)))
        assert set(ids) <= set(await client.guarded_queue())
        await client.request("POST", "/guarded/queue", {"clear": True})
        assert {(await client.job(job_id))["state"] for job_id in ids} == {"cancelled"}


async def test_a_prompt_that_is_no_longer_kept_is_an_empty_graph_and_its_job_stays(sandbox_client):
    client = await sandbox_client(GUARDED_STORE__BODIES_MAX_AGE_S="0.001")
    job = await client.run(picture())
    job_id = job["job_id"]

    async def ask():
        return (await client.get(f"/guarded/history/{job_id}"))[job_id]

    entry = await client.polled(ask, lambda entry: "prompt_gone" in entry)
    assert entry["prompt_gone"] is True
    _number, named, prompt, extra_data, _outputs = entry["prompt"]
    assert (named, prompt) == (job_id, {})
    assert extra_data["create_time"] > 0
    assert entry["outputs"]
    assert entry["guard"] == await client.job(job_id)
    assert job_id in await client.get("/guarded/history")
    assert (await client.get(f"/guarded/jobs/{job_id}"))["state"] == "succeeded"
    listed = await client.get(f"/guarded/api/jobs/{job_id}")
    assert (listed["prompt_gone"], listed["workflow"]["prompt"]) == (True, {})
    assert job_id in {item["id"] for item in (await client.get("/guarded/api/jobs"))["jobs"]}
    database = (await client.get("/guarded/janitor"))["database"]
    assert database["deleted_prompts"] >= 1
    assert database["bytes"] > database["free_bytes"]
    metrics = (await client.request("GET", "/guarded/metrics")).content.decode()
    assert "guarded_store_thinned_total 1.0" in metrics


async def test_a_database_that_may_not_become_larger_refuses_jobs_by_name_until_jobs_have_ended(sandbox_client):
    client = await sandbox_client(GUARDED_STORE__MAX_BYTES="2000000")
    ids = [await client.admitted(sleep(3600))]
    answer = await client.submit(large := text("x" * 100_000))
    while answer.status == 200:
        ids.append(answer.json["prompt_id"])
        assert len(ids) < 30
        answer = await client.submit(large)
    assert_refusal(answer, "disk_full")
    assert answer.status == 507
    assert int(answer.headers["Retry-After"]) >= 1
    for job_id in ids:
        await client.request("DELETE", f"/guarded/jobs/{job_id}")
    await client.polled(lambda: client.submit(large), lambda answer: answer.status == 200)
