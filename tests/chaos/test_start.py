"""Starts that go wrong: the plugin says why, stays off as a whole, and the host runs."""

import contextlib
import sqlite3

import pytest
from chaos.conftest import database
from contract.client import assert_succeeded, connected, picture, text

pytestmark = pytest.mark.chaos


def off_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if "ComfyUI-Guarded is OFF" in line]


async def assert_off_while_the_host_runs(host) -> str:
    """The one line of the log that says why."""
    async with connected(host) as client:
        for path in ("/guarded/health", "/guarded/ready", "/guarded/jobs"):
            assert (await client.request("GET", path)).status == 404
        assert (await client.request("POST", "/guarded/prompt", {"prompt": text()})).status in (404, 405)
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


async def test_a_second_server_on_the_same_user_directory_stays_off(server):
    first = server().start()
    second = server(guarded=False)
    second.log = second.base / "second.log"
    second.start()
    line = await assert_off_while_the_host_runs(second)
    assert "another server has" in line
    assert str(database(first.base)) in line
    async with connected(first) as client:
        await client.assert_takes_jobs()
    assert off_lines(first.log.read_text()) == []


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
        middle = len(content) // 2 // 4096 * 4096
        if damage == "a page in the middle":
            content[middle : middle + 4096] = b"\xa5" * 4096
        else:
            del content[middle:]
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


async def _make_jobs(host) -> None:
    host.start()
    async with connected(host) as client:
        for _ in range(30):
            job = await client.run(text("x" * 2000))
        assert_succeeded(job)
    host.stop()
    with contextlib.closing(sqlite3.connect(database(host.base))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def test_a_database_of_a_later_version_is_left_untouched(server):
    host = server()
    await _make_jobs(host)
    with contextlib.closing(sqlite3.connect(database(host.base))) as db:
        db.execute("PRAGMA user_version = 999")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = database(host.base).read_bytes()
    host.log.unlink()
    line = await assert_off_while_the_host_runs(server(guarded=False).start())
    assert "later version" in line
    assert database(host.base).read_bytes() == before
