"""ComfyUI's worker begins the next job itself, in one commit, between two prompts."""

import asyncio
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.fakes import LONG_S, FailingStore, FakeHost, new_job, until
from unit.machine import Machine
from unit.store_steps import CANCELLED, Held, claim, submit
from unit.stores import both, count_commits, open_store

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import CancelledError, QueueTimeoutError
from comfyui_guarded.guard.host import Outcome, Progress, Refusal
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.life import beside, checking
from comfyui_guarded.guard.life import dispatcher as dispatchers
from comfyui_guarded.guard.life.drain import Drain
from comfyui_guarded.guard.store.rows import find_job

TEXT = Outcome(success=True, outputs={"2": {"text": ["hi"]}})
STOPPED = Outcome(success=False, interrupted=True)


def begin(store, max_jobs=1, ready=lambda _job_id: True):
    job = store.begin("local", max_jobs, ready).result(LONG_S)
    return job and job.job_id


# In the store. ----------------------------------------------------------------------------------------------------


@both
def test_the_next_job_has_a_slot_and_runs_after_one_commit(store):
    job_id = submit(store).job.job_id
    later = submit(store).job.job_id
    before, told = count_commits(store), []
    store.changed.subscribe(lambda job: told.append((job.job_id, job.state.value, job.attempts)))
    assert begin(store) == job_id
    assert count_commits(store) == before + 1
    assert told == [(job_id, "dispatched", 0), (job_id, "running", 1)]
    assert store.leases == {job_id}
    assert begin(store) is None, "no slot is free"
    store.release(job_id).result(LONG_S)
    assert begin(store) == later


def test_a_job_that_begins_is_written_once_although_it_changes_its_state_twice(store):
    job_id = submit(store).job.job_id
    asked: list[str] = []
    trace = store._engine._writer.db.set_trace_callback
    trace(asked.append)
    assert begin(store) == job_id
    trace(None)
    assert sum(statement.startswith("UPDATE jobs") for statement in asked) == 1
    assert [state.value for state, _at_ms in store.list_states(job_id).result(LONG_S)] == [
        "queued",
        "dispatched",
        "running",
    ]
    job = store._engine.read(lambda db: find_job(db, job_id)).result(LONG_S)
    assert (job.state.value, job.attempts) == ("running", 1)
    assert job.started_at_ms is not None


@both
def test_a_job_that_is_not_ready_begins_neither_itself_nor_lets_another_pass(store):
    first, second = (submit(store).job.job_id for _ in range(2))
    assert begin(store, ready=lambda job_id: job_id == second) is None
    assert store.leases == frozenset()
    assert claim(store) == first


@both
def test_whoever_has_the_turn_at_the_commit_begins(store):
    submit(store)
    with Held(store):
        beginning = store.begin("local", 1, lambda _job_id: True)
        too_late = store.submit(new_job(priority=9), 99)
    assert beginning.result(LONG_S).job_id != too_late.result(LONG_S).job.job_id
    with Held(store):
        first = store.submit(new_job(priority=10), 99)
        beginning = store.begin("local", 2, lambda _job_id: True)
    assert beginning.result(LONG_S).job_id == first.result(LONG_S).job.job_id


@both
def test_a_job_that_was_ended_just_before_does_not_begin(store):
    job_id, other = (submit(store).job.job_id for _ in range(2))
    with Held(store):
        store.settle(job_id, CANCELLED)
        beginning = store.begin("local", 1, lambda _job_id: True)
    assert beginning.result(LONG_S).job_id == other


@both
def test_a_job_that_kills_the_process_costs_it_an_attempt_and_then_runs_alone(tmp_path, clock):
    path = tmp_path / "jobs.db"
    for attempt in (1, 2):
        store = open_store(path, clock)
        if attempt == 1:
            poison, other = (submit(store).job.job_id for _ in range(2))
        else:
            store.recover("local", 3).result(LONG_S)
        assert begin(store, 2) == poison
        assert begin(store, 2) == (other if attempt == 1 else None), "nothing begins beside it"
        if attempt == 1:
            store.settle(other, CANCELLED).result(LONG_S)
        store.close()  # the process dies
    store = open_store(path, clock)
    store.recover("local", 2).result(LONG_S)
    assert store.get(poison).result(LONG_S).verdict.code == "server_restarted"
    store.close()


# On the worker. ---------------------------------------------------------------------------------------------------


