"""What runs before the first job: the server is ready only after it, nobody sees it, and it stands in nobody's way."""

import asyncio
import contextlib
import json
import signal
import sys

import pytest
from contract.client import PATIENCE_S, assert_succeeded, connected, gated, open_gate, raises, save, text
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind


@pytest.fixture
def warm(tmp_path):
    """Makes a server with warm-ups; it is not started. A dict of prompts by file name, or a list as it stands."""
    made = []

    def make(runs, kind=None, **environment):
        base = tmp_path / f"warm{len(made)}"
        own = base / "user" / "__guarded"
        own.mkdir(parents=True)
        if isinstance(runs, dict):
            for name, prompt in runs.items():
                (own / name).write_text(json.dumps(prompt))
            runs = list(runs)
        server = HostProcess(
            kind or sandbox_kind(), base, environment={"GUARDED_WARMUP__RUNS": json.dumps(runs), **environment}
        )
        made.append(server)
        return server

    yield make
    for server in made:
        server.kill()


async def serving(client):
    """Until the server answers at all."""
    while True:
        with contextlib.suppress(OSError):
            async with client.session.get(client.host.url + "/guarded/ready") as response:
                if "starting" not in (await response.json()).get("problems", ()):
                    return
        assert client.host.alive, client.host.log_tail()
        await asyncio.sleep(0.05)


async def ready(client):
    async with client.session.get(client.host.url + "/guarded/ready") as response:
        return response.status, (await response.json()).get("problems", [])


async def until(client, *states):
    """Until the warm-ups are in these states; returns what is told of them."""
    for _ in range(int(PATIENCE_S * 10)):
        told = (await client.get("/guarded/stats"))["warmup"]
        if tuple(each["state"] for each in told["runs"]) == states:
            return told
        await asyncio.sleep(0.1)
    raise AssertionError((states, told, client.host.log_tail()))


def list_files(server):
    return [path for root in ("output", "temp") for path in (server.base / root).rglob("*") if path.is_file()]


async def assert_nobody_sees_it(client):
    assert (await client.get("/guarded/jobs"))["jobs"] == []
    assert (await client.get("/guarded/spending"))["rows"] == []
    stats = await client.get("/guarded/stats")
    assert stats["queue"]["running"] == stats["queue"]["queued"] == stats["windows"]["24h"]["jobs"] == 0
    async with client.session.get(client.host.url + "/queue") as response:
        assert await response.json() == {"queue_running": [], "queue_pending": []}
    async with client.session.get(client.host.url + "/history") as response:
        assert await response.json() == {}
    async with client.session.get(client.host.url + "/prompt") as response:
        assert (await response.json())["exec_info"]["queue_remaining"] == 0


@pytest.mark.parametrize("kind", kinds())
async def test_the_server_is_ready_once_it_is_warm_and_again_after_its_models_were_freed(warm, kind):
    server = warm({"warm.json": gated("warm")}, kind)
    server.spawn()
    async with connected(server) as client:
        await serving(client)
        await until(client, "running")
        assert await ready(client) == (503, ["warming up"])
        await assert_nobody_sees_it(client)
        waiting = await client.admitted(text())
        server.kill()
        server.spawn()
        await serving(client)
        # What was admitted goes first.
        assert_succeeded(await client.settled(waiting))
        await until(client, "running")
        assert await ready(client) == (503, ["warming up"])
        open_gate(server.base, "warm")
        told = await until(client, "warm")
        assert told["ready"] is True
        assert await ready(client) == (200, [])
        assert [job["job_id"] for job in (await client.get("/guarded/jobs"))["jobs"]] == [waiting]
        assert list_files(server) == []

        (server.base / "input" / "warm.gate").unlink()
        async with client.session.post(server.url + "/free", json={"unload_models": True}) as response:
            assert response.status == 200
        await until(client, "running")
        assert await ready(client) == (200, []), "a server that serves stays in its place"
        behind = await client.admitted(text())
        open_gate(server.base, "warm")
        await until(client, "warm")
        assert_succeeded(await client.settled(behind))
        assert list_files(server) == []
        assert {job["job_id"] for job in (await client.get("/guarded/jobs"))["jobs"]} == {waiting, behind}
        async with client.session.get(server.url + "/history") as response:
            assert (await response.json()).keys() <= {waiting, behind}
    assert "Traceback" not in server.log.read_text(errors="replace")


