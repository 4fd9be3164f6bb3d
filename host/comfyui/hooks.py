# Over 400 lines: all wrappers share the runs, under the one lock of ComfyUI's queue.
"""The patches of ComfyUI's queue and server objects, through which the guard sees and steers what ComfyUI does.

Only attributes of the two instances are replaced, and one function of `comfy.model_management`. (`handler` also wraps
the event loop's task factory, `worker` shields `PromptExecutor` and `inputs` one function of ComfyUI's graph code.)
"""

from __future__ import annotations

import contextvars
import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

import comfy.model_management

from ...guard.errors import CancelledError, GuardError, PolicyViolationError, WorkerDiedError
from ...guard.events.lines import Message
from ...guard.host import HostListener, Supplier
from . import named, reading, report, results
from .bell import Bell
from .cameras import watch_cameras
from .confine import Confinement
from .declarations import find_masks
from .ends import Ends, note_acting
from .meter import Meter, watch_loading
from .patching import Native, replace_function, wrap_method
from .programs import end_programs, watch_programs
from .report import QueueItem
from .run import ENDS, Run
from .sockets import SocketRelay
from .stops import Stops
from .tripwire import SEES, Tripwire
from .worker import Workers

log = logging.getLogger("guarded.host")

P = ParamSpec("P")
T = TypeVar("T")

#: The number of a job that is put in front of all that waits, until the worker has taken it.
FIRST = -(2**53)

#: Set while ComfyUI's own handler runs for us: the queue items that it tried to put.
_captured: contextvars.ContextVar[list[QueueItem] | None] = contextvars.ContextVar("guarded_captured", default=None)


