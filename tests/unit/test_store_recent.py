"""What memory knows of jobs: the same as the tables, and never less than whoever asks has been told."""

import sqlite3
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.fakes import LONG_S, new_id, new_job
from unit.store_steps import CANCELLED, Held, claim, run_to_success, submit
from unit.stores import both, copy_store, only_sqlite, open_store

from comfyui_guarded.guard.errors import GuardError, ServerUnavailableError
from comfyui_guarded.guard.job import SUCCESS, Artifact, JobState, Result, Verdict, Webhook
from comfyui_guarded.guard.spent import NodeTime, Spent
from comfyui_guarded.guard.store.recent import FILE_BYTES, JOB_BYTES, Recent
from comfyui_guarded.guard.store.rows import find_job

pytestmark = both

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aя\N{GRINNING FACE}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text("abc", max_size=3), JSON, max_size=3)


def read(store, job_id):
    """What the tables say."""
    return store._engine.read(lambda db: find_job(db, job_id)).result(LONG_S)


def is_asked_of_the_disk(store, job_id):
    """Whether a look-up waits for the reader's thread."""
    with Held(store, "read"):
        return not store.get(job_id).done()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    metadata=OBJECTS,
    parameters=OBJECTS,
    outputs=st.dictionaries(st.text("12", min_size=1, max_size=2), OBJECTS, max_size=2),
    details=OBJECTS | st.fixed_dictionaries({"limits": st.tuples(st.integers(), st.text())}),
    timeout_s=st.integers(1, 100) | st.floats(0.1, 100),
    warnings=st.lists(st.sampled_from(["dark", "silent"]), max_size=2),
    spent=st.none()
    | st.builds(
        Spent,
        *[st.integers(0, 10**6)] * 3,
        st.none() | st.integers(0, 2**40),
        st.lists(st.builds(NodeTime, st.text("12"), st.text("ab"), st.integers(0, 9)), max_size=2).map(tuple),
    ),
    ends_well=st.booleans(),
)
def test_a_job_is_remembered_at_each_step_as_the_tables_have_it(
    store, metadata, parameters, outputs, details, timeout_s, warnings, spent, ends_well
):
    file = Artifact(0, "2", "image", "a.png", "sub", "output", 5, "0" * 64, 64, 64, None, tuple(warnings))
    facts = {"metadata": metadata, "parameters": parameters, "template": "t", "client_id": "c", "timeout_s": timeout_s}
    job_id = submit(store, webhook=Webhook("https://example.org/x"), outputs_to_execute=("2",), **facts).job.job_id
    verdict = SUCCESS if ends_well else Verdict(JobState.FAILED, "generation_timeout", "no", details)
    steps = [
        lambda: claim(store),
        lambda: store.start(job_id).result(LONG_S),
        lambda: store.validate(job_id).result(LONG_S),
        lambda: store.settle(job_id, verdict, Result(outputs, (file,), spent) if ends_well else None).result(LONG_S),
        lambda: store.release(job_id).result(LONG_S),
    ]
    assert store.recall(job_id) == read(store, job_id)
    for step in steps:
        step()
        assert store.recall(job_id) == read(store, job_id) is not None
        assert repr(store.recall(job_id)) == repr(read(store, job_id))  # 1 == 1.0 == True, but they are told apart


def test_a_job_of_this_process_is_looked_up_without_the_disk(store):
    job_id = submit(store).job.job_id
    assert not is_asked_of_the_disk(store, job_id)
    claim(store)
    run_to_success(store, job_id)
    assert not is_asked_of_the_disk(store, job_id)
    assert is_asked_of_the_disk(store, new_id())


def test_whoever_hears_of_a_change_finds_it(store):
    found = []
    store.changed.subscribe(lambda job: found.append((job, store.get(job.job_id).result(0))))
    with Held(store):
        submitted = [store.submit(new_job(), 10**9) for _ in range(3)]
        ended = store.settle(new_id(), CANCELLED)
    job_ids = [future.result(LONG_S).job.job_id for future in submitted]
    assert ended.result(LONG_S) is None
    with Held(store):
        cancelled = store.settle(job_ids[0], CANCELLED)
        claimed = store.claim("local", 1)
        assert store.recall(job_ids[0]).state is JobState.QUEUED  # nobody has been told of more
    cancelled.result(LONG_S), claimed.result(LONG_S)
    assert len(found) == 5
    assert all(known.event_id >= told.event_id for told, known in found)
    assert store.recall(job_ids[0]).state is JobState.CANCELLED


def test_what_was_not_written_is_not_remembered(store, monkeypatch):
    job_id, other = submit(store).job.job_id, new_id()
    native = store._engine._attempt

    def fail_at_the_end(*arguments):
        native(*arguments)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store._engine, "_attempt", fail_at_the_end)
    endings = [store.settle(job_id, CANCELLED), store.submit(new_job(other), 10**9)]
    assert all(isinstance(future.exception(LONG_S), GuardError) for future in endings)
    monkeypatch.undo()
    assert store.get(job_id).result(LONG_S).state is JobState.QUEUED
    assert store.get(other).result(LONG_S) is None
    assert store.settle(job_id, CANCELLED).result(LONG_S).won  # and it is no ending for the next one either
    assert store.recall(job_id) == read(store, job_id)


