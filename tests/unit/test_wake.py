"""Wake, LoopCaller and Signal: how threads reach the event loop, and how listeners hear."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import Future
from functools import partial

import pytest
from unit.fakes import LONG_S, new_job

from comfyui_guarded.guard.job import NewJob
from comfyui_guarded.guard.signal import Signal
from comfyui_guarded.guard.wake import LoopCaller, Wake, together, wrap_future


def on_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


async def test_another_thread_wakes_the_task_that_waits():
    wake = Wake()
    waiting = asyncio.create_task(wake.wait())
    await asyncio.sleep(0)
    on_a_thread(wake.set)
    await asyncio.wait_for(waiting, LONG_S)


async def test_a_wake_before_the_first_wait_is_not_lost_and_counts_once():
    wake = Wake()
    on_a_thread(wake.set)
    await asyncio.wait_for(wake.wait(), LONG_S)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(wake.wait(), 0.01)


async def test_a_wake_between_two_waits_is_not_lost():
    wake = Wake()
    await wake.wait(0)
    on_a_thread(wake.set)
    await asyncio.wait_for(wake.wait(), LONG_S)


async def test_many_wakes_reach_the_loop_once(monkeypatch):
    wake = Wake()
    await wake.wait(0)
    loop, calls = asyncio.get_running_loop(), []
    native = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args, **more: (calls.append(1), native(*args, **more))[1])
    for _ in range(3):
        on_a_thread(lambda: [wake.set() for _ in range(100)])
        assert len(calls) == 1
        await asyncio.wait_for(wake.wait(), LONG_S)
        calls.clear()


async def test_no_wake_of_many_threads_is_lost():
    wake, count, left = Wake(), 0, 4 * 500
    done = []

    def work():
        for _ in range(500):
            done.append(1)
            wake.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while count < left:
        await asyncio.wait_for(wake.wait(), LONG_S)
        count = len(done)


async def test_the_loop_need_not_wake_itself(monkeypatch):
    caller, called = LoopCaller(), []
    caller.bind()
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", lambda *_args: called.append("a wake-up"))
    caller.call(lambda: called.append("a call"))
    assert called == []
    await asyncio.sleep(0)
    assert called == ["a call"]


async def test_what_a_thread_calls_together_wakes_the_loop_once_and_comes_in_order(monkeypatch):
    loop, calls, came = asyncio.get_running_loop(), [], []
    native = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args, **more: (calls.append(1), native(*args, **more))[1])
    caller, wake, future = LoopCaller(), Wake(), Future()
    caller.bind()
    await wake.wait(0)
    waiting = wrap_future(future)
    waiting.add_done_callback(lambda done: came.append(done.result()))

    def work():
        with together():
            caller.call(lambda: came.append("first"))
            caller.call(lambda: 1 / 0)
            with together():
                future.set_result("second")
            caller.call(lambda: came.append("third"))
            wake.set()
            assert calls == []

    failures = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    on_a_thread(work)
    assert calls == [1]
    await asyncio.wait_for(wake.wait(), LONG_S)
    await asyncio.sleep(0)
    assert came == ["first", "third", "second"], "a future tells its waiters a turn of the loop later"
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
    on_a_thread(lambda: caller.call(lambda: came.append("alone")))
    await asyncio.sleep(0.01)
    assert (came[-1], len(calls)) == ("alone", 2)


async def test_a_future_of_another_thread_gives_its_result_its_error_and_its_cancel_and_takes_one():
    future = Future()
    waiting = wrap_future(future)
    on_a_thread(lambda: future.set_result(1))
    assert await asyncio.wait_for(waiting, LONG_S) == 1
    assert await wrap_future(future) == 1
    failed = Future()
    on_a_thread(lambda: failed.set_exception(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        await wrap_future(failed)
    cancelled = Future()
    waiting = wrap_future(cancelled)
    on_a_thread(cancelled.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    left = Future()
    wrap_future(left).cancel()
    await asyncio.sleep(0)
    assert left.cancelled()


async def test_a_wait_ends_after_its_time_without_a_wake():
    await asyncio.wait_for(Wake().wait(0.01), LONG_S)


def test_a_wake_after_the_loop_has_closed_does_nothing():
    wake, caller = Wake(), LoopCaller()

    async def use():
        caller.bind()
        await wake.wait(0)

    asyncio.run(use())
    wake.set()
    caller.call(lambda: None)


async def test_a_call_from_another_thread_comes_on_the_loop():
    caller, threads, called = LoopCaller(), [], asyncio.Event()
    caller.call(called.set)  # not bound yet
    caller.bind()
    await asyncio.sleep(0)
    assert not called.is_set()
    on_a_thread(lambda: caller.call(lambda: (threads.append(threading.current_thread()), called.set())))
    await asyncio.wait_for(called.wait(), LONG_S)
    assert threads == [threading.current_thread()]


def test_a_listener_that_raises_is_logged_and_keeps_the_others_from_nothing(caplog):
    signal: Signal[[str]] = Signal()
    heard = []
    signal.subscribe(lambda word: 1 / 0)
    signal.subscribe(heard.append)
    signal("now")
    assert heard == ["now"]
    assert "a listener failed: " in caplog.text


def test_the_log_names_the_job_on_which_a_listener_failed(caplog):
    signal: Signal[[NewJob]] = Signal()
    signal.subscribe(lambda job: 1 / 0)
    job = new_job()
    signal(job)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"a listener failed on job {job.job_id}: ")
    assert record.job_id == job.job_id


@pytest.mark.parametrize("steps", range(4))
async def test_a_cancel_that_comes_together_with_a_wake_ends_the_task(steps):
    wake = Wake()

    async def work():
        while True:
            await wake.wait(LONG_S)

    working = asyncio.ensure_future(work())
    await asyncio.sleep(0.01)
    wake._event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    working.cancel()
    done, _working = await asyncio.wait({working}, timeout=1)
    working.cancel()
    assert done


@pytest.mark.parametrize("way", [on_a_thread, lambda function: function()], ids=["another thread", "this one"])
async def test_what_was_read_goes_as_soon_as_nobody_needs_it(way):
    """A list of megabytes in a circle would stay until Python's collector comes, which counts objects and not bytes."""

    class Read:
        pass

    def finish(ended):
        ended.set_result(Read())

    future = Future()
    waiting = wrap_future(future)
    way(partial(finish, future))
    gc.disable()
    try:
        known = weakref.ref(await waiting)
        del future, waiting
        await asyncio.sleep(0)
        assert known() is None
    finally:
        gc.enable()
