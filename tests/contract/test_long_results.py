"""A short prompt that makes a long text: neither its job nor any list of such jobs may weigh on the server."""

import asyncio

from contract.client import assert_ended_badly, node, raises
from contract.conftest import hosts, is_real

#: 1 KB of text, doubled so many times, is what a key's texts may have at most (`policy.max_text_chars`): 1 MiB.
DOUBLINGS = 10
#: An operator's may have more: 8 MiB.
MORE_DOUBLINGS = 13
JOBS = 6
MIB = 2**20


def doubled(times, seed):
    prompt = {"0": node("StringConcatenate", string_a=f"{seed:x}" * 1024, string_b="", delimiter="")}
    for number in range(times):
        prompt[str(number + 1)] = node(
            "StringConcatenate", string_a=[str(number), 0], string_b=[str(number), 0], delimiter=""
        )
    return {**prompt, "show": node("PreviewAny", source=[str(times), 0])}


@hosts(is_real)  # the sandbox has no node that puts texts together
async def test_a_short_prompt_that_makes_a_long_text_leaves_small_lists(client, keys):
    mine = keys.of(client, "mine")
    ids = [await mine.admitted(doubled(DOUBLINGS, seed)) for seed in range(1, JOBS + 1)]
    for job_id in ids:
        job = await mine.settled(job_id)
        assert job["state"] == "succeeded", job["error"]
        (text,) = job["outputs"]["show"]["text"]
        assert text == f"{ids.index(job_id) + 1:x}" * MIB
    answers = await asyncio.gather(
        *(mine.request("GET", path) for path in ("/guarded/jobs?limit=500", "/guarded/history", "/guarded/api/jobs"))
    )
    for answer in answers:
        assert answer.status == 200
        assert len(answer.content) < MIB
    listed = answers[0].json["jobs"]
    assert {job["job_id"] for job in listed} >= set(ids)
    assert all(job["shortened"] for job in listed if job["job_id"] in ids)


@hosts(is_real)
async def test_what_is_cut_of_a_long_text_is_said_at_its_end(client):
    job = await client.settled(await client.admitted(doubled(MORE_DOUBLINGS, 1)))
    assert job["state"] == "succeeded", job["error"]
    (text,) = job["outputs"]["show"]["text"]
    assert MIB <= len(text) <= MIB + 100
    assert text.endswith(f"({1024 * 2**MORE_DOUBLINGS} characters)")


async def test_of_a_long_exception_the_beginning_is_told(client):
    async with client.socket() as socket:
        job = await client.run(raises("value_error", "word " * 200_000), client_id=socket.client_id)
        assert_ended_badly(job, "generation_failed")
        events = await socket.until_end_of(job["job_id"])
    error = next(event["data"] for event in events if event["type"] == "execution_error")
    assert error["exception_message"].startswith("word word")
    for told in (error["exception_message"], str(error["traceback"]), str(job)):
        assert len(told) < 20_000
