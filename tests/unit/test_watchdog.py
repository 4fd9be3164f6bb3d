"""Deadlines and the ladder, rung by rung, on a scripted host and a scripted process."""

import threading
import time

import pytest
from unit.fakes import LONG_S, Gone
from unit.machine import Machine

from comfyui_guarded.guard import clock as clock_module
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import CancelledError
from comfyui_guarded.guard.host import Outcome, Progress
from comfyui_guarded.guard.life import watchdog
from comfyui_guarded.guard.life.watchdog import FAULT_GRACE_S, INJECT_AFTER, TURN_S
from comfyui_guarded.guard.settings import SettingsError, load
from comfyui_guarded.guard.store import SqliteStore

TEXT = Outcome(success=True, outputs={"2": {"text": ["hi"]}})
INTERRUPTED = Outcome(success=False, interrupted=True)


def fault(message, kind="RuntimeError"):
    return Outcome(success=False, exception_type=kind, exception_message=message, node_id="3", node_type="KSampler")


@pytest.fixture
def made(store, host, clock, tmp_path, monkeypatch):
    """A machine with watchdog settings of its own, whose time stands still between turns."""
    now_s = float(int(clock.monotonic_s()))
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s)
    return lambda **watchdog: Machine(store, host, clock, tmp_path, watchdog=watchdog)


# Limits. ----------------------------------------------------------------------------------------------------------


async def test_a_job_is_ended_at_its_deadline_not_before_and_once(machine, host):
    job_id = await machine.run(timeout_s=100.0)
    began_s = machine.clock.monotonic_s()
    assert machine.watchdog.turn(began_s + 99) <= began_s + 100
    assert machine.ended(job_id) == ("running", None)
    assert host.stopped == []
    machine.watchdog.turn(began_s + 100)
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert machine.job(job_id).verdict.details == {"timeout_s": 100}
    machine.watchdog.turn(began_s + 101)
    machine.watchdog.turn(began_s + 200)
    machine.store.flush()
    assert [each[0] for each in host.announced] == [job_id]


async def test_the_watchdog_looks_again_at_the_next_deadline_or_soon(machine):
    now_s = machine.clock.monotonic_s()
    assert machine.watchdog.turn(now_s) == now_s + TURN_S
    await machine.run(timeout_s=0.2)
    assert machine.clock.monotonic_s() - 1 < machine.watchdog.turn(now_s) <= now_s + TURN_S


async def test_only_a_deadline_before_the_next_turn_wakes_the_watchdog(machine, monkeypatch):
    """Each turn asks the store and ComfyUI: with many short jobs one for each would be much."""
    monkeypatch.setattr(watchdog, "TURN_S", LONG_S)
    turned = threading.Semaphore(0)
    machine.watchdog.turned.subscribe(turned.release)
    machine.watchdog.start()
    assert turned.acquire(timeout=LONG_S)
    for number in range(20):
        machine.watchdog.watch(machine.job(machine.submit(timeout_s=3600.0 + number)))
        time.sleep(0.01)  # enough for a thread that was woken
    machine.watchdog.watch(machine.job(machine.submit(timeout_s=0.5)))
    assert turned.acquire(timeout=LONG_S)
    assert turned.acquire(timeout=LONG_S)  # at the deadline
    assert not turned.acquire(blocking=False)


async def test_a_run_that_ended_is_not_watched_any_more(machine, host):
    job_id = await machine.run(timeout_s=1.0)
    machine.finish(job_id, TEXT)
    machine.watchdog.turn(machine.clock.monotonic_s() + 100)
    assert machine.ended(job_id) == ("succeeded", None)
    assert host.stopped == []


async def test_the_clock_of_a_job_runs_from_its_start_and_not_from_its_dispatch(machine):
    job_id = await machine.dispatch(timeout_s=1.0)
    machine.watchdog.turn(machine.clock.monotonic_s() + 100)
    assert machine.ended(job_id) == ("dispatched", None)


