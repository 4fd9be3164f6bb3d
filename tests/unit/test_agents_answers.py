"""What an agent's process believes of a server's answers: nothing that would take its key or its files elsewhere."""

import asyncio
import copy
import json

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcp import Client

from comfyui_guarded.agents.api import AWAY, Api, Reach, Refused, open_session, read_answer
from comfyui_guarded.agents.calls import name_result
from comfyui_guarded.agents.server import make_server


@pytest.mark.parametrize("path", [":9/any", ".evil.example/x", "@evil.example/x", ""])
async def test_no_path_takes_the_key_to_another_server(path):
    async with open_session() as http:
        api = Api(http, Reach("http://127.0.0.1", {"Authorization": "Bearer gk_secret"}))
        with pytest.raises(Refused) as caught:
            await api.fetch(path, 1000)
        assert (caught.value.code, "not its own" in caught.value.message) == (AWAY, True)


@pytest.mark.parametrize(
    ("job_id", "index", "filename"),
    [
        ("../up", 0, "x.png"),
        ("/etc/own", 0, "x.service"),
        ("a", "../../b", "x.png"),
        ("a\n", 0, "x.png"),
        ("a", 0, "x.png\n"),
        ("", 0, "x.png"),
        ("a", 0, "x.p ng"),
    ],
)
def test_no_answer_chooses_where_a_result_is_saved(job_id, index, filename):
    with pytest.raises(Refused):
        name_result(job_id, {"index": index, "filename": filename})


def test_a_result_is_called_by_its_job():
    job_id = "0b1e7a52-2f5c-4a75-9d1c-111111111111"
    assert name_result(job_id, {"index": 2, "filename": "../b/ä.PNG"}) == f"{job_id}-2.PNG"
    assert name_result(job_id, {"index": 0, "filename": "latent"}) == f"{job_id}-0"


def test_half_a_sign_is_no_end_of_the_conversation():
    told = {"error": "cannot open b\udc80d.png", "cat \ud83d": ["\U0001f600", 1, None, "ё"]}
    answer = read_answer(json.dumps(told).encode())
    assert answer == {"error": "cannot open b\N{REPLACEMENT CHARACTER}d.png",
                      "cat \N{REPLACEMENT CHARACTER}": ["\U0001f600", 1, None, "ё"]}  # fmt: skip
    json.dumps(answer, ensure_ascii=False).encode()
    assert read_answer(b"[" * 100_000) is None
    assert read_answer(b"<html>") is None


async def test_a_deep_answer_is_none_of_ours():
    async def answer(_request):
        return web.Response(body=b'{"a":' * 50_000)

    app = web.Application()
    app.router.add_get("/guarded/workflows", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with open_session() as http:
            with pytest.raises(Refused) as caught:
                await Api(http, Reach(f"http://127.0.0.1:{port}")).list_templates()
        assert caught.value.code == AWAY
    finally:
        await runner.cleanup()


JOB = {
    "job_id": "j-1", "state": "succeeded", "template": None, "parameters": None, "position": None, "eta_s": None,
    "progress": None, "error": None, "refund": False, "user": None, "idempotency_key": None, "created_at_ms": 1,
    "settled_at_ms": 2, "artifacts": [
        {"index": 0, "kind": "image", "filename": "a.png", "bytes": 9, "width": 1, "height": 1, "duration_s": None,
         "url": "/guarded/jobs/j-1/artifacts/0"}
    ],
}  # fmt: skip
RUNS = {**JOB, "state": "running", "settled_at_ms": None, "artifacts": [],
        "progress": {"node_id": "1", "node_title": "x", "percent": 5}}  # fmt: skip
FAILED = {**JOB, "state": "failed", "artifacts": [], "refund": True,
          "error": {"code": "generation_failed", "message": "x", "retryable": False}}  # fmt: skip
ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([{}])


def list_places(value, place=()):
    if isinstance(value, dict):
        for name, item in value.items():
            yield (*place, name)
            yield from list_places(item, (*place, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from list_places(item, (*place, number))


BROKEN = st.sampled_from([JOB, RUNS, FAILED]).flatmap(
    lambda job: st.tuples(st.just(job), st.sampled_from(list(list_places(job))), st.booleans(), ODD)
)


async def test_an_accepted_job_is_named_however_odd_the_answers_after_it(tmp_path):
    answers = {}

    async def say(request):
        return web.json_response(answers[request.method])

    async def list_templates(_request):
        return web.json_response({"workflows": []})

    app = web.Application()
    app.router.add_get("/guarded/workflows", list_templates)
    app.router.add_route("*", "/guarded/{rest:.*}", say)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reach = Reach(f"http://127.0.0.1:{runner.addresses[0][1]}")
    loop = asyncio.get_running_loop()
    try:
        async with Client(make_server(lambda _request: reach, save=tmp_path)) as agent:

            @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
            @example((JOB, ("artifacts", 0, "bytes"), False, "x"), "run_workflow")
            @example((JOB, ("settled_at_ms",), True, None), "run_workflow")
            @given(BROKEN, st.sampled_from(["run_workflow", "follow_job", "cancel_job"]))
            def search(broken, tool):
                whole, place, leaves_out, odd = broken
                job = copy.deepcopy(whole)
                *above, last = place
                at = job
                for part in above:
                    at = at[part]
                if leaves_out and isinstance(at, dict):
                    del at[last]
                else:
                    at[last] = odd
                answers.update(GET=job, DELETE=job, POST={"prompt_id": "j-1", "number": 1, "guard": {}})
                given_to = {"prompt": {}, "wait_s": 0} if tool == "run_workflow" else {"job_id": "j-1"}
                if tool == "follow_job":
                    given_to["wait_s"] = 0
                call = agent.call_tool(tool, given_to)
                result = asyncio.run_coroutine_threadsafe(call, loop).result(60)
                told = json.dumps(result.structured_content) + "".join(item.text for item in result.content[:1])
                assert "j-1" in told
                if result.is_error:
                    assert result.structured_content["job_id"] == "j-1"

            await asyncio.to_thread(search)
            answers.update(POST={"number": 1})
            odd = await agent.call_tool("run_workflow", {"prompt": {}, "idempotency_key": "own-key"})
            assert odd.structured_content["error"]["code"] == AWAY
            assert "own-key" in odd.content[0].text
    finally:
        await runner.cleanup()
