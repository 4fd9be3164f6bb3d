"""The rungs that cost the process: restart, exit, a held lock, SIGTERM, and a prompt that kills it."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import uuid
from pathlib import Path

import aiohttp
import pytest
from chaos.conftest import assert_settled_once, booted_again, boots, database, newest_real, serving, transitions
from contract.client import (
    Answer,
    Client,
    assert_ended_badly,
    assert_refusal,
    assert_succeeded,
    connected,
    gated,
    node,
    open_gate,
    picture,
    raises,
    save,
    sleep,
    text,
    unique,
)

from comfyui_guarded.guard.life.process import EXIT_STUCK
from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, sandbox_kind

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.name == "nt", reason="signals, and a restart under the same pid"),
]

SHORT_GRACE = {"GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "0.5"}
SOON = {"guard": {"timeout_s": 0.5}}
LONG_S = 120.0
CUDA_FAULT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


def hang(class_type: str, seconds: float = LONG_S):
    return {"1": node(class_type, seconds=seconds, seed=0), "2": save()}


async def told(client: Client, job_id: str) -> None:
    """The verdict of a job that hangs, before the process goes."""
    assert_ended_badly(await client.settled(job_id), "generation_timeout")


async def not_ready(client: Client) -> Answer:
    return await client.polled(lambda: client.request("GET", "/guarded/ready"), lambda answer: answer.status == 503)


async def ended(host: HostProcess) -> int:
    return await asyncio.to_thread(host.wait, 120)


@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_process_that_cannot_be_mended_begins_anew_by_itself_and_loses_no_job(server, kind):
    host = server(kind, GUARDED_WATCHDOG__MAX_DISOWNED="1", **SHORT_GRACE).start()
    pid = host.pid
    async with connected(host) as client:
        first = await client.admitted(hang("FaultHangC"), **SOON)
        second = await client.admitted(hang("FaultHangC"), **SOON)
        waiting = [await client.admitted(picture()) for _ in range(3)]
        await told(client, first)
        await told(client, second)  # one worker more than may hang
    await booted_again(host, 1)
    async with connected(host) as client:
        for job_id in waiting:
            assert_succeeded(await client.settled(job_id))
        assert (await client.get("/guarded/health"))["hung_workers"] == 0
        # An ordinary error costs no process; this one makes the GPU useless for all that come after it.
        assert_ended_badly(await client.run(raises("value_error", "CUDA is not available")), "generation_failed")
        async with client.busy():  # so that all are queued before the first runs
            fault = await client.admitted(raises("value_error", CUDA_FAULT))
            waiting = [await client.admitted(picture()) for _ in range(3)]
        job = await client.settled(fault)
        assert_ended_badly(job, "generation_failed")
        assert "device-side assert" in job["error"]["message"]
    await booted_again(host, 2)
    async with connected(host) as client:
        for job_id in waiting:
            job = await client.settled(job_id)
            assert_succeeded(job)
            assert job["attempts"] == 1, "it had not been begun on the broken GPU"
        assert (boots(host), host.pid) == (3, pid)
        running, queued = await client.admitted(gated(prefix := unique())), await client.admitted(picture())
        await client.running(running)
        os.kill(host.pid, signal.SIGTERM)
        await not_ready(client)
        open_gate(host.base, prefix)
    assert await ended(host) == 0
    seen = transitions(host.base)
    assert (seen[running][-1], seen[queued][-1]) == ("succeeded", "queued")
    for job_id, states in seen.items():
        if job_id != queued:
            assert_settled_once(states)


def make_interpreter(kind: HostKind, folder: Path) -> Path:
    """A Python of the test's own, with the packages of the host's."""
    subprocess.run([kind.python, "-m", "venv", "--without-pip", str(folder)], check=True)
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([kind.python, "-c", show], check=True, capture_output=True, text=True).stdout.strip()
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "host.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    return folder / "bin" / "python"


@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_process_whose_interpreter_is_gone_goes_on_and_restarts_once_it_is_back(server, kind, tmp_path):
    python = make_interpreter(kind, tmp_path / "python")
    away = python.with_name("away")
    own_kind = dataclasses.replace(kind, python=str(python))
    host = server(own_kind, GUARDED_WATCHDOG__MAX_DISOWNED="0", **SHORT_GRACE).start()
    pid = host.pid

    async def alarms(client: Client) -> list[str]:
        return [alarm["code"] for alarm in (await client.get("/guarded/stats"))["alarms"]]

    async with connected(host) as client:
        python.rename(away)
        await told(client, await client.admitted(hang("FaultHangC"), **SOON))
        for _ in range(3):
            assert_succeeded(await client.run(picture()))
        assert (await client.request("GET", "/guarded/ready")).status == 200
        assert "restart_failed" in await alarms(client)
        assert boots(host) == 1
        away.rename(python)
    await booted_again(host, 1)
    async with connected(host) as client:
        assert await alarms(client) == []
        python.rename(away)
        async with client.busy():
            fault = await client.admitted(raises("value_error", CUDA_FAULT))
            waiting = await client.admitted(picture())
        assert_ended_badly(await client.settled(fault), "generation_failed")
        ready = await client.polled(
            lambda: client.request("GET", "/guarded/ready"),
            lambda answer: answer.status == 503 and "restart failed" in answer.json["problems"],
        )
        assert ready.json["problems"] == ["restarting", "restart failed"]
        assert_refusal(await client.submit(text()), "server_unavailable", 503)
        assert (await client.job(waiting))["state"] == "queued"
        assert host.log.read_text().count("the process cannot be restarted") == 2
        away.rename(python)
    await booted_again(host, 2)
    async with connected(host) as client:
        assert_succeeded(await client.settled(waiting))
    assert (boots(host), host.pid) == (3, pid)


async def test_a_replacement_that_hangs_between_two_jobs_costs_the_process_and_no_job(server):
    """What holds the one worker holds the other, as a GPU does that never comes back."""
    host = server(GUARDED_WATCHDOG__MAX_DISOWNED="1", **SHORT_GRACE).start()
    async with connected(host) as client:
        hung = await client.admitted(hang("FaultHangC"), **SOON)
        await told(client, hung)
        assert_succeeded(await client.run(hang("FaultHangBetween")))
        waiting = await client.admitted(picture())
    await booted_again(host, 1)
    async with connected(host) as client:
        assert_succeeded(await client.settled(waiting))


async def test_with_on_stuck_restart_the_first_hang_begins_the_process_anew(server):
    host = server(GUARDED_WATCHDOG__ON_STUCK="restart", **SHORT_GRACE).start()
    pid = host.pid
    async with connected(host) as client:
        hung, waiting = await client.admitted(hang("FaultHangC"), **SOON), await client.admitted(picture())
        await told(client, hung)
    await booted_again(host, 1)
    async with connected(host) as client:
        assert_succeeded(await client.settled(waiting))
        await told(client, hung)
    assert host.pid == pid


async def test_with_on_stuck_exit_the_process_ends_with_the_code_for_supervisors(server):
    host = server(GUARDED_WATCHDOG__ON_STUCK="exit", **SHORT_GRACE).start()
    async with connected(host) as client:
        hung, waiting = await client.admitted(hang("FaultHangC"), **SOON), await client.admitted(picture())
        await told(client, hung)
        assert await ended(host) == EXIT_STUCK == 75
    host.start()
    async with connected(host) as client:
        assert_succeeded(await client.settled(waiting))
        await told(client, hung)
    for states in transitions(host.base).values():
        assert_settled_once(states)


async def test_with_on_stuck_report_the_slot_stays_taken_and_the_server_says_so_until_it_is_over(server):
    host = server(GUARDED_WATCHDOG__ON_STUCK="report", **SHORT_GRACE).start()
    async with connected(host) as client:
        hung, waiting = await client.admitted(hang("FaultHangC", 12.0), **SOON), await client.admitted(picture())
        await told(client, hung)
        ready = await client.polled(
            lambda: client.request("GET", "/guarded/ready"), lambda answer: answer.status == 503
        )
        assert ready.json["problems"] == ["worker stuck"]
        assert_refusal(await client.submit(text()), "server_unavailable", 503)
        assert (await client.job(waiting))["state"] == "queued"
        assert f"{hung} does not end" in host.log.read_text()
        assert_succeeded(await client.settled(waiting))
        assert (await client.request("GET", "/guarded/ready")).status == 200
        await told(client, hung)
    assert boots(host) == 1


async def test_a_call_that_holds_pythons_lock_ends_the_process_and_its_job_is_settled_after_the_restart(server):
    host = server(
        GUARDED_WATCHDOG__ON_STUCK="exit", GUARDED_WATCHDOG__GIL_HANG_S="5", GUARDED_WATCHDOG__MAX_ATTEMPTS="1"
    ).start()
    async with connected(host) as client:
        waiting: list[str] = []
        hung = str(uuid.uuid4())
        # Whatever was answered before the lock was taken; the worker may take it before the first answer is sent.
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await client.admitted(hang("FaultHoldGil"), prompt_id=hung)
            while True:
                waiting.append(await client.admitted(text()))
        assert await ended(host) == 1
    log = host.log.read_text()
    assert "Timeout (0:00:05)!" in log
    assert "guarded_faults/hang.py" in log, "the log says where it hung"
    host.start()
    async with connected(host) as client:
        assert_ended_badly(await client.settled(hung), "server_restarted")
        for job_id in waiting:
            assert_succeeded(await client.settled(job_id))
        await client.assert_takes_jobs()


async def test_a_healthy_server_is_not_taken_for_one_whose_lock_is_held(server):
    host = server(GUARDED_WATCHDOG__ON_STUCK="exit", GUARDED_WATCHDOG__GIL_HANG_S="5").start()
    async with connected(host) as client:
        assert_succeeded(await client.run({"1": node("FaultHangPython", seconds=6.0, seed=0), "2": save()}))


async def test_with_on_gpu_fault_report_the_process_goes_on_and_the_log_says_so(server):
    host = server(GUARDED_WATCHDOG__ON_GPU_FAULT="report").start()
    async with connected(host) as client:
        assert_ended_badly(await client.run(raises("value_error", CUDA_FAULT)), "generation_failed")
        # As long as the other setting would have taken.
        assert_succeeded(await client.run(sleep(1.5)))
        assert (await client.request("GET", "/guarded/ready")).status == 200
    assert boots(host) == 1
    assert "can no longer use the GPU" in host.log.read_text()


@pytest.mark.parametrize("free_memory", ["true", "false"])
async def test_models_are_unloaded_after_a_timeout_and_after_running_out_of_memory_by_a_setting(server, free_memory):
    host = server(GUARDED_WATCHDOG__FREE_MEMORY=free_memory).start()

    def calls() -> int:
        return host.log.read_text().count("unload_all_models, call")

    async with connected(host) as client:
        await client.assert_takes_jobs()
        assert_ended_badly(await client.run(raises("value_error")), "generation_failed")
        assert calls() == 0
        await told(client, await client.admitted(sleep(3600), **SOON))
        await client.assert_takes_jobs()
        assert calls() == (1 if free_memory == "true" else 0)
        assert_ended_badly(await client.run(raises("out_of_memory")), "out_of_memory")
        await client.assert_takes_jobs()
        assert calls() == (3 if free_memory == "true" else 1), (
            "ComfyUI unloads once by itself, while the job still runs"
        )


# SIGTERM. --------------------------------------------------------------------------------------------------------


async def test_a_sigterm_takes_no_job_lets_the_running_one_end_and_then_ends_the_server(server):
    host = server().start()
    async with connected(host) as client:
        running, queued = await client.admitted(gated(prefix := unique())), await client.admitted(picture())
        await client.running(running)
        os.kill(host.pid, signal.SIGTERM)
        assert (await not_ready(client)).json["problems"] == ["draining"]
        assert_refusal(await client.submit(text()), "server_unavailable", 503)
        os.kill(host.pid, signal.SIGTERM)  # changes nothing
        open_gate(host.base, prefix)
        assert await ended(host) == 0
    assert transitions(host.base)[running][-2:] == ["validating", "succeeded"]
    host.start()
    async with connected(host) as client:
        assert_succeeded(await client.job(running))
        assert_succeeded(await client.settled(queued))


async def test_an_operators_drain_outlives_a_kill_and_nothing_that_waits_begins(server):
    host = server().start()
    async with connected(host) as client:
        running, queued = await client.admitted(sleep(3600, steps=50)), await client.admitted(picture())
        await client.inside_a_node(running)
        assert (await client.request("POST", "/guarded/drain", {"draining": True})).json == {"draining": True}
    host.kill()
    host.spawn()
    await serving(host)
    async with connected(host) as client:
        ready = lambda: client.request("GET", "/guarded/ready")  # noqa: E731
        await client.polled(ready, lambda answer: answer.status == 503 and answer.json["problems"] == ["draining"])
        assert_refusal(await client.submit(text()), "server_unavailable", 503)
        assert {(await client.job(job_id))["state"] for job_id in (running, queued)} == {"queued"}
        await client.cancel(running)
        assert (await client.request("POST", "/guarded/drain", {"draining": False})).json == {"draining": False}
        assert_succeeded(await client.settled(queued))


async def test_a_sigterm_does_not_wait_for_ever_and_the_job_is_taken_up_again(server):
    host = server(GUARDED_WATCHDOG__SHUTDOWN_GRACE_S="0.5").start()
    async with connected(host) as client:
        running = await client.admitted(gated(prefix := unique()))
        await client.running(running)
        os.kill(host.pid, signal.SIGTERM)
        assert await ended(host) == 0
    assert transitions(host.base)[running][-1] == "running"
    open_gate(host.base, prefix)
    host.start()
    async with connected(host) as client:
        job = await client.settled(running)
        assert_succeeded(job)
        assert job["attempts"] == 2


async def test_a_sigterm_keeps_its_grace_while_nobody_can_write_to_the_job_database(server):
    host = server(GUARDED_WATCHDOG__SHUTDOWN_GRACE_S="1").start()
    async with connected(host) as client:
        running = await client.admitted(sleep(3600, steps=50))
        await client.inside_a_node(running)
        with contextlib.closing(sqlite3.connect(database(host.base), isolation_level=None)) as held:
            held.execute("BEGIN IMMEDIATE")
            cancelling = asyncio.ensure_future(client.cancel(running))
            await asyncio.sleep(0.2)
            os.kill(host.pid, signal.SIGTERM)
            assert await ended(host) == 0
            with pytest.raises((aiohttp.ClientError, OSError)):
                await cancelling
    assert "the drain failed" not in host.log.read_text()
    host.start()
    async with connected(host) as client:
        await client.running(running)  # nobody was told that it was cancelled
        assert_ended_badly(await client.cancel(running), "cancelled")


async def test_a_sigterm_ends_a_server_without_a_running_job_at_once(server):
    host = server().start()
    os.kill(host.pid, signal.SIGTERM)
    assert await ended(host) == 0


async def test_without_a_shutdown_grace_a_sigterm_does_what_it_always_did(server):
    host = server(GUARDED_WATCHDOG__SHUTDOWN_GRACE_S="0").start()
    os.kill(host.pid, signal.SIGTERM)
    assert await ended(host) == -signal.SIGTERM


# Poison. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
async def test_a_prompt_that_kills_the_process_is_tried_so_often_and_the_others_run(server, max_attempts):
    host = server(GUARDED_WATCHDOG__MAX_ATTEMPTS=str(max_attempts)).start()
    async with connected(host) as client:
        before = await client.admitted(sleep(3600))  # so that all are queued before the first runs
        await client.running(before)
        poison = await client.admitted({"1": node("FaultKillProcess", seed=0), "2": save()})
        others = [await client.admitted(picture()) for _ in range(3)]
        with contextlib.suppress(aiohttp.ClientError):  # it may die before it has answered
            await client.cancel(before)
    for attempt in range(max_attempts):
        if attempt:
            host.spawn()  # it may not live long enough to be ready
        assert await ended(host) == -signal.SIGKILL
    host.start()
    async with connected(host) as client:
        job = await client.settled(poison)
        assert_ended_badly(job, "server_restarted")
        assert job["attempts"] == max_attempts
        for job_id in others:
            assert_succeeded(await client.settled(job_id))
    for states in transitions(host.base).values():
        assert_settled_once(states)


@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_prompt_whose_validation_kills_the_process_at_dispatch_is_tried_so_often_and_the_others_run(
    server, kind
):
    host = server(kind, GUARDED_WATCHDOG__MAX_ATTEMPTS="2", MAX_GPU_JOBS="2").start()
    async with connected(host) as client:
        await client.native_submit(sleep(3600, steps=1000))  # so that the next merely waits when it happens
        waits = await client.admitted(picture())
        await client.polled(client.native_queue, lambda queue: waits in queue)
        validation = {"1": node("FaultValidation", does="kill_process", at="dispatch", seed=0), "2": save()}
        with contextlib.suppress(aiohttp.ClientError, OSError):  # it may die before it has answered
            await client.submit(validation)
        assert await ended(host) == -signal.SIGKILL
    host.spawn()
    assert await ended(host) == -signal.SIGKILL
    host.start()
    async with connected(host) as client:
        assert_succeeded(job := await client.settled(waits))
        assert job["attempts"] <= 2, "it may have run at the second death, and merely waited at the first"
        (poison,) = [job for job in await client.jobs() if job["job_id"] != waits]
        assert_ended_badly(poison, "server_restarted")
        assert poison["attempts"] == 2
        await client.assert_takes_jobs()
    for states in transitions(host.base).values():
        assert_settled_once(states)


async def test_a_prompt_that_kills_the_process_again_and_again_costs_the_job_that_ran_beside_it_nothing(server):
    host = server(GUARDED_WATCHDOG__MAX_ATTEMPTS="2", MAX_GPU_JOBS="2").start()
    async with connected(host) as client:
        beside = await client.admitted(sleep(2))
        await client.running(beside)
        validation = {"1": node("FaultValidation", does="kill_process", at="dispatch", seed=0), "2": save()}
        with contextlib.suppress(aiohttp.ClientError, OSError):  # it may die before it has answered
            await client.submit(validation)
        assert await ended(host) == -signal.SIGKILL
    host.spawn()
    assert await ended(host) == -signal.SIGKILL
    host.start()
    async with connected(host) as client:
        assert_succeeded(await client.settled(beside))
        (poison,) = [job for job in await client.jobs() if job["job_id"] != beside]
        assert_ended_badly(poison, "server_restarted")
        await client.assert_takes_jobs()


# The wall clock. -------------------------------------------------------------------------------------------------

CLOCK = """
import os, time
real, path = time.time, os.path.join(os.path.dirname(__file__), "jump")
def jumped():
    try:
        with open(path) as file:
            return real() + float(file.read())
    except (OSError, ValueError):
        return real()
time.time = jumped
NODE_CLASS_MAPPINGS = {}
"""


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
async def test_a_wall_clock_that_jumps_ends_no_job_early_and_keeps_none_alive(server, jump_s):
    host = server(GUARDED_QUEUE__TIMEOUT_S="3600")
    pack = host.base / "custom_nodes" / "a_clock"
    pack.mkdir()
    (pack / "__init__.py").write_text(CLOCK)
    host.start()
    async with connected(host) as client:
        running = await client.admitted(sleep(2.0), guard={"timeout_s": 60})
        waiting = await client.admitted(picture())
        await client.running(running)
        (pack / "jump").write_text(str(jump_s))
        jobs = [await client.settled(running), await client.settled(waiting)]
        for job in jobs:
            assert_succeeded(job)  # with its times in order
            assert 0 <= job["settled_at_ms"] - job["created_at_ms"] < 3_600_000
        await told(client, await client.admitted(sleep(3600), **SOON))
        queue = await client.get("/guarded/jobs")
        assert [job["state"] for job in queue["jobs"]] == ["failed", "succeeded", "succeeded"]
