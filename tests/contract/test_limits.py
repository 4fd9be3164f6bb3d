"""What a client hears of its limits."""

import asyncio
import os
import time

from contract.client import PATIENCE_S, KeyedClient, assert_refusal, make_key, node, text
from contract.conftest import PHOTO
from contract.test_files import upload


async def test_every_answer_says_what_is_left_and_a_refusal_when_to_come_back(sandbox_client):
    client = await sandbox_client(GUARDED_LIMITS__JOBS_PER_MINUTE="2")
    left = []
    for prompt in (text(), {"1": node("NoSuchNode")}, text()):
        answer = await client.submit(prompt, wait_s=60)
        assert answer.headers["RateLimit-Policy"] == '"jobs";q=2;w=60'
        left.append(answer.headers["RateLimit"].split(";")[1])
    assert left == ["r=1", "r=1", "r=0"], "what was refused cost nothing"
    refused = await client.submit(text())
    body = assert_refusal(refused, "rate_limited", 429)
    assert refused.headers["RateLimit"].startswith('"jobs";r=0;t=')
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert body["guard"]["retry_after_s"] <= 30
    assert "RateLimit" not in (await client.request("GET", "/guarded/jobs")).headers


async def test_without_a_limit_nothing_is_said_of_one(client):
    answer = await client.submit(text(), wait_s=60)
    assert answer.status == 200
    assert "RateLimit" not in answer.headers


async def test_what_the_policy_forbids_is_refused_over_http(sandbox_client):
    client = await sandbox_client(GUARDED_POLICY__PROFILE="a5000", GUARDED_POLICY__DENY_NODES="FaultHang*,FaultRaise")
    prompt = {
        "1": node("EmptyImage", width=["3", 0], height=8192, batch_size=1, color=0),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
        "3": node("PrimitiveInt", value="8192"),
    }
    body = assert_refusal(await client.submit(prompt), "policy_violation", 422)
    info = body["error"]["extra_info"]
    assert (info["node_id"], info["input"], info["value"], info["limit"]) == ("1", "width", 8192 * 8192, 4096 * 4096)
    body = assert_refusal(await client.submit({"1": node("FaultHangPython", seconds=1, seed=0)}), "policy_violation")
    assert body["error"]["extra_info"]["limit"] == "FaultHang*"


async def test_the_files_of_a_key_stay_within_its_quota_and_its_uploads_go_on(sandbox_client):
    quota, size = 400_000, 30_000
    client = await sandbox_client(GUARDED_LIMITS__MAX_FILE_BYTES=str(quota), GUARDED_JANITOR__SETTLE_S="0")
    base = client.host.base
    mine = KeyedClient(client, make_key(base, "bot"))
    ends_s = time.monotonic() + PATIENCE_S
    while (await mine.request("GET", "/guarded/jobs")).status == 401:
        assert time.monotonic() < ends_s, "the key is noticed"
        await asyncio.sleep(0.1)
    refused = 0
    for number in range(25):
        while (answer := await upload(mine, os.urandom(size), f"{number}.png")).status != 200:
            body = assert_refusal(answer, "quota_exceeded", 429)
            assert body["error"]["extra_info"]["of"] == "file_bytes"
            refused += 1
            assert time.monotonic() < ends_s, "there is room again"
            await asyncio.sleep(0.2)
        files = [path for path in (base / "input" / "guarded-uploads").rglob("*.png") if "bot" in path.parent.name]
        assert sum(path.stat().st_size for path in files) <= quota
    assert refused
    assert {f"{number}.png" for number in range(20, 25)} <= {path.name for path in files}, "the oldest go first"
    answer = await mine.submit(text(), wait_s=60)
    assert answer.status == 200, answer


async def test_the_size_of_a_loaded_photo_counts(sandbox_client):
    client = await sandbox_client(GUARDED_POLICY__MAX_PIXELS=str(256 * 256))
    loaded = {"1": node("LoadImage", image=PHOTO), "9": node("SaveImage", images=["2", 0], filename_prefix="x")}
    edges = {"left": 600, "top": 0, "right": 0, "bottom": 0, "feathering": 0}
    padded = node("ImagePadForOutpaint", image=["1", 0], **edges)
    body = assert_refusal(await client.submit({**loaded, "2": padded}), "policy_violation", 422)
    info = body["error"]["extra_info"]
    assert (info["node_id"], info["input"], info["value"]) == ("2", "left", 728 * 128)
    assert (await client.submit({**loaded, "2": node("ImageInvert", image=["1", 0])})).status == 200
