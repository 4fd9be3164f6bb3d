"""Who waits, who runs, and who is told what."""

import asyncio
import itertools

from contract.client import (
    assert_ended_badly,
    assert_heard_only_an_error,
    assert_native_error,
    assert_refusal,
    assert_succeeded,
    picture,
    sleep,
    text,
    types_of,
)


async def test_the_second_of_two_waits_with_a_position_and_a_notice_and_runs_afterwards(client):
    async with client.busy():
        answer = await client.submit(text())
        guard = answer.json["guard"]
        assert (guard["state"], guard["position"], guard["running"], guard["max_jobs"]) == ("queued", 1, 1, 1)
        assert guard["user_message"].startswith("Сервер загружен (1/1 задач).")
        third = await client.submit(text())
        assert third.json["guard"]["position"] == 2
        job = await client.job(answer.json["prompt_id"])
        assert (job["state"], job["position"], job["refund"]) == ("queued", 1, None)
    assert_succeeded(await client.settled(answer.json["prompt_id"]))
    assert_succeeded(await client.settled(third.json["prompt_id"]))


async def test_jobs_run_one_after_the_other_in_the_order_of_their_coming(client):
    async with client.busy():
        ids = [await client.admitted(sleep(0.05)) for _ in range(5)]
        assert await client.guarded_queue() != ids
        assert [job_id for job_id in await client.guarded_queue() if job_id in ids] == ids
    jobs = [await client.settled(job_id) for job_id in ids]
    for before, after in itertools.pairwise(jobs):
        assert_succeeded(after)
        # The checks of one go on while the next one runs.
        assert before["started_at_ms"] <= after["started_at_ms"]


async def test_comfyuis_own_queue_never_has_more_than_one_guarded_job(client):
    async with client.busy() as running:
        ids = [running, *[await client.admitted(sleep(0.05)) for _ in range(6)]]
        assert [job_id for job_id in await client.native_queue() if job_id in ids] == [running]
    waiting = asyncio.ensure_future(client.settled(ids[-1]))
    most = 0
    while not waiting.done():
        # ComfyUI shows jobs whose results are still checked, too; the worker has let go of these.
        held = {job["job_id"] for job in await client.jobs("limit=500&state=dispatched,running")}
        most = max(most, len(held.intersection(ids)))
        await asyncio.sleep(0.005)
    assert most == 1
    assert_succeeded(await waiting)


async def test_priority_front_and_number_reorder_what_waits(client):
    async with client.busy():
        usual = await client.admitted(text())
        front = await client.admitted(text(), front=True)
        urgent = await client.admitted(text(), guard={"priority": 5})
        first = await client.admitted(text(), number=-10_000_000)
        assert (await client.job(urgent))["position"] == 1
    jobs = [await client.settled(job_id) for job_id in (urgent, first, front, usual)]
    for before, after in itertools.pairwise(jobs):
        # The checks of one go on while the next one runs.
        assert before["started_at_ms"] <= after["started_at_ms"]


async def test_a_job_over_its_deadline_is_refunded_and_the_next_one_runs(client):
    async with client.socket() as socket:
        job_id = await client.admitted(sleep(3600), client_id=socket.client_id, guard={"timeout_s": 0.5})
        following = await client.admitted(picture())
        job = await client.settled(job_id)
        assert_ended_badly(job, "generation_timeout")
        assert job["error"]["user_message"].startswith("Генерация заняла слишком много времени. Кредиты возвращены.")
        # The watchdog's clock runs from a moment before the state is on disk.
        assert 400 <= job["settled_at_ms"] - job["started_at_ms"] <= 5000
        assert_succeeded(await client.settled(following))
        events = await socket.until_end_of(job_id)
    assert_heard_only_an_error(events)
    error = next(event for event in events if event["type"] == "execution_error")
    assert error["data"]["exception_type"] == "comfyui_guarded.GenerationTimeoutError"
    assert_native_error(await client.native_entry(job_id))
    entry = (await client.get(f"/guarded/history/{job_id}"))[job_id]
    assert_native_error(entry)


