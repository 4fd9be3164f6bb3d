"""What an agent's process believes of a server's answers: nothing that would take its key or its files elsewhere."""

import json

import pytest
from aiohttp import web

from comfyui_guarded.agents.api import AWAY, Api, Reach, Refused, open_session, read_answer
from comfyui_guarded.agents.calls import name_result


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
