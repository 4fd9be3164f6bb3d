"""Starts that go wrong: the plugin says why, is off as a whole or waits for its database, and the host runs."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos.conftest import assert_settled_once, database, newest_real, serving, transitions
from contract.client import (
    PATIENCE_S,
    assert_ended_badly,
    assert_refusal,
    assert_succeeded,
    connected,
    picture,
    sleep,
    text,
)
from unit.pages import PAGE, map_pages

from comfyui_guarded.guard.store.schema import MIGRATIONS
from comfyui_guarded.tests.hosts.launch import sandbox_kind

REPO = Path(__file__).parents[2]

pytestmark = pytest.mark.chaos


def off_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if "ComfyUI-Guarded is OFF" in line]


async def assert_off_while_the_host_runs(host) -> str:
    """The one line of the log that says why; our own routes say it too, in the shape of every refusal."""
    async with connected(host) as client:
        for method, path in (("GET", "/guarded/jobs"), ("POST", "/guarded/prompt"), ("GET", "/guarded/stats")):
            assert_refusal(await client.request(method, path), "server_unavailable", 503)
        entry = await client.native_entry(await client.native_submit(picture()))
        assert entry["status"]["status_str"] == "success"
    (line,) = off_lines(host.log.read_text())
    return line


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("GUARDED_QUEUE__MAX_JOBS", "0", "queue.max_jobs"),
        ("GUARDED_QUEUE__MAXJOBS", "1", "queue.maxjobs"),
        ("MAX_GPU_JOBS", "many", "queue.max_jobs"),
        ("GUARDED_NOWHERE__X", "1", "nowhere"),
        ("GUARDED_MESSAGES__LOCALE", "tlh", "messages.locale"),
        ("GUARDED_STORE__URL", "redis://localhost", "store.url"),
    ],
)
async def test_a_bad_setting_leaves_the_plugin_off_with_a_line_that_names_the_key(server, variable, value, key):
    server()  # links the package in
    host = server(guarded=False, **{variable: value}).start()
    line = await assert_off_while_the_host_runs(host)
    assert key in line
    assert not database(host.base).exists(), "off means off"


@pytest.mark.parametrize(
    ("content", "named"), [("[queue]\nmax_jobs = -3\n", "queue.max_jobs"), ("max_jobs = = 1", "guarded.toml")]
)
async def test_a_bad_settings_file_leaves_the_plugin_off_with_a_line_that_names_it(server, content, named):
    folder = database(server().base).parent
    folder.mkdir(parents=True)
    (folder / "guarded.toml").write_text(content)
    assert named in await assert_off_while_the_host_runs(server(guarded=False).start())


async def test_a_folder_of_ours_that_cannot_be_read_leaves_the_plugin_off_with_a_line_that_names_the_file(server):
    (database(server().base).parent / "token.key").mkdir(parents=True)
    assert "token.key" in await assert_off_while_the_host_runs(server(guarded=False).start())


async def test_a_good_settings_file_is_used_and_the_environment_wins(server):
    host = server(GUARDED_QUEUE__MAX_JOBS="3")
    database(host.base).parent.mkdir(parents=True)
    (database(host.base).parent / "guarded.toml").write_text(
        '[queue]\nmax_jobs = 2\n[messages]\nlocale = "en"\n[watchdog]\njob_timeout_s = 77\n'
    )
    host.start()
    async with connected(host) as client:
        answer = await client.submit(text(), wait_s=60)
        assert answer.json["guard"]["max_jobs"] == 3
        assert answer.json["guard"]["job"]["timeout_s"] == 77
        refused = await client.request("GET", "/guarded/jobs/x")
        assert refused.json["guard"]["user_message"].startswith("Nothing was found")


async def assert_on_without_its_database(client, words: str) -> None:
    """It says so wherever it is asked, takes no job, and the host runs."""
    ready = await client.request("GET", "/guarded/ready")
    assert (ready.status, ready.json["problems"]) == (503, ["store unavailable"])
    assert int(ready.headers["Retry-After"]) >= 1
    assert "store unavailable" in (await client.get("/guarded/health"))["problems"]
    for method, path, body in (
        ("POST", "/guarded/prompt", {"prompt": text()}),
        ("GET", "/guarded/jobs", None),
        ("GET", "/guarded/jobs/x", None),
        ("DELETE", "/guarded/jobs/x", None),
    ):
        refused = await client.request(method, path, body)
        assert_refusal(refused, "server_unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
    metrics = await client.request("GET", "/guarded/metrics")
    assert "guarded_ready 0.0" in metrics.content.decode()
    assert (await client.request("GET", "/guarded")).status == 200, "the page"
    (alarm,) = (await client.get("/guarded/stats"))["alarms"]
    assert alarm["code"] == "store_unavailable"
    assert words in alarm["message"]
    entry = await client.native_entry(await client.native_submit(picture()))
    assert entry["status"]["status_str"] == "success"


def errors(host) -> list[str]:
    return [line for line in host.log.read_text().splitlines() if "ERROR" in line or "CRITICAL" in line]


async def test_a_second_server_on_the_same_user_directory_waits_for_the_first(server):
    first = server().start()
    second = server()
    second.log = second.base / "second.log"
    second.spawn()
    await serving(second)
    async with connected(second) as client:
        await assert_on_without_its_database(client, "another server has")
    async with connected(first) as client:
        job = await client.run(text())
    first.stop()
    second.wait_ready()
    async with connected(second) as client:
        assert await client.job(job["job_id"]) == job
        await client.assert_takes_jobs()
    (line,) = (line for line in second.log.read_text().splitlines() if "another server has" in line)
    assert str(database(first.base)) in line
    assert off_lines(second.log.read_text()) == []


@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_start_while_the_command_line_sweeps_waits_until_that_is_done(server, kind):
    """It has the lock: that was a reason to stay off until somebody restarted the server."""
    host = server(kind).start()
    async with connected(host) as client:
        job_id = await client.admitted(sleep(3600))
        await client.running(job_id)
    host.kill()
    holder = _sweep(host)
    try:
        host.spawn()
        await serving(host)
        async with connected(host) as client:
            await assert_on_without_its_database(client, "another server has")
            (host.base / "go").touch()
            assert holder.wait(PATIENCE_S) == 0
            await asyncio.to_thread(host.wait_ready)
            assert (await client.reached(job_id, "running"))["attempts"] == 2
            assert_ended_badly(await client.cancel(job_id), "cancelled")
            await client.assert_takes_jobs()
    finally:
        holder.kill()
    assert errors(host) == []


def _sweep(host) -> subprocess.Popen:
    """The command `janitor`, held up for as long as a test wants while it sweeps."""
    code = """
