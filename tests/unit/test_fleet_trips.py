"""How often a box waits for its database: each commit takes two questions, however many operations share it, and one
where that is a claim alone, a plain submit, or the start of a run."""

import contextlib
import time
from concurrent.futures import wait

import pytest
from fleet.link import Link
from unit import stores
from unit.fakes import LONG_S, new_job
from unit.stores import make_schema, only_postgres, server

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.quotas import Quota, Taking
from comfyui_guarded.guard.spent import Spent
from comfyui_guarded.guard.store import IdempotencyKey, Member
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_fleet import FleetStore
from comfyui_guarded.guard.store.postgres_shared_engine import SharedEngine

pytestmark = only_postgres


class CountingLink(Link):
    """Counts the questions of the connection that writes: what is said to the engine after it has said something."""

    def __init__(self, port):
        self.questions = 0
        super().__init__(port)

    def _pass_on(self, box, engine):
        connection = _Connection(self)
        super()._pass_on(_Heard(box, connection.ask), _Heard(engine, connection.answer))


class _Connection:
    def __init__(self, link):
        self._link, self._writes, self._is_answered = link, False, False

    def ask(self, data):
        self._writes = self._writes or b"FOR UPDATE" in data
        self._link.questions += self._writes and self._is_answered
        self._is_answered = False

    def answer(self, _data):
        self._is_answered = True


class _Heard:
    """An end of which is heard what comes out of it."""

    def __init__(self, end, hear):
        self._end, self._hear = end, hear

    def recv(self, size):
        data = self._end.recv(size)
        self._hear(data)
        return data

    def __getattr__(self, name):
        return getattr(self._end, name)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._end.close()


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A box that asks nothing by itself, and is asked for one thing after the other."""
    stores.use("postgres")
    monkeypatch.setattr(SharedEngine, "_LOOK_S", LONG_S)
    link = CountingLink(server().port)
    schema = make_schema(tmp_path / "jobs")
    store = FleetStore(
        read_address(server().url(schema, port=link.port)), Clock(), Member("one", 600_000, 2), open_now=False
    )
    store.serve("local", 2)
    assert store.trouble is None, store.trouble
    store.link = link
    yield store
    with contextlib.suppress(Exception):
        store.close()
    link.close()
    stores.use("sqlite")


def count(box, *asked):
    """The questions that these take, which share a commit, and their answers."""
    before, commits = box.link.questions, box._held.commits
    futures = [ask() for ask in asked]
    wait(futures, LONG_S)
    assert box._held.commits == commits + 1
    return box.link.questions - before, [future.result() for future in futures]


def make_submit(box, *, held=False, **facts):
    """A submit of a user, with limits."""
    quota = Quota(1000, 60)
    takings = [Taking("requests", ("bot",), quota, 1), Taking("requests", ("bot", "ann"), quota, 1)]
    key = IdempotencyKey(facts.pop("key"), "digest", 0) if "key" in facts else None
    new = new_job(owner="bot", user="ann", **facts)
    return lambda: box.submit(new, 99, key, max_queued_of_user=99, takings=takings, held=held)


def test_a_job_takes_two_questions_for_each_of_its_commits(box):
    trips, [submitted] = count(box, make_submit(box, key="one"))
    job_id = submitted.job.job_id
    assert trips == 2
    trips, [claimed] = count(box, lambda: box.claim("local", 2))
    assert (trips, claimed.job.job_id, claimed.body) == (1, job_id, new_job().body)
    assert count(box, lambda: box.hand_over(job_id))[0] <= 2
    trips, [running] = count(box, lambda: box.start(job_id))
    assert (trips, running.state) == (1, JobState.RUNNING)
    box._engine._writer.patience_s = 0.25  # as where a commit takes that long
    token = claimed.job.token
    trips, [validating, settled] = count(
        box, lambda: box.validate(job_id), lambda: box.settle(job_id, SUCCESS, token=token)
    )
    assert (trips, validating.state, settled.won) == (2, JobState.VALIDATING, True)
    count(box, lambda: box.spend(settled.job, Spent(9, 1, 0, ())))  # the first of a day
    assert count(box, lambda: box.spend(settled.job, Spent(9, 1, 0, ())))[0] <= 2


@pytest.mark.parametrize("key", [None, IdempotencyKey("k", "digest", 0)], ids=["no key", "a key"])
def test_a_submit_without_rates_takes_one_question(box, key):
    """Nobody else has written since the last commit."""
    trips, [first] = count(box, lambda: box.submit(new_job(owner="bot", user="ann"), 99, key, max_queued_of_owner=99))
    again, [second] = count(box, lambda: box.submit(new_job(owner="bot", workflow_id="w"), 99))
    assert (trips, again) == (1, 1)
    assert [submitted.job.number for submitted in (first, second)] == [1, 2]


def test_the_next_job_takes_two_questions_with_the_slot_that_is_freed_for_it(box):
    for number in range(2):
        count(box, make_submit(box, key=str(number)))
    _trips, [claimed] = count(box, lambda: box.claim("local", 1))
    box._engine._writer.patience_s = 0.25
    trips, [_none, begun] = count(
        box, lambda: box.release(claimed.job.job_id), lambda: box.begin("local", 1, lambda _job_id: True)
    )
    assert (trips, begun.state) == (2, JobState.RUNNING)
    assert begun.job_id != claimed.job.job_id


def test_what_is_submitted_together_takes_no_more_questions_than_one(box):
    keys = [IdempotencyKey(str(number), "digest", 0) for number in range(20)]
    many = [lambda key=key: box.submit(new_job(), 99, key, held=True) for key in keys]

    def last():
        return box._engine.write(lambda _db: None)  # takes along what was held

    trips, answers = count(box, *many, last)
    assert len({answer.job.number for answer in answers[:-1]}) == 20
    assert trips == 2


def test_a_key_that_comes_twice_in_one_commit_makes_one_job(box):
    def last():
        return box._engine.write(lambda _db: None)  # takes along what was held

    twice = [make_submit(box, key="same", held=True) for _ in range(2)]
    _trips, [first, second, _none] = count(box, *twice, last)
    assert (first.job.job_id, second.replayed) == (second.job.job_id, True)


def test_a_job_that_comes_in_with_a_claim_is_claimed(box):
    """What was asked before, when nothing waited, no longer holds."""
    count(box, make_submit(box))
    _trips, [first] = count(box, lambda: box.claim("local", 2))
    submit = make_submit(box, held=True)
    _trips, [submitted, second] = count(box, submit, lambda: box.claim("local", 2))
    assert first.job.job_id != second.job.job_id == submitted.job.job_id


def test_two_claims_in_one_commit_take_two_jobs(box):
    for _ in range(2):
        count(box, make_submit(box))
    box._engine._writer.run(lambda _db: time.sleep(0.2))  # both come while it is busy
    time.sleep(0.05)
    futures = [box.claim("local", 2) for _ in range(2)]
    assert len({future.result(LONG_S).job.job_id for future in futures}) == 2


def test_no_look_at_what_others_have_done_comes_right_after_a_commit(box):
    """The commit has asked that, and the next one would wait."""
    look = box._engine._writer.look_soon
    before = box.link.questions
    for _ in range(3):
        box._engine.write(lambda _db: look()).result(LONG_S)
    assert box.link.questions - before == 3 * 2
