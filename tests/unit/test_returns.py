"""A server of a fleet gives back what it cannot run: another one runs it, or it ends with the error."""

import contextlib
from concurrent.futures import Future

import pytest
from unit.fakes import LONG_S, FakeHost, new_job, until
from unit.machine import Machine
from unit.store_steps import CANCELLED
from unit.stores import only_postgres, only_sqlite, open_store
from unit.test_fleet_store import sync
from unit.test_placing import open_box

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.depot.depot import make_refusal
from comfyui_guarded.guard.errors import DiskFullError, MissingNodeError, PolicyViolationError
from comfyui_guarded.guard.host import Outcome, Refusal
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.life.returns import Returns
from comfyui_guarded.guard.results import checks
from comfyui_guarded.guard.weight import Placement

QUEUED, FAILED = JobState.QUEUED, JobState.FAILED
REFUSAL = Refusal("invalid_prompt", "Node 'EmptyImage' not found", "", {}, {})
MEMORY = Outcome(success=False, exception_type="torch.OutOfMemoryError", exception_message="CUDA out of memory")

FULL = Outcome(
    success=False, exception_type="OSError", exception_message="[Errno 28] No space left on device: '/out/a.png'"
)


@pytest.fixture
def boxes(tmp_path):
    opened = []

    def start(name, vram_mb=None):
        store = open_box(tmp_path / "jobs", name, vram_mb)
        opened.append(store)
        return Machine(store, FakeHost(), Clock(), tmp_path / name, watchdog={"free_memory": False})

    yield start
    for store in opened:
        with contextlib.suppress(Exception):
            store.close()


def lacking(machine, *classes):
    machine.host.answer, machine.host.missing = REFUSAL, [*classes]


def state(machine, job_id):
    sync(machine.store)
    return machine.store.get(job_id).result(LONG_S).state


@only_postgres
async def test_a_job_whose_node_is_missing_here_waits_for_another_server_which_runs_it(boxes):
    one, two = boxes("one"), boxes("two")
    lacking(one, "EmptyImage")
    job_id = await one.dispatch(placement=Placement("n"))
    await until(lambda: state(one, job_id) is QUEUED)
    assert one.store.leased == 0
    assert one.runs.list_ids() == []
    assert not await one.dispatcher.turn()
    sync(two.store)
    assert await two.dispatcher.turn()
    assert [dispatched[0] for dispatched in two.host.dispatched] == [job_id]
    assert one.host.announced == []


@only_postgres
async def test_a_job_that_no_server_can_run_ends_with_what_the_last_one_said_of_it(boxes):
    one, two = boxes("one"), boxes("two")
    for machine in (one, two):
        lacking(machine, "EmptyImage")
    job_id = await one.dispatch(placement=Placement("n"), client_id="c")
    await until(lambda: state(one, job_id) is QUEUED)
    sync(two.store)
    await two.dispatcher.turn()
    await until(lambda: state(two, job_id) is FAILED)
    verdict = two.store.get(job_id).result(LONG_S).verdict
    assert verdict.code == "missing_node"
    assert verdict.details["classes"] == ["EmptyImage"]
    assert two.store.leased == 0
    assert [code for _job, _client, code in two.host.announced] == ["missing_node"]


@only_postgres
async def test_a_server_whose_disk_is_full_leaves_jobs_to_those_that_have_room(boxes):
    one, two = boxes("one"), boxes("two")
    full = [DiskFullError("x")]
    for machine in (one, two):
        machine.health.has_others = True
    one.health.watch_disk(lambda: full[0])
    two.health.watch_disk(lambda: DiskFullError("the database"), is_own=False)  # nobody has more room for that
    job_id = one.submit()
    assert not await one.dispatcher.turn()
    assert not one.dispatcher.begin_next()
    assert state(one, job_id) is QUEUED
    full[0] = None
    assert await one.dispatcher.turn()
    sync(two.store)
    two.submit()
    assert await two.dispatcher.turn()


