"""What every operation of the store costs does not depend on how many jobs there are: counted in SQLite's own steps."""

import inspect
import sqlite3
from contextlib import closing

import pytest
from unit.fakes import LONG_S, new_job
from unit.store_steps import CANCELLED

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import OPEN, TERMINAL, JobState
from comfyui_guarded.guard.spent import Spent
from comfyui_guarded.guard.store import IdempotencyKey, Listing, NewAlarm, SqliteStore, Wanted, line, queries, search
from comfyui_guarded.guard.store.outbox import DeliveryState
from comfyui_guarded.guard.store.protocol import Store

FEW, MANY = 1_000, 10_000
#: Every so many steps SQLite calls us back.
STRIDE = 20
OWNERS = ("a", "b", "c")

#: Not bounded, each for a reason.
EXEMPT = {
    "recover": "once in a process, before anybody is served",
    "flush": "waits for others",
    "close": "ends the store",
    "count_endings": "bounded by the time that is asked for; whoever asks does so by the hour and keeps whole hours",
}


def fill(path, count):
    """`count` waiting and `count` settled jobs of three owners, with all that belongs to them."""
    SqliteStore(path, Clock()).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n "
                   f"WHERE i < {2 * count}) SELECT i FROM n")  # fmt: skip
        owner = "substr('abc', 1 + i % 3, 1)"
        is_settled = f"i <= {count}"
        # Of the rare states, and of what is hidden, all lie far back.
        state = (
            f"CASE WHEN i <= 20 THEN 'cancelled' WHEN i <= 40 THEN 'failed' WHEN {is_settled} THEN 'succeeded' "
            "ELSE 'queued' END"
        )
        db.execute(
            "INSERT INTO jobs (number, job_id, owner, state, priority, place, attempts, created_at_ms, started_at_ms, "
            "settled_at_ms, timeout_s, locale, client_id, shape, template, parameters, outputs_to_execute, metadata, "
            "has_secrets, verdict, result, code, event_id, user_id, round, idempotency_key) "
            f"SELECT i, 'job-' || i, {owner}, {state}, i % 5 - 2, i, 1, 1000 + i, iif({is_settled}, 2000 + i, NULL), "
            f"iif({is_settled}, 2000 + 2 * i, NULL), 600, 'en', 'client', 'shape', '', '{{}}', '[]', '{{}}', 0, "
            f"""iif({is_settled}, '{{"state": "' || {state} || '", "code": null, "message": "", "details": {{}}}}', """
            "NULL), "
            f"""iif({is_settled}, '{{"outputs": {{}}, "artifacts": []}}', NULL), NULL, """
            f"iif({is_settled}, {2 * count} + i, i), iif(i % 2, 'u' || (i % 4), ''), iif({is_settled}, 0, i % 7 = 0), "
            "'job-' || i FROM n"
        )
        db.execute("INSERT INTO bodies SELECT number, CAST('{\"prompt\": {}}' AS BLOB) FROM jobs")
        db.execute("INSERT INTO workflows SELECT number, job_id, 'w' || (number % 2) FROM jobs")
        db.execute("INSERT INTO transitions SELECT number, job_id, created_at_ms, 'queued' FROM jobs ORDER BY number")
        settled = "FROM jobs WHERE settled_at_ms IS NOT NULL ORDER BY number"
        db.execute(f"INSERT INTO transitions SELECT event_id, job_id, settled_at_ms, state {settled}")
        for table in ("made", "unread"):
            since = ", settled_at_ms" if table == "unread" else ""
            db.execute(f"INSERT INTO {table} SELECT 'output', CAST(job_id AS BLOB), job_id, 0{since} {settled}")
        db.execute(f"INSERT INTO unheard SELECT job_id, owner, 'client', settled_at_ms {settled}")
        db.execute(
            "INSERT INTO webhooks (webhook_id, type, job_id, owner, url, target, payload, state, attempts, "
            "created_at_ms, since_ms, next_at_ms) SELECT job_id, 'x', job_id, owner, 'x', 'x', 'x', "
            f"iif(number <= 20, 'dead', iif(number <= 40, 'pending', 'delivered')), 0, 0, 0, 0 {settled}"
        )
        db.execute("INSERT INTO idempotency SELECT owner, job_id, 'd', job_id, created_at_ms FROM jobs")
        db.execute(
            "INSERT INTO spending SELECT '2026-03-01', 'owner', job_id, '', 1, 1, 1 FROM jobs WHERE number <= 1000"
        )


