"""How many jobs and bytes a client may ask for."""

import asyncio
import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import GRAPH, LONG_S, settings
from unit.test_admission import Gate

from comfyui_guarded.guard.client import Client, KeyLimits
from comfyui_guarded.guard.errors import ConflictError, PayloadTooLargeError, QueueFullError, RateLimitedError
from comfyui_guarded.guard.host import Refusal, Rehearsal
from comfyui_guarded.guard.submit.limits import Limits

BOT = Client("bot", operator=False)
OTHER = Client("other", operator=False)


class FakeClock:
    def __init__(self):
        self.now_s = 1000.0

    def monotonic_s(self):
        return self.now_s

    def now_ms(self):
        return int(self.now_s * 1000)


@pytest.fixture
def clock():
    return FakeClock()


def made(clock, **limits):
    return Limits(settings(limits=limits).limits, clock)


def refused(limits, client=BOT):
    with pytest.raises(RateLimitedError) as caught:
        limits.take_job(client)
    json.dumps(caught.value.body("ru"))
    return caught.value


def test_without_a_limit_nothing_is_counted_or_said(clock):
    limits = made(clock)
    for _ in range(1000):
        limits.take_job(BOT)
    assert limits.header_fields(BOT) == {}


def test_a_minutes_jobs_may_come_at_once_and_then_one_after_the_other(clock):
    limits = made(clock, jobs_per_minute=6)
    for _ in range(6):
        limits.take_job(BOT)
    error = refused(limits)
    assert (error.status, error.retry_after_s) == (429, pytest.approx(10))
    assert error.extra_info == {"limit": 6, "window_s": 60, "of": "jobs", "scope": "client"}
    clock.now_s += 9.9
    refused(limits)
    clock.now_s += 0.1
    limits.take_job(BOT)
    refused(limits)


def test_whoever_comes_back_when_told_to_is_let_in(clock):
    limits = made(clock, jobs_per_minute=7)
    for _ in range(7):
        limits.take_job(BOT)
    for _ in range(50):
        clock.now_s += refused(limits).retry_after_s
        limits.take_job(BOT)


def test_less_than_one_a_minute_is_one_in_more_than_a_minute(clock):
    limits = made(clock, jobs_per_minute=0.25)
    limits.take_job(BOT)
    assert refused(limits).retry_after_s == pytest.approx(240)


def test_owners_do_not_share_a_bucket(clock):
    limits = made(clock, jobs_per_minute=1)
    limits.take_job(BOT)
    limits.take_job(OTHER)
    refused(limits)


def test_a_keys_own_limit_goes_before_the_settings(clock):
    limits = made(clock, jobs_per_minute=1, max_queued=5)
    fast = Client("fast", operator=False, limits=KeyLimits(jobs_per_minute=3, max_queued=50))
    for _ in range(3):
        limits.take_job(fast)
    refused(limits, fast)
    free = Client("free", operator=False, limits=KeyLimits(jobs_per_minute=0, max_queued=0))
    for _ in range(100):
        limits.take_job(free)
    assert [limits.max_queued(client) for client in (BOT, fast, free)] == [5, 50, None]


def test_all_together_have_a_limit_of_their_own_and_a_refusal_counts_for_nobody(clock):
    limits = made(clock, jobs_per_minute=2, total_jobs_per_minute=3)
    limits.take_job(BOT)
    limits.take_job(BOT)
    refused(limits)  # by its own limit: nothing is taken from all
    limits.take_job(OTHER)
    error = refused(limits, OTHER)
    assert error.extra_info["scope"] == "server"
    assert limits.header_fields(OTHER)["RateLimit"].startswith('"jobs";r=1;')
    limits.give_job_back(BOT)
    limits.take_job(OTHER)


def test_the_fields_say_what_is_left(clock):
    limits = made(clock, jobs_per_minute=6)
    assert limits.header_fields(BOT) == {"RateLimit-Policy": '"jobs";q=6;w=60', "RateLimit": '"jobs";r=6;t=0'}
    limits.take_job(BOT)
    limits.take_job(BOT)
    assert limits.header_fields(BOT)["RateLimit"] == '"jobs";r=4;t=20'
    clock.now_s += 11
    assert limits.header_fields(BOT)["RateLimit"] == '"jobs";r=5;t=9'
    limits.give_job_back(BOT)
    limits.give_job_back(BOT)
    assert limits.header_fields(BOT)["RateLimit"] == '"jobs";r=6;t=0'


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away(clock):
    limits = made(clock, jobs_per_minute=1)
    limits.take_job(BOT)
    clock.now_s -= 100
    refused(limits)


@given(
    st.floats(0.01, 1000),
    st.lists(st.one_of(st.floats(0, 100), st.sampled_from(["take", "back", "fields"])), max_size=60),
)
def test_no_more_than_the_quota_and_what_has_filled_up_is_ever_let_in(rate, steps):
    clock = FakeClock()
    limits = made(clock, jobs_per_minute=rate)
    began_s, taken = clock.now_s, 0
    for step in steps:
        if isinstance(step, float):
            clock.now_s += step
        elif step == "fields":
            policy, left = limits.header_fields(BOT).values()
            assert re.fullmatch(r'"jobs";q=\d+;w=\d+', policy)
            assert re.fullmatch(r'"jobs";r=\d+;t=\d+', left)
        elif step == "back" and taken:
            limits.give_job_back(BOT)
            taken -= 1
        elif step == "take":
            with contextlib.suppress(RateLimitedError):
                limits.take_job(BOT)
                taken += 1
    assert taken <= max(int(rate), 1) + (clock.now_s - began_s) * rate / 60 + 0.01


