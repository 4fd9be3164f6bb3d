"""How long until a waiting job begins, and what its user is told."""

import pytest
from unit.fakes import LONG_S, new_job, settings

from comfyui_guarded.guard.callers.estimate import ENOUGH, KINDS, RECENT, Estimates, usual_run_s
from comfyui_guarded.guard.callers.positions import Positions, notice
from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.events.event import POSITION
from comfyui_guarded.guard.events.stream import Events
from comfyui_guarded.guard.job import SUCCESS, Kind
from comfyui_guarded.guard.store import Run, Waiting

FAST, SLOW = Kind("", "fast"), Kind("talking-head", "slow")


def runs(kind, *seconds):
    return [Run(kind, int(second * 1000)) for second in seconds]


def waiting(**ahead):
    kinds = {"fast": FAST, "slow": SLOW, "new": Kind("", "new")}
    return Waiting(sum(ahead.values()) + 1, 0, {kinds[name]: count for name, count in ahead.items()})


# How long a kind of job runs. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], None),
        ([10, 10], None),
        ([10, 12, 11], 11),
        ([10, 20, 600], None),
        ([2, 100, 2, 100, 2, 100], None),
        # One that was quite otherwise changes nothing.
        ([10] * 9 + [600], 10),
        # Short ones may vary: nobody is told less than a second.
        ([0.01, 0.5, 0.1], 0.1),
    ],
)
def test_the_usual_time_is_the_median_or_nothing_where_times_are_few_or_far_apart(seen, expected):
    assert usual_run_s(seen) == expected


def test_jobs_of_one_template_are_judged_by_it_and_others_by_their_shape(clock):
    estimates = Estimates(clock, [*runs(SLOW, *[100] * 5), *runs(Kind("", "slow"), *[50] * 20), *runs(FAST, 1, 1, 1)])
    assert estimates.usual_s(SLOW) == 100
    assert estimates.usual_s(Kind("", "slow")) == 50
    assert estimates.usual_s(FAST) == 1


def test_of_a_kind_that_never_ran_nothing_is_known(clock):
    """A median of all jobs once said 1 s of a job that took 24 s."""
    assert Estimates(clock, runs(FAST, 10, 11, 12)).usual_s(Kind("", "new")) is None
    assert Estimates(clock, runs(FAST, 10, 11, 12)).usual_s(Kind("new", "new")) is None


def test_a_kind_whose_times_vary_is_not_judged_by_others(clock):
    estimates = Estimates(clock, [*runs(FAST, *[10] * 40), *runs(SLOW, 1, 500, 30)])
    assert estimates.usual_s(SLOW) is None
    assert estimates.usual_s(FAST) == 10


def test_only_the_last_runs_of_a_kind_count_and_only_so_many_kinds_are_remembered(clock):
    estimates = Estimates(clock, [*runs(FAST, *[1000] * RECENT), *runs(FAST, *[2] * RECENT)])
    assert estimates.usual_s(FAST) == 2
    many = Estimates(clock, [Run(Kind("", str(number)), 1000) for number in range(KINDS + 10)])
    assert len(many._recent) == len(many._usual_s) == KINDS


# When a job begins. ------------------------------------------------------------------------------------------


def test_the_jobs_ahead_are_added_up_by_what_they_are(clock):
    estimates = Estimates(clock, [*runs(FAST, *[2] * 5), *runs(SLOW, *[100] * 5)])
    assert estimates.starts_in_s(waiting()) == 0
    assert estimates.starts_in_s(waiting(fast=3)) == 6
    assert estimates.starts_in_s(waiting(fast=3, slow=2)) == 206


def test_one_job_ahead_of_which_nothing_is_known_makes_it_unknown(clock):
    estimates = Estimates(clock, [*runs(FAST, *[2] * 5), *runs(SLOW, *[100] * 5)])
    assert estimates.starts_in_s(waiting(fast=1, new=1)) is None


