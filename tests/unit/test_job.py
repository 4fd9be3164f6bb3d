"""A job's states, and the store that keeps them, against a simple model, with crashes among the steps."""

import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from unit import stores
from unit.fakes import LONG_S, new_id, new_job
from unit.stores import copy_store, look_into, open_store

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import (
    CancelledError,
    GenerationFailedError,
    GuardError,
    NoFaceError,
    ResultMissingError,
)
from comfyui_guarded.guard.job import OPEN, SUCCESS, TERMINAL, TRANSITIONS, WAITING, JobState, Verdict

QUEUED, DISPATCHED, RUNNING, VALIDATING = (
    JobState.QUEUED,
    JobState.DISPATCHED,
    JobState.RUNNING,
    JobState.VALIDATING,
)
UNDER_WAY = {DISPATCHED, RUNNING, VALIDATING}
VERDICTS = [
    SUCCESS,
    Verdict(JobState.FAILED, "generation_timeout", "too long"),
    Verdict(JobState.FAILED, "out_of_memory", "no room"),
    Verdict(JobState.CANCELLED, "cancelled", "cancelled"),
]
MAX_ATTEMPTS = 2
#: Hundreds of databases are opened and closed; what is checked needs no real disk.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def test_nothing_leads_out_of_a_terminal_state_and_every_open_one_can_end():
    assert set(TRANSITIONS) == set(JobState)
    assert set(JobState) == TERMINAL | OPEN
    assert all(not TRANSITIONS[state] for state in TERMINAL)
    assert all(JobState.FAILED in TRANSITIONS[state] and JobState.CANCELLED in TRANSITIONS[state] for state in OPEN)
    assert JobState.SUCCEEDED not in TRANSITIONS[QUEUED]
    assert [state for state in JobState if state.settled] == [state for state in JobState if state in TERMINAL]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (CancelledError("x"), JobState.CANCELLED),
        (GenerationFailedError("x"), JobState.FAILED),
        (NoFaceError("x"), JobState.FAILED),
    ],
)
def test_a_verdict_of_an_error_keeps_its_code_and_its_facts(error, state):
    error.extra_info, error.details = {"node_id": "3"}, "more"
    assert Verdict.of(error) == Verdict(state, error.code, "x", {"node_id": "3", "details": "more"})


@pytest.fixture
def queued_job(store):
    return store.submit(new_job(locale="ru", metadata={"chat": 5}), 1).result(LONG_S).job


KEYS = [
    *(
        "job_id",
        "prompt_id",
        "state",
        "position",
        "eta_s",
        "owner",
        "template",
        "parameters",
        "converted",
        "priority",
        "attempts",
    ),
    *("created_at_ms", "started_at_ms", "settled_at_ms", "timeout_s", "progress"),
    *("outputs", "artifacts", "error", "refund", "metadata", "user", "idempotency_key", "retry_of", "cost"),
    *("results", "puts"),
]


def test_a_job_shows_the_designs_keys_and_refund_is_open_until_it_settles(queued_job):
    body = queued_job.body(position=3, eta_s=4.5)
    assert list(body) == KEYS
    assert (body["position"], body["eta_s"], body["error"], body["refund"]) == (3, 4.5, None, None)
    assert body["job_id"] == body["prompt_id"] == queued_job.job_id
    assert body["metadata"] == {"chat": 5}


@pytest.mark.parametrize("state", sorted(JobState))
def test_only_success_is_not_refunded(queued_job, state):
    expected = {"succeeded": False, "failed": True, "cancelled": True}
    assert queued_job.evolve(state=state).body()["refund"] is expected.get(state.value)