async def test_a_timeout_is_heard_although_the_node_cannot_be_stopped_and_its_late_end_changes_nothing(client):
    async with client.socket() as socket:
        job_id = await client.admitted(sleep(4, checks=False), client_id=socket.client_id, guard={"timeout_s": 0.3})
        job = await client.settled(job_id)
        assert_ended_badly(job, "generation_timeout")
        # The user has been told, and the worker is still in there: the slot is not free.
        assert job_id in await client.native_running()
        following = await client.submit(text())
        assert following.json["guard"]["running"] == 1
        assert_succeeded(await client.settled(following.json["prompt_id"]))
        assert_heard_only_an_error(await socket.until_end_of(job_id))
    assert await client.job(job_id) == job
    assert_native_error(await client.native_entry(job_id))


async def test_the_clock_of_a_job_does_not_run_while_it_waits(client):
    async with client.busy():
        job_id = await client.admitted(text(), guard={"timeout_s": 0.5})
        waited = await client.job(job_id, wait_s=1)
        assert waited["state"] == "queued"
    assert_succeeded(await client.settled(job_id))


async def test_a_job_cancelled_while_queued_never_runs(client):
    async with client.busy(), client.socket() as socket:
        job_id = await client.admitted(picture(), client_id=socket.client_id)
        behind = await client.submit(text())
        assert behind.json["guard"]["position"] == 2
        job = await client.cancel(job_id)
        assert_ended_badly(job, "cancelled")
        assert (job["started_at_ms"], job["attempts"]) == (None, 0)
        assert (await client.job(behind.json["prompt_id"]))["position"] == 1
        # ComfyUI has never heard of it; its clients hear all the same.
        events = await socket.until_end_of(job_id)
        assert types_of(events) == ["execution_error", "executing"]
        assert_native_error((await client.get(f"/guarded/history/{job_id}"))[job_id])
        assert job_id not in await client.guarded_queue()
    assert_succeeded(await client.settled(behind.json["prompt_id"]))
    assert await client.get(f"/history/{job_id}") == {}


async def test_a_job_cancelled_while_running_stops_and_the_next_one_runs(client):
    async with client.socket() as socket:
        job_id = await client.admitted(sleep(3600), client_id=socket.client_id)
        await client.running(job_id)
        following = await client.admitted(text())
        job = await client.cancel(job_id)
        assert_ended_badly(job, "cancelled")
        assert job["attempts"] == 1
        assert_succeeded(await client.settled(following))
        assert_heard_only_an_error(await socket.until_end_of(job_id))
    assert_native_error(await client.native_entry(job_id))


async def test_a_job_cancelled_while_dispatched_leaves_comfyuis_queue(client):
    async with client.busy_natively():
        job_id = await client.admitted(text())
        assert (await client.reached(job_id, "dispatched"))["state"] == "dispatched"
        assert_ended_badly(await client.cancel(job_id), "cancelled")
        following = await client.admitted(text())
        await client.reached(following, "dispatched")
        assert job_id not in await client.native_queue()
    assert_succeeded(await client.settled(following))


async def test_cancelling_twice_is_the_same_as_once(client):
    job_id = await client.admitted(sleep(3600))
    await client.running(job_id)
    first = await client.cancel(job_id)
    assert_ended_badly(first, "cancelled")
    assert await client.cancel(job_id) == first
    both = await asyncio.gather(client.cancel(job_id), client.cancel(job_id))
    assert both == [first, first]


async def test_cancelling_a_job_that_has_ended_leaves_it_as_it_is(client):
    job = await client.run(picture())
    assert_succeeded(job)
    assert await client.cancel(job["job_id"]) == job
    assert (client.base / "output" / job["artifacts"][0]["filename"]).is_file()


async def test_cancelling_a_job_that_does_not_exist_is_not_found(client):
    for job_id in ("4b2f7c1e-0000-4000-8000-000000000000", "x"):
        assert_refusal(await client.request("DELETE", f"/guarded/jobs/{job_id}"), "not_found", 404)


