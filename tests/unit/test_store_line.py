"""The order in which jobs leave the queue, and where they stand in it."""

import random

import pytest
from unit.fakes import LONG_S, new_job
from unit.store_steps import CANCELLED, Held, claim, claim_all, submit
from unit.stores import both, only_sqlite, open_store

from comfyui_guarded.guard.errors import (
    ConflictError,
    QueueFullError,
)
from comfyui_guarded.guard.store import line

pytestmark = both


def test_owners_take_turns_and_each_owners_jobs_stay_in_order(store):
    jobs = {}
    for owner, count in (("a", 4), ("b", 2), ("c", 1)):
        for turn in range(count):
            jobs[submit(store, owner=owner).job.job_id] = f"{owner}{turn}"
    assert [jobs[job_id] for job_id in claim_all(store)] == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_late_coming_owner_neither_waits_for_the_others_backlog_nor_catches_up(store):
    jobs = {submit(store, owner="early").job.job_id: f"early{turn}" for turn in range(30)}
    order = [jobs[claim(store, 10**9)] for _ in range(10)]
    jobs.update({submit(store, owner="late").job.job_id: f"late{turn}" for turn in range(5)})
    order = [jobs[job_id] for job_id in claim_all(store)]
    assert order[:10:2] + order[1:10:2] in (
        [f"late{turn}" for turn in range(5)] + [f"early{turn}" for turn in range(10, 15)],
        [f"early{turn}" for turn in range(10, 15)] + [f"late{turn}" for turn in range(5)],
    )
    assert order[10:] == [f"early{turn}" for turn in range(15, 30)]


def test_an_owner_who_comes_back_again_and_again_gets_no_more_than_its_turn(store):
    for _ in range(10):
        submit(store, owner="patient")
    owners = {}
    order = []
    for _ in range(10):
        owners[submit(store, owner="eager").job.job_id] = "eager"
        order.append(owners.get(claim(store, 10**9), "patient"))
        order.append(owners.get(claim(store, 10**9), "patient"))
    assert order.count("eager") == order.count("patient") == 10
    assert all(order[at : at + 3] != ["eager"] * 3 for at in range(len(order)))


def test_an_owner_that_is_held_back_has_no_turn_and_is_served_once_it_is_no_more(store):
    jobs = {}
    for owner, count in (("a", 3), ("b", 2)):
        for turn in range(count):
            jobs[submit(store, owner=owner).job.job_id] = f"{owner}{turn}"
    store.hold_back(frozenset({"a"}))
    assert [jobs[job_id] for job_id in claim_all(store)] == ["b0", "b1"]
    assert store.begin("local", 10**9, lambda _job_id: True).result(LONG_S) is None
    store.hold_back(frozenset())
    assert [jobs[job_id] for job_id in claim_all(store)] == ["a0", "a1", "a2"]


@pytest.mark.parametrize("new", ["a", "z"])
def test_an_owner_that_comes_while_another_has_the_slot_goes_before_the_next_of_that_one(store, new):
    first, second, *_ = [submit(store, owner="m").job.job_id for _ in range(4)]
    assert claim(store) == first
    comes = submit(store, owner=new).job
    assert store.locate(comes.job_id).result(LONG_S).position == 1
    store.settle(first, CANCELLED).result(LONG_S)
    store.release(first).result(LONG_S)
    assert claim(store, 10**9) == comes.job_id
    again = submit(store, owner=new).job.job_id
    assert [claim(store, 10**9), claim(store, 10**9)] == [second, again]


def test_of_an_owner_alone_no_turn_is_written_again_and_the_next_owner_has_its_own(store):
    def read_turns():
        return store._engine.read(lambda db: db.execute("SELECT * FROM turns ORDER BY owner").fetchall()).result(LONG_S)

    owners = {submit(store, owner="a").job.job_id: "a" for _ in range(6)}
    claim(store, 10**9)
    before = read_turns()
    assert [owners[claim(store, 10**9)] for _ in range(2)] == ["a", "a"]
    assert read_turns() == before
    owners |= {submit(store, owner="b").job.job_id: "b" for _ in range(2)}
    order = [owners[job_id] for job_id in claim_all(store)]
    assert (set(order[:2]), set(order[2:4]), order[4:]) == ({"a", "b"}, {"a", "b"}, ["a"])


