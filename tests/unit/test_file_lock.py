"""The lock that keeps other processes out: held across a fork, free after a death, noticed where it is deleted."""

import os
import subprocess
import time

import pytest
from unit.children import as_child
from unit.fakes import LONG_S

from comfyui_guarded.guard.store.file_lock import FileLock, LockedError

PROGRAM = """
import atexit, os, signal, time
from comfyui_guarded.guard.store.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def program(tmp_path):
    """Runs Python with a lock on `tmp_path / "lock"`; returns the process."""
    begun = []

    def run(code):
        begun.append(
            subprocess.Popen(
                as_child(PROGRAM + code, tmp_path / "lock"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def is_free(path):
    lock = FileLock(path)
    try:
        lock.acquire()
    except LockedError:
        return False
    lock.release()
    return True


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    path = tmp_path / "lock"
    lock = FileLock(path)
    lock.acquire()
    assert lock.is_held
    assert not is_free(path)
    with pytest.raises(LockedError, match="lock"), FileLock(path).hold(timeout_s=0.1):
        pass
    lock.release()
    lock.release()
    assert not lock.is_held
    assert is_free(path)
    assert path.exists(), "deleting it would let two others lock two files of one name"


def test_a_lock_that_is_free_soon_is_waited_for(tmp_path, program):
    holder = program("lock.acquire(); print('held', flush=True); time.sleep(0.5)")
    assert holder.stdout.readline() == "held\n"
    with FileLock(tmp_path / "lock").hold(timeout_s=LONG_S):
        assert not is_free(tmp_path / "lock")


def test_the_lock_of_a_killed_process_is_free(tmp_path, program):
    holder = program("lock.acquire(); print('held', flush=True); time.sleep(3600)")
    assert holder.stdout.readline() == "held\n"
    assert not is_free(tmp_path / "lock")
    holder.kill()
    holder.wait(LONG_S)
    assert is_free(tmp_path / "lock")


@needs_fork
def test_a_child_that_ends_as_a_whole_program_does_not_free_its_parents_lock(tmp_path, program):
    holder = program(
        "atexit.register(lock.release)\n"
        "lock.acquire()\n"
        "if not (child := os.fork()):\n"
        "    sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print('child gone', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    assert holder.stdout.readline() == "child gone\n"
    assert not is_free(tmp_path / "lock")
    holder.communicate("go\n", timeout=LONG_S)
    assert is_free(tmp_path / "lock")


@needs_fork
def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path, program):
    holder = program(
        "lock.acquire()\nif not os.fork():\n    print(os.getpid(), flush=True)\n    time.sleep(3600)\nos.wait()\n"
    )
    child = int(holder.stdout.readline())
    try:
        assert not is_free(tmp_path / "lock")
        holder.kill()
        holder.wait(LONG_S)
        os.kill(child, 0)
        assert is_free(tmp_path / "lock")
    finally:
        os.kill(child, 9)


@pytest.mark.skipif(os.name == "nt", reason="a locked file cannot be deleted there")
def test_a_lock_whose_file_was_deleted_knows_that_it_keeps_nobody_out_any_more(tmp_path):
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    assert lock.is_current()
    (tmp_path / "lock").unlink()
    assert not lock.is_current()
    other = FileLock(tmp_path / "lock")
    other.acquire()
    assert not lock.is_current()
    assert other.is_current()
    lock.release()
    assert not is_free(tmp_path / "lock"), "the file of the other one"
    other.release()


def test_a_file_system_that_refuses_says_so(tmp_path):
    with pytest.raises(OSError, match="no such folder") as raised:
        FileLock(tmp_path / "no such folder" / "lock").acquire()
    assert not isinstance(raised.value, LockedError)
    began_s = time.monotonic()
    with pytest.raises(OSError, match="no such folder"), FileLock(tmp_path / "no such folder" / "x").hold(LONG_S):
        pass
    assert time.monotonic() < began_s + LONG_S
