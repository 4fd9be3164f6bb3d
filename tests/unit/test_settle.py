"""One ending for every outcome: the first verdict holds, is durable before it is heard, and is heard once."""

import contextlib

import pytest
from unit.fakes import LONG_S, new_id, new_job
from unit.store_steps import Held

from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.errors import CancelledError, DiskFullError, GenerationTimeoutError, QueueTimeoutError
from comfyui_guarded.guard.job import SUCCESS, JobState, Result, Verdict

TIMEOUT = GenerationTimeoutError("The job ran longer than 1 s.")
IDS = ClientIds(b"key" * 11)
CANCEL = CancelledError("The job was cancelled.")
OVERDUE = QueueTimeoutError("The job waited longer than 1 s.")
RESULT = Result({"2": {"text": ["late"]}})


@pytest.fixture
def settler(machine):
    return machine.settler


@pytest.fixture
def secrets(machine):
    return machine.secrets


@contextlib.contextmanager
def full(store, *operations):
    """The disk, as those operations (by default settling) find it."""
    store.failing = frozenset(operations or {"settle"})
    yield
    store.failing = frozenset()


def _submit(store, **facts):
    return store.submit(new_job(**facts), 1000).result(LONG_S).job


def _run(store, **facts):
    job = _submit(store, **facts)
    store.claim("local", 1000).result(LONG_S)
    return store.start(job.job_id).result(LONG_S)


def _state(store, job):
    store.flush()
    found = store.get(job.job_id).result(LONG_S)
    return found.state, found.verdict.code if found.verdict else None


def _told(host):
    return [code for _job, _client, code in host.announced]


def test_an_end_is_settled_stopped_and_announced_to_its_own_socket(settler, store, host):
    job = _run(store, client_id="socket")
    settled = settler.end(job, TIMEOUT).result(LONG_S)
    assert settled.won
    assert _state(store, job) == (JobState.FAILED, "generation_timeout")
    assert host.stopped == [job.job_id]
    assert host.announced == [(job.job_id, IDS.of("bot", "socket"), "generation_timeout")]


def test_a_second_end_changes_nothing_and_announces_nothing(settler, store, host):
    job = _run(store)
    settler.end(job, TIMEOUT).result(LONG_S)
    second = settler.end(job, CANCEL).result(LONG_S)
    late = settler.settle(job, SUCCESS, RESULT).result(LONG_S)
    store.flush()
    assert (second.won, late.won) == (False, False)
    assert late.job.verdict.code == "generation_timeout"
    assert late.job.result == Result()
    assert _told(host) == ["generation_timeout"]


def test_an_ending_of_the_run_itself_stops_and_announces_nothing(settler, store, host):
    """The seam tells the socket itself, in ComfyUI's own order."""
    job = _run(store)
    assert settler.settle(job, SUCCESS, RESULT).result(LONG_S).won
    store.flush()
    assert (host.stopped, host.announced) == ([], [])


def test_nothing_is_announced_before_it_is_durable_and_the_stop_does_not_wait_for_that(settler, store, host):
    job, ending = _run(store), []
    settler.ending.subscribe(ending.append)
    with Held(store):
        future = settler.end(job, TIMEOUT)
        assert (host.stopped, ending, host.announced) == ([job.job_id], [job.job_id], [])
        assert not future.done()
    assert future.result(LONG_S).won
    assert _told(host) == ["generation_timeout"]


# The first verdict counts, from the moment on at which it is handed in. ----------------------------------------


LATER = {
    "cancel": lambda settler, job: settler.end(job, CANCEL),
    "success": lambda settler, job: settler.settle(job, SUCCESS, RESULT),
    "overdue": lambda settler, job: settler.end_waiting(job.job_id, OVERDUE),
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("disk", ["silent", "full", "full before"])
def test_every_later_verdict_gets_the_ending_of_the_first_whatever_the_disk_does(settler, store, host, disk, later):
    job = _run(store)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Held(store) if disk == "silent" else full(store))
        first = settler.end(job, TIMEOUT)
        assert settler.verdict_of(job.job_id).code == "generation_timeout"
        if disk == "full before":
            store.failing = frozenset()
        second = LATER[later](settler, job)
        assert second is first
        assert not first.done()
        assert settler.verdict_of(job.job_id).code == "generation_timeout"
        assert host.announced == []
    settler.retry()
    assert second.result(LONG_S).job.verdict.code == "generation_timeout"
    assert _state(store, job) == (JobState.FAILED, "generation_timeout")
    assert _told(host) == ["generation_timeout"]
    assert settler.verdict_of(job.job_id) is None, "the store has it now"


def test_a_second_end_stops_the_job_again(settler, store, host):
    """Its run may have begun between the two."""
    job, ending = _run(store), []
    settler.ending.subscribe(ending.append)
    with Held(store):
        settler.end(job, TIMEOUT)
        settler.end(job, CANCEL)
    assert (host.stopped, ending) == ([job.job_id] * 2, [job.job_id] * 2)