def test_a_restart_changes_nobodys_turn(tmp_path, clock):
    store = open_store(tmp_path / "jobs.db", clock)
    owners = {submit(store, owner=owner).job.job_id: owner for owner in ("a", "a", "a", "b", "b")}
    assert owners[claim(store, 10**9)] == "a"
    told = {job_id: store.locate(job_id).result(LONG_S) for job_id in owners}
    store.close()
    store = open_store(tmp_path / "jobs.db", clock)
    places = {job_id: store.locate(job_id).result(LONG_S) for job_id in owners}
    assert {job_id: place and place.position for job_id, place in places.items()} == {
        job_id: place and place.position for job_id, place in told.items()
    }
    assert [owners[job_id] for job_id in claim_all(store)] == ["b", "a", "b", "a"]
    store.close()


def test_far_from_both_ends_a_position_is_an_estimate_between_them(store, monkeypatch):
    monkeypatch.setattr(line, "COUNTED", 10)
    ids = [submit(store, owner="a", priority=at % 2).job.job_id for at in range(100)]
    positions = {job_id: store.locate(job_id).result(LONG_S).position for job_id in ids}
    order = claim_all(store)
    for high_or_low in (order[:50], order[50:]):
        exact = [order.index(job_id) + 1 for job_id in high_or_low]
        told = [positions[job_id] for job_id in high_or_low]
        assert (told[:10], told[-10:]) == (exact[:10], exact[-10:])
        assert told == sorted(told)
        assert all(abs(one - other) <= 2 for one, other in zip(told, exact, strict=True))


def test_priority_number_and_front_reorder_within_an_owner_only(store):
    def submit_as(name, **facts):
        names[submit(store, **facts).job.job_id] = name

    names = {}
    submit_as("plain", owner="a")
    submit_as("b-first", owner="b")
    submit_as("low", owner="a", priority=-1)
    submit_as("front", owner="a", front=True)
    submit_as("number", owner="a", order=0.5)
    submit_as("high", owner="a", priority=1)
    submit_as("fronter", owner="a", front=True)
    submit_as("b-second", owner="b")
    order = [names[job_id] for job_id in claim_all(store)]
    assert [name for name in order if not name.startswith("b-")] == [
        "high",
        "fronter",
        "front",
        "number",
        "plain",
        "low",
    ]
    assert [name for name in order if name.startswith("b-")] == ["b-first", "b-second"]
    assert {order.index("b-first"), order.index("b-second")} <= {0, 1, 2, 3}


def test_jobs_with_the_same_number_go_in_the_order_in_which_they_came(store):
    ids = [submit(store, order=5.0) for _ in range(4)]
    positions = [store.locate(each.job.job_id).result(LONG_S).position for each in ids]
    assert positions == [1, 2, 3, 4]
    assert [each.waiting.position for each in ids] == [1, 2, 3, 4]
    assert claim_all(store) == [each.job.job_id for each in ids]


def test_a_job_that_a_start_takes_back_has_its_old_position_and_its_slot_is_free(store):
    first, second = (submit(store).job.job_id for _ in range(2))
    assert claim(store) == first
    assert claim(store) is None
    assert store.recover("local", 2).result(LONG_S).requeued == 1
    assert store.locate(first).result(LONG_S).position == 1
    assert store.locate(second).result(LONG_S).position == 2
    assert claim(store) == first


def test_a_slot_is_free_when_released_and_not_when_settled(store):
    first, second = (submit(store).job.job_id for _ in range(2))
    assert claim(store) == first
    store.start(first).result(LONG_S)
    assert store.settle(first, CANCELLED).result(LONG_S).won
    assert claim(store) is None
    store.release(first).result(LONG_S)
    assert claim(store) == second


@only_sqlite  # counts statements by SQLite's trace
def test_a_job_that_comes_last_is_told_its_place_without_a_look_at_the_others(store):
    submit(store), submit(store, priority=1), submit(store, owner="other")
    asked = []
    trace = store._engine._writer.db.set_trace_callback
    trace(asked.append)
    last, first = submit(store), submit(store, front=True)
    trace(None)
    assert (last.waiting.position, first.waiting.position) == (4, 3)
    counting = [statement for statement in asked if "(place, number)" in statement]
    assert len(counting) == 1, "of the job that goes first"


