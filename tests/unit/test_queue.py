"""From a free slot to an ended run, on a scripted host."""

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from unit.fakes import GRAPH, LONG_S, new_job
from unit.machine import Machine
from unit.store_steps import claim, submit

from comfyui_guarded.guard.callers import jobs
from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import FAMILY, CancelledError, NotFoundError, type_name
from comfyui_guarded.guard.files.names import owner_folder
from comfyui_guarded.guard.host import Outcome, Progress, Refusal, ReportedFile
from comfyui_guarded.guard.host_words import explain_failure
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.life import checking, dispatcher
from comfyui_guarded.guard.life.check_places import WAITING
from comfyui_guarded.guard.quotas.files import FilesHeld
from comfyui_guarded.guard.store import Wanted

TEXT = Outcome(success=True, outputs={"2": {"text": ["hi"]}})
RAISED = Outcome(
    success=False, exception_type="ValueError", exception_message="bad steps", node_id="3", node_type="KSampler"
)


# What a failed run is called. -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exception_type", "message", "code"),
    [
        ("ValueError", "bad", "generation_failed"),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", "generation_failed"),
        ("SystemExit", "", "generation_failed"),
        ("", "", "generation_failed"),
        ("torch.OutOfMemoryError", "Allocation on device", "out_of_memory"),
        ("torch.cuda.OutOfMemoryError", "", "out_of_memory"),
        ("torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("RuntimeError", "CUDA out of memory. Tried to allocate 20.00 MiB", "out_of_memory"),
        ("RuntimeError", "CUDA error: out of memory\nCUDA kernel errors might be", "out_of_memory"),
        ("torch.AcceleratorError", "CUDA error: out of memory", "out_of_memory"),
        ("RuntimeError", "HIP out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 368640000 bytes. Error code 12 (Cannot allocate memory)",
            "out_of_memory",
        ),
        ("RuntimeError", "[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to", "out_of_memory"),
        ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 32.0 GiB for an array", "out_of_memory"),
        ("RuntimeError", "MPS backend out of memory (MPS allocated: 17 GB)", "out_of_memory"),
        ("MemoryError", "", "out_of_memory"),
        ("av.error.MemoryError", "[Errno 12] Cannot allocate memory", "generation_failed"),  # of an empty sound, say
        ("some_pack.MyOutOfMemoryErrorHandler", "x", "generation_failed"),
        ("RuntimeError", "this node is out of memory slots for prompts", "generation_failed"),
        (type_name("no_face"), "No face found in photo.png", "no_face"),
        (type_name("result_blank"), "blank", "result_blank"),
        ("other_pack.NoFaceError", "x", "generation_failed"),
        ("NoFaceError", "x", "generation_failed"),
    ],
)
def test_a_failed_run_is_named_by_its_exception(exception_type, message, code):
    error = explain_failure(
        Outcome(
            success=False, exception_type=exception_type, exception_message=message, node_id="3", node_type="KSampler"
        )
    )
    assert error.code == code
    assert error.extra_info["node_id"] == "3"
    assert error.extra_info["exception_type"] == exception_type


@pytest.mark.parametrize("code", sorted(FAMILY))
def test_an_error_of_ours_that_a_node_raised_keeps_its_code_and_message(code):
    outcome = Outcome(success=False, exception_type=type_name(code), exception_message="told\n")
    assert (explain_failure(outcome).code, explain_failure(outcome).message) == (code, "told")


def test_an_interrupt_is_no_failure_of_the_node():
    assert explain_failure(Outcome(success=False, interrupted=True, exception_type="ValueError")).code == "interrupted"


def test_a_failure_says_what_failed_and_leaves_comfyuis_tips_out():
    error = explain_failure(
        Outcome(
            success=False, exception_type="ValueError", node_type="KSampler",
            exception_message="Bad steps.\n\nTIPS: reduce your batch size\n" + "x" * 10_000,
        )
    )  # fmt: skip
    assert error.message == "KSampler failed: Bad steps."
    assert "TIPS" not in error.extra_info["exception_message"]