def test_nobody_who_waits_for_an_ending_can_cancel_it_for_the_others(settler, store):
    job = _run(store)
    with Held(store):
        future = settler.end(job, TIMEOUT)
        assert not future.cancel()
        assert settler.settle(job, SUCCESS) is future
    assert future.result(LONG_S).job.verdict.code == "generation_timeout"


def test_the_verdict_of_one_job_is_none_of_another(settler, store):
    job, other = _run(store), _run(store)
    with full(store):
        settler.settle(job, SUCCESS, RESULT)
        assert settler.verdict_of(job.job_id) == SUCCESS
        assert settler.verdict_of(other.job_id) is None


# Jobs that only end if they wait. ------------------------------------------------------------------------------


def test_an_overdue_job_that_waits_is_ended_and_one_that_runs_is_left_alone(settler, store, host):
    running, waiting = _run(store), _submit(store)
    assert not settler.end_waiting(running.job_id, OVERDUE).result(LONG_S).won
    assert settler.end_waiting(waiting.job_id, OVERDUE).result(LONG_S).won
    assert _state(store, running) == (JobState.RUNNING, None)
    assert _state(store, waiting) == (JobState.FAILED, "queue_timeout")
    assert host.stopped == [waiting.job_id]
    assert [each[0] for each in host.announced] == [waiting.job_id]


def test_whether_a_job_waits_is_not_decided_before_the_store_has(settler, store, host):
    waiting, starting = _submit(store), _submit(store)
    with full(store):
        futures = [settler.end_waiting(job.job_id, CANCEL) for job in (waiting, starting)]
        assert not any(future.done() for future in futures)
        assert settler.verdict_of(waiting.job_id) is None, "it may yet run"
        assert settler.end_waiting(waiting.job_id, OVERDUE) is futures[0]
        store.claim("local", 1000).result(LONG_S)
        store.claim("local", 1000).result(LONG_S)
        store.start(starting.job_id).result(LONG_S)
    settler.retry()
    assert [future.result(LONG_S).won for future in futures] == [True, False]
    assert _state(store, waiting) == (JobState.CANCELLED, "cancelled")
    assert _state(store, starting) == (JobState.RUNNING, None)
    assert host.stopped == [waiting.job_id]


@pytest.mark.parametrize("disk", ["silent", "full"])
def test_an_end_holds_where_the_store_has_not_decided_whether_the_job_waits(settler, store, host, disk):
    job = _run(store)
    with Held(store) if disk == "silent" else full(store):
        conditional = settler.end_waiting(job.job_id, OVERDUE)
        end = settler.end(job, CANCEL)
        assert settler.verdict_of(job.job_id).code == "cancelled"
    settler.retry()
    assert end.result(LONG_S).won
    assert conditional.result(LONG_S).job.state in (JobState.RUNNING, JobState.CANCELLED)
    assert _state(store, job) == (JobState.CANCELLED, "cancelled")
    assert _told(host) == ["cancelled"]


def test_the_secrets_of_a_job_that_was_found_running_stay(settler, store, secrets):
    job = _run(store)
    secrets.keep(job.job_id, {"api_key_comfy_org": "s"})
    settler.end_waiting(job.job_id, OVERDUE).result(LONG_S)
    assert secrets.of(job.job_id)


# What the disk could not take. ---------------------------------------------------------------------------------


def test_secrets_are_forgotten_once_the_job_has_ended_and_not_before(settler, store, secrets):
    job = _run(store)
    secrets.keep(job.job_id, {"api_key_comfy_org": "s"})
    with full(store):
        settler.end(job, TIMEOUT)
        store.flush()
        assert secrets.of(job.job_id)
    settler.retry()
    store.flush()
    assert not secrets.of(job.job_id)


def test_an_ending_that_the_disk_could_not_take_is_written_later_and_told_then(settler, store, host, caplog):
    job = _run(store)
    with full(store):
        future = settler.end(job, TIMEOUT)
        for _ in range(3):
            settler.retry()
            assert _state(store, job) == (JobState.RUNNING, None)
        assert host.announced == []
        assert not future.done()
        assert host.stopped == [job.job_id]
    settler.retry()
    assert future.result(LONG_S).won
    assert _state(store, job) == (JobState.FAILED, "generation_timeout")
    assert _told(host) == ["generation_timeout"]
    assert host.stopped == [job.job_id]
    said = [record.message for record in caplog.records if record.name == "guarded.settle"]
    assert [line.split(" cannot")[0].split("; waited")[0].split(",")[0] for line in said] == [
        f"job {job.job_id}: its ending (generation_timeout)",
        f"job {job.job_id} of bot failed: generation_timeout: The job ran longer than 1 s.",
        "every ending is on disk",
    ]


def test_a_result_that_the_disk_could_not_take_is_written_whole_later(settler, store):
    job = _run(store)
    with full(store):
        settler.settle(job, SUCCESS, RESULT)
    settler.retry()
    store.flush()
    found = store.get(job.job_id).result(LONG_S)
    assert (found.state, found.result) == (JobState.SUCCEEDED, RESULT)