class Counting:
    """A store that is asked one thing after the other, and how many of SQLite's steps each takes, on any thread."""

    def __init__(self, path):
        self.store = SqliteStore(path, Clock())
        self.steps = 0
        # Else the upkeep looks whenever it is time, in the midst of what is counted.
        self.store._upkeep._due_s = float("inf")
        self.settle_down()
        engine = self.store._engine
        for thread in (engine._writer, *engine._readers):
            thread.db.set_progress_handler(self._step, STRIDE)

    def _step(self):
        self.steps += STRIDE

    def settle_down(self):
        """Wait until nothing goes on by itself."""
        engine = self.store._engine
        for _ in range(3):
            for run in (engine.read_slowly, engine.write):
                run(lambda _db: None).result(LONG_S)

    def close(self):
        self.store.close()

    def count(self, asked):
        """The steps of each of these calls."""
        self.steps = 0
        asked(self.store).result(LONG_S)
        return self.steps


ALL = frozenset(JobState)
FAILED = frozenset({JobState.FAILED})
LISTINGS = {
    f"{owner} {states} {workflow} {by_run_time} {ascending} {offset}": (
        owner,
        Listing(asked, workflow, by_run_time=by_run_time, ascending=ascending, limit=20, offset=offset),
    )
    for owner in (None, "a")
    for states, asked in (("all", ALL), ("failed", FAILED), ("open", OPEN), ("ended", TERMINAL))
    for workflow in (None, "w1", "unknown")
    for by_run_time in (False, True)
    for ascending in (False, True)
    for offset in (0, 10)
}
STATES = (None, FAILED, OPEN, TERMINAL, frozenset({JobState.CANCELLED, JobState.RUNNING}))

