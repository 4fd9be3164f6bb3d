"""Draining, and what a SIGTERM means, in processes of the tests' own."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from unit.fakes import LONG_S, new_job
from unit.store_steps import Held

from comfyui_guarded.guard.errors import CancelledError, ServerUnavailableError
from comfyui_guarded.guard.life.drain import Drain
from comfyui_guarded.guard.life.process import EXIT_STUCK

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture
def woken():
    return []


@pytest.fixture
def make_drain(machine, woken, tmp_path):
    """Another one for each process that starts."""
    return lambda: Drain(
        machine.health,
        machine.store,
        lambda: woken.append(machine.health.problems()),
        machine.dispatcher.handing,
        tmp_path,
    )


@pytest.fixture
def drain(make_drain):
    return make_drain()


async def test_while_draining_no_job_is_let_in_and_none_begun_and_afterwards_both(machine, drain, woken):
    waiting = machine.submit()
    drain.begin()
    assert machine.health.problems() == ["draining"]
    with pytest.raises(ServerUnavailableError, match="draining"):
        machine.health.check_ready()
    assert not await machine.dispatcher.turn()
    assert machine.ended(waiting) == ("queued", None)
    drain.end()
    assert woken == [[]]
    machine.health.check_ready()
    assert await machine.dispatcher.turn()


async def test_the_process_does_not_end_before_its_answers_are_sent(drain, monkeypatch):
    monkeypatch.setattr("comfyui_guarded.guard.life.drain._LEAVE_S", LONG_S)
    drain.requests, ended = 1, threading.Event()
    drain.leaving.subscribe(lambda: ended.set())
    running = threading.Thread(target=drain.run, args=(LONG_S,))
    running.start()
    assert ended.wait(LONG_S)
    running.join(0.5)
    assert running.is_alive()
    drain.requests = 0
    running.join(LONG_S)
    assert not running.is_alive()


async def test_an_operators_drain_outlives_the_process_and_a_sigterms_does_not(machine, drain, make_drain):
    drain.run(0)
    machine.health.draining = False  # as in a new process
    make_drain()
    assert machine.health.problems() == []
    drain.begin()
    machine.health.draining = False
    after = make_drain()
    assert machine.health.problems() == ["draining"]
    after.end()
    make_drain()
    assert machine.health.problems() == []


async def test_a_drain_that_cannot_be_noted_holds_all_the_same_and_says_so(machine, drain, tmp_path, caplog):
    (tmp_path / "draining.new").mkdir()
    drain.begin()
    assert machine.health.problems() == ["draining"]
    assert "a restart would end it" in caplog.text
    drain.end()
    assert machine.health.problems() == []


async def test_a_drain_lasts_until_no_slot_is_held_and_no_result_is_checked(machine, drain):
    job_id = await machine.run()
    draining = threading.Thread(target=drain.run, args=(LONG_S,))
    draining.start()
    while not machine.health.draining:
        pass
    assert draining.is_alive()
    machine.runs.released(job_id)
    assert machine.leased() == 0
    draining.join(0.3)
    assert draining.is_alive(), "its result is not there yet"
    machine.settler.end(machine.job(job_id), CancelledError("The job was cancelled."))
    draining.join(LONG_S)
    assert not draining.is_alive()
    assert machine.health.draining, "it goes on until somebody says otherwise"


def test_a_drain_lasts_until_what_jobs_have_made_is_elsewhere_too(machine, drain):
    left = [1]
    drain.doing.append(lambda: left[0])
    draining = threading.Thread(target=drain.run, args=(LONG_S,))
    draining.start()
    draining.join(0.3)
    assert draining.is_alive()
    left[0] = 0
    draining.join(LONG_S)
    assert not draining.is_alive()


async def test_a_drain_ends_with_its_grace_although_a_job_goes_on(machine, drain):
    job_id = await machine.run()
    drain.run(0.2)
    assert machine.ended(job_id) == ("running", None)


async def test_a_drain_ends_in_time_with_a_store_that_is_silent_and_says_nothing_of_it(machine, drain):
    await machine.run()
    goes_on = threading.Event()
    machine.store._engine.read(lambda _db: goes_on.wait(LONG_S))
    with Held(machine.store):
        began_s = time.monotonic()
        drain.run(0.3)
        took_s = time.monotonic() - began_s
    goes_on.set()
    assert 0.3 <= took_s < LONG_S / 2


def test_a_drain_with_nothing_under_way_ends_at_once_whatever_waits(machine, drain, store):
    store.submit(new_job(), 10).result(LONG_S)
    drain.run(LONG_S)


# The process. -----------------------------------------------------------------------------------------------------


def _python(code: str, tmp_path) -> subprocess.Popen:
    """A process with `process`, of which `closing` writes a line."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    head = f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {folder!r})
        import alias
        alias.register()
        sys.path.pop(0)
        from comfyui_guarded.guard.life.process import Process
        say = lambda *words: print(*words, flush=True)
        process = Process(lambda: say("closed"), lambda _within_s: say("flushed") or True)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(head) + textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, str(script), "an argument"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _ended(process):
    out, err = process.communicate(timeout=LONG_S)
    return process.returncode, out.split(), err


