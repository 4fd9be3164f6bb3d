"""The disk under a running server: full, read-only, vanished. Typed errors, no lost verdict, and it comes back."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from chaos.conftest import (
    assert_settled_once,
    database,
    fill,
    newest_real,
    serving,
    small_disk,
    transitions,
    transitions_at,
)
from contract.client import (
    Client,
    assert_ended_badly,
    assert_native_error,
    assert_refusal,
    assert_succeeded,
    connected,
    gated,
    open_gate,
    picture,
    sleep,
    text,
    unique,
)
from contract.test_webhooks import SETTINGS, Receiver, deliveries, ended, secret_of, submit

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

__all__ = ["small_disk"]


def on(disk: Path) -> dict[str, str]:
    return {"GUARDED_STORE__URL": f"sqlite:///{disk / 'db' / 'guarded.db'}"}


async def refused(client: Client, code: str) -> None:
    """Bodies too large for what SQLite may have left in its log's pages."""
    answer = await client.polled(lambda: client.submit(text("x" * 100_000)), lambda answer: answer.status != 200)
    assert_refusal(answer, code)
    assert int(answer.headers["Retry-After"]) >= 1


async def test_a_full_disk_under_the_database_refuses_jobs_by_name_and_loses_no_verdict(server, small_disk):
    host = server(**on(small_disk)).start()
    async with connected(host) as client:
        before = await client.run(picture())
        running = await client.admitted(gated(prefix := unique()))
        late = await client.admitted(sleep(3600), guard={"timeout_s": 0.5})
        waiting = await client.admitted(picture())
        await client.running(running)
        ballast = fill(small_disk)
        await refused(client, "disk_full")
        ready = await client.request("GET", "/guarded/ready")
        assert (ready.status, ready.json["problems"]) == (503, ["store unavailable"])
        assert (await client.get("/guarded/health"))["status"] == "ok"
        assert await client.job(before["job_id"]) == before, "what is there can be read"
        # This one ends while nothing can be written; the late one cannot begin before.
        open_gate(host.base, prefix)
        await client.wrote(prefix)
        await asyncio.sleep(0.5)
        ballast.unlink()
        assert_succeeded(await client.settled(running))
        assert_ended_badly(await client.settled(late), "generation_timeout")
        assert_succeeded(await client.settled(waiting))
        await client.assert_takes_jobs()
        host.kill()
    host.start()
    async with connected(host) as client:
        assert_succeeded(await client.job(running))
        assert_ended_badly(await client.job(late), "generation_timeout")


async def test_a_kill_while_the_disk_is_full_loses_no_job_either(server, small_disk):
    host = server(**on(small_disk)).start()
    async with connected(host) as client:
        prefix = unique()
        ids = [await client.admitted(gated(prefix)), await client.admitted(picture())]
        await client.running(ids[0])
        ballast = fill(small_disk)
        open_gate(host.base, prefix)
        await client.wrote(prefix)
        host.kill()
    ballast.unlink()
    host.start()
    async with connected(host) as client:
        for job_id in ids:
            assert_succeeded(await client.settled(job_id))


@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_full_disk_under_the_results_fails_the_job_by_name_and_is_over_when_there_is_room(
    server, small_disk, kind
):
    results = small_disk / "output"
    results.mkdir()
    # The janitor's floor would let no job in on a disk this small.
    floors = {f"GUARDED_JANITOR__{name}_FREE_BYTES": "0" for name in ("MIN", "TARGET", "FLOOR")}
    host = server(kind, arguments=("--output-directory", str(results)), **floors).start()
    async with connected(host) as client:
        assert_succeeded(await client.run(picture()))
        ballast = fill(small_disk)
        for _ in range(2):
            job = await client.run(picture())
            assert_ended_badly(job, "disk_full")
            assert job["error"]["retryable"] is True
        assert_native_error(await client.native_entry(job["job_id"]))
        await client.assert_takes_jobs()  # one that writes nothing
        ballast.unlink()
        assert_succeeded(await client.run(picture()))