class Hooks:
    """Wrap ComfyUI's methods, keep the guard's jobs that ComfyUI has, and tell the listener what becomes of them.

    The jobs change only under ComfyUI's own `prompt_queue.mutex`, which is reentrant.
    """

    def __init__(self, prompt_server: Any, workers: Workers, stops: Stops, relay: SocketRelay) -> None:
        """`prompt_server` is ComfyUI's own, untyped object."""
        self._server = prompt_server
        self._queue = prompt_server.prompt_queue
        self._workers = workers
        self._stops = stops
        self._relay = relay
        #: The guard's jobs that ComfyUI has, queued or running.
        self._runs: dict[str, Run] = {}
        #: The jobs on their way into the queue, and whether their clients have been told meanwhile that they ended.
        self._coming: dict[str, bool] = {}
        #: Those that no list of ComfyUI's shows.
        self._hidden: set[str] = set()
        #: Where its node code may save, by job.
        self.confinement = Confinement(workers, lambda job_id: self._runs.get(job_id))
        self._tripwire = Tripwire(self.confinement)
        self._ends = Ends(self._queue, self.send, self._forget)
        #: The last `executing` of a job, while ComfyUI's worker has yet to send it.
        self._last: Message | None = None
        #: The worker has let go of a prompt, or was called, and has not asked for the next one.
        self.is_between = False
        #: One prompt is being deleted from the queue. Under its lock.
        self.is_deleting = False
        self._bell = Bell(self._queue)
        #: The prompt that the worker has let go of last, until it asks for the next one.
        self._done: str | None = None
        self._listener: HostListener
        self._supplier: Supplier
        self._native_task_done: Native
        self._native_send_sync: Native
        self._delete_item: Native

    def install(self, listener: HostListener, supplier: Supplier) -> None:
        """Patch. The main thread, once, before the worker starts."""
        self._listener, self._supplier = listener, supplier
        self._native_task_done = self._queue.task_done
        self._queue.not_empty = self._bell
        wrap_method(self._queue, "put", self._put)
        wrap_method(self._queue, "get", self._get)
        wrap_method(self._queue, "task_done", self._task_done)
        wrap_method(self._queue, "get_current_queue", self._get_queue)
        if hasattr(self._queue, "get_current_queue_volatile"):
            wrap_method(self._queue, "get_current_queue_volatile", self._get_queue)
        wrap_method(self._queue, "get_tasks_remaining", self._get_tasks_remaining)
        wrap_method(self._queue, "get_flags", self._get_flags)
        wrap_method(self._queue, "delete_queue_item", self._delete_queue_item)
        wrap_method(self._queue, "wipe_queue", self._report_removals)
        # Before the backlog's jobs show up in the queue: this one deletes only what ComfyUI has.
        self._delete_item = self._queue.delete_queue_item
        self._server.app.middlewares.append(note_acting)
        self._native_send_sync = self._server.send_sync
        wrap_method(self._server, "send_sync", self._send_sync)
        wrap_method(self._server, "send", self._send)
        self._relay.note_wrappers()
        self._wrap_interrupt_check()
        self._wrap_interrupt()
        self.confinement.install()
        watch_loading(self._find_meter)
        watch_programs(self.confinement.find_run)
        watch_cameras(partial(self._tripwire.forbid, SEES))

    def _find_meter(self) -> Meter | None:
        """That of the run on whose behalf this thread works. Any thread."""
        prompt_id = self._workers.find_executing()
        run = self._runs.get(prompt_id) if prompt_id is not None else None
        return run.meter if run is not None else None

    def _wrap_interrupt_check(self) -> None:
        native: Native = comfy.model_management.throw_exception_if_processing_interrupted

        def throw_exception_if_processing_interrupted() -> None:
            self._workers.end_if_disowned()
            if self._stops:
                self._stops.check(self._workers.find_executing())
            native()

        replace_function(native, throw_exception_if_processing_interrupted)

    def _wrap_interrupt(self) -> None:
        """Lose no interrupt: ComfyUI takes the flag back where a run begins, but shows a prompt as running before, as
        soon as the worker has it.
        """
        native: Native = comfy.model_management.interrupt_current_processing

        def interrupt_current_processing(value: bool = True, *args: Any, **kwargs: Any) -> Any:
            result = native(value, *args, **kwargs)
            if not value:
                self._workers.note_begun()
                return result
            with self._queue.mutex:
                running = [item[1] for item in self._queue.currently_running.values()]
            for prompt_id in running:
                if not self._workers.has_begun(prompt_id):
                    self._stops.ask(prompt_id)
            return result

        replace_function(native, interrupt_current_processing)

    # What the host does with ComfyUI's queue and sockets. ----------------------------------------------------

    @contextmanager
    def capture(self) -> Iterator[list[QueueItem]]:
        """Catch in a list what this task puts into the queue, instead of queueing it."""
        items: list[QueueItem] = []
        token = _captured.set(items)
        try:
            yield items
        finally:
            _captured.reset(token)

    @contextmanager
    def expect(self, job_id: str) -> Iterator[None]:
        """The job is on its way into the queue. Event loop."""
        with self._queue.mutex:
            self._coming[job_id] = False
        try:
            yield
        finally:
            with self._queue.mutex:
                self._coming.pop(job_id, None)

    def queue_job(
        self, item: QueueItem, client_id: str, folder: str, first: bool = False, hidden: bool = False
    ) -> None:
        """Queue a job of the guard, behind all that waits or, with `first`, in front of it. Any thread.

        Its files go to `folder` below ComfyUI's roots. No list of ComfyUI's shows one that is `hidden`.

        Raises RuntimeError where ComfyUI has a prompt of that id, and CancelledError where the job has ended meanwhile.
        """
        job_id = item[1]
        with self._queue.mutex:
            if self._coming.get(job_id):
                raise CancelledError("The job ended on its way to ComfyUI.")
            if any(other[1] == job_id for other in (*self._queue.queue, *self._queue.currently_running.values())):
                raise RuntimeError("a native prompt has the job's id")
            queued_item = (FIRST, *item[1:]) if first else item
            if hidden:
                self._hidden.add(job_id)
            try:
                self._queue.put(queued_item)
            except BaseException:
                # `put` also tells the sockets, and a pack may raise there. What is queued would run without us.
                if not any(queued is queued_item for queued in self._queue.queue):
                    self._hidden.discard(job_id)
                    raise
                log.exception("what follows the queueing of job %s failed", job_id, extra={"job_id": job_id})
                self._queue.not_empty.notify()  # that has not come either
            reads, gives = partial(self._listener.reads, job_id), partial(self._listener.gives, job_id)
            self._runs[job_id] = Run(job_id, client_id, item, folder, hidden, reads, gives)

    def find_run(self, job_id: str) -> Run | None:
        """The job of that id, while ComfyUI has it and its run is not over. Any thread."""
        return None if job_id in self._ends else self._runs.get(job_id)

    def announce(self, job_id: str, error: GuardError) -> bool:
        """Tell a job's error, and the end of its run if that is over. False: ComfyUI never will have a run.

        Any thread.
        """
        if self._ends.close_early(job_id, error):
            return True
        with self._queue.mutex:
            run = self._runs.get(job_id)
            if run is None and job_id in self._coming:
                self._coming[job_id] = True
        if run is None:
            return False
        with run.in_order():
            with self._queue.mutex:
                if self._runs.get(job_id) is not run:
                    return False
                is_first = job_id not in self._ends and run.claim_announcement()
            # Not under the queue's lock: a pack's own `send_sync` below ours may block.
            if is_first:
                message = report.make_execution_error(job_id, error.code, error.message, error.extra_info)
                self.send_in_order(*message, run.client_id)
        self._ends.close_early(job_id, error)  # it may have ended since we asked
        return True

    def list_held(self) -> frozenset[str]:
        """List the ids of all prompts that wait, run or are being ended, or that a worker has taken. Any thread."""
        with self._queue.mutex:
            items = [*self._queue.queue, *self._queue.currently_running.values()]
            # Packs have emptied both by themselves; what the worker runs, it has all the same.
            ids = [*(item[1] for item in items if len(item) > 1), *self._workers.list_taken(), *self._ends.list_ids()]
        return frozenset(prompt_id for prompt_id in ids if isinstance(prompt_id, str))

    def end_programs(self, job_id: str) -> bool:
        """End what a job's nodes have started; False: nothing is left of it. Any thread."""
        run = self._runs.get(job_id)
        return run is not None and end_programs(run)

    def forget(self, job_id: str) -> None:
        """Keep nothing of a job that ComfyUI no longer has. Any thread."""
        if job_id not in self.list_held():
            self._drop(job_id)

    def delete(self, prompt_id: str) -> None:
        """Take a prompt of ComfyUI's own out of the queue, if it still waits. Any thread."""
        self._delete_item(lambda item: item[1] == prompt_id)

    def send(self, event: Any, data: Any, sid: Any) -> None:
        """Send an event at once, past our own wrapper, which could withhold it. Any thread."""
        self._relay.send(self._native_send_sync, event, data, sid)

    def send_in_order(self, event: Any, data: Any, sid: Any) -> None:
        """Send an event as soon as every end of a job before it has been told to that client. Any thread."""
        if not self._ends.put_off((event, data, sid)):
            self.send(event, data, sid)

    def list_orphans(self, prompt_id: str | None) -> list[tuple[Any, QueueItem]]:
        """List what the worker with `prompt_id` (None: any) has, by ComfyUI's numbers for it. Any thread."""
        with self._queue.mutex:
            return [
                (item_id, item)
                for item_id, item in self._queue.currently_running.items()
                if prompt_id is None or item[1] == prompt_id
            ]

    def close(self, item_id: Any, item: QueueItem, error: GuardError) -> None:
        """End a prompt whose worker is gone as ComfyUI would have: history, error, and the last `executing`.

        The end of a job of the guard's is told once it is durable. Any thread; does not wait.
        """
        prompt_id, native = item[1], self._native_task_done
        run = self._runs.get(prompt_id)
        client_id = run.client_id if run is not None else item[3].get("client_id")
        last = ("executing", {"node": None, "prompt_id": prompt_id}, client_id)
        if run is not None:
            end_programs(run)
            arguments = report.make_end_arguments(self._queue, native, [])
            end = self._ends.let_go(run, item_id, {"outputs": {}, "meta": {}}, native, (), arguments)
            self.send_in_order(*last)
            spent = run.meter.stop(run.prompt)
            self._tell(self._listener.left_behind, prompt_id, error, partial(self._ends.close, end), spent)
            return
        message = report.make_execution_error(prompt_id, error.code, error.message, error.extra_info)
        try:
            if item_id in self._queue.currently_running:  # else a pack has taken it out
                arguments = report.make_end_arguments(self._queue, native, [message])
                native(item_id, {"outputs": {}, "meta": {}}, **arguments)
            if client_id is not None:
                self.send_in_order(*message, client_id)
                self.send_in_order(*last)
        finally:
            self._release_native(prompt_id)

    def call_worker(self) -> bool:
        """Have a worker that waits for a prompt ask the supplier for the next job. False: none waits.

        Any thread; does not wait where others hold the queue's lock.
        """
        if not self._queue.mutex.acquire(blocking=False):
            return False
        try:
            if not self._bell.ring():
                return False
            self.is_between = True
            return True
        finally:
            self._queue.mutex.release()

    def count_item_fields(self) -> int:
        """How many fields an item of this ComfyUI's queue has."""
        return report.count_item_fields(self._native_task_done)

    # The wrappers of the queue's methods. --------------------------------------------------------------------

    def _put(self, native: Native, item: QueueItem, *args: Any, **kwargs: Any) -> Any:
        """Event loop, or the thread of a pack that queues prompts itself."""
        captured = _captured.get()
        if captured is not None:
            captured.append(item)
            return None
        run = self.confinement.find_run()
        if run is not None:
            # Its own prompt was let in. Nobody has looked at this one, which would run as nobody's.
            if run.folder:
                run.trespass = run.trespass or "queue a prompt"
            run.refusal = run.refusal or PolicyViolationError(
                "A node put another prompt into ComfyUI's queue, past the guard; no job may do that."
            )
            raise PermissionError("A job may not do this on this server.")
        with self._queue.mutex:
            # ComfyUI would mix up two prompts of one id, and the guard's job would get the other's result.
            if item[1] in self._runs:
                raise ValueError(f"prompt id {item[1]!r} is taken")
            return native(item, *args, **kwargs)

    def _get(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, between two prompts."""
        self._workers.begin_turn()
        self._end_turn_before()
        self._ask_for_next()
        with self._queue.mutex:
            before = set(self._queue.currently_running)
        try:
            taken = native(*args, **kwargs)
        except Exception:
            # A prompt that cannot be copied or compared. It would kill the worker, and is gone from the queue anyway.
            log.exception("ComfyUI's queue failed to hand out a prompt", extra={"quotes_prompt": True})
            taken = self._find_taken(before)
            if taken is None:
                self._report_lost()
        if taken is None:
            self._workers.go_away()
        else:
            prompt_id = taken[0][1]
            self._workers.take(prompt_id)
            if self.is_between:  # it was called, but a prompt of ComfyUI's own was faster
                self.is_between = False
                self._tell(self._supplier.go_on)
            if taken[0][0] == FIRST:
                taken = self._show_number(*taken)
            if (run := self._runs.get(prompt_id)) is not None:
                self._begin(run)
            else:
                self._tell(self._listener.native_started, prompt_id)
        return taken

    def _begin(self, run: Run) -> None:
        """Look at what the run will read, while the watchdog watches it already: that may take long."""
        self.confinement.begin(run)
        self._tripwire.begin(run)
        results.begin(run)
        may_run = self._tell(self._listener.started, run.job_id) is not False
        run.meter.begin()
        if may_run:
            reading.check_named(run, lambda: run.job_id in self._stops)
        if not may_run or run.refusal is not None:
            self._stops.ask(run.job_id)

    def _ask_for_next(self) -> None:
        """Have the next job put into the queue, where nothing else waits there."""
        with self._queue.mutex:
            is_empty = not self._queue.queue
        if is_empty:
            self._tell(self._supplier.begin_next)
        self.is_between, self._done = False, None
        self._tell(self._supplier.go_on)

    def _show_number(self, item: QueueItem, item_id: Any) -> tuple[QueueItem, Any]:
        """Give an item that was put in front the number that everybody may see."""
        run = self._runs.get(item[1])
        number = run.item[0] if run is not None else item[0]
        with self._queue.mutex:
            running = self._queue.currently_running
            if item_id in running:
                running[item_id] = (number, *running[item_id][1:])
        return (number, *item[1:]), item_id

    def _find_taken(self, before: set[Any]) -> tuple[QueueItem, Any] | None:
        """Find what `get` has taken all the same: it tells the sockets last, and a pack may raise there."""
        with self._queue.mutex:
            running = self._queue.currently_running
            return next(((copy.deepcopy(running[item_id]), item_id) for item_id in running.keys() - before), None)

    def _end_turn_before(self) -> None:
        """Make up for what a worker has left out before it asks for the next prompt: packs wrap `get` and `task_done`.

        The worker's thread; the one before may have died.
        """
        prompt_id = self._workers.give_back()
        if prompt_id is not None and (run := self.find_run(prompt_id)) is not None:
            log.error("a pack has lost job %s on its way to or from the worker", prompt_id, extra={"job_id": prompt_id})
            error = WorkerDiedError("ComfyUI's worker went on without handing the job back.")
            self.close(*(*self.list_orphans(prompt_id), (None, run.item))[0], error)
        last, self._last = self._last, None
        if last is not None:
            self.send_in_order(*last)

    def _task_done(self, native: Native, item_id: Any, history_result: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, without the queue's lock: ComfyUI's own `task_done` comes with the verdict."""
        taken = self._workers.give_back()
        self.is_between = True
        with self._queue.mutex:
            item = self._queue.currently_running.get(item_id)
        self._done = prompt_id = item[1] if item is not None else taken
        run = self._runs.get(prompt_id) if prompt_id is not None else None
        try:
            if run is not None:
                run.is_over = True
                # An operator's node may start what is to stay.
                if run.programs and (run.folder or run.job_id in self._stops):
                    end_programs(run)
                self._end(run, native, item_id, history_result, args, kwargs)
                return None
            if item is None:
                log.error("a pack has taken %s out of ComfyUI's queue while it ran; it gets no history", prompt_id)
                return None  # ComfyUI would raise, and lose its worker by that
            return self._end_native(prompt_id, native, item_id, history_result, args, kwargs)
        finally:
            if prompt_id is not None and run is None:
                self._release_native(prompt_id)
            self._workers.go_away()

    def _end_native(
        self,
        prompt_id: Any,
        native: Native,
        item_id: Any,
        history_result: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A prompt of ComfyUI's own, too, must not keep everybody from reading the history."""
        plain = report.make_plain(history_result, args, kwargs)
        report.warn(prompt_id, plain.odd)
        return native(item_id, plain.history, *plain.args, **plain.kwargs)

    def _end(
        self,
        run: Run,
        native: Native,
        item_id: Any,
        history_result: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Have the listener judge the run; the worker goes on meanwhile."""
        spent = run.meter.stop(run.prompt)
        plain = report.make_plain(history_result, args, kwargs)
        report.empty_outputs(history_result)  # ComfyUI's worker reads it again, and registers what it names
        report.warn(run.job_id, plain.odd)
        end = self._ends.let_go(run, item_id, plain.history, native, plain.args, plain.kwargs)
        close = partial(self._ends.close, end)
        try:
            status = report.find_status(plain.args, plain.kwargs)
            outputs = results.locate(run, report.find_outputs(end.history))
            outcome = report.read_outcome(outputs, status, run.prompt, partial(results.is_made, run))
            known = [file.path for file in (*outcome.files, *outcome.byproducts)]
            files = (*outcome.files, *named.find_named(run, outputs, known))
            masks = find_masks(run.prompt, {file.node_id for file in files})
            outcome = replace(
                outcome, files=files, masks=masks, trespass=run.trespass, refusal=run.refusal, spent=spent
            )
            end.history = report.put_outputs(end.history, outputs)
            results.warn(run, outcome)
            self._listener.finished(run.job_id, outcome, close)
        except Exception:
            log.exception("job %s could not be settled", run.job_id, extra={"job_id": run.job_id})
            self._tell(self._listener.unreadable, run.job_id, close, spent)
        self._last = ("executing", {"node": None, "prompt_id": run.job_id}, run.client_id)

    def _get_queue(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        running, pending = native(*args, **kwargs)
        running = [*self._ends.list_items(), *running]
        if self._hidden:
            running, pending = ([item for item in items if item[1] not in self._hidden] for items in (running, pending))
        return running, pending

    def _get_tasks_remaining(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        return max(native(*args, **kwargs) + len(self._ends.list_ids()) - len(self._hidden), 0)

    def _get_flags(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, before it does what the flags say."""
        flags = native(*args, **kwargs)
        if flags and (flags.get("unload_models") or flags.get("free_memory")):
            self._tell(self._listener.memory_freed, self._done)
        return flags

    def _delete_queue_item(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        """Any thread."""

        def delete(*args: Any, **kwargs: Any) -> Any:
            self.is_deleting = True
            try:
                return native(*args, **kwargs)
            finally:
                self.is_deleting = False

        return self._report_removals(delete, *args, **kwargs)

    def _report_removals(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        """Tell the listener of every job of the guard that this call takes out of the queue. Any thread."""
        with self._queue.mutex:
            before = {item[1] for item in self._queue.queue if item[1] in self._runs}
            result = native(*args, **kwargs)
            removed = before.difference(item[1] for item in self._queue.queue)
        for job_id in removed:
            if job_id in self._runs:
                self._give_up(self._listener.dropped, job_id)
        return result

    # The wrappers of the server's methods. -------------------------------------------------------------------

    def _send_sync(self, native: Native, event: Any, data: Any, sid: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Any thread, most often the worker's. Withholds what tells how a job ended until its verdict is there."""
        if self._workers.is_disowned():
            return None
        prompt_id = data.get("prompt_id") if isinstance(data, dict) else None
        run = self._runs.get(prompt_id) if isinstance(prompt_id, str) else None
        if run is not None:
            if event == "executing":
                run.meter.enter(data)
            if event == "executed":
                data = report.fit_executed(data, partial(results.locate, run))
            elif event in ENDS:
                data = report.shorten_end(data)
            if run.must_withhold(event, data) or (event == "executed" and named.names_any(run, data.get("output"))):
                run.withhold((event, data, sid))
                return None
            if event == "executing" and data.get("node") is None and not run.is_over:
                return None  # a pack's: the run is not over, and the last one comes when it is
            if (progress := run.read_progress(event, data)) is not None:
                self._tell(self._listener.progressed, run.job_id, progress)
            with run.in_order():
                if run.is_announced and not run.is_over:
                    return None  # it was cancelled just when the worker took it, and its client knows how it ended
                return self._pass_on(native, event, data, sid, *args, **kwargs)
        if isinstance(event, int):
            self._report_preview(event, data)
        return self._pass_on(native, event, data, sid, *args, **kwargs)

    def _pass_on(self, native: Native, event: Any, data: Any, sid: Any, *args: Any, **kwargs: Any) -> Any:
        if (event, data, sid) == self._last:
            self._last = None
        if self._ends.put_off((event, data, sid)):
            return None
        return self._relay.send(native, event, data, sid, *args, **kwargs)

    async def _send(self, native: Native, *args: Any, **kwargs: Any) -> None:
        """Event loop. ComfyUI's publish loop ends at the first event that is no JSON, and the server with it."""
        try:
            await native(*args, **kwargs)
        except Exception:
            log.exception("an event could not be sent")

    # What the listener hears. --------------------------------------------------------------------------------

    def _report_preview(self, event: int, data: Any) -> None:
        try:
            preview = report.read_preview(event, data)
        except (TypeError, ValueError, AttributeError):
            return  # packs send pictures of their own kind under these numbers
        if preview is not None:
            prompt_id, mime, encode = preview
            prompt_id = prompt_id or self._workers.find_executing()
            if prompt_id is not None and prompt_id in self._runs:
                self._tell(self._listener.previewed, prompt_id, mime, encode)

    def _report_lost(self) -> None:
        """Tell of every job of the guard that neither waits nor runs any more."""
        with self._queue.mutex:
            known = {item[1] for item in (*self._queue.queue, *self._queue.currently_running.values())}
            lost = [job_id for job_id in self._runs if job_id not in known and job_id not in self._ends]
        for job_id in lost:
            self._give_up(self._listener.lost, job_id)

    def _give_up(self, callback: Callable[[str], object], job_id: str) -> None:
        """Tell the listener by `callback` that ComfyUI has lost the job, and that its slot is free."""
        self._tell(callback, job_id)
        self._drop(job_id)
        self._tell(self._listener.released, job_id)

    def _drop(self, job_id: str) -> None:
        """Keep nothing of a job that no worker will hand back. Any thread."""
        run = self._forget(job_id)
        if run is not None and run.is_announced:
            self.send_in_order("executing", {"node": None, "prompt_id": job_id}, run.client_id)

    def _forget(self, prompt_id: str) -> Run | None:
        """ComfyUI no longer has the prompt; gives its run, if it is a job of the guard's."""
        with self._queue.mutex:
            self._stops.forget(prompt_id)
            self._hidden.discard(prompt_id)
            return self._runs.pop(prompt_id, None)

    def _release_native(self, prompt_id: str) -> None:
        """ComfyUI no longer has a prompt of its own."""
        self._forget(prompt_id)
        self._tell(self._listener.native_finished, prompt_id)

    def _tell(self, callback: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call the listener; None where it fails, since a fault of ours must not kill ComfyUI's worker."""
        try:
            return callback(*args, **kwargs)
        except Exception:
            # The first argument is the job's id; an outcome would have the whole prompt in it.
            name = getattr(callback, "__name__", callback)
            job_id = args[0] if args else None
            log.exception("the guard failed on %s of %s", name, job_id, extra={"job_id": job_id})
            return None
