"""A queue that heals: slots that nobody uses come back, and a dispatcher that has ended begins again."""

import asyncio
import contextlib
import contextvars
import time

import pytest
from unit.fakes import LONG_S, until
from unit.machine import Machine
from unit.store_steps import Held

from comfyui_guarded.guard.errors import CancelledError, QueueTimeoutError
from comfyui_guarded.guard.host import Outcome
from comfyui_guarded.guard.life.contain import EscapedError, OverdueError, catch, contain

TEXT = Outcome(success=True, outputs={"2": {"text": ["hi"]}})


# What a pack may raise at dispatch. -------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [asyncio.CancelledError, SystemExit, GeneratorExit, ZeroDivisionError])
async def test_whatever_is_raised_at_dispatch_costs_that_job_and_the_next_one_is_dispatched(machine, host, raised):
    host.answer = raised("of a pack")
    poison = machine.submit(client_id="socket")
    machine.dispatcher.start()
    await until(lambda: machine.ended(poison)[1] == "internal_error")
    assert raised.__name__ in machine.job(poison).verdict.details["details"]
    host.answer = None
    other = machine.submit()
    await until(lambda: machine.ended(other)[0] == "dispatched")
    assert (machine.leased(), machine.dispatcher.is_down()) == (1, False)
    assert [each[2] for each in host.announced] == ["internal_error"]


async def test_a_validation_that_never_returns_costs_its_job_when_its_time_is_up(machine, host):
    async def forever(_job_id):
        await asyncio.Event().wait()

    host.during_dispatch = forever
    job_id = machine.submit(timeout_s=0.05)
    assert await machine.dispatcher.turn()
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert machine.leased() == 0


async def test_code_that_does_not_listen_to_its_cancel_is_left_behind():
    ends = asyncio.Event()

    async def deaf():
        while not ends.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ends.wait()

    with pytest.raises(OverdueError):
        await contain(deaf, 0.01)
    ends.set()


async def test_a_caller_that_is_cancelled_stays_cancelled_and_one_whose_work_cancels_itself_is_not():
    begun = asyncio.Event()

    async def work():
        begun.set()
        await asyncio.Event().wait()

    async def cancel_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    caller = asyncio.ensure_future(contain(work))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with pytest.raises(EscapedError, match="CancelledError"):
        await contain(cancel_itself)


async def test_code_that_waits_for_nothing_is_over_without_a_turn_of_the_loop():
    turns = []
    asyncio.get_running_loop().call_soon(turns.append, "another turn")

    async def work():
        return asyncio.current_task()

    assert await contain(work) is not asyncio.current_task(), "it has a task of its own"
    assert turns == []


async def test_what_code_does_to_its_task_before_it_waits_holds_afterwards():
    """A timeout and a cancel are its task's, and so are the variables of its context."""
    name = contextvars.ContextVar("name", default="the caller's")

    async def work():
        own = asyncio.current_task()
        name.set("its own")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)
        assert asyncio.current_task() is own
        return name.get()

    assert (await contain(work), name.get()) == ("its own", "the caller's")