def test_a_failed_job_says_why_in_the_language_asked_for_or_its_own(queued_job):
    verdict = Verdict(JobState.FAILED, "generation_timeout", "too long", {"timeout_s": 5})
    failed = queued_job.evolve(state=JobState.FAILED, verdict=verdict)
    error = failed.body()["error"]
    assert list(error) == ["code", "message", "user_message", "retryable", "details"]
    assert error["user_message"].startswith("Генерация заняла")
    assert failed.body(locale="en")["error"]["user_message"].startswith("The generation took")
    assert (error["code"], error["retryable"], error["details"]) == ("generation_timeout", True, {"timeout_s": 5})


@dataclass(frozen=True)
class Model:
    """What the store ought to know of a job."""

    owner: str
    number: int
    priority: int
    place: float
    secret: bool
    size: int
    state: JobState = QUEUED
    handed_over: bool = False
    attempts: int = 0
    verdict: Verdict | None = None


class StoreMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    engine = "sqlite"

    @initialize(max_jobs=st.integers(1, 3))
    def begin(self, max_jobs):
        stores.use(self.engine)
        self.folder = Path(tempfile.mkdtemp(prefix="guarded-unit-", dir=MEMORY))
        self.files = (self.folder / f"{number}.db" for number in itertools.count())
        self.clock = Clock()
        self.max_jobs = max_jobs
        self.model: dict[str, Model] = {}
        self.leases: set[str] = set()
        self.ended: dict[str, Model] = {}
        #: The jobs that this process has changed.
        self.changed: set[str] = set()
        self.store = open_store(next(self.files), self.clock)

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)
        stores.use("sqlite")

    # Steps. ------------------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        count=st.integers(1, 3),
        owner=st.sampled_from("abc"),
        priority=st.sampled_from([0, 0, 0, -1, 5]),
        order=st.sampled_from([None, None, None, -3.0, 0.0, 2.0, 2.5, 1e6]),
        front=st.booleans(),
        secret=st.sampled_from([False, False, False, True]),
        size=st.sampled_from([100, 1, 9_000]),
    )
    def submit(self, count, owner, priority, order, front, secret, size):
        ids = []
        for _ in range(count):
            facts = {"order": order, "front": front, "has_secrets": secret, "body": b" " * size}
            new = new_job(owner=owner, priority=priority, **facts)
            submitted = self.store.submit(new, 10**9).result(LONG_S)
            number = submitted.job.number
            assert number == len(self.model) + 1
            place = order if order is not None else float(-number if front else number)
            self.model[new.job_id] = Model(owner, number, priority, place, secret, size)
            self.changed.add(new.job_id)
            assert submitted.waiting == self.store.locate(new.job_id).result(LONG_S)
            assert submitted.waiting.running == len(self.leases)
            ids.append(new.job_id)
        return multiple(*ids)

    @rule(job_id=jobs)
    def submit_again(self, job_id):
        assert isinstance(self.store.submit(new_job(job_id), 10**9).exception(LONG_S), GuardError)

    @rule()
    def claim(self):
        next_up = [job_id for job_id, position in self._positions().items() if position == 1]
        claimed = self.store.claim("local", self.max_jobs).result(LONG_S)
        under_way = [known for known in self.model.values() if known.state in UNDER_WAY]
        is_alone = any(known.attempts > (known.state is not DISPATCHED) for known in under_way)
        waits = next_up and under_way and self.model[next_up[0]].attempts
        if len(self.leases) >= self.max_jobs or not next_up or is_alone or waits:
            assert claimed is None
            return
        assert [claimed.job.job_id] == next_up
        self._expect(claimed.job.job_id, state=DISPATCHED, handed_over=False)
        self.leases.add(claimed.job.job_id)

    @rule(job_id=jobs)
    def hand_over(self, job_id):
        self.store.hand_over(job_id).result(LONG_S)
        if job_id in self.leases and self.model[job_id].state in OPEN:
            self._expect(job_id, handed_over=True)

    @rule(job_id=jobs)
    def start(self, job_id):
        attempts = self.model[job_id].attempts + 1
        self._advance(job_id, self.store.start(job_id), {DISPATCHED}, state=RUNNING, attempts=attempts)

    @rule(job_id=jobs)
    def validate(self, job_id):
        self._advance(job_id, self.store.validate(job_id), {RUNNING}, state=VALIDATING)

    @rule(job_id=jobs, verdict=st.sampled_from(VERDICTS), only_waiting=st.booleans())
    def settle(self, job_id, verdict, only_waiting):
        known = self.model[job_id]
        future = self.store.settle(job_id, verdict, only_waiting=only_waiting)
        if known.state in OPEN and verdict is SUCCESS and known.state is QUEUED:
            assert isinstance(future.exception(LONG_S), GuardError)
            return
        wins = known.state in (WAITING if only_waiting else OPEN)
        settled = future.result(LONG_S)
        assert settled.won is wins
        if wins:
            self._expect(job_id, state=verdict.state, verdict=verdict)
        assert settled.job.state is self.model[job_id].state

    @rule(job_id=jobs)
    def release(self, job_id):
        if self.model[job_id].state is not DISPATCHED:
            self.store.release(job_id).result(LONG_S)
            self.leases.discard(job_id)

    @rule()
    def crash(self):
        """As SIGKILL leaves it: what is on disk now, without a close."""
        self._reopened(self._copied())

    @rule()
    def restart(self):
        path = self.store.path
        self.store.close()
        self.store = open_store(path, self.clock)
        self._recover()

    @rule()
    def drain_a_copy(self):
        """The positions are the order in which everything that waits would be claimed, by the next process too."""
        path = self._copied()
        with look_into(path) as db:
            db.execute("UPDATE jobs SET attempts = 0")  # one that has begun before would let none begin beside it
        copy = open_store(path, self.clock)
        try:
            order = []
            while (claimed := copy.claim("local", 10**9).result(LONG_S)) is not None:
                order.append(claimed.job.job_id)
        finally:
            copy.close()
        assert {job_id: at for at, job_id in enumerate(order, start=1)} == self._positions()
        for owner in "abc":
            mine = [job_id for job_id in order if self.model[job_id].owner == owner]
            assert mine == sorted(mine, key=self._line)

    # What must hold after each. ----------------------------------------------------------------------------

    @invariant()
    def the_store_is_as_the_model_has_it(self):
        if not hasattr(self, "store"):
            return
        # Asked for all together: the reader answers in one go.
        listed, counted = self.store.list_jobs(None, None, 1000), self.store.count_jobs()
        looked, positions = self._look(), self._positions()
        self._jobs_are_the_models_and_what_has_ended_stays_ended(listed.result(LONG_S))
        queued = [known.owner for known in self.model.values() if known.state is QUEUED]
        assert sorted(positions.values()) == list(range(1, len(queued) + 1))
        counts, states = counted.result(LONG_S), [known.state for known in self.model.values()]
        assert counts.queued == self.store.queued == len(queued)
        assert counts.leased == len(self.leases) <= self.max_jobs
        assert counts.running == states.count(RUNNING) + states.count(VALIDATING)
        endings = looked.result(LONG_S)
        turns = {owner: turn.queued for owner, turn in self.store._transitions.line.turns.items() if turn.queued}
        assert turns == {owner: queued.count(owner) for owner in set(queued)}
        assert endings == [(1,)] * len(self.ended)
        for owner in "abc":
            sizes = [known.size for known in self.model.values() if known.owner == owner and known.state in OPEN]
            assert self.store.count_open_bytes(owner) == sum(sizes)

    def _jobs_are_the_models_and_what_has_ended_stays_ended(self, jobs):
        # Of some of them memory has nothing. What it has must be what the tables have.
        recalled = {job.job_id: self.store.recall(job.job_id) for job in jobs}
        assert all(recalled[job.job_id] in (None, job) for job in jobs)
        assert all(recalled[job_id] is not None for job_id in self.changed)
        assert {job.job_id: (job.owner, job.number, job.state, job.attempts, job.verdict) for job in jobs} == {
            job_id: (known.owner, known.number, known.state, known.attempts, known.verdict)
            for job_id, known in self.model.items()
        }
        assert all((job.settled_at_ms is None) is (job.state in OPEN) for job in jobs)
        assert all(self.model[job_id] == ended for job_id, ended in self.ended.items())

    # Helpers. ----------------------------------------------------------------------------------------------

    def _line(self, job_id):
        known = self.model[job_id]
        return -known.priority, known.place, known.number

    def _positions(self):
        queued = [job_id for job_id, known in self.model.items() if known.state is QUEUED]
        asked = {job_id: self.store.locate(job_id) for job_id in queued}
        return {job_id: future.result(LONG_S).position for job_id, future in asked.items()}

    def _expect(self, job_id, **changes):
        self.model[job_id] = replace(self.model[job_id], **changes)
        if "state" in changes:
            self.changed.add(job_id)
        if self.model[job_id].state in TERMINAL:
            assert job_id not in self.ended
            self.ended[job_id] = self.model[job_id]

    def _advance(self, job_id, future, allowed, **changes):
        if self.model[job_id].state in TERMINAL:
            assert future.result(LONG_S) is None
        elif self.model[job_id].state in allowed:
            assert future.result(LONG_S).state is changes["state"]
            self._expect(job_id, **changes)
        else:
            assert isinstance(future.exception(LONG_S), GuardError)

    def _copied(self):
        return copy_store(self.store, next(self.files))

    def _reopened(self, path):
        self.store.close()
        self.store = open_store(path, self.clock)
        self._recover()

    def _recover(self):
        self.changed.clear()
        given_up = set()
        for job_id, known in list(self.model.items()):
            if known.state in TERMINAL:
                continue
            begun = known.state in (RUNNING, VALIDATING)
            if known.state is DISPATCHED and not known.handed_over:
                self._expect(job_id, attempts=known.attempts + 1)
                begun = True
            if known.secret or (begun and self.model[job_id].attempts >= MAX_ATTEMPTS):
                given_up.add(job_id)
            elif known.state is not QUEUED:
                self._expect(job_id, state=QUEUED)
        recovery = self.store.recover("local", MAX_ATTEMPTS).result(LONG_S)
        assert {job.job_id for job in recovery.settled} == given_up
        for job in recovery.settled:
            assert (job.state, job.verdict.code) == (JobState.FAILED, "server_restarted")
            self._expect(job.job_id, state=job.state, verdict=job.verdict)
        self.leases.clear()

    def _look(self):
        endings = "SELECT count(*) FROM transitions WHERE state IN ('succeeded', 'failed', 'cancelled') GROUP BY job_id"
        return self.store._engine.read(lambda db: db.execute(endings).fetchall())


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=min(settings().max_examples, 60), stateful_step_count=30)


class PostgresStoreMachine(StoreMachine):
    engine = "postgres"


TestPostgresStoreMachine = PostgresStoreMachine.TestCase
TestPostgresStoreMachine.settings = settings(max_examples=min(settings().max_examples, 10), stateful_step_count=30)


def test_a_job_id_is_remembered_as_itself(store):
    job_id = new_id()
    store.submit(new_job(job_id), 1).result(LONG_S)
    assert store.get(job_id).result(LONG_S).job_id == job_id
    assert store.get(job_id.upper()).result(LONG_S) is None


def test_why_a_job_ended_is_told_in_bounds_whatever_nodes_name():
    error = ResultMissingError(
        "x" * 10**6, details="y" * 10**6, extra_info={"filename": "z" * 10**6, "list": ["w" * 10**6]}
    )
    verdict = Verdict.of(error)
    assert len(json.dumps([verdict.message, verdict.details])) < 10_000
    assert verdict.details["filename"].startswith("zzz")
    short = ResultMissingError("x", extra_info={"bytes": 5, "node_id": "1", "share": 0.5, "is": None})
    assert Verdict.of(short).details == {"bytes": 5, "node_id": "1", "share": 0.5, "is": None}