def test_of_the_running_job_the_rest_counts_never_less_than_a_tenth_until_it_is_late(store, clock, monkeypatch):
    estimates = Estimates(clock, runs(FAST, *[20] * ENOUGH))
    store.changed.subscribe(estimates.follow)
    now_ms = clock.now_ms()
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms)
    job_id = store.submit(new_job(shape="fast"), 9).result(LONG_S).job.job_id
    assert estimates.rest_s() == 0
    store.claim("local", 9).result(LONG_S)
    assert estimates.rest_s() == 20
    store.start(job_id).result(LONG_S)
    for after_s, rest_s in ((0, 20), (5, 15), (19, 2), (30, 2), (32, None), (300, None)):
        monkeypatch.setattr(clock, "now_ms", lambda after_s=after_s: now_ms + after_s * 1000)
        assert estimates.rest_s() == rest_s
        assert estimates.starts_in_s(waiting(fast=1)) == (None if rest_s is None else rest_s + 20)
    store.settle(job_id, SUCCESS).result(LONG_S)
    assert estimates.rest_s() == 0


def test_times_are_learned_as_jobs_succeed_and_read_again_by_the_next_process(store, clock, monkeypatch):
    estimates = Estimates(clock)
    store.changed.subscribe(estimates.follow)
    now_ms = clock.now_ms()
    for _ in range(ENOUGH):
        job_id = store.submit(new_job(shape="s", template="t"), 9).result(LONG_S).job.job_id
        store.claim("local", 9).result(LONG_S)
        monkeypatch.setattr(clock, "now_ms", lambda: now_ms)
        store.start(job_id).result(LONG_S)
        monkeypatch.setattr(clock, "now_ms", lambda: now_ms + 7000)
        store.settle(job_id, SUCCESS).result(LONG_S)
    assert estimates.usual_s(Kind("t", "other")) == 7
    assert Estimates(clock, store.list_recent_runs(10).result(LONG_S)).usual_s(Kind("", "s")) == 7


# What the store says of those ahead. -------------------------------------------------------------------------


def submit(store, owner, shape, **facts):
    return store.submit(new_job(owner=owner, shape=shape, **facts), 10**6).result(LONG_S)


def test_the_store_names_the_jobs_ahead_by_kind_in_the_order_of_turns(store):
    for _ in range(3):
        submit(store, "a", "slow")
    first, second = submit(store, "b", "fast"), submit(store, "b", "fast")
    # By turns: a, b, a, b, a.
    assert (first.waiting.position, first.waiting.ahead) == (2, {Kind("", "slow"): 1})
    assert (second.waiting.position, second.waiting.ahead) == (4, {Kind("", "slow"): 2, Kind("", "fast"): 1})
    last = submit(store, "a", "new")
    assert (last.waiting.position, last.waiting.ahead) == (6, {Kind("", "slow"): 3, Kind("", "fast"): 2})
    for submitted in (first, second, last):
        assert store.locate(submitted.job.job_id).result(LONG_S).ahead == submitted.waiting.ahead


def test_the_line_is_the_order_in_which_the_jobs_are_served(store):
    for owner, count in (("a", 5), ("b", 2), ("c", 3)):
        for number in range(count):
            submit(store, owner, "x", priority=number % 2)
    # Not the first round: a was served already.
    store.claim("local", 99).result(LONG_S)
    line = store.list_standings().result(LONG_S)
    assert [store.locate(each.job_id).result(LONG_S).position for each in line] == list(range(1, 10))
    assert [store.claim("local", 99).result(LONG_S).job.job_id for _ in line] == [each.job_id for each in line]


def test_what_is_ahead_survives_a_restart_and_a_transaction_that_is_taken_back(store):
    for shape in ("a", "a", "b"):
        submit(store, "o", shape)
    before = dict(store._transitions.line.kinds)

    def buggy(db):
        db.execute("UPDATE jobs SET priority = 99")
        store._transitions.line.kinds.clear()
        raise ZeroDivisionError("a bug")

    with pytest.raises(ServerUnavailableError):
        store._engine.write(buggy).result(LONG_S)
    assert store._transitions.line.kinds == before == {Kind("", "a"): 2, Kind("", "b"): 1}


