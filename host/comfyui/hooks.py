"""The hooks: wrappers around a few methods of ComfyUI's queue and server, and the guard's jobs that pass through them.

Only attributes of the instances are replaced (and one function of `comfy.model_management`, which all its callers
reach by attribute), each by a wrapper that passes every argument on: a wrapper with fixed arguments once killed every
worker when ComfyUI added a keyword (ComfyUI #10514).
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
from collections.abc import Iterator
from typing import Any

import comfy.model_management

from ...guard.errors import GuardError
from ...guard.host import HostListener
from . import inputs, report
from .run import Run
from .sockets import Passing
from .worker import JobStopped, Workers

log = logging.getLogger("guarded.host")

_rehearsing: contextvars.ContextVar[bool] = contextvars.ContextVar("guarded_rehearsing", default=False)

#: Set while the native handler runs for us: the queue items it tried to put.
_captured: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("guarded_captured", default=None)


@contextlib.contextmanager
def rehearsing() -> Iterator[None]:
    """Keep ComfyUI's own line for a prompt out of the log: it comes once for a job, when it is dispatched."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


@contextlib.contextmanager
def capturing() -> Iterator[list[Any]]:
    """The items that ComfyUI's handler tries to queue meanwhile; none of them gets there."""
    items: list[Any] = []
    token = _captured.set(items)
    try:
        yield items
    finally:
        _captured.reset(token)