async def test_a_dead_worker_ends_the_job_it_had_once(machine, host):
    job_id = await machine.run()
    host.alive = False
    machine.watchdog.turn(machine.clock.monotonic_s())
    machine.watchdog.turn(machine.clock.monotonic_s())
    assert machine.ended(job_id) == ("failed", "worker_died")
    assert [each[2] for each in host.announced] == ["worker_died"]


async def test_jobs_that_waited_too_long_are_ended_queued_and_dispatched_alike(store, host, clock, tmp_path):
    machine = Machine(store, host, clock, tmp_path, queue={"timeout_s": 60, "max_jobs": 2})
    long_ago = clock.now_ms() - 61_000
    running = await machine.run(created_at_ms=long_ago)
    dispatched = await machine.dispatch(created_at_ms=long_ago, client_id="socket")
    queued = machine.submit(created_at_ms=long_ago)
    young = machine.submit(created_at_ms=clock.now_ms() - 50_000)
    machine.watchdog.turn(clock.monotonic_s())
    machine.watchdog._looking.result(LONG_S)
    assert machine.ended(running) == ("running", None)
    assert machine.ended(dispatched) == ("failed", "queue_timeout")
    assert machine.ended(queued) == ("failed", "queue_timeout")
    assert machine.ended(young) == ("queued", None)
    assert sorted(host.stopped) == sorted([dispatched, queued])
    assert machine.leased() == 2


@pytest.mark.parametrize("raised", [ZeroDivisionError, SystemExit])
async def test_a_watchdog_that_stumbles_goes_on(machine, host, monkeypatch, raised):
    job_id = await machine.run(timeout_s=0.01)
    turn, stumbled = machine.watchdog.turn, threading.Event()

    def stumbling(now_s):
        if not stumbled.is_set():
            stumbled.set()
            raise raised
        return turn(now_s)

    monkeypatch.setattr(machine.watchdog, "turn", stumbling)
    with machine.events.subscribe(job_id=job_id) as reader:
        machine.watchdog.start()
        assert await reader.next(LONG_S)
    monkeypatch.setattr(machine.watchdog, "turn", lambda now_s: now_s + 10**6)  # the thread is a daemon: it may sleep
    assert stumbled.is_set()
    assert machine.ended(job_id) == ("failed", "generation_timeout")


async def test_a_watchdog_outlives_a_store_that_is_closed(host, clock, tmp_path):
    store = SqliteStore(tmp_path / "other.db", clock)
    machine = Machine(store, host, clock, tmp_path)
    store.close()
    machine.watchdog.turn(clock.monotonic_s())
    machine.watchdog.turn(clock.monotonic_s())


async def test_a_job_without_progress_is_ended_after_the_stall_limit_and_one_that_moves_is_not(
    made, clock, monkeypatch
):
    machine = made(stall_timeout_s=30)
    now_s = clock.monotonic_s()
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s)
    job_id = await machine.run(timeout_s=600)
    for _ in range(5):
        now_s += 20
        machine.runs.progressed(job_id, Progress(1, 20, "3", "x", 5))
        machine.turn()
    assert machine.ended(job_id) == ("running", None)
    machine.turn(29)
    assert machine.ended(job_id) == ("running", None)
    machine.turn(30)
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert machine.job(job_id).verdict.details == {"stall_timeout_s": 30}


async def test_by_default_nothing_is_a_stall(machine):
    job_id = await machine.run(timeout_s=10_000)
    machine.turn(9_999)
    assert machine.ended(job_id) == ("running", None)


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
async def test_a_wall_clock_that_jumps_ends_nothing_early_and_lets_nothing_run_on(
    store, host, tmp_path, monkeypatch, jump_s
):
    wall_s, monotonic_s = 1_700_000_000.0, 50.0
    monkeypatch.setattr(clock_module.time, "time", lambda: wall_s)
    clock = Clock()
    monkeypatch.setattr(clock, "monotonic_s", lambda: monotonic_s)
    machine = Machine(store, host, clock, tmp_path, queue={"timeout_s": 100})
    running, waiting = await machine.run(timeout_s=10), machine.submit()
    wall_s += jump_s
    monotonic_s += 9.9
    machine.turn()
    machine.watchdog._looking.result(LONG_S)
    assert (machine.ended(running), machine.ended(waiting)) == (("running", None), ("queued", None))
    monotonic_s += 0.1
    machine.turn()
    assert machine.ended(running) == ("failed", "generation_timeout")