async def test_an_output_folder_that_vanishes_costs_no_more_than_the_jobs_of_that_moment(server):
    host = server().start()
    output = host.base / "output"
    async with connected(host) as client:
        assert_succeeded(await client.run(picture()))
        shutil.rmtree(output)
        output.write_text("a file in its place, so that nobody can make it again")
        assert_ended_badly(await client.run(picture()), "generation_failed")
        output.unlink()
        assert (await client.run(picture()))["state"] in ("succeeded", "failed")
        output.mkdir(exist_ok=True)
        assert_succeeded(await client.run(picture()))


@pytest.mark.parametrize("gone", ["the file", "the folder", "replaced"])
async def test_a_database_deleted_under_a_running_server_is_there_again_after_a_kill(server, gone):
    host = server().start()
    path = database(host.base)
    async with connected(host) as client:
        before = await client.run(picture())
        running = await client.admitted(sleep(1.0, steps=20))
        waiting = await client.admitted(picture())
        await client.inside_a_node(running)
        if gone == "the file":
            path.unlink()
        elif gone == "the folder":
            os.rename(path.parent, gone_to := path.parents[1] / "gone")
            shutil.rmtree(gone_to)
        else:
            other = path.with_name("other.db")
            sqlite3.connect(other).close()
            os.replace(other, path)
        assert_succeeded(await client.settled(running))
        assert_succeeded(await client.settled(waiting))
        later = await client.admitted(sleep(3600))
        await client.running(later)
        await client.polled(lambda: _said(host, "writing it anew"), bool)
        host.kill()
    host.start()
    async with connected(host) as client:
        assert await client.job(before["job_id"]) == before
        for job_id in (running, waiting):
            assert_succeeded(await client.job(job_id))
        assert_ended_badly(await client.cancel(later), "cancelled")
        await client.assert_takes_jobs()
    for states in transitions(host.base).values():
        assert_settled_once(states)


async def _said(host: HostProcess, words: str) -> bool:
    return words in host.log.read_text()


async def test_a_database_deleted_under_an_idle_server_is_there_again_by_itself(server):
    host = server().start()
    path = database(host.base)
    async with connected(host) as client:
        job = await client.run(picture())
        path.unlink()
        await client.polled(lambda: asyncio.to_thread(path.exists), bool)
        await client.polled(lambda: _said(host, "writing it anew"), bool)
    host.kill()
    host.start()
    async with connected(host) as client:
        assert await client.job(job["job_id"]) == job


async def test_a_start_on_a_full_disk_waits_for_room_and_sweeps_and_then_takes_up_its_jobs(server, small_disk):
    """It was off, so that the janitor, which would have made room, did not run either."""
    swept = {"GUARDED_JANITOR__ADOPT_EXISTING": "true", "GUARDED_JANITOR__SWEEP_NATIVE": "true"}
    host = server(**swept, **on(small_disk)).start()
    async with connected(host) as client:
        before = await client.run(picture())
        running = await client.admitted(gated(prefix := unique()))
        waiting = await client.admitted(picture())
        await client.running(running)
    host.kill()
    open_gate(host.base, prefix)
    # Room in the log beside the database could be enough for what a start writes.
    empty = "sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')"
    code = f"import os, sqlite3, sys; {empty}; os._exit(0)"  # so that the log is not deleted
    subprocess.run([sys.executable, "-c", code, str(small_disk / "db" / "guarded.db")], check=True)
    ballast = fill(small_disk)
    old = host.base / "output" / "old.png"
    old.write_bytes(b"x" * 1000)
    os.utime(old, (0, 0))
    host.log.unlink()
    host.spawn()
    await serving(host)
    async with connected(host) as client:
        ready = await client.request("GET", "/guarded/ready")
        assert (ready.status, ready.json) == (503, {"status": "not ready", "problems": ["store unavailable"]})
        assert_refusal(await client.submit(text()), "server_unavailable")
        assert await client.job(before["job_id"]) == before, "what cannot be written can be read"
        (alarm,) = (await client.get("/guarded/stats"))["alarms"]
        assert "full" in alarm["message"]
        report = await client.request("POST", "/guarded/janitor/sweep")
        assert report.status == 200
        assert not old.exists()
        await asyncio.sleep(3)
        ballast.unlink()
        await asyncio.to_thread(host.wait_ready)
        for job_id in (running, waiting):
            assert_succeeded(await client.settled(job_id))
    said = [line for line in host.log.read_text().splitlines() if "cannot be used" in line and "ERROR" in line]
    assert len(said) == 1, "not a line for each attempt"
    for states in transitions_at(small_disk / "db" / "guarded.db").values():
        assert_settled_once(states)


