"""Alarms are kept until an operator has seen them, whatever becomes of the process or the disk."""

import itertools

import pytest
from unit.fakes import LONG_S, SetClock, until
from unit.stores import both, open_store

from comfyui_guarded.guard.operators.alarms import Alarms
from comfyui_guarded.guard.store import NewAlarm
from comfyui_guarded.guard.store.alarms import KEPT

pytestmark = both

NOW_MS = 1_800_000_000_000


@pytest.fixture
def clock():
    return SetClock(NOW_MS)


@pytest.fixture
def opened(tmp_path, clock):
    stores = []

    def opened():
        for store in stores:
            store.close()
        stores.append(open_store(tmp_path / "jobs.db", clock))
        return stores[-1]

    yield opened
    stores[-1].close()


async def listed(alarms, count):
    await until(lambda: not alarms._waiting)
    found = []

    async def enough():
        found[:] = await alarms.list_page(50, None)
        return len(found) >= count

    while not await enough():
        pass
    return found


async def test_an_alarm_is_there_after_a_restart_with_its_job_and_time_until_it_is_seen(opened, clock):
    alarms = Alarms(opened(), clock)
    alarms.note("generation_timeout", "It ran too long.", "job-1")
    clock.ms += 1000
    alarms.note("disk_full", "The disk is full.", None)
    await listed(alarms, 2)
    alarms = Alarms(opened(), clock)
    newest, older = await alarms.list_page(50, None)
    assert (older["code"], older["job_id"], older["at_ms"], older["seen_at_ms"]) == (
        "generation_timeout", "job-1", NOW_MS, None
    )  # fmt: skip
    assert (newest["code"], newest["at_ms"]) == ("disk_full", NOW_MS + 1000)
    assert await alarms.count_unseen() == 2
    clock.ms += 1000
    assert await alarms.mark_seen([older["id"]], 0) == 1
    alarms = Alarms(opened(), clock)
    assert [one["seen_at_ms"] for one in await alarms.list_page(50, None)] == [None, NOW_MS + 2000]
    assert await alarms.count_unseen() == 1


async def test_marking_all_that_were_shown_leaves_what_has_come_since(opened, clock):
    alarms = Alarms(opened(), clock)
    alarms.note("one", "", None)
    (shown,) = await listed(alarms, 1)
    alarms.note("two", "", None)
    await listed(alarms, 2)
    assert await alarms.mark_seen([], shown["id"]) == 1
    assert [one["code"] for one in await alarms.list_page(50, None) if one["seen_at_ms"] is None] == ["two"]


async def test_only_the_newest_are_kept_and_a_long_text_is_cut(opened):
    store = opened()
    many = [NewAlarm(NOW_MS, f"c{number}", "x" * 10_000) for number in range(KEPT + 20)]
    store.put_alarms(many[:30]).result(LONG_S)
    store.put_alarms(many[30:]).result(LONG_S)
    pages = []
    for before in itertools.chain([None], (page[-1].number for page in pages)):
        if not (page := store.list_alarms(400, before).result(LONG_S)):
            break
        pages.append(page)
    codes = [alarm.code for page in pages for alarm in page]
    assert codes == [alarm.code for alarm in reversed(many)][:KEPT]
    assert len(pages[0][0].message) == 2000
    assert store.count_unseen_alarms().result(LONG_S) == KEPT


async def test_what_the_store_does_not_take_is_handed_in_again_with_the_time_at_which_it_happened(opened, clock):
    store = opened()
    store.close()
    alarms = Alarms(store, clock)
    alarms.note("store_stalled", "Nothing is written.", None)
    alarms.turn()
    assert len(alarms._waiting) == 1
    alarms._store = opened()
    clock.ms += 60_000
    alarms.turn()
    (kept,) = await listed(alarms, 1)
    assert (kept["code"], kept["at_ms"]) == ("store_stalled", NOW_MS)