#: By operation of the store: ways to ask for it. `middle` is a waiting job that stands far from either end.
CALLS = {
    "submit": [
        lambda store, _middle: store.submit(new_job(owner="a"), 10**9),
        lambda store, _middle: store.submit(new_job(owner="a", front=True), 10**9),
        lambda store, _middle: store.submit(new_job(owner="a", priority=1), 10**9),
        lambda store, _middle: store.submit(new_job(owner="a", priority=-9), 10**9),
        lambda store, middle: store.submit(new_job(owner="a", order=float(middle) + 0.5), 10**9),
        lambda store, _middle: store.submit(new_job(owner="new"), 10**9),
        lambda store, _middle: store.submit(new_job(owner="a", user="u1"), 10**9),
        lambda store, _middle: store.submit(new_job(owner="a", user="new"), 10**9, max_queued_of_user=25),
        lambda store, middle: store.submit(new_job(owner="a"), 10**9, IdempotencyKey(f"new-{middle}", "d")),
        lambda store, middle: store.submit(
            new_job(owner=OWNERS[middle % 3]), 10**9, IdempotencyKey(f"job-{middle}", "d")
        ),
    ],
    "replay": [lambda store, middle: store.replay(OWNERS[middle % 3], IdempotencyKey(f"job-{middle}", "d"))],
    "claim": [lambda store, _middle: store.claim("local", 10**9)],
    "begin": [
        lambda store, _middle: store.begin("local", 10**9, lambda _job_id: False),
        lambda store, _middle: store.begin("local", 10**9, lambda _job_id: True),
    ],
    "hand_over": [lambda store, middle: store.hand_over(f"job-{middle}")],
    "start": [lambda store, _middle: store.start(next(iter(store.leases)))],
    "validate": [lambda store, _middle: store.validate(next(iter(store.leases)))],
    "settle": [
        lambda store, _middle: store.settle(next(iter(store.leases)), CANCELLED),
        lambda store, middle: store.settle(f"job-{middle}", CANCELLED, only_waiting=True),
    ],
    "release": [lambda store, _middle: store.release(next(iter(store.leases)))],
    "forget": [lambda store, _middle: store.forget(10**15, 20), lambda store, _middle: store.forget(0, 20)],
    "get": [lambda store, middle: store.get(f"job-{middle}")],
    "find_retry": [lambda store, middle: store.find_retry(f"job-{middle}")],
    "find_body": [lambda store, middle: store.find_body(f"job-{middle}")],
    "locate": [
        lambda store, middle: store.locate(f"job-{middle + 1}"),
        lambda store, middle: store.locate(f"job-{middle + 4}"),
    ],
    "list_jobs": [
        lambda store, middle, owner=owner, states=states, is_next=is_next: store.list_jobs(
            owner, states, 20, middle if is_next else None
        )
        for owner in (None, "a", "nobody")
        for states in STATES
        for is_next in (False, True)
    ]
    + [lambda store, _middle: store.list_jobs(None, None, 10**9), lambda store, _m: store.list_jobs("a", OPEN, 10**9)],
    "search": [
        lambda store, middle, owner=owner, wanted=wanted, is_next=is_next: store.search(
            owner, wanted, 20, middle if is_next else None
        )
        for owner in (None, "a", "nobody")
        for wanted in (
            *(Wanted(states=states) for states in STATES),
            Wanted(user="u1"),
            Wanted(user="u1", states=FAILED),
            Wanted(user="absent"),
            Wanted(template="absent"),
            Wanted(code="absent"),
            Wanted(text="absent-everywhere"),
            Wanted(metadata={"order": "7"}),
            Wanted(idempotency_key="absent"),
            Wanted(created_after_ms=0),
            Wanted(created_after_ms=10**15),
            Wanted(settled_after_ms=0),
            Wanted(settled_after_ms=10**15),
            Wanted(settled_after_ms=0, states=FAILED, user="absent"),
        )
        for is_next in (False, True)
    ],
    "list_overdue": [lambda store, _middle: store.list_overdue(10**15), lambda store, _middle: store.list_overdue(0)],
    "list_standings": [lambda store, _middle: store.list_standings()],
    "list_heads": [lambda store, middle: store.list_heads(middle, 20)],
    "list_open_numbers": [lambda store, middle: store.list_open_numbers(middle, 20)],
    "read_bodies": [lambda store, middle: store.read_bodies([middle, middle + 1])],
    "read_changes": [
        lambda store, _middle: store.read_changes(0),
        lambda store, _middle: store.read_changes(0, owner="a"),
        lambda store, middle: store.read_changes(0, job_id=f"job-{middle}"),
    ],
    "list_missed": [lambda store, _middle: store.list_missed("a", "client", 0, 20)],
    "mark_heard": [lambda store, _middle: store.mark_heard("job-1")],
    "list_states": [lambda store, middle: store.list_states(f"job-{middle}")],
    "list_deliveries_of": [lambda store, middle: store.list_deliveries_of(f"job-{middle}", 20)],
    "find_entry": [lambda store, middle: store.find_entry(f"job-{middle}")],
    "has_open": [lambda store, _middle, owner=owner: store.has_open(owner) for owner in (None, "a")],
    "list_queue": [lambda store, _middle, owner=owner: store.list_queue(owner) for owner in (None, "a")],
    "list_history": [
        lambda store, _middle, owner=owner, limit=limit, offset=offset: store.list_history(owner, limit, offset)
        for owner in (None, "a")
        for limit in (20, 10**9)
        for offset in (None, 0, 10, 10**9)
    ],
    "find_page": [
        lambda store, _middle, owner=owner, asked=asked: store.find_page(owner, asked)
        for owner, asked in LISTINGS.values()
    ],
    "hide": [lambda store, _middle: store.hide("a", ["job-1", "job-3"])],
    "clear_history": [lambda store, _middle: store.clear_history("a")],
    "find_maker": [lambda store, _middle: store.find_maker("output", "job-1")],
    "mark_fetched": [lambda store, _middle: store.mark_fetched("job-1", 0)],
    "select_unread": [lambda store, _middle: store.select_unread("output", ["job-1", "job-2"], 0)],
    "select_made": [lambda store, _middle: store.select_made("output", ["job-1", "job-2"])],
    "list_made": [
        lambda store, _middle: store.list_made("output", "", 100),
        lambda store, _middle: store.list_made("temp", "", 100),
    ],
    "list_unread": [
        lambda store, _middle: store.list_unread(0, 100),
        lambda store, _middle: store.list_unread(10**15, 100),
    ],
    "count_jobs": [lambda store, _middle: store.count_jobs(), lambda store, _middle: store.count_jobs("a")],
    "list_recent_runs": [lambda store, _middle: store.list_recent_runs(20)],
    "list_template_runs_ms": [
        lambda store, _middle: store.list_template_runs_ms(None, 20, 0),
        lambda store, _middle: store.list_template_runs_ms("a", 20, 0),
    ],
    "find_due_deliveries": [
        lambda store, _middle: store.find_due_deliveries(10**15, 10, under_way=(), full=()),
        lambda store, _middle: store.find_due_deliveries(0, 10, under_way=(), full=()),
    ],
    "record_attempt": [],
    "record_put": [],
    "find_due_puts": [
        lambda store, _middle: store.find_due_puts(10**15, 10, under_way=(), full=()),
        lambda store, _middle: store.find_due_puts(0, 10, under_way=(), full=()),
    ],
    "list_deliveries": [
        lambda store, _middle, owner=owner, states=states: store.list_deliveries(owner, states, 10)
        for owner in (None, "a", "nobody")
        for states in (frozenset(DeliveryState), frozenset({DeliveryState.DEAD}))
    ],
    "spend": [lambda store, _middle: store.spend(store.list_jobs(None, None, 1).result(LONG_S)[0], Spent(1, 1, 1))],
    "read_spending": [lambda store, _middle: store.read_spending(None, "2026-03-01", "2026-03-31", 20)],
    "put_alarms": [lambda store, _middle: store.put_alarms([NewAlarm(1, "x", "x", "job-1")])],
    "list_alarms": [lambda store, _middle: store.list_alarms(20), lambda store, _middle: store.list_alarms(20, 500)],
    "count_unseen_alarms": [lambda store, _middle: store.count_unseen_alarms()],
    "mark_alarms_seen": [
        lambda store, _middle: store.mark_alarms_seen([1], 0),
        lambda store, _middle: store.mark_alarms_seen([], 10**9),
    ],
    "redeliver": [lambda store, _middle: store.redeliver("job-1", "a"), lambda store, _m: store.redeliver("x", None)],
}