def test_an_endless_exception_message_is_cut():
    error = explain_failure(Outcome(success=False, exception_type="ValueError", exception_message="x" * 10**6))
    assert len(error.message) < 1000
    assert len(error.extra_info["exception_message"]) <= 2000


# Dispatch. --------------------------------------------------------------------------------------------------------


async def test_a_waiting_job_is_handed_to_the_host_as_it_was_sent(machine, host):
    machine.secrets.keep("x", {"never": "mine"})
    body = (
        b'{"prompt": {"1": {"class_type": "X", "inputs": {}}}, "number": 3, "guard": {"priority": 1}, "workflow_id": 5}'
    )
    job_id = machine.submit(client_id="socket", body=body, has_secrets=True)
    machine.secrets.keep(job_id, {"api_key_comfy_org": "s3cret"})
    assert await machine.dispatcher.turn()
    graph = {"1": {"class_type": "X", "inputs": {}}}
    socket = machine.client_ids.of("bot", "socket")
    told = {
        "prompt": graph, "workflow_id": 5, "prompt_id": job_id, "client_id": socket,
        "extra_data": {"api_key_comfy_org": "s3cret"},
    }  # fmt: skip
    assert host.dispatched == [(job_id, socket, told)]
    assert machine.ended(job_id) == ("dispatched", None)
    assert machine.leased() == 1


async def test_the_owner_of_the_machine_has_the_client_ids_that_comfyui_knows(machine, host):
    await machine.dispatch(client_id="socket", owner="local")
    assert host.dispatched[0][1] == "socket"


async def test_a_job_without_a_client_id_has_a_socket_name_of_its_own(machine, host):
    job_id = await machine.dispatch(owner="local")
    assert host.dispatched[0][1] == f"guarded-{job_id}"


async def test_there_is_nothing_to_do_without_a_job_a_slot_or_a_worker(machine, host):
    assert not await machine.dispatcher.turn()
    await machine.dispatch()
    machine.submit()
    assert not await machine.dispatcher.turn()
    machine.runs.released(host.dispatched[0][0])
    machine.store.flush()
    host.alive = False
    assert not await machine.dispatcher.turn()
    host.alive = True
    assert await machine.dispatcher.turn()
    assert len(host.dispatched) == 2


async def test_two_slots_take_two_jobs(store, host, clock, tmp_path):
    machine = Machine(store, host, clock, tmp_path, queue={"max_jobs": 2})
    for _ in range(3):
        machine.submit()
    assert [await machine.dispatcher.turn() for _ in range(3)] == [True, True, False]


async def test_a_refusal_at_dispatch_settles_the_job_and_frees_its_slot(machine, host):
    info = {"input_name": "ckpt_name", "received_value": "gone.safetensors"}
    errors = {"1": {"errors": [{"type": "value_not_in_list", "details": "", "extra_info": info}]}}
    host.answer = Refusal("prompt_outputs_failed_validation", "failed validation", "", {}, errors)
    job_id = await machine.dispatch(client_id="socket")
    assert machine.ended(job_id) == ("failed", "missing_model")
    assert host.announced == [(job_id, machine.client_ids.of("bot", "socket"), "missing_model")]
    assert machine.leased() == 0
    host.answer = None
    assert machine.ended(await machine.dispatch()) == ("dispatched", None)


async def test_a_host_that_raises_at_dispatch_costs_one_job_and_not_the_queue(machine, host):
    host.answer = RuntimeError("some pack's prompt handler broke")
    job_id = await machine.dispatch()
    assert machine.ended(job_id) == ("failed", "internal_error")
    assert "some pack's prompt handler broke" in machine.job(job_id).verdict.details["details"]
    assert machine.leased() == 0
    host.answer = None
    assert machine.ended(await machine.dispatch()) == ("dispatched", None)


