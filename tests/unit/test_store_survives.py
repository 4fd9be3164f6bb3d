"""What survives a power cut: which commits wait for the disk, as the system itself sees it."""

import os
import re
import shutil
import subprocess

import pytest
from unit.children import as_child
from unit.fakes import LONG_S
from unit.store_steps import submit

from comfyui_guarded.guard.store import SqliteStore, disk, held_file, repair, threads

PROGRAM = """
import os
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import SUCCESS
from comfyui_guarded.guard.store import SqliteStore
from unit.fakes import LONG_S, new_job
from unit.store_steps import Held, claim, submit

def mark(name):
    os.access("/mark " + name, os.F_OK)  # seen in the trace

mark("open")
store = SqliteStore(Path(sys.argv[1]), Clock(), sys.argv[2])
store._engine.read_slowly(lambda db: None).result(LONG_S)  # the opening has the log worked into the file, which waits
submit(store)  # and begins the log anew after that, which waits for its head
mark("together")
with Held(store):
    futures = [store.submit(new_job(), 10**9) for _ in range(50)]
    futures.append(store.claim("local", 1))
for future in futures:
    future.result(LONG_S)
mark("others")
(job_id,) = store.leases
for future in (store.hand_over(job_id), store.start(job_id), store.validate(job_id), store.mark_heard("x")):
    future.result(LONG_S)
mark("verdict")
store.settle(job_id, SUCCESS).result(LONG_S)
mark("after")
store.release(job_id).result(LONG_S)
claim(store)
mark("end")
store.close()
"""


def trace(tmp_path, survives):
    """By phase of the program: how often it waited for the disk."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    out = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,access,faccessat,faccessat2"
    child = as_child(PROGRAM, tmp_path / "new" / "folder" / "jobs.db", survives)
    done = subprocess.run(
        ["strace", "-f", "-y", "-e", calls, "-o", str(out), *child],
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may trace nothing here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    phases, files = {}, []
    for line in out.read_text().splitlines():
        if found := re.search(r"/mark (\w+)", line):
            files = phases.setdefault(found[1], [])
        elif found := re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line):
            files.append(found[1])
    return phases


def test_only_commits_with_a_submit_or_a_verdict_wait_for_the_disk_and_share_the_wait(tmp_path):
    phases = trace(tmp_path, "power_cut")
    log = f"{tmp_path}/new/folder/jobs.db-wal"
    assert log in phases["open"]
    # So that the names of new folders, and of the file in the last one, survive it too.
    assert {str(tmp_path), f"{tmp_path}/new", f"{tmp_path}/new/folder"} <= set(phases["open"])
    assert phases["together"] == [log], "fifty submits and a claim that came in together"
    assert phases["others"] == []
    assert phases["verdict"] == [log]
    assert phases["after"] == []


def test_where_only_a_kill_must_be_survived_no_commit_waits(tmp_path):
    phases = trace(tmp_path, "kill")
    assert [phases[name] for name in ("together", "others", "verdict", "after")] == [[], [], [], []]


def test_a_file_that_had_to_be_written_anew_is_on_the_disk_before_it_takes_the_old_name(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(threads, "LOOK_S", LONG_S)
    steps = []
    sync, replace = repair.sync, os.replace
    monkeypatch.setattr(disk, "sync", lambda path: (steps.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(disk.os, "replace", lambda old, new: (steps.append(("replace", new.name)), replace(old, new)))
    store = SqliteStore(tmp_path / "jobs.db", clock)
    submit(store)
    (tmp_path / "jobs.db").unlink()
    store._engine._file._looked_s = -held_file.LOOK_S
    submit(store)
    store.close()
    assert steps == [("sync", "jobs.db.restored"), ("replace", "jobs.db"), ("sync", tmp_path.name)]


@pytest.mark.parametrize(("survives", "expected"), [("power_cut", (2, 1, 1)), ("kill", (1, 0, 0))])
def test_the_connections_ask_for_what_the_setting_says(tmp_path, clock, survives, expected):
    """`fullfsync` matters on macOS only, where the drive otherwise may hold back what it says it has written."""

    def asked(db):
        return tuple(
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "fullfsync", "checkpoint_fullfsync")
        )

    store = SqliteStore(tmp_path / "jobs.db", clock, survives)
    assert store._engine.write(asked, durable=True).result(LONG_S) == expected
    assert store._engine.write(asked).result(LONG_S) == (1, *expected[1:])
    assert store._engine.read_slowly(asked).result(LONG_S) == (1, *expected[1:]), "it works the log into the file"
    store.close()
