"""GET /guarded/jobs as a bot's ledger asks: its filters over HTTP, and who a job is for."""

import asyncio
import uuid

import pytest
from contract.client import assert_refusal, picture, text

from comfyui_guarded.guard.callers.places import TOLD_AGAIN_S


async def find(client, query):
    return [job["job_id"] for job in (await client.get(f"/guarded/jobs?{query}"))["jobs"]]


async def test_a_ledger_finds_its_jobs_by_what_it_knows_of_them(client):
    user, key, began_ms = uuid.uuid4().hex, uuid.uuid4().hex, (await client.run(text()))["settled_at_ms"]
    bought = {"user": user, "metadata": {"order": 7, "name": user, "paid": True}}
    body = {"prompt": picture(), "guard": bought}
    answer = await client.request("POST", "/guarded/prompt", body, headers={"Idempotency-Key": key})
    job = await client.settled(answer.json["prompt_id"])
    assert (job["user"], job["idempotency_key"], job["metadata"]) == (user, key, bought["metadata"])
    other = await client.run(text(), guard={"user": "somebody"})
    for query in (
        f"user={user}",
        f"idempotency_key={key}",
        f"metadata.name={user}&metadata.order=7&metadata.paid=true",
        f"user={user}&state=succeeded&created_after_ms={began_ms}",
        f"user={user}&created_before_ms={2**52}",
        f"metadata.name={user}&settled_after_ms={job['settled_at_ms']}",
    ):
        assert await find(client, query) == [job["job_id"]], query
    for query in (
        f"user={user}&state=failed",
        f"idempotency_key={user}",
        f"metadata.name={user}&metadata.order=8",
        f"user={user}&template=sdxl",
        f"user={user}&created_after_ms={other['settled_at_ms'] + 1}",
        f"user={user}&created_before_ms={began_ms}",
    ):
        assert await find(client, query) == [], query
    assert (await find(client, f"settled_after_ms={began_ms}"))[:2] == [other["job_id"], job["job_id"]]


@pytest.mark.parametrize(
    "query",
    [
        *("settled_after=5", "status=failed", "metadata=7", "metadata.=7", "order=7", "offset=5", "Limit=5"),
        *("settled_after_ms=yesterday", "created_after_ms=1.5", "user=a&user=b", "limit=5&limit=6"),
        "metadata.a=1&metadata.a=2",
    ],
)
async def test_a_filter_that_is_not_one_is_refused_by_name(client, query):
    body = assert_refusal(await client.request("GET", f"/guarded/jobs?{query}"), "invalid_request", 400)
    assert body["error"]["extra_info"]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("user", ["", "x" * 65, "a\nb", 5, ["a"]])
async def test_a_user_is_a_short_text(client, user):
    answer = await client.submit(text(), guard={"user": user})
    assert "guard.user" in assert_refusal(answer, "invalid_request", 400)["error"]["message"]


async def test_users_take_turns(client):
    async with client.busy():
        first = [await client.submit(picture(), guard={"user": "a"}) for _ in range(3)]
        second = [await client.submit(picture(), guard={"user": "b"}) for _ in range(2)]
        ids = [answer.json["prompt_id"] for answer in first + second]
        assert [answer.json["guard"]["position"] for answer in first + second] == [1, 2, 3, 2, 4]
        await asyncio.sleep(2 * TOLD_AGAIN_S)
        assert [(await client.job(job_id))["position"] for job_id in ids] == [1, 3, 5, 2, 4]
    jobs = [await client.settled(job_id) for job_id in ids]
    began = sorted(jobs, key=lambda job: job["started_at_ms"])
    assert [job["user"] for job in began] == ["a", "b", "a", "b", "a"]
