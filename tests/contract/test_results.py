"""What becomes of a run that went wrong, and of files that are not what they say."""

import asyncio

import pytest
from contract.client import (
    PATIENCE_S,
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_native_error,
    assert_refusal,
    assert_succeeded,
    node,
    photo_copy,
    picture,
    quarantined,
    raises,
    save,
    text,
    types_of,
    unique,
)


async def test_a_node_that_raises_fails_the_job_by_name(client):
    async with client.socket() as socket:
        job = await client.run(raises("value_error", "no such luck"), client_id=socket.client_id)
        assert_ended_badly(job, "generation_failed")
        details = job["error"]["details"]
        assert (details["node_id"], details["node_type"]) == ("1", "FaultRaise")
        assert details["exception_type"] == "ValueError"
        assert details["exception_message"] == "no such luck"
        assert job["error"]["user_message"] == (
            "Не удалось обработать изображение. Кредиты возвращены. Попробуйте другой промт или фото."
        )
        events = await socket.until_end_of(job["job_id"])
    assert_heard_only_an_error(events)
    error = next(event["data"] for event in events if event["type"] == "execution_error")
    assert (error["node_id"], error["node_type"], error["exception_type"]) == ("1", "FaultRaise", "ValueError")
    assert_native_error(await client.native_entry(job["job_id"]))
    await client.assert_takes_jobs()


async def test_running_out_of_memory_is_told_apart(client):
    job = await client.run(raises("out_of_memory", "CUDA out of memory"))
    assert_ended_badly(job, "out_of_memory")
    assert job["error"]["retryable"] is True
    assert job["error"]["details"]["node_type"] == "FaultRaise"
    await client.assert_takes_jobs()


REFUSED = {
    "FaultTruncatedImage": "result_corrupt",
    "FaultTinyFile": "result_too_small",
    "FaultMissingFile": "result_missing",
    "FaultOutsideFile": "result_missing",
    "FaultNoOutput": "result_missing",
}


@pytest.mark.parametrize("class_type", REFUSED)
async def test_a_bad_result_is_refused_before_anyone_hears_of_it(client, class_type):
    outside = client.base.parent / "x.png"  # what FaultOutsideFile names
    outside.write_bytes(b"not ours")
    prefix = unique()
    async with client.socket() as socket:
        job = await client.run({"1": node(class_type, filename_prefix=prefix, seed=0)}, client_id=socket.client_id)
        assert_ended_badly(job, REFUSED[class_type])
        assert job["error"]["retryable"] is True
        assert_heard_only_an_error(await socket.until_end_of(job["job_id"]))
    assert_native_error(await client.native_entry(job["job_id"]))
    assert_native_error((await client.get(f"/guarded/history/{job['job_id']}"))[job["job_id"]])
    assert list((client.base / "output").glob(f"{prefix}*")) == []
    names = [path.name for path in quarantined(client.base, job["job_id"])]
    if class_type in ("FaultTruncatedImage", "FaultTinyFile"):
        assert [prefix in name for name in names] == [True]
        assert (await client.request("GET", f"/view?filename={prefix}_00001_.png")).status == 404
    else:
        assert names == []
    assert outside.read_bytes() == b"not ours"
    outside.unlink()  # the folder above the base is every test's
    answer = await client.request("GET", f"/guarded/jobs/{job['job_id']}/artifacts/0")
    assert answer.status == 404
    await client.assert_takes_jobs()


async def test_one_bad_file_of_two_takes_the_good_one_back_as_well(client):
    good, bad = unique("good"), unique("bad")
    prompt = {**picture(good), "3": node("FaultTruncatedImage", filename_prefix=bad, seed=0)}
    async with client.socket() as socket:
        job = await client.run(prompt, client_id=socket.client_id)
        assert_ended_badly(job, "result_corrupt")
        assert job["error"]["details"]["node_id"] == "3"
        assert_heard_only_an_error(await socket.until_end_of(job["job_id"]))
    assert_native_error(await client.native_entry(job["job_id"]))
    assert len(quarantined(client.base, job["job_id"])) == 2
    assert [path for prefix in (good, bad) for path in (client.base / "output").glob(f"{prefix}*")] == []


async def test_text_instead_of_files_is_a_result(client):
    job = await client.run(text("forty-two"))
    assert_succeeded(job)
    assert job["outputs"] == {"1": {"text": ["forty-two"]}}
    assert job["artifacts"] == []


async def test_a_preview_is_an_artifact_too(client):
    prompt = picture()
    prompt["2"] = node("PreviewImage", images=["1", 0])
    job = await client.run(prompt)
    assert_succeeded(job)
    assert job["artifacts"][0]["type"] == "temp"
    answer = await client.request("GET", job["artifacts"][0]["url"])
    assert answer.status == 200
    assert len(answer.content) == job["artifacts"][0]["bytes"]


async def test_the_same_prompt_twice_makes_files_of_its_own_from_what_is_cached(client):
    prompt = photo_copy("photo.png", unique("same"))
    jobs, cached = [], []
    async with client.socket() as socket:
        for _ in range(2):
            jobs.append(await client.run(prompt, client_id=socket.client_id))
            events = await socket.until_end_of(jobs[-1]["job_id"])
            cached.append(next(set(event["data"]["nodes"]) for event in events if event["type"] == "execution_cached"))
    for job in jobs:
        assert_succeeded(job)
        assert len(job["artifacts"]) == 1
    assert jobs[0]["artifacts"][0]["filename"] != jobs[1]["artifacts"][0]["filename"]
    assert {"1", "2"} <= cached[1]
    assert "3" not in cached[1]
    for job in jobs:
        assert (await client.request("GET", job["artifacts"][0]["url"])).status == 200