# What a user reads. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta_s", "ru", "en"),
    [
        (0.2, "1 секунду", "1 second"),
        (2, "2 секунды", "2 seconds"),
        (5, "5 секунд", "5 seconds"),
        (11, "11 секунд", "11 seconds"),
        (21.4, "21 секунду", "21 seconds"),
        (24, "24 секунды", "24 seconds"),
        (90, "90 секунд", "90 seconds"),
        (91, "2 минуты", "2 minutes"),
        (21 * 60, "21 минуту", "21 minutes"),
        (12 * 60, "12 минут", "12 minutes"),
        (2 * 3600, "2 часа", "2 hours"),
        (5 * 3600, "5 часов", "5 hours"),
    ],
)
def test_a_notice_says_the_time_as_a_person_would(eta_s, ru, en):
    assert notice(3, 1, 1, eta_s, "ru") == (
        f"Сервер загружен (1/1 задач). Ваше место в очереди: 3. Генерация начнется примерно через {ru}."
    )
    assert notice(3, 1, 1, eta_s, "en").endswith(f"Your generation will start in about {en}.")


def test_whoever_is_next_begins_in_a_few_seconds_where_that_is_known():
    assert notice(1, 1, 1, 3, "ru") == "Сервер загружен (1/1 задач). Ваша генерация начнется через несколько секунд..."
    assert notice(1, 0, 1, 3, "en") == "Your generation will start in a few seconds..."
    assert "32 секунды" in notice(1, 1, 1, 32, "ru")


def test_a_notice_without_an_estimate_promises_nothing_to_those_further_back():
    assert notice(1, 1, 1, None, "ru") == ("Сервер загружен (1/1 задач). Вы следующий в очереди.")
    assert notice(7, 1, 1, None, "ru") == "Сервер загружен (1/1 задач). Ваше место в очереди: 7."


def test_a_notice_calls_no_server_busy_where_nothing_runs():
    assert notice(1, 0, 1, None, "ru") == "Вы следующий в очереди."
    assert notice(7, 0, 1, None, "ru") == "Ваше место в очереди: 7."
    assert notice(2, 0, 1, 32, "ru") == "Ваше место в очереди: 2. Генерация начнется примерно через 32 секунды."


# What readers are told. --------------------------------------------------------------------------------------


@pytest.fixture
def events(store):
    made = Events(store)
    store.changed.subscribe(made.follow)
    return made


@pytest.fixture
def positions(store, events, clock):
    return Positions(settings().queue, store, events, Estimates(clock, runs(FAST, 2, 2, 2)))


async def told(reader):
    return {event.data["job_id"]: event.data for event in await reader.next(0.001)}


async def test_positions_are_told_as_they_change_and_only_then(store, events, positions):
    ids = [submit(store, "a", "fast").job.job_id for _ in range(3)]
    with events.subscribe([POSITION]) as reader, events.subscribe([POSITION], job_id=ids[2]) as of_last:
        await positions.turn()
        seen = await told(reader)
        assert [(seen[job_id]["position"], seen[job_id]["eta_s"]) for job_id in ids] == [(1, 0), (2, 2), (3, 4)]
        assert set(await told(of_last)) == {ids[2]}
        await positions.turn()
        assert await told(reader) == {}
        store.claim("local", 1).result(LONG_S)
        await positions.turn()
        seen = await told(reader)
        assert {job_id: data["position"] for job_id, data in seen.items()} == {ids[1]: 1, ids[2]: 2}
        assert seen[ids[1]]["running"] == 1
        assert seen[ids[2]]["user_message"].startswith("The server is busy (1/1 tasks). Your place in the queue: 2.")
        assert (await told(of_last))[ids[2]]["position"] == 2


async def test_a_position_far_back_is_told_when_it_has_changed_by_a_twentieth(store, events, positions):
    ids = [submit(store, "a", "fast").job.job_id for _ in range(200)]
    with events.subscribe([POSITION]) as reader:
        await positions.turn()
        assert len(await told(reader)) == 200
        counts = dict.fromkeys(ids, 0)
        for _ in range(100):
            store.claim("local", 999).result(LONG_S)
            await positions.turn()
            for job_id, data in (await told(reader)).items():
                counts[job_id] += 1
                assert data["position"] >= 1
        assert counts[ids[110]] > 20
        assert counts[ids[199]] < 16
        assert sum(counts.values()) < 100 * 80


async def test_a_new_reader_of_a_job_is_told_its_position_although_it_has_not_changed(store, events, positions):
    job_id = submit(store, "a", "fast").job.job_id
    await positions.turn()
    with events.subscribe([POSITION], job_id=job_id) as reader:
        await positions.turn()
        assert (await told(reader))[job_id]["position"] == 1
