"""The figures of /guarded/stats: from the store, over an hour, a day and a week, and whose they are."""

import random

import pytest
from unit.fakes import LONG_S, FakeHost, FakeProcess, SetClock, new_job, settings
from unit.janitor import Box

from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import FAMILY
from comfyui_guarded.guard.job import SUCCESS, Verdict
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.settle import Settler
from comfyui_guarded.guard.life.watchdog import Watchdog
from comfyui_guarded.guard.operators import stats as module
from comfyui_guarded.guard.operators.alarms import Alarms
from comfyui_guarded.guard.operators.gpu import Gpus
from comfyui_guarded.guard.operators.refusals import Refusals
from comfyui_guarded.guard.operators.stats import HOUR_MS, Stats, slowest
from comfyui_guarded.guard.store import SqliteStore

BOT = Client("bot", operator=False)
NOW_MS = 1_800_000_000_000 + HOUR_MS // 2  # half past an hour
SECOND_MS = 1000
DAY_MS = 24 * HOUR_MS


class Past:
    """A store, and jobs that ended in it at times of the test's choosing."""

    def __init__(self, store, clock):
        self.store, self.clock = store, clock

    def job(self, ago_ms, code=None, *, run_ms=10_000, owner="bot", template="", began=True):
        ended_ms = NOW_MS - ago_ms
        self.clock.ms = ended_ms - run_ms
        new = new_job(owner=owner, template=template, created_at_ms=self.clock.ms)
        job_id = self.store.submit(new, 10**9).result(LONG_S).job.job_id
        if began:
            self.store.claim("local", 10**9).result(LONG_S)
            self.store.start(job_id).result(LONG_S)
        self.clock.ms = ended_ms
        verdict = SUCCESS if code is None else Verdict.of(FAMILY[code]("on purpose"))
        self.store.settle(job_id, verdict).result(LONG_S)
        self.store.release(job_id).result(LONG_S)
        self.clock.ms = NOW_MS


@pytest.fixture
def time():
    return SetClock(NOW_MS)


@pytest.fixture
def past(tmp_path, time):
    store = SqliteStore(tmp_path / "guarded.db", time)
    yield Past(store, time)
    store.close()


