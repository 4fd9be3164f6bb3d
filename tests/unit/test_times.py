"""Times that a wrong clock has left in the database, and what a start makes of them."""

import contextlib
from dataclasses import replace

import pytest
from unit.fakes import LONG_S, new_id, new_job
from unit.store_steps import CANCELLED, claim, run_to_success, submit
from unit.stores import both, look_into, open_store

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import Artifact, JobState, Result, Webhook
from comfyui_guarded.guard.outgoing import NewPut, StoredFile
from comfyui_guarded.guard.store import DeliveryState, IdempotencyKey, NewAlarm
from comfyui_guarded.guard.store.bodies import delete_body
from comfyui_guarded.guard.store.database import list_columns
from comfyui_guarded.guard.store.outbox import PAUSE_AT_MOST_S

pytestmark = both

DAY_S = 86_400
HOOK = Webhook("https://a.example/hook", tuple(state.value for state in JobState))
#: No times of ours: the first is 0, as nothing has read it since the first version; the next say how long something
#: took; the last is said by another clock.
NO_TIMES = {
    *(("leases", "deadline_ms"), ("spending", "gpu_ms"), ("spending", "load_ms"), ("puts", "expires_at_ms")),
    *(("boxes", "until_ms"), ("sign_ins", "until_ms")),  # by the database's own clock
    *(("buckets", "at_ms"), ("buckets", "full_at_ms")),
    *(("refusals", "at_ms"), ("jobs", "passed_at_ms")),
}


class Off(Clock):
    """A clock that somebody has set wrong."""

    def __init__(self, by_s: float) -> None:
        super().__init__()
        self._offset_s += by_s


@contextlib.contextmanager
def opened(path, clock):
    store = open_store(path, clock)
    try:
        yield store
    finally:
        store.close()


#: Somebody else's clock says until when it is valid.
PUT = NewPut(0, "https://a.example/x", {}, 2**53)


def live(path, clock):
    """A process's life: every kind of thing that is written with a time, and then the process is killed."""
    with opened(path, clock) as store:
        store.recover("local", 2).result(LONG_S)
        now_ms = clock.now_ms()

        def submitted():
            key = IdempotencyKey(new_id(), "digest", 0)
            return submit(store, key=key, created_at_ms=now_ms, webhook=HOOK, client_id="c", puts=(PUT,)).job.job_id

        artifact = Artifact(0, "2", "image", f"{new_id()}.png", "", "output", 9, "ab", 3, 4)
        for _ in range(5):
            submitted()
        store.note_uploads("local", [StoredFile(f"{new_id()}.png", f"{new_id()}.png", 9)]).result(LONG_S)
        run_to_success(store, claim(store, 9), Result({}, (artifact,), unstored=((0, False, "a box"),)))
        store.start(claim(store, 9)).result(LONG_S)
        claim(store, 9)
        cancelled_id = submitted()
        store.settle(cancelled_id, CANCELLED).result(LONG_S)
        (first, second, *_others) = store.find_due_deliveries(2**53, 9, under_way=(), full=()).result(LONG_S).deliveries
        delivered = replace(first, state=DeliveryState.DELIVERED, attempts=1, ended_at_ms=now_ms)
        store.record_attempt(delivered).result(LONG_S)
        failed = replace(second, attempts=1, next_at_ms=now_ms + 5_000, last_error="x")
        store.record_attempt(failed).result(LONG_S)
        store.put_alarms([NewAlarm(now_ms, "worker_died", "x") for _ in range(2)]).result(LONG_S)
        store.mark_alarms_seen([1], 0).result(LONG_S)
        cancelled = store.get(cancelled_id).result(LONG_S)
        store._engine.write(lambda db: delete_body(db, cancelled.number, now_ms)).result(LONG_S)


def times(path):
    """Every time in the database, by its table and column."""
    found = {}
    with look_into(path) as db:
        for table, columns in list_columns(db):
            for column in columns:
                if column.endswith("_ms") and (table, column) not in NO_TIMES:
                    found[table, column] = [value for (value,) in db.execute(f"SELECT {column} FROM {table}") if value]
    return found