def _ready(machine, **facts):
    job_id = machine.submit(**facts)
    machine.host.prepare(job_id, None, 0)()
    return job_id


def test_the_worker_begins_the_job_that_is_ready_and_need_not_write_again_that_it_starts(machine, host):
    job_id = _ready(machine, owner="local", client_id="socket")
    assert machine.dispatcher.begin_next()
    assert host.put_first == [(job_id, "socket")]
    assert (machine.ended(job_id)[0], machine.job(job_id).attempts) == ("running", 1)
    machine.store.failing = frozenset({"start"})
    assert machine.runs.started(job_id)
    assert machine.dispatcher.handing() == frozenset()
    assert machine.finish(job_id, TEXT).state is JobState.SUCCEEDED


def test_a_job_that_is_not_ready_is_left_to_the_dispatcher(machine, host):
    machine.submit()
    assert not machine.dispatcher.begin_next()
    assert (host.put_first, machine.leased()) == ([], 0)


@pytest.mark.parametrize("why", ["drain", "worker"])
def test_nothing_begins_while_something_is_wrong(machine, host, why):
    job_id = _ready(machine)
    machine.health.draining, host.alive = why == "drain", why != "worker"
    assert not machine.dispatcher.begin_next()
    assert machine.ended(job_id)[0] == "queued"


async def test_the_dispatcher_leaves_the_next_job_to_a_worker_that_is_about_to_ask_for_it(machine, host):
    job_id = _ready(machine)
    host.between = True
    assert not await machine.dispatcher.turn()
    assert machine.ended(job_id)[0] == "queued"
    host.between = False
    assert await machine.dispatcher.turn()


def test_a_host_that_cannot_take_the_job_costs_that_job_and_its_slot_is_free(machine, host):
    job_id, other = _ready(machine), _ready(machine)
    host.answer = RuntimeError("a pack's")
    assert not machine.dispatcher.begin_next()
    assert machine.ended(job_id) == ("failed", "internal_error")
    host.answer = None
    assert machine.dispatcher.begin_next()
    assert host.put_first[-1][0] == other


async def _begin_gone(machine, host, **facts):
    """A job of which the host has nothing any more just as it begins; the dispatcher has not come to it."""
    job_id = _ready(machine, **facts)
    host.during_put = host.ready.discard
    assert not await asyncio.to_thread(machine.dispatcher.begin_next)
    host.during_put = None
    assert (host.put_first, machine.leased(), machine.ended(job_id)[0]) == ([], 1, "running")
    return job_id


async def test_a_job_of_which_the_host_has_nothing_any_more_as_it_begins_is_dispatched_anew(machine, host):
    job_id = await _begin_gone(machine, host, owner="local", client_id="socket", body=b'{"prompt": {"1": {}}}')
    assert machine.dispatcher.handing() == {job_id}, "it is on its way: a drain waits for it"
    assert await machine.dispatcher.turn()
    ((dispatched, client_id, body),) = host.dispatched
    assert (dispatched, client_id, body["prompt"]) == (job_id, "socket", {"1": {}})
    assert machine.dispatcher.handing() == frozenset()
    assert machine.runs.started(job_id)
    assert machine.finish(job_id, TEXT).state is JobState.SUCCEEDED
    assert (machine.job(job_id).attempts, machine.leased()) == (1, 0)


async def test_the_dispatcher_hears_of_such_a_job_at_once_and_comes_to_it_in_a_drain_and_before_the_worker(
    machine, host
):
    machine.dispatcher.start()
    await asyncio.sleep(0)
    job_id = await _begin_gone(machine, host)
    machine.health.draining = host.between = True
    await until(lambda: host.dispatched)
    await until(lambda: machine.dispatcher.handing() == frozenset())
    assert host.dispatched[0][0] == job_id


@pytest.mark.parametrize("when", ["before the dispatcher", "as its prompt is read", "as the host looks", "once queued"])
async def test_a_cancel_reaches_such_a_job_wherever_it_is(machine, store, host, monkeypatch, when):
    def cancel():
        machine.settler.end(machine.job(job_id), CancelledError("The job was cancelled."))

    host.between = True
    job_id = await _begin_gone(machine, host)
    if when == "before the dispatcher":
        cancel()
    elif when == "as its prompt is read":
        reading = Future()
        monkeypatch.setattr(store, "find_body", lambda _job_id: (cancel(), reading)[1])
    elif when == "as the host looks":

        async def look(_job_id):
            cancel()
            await asyncio.sleep(LONG_S)

        host.during_dispatch = look
    machine.dispatcher.start()
    if when == "once queued":
        await until(lambda: host.holds)
        cancel()
    await until(lambda: machine.dispatcher.handing() == frozenset() and machine.ended(job_id)[0] == "cancelled")
    assert machine.ended(job_id) == ("cancelled", "cancelled")
    if when == "once queued":
        assert host.stopped[-1] == job_id
        machine.runs.released(job_id)
    else:
        assert host.holds == set()
    await until(lambda: machine.leased() == 0)