@pytest.fixture
def stats(past, time, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HOLDS_S", 0.0)
    return made(past.store, time, tmp_path)


def made(store, clock, tmp_path, host=None):
    host = host or FakeHost()
    inforce = settings()
    health = Health(host, store)
    health.mark_serving()
    settler = Settler(store, host, None, ClientIds(b"key" * 11), clock, 15.0)
    watchdog = Watchdog(inforce, store, host, health, settler, FakeProcess(), clock)
    janitor = Box(tmp_path / "box").janitor(store)
    return Stats(
        inforce.queue, store, host, health, watchdog, janitor, Gpus({}), Refusals(clock), Alarms(store, clock), clock
    )


async def test_a_window_counts_what_ended_in_it_and_says_how(past, stats):
    past.job(HOUR_MS - 1, run_ms=4_000)
    past.job(10, run_ms=8_000)
    past.job(20, "no_face", began=False)
    past.job(30, "generation_timeout", run_ms=600_000)
    past.job(31, "generation_timeout", run_ms=600_000)
    past.job(40, "cancelled", began=False)
    past.job(HOUR_MS + 1, run_ms=30_000)
    windows = (await stats.body(LOCAL))["windows"]
    assert windows["1h"] == {
        "jobs": 6,
        "succeeded": 2,
        "failed": 3,
        "cancelled": 1,
        "average_run_s": 6.0,  # of the successes alone
        "success_rate": 0.4,  # whoever cancels has not been failed
        "by_code": {"generation_timeout": 2, "cancelled": 1, "no_face": 1},
        "refused": {},
    }
    assert (windows["24h"]["jobs"], windows["24h"]["average_run_s"]) == (7, 14.0)
    assert windows["7d"]["jobs"] == 7


async def test_refusals_are_counted_by_code_and_owner_for_as_long_as_a_window(past, stats, time):
    refusals = stats._refusals
    for ago_ms, code, owner in (
        (6 * DAY_MS, "no_face", "bot"),
        (2 * HOUR_MS, "queue_full", "bot"),
        (8 * DAY_MS, "disk_full", "bot"),
        (1000, "no_face", "bot"),
        (900, "unauthorized", ""),
        (500, "no_face", "other"),
    ):
        time.ms = NOW_MS - ago_ms
        refusals.count(code, owner)
    time.ms = NOW_MS
    body = await stats.body(LOCAL)
    seen = {name: window["refused"] for name, window in body["windows"].items()}
    assert seen == {
        "1h": {"no_face": 2, "unauthorized": 1},
        "24h": {"no_face": 2, "queue_full": 1, "unauthorized": 1},
        "7d": {"no_face": 3, "queue_full": 1, "unauthorized": 1},
    }
    assert (await stats.body(BOT))["windows"]["24h"]["refused"] == {"no_face": 1, "queue_full": 1}
    assert body["refused_since_ms"] == NOW_MS


async def test_refusals_of_many_owners_and_of_a_week_take_no_more_memory(time):
    refusals = Refusals(time)
    for turn in range(3000):
        time.ms += HOUR_MS // 12
        for number in range(3 if turn else 300):
            refusals.count("no_face", f"owner-{number}")
    assert len(refusals._parts) <= 7 * 24 * 12 + 1
    assert refusals.by_code(None, 7 * DAY_MS)["no_face"] == 3 * (7 * 24 * 12 + 1)
    refusals = Refusals(time)
    for number in range(300):
        refusals.count("no_face", f"owner-{number}")
    assert refusals.by_code(None, HOUR_MS) == {"no_face": 300}
    assert [len(part) for part in refusals._parts.values()] == [201]


async def test_an_operator_sees_whose_jobs_failed(past, stats):
    for owner, codes in {"a": [None, "no_face", "cancelled"], "b": ["no_face", "out_of_memory"], "c": [None]}.items():
        for code in codes:
            past.job(1000, code, owner=owner)
    failing = (await stats.body(LOCAL))["failing"]["1h"]
    assert failing == [{"owner": "b", "jobs": 2, "failed": 2}, {"owner": "a", "jobs": 3, "failed": 1}]
    assert "failing" not in await stats.body(BOT)


async def test_nothing_has_no_rate_and_no_average(stats):
    body = await stats.body(LOCAL)
    assert set(body["windows"]) == {"1h", "24h", "7d"}
    for window in body["windows"].values():
        assert (window["jobs"], window["success_rate"], window["average_run_s"]) == (0, None, None)
        assert window["by_code"] == {}
    assert body["slowest"] == []
    assert body["gpu"] is None
    assert len(body["chart"]) == 24


async def test_only_the_jobs_whose_verdict_is_no_cancellation_make_a_rate(past, stats):
    past.job(1, "cancelled", began=False)
    assert (await stats.body(LOCAL))["windows"]["1h"]["success_rate"] is None


async def test_a_client_sees_its_own_figures_and_nothing_of_the_machine(past, stats):
    past.job(10, template="portrait")
    past.job(20, "no_face", owner="other", began=False)
    past.job(30, owner="other", template="secret", run_ms=99_000)
    past.store.submit(new_job(owner="other"), 10).result(LONG_S)
    mine = await stats.body(BOT)
    assert set(mine) == {"now_ms", "windows", "queue", "slowest", "chart", "refused_since_ms"}
    assert mine["windows"]["7d"]["jobs"] == 1
    assert mine["windows"]["7d"]["by_code"] == {}
    assert mine["queue"]["queued"] == 0
    assert [one["template"] for one in mine["slowest"]] == ["portrait"]
    assert sum(hour["failed"] for hour in mine["chart"]) == 0
    stranger = await stats.body(Client("nobody", operator=False))
    assert stranger["windows"]["7d"]["jobs"] == 0
    everything = await stats.body(LOCAL)
    assert everything["windows"]["7d"]["jobs"] == 3
    assert everything["queue"] == {"queued": 1, "running": 0, "max_jobs": 1}


async def test_an_operator_sees_the_machine(past, stats):
    job_id = past.store.submit(new_job(), 10).result(LONG_S).job.job_id
    past.store.claim("local", 1).result(LONG_S)
    past.store.start(job_id).result(LONG_S)
    body = await stats.body(LOCAL)
    assert body["worker"] == {"alive": True, "running": job_id, "replaced": 0, "disowned": 0}
    assert body["queue"] == {"queued": 0, "running": 1, "max_jobs": 1}
    assert body["alarms"] == []


async def test_what_is_wrong_with_the_machine_is_an_alarm(past, time, tmp_path):
    host = FakeHost()
    host.alive, host.hung = False, 1
    stats = made(past.store, time, tmp_path, host)
    body = await stats.body(LOCAL)
    assert [alarm["code"] for alarm in body["alarms"]] == ["worker_dead", "worker_hangs"]
    assert body["worker"]["alive"] is False
    assert body["worker"]["disowned"] == 1


async def test_the_chart_has_the_last_24_hours_by_the_clock(past, stats):
    past.job(0)
    past.job(HOUR_MS // 2)  # on the hour: the hour that begins
    past.job(HOUR_MS // 2 + 1, "no_face", began=False)  # the one before
    past.job(23 * HOUR_MS, run_ms=2_000)
    past.job(24 * HOUR_MS)  # the hour before the first one shown
    chart = (await stats.body(LOCAL))["chart"]
    assert [hour["from_ms"] for hour in chart] == [(NOW_MS // HOUR_MS - 23 + n) * HOUR_MS for n in range(24)]
    assert chart[-1] == {
        "from_ms": NOW_MS - HOUR_MS // 2,
        "succeeded": 2,
        "failed": 0,
        "cancelled": 0,
        "average_run_s": 10.0,
    }
    assert (chart[-2]["failed"], chart[-2]["average_run_s"]) == (1, None)
    assert (chart[0]["succeeded"], chart[0]["average_run_s"]) == (1, 2.0)
    assert sum(hour["succeeded"] for hour in chart) == 3


async def test_an_hour_that_is_over_is_counted_once(past, stats, monkeypatch):
    asked = []
    counted = past.store.count_endings

    def ended(from_ms, before_ms):
        asked.append((from_ms, before_ms))
        return counted(from_ms, before_ms)

    monkeypatch.setattr(past.store, "count_endings", ended)
    past.job(5 * HOUR_MS)
    await stats.body(LOCAL)
    first, asked[:] = len(asked), []
    past.job(0)
    body = await stats.body(LOCAL)
    assert (body["windows"]["1h"]["jobs"], body["windows"]["7d"]["jobs"]) == (1, 2)
    assert first > 167
    assert len(asked) < 10
    assert all(before_ms - from_ms <= HOUR_MS for from_ms, before_ms in asked)


async def test_a_verdict_that_is_written_a_little_late_is_not_missed(past, stats, time):
    time.ms = NOW_MS - HOUR_MS // 2 + 5_000  # the hour has just ended
    assert (await stats.body(LOCAL))["windows"]["24h"]["jobs"] == 0
    past.job(HOUR_MS // 2 + 1)
    assert (await stats.body(LOCAL))["windows"]["24h"]["jobs"] == 1


async def test_windows_are_what_a_count_by_hand_gives(past, stats):
    random.seed(7)
    ages = [random.randrange(8 * DAY_MS) for _ in range(300)] + [0, HOUR_MS, DAY_MS, 7 * DAY_MS, HOUR_MS // 2]
    for ago_ms in ages:
        past.job(ago_ms)
    windows = (await stats.body(LOCAL))["windows"]
    for name, length_ms in (("1h", HOUR_MS), ("24h", DAY_MS), ("7d", 7 * DAY_MS)):
        assert windows[name]["jobs"] == sum(ago_ms <= length_ms for ago_ms in ages), name


async def test_whoever_asks_again_within_seconds_gets_the_same_answer(past, time, tmp_path):
    stats = made(past.store, time, tmp_path)
    first = await stats.body(BOT)
    past.job(0)
    assert await stats.body(BOT) == first


async def test_the_files_in_the_roots_are_counted_once_somebody_has_asked(past, stats, tmp_path):
    janitor = stats._janitor
    (tmp_path / "box" / "output" / "a.png").write_bytes(b"x" * 100)
    now_s = 1_000.0
    janitor.turn(now_s)
    disk = (await stats.body(LOCAL))["disk"]
    assert set(disk) == {"output", "temp", "input"}
    assert disk["output"]["files"] is None
    assert disk["output"]["total_bytes"] >= disk["output"]["free_bytes"] > 0
    janitor.turn(now_s + 2)
    disk = (await stats.body(LOCAL))["disk"]
    assert (disk["output"]["files"], disk["output"]["bytes"]) == (1, 100)
    assert (disk["temp"]["files"], disk["temp"]["would_free_files"]) == (0, 0)


class TestSlowest:
    def test_templates_by_their_median_the_slowest_first(self):
        runs = [("fast", 1_000), ("slow", 60_000), ("fast", 3_000), ("", 5_000)]
        assert slowest(runs) == [
            {"template": "slow", "jobs": 1, "median_run_s": 60.0, "p95_run_s": 60.0},
            {"template": "", "jobs": 1, "median_run_s": 5.0, "p95_run_s": 5.0},
            {"template": "fast", "jobs": 2, "median_run_s": 2.0, "p95_run_s": 3.0},
        ]

    def test_p95_is_a_time_that_95_per_cent_kept(self):
        (only,) = slowest(("a", run_s * 1000) for run_s in range(1, 101))
        assert (only["median_run_s"], only["p95_run_s"]) == (50.5, 95.0)

    def test_at_most_ten(self):
        assert len(slowest((str(number), number) for number in range(50))) == 10
