"""Raise an exception in another thread, wherever it is: no lock of Python's stays locked."""

import logging
import subprocess
import threading
import time

import pytest
from unit.children import as_child
from unit.fakes import LONG_S

from comfyui_guarded.guard.life import injection

TRIES = 100
TRACED = """
import threading
from comfyui_guarded.guard.life import injection

class StopError(BaseException): pass

held, seen = threading.Event(), []

def run():
    try:
        held.wait()
        while len(seen) < 10**7:
            seen.append(0)
    except StopError:
        seen[:] = ["stopped"]

thread = threading.Thread(target=run)
thread.start()
lines = []

def trace(frame, event, _argument):
    lines.append(event)
    return trace

def called():
    return 1

sys.settrace(trace)
assert injection.inject(thread.ident, StopError)
called()
if sys.argv[1] == "withdrawn":
    injection.withdraw(thread.ident)
    called()
sys.settrace(None)
assert lines.count("call") > 2
held.set()
thread.join()
print(seen[0])
"""


class StopError(BaseException):
    """What is raised."""


class _Handler(logging.Handler):
    def emit(self, record):
        """Says nothing."""


@pytest.fixture
def log():
    log = logging.getLogger("test-injection")
    handler = _Handler()
    log.addHandler(handler)
    log.propagate = False
    yield log
    log.removeHandler(handler)
    logging._handlerList[:] = [each for each in logging._handlerList if each() is not handler]


def is_free(lock):
    """Whether this thread can have the lock."""
    if lock.acquire(timeout=0):
        lock.release()
        return True
    return False


def test_who_logs_all_the_time_keeps_no_handler_locked(log):
    """Each try hits the thread somewhere else."""
    raised = 0
    for number in range(TRIES):
        is_on = threading.Event()

        def run(is_on=is_on):
            try:
                is_on.set()
                while True:
                    log.warning("again")
                    for _ in range(500):
                        pass
            except StopError:
                return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        is_on.wait()
        time.sleep(number % 7 * 0.0001)
        while thread.is_alive():
            if injection.inject(thread.ident, StopError):
                raised += 1
                thread.join(10)
                break
            time.sleep(0.0001)
        assert not thread.is_alive()
        assert is_free(log.handlers[0].lock), f"the log is locked after {number + 1} tries"
    assert raised == TRIES


def test_a_module_that_is_half_imported_is_imported_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "slowly_imported.py").write_text("import time\ntime.sleep(0.5)\nDONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def run():
        try:
            import slowly_imported

            seen.append(slowly_imported.DONE)
            while True:
                time.sleep(0.001)
        except StopError:
            seen.append("stopped")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    time.sleep(0.1)
    while thread.is_alive() and not injection.inject(thread.ident, StopError):
        time.sleep(0.01)
    thread.join(10)
    assert seen == [True, "stopped"]


def test_what_has_not_been_raised_can_be_taken_back():
    held, seen = threading.Event(), []

    def run():
        held.wait()
        seen.append("went on")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert injection.inject(thread.ident, StopError)
    injection.withdraw(thread.ident)
    held.set()
    thread.join(10)
    assert seen == ["went on"]


def test_a_thread_that_is_gone_has_nothing_raised():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    injection.inject(thread.ident, StopError)
    time.sleep(0)


@pytest.mark.parametrize(("then", "is_seen"), [("left", "stopped"), ("withdrawn", "0")])
def test_a_thread_that_hangs_in_c_keeps_no_other_from_being_traced(then, is_seen):
    """Beside: if it fails, the one that is traced does not end."""
    done = subprocess.run(as_child(TRACED, then), capture_output=True, text=True, timeout=LONG_S)
    assert (done.stdout.strip(), done.stderr) == (is_seen, "")