async def test_a_validation_of_such_a_job_that_does_not_end_costs_it_its_time_and_no_more(machine, host):
    async def hang(_job_id):
        await asyncio.sleep(LONG_S)

    host.during_dispatch = hang
    job_id = await _begin_gone(machine, host, timeout_s=0.05)
    assert await machine.dispatcher.turn()
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert (machine.leased(), machine.dispatcher.handing()) == (0, frozenset())


async def test_a_store_that_cannot_read_the_prompt_of_such_a_job_is_asked_so_many_times(
    machine, store, host, monkeypatch
):
    monkeypatch.setattr(dispatchers, "LOOK_S", 0.0)
    asked, reads = [], store.find_body

    def fail(job_id):
        asked.append(job_id)
        return store._failed() if len(asked) < 3 else reads(job_id)

    monkeypatch.setattr(store, "find_body", fail)
    job_id = await _begin_gone(machine, host)
    assert await machine.dispatcher.turn()
    assert host.dispatched[0][0] == job_id
    machine.runs.released(job_id)
    monkeypatch.setattr(store, "find_body", lambda job_id: (asked.append(job_id), store._failed())[1])
    host.ready.clear()
    host.put_first.clear()
    del asked[:]
    host.dispatched.clear()
    other = await _begin_gone(machine, host)
    assert await machine.dispatcher.turn()
    assert (machine.ended(other), len(asked)) == (("failed", "disk_full"), dispatchers.READS)
    assert (machine.leased(), host.dispatched) == (0, [])


async def test_such_a_job_that_the_host_refuses_now_ends_with_that(machine, host):
    job_id = await _begin_gone(machine, host)
    host.answer = Refusal("prompt_no_outputs", "Prompt has no outputs", "", {}, {})
    assert await machine.dispatcher.turn()
    assert machine.ended(job_id) == ("failed", "invalid_workflow")
    assert machine.leased() == 0


def test_a_full_disk_lets_no_job_begin_and_costs_none(machine, store, host, monkeypatch):
    job_id = _ready(machine)
    monkeypatch.setattr(store, "begin", lambda *_args: store._failed())
    assert not machine.dispatcher.begin_next()
    monkeypatch.undo()
    assert machine.dispatcher.handing() == frozenset()
    assert machine.dispatcher.begin_next()
    assert host.put_first[0][0] == job_id


async def test_a_worker_waits_only_so_long_for_the_commit_and_the_job_comes_when_that_does(
    machine, store, host, monkeypatch
):
    monkeypatch.setattr(dispatchers, "START_WAIT_S", 0.05)
    machine.dispatcher.start()
    host.between = True  # the dispatcher leaves it alone
    entered, go = threading.Event(), threading.Event()
    job_id = _ready(machine)
    monkeypatch.setattr(store._engine, "write_here", store._engine.write)  # as where the store has something else to do
    monkeypatch.setattr(host, "is_ready", lambda _job_id: entered.set() or go.wait(LONG_S))
    assert not machine.dispatcher.begin_next()
    assert entered.is_set()
    assert machine.dispatcher.handing() is None, "nobody knows which job it is"
    go.set()
    store.flush()
    await until(lambda: host.put_first)
    assert host.put_first[0][0] == job_id
    assert machine.dispatcher.handing() == frozenset()
    assert machine.runs.started(job_id)


def test_a_commit_that_has_not_begun_in_time_begins_nothing_later(machine, store, host, monkeypatch):
    monkeypatch.setattr(dispatchers, "START_WAIT_S", 0.05)
    job_id = _ready(machine)
    with Held(store):
        assert not machine.dispatcher.begin_next()
    assert machine.ended(job_id)[0] == "queued"