async def test_the_same_prompt_succeeds_again_after_its_first_file_was_deleted(client):
    prompt = photo_copy("photo.png", unique("deleted"))
    first = await client.run(prompt)
    (client.base / "output" / first["artifacts"][0]["filename"]).unlink()
    second = await client.run(prompt)
    assert_succeeded(second)
    assert (client.base / "output" / second["artifacts"][0]["filename"]).is_file()


async def test_a_picture_that_got_a_deleted_ones_name_is_not_shown_under_the_first_ones_address(client):
    prefix = unique("reused")
    first = await client.run(picture(prefix))
    (client.base / "output" / first["artifacts"][0]["filename"]).unlink()
    prompt = picture(prefix)
    prompt["1"]["inputs"]["seed"] = 7
    second = await client.run(prompt)
    assert second["artifacts"][0]["filename"] == first["artifacts"][0]["filename"], "as ComfyUI does"
    assert_refusal(await client.request("GET", first["artifacts"][0]["url"]), "artifact_gone", 410)
    assert (await client.request("GET", second["artifacts"][0]["url"])).status == 200


async def test_two_output_nodes_are_two_artifacts(client):
    prompt = {**picture(unique("a")), "3": save("1", unique("b")), "4": text()["1"]}
    job = await client.run(prompt)
    assert_succeeded(job)
    assert sorted(artifact["node_id"] for artifact in job["artifacts"]) == ["2", "3"]
    assert [artifact["index"] for artifact in job["artifacts"]] == [0, 1]
    assert set(job["outputs"]) == {"2", "3", "4"}
    for artifact in job["artifacts"]:
        content = (await client.request("GET", artifact["url"])).content
        assert content == (client.base / "output" / artifact["filename"]).read_bytes()


async def test_a_file_in_a_subfolder_is_found(client):
    job = await client.run(picture(f"sub/folder/{unique()}"))
    assert_succeeded(job)
    assert job["artifacts"][0]["subfolder"].replace("\\", "/") == "sub/folder"
    assert (await client.request("GET", job["artifacts"][0]["url"])).status == 200


async def test_nobody_elses_socket_hears_of_a_job(client):
    async with client.socket() as bystander:
        await client.run(picture())  # without a client_id, which ComfyUI would broadcast in part
        async with client.socket() as socket:
            job = await client.run(picture(), client_id=socket.client_id)
            await socket.until_end_of(job["job_id"])
            marker = await client.run(text(), client_id=bystander.client_id)
            await bystander.until_end_of(marker["job_id"])
    heard = {event["data"].get("prompt_id") for event in bystander.seen}
    assert heard == {None, marker["job_id"]}
    assert {event["type"] for event in bystander.seen if "prompt_id" not in event["data"]} <= {
        "status",
        "feature_flags",
    }


async def test_events_of_a_good_job_come_in_comfyuis_order(client):
    async with client.socket() as socket:
        job = await client.run(picture(), client_id=socket.client_id)
        events = await socket.until_end_of(job["job_id"])
        everything = list(socket.seen)
    types = [event["type"] for event in events if event["type"] not in ("progress", "progress_state")]
    assert types == [
        "execution_start",
        "execution_cached",
        "executing",
        "executing",
        "executed",
        "execution_success",
        "executing",
    ]
    executed = next(event["data"] for event in events if event["type"] == "executed")
    assert executed["output"] == job["outputs"]["2"]
    assert executed["prompt_id"] == job["job_id"]
    # The queue's new length is told between the success and the end.
    all_types = types_of(everything)
    success = all_types.index("execution_success")
    end = len(all_types) - 1 - all_types[::-1].index("executing")
    assert "status" in all_types[success:end]


async def test_history_is_readable_before_the_last_event_arrives(client):
    async with client.socket() as socket:
        prompt_id = await client.admitted(picture(), client_id=socket.client_id)
        await socket.until_end_of(prompt_id)
        ours = (await client.get(f"/guarded/history/{prompt_id}"))[prompt_id]
        native = (await client.get(f"/history/{prompt_id}"))[prompt_id]
    for entry in (ours, native):
        assert entry["prompt"][1] == prompt_id
        assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("success", True)
        assert all(len(message) == 2 for message in entry["status"]["messages"])
    assert ours["outputs"] == native["outputs"]
    assert ours["prompt"][4] == ["2"]


async def test_a_job_is_in_the_queue_until_it_is_in_the_history(client):
    async with client.busy():
        ids = [await client.admitted(picture()) for _ in range(4)]
    ends_s = asyncio.get_running_loop().time() + PATIENCE_S
    open_ids = set(ids)
    while open_ids:
        assert asyncio.get_running_loop().time() < ends_s
        queued = await client.guarded_queue()
        for prompt_id in open_ids.difference(queued):
            # Looked up after the queue was: there is no moment without the one or the other.
            assert prompt_id in await client.get(f"/guarded/history/{prompt_id}")
        open_ids &= set(queued)


async def test_the_queue_shows_comfyuis_rows(client):
    async with client.busy() as running:
        prompt = text("in the queue")
        waiting = await client.admitted(prompt, client_id="me", extra_data={"mine": 1})
        queue = await client.get("/guarded/queue")
        assert set(queue) == {"queue_running", "queue_pending"}
        assert [row[1] for row in queue["queue_running"]] == [running]
        (row,) = queue["queue_pending"]
        assert len(row) == 5
        assert (row[1], row[2], row[4]) == (waiting, prompt, ["1"])
        assert row[3]["client_id"] == "me"
        assert row[3]["mine"] == 1
    await client.settled(waiting)
