"""What the bodies of an owner's open jobs may come to together."""

import asyncio
import json

import pytest
from unit.fakes import GRAPH, LONG_S, FakeHost, new_job
from unit.store_steps import CANCELLED, claim, run_to_success
from unit.stores import both, open_store
from unit.test_admission import Gate

from comfyui_guarded.guard.client import LOCAL, Client, KeyLimits
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import GuardError, PayloadTooLargeError, QuotaExceededError

pytestmark = both

BOT = Client("bot", operator=False)
OTHER = Client("other", operator=False)
SIZE = 1000


def body(size=SIZE, **more):
    """A request of exactly so many bytes."""
    told = {"prompt": GRAPH, "extra_data": {"x": ""}, **more}
    told["extra_data"]["x"] = "x" * (size - len(json.dumps(told)))
    return json.dumps(told).encode()


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "jobs.db", Clock())
    yield store
    store.close()


@pytest.fixture
def gate(store, host):
    gate = Gate(store, host, Clock(), limits={"max_open_bytes": 3 * SIZE})
    gate.over = []
    gate.quotas.refused.subscribe(gate.over.append)
    return gate


def end(store, job_id):
    store.settle(job_id, CANCELLED).result(LONG_S)


async def test_one_body_too_many_is_refused_until_a_job_has_ended(gate, store):
    ids = [(await gate.admit(body())).job.job_id for _ in range(3)]
    assert store.count_open_bytes("bot") == 3 * SIZE
    error = await gate.refusal(body())
    assert isinstance(error, QuotaExceededError)
    assert error.extra_info == {
        "of": "open_bytes", "held": 3 * SIZE, "limit": 3 * SIZE, "scope": "client",
        "frees": "one of your jobs has ended",
    }  # fmt: skip
    told = error.body("ru", of_submit=True)["guard"]
    assert (told["retryable"], told["refund"]) == (True, True)
    assert gate.over == ["open_bytes"]
    await gate.admit(body(), client=OTHER)
    # Its bodies count until it has ended, not only while they wait.
    job_id = claim(store, 1)
    assert job_id in ids
    assert isinstance(await gate.refusal(body()), QuotaExceededError)
    run_to_success(store, job_id)
    await gate.admit(body())
    assert isinstance(await gate.refusal(body()), QuotaExceededError)
    end(store, next(other for other in ids if other != job_id))
    await gate.admit(body(SIZE - 1))


async def test_ended_jobs_refuse_nobody_however_large_their_bodies_are(gate, store):
    for _ in range(20):
        end(store, (await gate.admit(body(3 * SIZE))).job.job_id)
    assert store.count_open_bytes("bot") == 0


async def test_requests_that_come_at_once_get_no_more_than_one_after_the_other(gate, store):
    asked = await asyncio.gather(*(gate.admit(body()) for _ in range(20)), return_exceptions=True)
    assert sum(not isinstance(one, GuardError) for one in asked) == 3
    assert all(isinstance(one, QuotaExceededError) for one in asked if isinstance(one, GuardError))
    assert gate.over == ["open_bytes"] * 17
    assert store.count_open_bytes("bot") == 3 * SIZE


async def test_a_repeated_request_gets_its_job_however_much_is_held(gate):
    first = await gate.admit(body(3 * SIZE), idempotency_key="k")
    again = await gate.admit(body(3 * SIZE), idempotency_key="k")
    assert (again.replayed, again.job.job_id) == (True, first.job.job_id)


async def test_what_never_fits_is_too_large_and_need_not_be_tried_again(gate):
    error = await gate.refusal(body(3 * SIZE + 1))
    assert isinstance(error, PayloadTooLargeError)
    assert error.extra_info == {"max_open_bytes": 3 * SIZE}
    assert gate.over == []


async def test_a_key_has_a_quota_of_its_own_and_operators_have_none(store, host, gate):
    own = Client("own", operator=False, limits=KeyLimits(max_open_bytes=5 * SIZE))
    for client, count in ((own, 5), (LOCAL, 50), (Client("boss", operator=True), 50)):
        for _ in range(count):
            await gate.admit(body(), client=client)
    assert isinstance(await gate.refusal(body(), client=own), QuotaExceededError)
    unlimited = Gate(store, host, Clock(), limits={"max_open_bytes": 0})
    for _ in range(50):
        await unlimited.admit(body())


def test_what_is_held_survives_a_restart(tmp_path):
    path = tmp_path / "jobs.db"
    store = open_store(path, Clock())
    ids = [store.submit(new_job(body=b" " * SIZE), 10**9).result(LONG_S).job.job_id for _ in range(4)]
    claim(store, 1)
    end(store, ids[3])
    store.close()
    for _ in range(2):
        store = open_store(path, Clock())
        assert store.count_open_bytes("bot") == 3 * SIZE
        store.recover("local", 3).result(LONG_S)
        assert store.count_open_bytes("bot") == 3 * SIZE
        store.close()


async def test_a_commit_that_fails_counts_nothing(gate, store):
    await gate.admit(body())
    broken = store._engine.write(lambda db: db.execute("SELECT no_such_function()"))
    refused = store.submit(new_job(body=b" " * SIZE), 10**9)  # may share its commit
    assert broken.exception(LONG_S) is not None
    wait = refused.exception(LONG_S)
    expected = SIZE if wait is not None else 2 * SIZE
    store.submit(new_job(body=b" " * SIZE), 10**9).result(LONG_S)
    assert store.count_open_bytes("bot") == expected + SIZE
