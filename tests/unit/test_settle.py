"""One ending for every outcome: the first verdict holds, is durable before it is heard, and is heard once."""

import pytest
from unit.fakes import LONG_S, ByHand, new_job

from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.errors import CancelledError, DiskFullError, GenerationTimeoutError, QueueTimeoutError
from comfyui_guarded.guard.job import SUCCESS, JobState, Result, Verdict
from comfyui_guarded.guard.life.secrets import Secrets
from comfyui_guarded.guard.life.settle import Settler
from comfyui_guarded.guard.store import Settled

TIMEOUT = GenerationTimeoutError("The job ran longer than 1 s.")
IDS = ClientIds(b"key" * 11)
CANCEL = CancelledError("The job was cancelled.")
RESULT = Result({"2": {"text": ["late"]}})


@pytest.fixture
def secrets():
    return Secrets()


@pytest.fixture
def settler(store, host, secrets):
    return Settler(store, host, secrets, IDS)


def _submit(store, **facts):
    return store.submit(new_job(**facts), 100).result(LONG_S).job


def _run(store, **facts):
    job = _submit(store, **facts)
    store.claim("local", 100).result(LONG_S)
    return store.start(job.job_id).result(LONG_S)


def _state(store, job):
    found = store.get(job.job_id).result(LONG_S)
    return found.state, found.verdict.code if found.verdict else None


def test_an_end_is_settled_stopped_and_announced_to_its_own_socket(settler, store, host):
    job = _run(store, client_id="socket")
    settled = settler.end(job, TIMEOUT).result(LONG_S)
    store.flush()
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
    assert [code for _job, _client, code in host.announced] == ["generation_timeout"]


def test_an_ending_of_the_run_itself_stops_and_announces_nothing(settler, store, host):
    """The seam tells the socket itself, in ComfyUI's own order."""
    job = _run(store)
    assert settler.settle(job, SUCCESS, RESULT).result(LONG_S).won
    store.flush()
    assert (host.stopped, host.announced) == ([], [])


def test_nothing_is_announced_before_it_is_durable(host, secrets):
    store = ByHand()
    job = _FakeJob()
    Settler(store, host, secrets, IDS).end(job, TIMEOUT)
    assert host.stopped == ["a"]
    assert host.announced == []
    ((_job_id, _verdict, future),) = store.asked
    future.set_result(Settled(job, won=True))
    assert host.announced == [("a", IDS.of("bot", "socket"), "generation_timeout")]


class _FakeJob:
    job_id, owner, client_id = "a", "bot", "socket"


def test_an_overdue_job_that_waits_is_ended_and_one_that_runs_is_left_alone(settler, store, host):
    running, waiting = _run(store), _submit(store)
    error = QueueTimeoutError("waited too long")
    assert not settler.end_waiting(running, error).result(LONG_S).won
    assert settler.end_waiting(waiting, error).result(LONG_S).won
    store.flush()
    assert _state(store, running) == (JobState.RUNNING, None)
    assert _state(store, waiting) == (JobState.FAILED, "queue_timeout")
    assert host.stopped == [waiting.job_id]
    assert [each[0] for each in host.announced] == [waiting.job_id]


def test_secrets_are_forgotten_once_the_job_has_ended_and_not_before(settler, store, secrets):
    job = _run(store)
    secrets.keep(job.job_id, {"api_key_comfy_org": "s"})
    store.failing = frozenset({"settle"})
    settler.end(job, TIMEOUT)
    store.flush()
    assert secrets.of(job.job_id)
    store.failing = frozenset()
    settler.retry()
    store.flush()
    assert not secrets.of(job.job_id)


def test_a_verdict_that_the_disk_could_not_take_is_written_later(settler, store, host):
    job = _run(store)
    store.failing = frozenset({"settle"})
    assert isinstance(settler.end(job, TIMEOUT).exception(LONG_S), DiskFullError)
    for _ in range(3):
        settler.retry()
        store.flush()
    assert _state(store, job) == (JobState.RUNNING, None)
    assert host.announced == []
    assert job.job_id in host.stopped
    store.failing = frozenset()
    settler.retry()
    store.flush()
    assert _state(store, job) == (JobState.FAILED, "generation_timeout")
    assert [each[2] for each in host.announced] == ["generation_timeout"]
    stopped = len(host.stopped)
    settler.retry()
    store.flush()
    assert len(host.stopped) == stopped


def test_a_result_that_the_disk_could_not_take_is_written_whole_later(settler, store):
    job = _run(store)
    store.failing = frozenset({"settle"})
    settler.settle(job, SUCCESS, RESULT)
    store.failing = frozenset()
    settler.retry()
    store.flush()
    found = store.get(job.job_id).result(LONG_S)
    assert (found.state, found.result) == (JobState.SUCCEEDED, RESULT)


@pytest.mark.parametrize("later", ["cancel", "success", "overdue"])
def test_the_first_verdict_holds_although_the_disk_failed_it_and_recovered_before_the_second(settler, store, later):
    job = _run(store)
    store.failing = frozenset({"settle"})
    settler.end(job, TIMEOUT)
    store.failing = frozenset()
    if later == "cancel":
        settled = settler.end(job, CANCEL).result(LONG_S)
    elif later == "success":
        settled = settler.settle(job, SUCCESS, RESULT).result(LONG_S)
    else:
        settled = settler.end_waiting(job, QueueTimeoutError("x")).result(LONG_S)
    assert not settled.won
    assert settled.job.verdict.code == "generation_timeout"


def test_the_first_verdict_holds_although_the_disk_failed_both(settler, store):
    job = _run(store)
    store.failing = frozenset({"settle"})
    settler.end(job, TIMEOUT)
    settler.settle(job, SUCCESS, RESULT)
    settler.end(job, CANCEL)
    store.failing = frozenset()
    settler.retry()
    store.flush()
    settler.retry()
    store.flush()
    assert _state(store, job) == (JobState.FAILED, "generation_timeout")


def test_verdicts_for_several_jobs_are_all_written_later(settler, store):
    jobs = [_run(store) for _ in range(5)]
    store.failing = frozenset({"settle"})
    for job in jobs:
        settler.end(job, TIMEOUT)
    store.failing = frozenset()
    settler.retry()
    store.flush()
    assert {_state(store, job) for job in jobs} == {(JobState.FAILED, "generation_timeout")}


def test_a_job_that_the_store_does_not_know_harms_nobody(settler, host):
    assert settler.end(_FakeJob(), TIMEOUT).result(LONG_S) is None
    assert host.announced == []


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
    store.failing = frozenset({"release"})
    for job in jobs:
        settler.release(job.job_id)
    settler.retry()
    store.flush()
    assert store.count_jobs().result(LONG_S).leased == 3
    assert all(count == 3 for count in leased)
    leased.clear()
    store.failing = frozenset()
    settler.retry()
    store.flush()
    assert store.count_jobs().result(LONG_S).leased == 0
    assert leased[-1] == 0
    leased.clear()
    settler.retry()
    store.flush()
    assert leased == []


def test_the_verdict_that_holds_is_known_while_the_disk_is_full(settler, store):
    job, other = _run(store), _run(store)
    assert settler.unwritten_verdict(job.job_id) is None
    store.failing = frozenset({"settle"})
    settler.end(job, TIMEOUT)
    settler.settle(job, SUCCESS, RESULT)
    assert settler.unwritten_verdict(job.job_id).code == "generation_timeout"
    assert settler.unwritten_verdict(other.job_id) is None
    store.failing = frozenset()
    settler.retry()
    store.flush()
    assert settler.unwritten_verdict(job.job_id) is None
