"""What comes in together goes on together, however many turns of the loop that takes, and nothing is left waiting."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_guarded.guard.submit.gathering import TURNS, Gathering


class Gathered:
    def __init__(self):
        self.waiting = 0
        self.batches = []
        self.gathering = Gathering(self._let_go)

    def add(self):
        self.waiting += 1
        self.gathering.add()

    def _let_go(self):
        self.batches.append(self.waiting)
        self.waiting = 0


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_alone_goes_on_in_the_next_turn():
    gathered = Gathered()
    gathered.add()
    await turns(1)
    assert gathered.batches == [1]


async def test_one_alone_goes_on_at_once_where_the_loop_has_nothing_else_to_do():
    gathered, added = Gathered(), asyncio.Event()

    def add():
        gathered.add()
        assert gathered.batches == [1]
        added.set()

    asyncio.get_running_loop().call_later(0.01, add)  # its turn has nothing beside it
    await added.wait()
    gathered.add()
    await turns(1)
    assert gathered.batches == [1, 1]


async def test_what_comes_in_over_several_turns_goes_on_in_one_piece():
    gathered = Gathered()
    for _ in range(4):
        for _ in range(8):
            asyncio.get_running_loop().call_soon(gathered.add)  # each request is a task of its own
        await turns(1)
    await turns(2)
    assert gathered.batches == [32]


async def test_what_comes_in_without_a_pause_does_not_wait_for_its_end():
    gathered = Gathered()
    for _ in range(5 * TURNS):
        gathered.add()
        gathered.add()
        await turns(1)
    assert len(gathered.batches) >= 4


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=30))
def test_none_is_ever_left_behind(steps):
    async def play():
        gathered, added = Gathered(), 0
        for count, pause in steps:
            for _ in range(count):
                gathered.add()
            added += count
            await turns(pause)
        await turns(TURNS + 1)
        assert (gathered.waiting, sum(gathered.batches)) == (0, added)
        assert 0 not in gathered.batches

    asyncio.run(play())