async def test_a_dispatcher_runs_by_itself_and_outlives_a_store_that_fails(machine, host, monkeypatch):
    def broken(*_args):
        monkeypatch.setattr(machine.store, "claim", claim)
        raise RuntimeError("a bug")

    async def no_pause(_seconds):
        await pause(0)

    claim, pause = machine.store.claim, asyncio.sleep
    monkeypatch.setattr(machine.store, "claim", broken)
    monkeypatch.setattr(dispatcher.asyncio, "sleep", no_pause)
    dispatched = asyncio.Event()

    async def tell(_job_id):
        dispatched.set()

    host.during_dispatch = tell
    machine.submit()
    machine.dispatcher.start()
    await asyncio.wait_for(dispatched.wait(), LONG_S)
    dispatched.clear()
    machine.settler.released.subscribe(machine.dispatcher.wake)
    second = machine.submit()
    machine.runs.released(host.dispatched[0][0])  # on whatever thread: the dispatcher wakes
    await asyncio.wait_for(dispatched.wait(), LONG_S)
    assert host.dispatched[1][0] == second
    machine.dispatcher._task.cancel()
    await asyncio.gather(machine.dispatcher._task, return_exceptions=True)


async def test_a_job_that_comes_to_wait_wakes_the_dispatcher_and_with_every_slot_taken_it_does_not(
    machine, host, monkeypatch
):
    dispatched, woken = asyncio.Event(), []

    async def tell(_job_id):
        dispatched.set()

    host.during_dispatch = tell
    machine.dispatcher.start()
    await asyncio.sleep(0.05)  # it has found nothing to do
    first = machine.submit()
    await asyncio.wait_for(dispatched.wait(), LONG_S)
    monkeypatch.setattr(machine.dispatcher._wake, "set", lambda: woken.append(1))
    machine.submit()
    assert ([job_id for job_id, *_rest in host.dispatched], woken) == ([first], [])
    machine.dispatcher._task.cancel()
    await asyncio.gather(machine.dispatcher._task, return_exceptions=True)


# Runs. ------------------------------------------------------------------------------------------------------------


async def test_a_run_goes_through_its_states_and_its_verdict_is_durable_when_it_is_told(machine):
    states = []
    machine.store.changed.subscribe(lambda job: states.append(job.state.value))
    job_id = await machine.run()
    verdict = machine.finish(job_id, TEXT)
    assert verdict.state is JobState.SUCCEEDED
    job = machine.store.get(job_id).result(LONG_S)
    assert (job.state, job.attempts, job.result.outputs) == (JobState.SUCCEEDED, 1, {"2": {"text": ["hi"]}})
    assert states == ["queued", "dispatched", "running", "validating", "succeeded"]
    assert machine.leased() == 0


async def test_a_node_that_raised_fails_its_job(machine, host):
    job_id = await machine.run()
    verdict = machine.finish(job_id, RAISED)
    assert (verdict.state, verdict.code, verdict.message) == (
        JobState.FAILED,
        "generation_failed",
        "KSampler failed: bad steps",
    )
    assert machine.job(job_id).body()["refund"] is True
    assert (host.stopped, host.announced) == ([], [])


async def test_a_refused_result_is_moved_aside_and_fails_the_job(machine, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 5000)
    file = ReportedFile("2", "a.png", "", "output", path)
    job_id = await machine.run()
    verdict = machine.finish(job_id, Outcome(True, outputs={"2": {"images": [{"x": 1}]}}, files=(file,)))
    assert verdict.code == "result_corrupt"
    job = machine.job(job_id)
    assert (job.result.outputs, job.result.artifacts) == ({}, ())
    assert not path.exists()
    assert [aside.read_bytes()[:4] for aside in (machine.quarantine / job_id).iterdir()] == [b"\x89PNG"]


async def test_a_check_with_a_bug_fails_the_job_and_not_the_worker(machine, monkeypatch):
    monkeypatch.setattr(checking.checks, "check", lambda *_args: 1 / 0)
    job_id = await machine.run()
    assert machine.finish(job_id, TEXT).code == "internal_error"
    assert machine.ended(job_id) == ("failed", "internal_error")