# Prompts of others. -----------------------------------------------------------------------------------------------


async def test_a_hung_native_prompt_climbs_the_same_ladder_and_settles_nothing(made, host):
    machine = made(native_timeout_s=100)
    machine.runs.native_started("theirs")
    machine.turn(99)
    assert host.stopped == []
    machine.turn(100)
    assert (host.stopped, host.replaced) == (["theirs"], [])
    machine.turn(100 + 10 * INJECT_AFTER)
    assert host.injected == ["theirs"]
    machine.turn(110)
    assert host.replaced == [("theirs", "worker_died")]
    machine.turn(500)
    assert len(host.replaced) == 1


async def test_native_prompts_are_left_alone_unless_a_limit_is_set(machine, host):
    machine.runs.native_started("theirs")
    machine.turn(10**6)
    assert (host.stopped, host.replaced) == ([], [])


async def test_a_native_prompt_that_ended_is_not_watched_any_more(made, host):
    machine = made(native_timeout_s=100)
    machine.runs.native_started("theirs")
    machine.runs.native_finished("theirs")
    machine.turn(10**6)
    assert host.stopped == []


# The ladder. ------------------------------------------------------------------------------------------------------


async def _stopped(machine, after_s=1.0):
    """A job past its deadline, told to stop, that does not let go. The times of later turns count from its start."""
    job_id = await machine.run(timeout_s=after_s, client_id="socket")
    machine.turn(after_s)
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    return job_id


async def test_the_rungs_come_in_order_and_each_once(made, host):
    machine = made(interrupt_grace_s=10)
    job_id = await _stopped(machine)
    machine.turn(1 + 10 * INJECT_AFTER - 0.1)
    assert (host.stopped, host.injected, host.replaced) == ([job_id], [], [])
    machine.turn(1 + 10 * INJECT_AFTER)
    machine.turn(1 + 10 * INJECT_AFTER + 1)
    assert (host.injected, host.replaced) == ([job_id], [])
    machine.turn(10.9)
    assert host.replaced == []
    machine.turn(11)
    machine.turn(12)
    assert host.replaced == [(job_id, "worker_died")]
    assert machine.ended(job_id) == ("failed", "generation_timeout"), "the first verdict holds"
    assert machine.leased() == 0


async def test_the_slot_of_a_hung_job_is_free_once_its_worker_is_disowned_and_not_before(made):
    machine = made(interrupt_grace_s=10)
    await _stopped(machine)
    waiting = machine.submit()
    machine.turn(10.9)
    assert not await machine.dispatcher.turn()
    machine.turn(11)
    machine.store.flush()
    assert await machine.dispatcher.turn()
    assert machine.ended(waiting) == ("dispatched", None)


async def test_a_job_that_lets_go_in_its_grace_costs_no_worker(made, host):
    machine = made(interrupt_grace_s=10)
    job_id = await _stopped(machine)
    machine.finish(job_id, INTERRUPTED)
    machine.runs.released(job_id)
    machine.turn(1000)
    assert (host.injected, host.replaced, machine.process.ended) == ([], [], [])


async def test_without_inject_nothing_is_raised_in_a_node(made, host):
    machine = made(inject=False)
    job_id = await _stopped(machine)
    machine.turn(10.9)
    machine.turn(11)
    assert (host.injected, host.replaced) == ([], [(job_id, "worker_died")])


async def test_a_cancelled_job_that_does_not_stop_climbs_too(machine, host):
    job_id = await machine.run()
    machine.settler.end(machine.job(job_id), CancelledError("The job was cancelled."))
    machine.turn(9)
    assert (host.injected, host.replaced) == ([job_id], [])
    machine.turn(10.1)
    assert host.replaced == [(job_id, "worker_died")]
    assert machine.ended(job_id) == ("cancelled", "cancelled")