@only_postgres
async def test_a_job_whose_files_have_no_room_here_waits_for_another_server(boxes):
    one, two = boxes("one"), boxes("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "check", fail_full)
        _job_id, _closed = await run_and_give_back(one, Outcome(success=True))
    assert not await one.dispatcher.turn(), "it has had its turn here"
    sync(two.store)
    assert await two.dispatcher.turn()


@only_postgres
async def test_a_job_whose_node_finds_the_disk_full_waits_for_another_server(boxes):
    one, two = boxes("one"), boxes("two")
    job_id, closed = await run_and_give_back(one, FULL)
    sync(two.store)
    assert await two.dispatcher.turn()
    two.runs.started(job_id)
    two.host.holds.clear()
    two.runs.finished(job_id, FULL, closed.append)
    await until(lambda: state(two, job_id) is FAILED)
    assert closed[-1].code == "disk_full"


async def run_and_give_back(box, outcome):
    """Run a job that ends so, and is given back: its id, and what the host was told of it."""
    job_id = await box.run()
    box.host.holds.clear()
    closed = []
    box.runs.finished(job_id, outcome, closed.append)
    await until(lambda: closed)
    assert not closed[0].state.settled
    assert state(box, job_id) is QUEUED
    return job_id, closed


def fail_full(*_args):
    raise DiskFullError("The disk is full: a.png could not be kept.")


@only_postgres
async def test_a_job_whose_files_this_server_cannot_bring_waits_for_another_one(boxes):
    one, two = boxes("one"), boxes("two")

    async def fail(*_prompt):
        raise make_refusal()

    one.dispatcher._bring = two.dispatcher._bring = fail
    job_id = await one.dispatch()
    await until(lambda: state(one, job_id) is QUEUED)
    assert one.runs.list_ids() == []
    assert not await one.dispatcher.turn()
    sync(two.store)
    await two.dispatcher.turn()
    await until(lambda: state(two, job_id) is FAILED)
    assert two.store.get(job_id).result(LONG_S).verdict.code == "server_unavailable"


@only_postgres
async def test_a_run_without_enough_memory_goes_on_on_a_larger_card(boxes):
    small, large = boxes("small", 8_000), boxes("large", 24_000)
    job_id = await small.run(placement=Placement("n"))
    small.host.holds.clear()
    closed = []
    small.runs.finished(job_id, MEMORY, closed.append)
    await until(lambda: closed)
    assert not closed[0].state.settled, "nobody is told of an end"
    assert state(small, job_id) is QUEUED
    sync(large.store)
    assert await large.dispatcher.turn()
    assert large.runs.started(job_id)
    large.host.holds.clear()
    large.runs.finished(job_id, MEMORY, closed.append)
    await until(lambda: state(large, job_id) is FAILED)
    assert closed[-1].code == "out_of_memory"


@only_postgres
async def test_a_job_that_is_cancelled_while_it_is_given_back_stays_cancelled(boxes):
    one, two = boxes("one"), boxes("two")
    lacking(one, "EmptyImage")

    async def cancel(job_id):
        two.store.settle(job_id, CANCELLED).result(LONG_S)

    one.host.during_dispatch = cancel
    job_id = await one.dispatch(placement=Placement("n"))
    await until(lambda: one.store.leased == 0)
    assert state(one, job_id) is JobState.CANCELLED


class Store:
    """Fails once."""

    def __init__(self):
        self.asked = 0

    def put_back(self, _job_id, _token, _refused):
        self.asked += 1
        answer = Future()
        if self.asked == 1:
            answer.set_exception(DiskFullError("x"))
        else:
            answer.set_result(True)
        return answer


class NeverLost:
    def has_lost(self, _job):
        return False


@pytest.fixture
def job(tmp_path):
    with contextlib.closing(open_store(tmp_path / "jobs.db", Clock())) as store:
        yield store.submit(new_job(), 9).result(LONG_S).job.evolve(token="t")


@only_sqlite
def test_what_the_store_could_not_write_is_handed_in_again(job):
    store, ends = Store(), []
    returns = Returns(store, NeverLost())
    returns.give_back(job, MissingNodeError("x"), ends.append)
    assert (store.asked, ends) == (1, [])
    returns.turn()
    returns.turn()
    assert (store.asked, ends) == (2, [True])


@only_sqlite
def test_only_what_another_server_may_answer_otherwise_is_given_back(job):
    returns = Returns(Store(), NeverLost())
    assert returns.takes(job, MissingNodeError("x"))
    assert not returns.takes(job, PolicyViolationError("x"))
    assert not returns.takes(job.evolve(token=None), MissingNodeError("x"))
    assert not Returns(None, NeverLost()).takes(job, MissingNodeError("x"))
