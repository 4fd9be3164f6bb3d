"""What runs took: the table that outlives the jobs, and the months that are made of it."""

import contextlib
import csv
import io

import pytest
from unit.fakes import LONG_S, new_job
from unit.stores import both

from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import InvalidRequestError
from comfyui_guarded.guard.job import SUCCESS, Result
from comfyui_guarded.guard.operators.spending import Bills, write_csv
from comfyui_guarded.guard.spent import NodeTime, Spent
from comfyui_guarded.guard.store import SqliteStore, spending

pytestmark = both

DAY_MS = 86_400_000
#: 2026-03-31 in the evening, UTC.
EVENING_MS = 1_774_990_800_000


def spend(store, clock, run_ms, at_ms=EVENING_MS, **facts):
    job = store.submit(new_job(**facts), 10**6).result(LONG_S).job
    store.spend(job, Spent(run_ms, run_ms // 10, at_ms)).result(LONG_S)
    return job


async def test_a_month_adds_up_by_owner_user_and_template(store, clock):
    for run_ms in (1000, 250):
        spend(store, clock, run_ms, owner="a", user="u", template="t")
    spend(store, clock, 5000, owner="a")
    spend(store, clock, 70, owner="b")
    spend(store, clock, 10**6, EVENING_MS + DAY_MS, owner="b")  # April's
    bills = Bills(store, clock)
    month = await bills.month(LOCAL, "2026-03")
    assert [(row["owner"], row["user"], row["template"], row["runs"], row["gpu_s"]) for row in month["rows"]] == [
        ("a", "", "", 1, 5.0),
        ("a", "u", "t", 2, 1.25),
        ("b", "", "", 1, 0.07),
    ]
    assert (month["runs"], month["gpu_s"]) == (4, 6.32)
    own = await bills.month(Client("b", operator=False), "2026-03")
    assert [row["owner"] for row in own["rows"]] == ["b"], "a key sees its own"
    assert (await bills.month(LOCAL, "2026-04"))["gpu_s"] == 1000
    for wrong in ("2026-13", "march", "2026-03' OR 1", "1999-01"):
        with pytest.raises(InvalidRequestError):
            await bills.month(LOCAL, wrong)


async def test_the_table_for_a_month_is_one_that_a_spreadsheet_reads_and_runs_nothing_of(store, clock):
    spend(store, clock, 1500, owner="a", user='=HYPERLINK("x"),y', template="t")
    rows = await Bills(store, clock).month_as_csv(LOCAL, "2026-03")
    head, row = csv.reader(io.StringIO(write_csv(rows)))
    assert dict(zip(head, row, strict=True)) == {
        "day": "2026-03-31",
        "owner": "a",
        "user": '\'=HYPERLINK("x"),y',
        "template": "t",
        "runs": "1",
        "gpu_s": "1.500",
        "load_s": "0.150",
    }


async def test_an_owner_with_a_new_user_for_each_job_fills_no_disk(store, clock, monkeypatch):
    monkeypatch.setattr(spending, "ROWS_OF_OWNER", 3)
    for number in range(8):
        spend(store, clock, 1000, owner="a", user=f"u{number}")
    month = await Bills(store, clock).month(LOCAL, "2026-03")
    assert (month["runs"], month["gpu_s"]) == (8, 8), "nothing is lost"
    assert sorted((row["user"], row["runs"]) for row in month["rows"]) == [("", 5), ("u0", 1), ("u1", 1), ("u2", 1)]


def days_of(store):
    return [row.day for row in store.read_spending(None, "2000-01-01", "2999-01-01", 10**6).result(LONG_S)]


def test_the_newest_days_are_kept_by_their_number(store, clock, monkeypatch):
    monkeypatch.setattr(spending, "KEPT_DAYS", 3)
    for day in range(5):
        for owner in ("a", "b"):
            spend(store, clock, 1000, EVENING_MS + day * DAY_MS, owner=owner)
    assert days_of(store) == ["2026-04-02"] * 2 + ["2026-04-03"] * 2 + ["2026-04-04"] * 2


def test_a_clock_that_is_ahead_deletes_nothing_and_the_next_start_counts_its_days_as_today(tmp_path, clock):
    """For one run the clock says that it is years later."""
    with contextlib.closing(SqliteStore(tmp_path / "guarded.db", clock)) as store:
        now_ms = clock.now_ms()
        for ahead_days in (0, -1, 401, 2000):
            spend(store, clock, 1000, now_ms + ahead_days * DAY_MS, owner="a", created_at_ms=now_ms + 2000 * DAY_MS)
        spend(store, clock, 1000, now_ms + 401 * DAY_MS, owner="b")
        assert len(days_of(store)) == 5
    with contextlib.closing(SqliteStore(tmp_path / "guarded.db", clock)) as store:
        store.recover("local", 2).result(LONG_S)
        today, yesterday = spending.name_day(clock.now_ms()), spending.name_day(now_ms - DAY_MS)
        rows = store.read_spending(None, "2000-01-01", "2999-01-01", 99).result(LONG_S)
        assert [(row.day, row.owner, row.runs, row.gpu_ms) for row in rows] == [
            (yesterday, "a", 1, 1000),
            (today, "a", 3, 3000),
            (today, "b", 1, 1000),
        ]


def test_a_job_tells_what_it_took_and_a_run_that_the_process_did_not_survive_counts_as_well(store):
    job_id = store.submit(new_job(created_at_ms=1000), 10**6).result(LONG_S).job.job_id
    store.claim("local", 10**6).result(LONG_S)
    store.start(job_id).result(LONG_S)
    spent = Spent(1200, 300, 5000, 7, (NodeTime("3", "KSampler", 900),))
    store.settle(job_id, SUCCESS, Result(spent=spent)).result(LONG_S)
    cost = store.get(job_id).result(LONG_S).body()["cost"]
    assert (cost["run_s"], cost["load_s"]) == (1.2, 0.3)
    assert (cost["vram_peak_bytes"], cost["nodes"]) == (7, [{"node_id": "3", "class_type": "KSampler", "s": 0.9}])
    store.release(job_id).result(LONG_S)
    job_id = store.submit(new_job(owner="killed"), 10**6).result(LONG_S).job.job_id
    store.claim("local", 10**6).result(LONG_S)
    started = store.start(job_id).result(LONG_S)
    store.recover("local", 3, started.started_at_ms + 4321).result(LONG_S)
    assert store.get(job_id).result(LONG_S).body()["cost"] is None
    (row,) = store.read_spending("killed", "2000-01-01", "2999-01-01", 9).result(LONG_S)
    assert (row.runs, row.gpu_ms) == (1, 4321)