@pytest.mark.parametrize(("on_stuck", "code"), [("replace", "worker_replaced"), ("report", "worker_stuck")])
async def test_an_operator_is_alarmed_once_where_a_worker_hangs(made, on_stuck, code):
    machine, alarms = made(on_stuck=on_stuck), []
    machine.watchdog.alarmed.subscribe(lambda *alarm: alarms.append(alarm))
    job_id = await _stopped(machine)
    machine.turn(11)
    machine.turn(100)
    ((told, message),) = alarms
    assert told == code
    assert job_id in message


async def test_a_worker_that_cannot_be_replaced_just_now_is_tried_again(made, host):
    machine = made()
    job_id = await _stopped(machine)
    host.can_replace = False
    machine.turn(11)
    assert host.replaced == []
    host.can_replace = True
    machine.turn(11.5)
    assert host.replaced == [(job_id, "worker_died")]


@pytest.mark.parametrize(("max_disowned", "hung"), [(1, 1), (0, 0), (3, 3)])
async def test_with_too_many_hung_workers_the_process_is_restarted(made, host, max_disowned, hung):
    machine = made(max_disowned=max_disowned)
    host.hung = hung
    job_id = await _stopped(machine)
    with pytest.raises(Gone):
        machine.turn(11)
    ((how, reason),) = machine.process.ended
    assert how == "restart"
    assert job_id in reason
    assert host.replaced == []


@pytest.mark.parametrize("settings", [{"on_stuck": "restart"}, {"max_disowned": 0}])
async def test_where_the_process_cannot_be_restarted_another_worker_serves_and_it_is_tried_again_between_jobs(
    made, host, settings
):
    machine, alarms = made(**settings), []
    machine.watchdog.alarmed.subscribe(lambda code, _message: alarms.append(code))
    machine.process.fails = "no interpreter"
    job_id = await _stopped(machine)
    machine.turn(11)
    assert [how for how, _reason in machine.process.ended] == ["restart"]
    assert host.replaced == [(job_id, "worker_died")]
    assert machine.health.problems() == []
    assert [alarm["code"] for alarm in machine.health.alarms()] == ["restart_failed", "worker_hangs"]
    assert alarms == ["restart_failed", "worker_replaced"]
    machine.store.flush()
    following = await machine.run(timeout_s=10**6)
    machine.turn(100)
    assert len(machine.process.ended) == 1, "a job is under way"
    machine.finish(following, TEXT)
    machine.runs.released(following)
    machine.store.flush()
    machine.turn(101)
    machine.turn(102)
    assert len(machine.process.ended) == 2, "not oftener than every ten seconds"
    machine.process.fails = None
    with pytest.raises(Gone):
        machine.turn(111)
    assert alarms.count("restart_failed") == 1


async def test_a_restart_that_is_owed_to_a_worker_that_has_ended_after_all_is_not_needed_any_more(made, host):
    machine = made(on_stuck="restart")
    machine.process.fails = "no interpreter"
    await _stopped(machine)
    machine.turn(11)
    host.hung = 0
    machine.store.flush()
    machine.turn(50)
    machine.turn(100)
    assert len(machine.process.ended) == 1
    assert machine.health.alarms() == []


async def test_without_a_restart_after_a_gpu_fault_no_job_is_let_in_and_it_is_tried_every_ten_seconds(made, host):
    machine = made()
    machine.process.fails = "no interpreter"
    job_id = await machine.run()
    machine.finish(job_id, fault("CUDA error: device-side assert triggered"))
    machine.runs.released(job_id)
    for after_s in (FAULT_GRACE_S + 1, 2, 11, 11.5, 20):
        machine.turn(after_s)
    assert len(machine.process.ended) == 2
    assert machine.health.problems() == ["restarting", "restart failed"]
    assert "restart_failed" in [alarm["code"] for alarm in machine.health.alarms()]
    machine.process.fails = None
    with pytest.raises(Gone):
        machine.turn(30)


