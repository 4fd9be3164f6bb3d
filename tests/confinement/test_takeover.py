"""What an earlier version has left: upload folders under names that could be told, and jobs that wait with them."""

import sqlite3

import pytest
from confinement.conftest import Bot
from contract.client import KeyedClient, assert_succeeded, connected, make_key, photo_copy, sleep, unique
from contract.test_files import fresh, is_negative, result, uploaded

from comfyui_guarded.guard.owners import KEY_FILE, earlier_folder_of
from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind


@pytest.mark.timeout(180)
async def test_a_job_that_waited_in_the_earlier_version_runs_with_its_owners_upload(tmp_path):
    host = HostProcess(sandbox_kind(), tmp_path / "base")
    key = make_key(host.base, "alice")
    data, name = fresh(), f"{unique('old')}.png"
    with host:
        async with connected(host) as client:
            alice = Bot("alice", KeyedClient(client, key))
            await uploaded(alice.client, data, name)
            running = await client.admitted(sleep(3600))
            await client.running(running)
            waiting = await alice.client.admitted(photo_copy(name))
            now, earlier = alice.folder, earlier_folder_of("alice")
        host.kill()
    # As the earlier version would have left it.
    own = host.base / "user" / "__guarded"
    (host.base / "input" / now).rename(host.base / "input" / earlier)
    (own / KEY_FILE).unlink()
    with sqlite3.connect(own / "guarded.db") as db:
        table, column = next(
            (table, name)
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for _number, name, *_rest in db.execute(f"PRAGMA table_info({table})")
            if name == "body"
        )
        query = f"UPDATE {table} SET {column} = CAST(replace(CAST({column} AS TEXT), ?, ?) AS BLOB)"
        assert db.execute(query, (now, earlier)).rowcount >= 2
        db.execute("UPDATE jobs SET state = 'cancelled', settled_at_ms = 1 WHERE job_id = ?", (running,))
    db.close()
    with host:
        async with connected(host) as client:
            alice = Bot("alice", KeyedClient(client, key))
            assert alice.folder != now
            job = await alice.client.settled(waiting)
            assert_succeeded(job)
            assert is_negative(await result(alice.client, job), data)
            assert not (host.base / "input" / earlier).exists()
            assert (await alice.client.request("GET", f"/guarded/view?filename={name}&type=input")).content == data
