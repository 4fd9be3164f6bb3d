"""A bot that asks twice must not pay twice."""

import asyncio
import contextlib
import json
import uuid

import aiohttp
import pytest
from contract.client import Client, assert_refusal, assert_succeeded, connected, picture, sleep, text


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


async def post(client: Client, body: dict, headers: dict[str, str]):
    return await client.request("POST", "/guarded/prompt", body, headers=headers)


async def test_the_same_key_and_body_is_the_same_job(client):
    headers, body = key(), {"prompt": picture()}
    first = await post(client, body, headers)
    assert "Idempotency-Replayed" not in first.headers
    job = await client.settled(first.json["prompt_id"])
    again = await post(client, body, headers)
    assert again.status == 200
    assert again.headers["Idempotency-Replayed"] == "true"
    assert {name: again.json[name] for name in ("prompt_id", "number")} == {
        name: first.json[name] for name in ("prompt_id", "number")
    }
    assert again.json["guard"]["state"] == "succeeded"
    assert await client.job(job["job_id"]) == job


async def test_a_replay_is_answered_while_the_job_waits_and_can_wait_for_it(client):
    headers, body = key(), {"prompt": text()}
    async with client.busy():
        first = await post(client, body, headers)
        again = await post(client, body, headers)
        assert (again.json["prompt_id"], again.json["guard"]["position"]) == (first.json["prompt_id"], 1)
    answer = await client.request("POST", "/guarded/prompt?wait=60", body, headers=headers)
    assert_succeeded(answer.json["guard"]["job"])


async def test_the_same_key_with_another_body_is_a_conflict(client):
    headers = key()
    first = await post(client, {"prompt": text("one")}, headers)
    refused = await post(client, {"prompt": text("two")}, headers)
    body = assert_refusal(refused, "conflict", 409)
    assert body["error"]["extra_info"]["job_id"] == first.json["prompt_id"]
    # There is a job, and it delivers: nothing goes back for it.
    assert (body["guard"]["refund"], body["guard"]["job_id"]) == (False, first.json["prompt_id"])
    assert_succeeded(await client.settled(first.json["prompt_id"]))


async def test_two_in_flight_at_once_make_one_job(client):
    newest = (await client.run(text()))["job_id"]
    headers, body = key(), {"prompt": text()}
    answers = await asyncio.gather(*[post(client, body, headers) for _ in range(8)])
    assert [answer.status for answer in answers] == [200] * 8
    assert len({answer.json["prompt_id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    await client.settled(answers[0].json["prompt_id"])
    assert [job["job_id"] for job in await client.jobs("limit=2")] == [answers[0].json["prompt_id"], newest]


async def test_a_refused_request_does_not_use_the_key_up(client):
    headers = key()
    assert_refusal(await post(client, {"prompt": {}}, headers), "invalid_workflow", 400)
    assert (await client.request("POST", "/guarded/prompt?wait=60", {"prompt": text()}, headers=headers)).status == 200


@pytest.mark.parametrize("value", ["", " ", "a b", "x" * 256, "ключ"])
async def test_a_key_that_is_no_key_is_refused(client, value):
    refused = await post(client, {"prompt": text()}, {"Idempotency-Key": value})
    assert_refusal(refused, "invalid_request", 400)


async def test_the_same_prompt_id_without_a_key_is_a_conflict(client):
    prompt_id = str(uuid.uuid4())
    await client.run(text(), prompt_id=prompt_id)
    body = assert_refusal(await client.submit(text(), prompt_id=prompt_id), "conflict", 409)
    assert body["error"]["extra_info"]["job_id"] == prompt_id


async def test_keys_survive_a_restart(sandbox):
    host = sandbox()
    headers, body = key(), {"prompt": text()}
    async with connected(host) as client:
        first = (await post(client, body, headers)).json
        job = await client.settled(first["prompt_id"])
    host.stop()
    host.start()
    async with connected(host) as client:
        again = await post(client, body, headers)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.json["prompt_id"] == first["prompt_id"]
        assert await client.job(job["job_id"]) == job
        assert_refusal(await post(client, {**body, "x": json.dumps(1)}, headers), "conflict", 409)


async def test_keys_survive_a_sigkill_right_after_the_answer(sandbox):
    """Also for the repetition that was under way when the server died."""
    host = sandbox()
    headers = [key() for _ in range(12)]
    bodies = [{"prompt": sleep(0.05)} for _ in headers]
    first: dict[int, str] = {}

    async def submitted(client: Client, number: int) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            answer = await post(client, bodies[number], headers[number])
            assert answer.status == 200
            assert first.setdefault(number, answer.json["prompt_id"]) == answer.json["prompt_id"]

    async with connected(host) as client:
        await asyncio.gather(*(submitted(client, number) for number in range(6)))
        dying = asyncio.gather(*(submitted(client, number) for number in range(12)))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(host.kill)
        await dying
    await asyncio.to_thread(host.start)
    async with connected(host) as client:
        await asyncio.gather(*(submitted(client, number) for number in range(12)))
        assert len(set(first.values())) == 12
        assert {job["job_id"] for job in await client.jobs()} == set(first.values())
        for job_id in first.values():
            await client.settled(job_id)


async def test_a_key_counts_for_its_time(sandbox_client):
    client = await sandbox_client(GUARDED_QUEUE__IDEMPOTENCY_MAX_AGE_S="1.5")
    headers, body = key(), {"prompt": text()}
    first = await post(client, body, headers)
    assert (await post(client, body, headers)).json["prompt_id"] == first.json["prompt_id"]
    await asyncio.sleep(1.6)
    later = await post(client, {"prompt": text("other")}, headers)
    assert later.status == 200
    assert later.json["prompt_id"] != first.json["prompt_id"]
    assert "Idempotency-Replayed" not in later.headers
    await client.settled(later.json["prompt_id"])