def test_a_check_lets_the_worker_have_its_next_job_first(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(beside, "AHEAD_S", LONG_S)
    begun = threading.Event()
    monkeypatch.setattr(checking.checks, "check", lambda *_args: begun.set() or ())
    first, second = _ready(machine), _ready(machine)
    assert machine.dispatcher.begin_next()
    machine.dispatcher.go_on()
    assert machine.runs.started(first)
    told = threading.Event()
    machine.runs.finished(first, TEXT, lambda _verdict: told.set())
    assert machine.dispatcher.begin_next(), "the slot is free"
    assert machine.host.put_first[-1][0] == second
    assert not begun.is_set()
    machine.dispatcher.go_on()
    assert told.wait(LONG_S)
    assert begun.is_set()


async def test_a_full_queue_wakes_the_loop_for_the_ends_that_somebody_waits_for_and_for_nothing_else(
    machine, monkeypatch
):
    machine.dispatcher.start()
    machine.host.between = True
    await asyncio.sleep(0)
    jobs = [machine.job(_ready(machine)) for _ in range(8)]
    waiting = asyncio.create_task(machine.jobs.wait(jobs[5], LONG_S, known=None))
    await until(lambda: machine.events._count)
    loop, wakes = asyncio.get_running_loop(), []
    native = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args, **more: (wakes.append(args), native(*args, **more)))
    machine.store.flush(LONG_S)

    def work():
        for job in jobs:
            machine.host.between = True
            assert machine.dispatcher.begin_next()
            machine.host.between = False
            machine.dispatcher.go_on()
            assert machine.runs.started(job.job_id)
            machine.runs.progressed(job.job_id, Progress(1, 2, "1", "Node", 50))
            machine.host.between = True
            machine.finish(job.job_id, TEXT)

    thread = threading.Thread(target=work)
    thread.start()
    assert (await asyncio.wait_for(waiting, LONG_S)).state is JobState.SUCCEEDED
    thread.join(LONG_S)
    assert len(wakes) == 1
    monkeypatch.undo()
    machine.dispatcher._task.cancel()
    await asyncio.gather(machine.dispatcher._task, return_exceptions=True)


# Whatever happens in the gap. -------------------------------------------------------------------------------------

#: Moments of a begin: before it, as its commit is told (the store's thread), as the host is given the job, and once the
#: host has it but the worker has not begun.
MOMENTS = ("before", "told dispatched", "told running", "put", "after")
#: Where the host has nothing to put any more: before the dispatcher comes to the job, as its prompt is read, as the
#: host looks at that, and as it puts it into its queue.
MOMENTS_ANEW = ("gone", "read", "looked at", "queued")
ACTIONS = ("cancel", "cancel and wait", "overdue", "drain", "undrain", "rush", "unready", "flush")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    owners=st.lists(st.sampled_from(["ann", "bob"]), min_size=1, max_size=4),
    max_jobs=st.integers(1, 2),
    gone=st.frozensets(st.integers(0, 3), max_size=3),
    plan=st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from(MOMENTS + MOMENTS_ANEW), st.sampled_from(ACTIONS), st.integers(0, 5)
        ),
        max_size=8,
    ),
)
def test_whatever_happens_between_two_jobs_every_promise_holds(owners, max_jobs, gone, plan):
    with tempfile.TemporaryDirectory() as folder:
        _Gap(Path(folder), owners, max_jobs, gone, plan).run()


class _Host(FakeHost):
    """Stops nothing that it does not have, as the real one."""

    def stop(self, job_id):
        if job_id in self.holds:
            super().stop(job_id)