async def test_a_check_that_never_returns_fails_the_job_within_its_limit(store, host, clock, tmp_path, monkeypatch):
    machine = Machine(store, host, clock, tmp_path, results={"check_timeout_s": 0.05})
    forever = threading.Event()
    monkeypatch.setattr(checking.checks, "check", lambda *_args: forever.wait(LONG_S))
    (tmp_path / "a.png").write_bytes(b"a picture")
    files = (ReportedFile("2", "a.png", "", "output", tmp_path / "a.png"),)
    job_id = await machine.run()
    assert machine.finish(job_id, Outcome(success=True, files=files)).code == "result_corrupt"
    forever.set()


async def test_whose_results_wait_for_their_checks_leaves_the_worker_to_others(machine, host, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr(checking.checks, "check", lambda *_args: (may_end.wait(LONG_S), ())[1])
    told = []

    async def run_all():
        """Whose jobs had the worker."""
        owners = []
        while await machine.dispatcher.turn():
            job_id = host.dispatched[-1][0]
            owners.append(machine.job(job_id).owner)
            assert machine.runs.started(job_id)
            machine.runs.finished(job_id, TEXT, told.append)
            machine.runs.go_on()
            machine.store.flush()
        return owners

    for _ in range(20):
        machine.submit(owner="a")
    at_once = machine.settings.results.checks_at_once + WAITING
    assert at_once <= len(await run_all()) <= at_once + 1
    machine.submit(owner="b")
    assert await run_all() == ["b"]
    assert told == []
    heard = threading.Event()
    machine.runs.held_back.subscribe(heard.set)
    may_end.set()
    assert await asyncio.to_thread(heard.wait, LONG_S)
    owners = await run_all()
    while len(told) < 21:
        await asyncio.sleep(0.01)
        owners += await run_all()
    assert set(owners) == {"a"}
    assert {verdict.code for verdict in told} == {None}


@pytest.mark.parametrize("max_jobs", [1, 2])
async def test_what_an_owners_next_job_might_overwrite_is_checked_before_that_and_others_go_on(
    store, host, clock, tmp_path, monkeypatch, max_jobs
):
    machine = Machine(store, host, clock, tmp_path, queue={"max_jobs": max_jobs})
    folder = tmp_path / owner_folder("a")
    folder.mkdir(parents=True)
    (folder / "f_00001_.png").write_bytes(b"a picture")
    files = (ReportedFile("2", "f_00001_.png", "", "output", folder / "f_00001_.png"),)
    may_end, has_begun, told = threading.Event(), threading.Event(), []
    monkeypatch.setattr(checking.checks, "check", lambda *_args: (has_begun.set(), may_end.wait(LONG_S), ())[2])
    first = await machine.run(owner="a")
    worker = threading.Thread(
        target=machine.runs.finished, args=(first, Outcome(success=True, files=files), told.append)
    )
    worker.start()
    assert await asyncio.to_thread(has_begun.wait, LONG_S)
    if max_jobs == 1:
        worker.join(LONG_S)
        machine.runs.go_on()
        machine.store.flush()
        second, of_other = machine.submit(owner="a"), machine.submit(owner="b")
        assert await machine.dispatcher.turn()
        assert host.dispatched[-1][0] == of_other
        machine.runs.released(of_other)
        machine.store.flush()
        assert not await machine.dispatcher.turn()
    else:
        worker.join(0.1)
        assert worker.is_alive(), "another job of the owner may be in the host's queue already"
    heard = threading.Event()
    machine.runs.held_back.subscribe(heard.set)
    may_end.set()
    worker.join(LONG_S)
    machine.store.flush()
    if max_jobs == 1:
        assert await asyncio.to_thread(heard.wait, LONG_S)
        assert await machine.dispatcher.turn()
        assert host.dispatched[-1][0] == second


async def test_a_job_that_is_cancelled_before_its_check_is_not_checked(machine, monkeypatch):
    may_end, checked = threading.Event(), []
    monkeypatch.setattr(
        checking.checks, "check", lambda outcome, *_args: (checked.append(outcome), may_end.wait(LONG_S), ())[2]
    )
    told = queue.SimpleQueue()
    jobs = []
    for _ in range(4):
        jobs.append(await machine.run(owner="a"))
        machine.runs.finished(jobs[-1], TEXT, told.put)
        machine.runs.go_on()
        machine.store.flush()
    machine.settler.end(machine.job(jobs[-1]), CancelledError("x")).result(LONG_S)
    may_end.set()
    for _ in range(4):
        await asyncio.to_thread(told.get, timeout=LONG_S)
    assert len(checked) == 3
    assert machine.ended(jobs[-1]) == ("cancelled", "cancelled")
    assert [machine.ended(job_id)[0] for job_id in jobs[:-1]] == ["succeeded"] * 3


async def test_a_waiting_job_whose_owner_has_too_many_files_by_now_does_not_begin(machine):
    held = FilesHeld()
    held.watch({"a": 100})
    machine.runs._judge_files = held.judge
    waits = await machine.dispatch(owner="a")
    held.add("a", 101)
    assert not machine.runs.started(waits)
    machine.runs.released(waits)
    assert machine.ended(waits) == ("failed", "quota_exceeded")
    assert machine.finish(await machine.run(owner="b"), TEXT).code is None
    held.add("a", -1)
    assert machine.finish(await machine.run(owner="a"), TEXT).code is None


async def test_a_late_success_after_a_timeout_changes_nothing(machine, host):
    job_id = await machine.run(timeout_s=1.0, client_id="socket")
    machine.watchdog.turn(machine.clock.monotonic_s() + 2)
    verdict = machine.finish(job_id, TEXT)
    assert verdict.code == "generation_timeout"
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert machine.job(job_id).result.outputs == {}
    assert [each[2] for each in host.announced] == ["generation_timeout"]


async def test_a_slot_is_free_when_the_worker_is_and_not_when_the_user_was_told(machine):
    job_id = await machine.run(timeout_s=1.0)
    machine.submit()
    machine.watchdog.turn(machine.clock.monotonic_s() + 2)
    assert machine.ended(job_id) == ("failed", "generation_timeout")
    assert not await machine.dispatcher.turn()
    machine.finish(job_id, Outcome(success=False, interrupted=True))
    machine.store.flush()
    assert await machine.dispatcher.turn()


@pytest.mark.parametrize("outcome", [TEXT, RAISED, None], ids=["success", "failure", "unreadable"])
async def test_who_hears_of_an_end_finds_the_slot_free(machine, outcome):
    leased = []
    machine.store.changed.subscribe(lambda job: leased.append((job.state.settled, machine.store.leases)))
    job_id = await machine.run()
    machine.finish(job_id, outcome)
    assert leased[-1] == (True, frozenset())


async def test_whoever_waits_for_a_slot_is_told_once_it_is_free(machine):
    leased = []
    machine.settler.released.subscribe(lambda: leased.append(machine.store.count_jobs().result(LONG_S).leased))
    job_id = await machine.dispatch()
    machine.runs.released(job_id)
    machine.store.flush()
    assert leased == [0]


async def test_a_job_taken_out_of_the_hosts_queue_is_cancelled(machine):
    job_id = await machine.dispatch()
    machine.runs.dropped(job_id)
    machine.runs.released(job_id)
    assert machine.ended(job_id) == ("cancelled", "cancelled")
    assert machine.leased() == 0


async def test_a_native_interrupt_is_named(machine):
    job_id = await machine.run()
    assert machine.finish(job_id, Outcome(success=False, interrupted=True)).code == "interrupted"


async def test_a_full_disk_at_the_start_of_a_run_does_not_cost_the_job(machine):
    job_id = await machine.dispatch()
    machine.store.failing = frozenset({"start"})
    assert machine.runs.started(job_id)
    machine.store.failing = frozenset()
    assert machine.finish(job_id, TEXT).state is JobState.SUCCEEDED
    assert machine.ended(job_id) == ("succeeded", None)


async def test_a_full_disk_at_the_end_of_a_run_delays_its_verdict_and_no_more(machine):
    job_id = await machine.run()
    machine.store.failing = frozenset({"settle", "validate"})
    with ThreadPoolExecutor(1) as worker:
        verdict = worker.submit(machine.finish, job_id, TEXT)
        while machine.settler.verdict_of(job_id) is None:
            assert not verdict.done()
        assert machine.ended(job_id) == ("running", None)
        assert not verdict.done()
        machine.store.failing = frozenset()
        machine.watchdog.turn(machine.clock.monotonic_s())
        assert verdict.result(LONG_S).state is JobState.SUCCEEDED
    machine.runs.released(job_id)
    assert machine.ended(job_id) == ("succeeded", None)
    assert machine.job(job_id).result.outputs == {"2": {"text": ["hi"]}}


async def test_a_job_that_is_being_ended_is_not_dispatched_and_its_slot_goes_to_the_next(machine, host):
    ended, other = machine.submit(), machine.submit()
    machine.store.failing = frozenset({"settle"})
    machine.settler.end(machine.job(ended), CancelledError("The job was cancelled."))
    assert await machine.dispatcher.turn()
    machine.store.flush()
    assert await machine.dispatcher.turn()
    assert [job_id for job_id, _client, _body in host.dispatched] == [other]
    machine.store.failing = frozenset()
    machine.turn()
    assert machine.ended(ended) == ("cancelled", "cancelled")
    assert machine.leased() == 1


async def test_a_slot_that_could_not_be_freed_for_a_full_disk_is_freed_later(machine, host):
    job_id = await machine.run()
    second = machine.submit()
    machine.finish(job_id, TEXT)
    machine.store.failing = frozenset({"release"})
    machine.runs.released(job_id)
    host.holds.clear()
    machine.store.flush()
    machine.store.failing = frozenset()
    for _ in range(3):
        machine.watchdog.turn(machine.clock.monotonic_s())
        machine.store.get(job_id).result(LONG_S)
        machine.store.flush()
        await machine.dispatcher.turn()
    assert machine.ended(second) == ("dispatched", None)


async def test_progress_is_shown_while_the_job_runs_and_not_after_its_end(machine):
    job_id = await machine.run(timeout_s=1.0)
    machine.runs.progressed(job_id, Progress(5, 20, "3", "KSampler", 40))
    shown = await machine.jobs.body(machine.job(job_id))
    assert shown["progress"] == {"value": 5, "max": 20, "node_id": "3", "node_title": "KSampler", "percent": 40}
    machine.watchdog.turn(machine.clock.monotonic_s() + 2)
    machine.store.flush()
    machine.runs.progressed(job_id, Progress(6, 20, "3", "KSampler", 45))
    assert (await machine.jobs.body(machine.job(job_id)))["progress"] is None
    machine.runs.released(job_id)
    assert machine.events.progress(job_id) is None


# What callers see. ------------------------------------------------------------------------------------------------


async def test_a_job_is_seen_by_its_owner_and_by_operators_only(machine):
    job_id = machine.submit(owner="bot")
    assert (await machine.jobs.get(job_id, Client("bot", operator=False))).job_id == job_id
    assert (await machine.jobs.get(job_id, Client("local", operator=True))).job_id == job_id
    for client in (Client("other", operator=False), Client("", operator=False)):
        with pytest.raises(NotFoundError):
            await machine.jobs.get(job_id, client)
    assert (await machine.jobs.search(Client("other", operator=False), None, Wanted(), 10, None)).jobs == ()
    assert len((await machine.jobs.search(Client("local", operator=True), None, Wanted(), 10, None)).jobs) == 1


async def test_a_waiter_hears_of_the_end_also_when_it_comes_before_it_waits(machine):
    job_id = machine.submit()
    job = machine.job(job_id)
    waiting = asyncio.ensure_future(machine.jobs.wait(job, LONG_S, None))
    await asyncio.sleep(0)
    machine.settler.end(job, CancelledError("x"))
    assert (await waiting).state is JobState.CANCELLED
    assert (await machine.jobs.wait(job, LONG_S, None)).state is JobState.CANCELLED
    assert machine.events._count == 0


async def test_a_wait_ends_as_the_job_is_when_its_time_is_up(machine):
    job = machine.job(machine.submit())
    assert (await machine.jobs.wait(job, 0.01, None)).state is JobState.QUEUED


async def test_a_wait_for_another_state_than_the_one_known_ends_at_once_where_it_is_another_already(machine):
    job = machine.job(machine.submit())
    assert (await machine.jobs.wait(job, LONG_S, JobState.RUNNING)).state is JobState.QUEUED


async def test_a_wait_for_a_change_ends_with_the_next_state(machine):
    job = machine.job(machine.submit())
    waiting = asyncio.ensure_future(machine.jobs.wait(job, LONG_S, JobState.QUEUED))
    await asyncio.sleep(0)
    await machine.dispatcher.turn()
    assert (await waiting).state is JobState.DISPATCHED


async def test_an_ending_that_is_read_before_its_listeners_have_heard_of_it_shows_no_progress(machine):
    job_id = await machine.run()
    machine.runs.progressed(job_id, Progress(5, 20, "3", "KSampler", 40))
    ended = machine.job(job_id).evolve(state=JobState.SUCCEEDED)
    assert machine.events.progress(job_id) is not None
    assert machine.jobs.describe(ended, None)["progress"] is None


async def test_a_cancel_is_idempotent(machine):
    job = machine.job(machine.submit())
    first = await machine.jobs.cancel(job)
    again = await machine.jobs.cancel(job)
    assert first == again
    assert first.state is JobState.CANCELLED


async def test_the_first_in_line_need_not_wait_and_the_second_is_told_its_place_and_when(machine):
    first = machine.store.submit(new_job(shape="known"), 10).result(LONG_S)
    assert machine.jobs.describe_position(first.job, first.waiting, "en")["user_message"] is None
    await machine.dispatcher.turn()
    second = machine.store.submit(new_job(shape="known"), 10).result(LONG_S)
    assert machine.jobs.describe_position(second.job, second.waiting, "en") == {
        "state": "queued",
        "position": 1,
        "eta_s": 10.0,
        "running": 1,
        "max_jobs": 1,
        "user_message": (
            "The server is busy (1/1 tasks). Your place in the queue: 1. "
            "Your generation will start in about 10 seconds."
        ),
    }


async def test_a_job_that_comfyui_never_ran_has_a_history_entry_with_an_error(machine):
    job = await machine.jobs.cancel(machine.job(machine.submit(client_id="socket")))
    history = await machine.jobs.find_history_entry(job.job_id, LOCAL)
    entry = history[job.job_id]
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    (event, data), (last, _data) = entry["status"]["messages"]
    assert (event, last) == ("execution_error", "execution_interrupted")
    assert (data["prompt_id"], data["exception_type"]) == (job.job_id, type_name("cancelled"))
    number, prompt_id, prompt, extra_data, outputs = entry["prompt"]
    assert (number, prompt_id, prompt, outputs) == (job.number, job.job_id, GRAPH, [])
    assert extra_data["client_id"] == "socket"
    assert entry["outputs"] == {}


async def test_a_cleared_queue_ends_in_parts_with_what_begins_meanwhile_and_without_what_comes_in(
    machine, store, monkeypatch
):
    monkeypatch.setattr(jobs, "ENDED_AT_ONCE", 3)
    runs = submit(store, owner=LOCAL.owner).job.job_id
    assert claim(store, 9) == runs
    store.start(runs).result(LONG_S)
    waiting = [submit(store, owner=LOCAL.owner).job.job_id for _ in range(10)]
    late = []

    def begin_one(job):
        """The head of the line begins, and a job comes in, as the first part has ended."""
        if job.state.settled and not late:
            late.append(new_job(owner=LOCAL.owner))
            for step in (store.claim("local", 9), store.start(waiting[0]), store.submit(late[0], 99)):
                step.add_done_callback(lambda _done: None)

    store.changed.subscribe(begin_one)
    await machine.jobs.take_out(LOCAL, None)
    states = {job_id: store.get(job_id).result(LONG_S).state for job_id in (runs, *waiting, late[0].job_id)}
    assert {states[job_id] for job_id in waiting} == {JobState.CANCELLED}
    assert store.get(waiting[0]).result(LONG_S).attempts == 1, "it had begun"
    assert (states[runs], states[late[0].job_id]) == (JobState.RUNNING, JobState.QUEUED)
