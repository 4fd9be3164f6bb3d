"""What the host's own queue and history show of jobs that the host does not have."""

import gc
import json
import threading

import pytest
from unit.fakes import LONG_S

from comfyui_guarded.guard.callers import backlog as module
from comfyui_guarded.guard.callers.backlog import Backlog
from comfyui_guarded.guard.errors import CancelledError
from comfyui_guarded.guard.job import SUCCESS, Result


@pytest.fixture
def backlog(machine, store, host):
    made = Backlog(store, host, machine.settler, machine.jobs)
    made.load()
    store.changed.subscribe(made.follow)
    return made


def ids(backlog, *known):
    return [row[1] for row in backlog.rows(set(known))]


async def test_a_job_is_shown_from_its_commit_until_it_has_settled(backlog, machine, store):
    first, second = machine.submit(), machine.submit()
    assert ids(backlog) == [first, second]
    assert backlog.count([]) == 2
    assert await machine.dispatcher.turn()
    assert ids(backlog) == [first, second], "on its way to the host's queue it is in neither"
    assert ids(backlog, first) == [second]
    assert (backlog.count([first, "a native prompt"]), backlog.waiting([first])) == (1, [second])
    machine.settler.end(machine.job(second), CancelledError("The job was cancelled.")).result(LONG_S)
    assert ids(backlog, first) == []
    assert backlog.count([first]) == 0


def test_a_row_is_what_comfyui_would_have_in_its_queue(backlog, machine):
    body = {"prompt": {"1": {"class_type": "X", "inputs": {}}}, "extra_data": {"extra_pnginfo": {}}, "guard": {}}
    job_id = machine.submit(body=json.dumps(body).encode(), client_id="tab", outputs_to_execute=("1",))
    (row,) = backlog.rows([])
    created_at_ms = machine.job(job_id).created_at_ms
    extra_data = {"extra_pnginfo": {}, "client_id": "tab", "create_time": created_at_ms}
    assert row == [1, job_id, body["prompt"], extra_data, ["1"]]
    assert backlog.rows([])[0] is row, "read once"


def test_what_is_too_much_to_show_whole_is_shown_bare_until_there_is_room(backlog, machine, monkeypatch):
    first, second = machine.submit(), machine.submit()
    size = len(machine.store.find_entry(first).result(LONG_S).body)
    monkeypatch.setattr(module, "KEPT_BYTES", size)
    for _ in range(2):
        whole, bare = backlog.rows([])
        assert (whole[1], bare[1]) == (first, second)
        assert whole[2]
        assert bare == [whole[0] + 1, second, {}, {"create_time": machine.job(second).created_at_ms}, []]
    assert backlog.row(second)[2] == whole[2]
    machine.settler.end(machine.job(first), CancelledError("The job was cancelled.")).result(LONG_S)
    assert backlog.rows([]) == [backlog.row(second)]


def test_a_look_reads_for_a_short_time_only_and_the_next_one_goes_on(backlog, machine, monkeypatch):
    jobs = [machine.submit() for _ in range(2)]
    monkeypatch.setattr(module, "LOOK_S", -1.0)
    assert [row[1:3] for row in backlog.rows([])] == [[job_id, {}] for job_id in jobs]
    monkeypatch.setattr(module, "LOOK_S", LONG_S)
    assert all(row[2] for row in backlog.rows([]))


def test_only_so_many_are_shown_and_all_are_counted(backlog, machine, monkeypatch):
    monkeypatch.setattr(module, "SHOWN", 2)
    jobs = [machine.submit() for _ in range(3)]
    assert ids(backlog) == jobs[:2]
    assert backlog.count([]) == 3
    assert backlog.waiting([]) == jobs


def test_waiting_jobs_are_nothing_to_the_garbage_collector(machine, store, host):
    """It holds up every thread while it looks at all that there is."""
    jobs = [machine.submit(client_id="tab") for _ in range(300)]
    before = count_collected()
    backlog = Backlog(store, host, machine.settler, machine.jobs)
    backlog.load()
    assert count_collected() - before < len(jobs) / 2
    assert ids(backlog) == jobs


def count_collected():
    gc.collect()
    gc.collect()
    return len(gc.get_objects())


async def test_what_an_earlier_process_has_left_is_shown(machine, store, host):
    running, waiting = await machine.run(), machine.submit()
    backlog = Backlog(store, host, machine.settler, machine.jobs)
    backlog.load()
    assert ids(backlog) == [running, waiting]


async def test_what_is_taken_out_is_cancelled_even_if_it_begins_in_that_moment(backlog, machine):
    """The host names only what it does not have yet: nobody could see it run."""
    begun, waiting = await machine.run(), machine.submit()
    backlog.take_out([begun, waiting, "no job"])
    assert machine.ended(waiting) == ("cancelled", "cancelled")
    assert machine.ended(begun) == ("cancelled", "cancelled")


async def test_the_host_is_told_of_what_comes_and_goes_and_of_nothing_else(backlog, machine, host, store):
    job_id = await machine.run()
    assert host.queue_changes == 1
    store.settle(job_id, SUCCESS, Result()).result(LONG_S)
    assert host.queue_changes == 2


async def test_the_history_has_settled_jobs_until_somebody_deletes_them(backlog, machine, store):
    outputs = {"2": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
    job_id = await machine.run(owner="local")
    assert backlog.history_entry(job_id) is None
    store.settle(job_id, SUCCESS, Result(outputs)).result(LONG_S)
    entry = backlog.history_entry(job_id)
    assert (entry["outputs"], entry["status"]["status_str"], entry["prompt"][1]) == (outputs, "success", job_id)
    assert backlog.history_entry("no job") is None
    backlog.forget(job_id)
    assert backlog.history_entry(job_id) is None, "at once"
    store.flush()
    assert backlog.history_entry(job_id) is None


async def test_clearing_the_history_is_for_the_jobs_of_this_machine(backlog, machine, store):
    mine, others = machine.submit(owner="local"), machine.submit(owner="bot")
    for job_id in (mine, others):
        machine.settler.end(machine.job(job_id), CancelledError("The job was cancelled.")).result(LONG_S)
    backlog.forget(None)
    store.flush()
    assert backlog.history_entry(mine) is None
    assert backlog.history_entry(others) is not None


def test_rows_may_be_asked_for_from_any_thread_while_jobs_come_and_go(backlog, machine, store):
    done, seen, failures = threading.Event(), [], []

    def look():
        try:
            while not done.is_set():
                seen.append(len(backlog.rows(set())))
        except Exception as error:
            failures.append(error)

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    for _ in range(10):
        job_id = machine.submit()
        machine.settler.end(machine.job(job_id), CancelledError("The job was cancelled.")).result(LONG_S)
    done.set()
    for thread in looking:
        thread.join()
    assert failures == []
    assert seen
    assert (backlog.rows(set()), backlog._bytes, backlog._rows, backlog._large) == ([], 0, {}, {})
