"""Threads that owners share: whoever fills them with long work holds up nobody else."""

import asyncio
import threading

import pytest
from unit.fakes import LONG_S

from comfyui_guarded.guard.quotas.threads import SharedThreads, Shares, find_whose, run_beside, working_for


class Work:
    """What runs until it may end."""

    def __init__(self):
        self.may_end = threading.Event()
        self.begun = []
        self.has_begun = threading.Event()

    def run(self, name):
        self.begun.append(name)
        self.has_begun.set()
        assert self.may_end.wait(LONG_S)
        return name


@pytest.fixture
def work():
    work = Work()
    yield work
    work.may_end.set()


def begin(threads, owner, function, *arguments):
    return asyncio.ensure_future(threads.run(owner, function, *arguments))


async def test_an_owner_whose_work_does_not_end_leaves_a_thread_to_others(work):
    threads = SharedThreads(2, "test")
    stuck = [begin(threads, "flood", work.run, at) for at in range(20)]
    assert await asyncio.to_thread(work.has_begun.wait, LONG_S)
    for owner in ("a", "b", "a"):
        assert await threads.run(owner, str.upper, "done") == "DONE"
    assert work.begun == [0]
    work.may_end.set()
    assert await asyncio.gather(*stuck) == list(range(20))
    assert work.begun == list(range(20))


async def test_owners_take_turns(work):
    threads = SharedThreads(1, "test")
    asked = [begin(threads, "a", work.run, "held")]
    assert await asyncio.to_thread(work.has_begun.wait, LONG_S)
    for owner, count in (("a", 6), ("b", 3), ("c", 1)):
        asked += [begin(threads, owner, work.run, f"{owner}{at}") for at in range(count)]
    await asyncio.sleep(0)
    work.may_end.set()
    await asyncio.gather(*asked)
    assert work.begun == ["held", "a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3", "a4", "a5"]


async def test_who_goes_away_gives_its_place_up_once_its_thread_has_ended(work):
    threads = SharedThreads(2, "test")
    first = begin(threads, "a", work.run, "first")
    assert await asyncio.to_thread(work.has_begun.wait, LONG_S)
    following = [begin(threads, "a", work.run, at) for at in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    following[0].cancel()
    await asyncio.gather(first, following[0], return_exceptions=True)
    assert work.begun == ["first"], "its thread still works"
    work.may_end.set()
    assert await asyncio.gather(*following[1:]) == [1, 2]
    assert work.begun == ["first", 1, 2]
    assert await threads.run("b", str.upper, "b") == "B"


async def test_what_fails_gives_its_place_back():
    threads = SharedThreads(1, "test")
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await threads.run("a", int, "no")
    assert await threads.run("b", int, "7") == 7


async def test_what_nobody_waits_for_any_more_does_not_begin_where_that_is_dropped(work):
    threads = SharedThreads(1, "test", drops_vain=True)
    is_gone = []
    with working_for("a", lambda: bool(is_gone)):
        asked = [begin(threads, "a", work.run, at) for at in range(3)]
    with working_for("a"):
        kept = begin(threads, "a", work.run, "kept")
    assert await asyncio.to_thread(work.has_begun.wait, LONG_S)
    is_gone.append(True)
    work.may_end.set()
    assert await kept == "kept"
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert ended[0] == 0
    assert [type(each) for each in ended[1:]] == [ConnectionResetError] * 2
    assert work.begun == [0, "kept"]


def test_places_that_a_closed_loop_has_left_taken_are_free_in_the_next_one(work):
    threads = SharedThreads(1, "test")

    async def leave_behind():
        begin(threads, "a", work.run, "left")
        assert await asyncio.to_thread(work.has_begun.wait, LONG_S)

    asyncio.run(leave_behind())
    work.may_end.set()
    assert asyncio.run(threads.run("b", str.upper, "b")) == "B"


async def test_shares_of_what_has_no_threads_go_by_turns_too():
    shares, told, may_end = Shares(2, 1), [], asyncio.Event()

    async def have(owner, name):
        async with shares.of(owner):
            told.append(name)
            await may_end.wait()

    having = [asyncio.ensure_future(have("a", f"a{at}")) for at in range(4)]
    having += [asyncio.ensure_future(have(owner, owner)) for owner in ("b", "c")]
    for _ in range(3):
        await asyncio.sleep(0)
    assert told == ["a0", "b"]
    having[1].cancel()
    may_end.set()
    await asyncio.gather(*having, return_exceptions=True)
    assert told == ["a0", "b", "c", "a2", "a3"]


async def test_requests_of_one_leave_half_of_the_threads_to_others(work):
    """For what each of them works is known wherever they call from."""
    assert find_whose() == ""
    with working_for("flood"):
        stuck = [asyncio.ensure_future(run_beside(work.run, at)) for at in range(20)]
    try:
        with working_for("shop"):
            assert await run_beside(str.upper, "done") == "DONE"
            assert find_whose() == "shop"
        assert len(work.begun) <= 4
    finally:
        work.may_end.set()
    assert sorted(await asyncio.gather(*stuck)) == list(range(20))