@pytest.mark.parametrize("raised", [SystemExit(1), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("waits", [False, True])
async def test_what_code_raises_before_or_after_it_waits_escapes_as_an_exception(raised, waits):
    async def work():
        if waits:
            await asyncio.sleep(0)
        raise raised

    with pytest.raises(EscapedError, match=type(raised).__name__):
        await contain(work)
    await asyncio.sleep(0)  # the caller goes on


async def test_code_that_cancels_its_task_and_is_over_leaves_its_caller_alone():
    async def work():
        asyncio.current_task().cancel()
        return 1

    with contextlib.suppress(EscapedError):  # before Python 3.11
        await contain(work)
    await asyncio.sleep(0)


async def test_code_that_has_begun_hears_of_its_callers_cancel_where_it_waits():
    heard = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    caller = asyncio.ensure_future(contain(work))
    await asyncio.sleep(0)  # it has begun, and its task has not had a turn
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0)
    assert heard == ["cancelled"]


async def test_what_python_closes_is_not_taken_for_something_raised():
    async def wait():
        await asyncio.Event().wait()

    async def begin():
        left.send(None)

    left = catch(wait())
    await asyncio.ensure_future(begin())
    left.close()  # raises whatever it is not content with


# A job that is cancelled on its way to the host. ------------------------------------------------------------------


async def test_a_job_that_is_cancelled_while_it_is_claimed_is_never_shown_to_the_host(machine, host):
    job = machine.job(machine.submit())
    with Held(machine.store):
        turn = asyncio.ensure_future(machine.dispatcher.turn())
        await asyncio.sleep(0)  # the claim is handed in
        cancelled = machine.settler.end(job, CancelledError("The job was cancelled."))
    assert await turn
    assert cancelled.result(LONG_S).won
    assert machine.ended(job.job_id) == ("cancelled", "cancelled")
    assert (host.dispatched, machine.leased(), machine.job(job.job_id).attempts) == ([], 0, 0)


@pytest.mark.parametrize("slow", [True, False], ids=["slow-store", "store"])
async def test_a_job_that_is_cancelled_while_it_is_validated_for_dispatch_never_gets_to_the_host(machine, host, slow):
    """And its validation, which may hang, holds nobody up."""
    begun = asyncio.Event()

    async def forever(_job_id):
        begun.set()
        await asyncio.Event().wait()

    host.during_dispatch = forever
    job = machine.job(machine.submit())
    machine.dispatcher.start()
    await begun.wait()
    host.during_dispatch = None
    with Held(machine.store) if slow else contextlib.nullcontext():
        cancelled = machine.settler.end(job, CancelledError("The job was cancelled."))
        await until(lambda: not machine.dispatcher._handing)
    assert cancelled.result(LONG_S).won
    assert machine.ended(job.job_id) == ("cancelled", "cancelled")
    following = machine.submit()
    await until(lambda: host.holds == {following})
    assert machine.ended(following)[0] == "dispatched"


async def test_a_job_that_has_waited_too_long_while_it_is_validated_for_dispatch_never_gets_to_the_host(machine, host):
    begun = asyncio.Event()

    async def forever(_job_id):
        begun.set()
        await asyncio.Event().wait()

    host.during_dispatch = forever
    job = machine.job(machine.submit())
    machine.dispatcher.start()
    await begun.wait()
    machine.settler.end_waiting(job.job_id, QueueTimeoutError("The job waited too long."))
    await until(lambda: not machine.dispatcher._handing)
    assert machine.ended(job.job_id) == ("failed", "queue_timeout")
    assert (host.holds, machine.leased()) == (set(), 0)


async def test_a_job_that_is_cancelled_just_as_the_host_takes_it_is_taken_out_again(machine, host, monkeypatch):
    dispatch = host.dispatch

    async def cancelled_at_the_end(job_id, *rest, **more):
        answer = await dispatch(job_id, *rest, **more)
        machine.settler.end(job, CancelledError("The job was cancelled."))
        return answer

    monkeypatch.setattr(host, "dispatch", cancelled_at_the_end)
    job = machine.job(machine.submit())
    assert await machine.dispatcher.turn()
    assert host.stopped == [job.job_id] * 2, "the first one may have come before the host had it"
    assert not machine.runs.started(job.job_id)
    machine.runs.released(job.job_id)
    assert machine.ended(job.job_id) == ("cancelled", "cancelled")
    assert machine.job(job.job_id).attempts == 0


async def test_a_job_whose_cancel_a_full_disk_has_refused_is_not_begun_either(machine, host):
    job = machine.job(machine.submit())
    machine.store.failing = frozenset({"settle"})
    machine.settler.end(job, CancelledError("The job was cancelled."))
    assert await machine.dispatcher.turn()
    assert host.dispatched == []
    machine.store.failing = frozenset()
    machine.turn()
    machine.store.flush()
    assert machine.ended(job.job_id) == ("cancelled", "cancelled")
    assert machine.leased() == 0


# A dispatcher that has ended. -------------------------------------------------------------------------------------


async def test_a_dispatcher_that_was_ended_shows_and_begins_again_at_the_next_turn(machine, caplog):
    alarms = []
    machine.dispatcher.alarmed.subscribe(lambda *alarm: alarms.append(alarm))
    machine.dispatcher.start()
    await asyncio.sleep(0)
    machine.dispatcher._task.cancel()
    await asyncio.gather(machine.dispatcher._task, return_exceptions=True)
    assert machine.health.problems() == ["dispatcher down"]
    assert [alarm["code"] for alarm in machine.health.alarms()] == ["dispatcher_down"]
    job_id = machine.submit()
    machine.turn()
    machine.turn()  # once is enough
    await until(lambda: machine.ended(job_id)[0] == "dispatched")
    assert machine.health.problems() == []
    assert [code for code, _message in alarms] == ["dispatcher_restarted"]
    assert "CancelledError" in caplog.text


async def test_a_dispatcher_that_is_killed_by_a_bug_of_ours_begins_again_and_the_log_says_where(
    machine, monkeypatch, caplog
):
    async def broken():
        monkeypatch.undo()
        raise GeneratorExit("a bug")

    monkeypatch.setattr(machine.dispatcher, "turn", broken)
    job_id = machine.submit()
    machine.dispatcher.start()
    await until(machine.dispatcher.is_down)
    machine.turn()
    await until(lambda: machine.ended(job_id)[0] == "dispatched")
    assert "a bug" in caplog.text
    assert "in broken" in caplog.text


async def test_a_dispatcher_that_does_not_come_back_from_a_turn_shows_and_begins_again(machine, host, monkeypatch):
    async def forever(_begin, _timeout_s):
        await asyncio.Event().wait()

    now_s = time.monotonic()
    monkeypatch.setattr("comfyui_guarded.guard.life.dispatcher.contain", forever)
    hung = machine.submit(timeout_s=60)
    machine.dispatcher.start()
    await until(lambda: hung in machine.dispatcher._handing)
    machine.turn()
    assert machine.health.problems() == []
    monkeypatch.undo()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 100)
    assert machine.health.problems() == ["dispatcher down"]
    machine.turn()
    monkeypatch.undo()
    next_one = machine.submit()
    await until(lambda: machine.ended(next_one)[0] == "dispatched")
    assert machine.ended(hung) == ("failed", "internal_error")
    assert machine.health.problems() == []


