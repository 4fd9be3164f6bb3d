"""The log of a server: a line for each event of a job, and nothing of what it was about."""

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


async def test_each_event_of_a_job_has_one_line_at_its_level(host, client: Client):
    good = await client.run(sleep(0.0))
    bad = await client.run(raises("value_error", SECRET))
    async with client.busy() as busy:
        waiting = await client.admitted(sleep(0.0))
        await client.cancel(waiting)
    await client.settled(busy)
    late = await client.run(sleep(60), guard={"timeout_s": 0.3})
    # Whoever waits hears as soon as the verdict is on disk, which may be just before the log has it.
    await client.polled(lambda: asyncio.sleep(0, of(host.log, late["job_id"])), lambda seen: len(seen) == 3)

    def told(job: str) -> list[tuple[str, str]]:
        found = []
        for line in of(host.log, job):
            text = line.partition("[guarded] ")[2].replace("\x1b[0m", "")
            found.append((next((level for level in ("ERROR", "WARNING", "INFO") if level in line), ""), text))
        return found

    def heard(job: str) -> list[str]:
        return [text for _level, text in told(job)]

    # Whether it had to wait depends on how fast the worker let go of what other tests ran.
    admitted, *others = heard(good["job_id"])
    assert admitted.partition(";")[0] == "job J of local admitted"
    assert others == ["job J started", "job J succeeded in N s with 1 files"]
    assert heard(bad["job_id"])[2] == "job J failed: generation_failed: node 1 (FaultRaise) raised ValueError"
    assert heard(waiting) == [
        "job J of local admitted; it waits, 1 of 1 slots are taken, position 1",
        "job J cancelled",
    ]
    assert heard(late["job_id"])[2] == "job J failed: generation_timeout: The job ran longer than N s."
    if not host.kind.real:  # older versions of ComfyUI write no levels
        levels = [[level for level, _text in told(job)] for job in (good["job_id"], bad["job_id"], waiting)]
        assert levels[0][1:] == ["INFO", "INFO"]
        assert levels[1][1:] == ["INFO", "ERROR"]
        assert levels[2] == ["WARNING", "INFO"]


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
    assert "admitted" in ours
    assert SECRET not in ours
    assert COMFY_KEY not in text
    assert SECRET not in "\n".join(line for line in text.splitlines() if "guarded" in line.lower())


async def test_json_lines_carry_the_job(sandbox_client: Callable[..., Awaitable[Client]]):
    client = await sandbox_client(GUARDED_LOG__FORMAT="json")
    job = await client.run(sleep(0.0))

    def read_entries() -> list[dict[str, str]]:
        return [json.loads(line) for line in client.host.log.read_text().splitlines() if line.startswith("{")]

    # As above, the last line may come just after the verdict.
    await client.polled(
        lambda: asyncio.sleep(0, read_entries()), lambda seen: sum("job_id" in entry for entry in seen) == 3
    )
    entries = read_entries()
    mine = [entry for entry in entries if entry.get("job_id") == job["job_id"]]
    said = [entry["message"].removeprefix(f"job {job['job_id']} ") for entry in mine]
    assert said[:2] == ["of local admitted", "started"]
    assert said[2].startswith("succeeded in")
    assert {entry["level"] for entry in mine} == {"INFO"}
    assert all(set(entry) <= {"time", "level", "logger", "message", "job_id", "exception"} for entry in entries)


async def test_a_name_cannot_forge_a_line(sandbox_client: Callable[..., Awaitable[Client]]):
    client = await sandbox_client()
    forged = "x\n[INFO] [guarded] job 1 succeeded\x1b[31m"
    await client.submit({"1": node("LoadImage", image=f"{forged}.png"), "2": save("1")})
    await client.submit({"1": node(forged), "2": save("1")})
    await client.request("GET", "/guarded/x%0A[INFO]%20[guarded]%20job%201%20succeeded")
    assert not [line for line in client.host.log.read_text().splitlines() if line.startswith("[INFO] [guarded] job 1 ")]
