"""The log of a server: a line for each job, and nothing of what it was about."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from contract.client import Client, connected, node, photo_copy, raises, save, sleep
from contract.conftest import PHOTO

SECRET = "zxqv-private-words"
COMFY_KEY = "comfyui-0123456789abcdef-secret"


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if "[guarded]" in line]


def of(path: Path, job_id: str) -> list[str]:
    """The lines about a job, from its level on, without its id."""
    return [re.sub(r"\d+\.\d+", "N", line).replace(job_id, "J") for line in lines(path) if job_id in line]


def told(path: Path, job_id: str) -> list[tuple[str, str]]:
    """The level and the text of each line about a job."""
    found = []
    for line in of(path, job_id):
        text = line.partition("[guarded] ")[2].replace("\x1b[0m", "")
        text = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", text)
        levels = ("ERROR", "WARNING", "INFO", "DEBUG")
        found.append((next((level for level in levels if level in line), ""), text))
    return found


async def test_a_job_has_one_line_which_says_how_it_ended_at_its_level(host, client: Client):
    good = await client.run(sleep(0.0))
    bad = await client.run(raises("value_error", SECRET))
    async with client.busy() as busy:
        waiting = await client.admitted(sleep(0.0))
        await client.cancel(waiting)
    await client.settled(busy)
    late = await client.run(sleep(60), guard={"timeout_s": 0.3})
    # Whoever waits hears as soon as the verdict is on disk, which may be just before the log has it.
    await client.polled(lambda: asyncio.sleep(0, of(host.log, late["job_id"])), bool)
    (good_line,), (bad_line,), (waiting_line,), (late_line,) = (
        told(host.log, job_id) for job_id in (good["job_id"], bad["job_id"], waiting, late["job_id"])
    )
    assert good_line[1] == "job J of local succeeded with 1 file; waited N s, ran N s"
    raised = "generation_failed: node 1 (FaultRaise) raised ValueError"
    assert bad_line[1] == f"job J of local failed: {raised}; waited N s, ran N s"
    assert waiting_line[1] == "job J of local cancelled; waited N s"
    timeout = "generation_timeout: The job ran longer than N s."
    assert late_line[1] == f"job J of local failed: {timeout}; waited N s, ran N s"
    if not host.kind.real:  # older versions of ComfyUI write no levels
        levels = [line[0] for line in (good_line, bad_line, waiting_line, late_line)]
        assert levels == ["INFO", "WARNING", "INFO", "WARNING"]


async def test_at_debug_a_job_has_a_line_for_each_step(sandbox_client: Callable[..., Awaitable[Client]]):
    client = await sandbox_client(GUARDED_LOG__LEVEL="DEBUG")
    job = await client.run(sleep(0.0))
    log, job_id = client.host.log, job["job_id"]
    await client.polled(lambda: asyncio.sleep(0, of(log, job_id)), lambda seen: len(seen) >= 3)
    steps = [(level, text) for level, text in told(log, job_id) if text.startswith("job J")]
    # An idle worker begins in the commit that admits: it may write its line before the event loop writes its own.
    admitted, started = ("DEBUG", "job J of local admitted, position 1"), ("DEBUG", "job J started")
    ended = ("INFO", "job J of local succeeded with 1 file; waited N s, ran N s")
    assert sorted(steps) == sorted([admitted, started, ended])
    assert steps.index(started) < steps.index(ended)


async def test_nothing_of_a_prompt_and_no_key_reaches_the_log(
    sandbox: Callable[..., object], monkeypatch: pytest.MonkeyPatch
):
    host = sandbox()
    async with connected(host) as client:
        words = {"1": node("FaultText", text=SECRET, seed=0)}
        await client.run(words, extra_data={"api_key_comfy_org": COMFY_KEY}, guard={"metadata": {"note": SECRET}})
        await client.run(photo_copy(PHOTO), headers={"Idempotency-Key": SECRET})
        for kind in ("value_error", "system_exit"):
            await client.run(raises(kind, SECRET))
        await client.submit({"1": node("NoSuchNode", text=SECRET)})
        await client.submit({"1": node("FaultText", text=SECRET)})
        await client.submit({"1": node("LoadImage", image=f"{SECRET}.png"), "2": save("1")})
        await client.request("POST", "/guarded/prompt", raw=f"{{{SECRET}".encode())
        await client.request("GET", f"/guarded/nowhere?token={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
    text = host.log.read_text(errors="replace")
    ours = "\n".join(lines(host.log))
    assert "succeeded" in ours
    assert SECRET not in ours
    assert COMFY_KEY not in text
    assert SECRET not in "\n".join(line for line in text.splitlines() if "guarded" in line.lower())


async def test_json_lines_carry_the_job(sandbox_client: Callable[..., Awaitable[Client]]):
    client = await sandbox_client(GUARDED_LOG__FORMAT="json")
    job = await client.run(sleep(0.0))

    def read_entries() -> list[dict[str, str]]:
        return [json.loads(line) for line in client.host.log.read_text().splitlines() if line.startswith("{")]

    # As above, the last line may come just after the verdict.
    await client.polled(lambda: asyncio.sleep(0, read_entries()), lambda seen: any("job_id" in entry for entry in seen))
    entries = read_entries()
    (mine,) = (entry for entry in entries if entry.get("job_id") == job["job_id"])
    assert mine["message"].startswith(f"job {job['job_id']} of local succeeded with 1 file; waited ")
    assert mine["level"] == "INFO"
    known = {name: mine[name] for name in ("owner", "template", "state", "code")}
    assert known == {"owner": "local", "template": None, "state": "succeeded", "code": None}
    assert 0 <= mine["waited_s"] < 600
    assert 0 <= mine["ran_s"] < 600
    usual = {"time", "level", "logger", "message", "job_id", "exception"}
    assert all(set(entry) <= usual for entry in entries if entry is not mine)


async def test_a_name_cannot_forge_a_line(sandbox_client: Callable[..., Awaitable[Client]]):
    client = await sandbox_client()
    forged = "x\n[INFO] [guarded] job 1 succeeded\x1b[31m"
    await client.submit({"1": node("LoadImage", image=f"{forged}.png"), "2": save("1")})
    await client.submit({"1": node(forged), "2": save("1")})
    await client.request("GET", "/guarded/x%0A[INFO]%20[guarded]%20job%201%20succeeded")
    assert not [line for line in client.host.log.read_text().splitlines() if line.startswith("[INFO] [guarded] job 1 ")]
