"""/guarded/keys: an operator makes, limits and revokes keys while the server runs."""

import asyncio
from dataclasses import fields

import aiohttp
import pytest
from contract.client import KeyedClient, assert_refusal, text

from comfyui_guarded.guard.access.manage import AskedLimits, LimitsBody
from comfyui_guarded.guard.client import KeyLimits


def test_every_limit_of_a_key_can_be_set():
    names = [field.name for field in fields(KeyLimits)]
    assert sorted(AskedLimits.model_fields) == sorted(names)
    assert sorted(LimitsBody.__annotations__) == sorted(names)


async def make(client, **asked):
    answer = await client.request("POST", "/guarded/keys", asked)
    assert answer.status == 200, answer
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json, KeyedClient(client, answer.json["secret"])


async def test_a_key_counts_at_once_and_its_secret_is_told_once(client):
    made, bot = await make(client, name="page-bot", limits={"jobs_per_minute": 60, "deny_nodes": ["Load*"]})
    job = await bot.run(text())
    assert job["owner"] == "page-bot"
    assert made["limits"]["deny_nodes"] == ["Load*"]
    assert made["webhook_secret"].startswith("whsec_")
    listed = await client.request("GET", "/guarded/keys")
    assert made["key_id"] in {key["key_id"] for key in listed.json["keys"]}
    for secret in (made["secret"], made["webhook_secret"], "sha256"):
        assert secret.encode() not in listed.content
    stored = (client.base / "user" / "__guarded" / "keys.json").read_text()
    assert made["secret"] not in stored
    assert made["secret"] not in client.host.log.read_text(errors="replace")


async def test_a_limit_counts_at_once_and_an_earlier_one_is_taken_back(client):
    made, bot = await make(client, name="limited-bot", limits={"max_queued": 7})
    path = f"/guarded/keys/{made['key_id']}/limits"
    answer = await client.request("POST", path, {"jobs_per_minute": 1})
    assert (answer.json["limits"]["jobs_per_minute"], answer.json["limits"]["max_queued"]) == (1, None)
    await bot.run(text())
    assert_refusal(await bot.submit(text()), "rate_limited", 429)
    assert (await client.request("POST", path, {"jobs_per_minute": 600})).status == 200
    answer = await bot.submit(text())  # there is one every tenth of a second now, of which none may be there yet
    assert answer.status == 200 or assert_refusal(answer)["error"]["extra_info"]["limit"] == 600, answer


async def test_a_revoked_key_opens_nothing_and_its_stream_ends(client):
    made, bot = await make(client, name="gone-bot")
    headers = {"Authorization": f"Bearer {made['secret']}"}
    async with client.session.ws_connect(f"{client.host.url}/guarded/ws", headers=headers) as socket:
        await socket.receive()
        answer = await client.request("DELETE", f"/guarded/keys/{made['key_id']}")
        assert answer.json["revoked_at_ms"] > 0
        assert answer.json["active"] is False
        assert_refusal(await bot.request("GET", "/guarded/jobs"), "unauthorized", 401)
        while (await asyncio.wait_for(socket.receive(), 60)).type not in (
            aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING
        ):  # fmt: skip
            pass
    again = await client.request("DELETE", f"/guarded/keys/{made['key_id']}")
    assert again.json["revoked_at_ms"] == answer.json["revoked_at_ms"]


async def test_a_bot_makes_no_keys(client, keys):
    mine = keys.of(client, "mine")
    assert_refusal(await mine.request("POST", "/guarded/keys", {"name": "x", "scope": "operate"}), "forbidden", 403)
    assert_refusal(await mine.request("GET", "/guarded/keys"), "forbidden", 403)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"name": "local"},
        {"name": "../x"},
        {"name": "mine"},
        {"name": "a", "scope": "root"},
        {"name": "a", "expires_in_s": -1},
        {"name": "a", "webhook": "http://10.0.0.1/"},
        {"name": "a", "limits": {"max_queued": 0}},
        {"name": "a", "limits": {"profile": "none"}},
        {"name": "a", "limits": {"unknown": 1}},
        {"name": "a", "sha256": "x"},
    ],
)
async def test_what_no_key_can_be_is_refused(client, keys, asked):
    before = await client.get("/guarded/keys")
    assert_refusal(await client.request("POST", "/guarded/keys", asked), "invalid_request", 400)
    assert await client.get("/guarded/keys") == before


async def test_a_key_that_is_not_there_is_not_found(client):
    assert_refusal(await client.request("DELETE", "/guarded/keys/00000000"), "not_found", 404)
    assert_refusal(await client.request("POST", "/guarded/keys/mine/limits", {}), "not_found", 404)