async def test_a_long_poll_answers_at_the_next_change_of_state(client):
    async with client.busy():
        job_id = await client.admitted(sleep(3600))
        waiting = asyncio.ensure_future(client.job(job_id, wait_s=50))
    assert (await waiting)["state"] in ("dispatched", "running")
    await client.running(job_id)
    waiting = asyncio.ensure_future(client.job(job_id, wait_s=50))
    await client.cancel(job_id)
    assert (await waiting)["state"] == "cancelled"


async def test_with_two_slots_the_next_job_is_already_in_comfyuis_queue_and_still_one_runs(sandbox_client):
    client = await sandbox_client(MAX_GPU_JOBS="2")
    async with client.busy() as running:
        ids = [await client.admitted(sleep(0.05)) for _ in range(3)]
        await client.reached(ids[0], "dispatched")
        assert await client.native_queue() == [running, ids[0]]
        assert await client.native_running() == [running]
        states = [(await client.job(job_id))["state"] for job_id in ids]
        assert states == ["dispatched", "queued", "queued"]
    jobs = [await client.settled(job_id) for job_id in ids]
    for before, after in itertools.pairwise(jobs):
        assert_succeeded(after)
        # The checks of one go on while the next one runs.
        assert before["started_at_ms"] <= after["started_at_ms"]


async def test_a_full_queue_is_429_with_the_time_to_come_back(sandbox_client):
    client = await sandbox_client(GUARDED_QUEUE__MAX_QUEUED="2")
    async with client.busy():
        waiting = [await client.admitted(text()) for _ in range(2)]
        answer = await client.submit(text())
        body = assert_refusal(answer, "queue_full", 429)
        assert body["guard"]["retryable"] is True
        assert body["guard"]["retry_after_s"] > 0
        assert int(answer.headers["Retry-After"]) >= 1
        assert len(await client.jobs()) == 3
        await client.cancel(waiting[0])
        waiting[0] = await client.admitted(text())
    for job_id in waiting:
        assert_succeeded(await client.settled(job_id))


async def test_a_job_that_waits_too_long_settles_queue_timeout(sandbox_client):
    client = await sandbox_client(GUARDED_QUEUE__TIMEOUT_S="1")
    async with client.busy() as running, client.socket() as socket:
        job_id = await client.admitted(text(), client_id=socket.client_id)
        job = await client.settled(job_id)
        assert_ended_badly(job, "queue_timeout")
        assert (job["attempts"], job["started_at_ms"]) == (0, None)
        assert types_of(await socket.until_end_of(job_id)) == ["execution_error", "executing"]
        assert (await client.job(running))["state"] == "running", "what runs waits no more"
    await client.assert_takes_jobs()


async def test_waiting_behind_a_native_prompt_counts_as_waiting(sandbox_client):
    client = await sandbox_client(GUARDED_QUEUE__TIMEOUT_S="1")
    async with client.busy_natively():
        job = await client.run(text())
        assert_ended_badly(job, "queue_timeout")
        assert job["attempts"] == 0
        assert job["job_id"] not in await client.native_queue()
    await client.assert_takes_jobs()


async def test_many_are_cancelled_at_once_and_only_ones_own(client, keys):
    mine, yours = keys.of(client, "mine"), keys.of(client, "yours")
    running = await mine.admitted(sleep(600))
    await mine.reached(running, "running")
    waiting = [await mine.admitted(sleep(600)) for _ in range(3)]
    other = await yours.admitted(sleep(600))

    async def cancel(who, **which):
        return await who.request("POST", "/guarded/jobs/cancel", which)

    assert (await cancel(mine, job_ids=[waiting[0], waiting[0], other, "absent"])).json == {"cancelled": 1}
    assert (await mine.job(waiting[0]))["error"]["code"] == "cancelled"
    assert (await cancel(mine, owner="yours")).json == {"cancelled": 0}
    assert (await client.job(other))["state"] == "queued"
    assert (await cancel(client, owner="mine")).json == {"cancelled": 3}
    assert {(await mine.job(job_id))["state"] for job_id in (running, *waiting)} == {"cancelled"}
    assert (await cancel(client, owner="yours")).json == {"cancelled": 1}
    for wrong in ({}, {"owner": "mine", "job_ids": []}, {"job_ids": "all"}, {"state": "queued"}):
        assert_refusal(await cancel(client, **wrong), "invalid_request")