def test_many_endings_cost_one_attempt_a_turn_while_the_disk_is_full_and_are_all_written_after(
    settler, store, monkeypatch
):
    jobs, attempts = [_run(store) for _ in range(50)], []
    with full(store):
        for job in jobs:
            settler.end(job, TIMEOUT)
        settle = store.settle
        monkeypatch.setattr(store, "settle", lambda *args, **how: (attempts.append(args[0]), settle(*args, **how))[1])
        for _ in range(60):
            settler.retry()
    assert attempts[:50] == [job.job_id for job in jobs], "each has its turn"
    assert len(attempts) == 60
    settler.retry()
    assert {_state(store, job) for job in jobs} == {(JobState.FAILED, "generation_timeout")}
    assert settler.oldest_unwritten_s is None
    settler.retry()
    store.flush()
    assert len(attempts) == 60 + 50


def test_an_ending_that_no_disk_could_take_ends_the_job_all_the_same(settler, store, host):
    job = _run(store)
    assert settler.settle(job, SUCCESS, Result({"2": {"text": {"no", "JSON"}}})).result(LONG_S).won
    assert _state(store, job) == (JobState.FAILED, "internal_error")
    assert settler.oldest_unwritten_s is None


def test_a_job_that_the_store_does_not_know_harms_nobody(settler, store, host):
    job = _run(store).evolve(job_id=new_id())
    assert settler.end(job, TIMEOUT).result(LONG_S) is None
    assert host.announced == []


def test_a_host_that_cannot_tell_does_not_keep_the_ending_from_those_who_wait(settler, store, host, monkeypatch):
    monkeypatch.setattr(host, "announce", lambda *_args: 1 / 0)
    job, other = _run(store), _run(store)
    with full(store):
        futures = [settler.end(each, TIMEOUT) for each in (job, other)]
    settler.retry()
    assert all(future.result(LONG_S).won for future in futures)


def test_the_verdict_of_an_error_is_what_the_job_shows(settler, store):
    job = _run(store)
    error = GenerationTimeoutError("The job ran longer than 1 s.", extra_info={"timeout_s": 1})
    settled = settler.end(job, error).result(LONG_S)
    assert settled.job.verdict == Verdict(JobState.FAILED, "generation_timeout", error.message, {"timeout_s": 1})
    assert settled.job.body()["refund"] is True


def test_whoever_waits_for_a_slot_is_told_once_it_is_free_and_not_before(settler, store):
    leased = []
    settler.released.subscribe(lambda: leased.append(store.count_jobs().result(LONG_S).leased))
    jobs = [_run(store) for _ in range(3)]
    with full(store, "release"):
        for job in jobs:
            settler.release(job.job_id)
        store.flush()
        assert store.count_jobs().result(LONG_S).leased == 3
        assert leased == []
    for job in jobs:
        settler.release(job.job_id)
    store.flush()
    assert store.count_jobs().result(LONG_S).leased == 0
    assert leased[-1] == 0


# A store that takes nothing for long. --------------------------------------------------------------------------


@pytest.mark.parametrize("disk", ["silent", "full"])
def test_no_job_begins_while_no_ending_can_be_written_and_that_ends_by_itself(
    machine, settler, store, clock, monkeypatch, disk
):
    alarms, later_s, monotonic_s = [], 0.0, clock.monotonic_s
    settler.alarmed.subscribe(lambda *alarm: alarms.append(alarm[0]))
    monkeypatch.setattr(clock, "monotonic_s", lambda: monotonic_s() + later_s)
    job = _run(store)
    with Held(store) if disk == "silent" else full(store):
        settler.end(job, TIMEOUT)
        settler.retry()
        assert settler.oldest_unwritten_s >= 0
        assert machine.health.problems() == []
        later_s = 16.0
        assert settler.oldest_unwritten_s >= 16
        for _ in range(3):
            settler.retry()
        assert machine.health.problems() == ["store stalled"]
        with pytest.raises(Exception, match="store stalled") as refusal:
            machine.health.check_ready()
        assert (refusal.value.status, refusal.value.retry_after_s) == (503, 10)
        assert [alarm["code"] for alarm in machine.health.alarms()] == ["store_stalled"]
        assert alarms == ["store_stalled"], "once"
    settler.retry()
    store.flush()
    assert machine.health.problems() == []
    assert settler.oldest_unwritten_s is None
    settler.retry()
    assert alarms == ["store_stalled"]


async def test_a_silent_store_is_noticed_without_an_ending_too(machine, store, monkeypatch):
    monkeypatch.setattr(machine.settler, "_stalled_after_s", 0.05)
    machine.submit()
    assert machine.health.problems() == []
    with Held(store):
        store.submit(new_job(), 10)
        while not machine.health.problems():
            pass
        assert machine.health.problems() == ["store stalled"]
        assert not await machine.dispatcher.turn()
    store.flush()
    assert machine.health.problems() == []
    assert await machine.dispatcher.turn()


def test_a_full_disk_is_what_the_store_says_and_nobody_else_hears_it(settler, store):
    """The future that everybody waits for never fails: the ending is still to come."""
    job = _run(store)
    with full(store):
        assert isinstance(store.settle(job.job_id, SUCCESS).exception(LONG_S), DiskFullError)
        assert not settler.settle(job, SUCCESS).done()
