"""Records go where no prompt is left to go: the oldest of the owner who has most, and nobody else's."""

import base64
import contextlib
import random
import time

import pytest
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED, claim, run_to_success, submit
from unit.stores import both, open_store
from unit.test_store_small import DAY_MS, MIB, add, assert_whole, body, clock, end, small, wait_until

from comfyui_guarded.guard.errors import DiskFullError, QuotaExceededError
from comfyui_guarded.guard.job import Artifact, Result
from comfyui_guarded.guard.store import IdempotencyKey, Limits, SqliteStore, postgres_upkeep, slices

__all__ = ["clock", "small"]

pytestmark = both

LIMIT = 6 * MIB


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(slices, "AGAIN_S", 0.05)
    monkeypatch.setattr(postgres_upkeep, "MEASURE_S", 0.02)


@pytest.fixture
def opened(tmp_path, clock):
    stores = []

    def make(**limits):
        stores.append(open_store(tmp_path / "guarded.db", clock, "kill", Limits(**limits)))
        wait_until(lambda: stores[0].size.bytes)
        return stores[0]

    yield make
    for store in stores:
        store.close()


def add_record(store, clock, owner):
    # What a caller may store beside a job, and is not let go with its prompt. It came in a request as large.
    note = base64.b64encode(random.randbytes(6900)).decode()
    job_id = add(store, clock, 100 + len(note), owner=owner, metadata={"note": note})
    end(store, job_id)
    return job_id


def flood(store, clock, owner="flood", seconds=2.0, most=10**9):
    """Submit and cancel, again and again. Returns the ids, and the refusals at the end."""
    ids, refusals, ends_s = [], [], time.monotonic() + seconds
    while len(ids) < most and (not refusals or time.monotonic() < ends_s):
        try:
            ids.append(add_record(store, clock, owner))
            # The database is small: a real one has room for a thousand times as many until it is measured again.
            wait_until(lambda: store._upkeep._added < LIMIT * 0.03)
            refusals.clear()
            ends_s = time.monotonic() + seconds
        except (QuotaExceededError, DiskFullError) as error:
            refusals.append(error)
            time.sleep(0.02)
    return ids, refusals


def flood_until_refused_by_name(store, clock):
    """Returns the ids, and that refusal. Until whose records take most has been weighed, the database is just full."""
    ids, ends_s = [], time.monotonic() + LONG_S
    while time.monotonic() < ends_s:
        more, refusals = flood(store, clock, seconds=0.1)
        ids += more
        if isinstance(refusals[-1], QuotaExceededError):
            return ids, refusals[-1]
    raise AssertionError(f"it is not refused by name: {refusals[-1]!r}")


def is_there(store, job_id):
    return store.get(job_id).result(LONG_S) is not None


def test_a_flood_of_records_costs_only_their_owner_its_oldest(opened, clock):
    store = opened(max_bytes=LIMIT)
    bot = [add_record(store, clock, "bot") for _ in range(20)]
    first, _ = flood(store, clock, most=400)
    clock.ahead_ms += 2 * DAY_MS  # all of these may go; the bot's are the oldest of them
    ids, refusals = flood(store, clock, most=240)
    assert not refusals
    wait_until(lambda: store.size.used_bytes <= LIMIT * 0.95, "the database does not become smaller")
    assert not any(is_there(store, job_id) for job_id in first[:30])
    assert is_there(store, ids[-1])
    assert all(is_there(store, job_id) for job_id in bot)
    if isinstance(store, SqliteStore):
        assert_whole(store)


def test_who_floods_within_a_day_is_refused_by_name_and_nobody_else_is(opened, clock):
    store = opened(max_bytes=LIMIT)
    bot = [add_record(store, clock, "bot") for _ in range(10)]
    ids, refusal = flood_until_refused_by_name(store, clock)
    facts = refusal.extra_info
    assert (facts["of"], facts["scope"]) == ("record_bytes", "client")
    assert facts["held"] > facts["limit"] > 0
    assert store.full() is None, "the server itself takes jobs"
    bot += [add_record(store, clock, owner) for owner in ("bot", "new") for _ in range(10)]
    assert all(is_there(store, job_id) for job_id in [*bot, *ids])
    clock.ahead_ms += 2 * DAY_MS
    wait_until(lambda: not is_there(store, ids[0]), "its oldest records do not go when they are a day old")
    with contextlib.suppress(QuotaExceededError):
        wait_until(lambda: add_record(store, clock, "flood"))
    assert all(is_there(store, job_id) for job_id in bot)


def test_an_owner_alone_is_told_that_the_database_is_full_until_its_oldest_records_may_go(opened, clock):
    store = opened(max_bytes=LIMIT)
    ids, refusals = flood(store, clock)
    assert isinstance(refusals[-1], DiskFullError)
    clock.ahead_ms += 2 * DAY_MS
    wait_until(lambda: not is_there(store, ids[0]))
    more, _ = flood(store, clock, most=50)
    assert len(more) == 50


def test_what_somebody_still_has_to_learn_stays(opened, clock):
    """A repeated request, a result that was not fetched."""
    store = opened(max_bytes=LIMIT, kept_s=2 * 86400, unread_max_age_s=6 * 86400)
    submitted = submit(
        store, body=body(100), created_at_ms=clock.now_ms(), owner="flood", key=IdempotencyKey("k", "digest", 0)
    ).job.job_id
    store.settle(submitted, CANCELLED).result(LONG_S)
    made = add(store, clock, 100, owner="flood")
    artifact = Artifact(0, "2", "image", "a.png", "", "output", 9, "ab", 3, 4)
    assert claim(store) == made
    run_to_success(store, made, Result({}, (artifact,)))
    clock.ahead_ms += DAY_MS
    flood(store, clock, seconds=0.5)
    assert is_there(store, submitted)
    assert submit(store, body=body(100), owner="flood", key=IdempotencyKey("k", "digest", 0)).job.job_id == submitted, (
        "the same request makes no second job"
    )
    clock.ahead_ms += 2 * DAY_MS
    wait_until(lambda: not is_there(store, submitted))
    assert is_there(store, made)
    clock.ahead_ms += 4 * DAY_MS
    wait_until(lambda: flood(store, clock, seconds=0.1, most=20) and not is_there(store, made))