# A worker that stays away between two prompts. ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in the host's queue", "in ours"])
async def test_a_worker_that_stays_away_while_something_waits_is_replaced(made, host, where):
    machine, alarms = made(interrupt_grace_s=10), []
    machine.watchdog.alarmed.subscribe(lambda code, _message: alarms.append(code))
    if where == "in ours":
        machine.submit()
    host.waits = where != "in ours"
    host.away_s = 1.0
    machine.turn()
    for after_s in (29, 30):
        host.away_s = 1.0 + after_s
        assert host.replaced == []
        machine.turn(after_s)
    assert host.replaced == [(None, "worker_died")]
    assert machine.watchdog.replacements == 1
    assert alarms == ["worker_replaced"]
    host.away_s = 0.0
    machine.turn(31)
    assert len(host.replaced) == 1


async def test_a_worker_may_stay_away_as_long_as_it_wants_where_nothing_waits(made, host):
    machine = made(interrupt_grace_s=10)
    for after_s in range(0, 1000, 20):
        host.away_s = float(after_s)
        machine.turn(after_s)
    assert host.replaced == []
    host.waits = True  # what comes in now may wait for it like any other
    machine.turn(1000)
    machine.turn(1029)
    assert host.replaced == []
    machine.turn(1030)
    assert len(host.replaced) == 1


async def test_a_worker_that_is_away_for_a_moment_at_each_look_is_left_alone(made, host):
    machine = made(interrupt_grace_s=10)
    host.waits = True
    for after_s in range(300):
        host.away_s = 0.1
        machine.turn(after_s)
    assert host.replaced == []


@pytest.mark.parametrize(
    ("settings", "hung", "how"),
    [({}, 1, "restart"), ({"on_stuck": "restart"}, 0, "restart"), ({"on_stuck": "exit"}, 0, "exit")],
)
async def test_where_one_hangs_already_a_worker_that_stays_away_costs_the_process(made, host, settings, hung, how):
    """What holds the one holds the other: a GPU that never comes back."""
    machine = made(interrupt_grace_s=10, **settings)
    host.hung, host.waits, host.away_s = hung, True, 100.0
    machine.turn()
    machine.turn(29)
    assert machine.process.ended == []
    with pytest.raises(Gone):
        machine.turn(30)
    assert [each[0] for each in machine.process.ended] == [how]


async def test_a_worker_that_stays_away_is_reported_until_it_is_back_where_the_settings_say_so(made, host):
    machine, alarms = made(interrupt_grace_s=10, on_stuck="report"), []
    machine.watchdog.alarmed.subscribe(lambda code, _message: alarms.append(code))
    host.waits, host.away_s = True, 100.0
    machine.turn()
    machine.turn(30)
    machine.turn(200)
    assert alarms == ["worker_stuck"]
    assert machine.health.problems() == ["worker stuck"]
    host.away_s = 0.0
    machine.turn(201)
    assert machine.health.problems() == []


@pytest.mark.parametrize("how", ["restart", "exit"])
async def test_a_stuck_worker_ends_the_process_where_the_settings_say_so(made, host, how):
    machine = made(on_stuck=how)
    job_id = await _stopped(machine)
    machine.turn(10.9)
    assert machine.process.ended == []
    with pytest.raises(Gone):
        machine.turn(11)
    assert [each[0] for each in machine.process.ended] == [how]
    assert host.replaced == []
    assert machine.ended(job_id) == ("failed", "generation_timeout")


async def test_where_a_stuck_worker_is_only_reported_its_slot_stays_taken_and_no_job_is_let_in(made, host):
    repaired = []
    machine = made(on_stuck="report")
    machine.watchdog.repaired.subscribe(lambda: repaired.append(1))
    job_id = await _stopped(machine)
    machine.submit()
    assert machine.health.problems() == []
    machine.turn(11)
    machine.turn(100)
    assert (host.replaced, machine.process.ended) == ([], [])
    assert machine.health.problems() == ["worker stuck"]
    assert machine.leased() == 1
    machine.finish(job_id, TEXT)
    machine.runs.released(job_id)
    assert (machine.health.problems(), repaired, machine.leased()) == ([], [1], 0)
    assert await machine.dispatcher.turn()


