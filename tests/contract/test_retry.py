"""POST /guarded/jobs/{id}/retry: a new job from what an ended one was submitted with."""

import asyncio

from contract.client import (
    KeyedClient,
    assert_refusal,
    assert_succeeded,
    make_key,
    photo_copy,
    picture,
    raises,
    text,
)
from contract.test_form import form, fresh, part, prompt


def retry(client, job_id):
    return client.request("POST", f"/guarded/jobs/{job_id}/retry")


async def test_a_retry_is_a_job_of_its_own_with_everything_that_the_first_one_had(client, keys):
    mine = keys.of(client, "mine")
    guard = {"metadata": {"order": 4711}, "user": "7", "priority": 3, "timeout_s": 77.0, "locale": "en"}
    first = await mine.run(raises("value_error"), guard=guard, headers={"Idempotency-Key": "order-4711"})
    answer = await retry(mine, first["job_id"])
    assert answer.status == 200, answer
    job = await mine.settled(answer.json["job_id"])
    assert job["job_id"] != first["job_id"]
    assert job["retry_of"] == first["job_id"]
    assert first["retry_of"] is None
    same = ("owner", "metadata", "user", "priority", "timeout_s", "state")
    assert [job[name] for name in same] == [first[name] for name in same]
    assert job["error"]["code"] == "generation_failed"
    assert job["idempotency_key"] is None
    prompts = [(await mine.get(f"/guarded/jobs/{one['job_id']}/prompt"))["prompt"] for one in (first, job)]
    assert prompts[0] == prompts[1]
    assert (await mine.get(f"/guarded/jobs/{first['job_id']}/way"))["retried_as"] == job["job_id"]


async def test_a_second_click_makes_no_second_job_and_a_retry_can_be_retried(client):
    first = await client.run(raises("value_error"))
    answers = await asyncio.gather(*(retry(client, first["job_id"]) for _ in range(8)))
    (job_id,) = {answer.json["job_id"] for answer in answers}
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    await client.settled(job_id)
    again = await retry(client, first["job_id"])
    assert (again.json["job_id"], again.headers["Idempotency-Replayed"]) == (job_id, "true")
    other = (await retry(client, job_id)).json
    assert other["job_id"] not in (job_id, first["job_id"])
    assert other["retry_of"] == job_id
    await client.settled(other["job_id"])


async def test_whoever_does_not_own_the_job_cannot_retry_it_and_one_that_runs_is_no_case(client, keys):
    first = await keys.of(client, "mine").run(raises("value_error"))
    assert_refusal(await retry(keys.of(client, "yours"), first["job_id"]), "not_found", 404)
    async with client.busy() as job_id:
        refusal = assert_refusal(await retry(client, job_id), "conflict", 409)
        assert refusal["guard"]["job_id"] == job_id


async def test_an_operators_retry_is_its_owners_job_over_its_owners_files(client, keys):
    mine = keys.of(client, "mine")
    raw, headers = form(prompt(photo_copy("photo")), part("photo", fresh(), "me.png"))
    answer = await mine.request("POST", "/guarded/prompt?wait=60", raw=raw, headers=headers)
    first = answer.json["guard"]["job"]
    assert_succeeded(first)
    job = await mine.settled((await retry(client, first["job_id"])).json["job_id"])
    assert_succeeded(job)
    assert (job["owner"], job["retry_of"]) == ("mine", first["job_id"])
    file = await mine.request("GET", job["artifacts"][0]["url"])
    assert file.status == 200


async def test_a_templates_job_is_repeated_with_its_parameters_also_for_a_key_that_sends_no_graphs(client, keys):
    bot = keys.of(client, "templates")
    body = {"parameters": {"photo": "photo.png"}}
    answer = await bot.request("POST", "/guarded/workflows/photo_check?wait=60", body)
    assert answer.status == 200, answer
    first = answer.json["guard"]["job"]
    job = await bot.settled((await retry(bot, first["job_id"])).json["job_id"])
    assert [job[name] for name in ("template", "parameters", "state")] == [
        first[name] for name in ("template", "parameters", "state")
    ]


async def test_what_is_no_longer_kept_is_gone_and_says_since_when(sandbox_client):
    client = await sandbox_client(GUARDED_STORE__BODIES_MAX_AGE_S="0.001")
    job = await client.run(picture())
    path = f"/guarded/jobs/{job['job_id']}/prompt"
    answer = await client.polled(lambda: client.request("GET", path), lambda answer: answer.status != 200)
    gone_at_ms = assert_refusal(answer, "prompt_gone", 410)["error"]["extra_info"]["gone_at_ms"]
    assert gone_at_ms >= job["settled_at_ms"]
    refusal = assert_refusal(await retry(client, job["job_id"]), "prompt_gone", 410)
    assert refusal["error"]["extra_info"]["gone_at_ms"] == gone_at_ms


async def test_the_owner_pays_for_its_own_retries_and_nobody_for_an_operators(sandbox_client):
    client = await sandbox_client(GUARDED_LIMITS__JOBS_PER_MINUTE="2")
    key = make_key(client.base, "bot")

    async def is_known():
        answer = await client.request("GET", "/guarded/jobs", headers={"Authorization": f"Bearer {key}"})
        return answer.status == 200

    await client.polled(is_known, bool)
    bot = KeyedClient(client, key)
    first, second = await bot.run(text()), await bot.run(text("two"))
    assert_refusal(await retry(bot, second["job_id"]), "rate_limited", 429)
    job = (await retry(client, first["job_id"])).json
    assert_succeeded(await client.settled(job["job_id"]))
    assert job["owner"] == "bot"
    assert (await retry(bot, first["job_id"])).json["job_id"] == job["job_id"]