class Hooks:
    """The wrappers, and what they share with :class:`.host.ComfyHost`.

    Attributes:
        runs: the guard's jobs that ComfyUI has, queued or running, by id.
        stops: ids of prompts that are to be stopped.
        workers: ComfyUI's worker threads.
        delete_item: takes an item of ComfyUI's own out of its queue; the listener hears of it if it is a job of ours.
        native_task_done: ComfyUI's own, which our wrapper calls.
    """

    def __init__(self, prompt_server: Any, passing: Passing) -> None:
        self.runs: dict[str, Run] = {}
        self.stops: set[str] = set()
        self.workers = Workers(prompt_server, self.stops.__contains__)
        self._server = prompt_server
        self._queue = prompt_server.prompt_queue
        self._passing = passing
        self._listener: HostListener
        #: Those of the stops that a check has raised once already.
        self._raised: set[str] = set()

    def install(self, listener: HostListener) -> None:
        self._listener = listener
        self.native_task_done = self._queue.task_done
        for name in ("put", "get", "task_done"):
            self.wrap(self._queue, name, getattr(self, f"_{name}"))
        for name in ("delete_queue_item", "wipe_queue"):
            self.wrap(self._queue, name, self._dropping)
        self.delete_item = self._queue.delete_queue_item
        self._native_send = self._server.send_sync
        self.wrap(self._server, "send_sync", self._send_sync)
        self.wrap(self._server, "send", self._send_one)
        self._wrap_interrupt_check()
        inputs.offer_uploads()
        logging.getLogger().addFilter(lambda record: record.msg != "got prompt" or not _rehearsing.get())
        self.workers.install()

    def wrap(self, owner: Any, name: str, ours: Any) -> None:
        """Call `ours` in place of a method of ComfyUI's, with the native method before the arguments."""
        native = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: ours(native, *args, **kwargs))

    def send(self, event: Any, data: Any, sid: Any) -> None:
        """Send an event past our own wrapper, which would hold it back again."""
        self._passing.send(self._native_send, event, data, sid)

    def _wrap_interrupt_check(self) -> None:
        native = comfy.model_management.throw_exception_if_processing_interrupted

        def throw_exception_if_processing_interrupted() -> None:
            self.workers.end_if_disowned()
            if self.stops and (prompt_id := self.workers.executing()) in self.stops:
                if prompt_id in self._raised:
                    raise JobStopped()  # somebody has swallowed the first one
                self._raised.add(prompt_id)
                raise comfy.model_management.InterruptProcessingException()
            native()

        # Most callers go through the module; a few have imported the name.
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(native.__name__) is native:
                setattr(module, native.__name__, throw_exception_if_processing_interrupted)

    def close(self, item_id: Any, item: Any, error: GuardError) -> None:
        """End a prompt whose worker is gone as ComfyUI would have: history, error, and the last `executing`."""
        prompt_id = item[1]
        run = self.runs.get(prompt_id)
        client_id = run.client_id if run is not None else item[3].get("client_id")
        message = report.execution_error(prompt_id, error.code, error.message, error.extra_info)
        try:
            args, kwargs = report.ended(self._queue, self.native_task_done, message)
            self.native_task_done(item_id, {"outputs": {}, "meta": {}}, *args, **kwargs)
            if client_id is not None:
                if run is None or run.announce_once():
                    self.send(*message, client_id)
                self.send("executing", {"node": None, "prompt_id": prompt_id}, client_id)
        finally:
            self.let_go(prompt_id)

    def let_go(self, prompt_id: str) -> None:
        with self._queue.mutex:
            guarded = self.runs.pop(prompt_id, None) is not None
            self.stops.discard(prompt_id)
            self._raised.discard(prompt_id)
        self._told("released" if guarded else "native_finished", prompt_id)

    # The wrappers. -------------------------------------------------------------------------------------------

    def _put(self, native: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        captured = _captured.get()
        if captured is None:
            with self._queue.mutex:
                # Two prompts of one id would be taken for one another, and the guard's job be given the other's result.
                if item[1] in self.runs:
                    raise ValueError(f"prompt id {item[1]!r} is taken")
                return native(item, *args, **kwargs)
        captured.append(item)
        return None

    def _get(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, between two prompts."""
        self.workers.serves()
        try:
            taken = native(*args, **kwargs)
        except Exception:
            # A prompt that cannot even be copied or compared; natively it kills the worker, and it is gone either way.
            log.exception("ComfyUI's queue failed to hand out a prompt", extra={"quotes_prompt": True})
            self._tell_lost()
            return None
        if taken is not None:
            prompt_id = taken[0][1]
            self.workers.takes(prompt_id)
            if prompt_id not in self.runs:
                self._told("native_started", prompt_id)
            elif not self._told("started", prompt_id, fallback=True):
                self.stops.add(prompt_id)
        return taken

    def _task_done(self, native: Any, item_id: Any, history_result: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, without the queue's lock: the verdict comes before its announcement."""
        self.workers.gives_back()
        with self._queue.mutex:
            item = self._queue.currently_running.get(item_id)
        run = self.runs.get(item[1]) if item is not None else None
        if run is not None:
            try:
                args, kwargs = self._settle(run, history_result, args, kwargs)
            except Exception:
                log.exception("job %s could not be settled", run.job_id, extra={"job_id": run.job_id})
                self._told("unreadable", run.job_id)
        try:
            return native(item_id, history_result, *args, **kwargs)
        finally:
            if item is not None:
                self.let_go(item[1])

    def _dropping(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell the listener of every job of its that this call takes out of the queue."""
        with self._queue.mutex:
            before = {item[1] for item in self._queue.queue if item[1] in self.runs}
            result = native(*args, **kwargs)
            gone = before.difference(item[1] for item in self._queue.queue)
        for job_id in gone:
            if job_id in self.runs:
                self._told("dropped", job_id)
                self.let_go(job_id)
        return result

    def _send_sync(self, native: Any, event: Any, data: Any, sid: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.workers.is_disowned():
            return None
        prompt_id = data.get("prompt_id") if isinstance(data, dict) else None
        run = self.runs.get(prompt_id) if isinstance(prompt_id, str) else None
        if run is not None:
            if run.holds(event, data):
                run.held.append((event, data, sid))
                return None
            if (progress := run.progress(event, data)) is not None:
                self._told("progressed", run.job_id, progress)
        elif isinstance(event, int):
            self._tell_preview(event, data)
        return self._passing.send(native, event, data, sid, *args, **kwargs)

    def _tell_preview(self, event: int, data: Any) -> None:
        try:
            found = report.preview(event, data)
        except (TypeError, ValueError, AttributeError):
            return  # packs send pictures of their own kind under these numbers
        if found is not None:
            prompt_id, mime, encode = found
            prompt_id = prompt_id or self.workers.executing()
            if prompt_id in self.runs:
                self._told("previewed", prompt_id, mime, encode)

    async def _send_one(self, native: Any, *args: Any, **kwargs: Any) -> None:
        """The loop that sends ComfyUI's events ends at the first one that is no JSON, and the server with it."""
        try:
            await native(*args, **kwargs)
        except Exception:
            log.exception("an event could not be sent")

    # Helpers. ------------------------------------------------------------------------------------------------

    def _settle(self, run: Run, history_result: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        status = report.find_status(args, kwargs)
        outcome = report.outcome(history_result, status, run)
        verdict = self._listener.finished(run.job_id, outcome)
        if verdict.code is None:
            for event, data, sid in run.held:
                self.send(event, data, sid)
            return args, kwargs
        report.empty(history_result)
        error = report.execution_error(run.job_id, verdict.code, verdict.message, verdict.details)
        own_errors = [held for held in run.held if held[0] == "execution_error"]
        if run.announce_once():
            for event, data, sid in own_errors or [(*error, run.client_id)]:
                self.send(event, data, sid)
        for event, data, sid in run.held:
            if event == "execution_interrupted":
                self.send(event, data, sid)
        return report.with_error(args, kwargs, status, error)

    def _tell_lost(self) -> None:
        """Tell of every job of ours that is neither waiting nor running any more."""
        with self._queue.mutex:
            there = {item[1] for item in (*self._queue.queue, *self._queue.currently_running.values())}
            lost = [job_id for job_id in self.runs if job_id not in there]
        for job_id in lost:
            self._told("lost", job_id)
            self.let_go(job_id)

    def _told(self, callback: str, *args: Any, fallback: Any = None) -> Any:
        """A fault of ours must not kill ComfyUI's worker."""
        try:
            return getattr(self._listener, callback)(*args)
        except Exception:
            # The first is the job's id; an outcome would have the whole prompt in it.
            log.exception("the guard failed on %s of %s", callback, args[0], extra={"job_id": args[0]})
            return fallback