async def test_a_job_waits_for_one_warm_up_at_most(warm):
    server = warm({"a.json": gated("a"), "b.json": gated("b")}, GUARDED_NATIVE__MODE="guarded")
    server.spawn()
    async with connected(server) as client:
        await serving(client)
        await until(client, "running", "cold")
        await assert_nobody_sees_it(client)
        first = await client.admitted(text())
        open_gate(server.base, "a")
        assert_succeeded(await client.settled(first))
        await until(client, "warm", "running")
        assert (await ready(client))[0] == 503
        second = await client.admitted(text())
        open_gate(server.base, "b")
        assert_succeeded(await client.settled(second))
        assert (await until(client, "warm", "warm"))["ready"] is True


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
async def test_a_warm_up_holds_up_no_end_of_the_server_and_begins_in_no_drain(warm):
    server = warm({"a.json": gated("a"), "b.json": gated("b")}, GUARDED_WATCHDOG__SHUTDOWN_GRACE_S="3600")
    server.spawn()
    async with connected(server) as client:
        await serving(client)
        await until(client, "running", "cold")
        await client.request("POST", "/guarded/drain", {"draining": True})
        open_gate(server.base, "a")
        await until(client, "warm", "cold")
        await asyncio.sleep(2)
        await until(client, "warm", "cold")
        await client.request("POST", "/guarded/drain", {"draining": False})
        await until(client, "warm", "running")
        server._process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, PATIENCE_S)


async def test_what_fails_or_is_missing_keeps_no_server_shut(warm):
    server = warm(["no-such-template", "none.json", {"template": "photo_check", "parameters": {"size": 1}}, "bad.json"])
    (server.base / "user" / "__guarded" / "bad.json").write_text(json.dumps(raises("value_error")))
    await asyncio.to_thread(server.start)
    async with connected(server) as client:
        told = await until(client, *["failed"] * 4)
        errors = [each["error"] for each in told["runs"]]
        for error, says in zip(errors, ("no template", "none.json", "photo: must be given", "on purpose"), strict=True):
            assert says in error, errors
        lines = [line for line in (await client.get("/guarded/doctor"))["lines"] if line["check"] == "warm-up"]
        assert [line["level"] for line in lines] == ["warning"] * 4, lines
        assert all(line["mend"] for line in lines)
        alarms = (await client.get("/guarded/stats"))["alarms"]
        assert "warmup_failed" in {alarm["code"] for alarm in alarms}, alarms
        await assert_nobody_sees_it(client)
        assert_succeeded(await client.run(text()))


@pytest.mark.parametrize("node", ["FaultHangPython", "FaultSwallow", "FaultHangC"])
async def test_one_that_hangs_is_ended_and_counts_as_nothing(warm, node):
    more = {"catches": "BaseException"} if node == "FaultSwallow" else {}
    hangs = {"1": {"class_type": node, "inputs": {"seconds": 3600, "seed": 0, **more}}, "2": save()}
    server = warm(
        {"hangs.json": hangs},
        GUARDED_WARMUP__TIMEOUT_S="1",
        GUARDED_WATCHDOG__INTERRUPT_GRACE_S="1",
        GUARDED_WATCHDOG__MAX_DISOWNED="8",
    )
    await asyncio.to_thread(server.start)
    async with connected(server) as client:
        told = await until(client, "failed")
        assert "ran longer than 1 s" in told["runs"][0]["error"] or "left behind" in told["runs"][0]["error"], told
        await assert_nobody_sees_it(client)
        async with client.session.get(server.url + "/guarded/metrics") as response:
            metrics = await response.text()
        assert 'limit="job"} 0.0' in metrics
        assert_succeeded(await client.run(text()))


async def test_one_that_kills_the_process_is_left_out_in_the_end(warm):
    server = warm({"kills.json": {"1": {"class_type": "FaultKillProcess", "inputs": {"seed": 0}}, "2": save()}})
    for _ in range(2):
        server.spawn()
        await asyncio.to_thread(server.wait, PATIENCE_S)
    await asyncio.to_thread(server.start)
    async with connected(server) as client:
        told = await until(client, "failed")
        assert "has ended 2 times" in told["runs"][0]["error"]
        assert_succeeded(await client.run(text()))


async def test_ready_waits_no_longer_than_the_operator_says(warm):
    server = warm({"never.json": gated("never")}, GUARDED_WARMUP__READY_AFTER_S="3")
    await asyncio.to_thread(server.start)
    async with connected(server) as client:
        await until(client, "running")
        assert (await ready(client))[0] == 200
        open_gate(server.base, "never")
        await until(client, "warm")


async def test_models_that_a_failed_job_has_freed_are_loaded_again(warm):
    server = warm({"warm.json": gated("warm")})
    open_gate(server.base, "warm")
    await asyncio.to_thread(server.start)
    async with connected(server) as client:
        await until(client, "warm")
        (server.base / "input" / "warm.gate").unlink()
        failed = await client.run(raises("out_of_memory"))
        assert failed["error"]["code"] == "out_of_memory"
        await until(client, "running")
        open_gate(server.base, "warm")
        await until(client, "warm")