def test_every_operation_of_the_store_is_held_to_its_bound():
    asked = {
        name
        for name, member in vars(Store).items()
        if inspect.isfunction(member) and not name.startswith("_") and "Future" in str(inspect.signature(member))
    }
    assert set(CALLS) == asked - set(EXEMPT)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds")
    for count in (FEW, MANY):
        fill(folder / f"{count}.db", count)
    return folder


@pytest.mark.parametrize("name", CALLS)
def test_ten_times_the_jobs_take_no_more_steps(filled, tmp_path, monkeypatch, name):
    # What an answer may have at most, as small as the smaller database needs it.
    for where, bound in ((line, "COUNTED"), (line, "COUNTED_BY_SUBMIT"), (line, "STANDING"), (queries, "PAGE"),
                         (queries, "SHOWN"), (queries, "OVERDUE"), (queries, "CHANGES"),
                         (search, "LOOKED_AT")):  # fmt: skip
        monkeypatch.setattr(where, bound, 25)
    few, many = (_count_all(filled / f"{count}.db", tmp_path / f"{count}.db", count, name) for count in (FEW, MANY))
    pairs = enumerate(zip(few, many, strict=True))
    grown = {at: (before, after) for at, (before, after) in pairs if after > 1.3 * before + 300}
    assert not grown, {at: (steps, inspect.getsource(CALLS[name][at])[:200]) for at, steps in grown.items()}


def _count_all(filled, path, count, name):
    """The steps of each way to ask for that operation, on a database of that many jobs."""
    path.write_bytes(filled.read_bytes())
    middle = count + count // 2
    with closing(Counting(path)) as counting:
        if name in ("start", "validate", "release", "settle"):
            counting.store.claim("local", 1).result(LONG_S)
        if name == "validate":
            counting.store.start(next(iter(counting.store.leases))).result(LONG_S)
        return [counting.count(lambda store, ask=ask: ask(store, middle)) for ask in CALLS[name]]