import pathlib, runpy, sys, time
base, root = pathlib.Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, root)
from alias import register
register()
from comfyui_guarded.guard.janitor import Janitor
sweep = Janitor.sweep
def slow(*args, **kwargs):
    (base / "sweeping").touch()
    while not (base / "go").exists():
        time.sleep(0.02)
    return sweep(*args, **kwargs)
Janitor.sweep = slow
sys.argv = ["guarded", "janitor", "--output", str(base / "output"), "--user", str(base / "user")]
sys.path.insert(0, root)
runpy.run_path(root, run_name="__main__")
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(host.base), str(REPO)])
    ends_s = time.monotonic() + PATIENCE_S
    while not (host.base / "sweeping").exists():
        assert process.poll() is None
        assert time.monotonic() < ends_s
        time.sleep(0.02)
    return process


async def test_the_lock_of_a_killed_server_holds_nobody_up(server):
    host = server().start()
    host.kill()
    host.start()
    async with connected(host) as client:
        await client.assert_takes_jobs()


@pytest.mark.parametrize("damage", ["no database at all", "a page in the middle", "its end is missing"])
async def test_a_corrupt_database_is_set_aside_with_a_message_and_what_can_be_read_is_kept(server, damage):
    host = server()
    path = database(host.base)
    if damage == "no database at all":
        path.parent.mkdir(parents=True)
        path.write_bytes(b"this is not a database, whatever it is called. " * 200)
    else:
        await _make_jobs(host)
        content = bytearray(path.read_bytes())
        if damage == "a page in the middle":
            middle = len(content) // 2 // 4096 * 4096
            content[middle : middle + 4096] = b"\xa5" * 4096
        else:
            del content[len(content) * 3 // 4 // 4096 * 4096 :]  # the first half is the heads of tables
        path.write_bytes(content)
    damaged = path.read_bytes()
    host.log.unlink(missing_ok=True)
    host.start()
    saved = {"no database at all": 0, "a page in the middle": 25, "its end is missing": 1}[damage]
    async with connected(host) as client:
        assert saved <= len(await client.jobs()) <= (30 if saved else 0)
        assert_succeeded(await client.run(picture()))
    (aside,) = (part for part in path.parent.glob("guarded.db.corrupt-*") if not part.name.endswith(("-wal", "-shm")))
    assert aside.read_bytes() == damaged
    (line,) = (line for line in host.log.read_text().splitlines() if "set aside" in line)
    assert str(path) in line
    assert aside.name in line


@pytest.mark.parametrize("whose", ["jobs_queued", "jobs_open", "transitions", "jobs"])
async def test_a_bad_page_in_a_large_database_is_mended_while_the_server_serves(server, whose):
    """Over 64 MiB the file is not checked as a whole before it is opened."""
    host = server()
    path = database(host.base)
    await _make_jobs(host)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO bodies VALUES (1000000, zeroblob(?))", (66 * 2**20,))  # a stray, but a large one
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = map_pages(path)
    page = (pages.of("index", whose) or pages.of("leaf", whose))[-1]
    with open(path, "r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)
    host.log.unlink()
    host.spawn()
    await serving(host)
    admitted, ends_s = [], time.monotonic() + PATIENCE_S
    async with connected(host) as client:
        # Some find the bad page at the start, some with the first job, and the rest the check.
        while "was damaged" not in host.log.read_text():
            assert time.monotonic() < ends_s
            answer = await client.submit(text())
            assert answer.status in (200, 503)
            if answer.status == 200:
                admitted.append(answer.json["prompt_id"])
            await asyncio.sleep(0.1)
        await asyncio.to_thread(host.wait_ready)
        assert_succeeded(await client.run(picture()))
        for job_id in admitted:
            assert_succeeded(await client.settled(job_id))
        lost = sum(1 for (table, _number), on in pages.rows.items() if table == "jobs" and page in on)
        assert len(await client.jobs()) == 30 - lost + len(admitted) + 1
    assert off_lines(host.log.read_text()) == []
    assert "Traceback" not in host.log.read_text()


async def _make_jobs(host) -> None:
    host.start()
    async with connected(host) as client:
        for _ in range(30):
            job = await client.run(text("x" * 2000))
        assert_succeeded(job)
    host.stop()
    with contextlib.closing(sqlite3.connect(database(host.base))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def test_a_database_of_a_later_version_is_left_untouched_and_used_once_it_can_be(server):
    host = server()
    await _make_jobs(host)
    _set_version(host, 999)
    before = database(host.base).read_bytes()
    host.log.unlink()
    host.spawn()
    await serving(host)
    async with connected(host) as client:
        await assert_on_without_its_database(client, "later version")
        await asyncio.sleep(3)
        assert database(host.base).read_bytes() == before
        (line,) = errors(host)
        assert "later version" in line
        _set_version(host, len(MIGRATIONS))  # as if the right version's file had been put back
        await asyncio.to_thread(host.wait_ready)
        assert len(await client.jobs()) == 30
        await client.assert_takes_jobs()


def _set_version(host, version: int) -> None:
    with contextlib.closing(sqlite3.connect(database(host.base))) as db:
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.skipif(sys.platform == "win32", reason="a locked file cannot be deleted there, nor a process stopped")
async def test_a_server_that_lost_its_lock_to_another_one_stops_and_no_job_has_two_verdicts(server):
    """A stopped process cannot make its lock anew; the other one takes its database over meanwhile."""
    first = server().start()
    async with connected(first) as client:
        job_id = await client.admitted(sleep(0.5, steps=20))
        waiting = await client.admitted(picture())
        await client.inside_a_node(job_id)
    os.kill(first.pid, signal.SIGSTOP)
    Path(f"{database(first.base)}.lock").unlink()
    second = server()
    second.log = second.base / "second.log"
    second.start()
    async with connected(second) as client, connected(first) as late:
        assert (await client.reached(job_id, "running"))["attempts"] == 2
        os.kill(first.pid, signal.SIGCONT)
        await late.polled(lambda: late.request("GET", "/guarded/ready"), lambda ready: ready.status == 503)
        (alarm,) = (await late.get("/guarded/stats"))["alarms"]
        assert alarm["code"] == "store_unavailable"
        assert "another process has opened the job database" in alarm["message"]
        for method, path, body in (
            ("POST", "/guarded/prompt", {"prompt": text()}),
            ("GET", f"/guarded/jobs/{job_id}", None),
            ("DELETE", f"/guarded/jobs/{job_id}", None),
        ):
            assert_refusal(await late.request(method, path, body), "server_unavailable")
        assert "guarded_ready 0.0" in (await late.request("GET", "/guarded/metrics")).content.decode()
        for job in (job_id, waiting):
            assert_succeeded(await client.settled(job))
        await client.assert_takes_jobs()
    for states in transitions(first.base).values():
        assert_settled_once(states)
    assert len([line for line in first.log.read_text().splitlines() if "CRITICAL" in line]) == 1


@pytest.mark.parametrize("mode", ["closed", "guarded"])
async def test_without_its_database_a_server_opens_none_of_comfyuis_own_doors(server, mode):
    host = server(GUARDED_NATIVE__MODE=mode)
    path = database(host.base)
    path.mkdir(parents=True)  # where the file should be
    host.spawn()
    await serving(host)
    async with connected(host) as client:
        assert (await client.request("GET", "/guarded/ready")).status == 503
        stranger = {"X-Forwarded-For": "203.0.113.9"}  # as if a proxy on this machine passed somebody on
        for method, door in (("POST", "/prompt"), ("GET", "/history"), ("GET", "/queue"), ("POST", "/interrupt")):
            answer = await client.request(method, door, {"prompt": text()}, headers=stranger)
            assert answer.status in (401, 403), (door, answer)
        if mode == "guarded":
            assert_refusal(await client.request("POST", "/prompt", {"prompt": text()}), "server_unavailable")
        path.rmdir()
        await asyncio.to_thread(host.wait_ready)
        await client.assert_takes_jobs()
    assert len(errors(host)) == 1
