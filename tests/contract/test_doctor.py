"""The doctor of a running server, over HTTP and from the command line, and after the server has ended."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from contract.client import Client, connected

REPO = Path(__file__).parents[2]


def doctor(user: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(REPO), "doctor", "--user", str(user), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    return done.returncode, done.stdout + done.stderr


async def test_a_running_server_tells_what_it_is_and_what_it_lacks(client: Client):
    lines = (await client.get("/guarded/doctor"))["lines"]
    assert all(set(line) == {"level", "check", "message", "mend"} for line in lines)
    assert all(line["level"] in ("ok", "warning", "error") for line in lines)
    assert all(line["mend"] for line in lines if line["level"] != "ok"), lines
    said = {line["check"]: line for line in reversed(lines)}
    assert client.host.kind.name.split()[-1] in said["host"]["message"] or not client.host.kind.real
    assert said["network"]["message"] == "The server listens on this machine only."
    shipped = [
        line for line in lines if line["check"] in ("template sdxl", "template sdxl_face", "template liveportrait")
    ]
    assert [line["level"] for line in shipped] == ["ok"] * 3, "nobody has asked for them"
    assert not [line for line in lines if "This check failed" in line["message"]]


async def test_the_command_says_the_same_while_the_server_runs_and_as_much_as_can_be_known_after(
    sandbox: Callable[..., object],
):
    host = sandbox(GUARDED_QUEUE__MAX_QUEUED="7")
    user = host.base / "user"
    async with connected(host) as client:
        served = (await client.get("/guarded/doctor"))["lines"]
    status, told = doctor(user, "--json")
    lines = json.loads(told)["lines"]
    assert [line["check"] for line in lines] == [line["check"] for line in served]
    assert any("queue.max_queued = 7, from GUARDED_QUEUE__MAX_QUEUED" in line["message"] for line in lines)
    assert status == max(("ok", "warning", "error").index(line["level"]) for line in lines)
    host.stop()
    status, told = doctor(user)
    assert status in (1, 2)
    assert "as at its last start" in told
    assert f"output: {host.base / 'output'} can be written" in told
    assert "Traceback" not in told
