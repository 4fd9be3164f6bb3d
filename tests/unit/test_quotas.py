"""What an owner may hold at once: streams and requests."""

import asyncio
import contextlib
import json

import pytest
from unit.fakes import LONG_S, settings

from comfyui_guarded.guard.client import LOCAL, Client, KeyLimits
from comfyui_guarded.guard.errors import PayloadTooLargeError, QuotaExceededError, ServerUnavailableError
from comfyui_guarded.guard.quotas import Kind, Quotas, large, turns
from comfyui_guarded.guard.quotas import quotas as module

BOT = Client("bot", operator=False)
OTHER = Client("other", operator=False)
OPERATOR = Client("boss", operator=True)


def made(**limits):
    return Quotas(settings(limits=limits).limits)


async def settle():
    """Let every task go as far as it comes."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_stream_over_the_quota_is_refused_until_one_is_closed():
    quotas = made(max_streams=2)
    refused = []
    quotas.refused.subscribe(refused.append)
    with quotas.stream(BOT):
        with quotas.stream(BOT):
            with pytest.raises(QuotaExceededError) as caught, quotas.stream(BOT):
                pass
            with quotas.stream(OTHER):
                assert quotas.streams == 3
        with quotas.stream(BOT):
            pass
    assert quotas.streams == 0
    assert refused == ["streams"]
    body = caught.value.body("ru")
    json.dumps(body)
    assert body["error"]["extra_info"] == {
        "of": "streams", "held": 2, "limit": 2, "scope": "client", "frees": "one of them is closed",
    }  # fmt: skip
    assert body["guard"]["retryable"]
    assert body["guard"]["retry_after_s"] >= 1
    assert caught.value.body("ru", of_submit=True)["guard"]["refund"] is True


def test_a_key_has_a_quota_of_its_own_and_operators_have_none():
    quotas = made(max_streams=1)
    own = Client("own", operator=False, limits=KeyLimits(max_streams=3))
    with contextlib.ExitStack() as stack:
        for client, count in ((own, 3), (OPERATOR, 100), (LOCAL, 100)):
            for _ in range(count):
                stack.enter_context(quotas.stream(client))
        with pytest.raises(QuotaExceededError), quotas.stream(own):
            pass
    unlimited = made(max_streams=0)
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(unlimited.stream(BOT))


async def test_requests_over_the_quota_take_turns_in_order_and_other_owners_need_not_wait():
    quotas = made(max_requests=2)
    order = []

    async def ask(number):
        turn = await quotas.begin_request(BOT)
        order.append(number)
        return turn

    asked = [asyncio.create_task(ask(number)) for number in range(5)]
    await settle()
    assert order == [0, 1]
    (await asyncio.wait_for(quotas.begin_request(OTHER), 1)).close()
    (await asked[1]).close()
    await settle()
    assert order == [0, 1, 2]
    (await asked[0]).rest()  # it waits for its job now
    await settle()
    assert order == [0, 1, 2, 3]
    (await asked[0]).close()  # which frees nothing more
    await settle()
    assert order == [0, 1, 2, 3]
    for task in asked[2:]:
        (await task).close()
        await settle()
    assert order == [0, 1, 2, 3, 4]
    assert not quotas._requests


async def test_a_thousand_requests_that_wait_for_jobs_are_not_refused():
    quotas = made()
    given = []
    for _ in range(1000):
        turn = await asyncio.wait_for(quotas.begin_request(BOT), 1)
        turn.rest()
        given.append(turn)
    for turn in given:
        turn.close()
    assert not quotas._requests


async def test_a_request_whose_turn_does_not_come_is_refused_and_costs_no_turn(monkeypatch):
    monkeypatch.setattr(turns, "TURN_WITHIN_S", 0.05)
    quotas = made(max_requests=1)
    first = await quotas.begin_request(BOT)
    with pytest.raises(QuotaExceededError) as caught:
        await quotas.begin_request(BOT)
    assert caught.value.extra_info["of"] == "requests"
    first.close()
    (await asyncio.wait_for(quotas.begin_request(BOT), 1)).close()
    assert not quotas._requests


async def test_a_request_whose_client_has_gone_gives_its_turn_to_the_next():
    quotas = made(max_requests=1)
    first = await quotas.begin_request(BOT)
    gone = asyncio.create_task(quotas.begin_request(BOT))
    gone_with_turn = asyncio.create_task(quotas.begin_request(BOT))
    last = asyncio.create_task(quotas.begin_request(BOT))
    await settle()
    gone.cancel()
    await settle()
    first.close()
    gone_with_turn.cancel()  # it has been given the turn, and does not know yet
    turn = await asyncio.wait_for(last, 1)
    turn.close()
    await asyncio.gather(gone, gone_with_turn, return_exceptions=True)
    assert not quotas._requests


async def test_there_is_an_end_to_requests_that_wait(monkeypatch):
    monkeypatch.setattr(module, "HELD", 3)
    quotas = made(max_requests=1)
    given = []
    for _ in range(3):
        turn = await quotas.begin_request(BOT)
        turn.rest()
        given.append(turn)
    with pytest.raises(QuotaExceededError):
        await quotas.begin_request(BOT)
    given[0].close()
    (await quotas.begin_request(BOT)).close()


async def test_a_fifth_of_the_requests_may_be_large_and_they_take_no_turns_of_others():
    quotas = made(max_requests=10)
    turns_of_bot = [await quotas.begin_request(BOT) for _ in range(10)]
    large = [asyncio.create_task(turn.take(Kind.LARGE)) for turn in turns_of_bot]
    await settle()
    assert [task.done() for task in large] == [True] * 2 + [False] * 8
    small = [await asyncio.wait_for(quotas.begin_request(BOT), 1) for _ in range(10)]
    turns_of_bot[0].rest()
    await settle()
    assert sum(task.done() for task in large) == 3
    for turn in small:
        turn.close()
    for turn in turns_of_bot:
        turn.close()
        await settle()
    assert all(task.done() for task in large)
    await asyncio.wait_for(turns_of_bot[0].take(Kind.LARGE), 1)  # closed: it counts for nothing
    assert not quotas._requests


async def test_a_turn_that_was_given_up_for_another_that_does_not_come_is_free(monkeypatch):
    monkeypatch.setattr(turns, "TURN_WITHIN_S", 0.05)
    quotas = made(max_requests=1)
    first = await quotas.begin_request(BOT)
    await first.take(Kind.LARGE)
    second = await asyncio.wait_for(quotas.begin_request(BOT), 1)
    with pytest.raises(QuotaExceededError) as caught:
        await second.take(Kind.LARGE)
    assert caught.value.extra_info["of"] == "large_requests"
    third = await asyncio.wait_for(quotas.begin_request(BOT), 1)
    for turn in (first, second, third):
        turn.close()
    assert not quotas._requests


def test_what_an_owner_is_sending_is_counted_until_it_has_gone_somewhere():
    quotas = made(max_incoming_bytes=100)
    refused = []
    quotas.refused.subscribe(refused.append)
    first = quotas.open_parcel(BOT, 60)
    first.take(60)
    with pytest.raises(QuotaExceededError) as caught:
        quotas.open_parcel(BOT, 41)
    assert caught.value.extra_info["of"] == "incoming_bytes"
    assert refused == ["incoming_bytes"]
    unknown = quotas.open_parcel(BOT)  # it declares no length
    unknown.take(40)
    with pytest.raises(QuotaExceededError):
        unknown.take(1)
    quotas.open_parcel(OTHER, 100).take(100)
    quotas.open_parcel(OPERATOR, 10**9).take(10**9)
    with pytest.raises(PayloadTooLargeError):
        quotas.open_parcel(BOT, 101)
    first.close()
    unknown.take(60)
    unknown.close()
    unknown.close()
    quotas.open_parcel(BOT, 100).take(100)


async def take_large(quotas, owner):
    turn = await quotas.begin_request(Client(owner, operator=False))
    await turn.take(Kind.LARGE)
    return turn


async def test_large_requests_of_all_owners_together_are_bounded_and_who_takes_long_gives_way(monkeypatch):
    monkeypatch.setattr(large, "LARGE_AT_ONCE", 8)
    monkeypatch.setattr(large, "KEPT_S", 1.5)
    quotas, ended = made(), []
    held = [await take_large(quotas, f"owner{number // 4}") for number in range(8)]
    for number, turn in enumerate(held):
        turn.end = lambda number=number: ended.append(number)
    waiting = [asyncio.create_task(take_large(quotas, owner)) for owner in ("late", "later")]
    await settle()
    assert not any(task.done() for task in waiting)
    assert (await quotas.begin_request(Client("other", operator=False))).close() is None, "small ones need no such turn"
    held[5].close()
    (await asyncio.wait_for(waiting[0], 10)).close()
    (await asyncio.wait_for(waiting[1], 10)).close()
    assert not ended, "nobody gives way where a turn is free soon"
    again = [await take_large(quotas, "owner9")]
    waiting = [asyncio.create_task(take_large(quotas, f"late{number}")) for number in range(2)]
    for _ in range(100):
        await asyncio.sleep(0.1)
        if len(set(ended)) == 2:
            break
    assert set(ended) == {0, 1}, "the oldest, one for each that waits"
    held[0].close()
    held[1].close()
    for turn in [*again, *held, *await asyncio.gather(*waiting)]:
        turn.close()
    turns_again = [await take_large(quotas, f"owner{number}") for number in range(8)]
    for turn in turns_again:
        turn.close()


async def test_a_large_turn_of_all_owners_that_does_not_come_is_refused_and_costs_the_owner_none(monkeypatch):
    monkeypatch.setattr(large, "LARGE_AT_ONCE", 1)
    monkeypatch.setattr(large, "WITHIN_S", 0.05)
    quotas = made(max_requests=5)
    held = await take_large(quotas, "first")
    for _ in range(3):
        turn = await quotas.begin_request(BOT)
        with pytest.raises(ServerUnavailableError) as caught:
            await turn.take(Kind.LARGE)
        assert caught.value.retry_after_s
        turn.close()
    gone = asyncio.create_task(take_large(quotas, "gone"))
    await settle()
    gone.cancel()
    await asyncio.wait([gone])
    held.close()
    (await asyncio.wait_for(take_large(quotas, "bot"), 5)).close()


async def test_a_turn_for_which_nobody_waits_any_more_goes_to_the_next():
    """Whoever asked for much and has gone costs no work."""
    quotas = made(max_requests=5)  # one of them large
    first, gone, last = [await quotas.begin_request(BOT) for _ in range(3)]
    await first.take(Kind.LARGE)
    gone.is_vain = lambda: True
    tasks = [asyncio.create_task(turn.take(Kind.LARGE)) for turn in (gone, last)]
    await settle()
    assert not any(task.done() for task in tasks)
    first.close()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(tasks[0], LONG_S)
    await asyncio.wait_for(tasks[1], LONG_S)