def recovered(path, clock):
    with opened(path, clock) as store:
        store.recover("local", 2).result(LONG_S)
        return clock.now_ms()


@pytest.mark.parametrize("ahead_s", [60, DAY_S, 400 * DAY_S])
def test_no_time_in_the_whole_database_is_in_the_future_after_a_start_with_the_right_clock(tmp_path, ahead_s):
    path = tmp_path / "guarded.db"
    live(path, Off(ahead_s))
    before = times(path)
    now_ms = Clock().now_ms()
    for column, values in before.items():
        assert values, f"this test writes no {column}: it would not see it stay in the future"
        assert max(values) > now_ms, column
    now_ms = recovered(path, Clock())
    for (table, column), values in times(path).items():
        assert values, (table, column)
        most_ms = now_ms + (PAUSE_AT_MOST_S * 1000 if column == "next_at_ms" else 0)
        assert max(values) <= most_ms, (table, column)


def test_deliveries_from_a_day_ahead_are_due_at_once_and_the_jobs_that_wait_can_be_overdue(tmp_path):
    path = tmp_path / "guarded.db"
    live(path, Off(DAY_S))
    clock = Clock()
    with opened(path, clock) as store:
        assert store.find_due_deliveries(clock.now_ms(), 99, under_way=(), full=()).result(LONG_S).deliveries == []
        assert store.list_overdue(clock.now_ms() + 1).result(LONG_S) == []
        store.recover("local", 2).result(LONG_S)
        due = store.find_due_deliveries(clock.now_ms(), 99, under_way=(), full=()).result(LONG_S).deliveries
        assert len({delivery.job_id for delivery in due}) == 6
        assert len(store.list_overdue(clock.now_ms() + 1).result(LONG_S)) == 4


def assert_kept(before, after):
    """All times of before are still there, beside what a start itself changes."""
    changed = {("jobs", "started_at_ms"), *((table, "next_at_ms") for table in ("webhooks", "puts", "unstored"))}
    for column in set(before) - changed:
        kept = [value for value in before[column] if value in after[column]]
        assert sorted(kept) == sorted(before[column]), column


def test_times_from_the_past_stay_as_they_are(tmp_path):
    path = tmp_path / "guarded.db"
    live(path, Off(-DAY_S))
    # What a start itself changes has happened by now.
    recovered(path, Off(-DAY_S + 60))
    before = times(path)
    recovered(path, Clock())
    assert times(path) == before


def test_a_clock_that_was_a_day_ahead_moves_nothing_from_before_that(tmp_path):
    path = tmp_path / "guarded.db"
    live(path, Off(-DAY_S))
    recovered(path, Off(-DAY_S + 60))
    before = times(path)
    live(path, Off(DAY_S))
    recovered(path, Clock())
    assert_kept(before, times(path))


def test_a_clock_that_nobody_has_set_yet_makes_nothing_old(tmp_path):
    """A machine that was switched on says 1970 until it has asked; a day later the janitor would delete everything."""
    path = tmp_path / "guarded.db"
    live(path, Clock())
    before = times(path)
    unset = Off(-Clock().now_ms() / 1000)
    recovered(path, unset)
    assert_kept(before, times(path))
    with opened(path, unset) as store:
        assert store.find_due_deliveries(unset.now_ms(), 99, under_way=(), full=()).result(LONG_S).deliveries


def test_what_a_version_without_this_left_in_the_future_is_found_under_later_right_times(tmp_path):
    path = tmp_path / "guarded.db"
    live(path, Off(DAY_S))
    clock = Clock()
    with opened(path, clock) as store:
        store.submit(new_job(created_at_ms=clock.now_ms()), 99).result(LONG_S)
    now_ms = recovered(path, Clock())
    assert max(times(path)["jobs", "created_at_ms"]) <= now_ms