async def test_a_dispatcher_looks_by_itself_though_nobody_wakes_it(machine, monkeypatch):
    monkeypatch.setattr(machine.dispatcher, "wake", lambda: None)
    machine.dispatcher.start()
    await asyncio.sleep(0.01)
    monkeypatch.setattr(machine.dispatcher._wake, "set", lambda: None)
    job_id = machine.submit()
    await until(lambda: machine.ended(job_id)[0] == "dispatched")


# Slots that nobody uses. ------------------------------------------------------------------------------------------


async def test_a_job_that_the_host_has_lost_is_settled_at_the_second_look_and_its_slot_is_free(machine, host):
    job_id = await machine.dispatch(client_id="socket")
    following = machine.submit()
    host.holds.clear()
    machine.turn()
    assert machine.ended(job_id) == ("dispatched", None)
    machine.turn()
    machine.store.get(job_id).result(LONG_S)
    assert machine.ended(job_id) == ("failed", "worker_died")
    assert machine.job(job_id).body()["refund"] is True
    assert machine.leased() == 0
    assert host.forgotten == [job_id]
    assert [each[2] for each in host.announced] == ["worker_died"]
    assert job_id not in machine.runs._jobs
    assert await machine.dispatcher.turn()
    assert machine.ended(following) == ("dispatched", None)


async def test_a_job_that_the_host_has_holds_its_slot(machine):
    job_id = await machine.dispatch()
    for _ in range(5):
        machine.turn()
    assert machine.ended(job_id) == ("dispatched", None)
    assert machine.leased() == 1


async def test_a_job_that_is_seen_again_in_between_is_not_lost(machine, host):
    job_id = await machine.dispatch()
    for _ in range(3):
        host.holds.clear()
        machine.turn()
        host.holds.add(job_id)
        machine.turn()
    assert machine.ended(job_id) == ("dispatched", None)


async def test_a_job_that_is_being_validated_for_its_dispatch_holds_its_slot(machine, host):
    begun, ends = asyncio.Event(), asyncio.Event()

    async def slowly(_job_id):
        begun.set()
        await ends.wait()

    host.during_dispatch = slowly
    job_id = machine.submit()
    turn = asyncio.ensure_future(machine.dispatcher.turn())
    await begun.wait()
    for _ in range(3):
        machine.turn()
    ends.set()
    assert await turn
    assert machine.ended(job_id) == ("dispatched", None)


async def test_a_job_whose_claim_the_loop_has_not_heard_of_yet_holds_its_slot(machine):
    """A loop that is busy for seconds, with a synchronous validation say, must cost no job its life."""
    job_id = machine.submit()
    turn = asyncio.ensure_future(machine.dispatcher.turn())
    await asyncio.sleep(0)
    machine.store.flush()  # the claim is on disk; this very thread is the loop's
    assert machine.store.leases == {job_id}
    for _ in range(3):
        machine.turn()
    assert await turn
    assert machine.ended(job_id) == ("dispatched", None)


async def test_a_claim_whose_answer_nobody_heard_is_settled_and_blocks_no_slot(machine, monkeypatch):
    job_id = machine.submit()
    await asyncio.wrap_future(machine.store.claim("local", 1))
    machine.turn()
    machine.turn()
    machine.store.get(job_id).result(LONG_S)
    assert machine.ended(job_id) == ("failed", "worker_died")
    assert machine.leased() == 0


async def test_a_job_that_ended_well_and_whose_slot_could_not_be_freed_keeps_its_verdict(machine, host):
    job_id = await machine.run()
    machine.finish(job_id, TEXT)
    machine.store.failing = frozenset({"release"})
    machine.runs.released(job_id)
    host.holds.clear()
    machine.store.flush()
    machine.store.failing = frozenset()
    for _ in range(3):
        machine.turn()
        machine.store.get(job_id).result(LONG_S)
    assert machine.ended(job_id) == ("succeeded", None)
    assert machine.leased() == 0
    assert host.announced == []


async def test_many_lost_jobs_are_all_freed(store, host, clock, tmp_path):
    machine = Machine(store, host, clock, tmp_path, queue={"max_jobs": 20})
    lost = [await machine.dispatch() for _ in range(20)]
    kept = lost.pop()
    host.holds = {kept}
    machine.turn()
    machine.turn()
    for job_id in lost:
        machine.store.get(job_id).result(LONG_S)
        assert machine.ended(job_id) == ("failed", "worker_died")
    assert machine.store.leases == {kept}