def test_positions_among_ten_thousand_queued_are_right(store):
    futures = [
        store.submit(new_job(owner=f"bot-{turn % 7}", priority=(turn % 11) // 10, front=turn % 13 == 0), 10**9)
        for turn in range(10_000)
    ]
    ids = [future.result(LONG_S).job.job_id for future in futures]
    assert store.queued == 10_000
    picked = random.Random(3).sample(ids, 200)
    told = {job_id: store.locate(job_id).result(LONG_S).position for job_id in picked}
    claims = [store.claim("local", 10**9) for _ in ids]
    position = {claimed.result(LONG_S).job.job_id: at for at, claimed in enumerate(claims, start=1)}
    assert set(position) == set(ids)
    assert told == {job_id: position[job_id] for job_id in picked}


def test_a_full_queue_is_refused_at_the_commit(store):
    with Held(store):
        futures = [store.submit(new_job(), 3) for _ in range(5)]
    refusals = [future.exception(LONG_S) for future in futures]
    assert refusals[:3] == [None, None, None]
    assert all(isinstance(refusal, QueueFullError) for refusal in refusals[3:])
    assert refusals[3].extra_info == {"queued": 3, "max_queued": 3}
    assert store.queued == 3


def test_a_job_id_that_is_taken_is_a_conflict_for_every_owner(store):
    job_id = submit(store, owner="a").job.job_id
    for owner in ("a", "b"):
        error = store.submit(new_job(job_id, owner=owner), 10**9).exception(LONG_S)
        assert isinstance(error, ConflictError)
        # Whose job it is, only its owner is told: who else asks for the id has no job.
        assert error.extra_info == ({"job_id": job_id} if owner == "a" else {})
    assert store.get(job_id).result(LONG_S).owner == "a"
    assert store.queued == 1


# An owner's users take turns, too. -------------------------------------------------------------------------------


def of_users(store, users, **facts):
    """A job for each of these users, in that order, as (user, which of its jobs): by job id."""
    made, counts = {}, {}
    for user in users:
        counts[user] = counts.get(user, 0) + 1
        made[submit(store, user=user, **facts).job.job_id] = f"{user}{counts[user]}"
    return made


def test_everybodys_first_job_comes_before_anybodys_second(store):
    jobs = of_users(store, "aaaabbc")
    assert [jobs[job_id] for job_id in claim_all(store)] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_user_who_was_served_waits_behind_those_who_were_not(store):
    jobs = of_users(store, "ab")
    assert jobs[claim(store, 10**9)] == "a1"
    late = of_users(store, "ac")
    assert [{**jobs, **late}[job_id] for job_id in claim_all(store)] == ["b1", "c1", "a1"]


def test_a_late_coming_user_neither_waits_for_a_backlog_nor_catches_up(store):
    jobs = of_users(store, "e" * 10)
    assert [jobs[claim(store, 10**9)] for _ in range(4)] == ["e1", "e2", "e3", "e4"]
    jobs |= of_users(store, "lll")
    assert [jobs[job_id] for job_id in claim_all(store)] == ["l1", "e5", "l2", "e6", "l3", "e7", "e8", "e9", "e10"]


def test_a_cancelled_job_costs_its_user_no_turn(store):
    jobs = of_users(store, "aaab")
    by_name = {name: job_id for job_id, name in jobs.items()}
    for name in ("a2", "a3"):
        store.settle(by_name[name], CANCELLED).result(LONG_S)
    jobs |= dict.fromkeys(of_users(store, "a"), "a again") | dict.fromkeys(of_users(store, "b"), "b2")
    assert [jobs[job_id] for job_id in claim_all(store)] == ["a1", "b1", "a again", "b2"]


def test_the_users_of_one_owner_take_nothing_from_another_owner(store):
    jobs = of_users(store, "abc", owner="bot") | of_users(store, "zz", owner="other")
    assert [jobs[job_id] for job_id in claim_all(store)] == ["a1", "z1", "b1", "z2", "c1"]


def test_priority_counts_before_turns_and_the_front_before_both_within_it(store):
    jobs = of_users(store, "aab")
    for word, users, facts in (("high", "ab", {"priority": 1}), ("front", "b", {"front": True})):
        jobs |= {job_id: f"{word} {name}" for job_id, name in of_users(store, users, **facts).items()}
    assert [jobs[job_id] for job_id in claim_all(store)] == ["high a1", "high b1", "front b1", "a1", "b1", "a2"]


def test_jobs_of_no_user_stay_in_the_order_of_arrival(store):
    jobs = of_users(store, ["", "", "a", "a", ""])
    assert [jobs[job_id] for job_id in claim_all(store)] == ["1", "2", "a1", "3", "a2"]


def test_a_restart_changes_no_users_turn(tmp_path, clock):
    store = open_store(tmp_path / "jobs.db", clock)
    jobs = of_users(store, "aaabb")
    for _ in range(2):  # the second round begins
        store.release(claim(store)).result(LONG_S)
    jobs |= of_users(store, "c")
    places = {job_id: store.locate(job_id).result(LONG_S) for job_id in jobs}
    store.close()
    store = open_store(tmp_path / "jobs.db", clock)
    assert {job_id: store.locate(job_id).result(LONG_S) for job_id in places} == places
    jobs |= dict.fromkeys(of_users(store, "c"), "c2")
    assert [jobs[job_id] for job_id in claim_all(store)] == ["c1", "a2", "b2", "c2", "a3"]
    store.close()


def test_every_place_is_right_whoever_comes_and_goes(store, monkeypatch):
    monkeypatch.setattr(line, "COUNTED_BY_SUBMIT", 5)
    rng = random.Random(5)
    waiting, told = [], {}
    for _ in range(150):
        user, owner = rng.choice("abcdefgh"), rng.choice(["x", "x", "y"])
        submitted = submit(store, owner=owner, user=user, priority=rng.choice([0, 0, 1]))
        waiting.append(submitted.job.job_id)
        assert submitted.waiting.position == store.locate(waiting[-1]).result(LONG_S).position
        if rng.random() < 0.3:
            store.settle(waiting.pop(rng.randrange(len(waiting))), CANCELLED).result(LONG_S)
        if rng.random() < 0.3:
            waiting.remove(claim(store, 10**9))
    told = {job_id: store.locate(job_id).result(LONG_S).position for job_id in waiting}
    standings = [standing.job_id for standing in store.list_standings().result(LONG_S)]
    order = claim_all(store)
    assert standings == order == sorted(told, key=told.__getitem__)
    assert sorted(told.values()) == list(range(1, len(order) + 1))


def test_a_submit_tells_the_place_that_its_job_has_wherever_that_is(tmp_path, clock):
    rng, waiting, path = random.Random(11), [], tmp_path / "jobs.db"
    store = open_store(path, clock)
    for turn in range(150):
        facts = {"front": rng.random() < 0.2, "order": rng.choice([None, None, None, float(rng.randrange(-20, 200))])}
        submitted = submit(
            store, owner=rng.choice("xxy"), user=rng.choice(["", "a"]), priority=rng.choice([0, 1]), **facts
        )
        waiting.append(submitted.job.job_id)
        assert submitted.waiting.position == store.locate(waiting[-1]).result(LONG_S).position
        if rng.random() < 0.5:
            store.settle(waiting.pop(rng.randrange(len(waiting))), CANCELLED).result(LONG_S)
        if turn % 50 == 49:
            store.close()
            store = open_store(path, clock)
    store.close()


def test_more_of_a_user_than_may_wait_are_refused(store):
    for user in ("a", "b"):
        for _ in range(2):
            store.submit(new_job(user=user), 10**9, max_queued_of_user=2).result(LONG_S)
    error = store.submit(new_job(user="a"), 10**9, max_queued_of_user=2).exception(LONG_S)
    assert isinstance(error, QueueFullError)
    assert error.extra_info == {"queued": 2, "max_queued": 2, "scope": "user"}
    for who in ({"user": "a", "owner": "other"}, {}):
        store.submit(new_job(**who), 10**9, max_queued_of_user=2).result(LONG_S)
