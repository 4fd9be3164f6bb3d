"""Answers quote the beginning of what came, and sockets keep hardly anything of it."""

import asyncio
import contextlib
import json
import re
from typing import Any

import aiohttp
import pytest
from bounds.judges import MIB, Patient, read_peak
from bounds.shapes import JSON, node, repeat, text
from contract.conftest import hosts

LONG = "Q" * 5000
#: Wherever a text of the sender's may come back: in our words, and in ComfyUI's.
QUOTING = {
    "a choice": {"1": node("LoadImage", image=LONG), "2": node("SaveImage", images=["1", 0], filename_prefix="q")},
    "a number": {"1": node("FaultText", text="x", seed=LONG)},
    "a list": {"1": node("FaultText", text="x", seed=[LONG, LONG, LONG])},
    "an object": {"1": node("FaultText", text="x", seed={LONG: {LONG: LONG}})},
    "a class": {"1": node(LONG)},
    "a node id": {LONG: node("FaultText", text="x", seed="x")},
    "a link": {"1": node("FaultText", text=[LONG, 0], seed=0)},
    "an input": {"1": node("FaultText", text="x", seed=0, **{LONG: [LONG, 0]})},
    "a place": {"1": node("SaveImage", images=["2", 0], filename_prefix=f"../{LONG}"),
                "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0)},
    "an input that names a place": {"1": node("SaveImage", images=["2", 0], **{f"{LONG}_path": "../x"}),
                                    "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0)},
    "no node": {"1": LONG},
}  # fmt: skip
OTHERS = {
    "an unknown field": {"prompt": text(), "guard": {LONG: 1}},
    "a wrong field": {"prompt": text(), "guard": {"priority": LONG}},
    "a webhook": {"prompt": text(), "guard": {"webhook": {"url": f"https://{LONG}"}}},
    "a key that stands twice": '{"prompt": {}, "@": 1, "@": 1}'.replace("@", LONG),
    "a number without end": '{"prompt": {"1": {"class_type": "FaultText", "inputs": {"seed": @}}}}'.replace(
        "@", "1" * 5000
    ),
    "an id": {"prompt": text(), "prompt_id": LONG},
}


@pytest.mark.parametrize("name", QUOTING)
async def test_an_answer_quotes_two_hundred_characters_at_most(name: str, ours: Patient, key: dict[str, str]):
    await judge({"prompt": QUOTING[name]}, ours, key)


@hosts(lambda kind: not kind.real, "host_kind")
@pytest.mark.parametrize("name", OTHERS)
async def test_our_own_answers_quote_no_more(name: str, ours: Patient, key: dict[str, str]):
    await judge(OTHERS[name], ours, key)


async def judge(sent: Any, ours: Patient, key: dict[str, str]) -> None:
    body = sent if isinstance(sent, str) else json.dumps(sent)
    status, answer = await ours.send("/guarded/prompt", body.encode(), {**JSON, **key})
    assert 400 <= status < 500, answer[:2000]
    longest = max((len(run) for run in re.findall(rb"Q+|1+", answer)), default=0)
    assert longest <= 200, answer[:2000]
    assert len(answer) < 16_384, "a text is quoted again and again"


async def test_feature_flags_are_not_kept_at_length(ours: Patient, key: dict[str, str], session: aiohttp.ClientSession):
    """Small lists take eighty times the memory of their text, for as long as the socket is open."""
    sockets = 20
    words = b'{"type":"feature_flags","data":{"a":[' + repeat(b"[]", 250_000) + b"]}}"
    url = f"{ours.host.url}/guarded/ws"
    before = read_peak(ours.host.pid, afresh=True)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(sockets):
            ws = await stack.enter_async_context(session.ws_connect(f"{url}?clientId=w{number}", headers=key))
            with contextlib.suppress(ConnectionError):
                await ws.send_str(words.decode())
        await asyncio.sleep(1)
        assert read_peak(ours.host.pid) - before < 4 * sockets * len(words) + 16 * MIB


async def test_feature_flags_of_a_real_client_are_answered(
    ours: Patient, key: dict[str, str], session: aiohttp.ClientSession
):
    flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True, "supports_manager_v4_ui": True}}
    async with session.ws_connect(f"{ours.host.url}/guarded/ws?clientId=flags", headers=key) as ws:
        await ws.send_json(flags)
        told = {(await ws.receive_json(timeout=60))["type"] for _ in range(2)}
    assert told == {"status", "feature_flags"}