async def test_the_timer_against_a_held_lock_is_armed_at_every_look_with_on_stuck_exit_only(made):
    machine = made(on_stuck="exit", gil_hang_s=77)
    machine.turn()
    machine.turn(1)
    assert machine.process.armed_s == [77, 77]
    other = made(on_stuck="replace")
    other.turn()
    assert other.process.armed_s == []


async def test_a_timer_that_is_shorter_than_the_looks_is_no_setting():
    """It would end a healthy process."""
    with pytest.raises(SettingsError, match="gil_hang_s"):
        load(None, {"GUARDED_WATCHDOG__GIL_HANG_S": "0.5"})


async def test_a_dead_worker_is_replaced_its_jobs_settle_and_the_dispatcher_is_woken(machine, host):
    repaired = []
    machine.watchdog.repaired.subscribe(lambda: repaired.append(machine.health.problems()))
    alarms = []
    machine.watchdog.alarmed.subscribe(lambda code, _message: alarms.append(code))
    job_id = await machine.run(client_id="socket")
    host.alive = False
    assert machine.health.problems() == ["worker dead"]
    machine.turn()
    assert machine.ended(job_id) == ("failed", "worker_died")
    assert host.replaced == [(None, "worker_died")]
    assert repaired == [[]]
    assert alarms == ["worker_replaced"]
    machine.turn(1000)
    assert len(host.replaced) == 1


async def test_a_dead_worker_is_found_although_no_job_of_the_guards_ran(machine, host):
    machine.runs.native_started("theirs")
    host.alive = False
    machine.turn()
    assert host.replaced == [(None, "worker_died")]
    assert host.stopped == []


async def test_a_dead_worker_is_looked_for_once_a_second_at_least():
    assert TURN_S <= 1


# Memory, and the GPU. ---------------------------------------------------------------------------------------------


async def test_memory_is_freed_after_a_timeout_and_after_running_out_of_it_and_not_after_others(machine, host):
    await _stopped(machine)
    assert host.freed == 1
    machine.runs.released(host.dispatched[0][0])
    machine.store.flush()
    job_id = await machine.run()
    machine.finish(job_id, fault("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert host.freed == 2
    machine.runs.released(job_id)
    machine.store.flush()
    machine.finish(await machine.run(), fault("bad steps", "ValueError"))
    assert host.freed == 2


async def test_memory_is_left_alone_where_the_settings_say_so(made, host):
    machine = made(free_memory=False)
    job_id = await _stopped(machine)
    machine.runs.released(job_id)
    machine.store.flush()
    machine.finish(await machine.run(), fault("CUDA out of memory."))
    assert host.freed == 0


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: an illegal memory access was encountered",
        "HIP error: invalid device function",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
async def test_an_error_that_leaves_no_usable_gpu_settles_its_job_and_then_restarts_the_process(machine, message):
    job_id = await machine.run()
    machine.submit()
    assert machine.finish(job_id, fault(message)).code == "generation_failed"
    machine.runs.released(job_id)
    assert machine.ended(job_id) == ("failed", "generation_failed")
    assert machine.health.problems() == ["restarting"], "no further job may meet this GPU"
    assert not await machine.dispatcher.turn()
    machine.turn()
    assert machine.process.ended == [], "whoever waits for the verdict has a moment to hear it"
    with pytest.raises(Gone):
        machine.turn(FAULT_GRACE_S + 0.1)
    assert [each[0] for each in machine.process.ended] == ["restart"]


@pytest.mark.parametrize(
    "message",
    [
        "mat1 and mat2 shapes cannot be multiplied (77x768 and 1024x320)",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Expected all tensors to be on the same device, cuda:0 and cpu",
    ],
)
async def test_an_ordinary_error_restarts_nothing(machine, message):
    machine.finish(await machine.run(), fault(message))
    machine.turn(100)
    assert (machine.health.problems(), machine.process.ended) == ([], [])


async def test_a_fault_of_the_gpu_is_only_reported_where_the_settings_say_so(made):
    machine = made(on_gpu_fault="report")
    machine.finish(await machine.run(), fault("CUDA error: device-side assert triggered"))
    machine.turn(100)
    assert (machine.health.problems(), machine.process.ended) == ([], [])
