"""However requests come in, so many begin in one turn of the event loop, and all of them begin."""

import asyncio
from collections import Counter

import pytest

from comfyui_guarded.server_routes.evenly import Turns


@pytest.mark.parametrize("before", range(6))
async def test_no_more_than_so_many_begin_in_one_turn_whatever_came_before(before):
    turns, begun, turn = Turns(4), Counter(), 0

    async def begin():
        await turns.wait()
        begun[turn] += 1

    async def take_turn():
        nonlocal turn
        turn += 1
        await asyncio.sleep(0)

    tasks = []
    for _ in range(before):  # one in each turn
        tasks.append(asyncio.ensure_future(begin()))
        await take_turn()
    tasks += [asyncio.ensure_future(begin()) for _ in range(20)]
    for _ in range(20):
        await take_turn()
    assert all(task.done() for task in tasks)
    assert max(begun.values()) <= 4