def test_steps_that_share_a_transaction_see_each_other(store):
    with Held(store):
        submitted = store.submit(new_job(), 10**9)
        claimed = store.claim("local", 1)
        # Handed in before anybody knows that the job is there.
        job_id = new_id()
        other = store.submit(new_job(job_id), 10**9)
        first, second = store.settle(job_id, CANCELLED), store.settle(job_id, SUCCESS)
    assert claimed.result(LONG_S).job.job_id == submitted.result(LONG_S).job.job_id
    assert other.result(LONG_S).job.state is JobState.QUEUED
    assert (first.result(LONG_S).won, second.result(LONG_S).won) == (True, False)
    assert second.result(LONG_S).job.verdict == CANCELLED


def test_a_forgotten_job_is_not_remembered(store):
    job_id = submit(store).job.job_id
    store.settle(job_id, CANCELLED).result(LONG_S)
    with Held(store):
        forgotten = store.forget(10**15, 10)
        again = store.settle(job_id, CANCELLED)
    assert forgotten.result(LONG_S) == 1
    assert again.result(LONG_S) is None
    assert store.recall(job_id) is None
    assert store.get(job_id).result(LONG_S) is None


@only_sqlite
def test_nothing_is_remembered_once_the_file_was_mended(store):
    """What it has lost by that, nobody has."""
    job_id = submit(store).job.job_id
    assert store.recall(job_id) is not None
    store._engine.report_damage(sqlite3.DatabaseError("database disk image is malformed"))
    while store.trouble is not None:
        time.sleep(0.01)
    assert store.recall(job_id) is None
    assert store.get(job_id).result(LONG_S).job_id == job_id


@only_sqlite
def test_a_store_that_cannot_be_read_remembers_nothing(store):
    job_id = submit(store).job.job_id
    store._engine._close_connections()
    assert store.recall(job_id) is None
    assert isinstance(store.get(job_id).exception(LONG_S), ServerUnavailableError)


def test_a_restart_reads_the_tables(store, tmp_path, clock):
    job_id = submit(store).job.job_id
    copy = open_store(copy_store(store, tmp_path / "copy.db"), clock)
    try:
        assert copy.recall(job_id) is None
        assert copy.get(job_id).result(LONG_S) == store.recall(job_id)
    finally:
        copy.close()


# The bounds. -------------------------------------------------------------------------------------------------


def make_jobs(store, count, **facts):
    return [submit(store, **facts).job for _ in range(count)]


def test_the_jobs_that_changed_last_are_remembered(store):
    recent, jobs = Recent(jobs=3), make_jobs(store, 4)
    recent.update({job.job_id: job for job in jobs[:3]})
    recent.update({jobs[0].job_id: jobs[0]})
    recent.update({jobs[3].job_id: jobs[3]})
    assert [recent.get(job.job_id) for job in jobs] == [jobs[0], None, jobs[2], jobs[3]]


def test_only_so_many_bytes_are_remembered(store):
    small, large = make_jobs(store, 2), make_jobs(store, 1, metadata={"text": "x" * 10_000})[0]
    recent = Recent(max_bytes=12_500)
    recent.update({small[0].job_id: small[0], small[1].job_id: small[1]})
    recent.update({large.job_id: large})
    assert recent.get(large.job_id) == large
    assert [recent.get(job.job_id) for job in small] == [None, None]
    recent.update({large.job_id: None})
    recent.update({job.job_id: job for job in small})
    assert [recent.get(job.job_id) for job in small] == small
    wide = Recent(max_bytes=JOB_BYTES + FILE_BYTES)
    wide.update({large.job_id: large})
    assert wide.get(large.job_id) is None


def test_small_values_count_as_what_they_take_and_not_as_what_they_say(store):
    """9,000 lists of a number are 50 KB of JSON and 900 KB of memory, and the garbage collector looks at each."""
    many = make_jobs(store, 20, metadata={"a": [[number] for number in range(9_000)]})
    recent = Recent(max_bytes=4 * 2**20)
    recent.update({job.job_id: job for job in many})
    remembered = [job for job in many if recent.get(job.job_id) is not None]
    assert 0 < len(remembered) <= 4 * 2**20 / (9_000 * 2 * 50)


def test_a_job_that_grows_too_large_is_not_remembered_as_it_was(store):
    recent, job = Recent(max_bytes=5_000), make_jobs(store, 1)[0]
    recent.update({job.job_id: job})
    recent.update({job.job_id: job.evolve(state=JobState.SUCCEEDED, result=Result({"2": {"text": ["x" * 10_000]}}))})
    assert recent.get(job.job_id) is None


@pytest.mark.parametrize("strange", [object(), JobState.QUEUED])
def test_a_job_with_something_that_is_no_json_is_read_from_the_tables(store, strange):
    recent, job = Recent(), make_jobs(store, 1)[0]
    recent.update({job.job_id: job.evolve(result=Result({"2": {"text": [strange]}}))})
    assert recent.get(job.job_id) is None


def test_memory_tells_nothing_older_than_a_list_has_told(store, monkeypatch):
    """A list may be read between a commit and the moment at which memory knows of it."""
    job_id = submit(store).job.job_id
    publish, committed, go = store._engine._publish, threading.Event(), threading.Event()

    def publish_later():
        committed.set()
        assert go.wait(LONG_S)
        publish()

    monkeypatch.setattr(store._engine, "_publish", publish_later)
    settling = store.settle(job_id, CANCELLED)
    assert committed.wait(LONG_S)
    (listed,) = store.list_jobs(None, None, 10).result(LONG_S)
    looked_up, recalled = store.get(job_id).result(LONG_S), store.recall(job_id)
    go.set()
    assert listed.state is looked_up.state is JobState.CANCELLED
    assert recalled in (None, looked_up)
    settling.result(LONG_S)
    assert store.recall(job_id) == looked_up