async def test_on_a_read_only_disk_the_plugin_says_why_and_goes_on_once_it_can_write(server, small_disk):
    first = server(base="first", **on(small_disk)).start()
    async with connected(first) as client:
        job = await client.run(text())
    first.stop()
    _mounted(small_disk, "ro")
    second = server(base="second", **on(small_disk))
    second.spawn()
    await serving(second)
    async with connected(second) as client:
        ready = await client.request("GET", "/guarded/ready")
        assert (ready.status, ready.json["problems"]) == (503, ["store unavailable"])
        entry = await client.native_entry(await client.native_submit(picture()))
        assert entry["status"]["status_str"] == "success", "the host itself runs"
        (line,) = (line for line in second.log.read_text().splitlines() if "Read-only file system" in line)
        assert "guarded.db" in line
        _mounted(small_disk, "rw")
        await asyncio.to_thread(second.wait_ready)
        assert await client.job(job["job_id"]) == job
        await client.assert_takes_jobs()


def _mounted(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


async def test_webhooks_on_a_full_disk_are_sent_once_where_they_are_received_and_with_growing_pauses_where_not(
    server, small_disk
):
    host = server(**{**SETTINGS, "GUARDED_WEBHOOKS__MAX_AGE_S": "600"}, **on(small_disk)).start()
    good, bad = (Receiver(secret_of(host.base)) for _ in range(2))
    is_full = asyncio.Event()

    async def succeeds(_request: web.Request, _earlier: int) -> web.StreamResponse:
        await is_full.wait()
        return web.Response(status=204)

    async def fails(_request: web.Request, _earlier: int) -> web.StreamResponse:
        await is_full.wait()
        return web.Response(status=500)

    def unwritten() -> int:
        return host.log.read_text(errors="replace").count("cannot be written down")

    good.answer, bad.answer = succeeds, fails
    await good.start()
    await bad.start()
    try:
        async with connected(host) as client, client.busy():
            failing = await submit(client, bad, events=["queued"])
            received = [await submit(client, good, events=["queued"]) for _ in range(20)]
            ballast = fill(small_disk)
            is_full.set()
            await client.polled(lambda: asyncio.sleep(0, {told.job_id for told in good.got}), set(received).__eq__)
            # The pauses of the store and of the failing receiver: whoever sends again after those would be seen.
            tried = unwritten()
            await client.polled(lambda: asyncio.sleep(0, unwritten()), lambda now: now >= tried + 3)
            assert sorted(told.job_id for told in good.got) == sorted(received), "each was sent once"
            sent = len(bad.got)
            assert 3 <= sent <= 12, "0.1 s, 0.2 s, 0.4 s …; half of each left to chance"
            ballast.unlink()
            for job_id in received:
                (delivery,) = await ended(client, job_id)
                assert (delivery["state"], delivery["attempts"]) == ("delivered", 1)
            assert sorted(told.job_id for told in good.got) == sorted(received)
            (delivery,) = await client.polled(
                lambda: deliveries(client, failing), lambda found: found[0]["attempts"] >= sent
            )
            assert delivery["attempts"] <= len(bad.got)
    finally:
        await good.stop()
        await bad.stop()
