"""Limits that the boxes of a fleet share: of jobs to the last one, of bytes within a look."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from unit.fakes import LONG_S, new_job, settings
from unit.stores import look_into, only_postgres
from unit.test_fleet_store import kill, open_box

from comfyui_guarded.guard.client import Client, KeyLimits
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import RateLimitedError
from comfyui_guarded.guard.quotas import Quota, Taking
from comfyui_guarded.guard.submit.limits import Limits
from comfyui_guarded.guard.submit.shared_limits import exchange

pytestmark = only_postgres

BOT = Client("bot", operator=False)
SLOW = Quota(5, 36_000)


@pytest.fixture
def boxes(tmp_path):
    opened = [open_box(tmp_path / "store", name) for name in ("a", "b", "c")]
    yield opened
    for box in opened:
        kill(box)


def limits_of(**limits):
    return Limits(settings(limits=limits).limits, Clock(), is_shared=True)


def submit(box, takings, owner="bot"):
    return box.submit(new_job(owner=owner), 1000, takings=takings)


def test_three_boxes_at_once_let_in_as_many_jobs_as_one_would(boxes):
    def ask(box):
        return submit(box, [Taking("jobs", ("bot",), SLOW, 1)]).exception(LONG_S)

    with ThreadPoolExecutor(12) as pool:
        errors = list(filter(None, pool.map(ask, boxes * 8)))
    assert len(errors) == 24 - 5
    assert all(isinstance(error, RateLimitedError) and 0 < error.retry_after_s <= 7200 for error in errors)
    assert boxes[0].count_jobs("bot").result(LONG_S).queued == 5


def test_a_job_that_is_refused_takes_nothing_from_anybody(boxes):
    here, there, _ = boxes
    takings = [Taking("jobs", ("bot",), SLOW, 1), Taking("jobs", (), Quota(2, 36_000), 1)]
    for box in (here, there):
        submit(box, takings).result(LONG_S)
    for box in boxes:
        with pytest.raises(RateLimitedError) as caught:
            submit(box, takings).result(LONG_S)
        assert caught.value.extra_info["scope"] == "server"
    for _ in range(3):  # of the five, two are taken
        submit(there, takings[:1]).result(LONG_S)
    with pytest.raises(RateLimitedError) as caught:
        submit(here, takings[:1]).result(LONG_S)
    assert caught.value.extra_info["scope"] == "client"
    submit(here, [Taking("jobs", ("other",), SLOW, 1)], "other").result(LONG_S)


def test_a_bucket_refills_by_the_engines_clock_and_its_row_goes(boxes, tmp_path):
    here, there, _ = boxes
    taking = Taking("jobs", ("bot", "anna"), Quota(1, 60), 1)
    submit(here, [taking]).result(LONG_S)
    with pytest.raises(RateLimitedError):
        submit(there, [taking]).result(LONG_S)
    with look_into(tmp_path / "store") as db:
        db.execute("UPDATE buckets SET at_ms = at_ms - 61000, full_at_ms = full_at_ms - 61000")
    submit(there, [taking]).result(LONG_S)
    here.forget_full_buckets().result(LONG_S)
    with look_into(tmp_path / "store") as db:
        assert db.execute("SELECT count(*) FROM buckets").fetchone()[0] == 1
        db.execute("UPDATE buckets SET full_at_ms = 0")
    here.forget_full_buckets().result(LONG_S)
    with look_into(tmp_path / "store") as db:
        assert db.execute("SELECT count(*) FROM buckets").fetchone()[0] == 0


def test_what_a_job_takes_goes_by_the_settings_and_the_key():
    limits = limits_of(jobs_per_minute=6, total_jobs_per_minute=60, user_jobs_per_minute=2)
    fast = Client("fast", operator=False, limits=KeyLimits(jobs_per_minute=600))
    assert [(one.whose, one.quota.units) for one in limits.list_takings(fast, "anna")] == [
        (("fast",), 600),
        ((), 60),
        (("fast", "anna"), 2),
    ]
    assert limits_of().list_takings(BOT, "anna") == []
    assert Limits(settings(limits={"jobs_per_minute": 6}).limits, Clock()).list_takings(BOT, None) == []


async def test_bytes_that_came_to_one_box_count_on_the_others_after_a_look(boxes):
    here, there = (limits_of(upload_bytes_per_hour=1000, total_upload_bytes_per_hour=1500) for _ in range(2))
    here.take_upload(BOT, 600)
    there.take_upload(BOT, 300)
    for _ in range(2):
        await asyncio.gather(exchange(here, boxes[0]), exchange(there, boxes[1]))
    for limits in (here, there):
        with pytest.raises(RateLimitedError) as caught:
            limits.take_upload(BOT, 200)
        assert caught.value.extra_info["scope"] == "client"
        with pytest.raises(RateLimitedError) as caught:
            limits.take_upload(Client("other", operator=False), 700)
        assert caught.value.extra_info["scope"] == "server"
    there.take_upload(BOT, 90)
    await exchange(there, boxes[1])
    await exchange(here, boxes[0])
    with pytest.raises(RateLimitedError):
        here.take_upload(BOT, 20)
    assert here.list_untold() == there.list_untold() == []
    empty = Client("empty", operator=False)
    for _ in range(3):
        here.take_upload(empty, 0)
        await exchange(here, boxes[0])
        assert here.list_untold() == []


async def test_of_very_many_clients_some_are_asked_about_at_a_time(boxes, monkeypatch):
    monkeypatch.setattr("comfyui_guarded.guard.submit.limits._PLACES", 2)
    limits = limits_of(upload_bytes_per_hour=1000)
    clients = [Client(f"bot{number}", operator=False) for number in range(5)]
    for client in clients:
        limits.take_upload(client, 900)
    for _ in range(4):
        await exchange(limits, boxes[0])
        for client in clients:
            with pytest.raises(RateLimitedError):
                limits.take_upload(client, 200)


async def test_a_client_reads_what_all_boxes_have_left_of_its_jobs(boxes):
    here, there = limits_of(jobs_per_minute=6), limits_of(jobs_per_minute=6)
    for _ in range(4):
        here.take_job(BOT)
        submit(boxes[0], here.list_takings(BOT, None)).result(LONG_S)
    there.take_job(BOT)
    submit(boxes[1], there.list_takings(BOT, None)).result(LONG_S)
    assert '"jobs";r=5' in there.header_fields(BOT)["RateLimit"]
    await exchange(there, boxes[1])
    assert '"jobs";r=1' in there.header_fields(BOT)["RateLimit"]
    there.take_job(BOT)  # on its way in
    await exchange(there, boxes[1])
    there.give_job_back(BOT)
    await exchange(there, boxes[1])
    assert '"jobs";r=1' in there.header_fields(BOT)["RateLimit"]