def test_uploads_are_counted_in_bytes(clock):
    limits = made(clock, upload_bytes_per_hour=3600, total_upload_bytes_per_hour=5000)
    limits.take_upload(BOT, 3000)
    with pytest.raises(RateLimitedError) as caught:
        limits.take_upload(BOT, 700)
    assert caught.value.retry_after_s == pytest.approx(100)
    limits.take_upload(BOT, 600)
    with pytest.raises(RateLimitedError) as caught:
        limits.take_upload(OTHER, 1500)
    assert caught.value.extra_info["scope"] == "server"
    with pytest.raises(PayloadTooLargeError):
        limits.take_upload(OTHER, 3601)


# At the door. ----------------------------------------------------------------------------------------------------


def _raw(graph=GRAPH):
    return json.dumps({"prompt": graph}).encode()


def _left(gate):
    return re.search(r"r=(\d+)", gate.limits.header_fields(BOT)["RateLimit"])[1]


async def test_a_job_that_is_refused_costs_nothing_of_the_rate(store, host, clock):
    gate = Gate(store, host, clock, limits={"jobs_per_minute": 2}, policy={"deny_nodes": ["Denied"]})
    for raw in (b"", b"nonsense", _raw({"1": {"class_type": "Denied", "inputs": {}}})):
        await gate.refusal(raw)
    host.rehearsal = Rehearsal(Refusal("refused", "no", "", {}, {}), ())
    await gate.refusal()
    assert _left(gate) == "2"


async def test_a_replay_costs_nothing_of_the_rate(store, host, clock):
    gate = Gate(store, host, clock, limits={"jobs_per_minute": 2})
    first = await gate.admit(idempotency_key="k")
    for _ in range(5):
        assert (await gate.admit(idempotency_key="k")).job == first.job
    assert _left(gate) == "1"
    assert isinstance(await gate.refusal(b"{}", idempotency_key="k"), ConflictError)
    await gate.admit()
    assert isinstance(await gate.refusal(), RateLimitedError)
    assert (await gate.admit(idempotency_key="k")).replayed


async def test_two_at_once_with_one_key_cost_one_job(store, host, clock):
    gate = Gate(store, host, clock, limits={"jobs_per_minute": 5})
    answers = await asyncio.gather(*(gate.admit(idempotency_key="k") for _ in range(4)))
    assert sorted(answer.replayed for answer in answers) == [False, True, True, True]
    assert _left(gate) == "4"


async def test_a_flood_that_comes_all_at_once_makes_no_more_jobs_than_allowed(store, host, clock):
    gate = Gate(store, host, clock, limits={"jobs_per_minute": 5})
    answers = await asyncio.gather(*(gate.admit() for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(answer, RateLimitedError) for answer in answers) == 45
    assert store.queued == 5


async def test_one_owner_cannot_fill_the_queue(store, host, clock):
    gate = Gate(store, host, clock, limits={"max_queued": 2})
    answers = await asyncio.gather(*(gate.admit() for _ in range(10)), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, QueueFullError)]
    assert len(refusals) == 8
    assert refusals[0].extra_info == {"queued": 2, "max_queued": 2, "scope": "client"}
    assert refusals[0].status == 429
    assert store.queued == 2
    await gate.admit(client=OTHER)
    assert store.queued == 3


async def test_a_full_queue_says_so_before_the_rate_is_touched(store, host, clock):
    gate = Gate(store, host, clock, limits={"jobs_per_minute": 5}, queue={"max_queued": 1})
    await gate.admit(client=OTHER)
    assert isinstance(await gate.refusal(), QueueFullError)
    assert _left(gate) == "5"


async def test_a_place_that_is_free_again_may_be_taken(store, host, clock):
    gate = Gate(store, host, clock, limits={"max_queued": 1})
    await gate.admit()
    assert isinstance(await gate.refusal(), QueueFullError)
    store.claim("local", 1).result(LONG_S)
    await gate.admit()


# The users of a client. ------------------------------------------------------------------------------------------


def test_each_user_has_a_limit_of_its_own(clock):
    limits = made(clock, user_jobs_per_minute=2)
    for client in (BOT, OTHER):
        for user in ("1", "2"):
            for _ in range(2):
                limits.take_job_of_user(client, user)
    with pytest.raises(RateLimitedError) as caught:
        limits.take_job_of_user(BOT, "1")
    assert caught.value.extra_info["scope"] == "user"
    assert "1" not in re.findall(r"\w+", caught.value.message), "who it is stays between the client and its user"
    limits.give_job_of_user_back(BOT, "1")
    limits.take_job_of_user(BOT, "1")
    clock.now_s += 30
    limits.take_job_of_user(BOT, "1")


def test_users_who_may_ask_for_all_again_are_forgotten_and_the_others_are_not(clock):
    limits = made(clock, user_jobs_per_minute=60, jobs_per_minute=10)
    limits.take_job(BOT)
    for user in range(15_000):
        limits.take_job_of_user(BOT, str(user))
        clock.now_s += 0.001
    assert len(limits._buckets) < 12_000
    for _ in range(59):  # the last one asked a moment ago
        limits.take_job_of_user(BOT, "14999")
    with pytest.raises(RateLimitedError):
        limits.take_job_of_user(BOT, "14999")