class _Gap:
    """A worker that takes job after job, and others who act at chosen moments between two of them."""

    def __init__(self, folder, owners, max_jobs, gone, plan):
        self.store, self.host = FailingStore(folder / "guarded.db", Clock(), "kill"), _Host()
        self.machine = Machine(self.store, self.host, Clock(), folder, queue={"max_jobs": max_jobs})
        self.max_jobs, self.gone, self.plan, self.turn = max_jobs, gone, plan, 0
        self.drain = Drain(self.machine.health, self.store, lambda: None, self.machine.dispatcher.handing, folder)
        self.jobs = [_ready(self.machine, owner=owner) for owner in owners]
        self.begun, self.endings, self.cancelled = [], [], set()
        self.store.changed.subscribe(self.hear)
        self.host.during_put = self.put
        self.host.during_dispatch = self.look
        self.read, self.store.find_body = self.store.find_body, self.find_body

    def hear(self, job):
        if job.state.settled:
            self.endings.append(job.job_id)
        assert len(self.store._transitions.line.leases) <= self.max_jobs
        if job.state is JobState.RUNNING:
            self.begun.append(job.job_id)
        if job.state.value in ("dispatched", "running"):
            self.act(f"told {job.state.value}", job.job_id)

    def put(self, job_id):
        if self.turn in self.gone:
            self.host.ready.discard(job_id)
        self.act("put", job_id)

    def find_body(self, job_id):
        self.act("read", job_id)
        return self.read(job_id)

    async def look(self, job_id):
        self.act("looked at", job_id)
        await asyncio.sleep(0)
        self.act("queued", job_id)

    def act(self, moment, at_hand=None):
        for turn, when, action, which in self.plan:
            if (turn, when) == (self.turn, moment):
                job_id = at_hand if at_hand and which < 3 else self.jobs[which % len(self.jobs)]
                self.do(action, job_id, is_store=moment.startswith("told"))

    def do(self, action, job_id, is_store):
        machine = self.machine
        if action in ("cancel", "cancel and wait", "overdue"):
            with machine.store._engine._file.connect() as db:
                job = find_job(db, job_id)
            if job is None:  # it rushes in at this moment
                return
            if action != "overdue":
                self.cancelled.add(job_id)
                ending = machine.settler.end(job, CancelledError("The job was cancelled."))
                if action == "cancel and wait" and not is_store:
                    ending.result(LONG_S)
            else:
                machine.settler.end_waiting(job.job_id, QueueTimeoutError("The job waited too long."))
        elif action == "drain":
            self.drain.begin()
        elif action == "undrain":
            self.drain.end()
        elif action == "rush":
            new = new_job(priority=5, owner="ann")
            self.jobs.append(new.job_id)
            self.host.ready.add(new.job_id)
            machine.store.submit(new, 99)
        elif action == "unready":
            self.host.ready.discard(job_id)
        elif not is_store:
            self.store.flush()

    def run(self):
        try:
            for self.turn in range(12):
                self.take_one()
            self.drain.end()
            self.plan, self.gone = [], ()
            self.host.ready.update(self.jobs)
            for self.turn in range(12):
                self.take_one()
            self.store.flush()
            for job_id in self.jobs:
                assert self.endings.count(job_id) == 1, "each job has one ending"
            assert self.store.leased == 0
            assert self.machine.dispatcher.handing() == frozenset()
        finally:
            self.store.close()

    def take_one(self):
        self.act("before")
        was_draining, before = self.machine.health.draining, set(self.begun)
        put = len(self.host.put_first)
        is_put = self.machine.dispatcher.begin_next()
        begun = set(self.begun) - before
        assert not (was_draining and begun), "nothing begins in a drain"
        if not is_put:
            assert len(self.host.put_first) == put
            (job_id,) = begun or (None,)
            if job_id is None or not asyncio.run(self.dispatch_anew(job_id)):
                self.store.flush()
                return
        else:
            ((job_id, _client_id),) = self.host.put_first[put:]
            assert begun == {job_id}
        self.act("after", job_id)
        goes_on = self.machine.runs.started(job_id)
        is_stopped = not goes_on or job_id in self.host.stopped
        if job_id in self.cancelled:
            assert is_stopped, "a stop hits its job, however early it came"
            self.machine.turn(self.machine.settings.watchdog.interrupt_grace_s / 2)
            assert job_id in self.host.injected, "and the watchdog sees to it that it ends"
        else:
            assert not is_stopped, "and no other"
        self.machine.finish(job_id, STOPPED if is_stopped else TEXT)
        self.host.holds.discard(job_id)
        self.store.flush()
        job = self.machine.job(job_id)
        assert job.attempts == 1
        assert job.state is (JobState.CANCELLED if job_id in self.cancelled else JobState.SUCCEEDED)

    async def dispatch_anew(self, job_id):
        """What the dispatcher's task does with a job that has begun and was not put; whether the host has it then."""
        self.machine.dispatcher._loop.bind()
        self.act("gone", job_id)
        dispatched = len(self.host.dispatched)
        while self.machine.dispatcher._anew:
            assert self.machine.dispatcher.handing() == {job_id}, "a drain waits for it"
            await self.machine.dispatcher.turn()
        assert len(self.host.dispatched) <= dispatched + 1
        if job_id not in self.host.holds:
            assert job_id in self.cancelled, "nothing else costs it its run"
            self.store.flush()
            assert self.machine.job(job_id).state is JobState.CANCELLED
        return job_id in self.host.holds