def test_exit_closes_the_store_and_ends_with_the_documented_code_from_any_thread(tmp_path):
    code = "threading.Thread(target=process.exit, args=('why',)).start()\ntime.sleep(60)"
    assert _ended(_python(code, tmp_path))[:2] == (75, ["closed"])
    assert EXIT_STUCK == 75


@posix
def test_restart_begins_the_same_process_anew_with_the_same_arguments_from_any_thread(tmp_path):
    code = """
        print(os.getpid(), sys.argv[1].replace(" ", "_"), flush=True)
        if "again" in os.environ:
            sys.exit(3)
        os.environ["again"] = "1"
        threading.Thread(target=process.restart, args=("why",)).start()
        time.sleep(60)
    """
    process = _python(code, tmp_path)
    line = [str(process.pid), "an_argument"]
    assert _ended(process)[:2] == (3, [*line, "flushed", *line])


def test_a_store_that_hangs_does_not_keep_a_stuck_process_alive(tmp_path):
    code = "import threading\nProcess(threading.Event().wait, None).exit('why')"
    assert _ended(_python(code, tmp_path))[0] == EXIT_STUCK


def test_a_store_that_hangs_is_not_closed_when_python_ends(tmp_path):
    code = "import atexit\natexit.register(Process(threading.Event().wait, lambda _within_s: False).close)"
    assert _ended(_python(code, tmp_path))[:2] == (0, [])


@posix
def test_a_restart_that_fails_closes_nothing_says_why_once_and_works_later(tmp_path):
    code = """
        import logging
        logging.basicConfig()
        if "again" in os.environ:
            sys.exit(3)
        os.environ["again"] = "1"
        real, sys.executable = sys.executable, "/nowhere/python"
        for _ in range(3):
            process.restart("why")
            say("alive", process.failure.split(":")[0])
        sys.executable = real
        process.restart("why")
    """
    returncode, said, error = _ended(_python(code, tmp_path))
    assert (returncode, said) == (3, ["flushed", "alive", "/nowhere/python"] * 3 + ["flushed"])
    assert error.count("cannot be restarted") == 1


@posix
def test_a_process_whose_lock_is_held_by_c_code_ends_and_one_that_goes_on_reporting_does_not(tmp_path):
    code = """
        import ctypes
        for _ in range(4):
            process.end_if_silent(2)
            time.sleep(1)
        print("well", flush=True)
        ctypes.PyDLL(None).sleep(60)
    """
    returncode, said, error = _ended(_python(code, tmp_path))
    assert (returncode, said) == (1, ["well"])
    assert "Timeout" in error, "and says where it hung"


SIGTERM = """
    def drain(grace_s):
        print("draining", grace_s, flush=True)
        {drain}
    process.on_sigterm(drain, 7)
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def _terminated(tmp_path, drain):
    process = _python(SIGTERM.format(drain=drain), tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    return _ended(process)


@posix
def test_a_sigterm_drains_and_then_does_what_ctrl_c_does(tmp_path):
    assert _terminated(tmp_path, "time.sleep(0.1)")[:2] == (0, ["draining", "7", "interrupted"])


@posix
def test_a_sigterm_ends_a_process_that_was_started_to_ignore_ctrl_c(tmp_path):
    ignoring = "    signal.signal(signal.SIGINT, signal.SIG_IGN)" + SIGTERM
    process = _python(ignoring.format(drain="pass"), tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert _ended(process)[:2] == (0, ["draining", "7", "interrupted"])


@posix
def test_a_drain_that_fails_does_not_swallow_the_sigterm(tmp_path):
    returncode, said, _error = _terminated(tmp_path, "raise OSError('no store')")
    assert (returncode, said[-1]) == (0, "interrupted")


@posix
def test_a_second_sigterm_changes_nothing(tmp_path):
    process = _python(SIGTERM.format(drain="time.sleep(1)"), tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "draining 7\n"
    process.send_signal(signal.SIGTERM)
    assert _ended(process)[:2] == (0, ["interrupted"])


@posix
def test_a_sigterm_handler_that_somebody_else_has_set_stays(tmp_path):
    code = """
        signal.signal(signal.SIGTERM, lambda *_args: sys.exit(9))
        process.on_sigterm(lambda _grace_s: None, 7)
        print("ready", flush=True)
        time.sleep(60)
    """
    process = _python(code, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert _ended(process)[0] == 9


def test_a_drain_says_that_the_server_leaves_once_nothing_runs_and_waits_for_those_that_listen(machine, drain):
    said = []
    drain.leaving.subscribe(lambda: said.append(machine.store.leased))
    left = [2, 1, 0]
    drain.listeners.append(lambda: left.pop(0))
    drain.run(LONG_S)
    assert said == [0]
    assert left == []
