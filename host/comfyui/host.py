"""ComfyHost: the guard's `Host`, kept by patching four methods of ComfyUI's queue and server objects.

Only attributes of the instances are replaced (and one function of `comfy.model_management`, which all its callers
reach by attribute), each by a wrapper that passes every argument on: a wrapper with fixed arguments once killed every
worker when ComfyUI added a keyword (ComfyUI #10514).
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import nodes
import server

from ...guard.errors import GuardError
from ...guard.host import Folders, HostListener, Refusal, Rehearsal
from . import report
from .handler import NativePrompt
from .run import Run

log = logging.getLogger("guarded.host")

#: The extra input that makes an output node run again although everything about it is in ComfyUI's cache.
OWN_INPUT = "_guarded"

#: Set while the native handler runs for us: the queue items it tried to put.
_captured: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("guarded_captured", default=None)


class ComfyHost:
    """See :class:`guard.host.Host`, which says what each method does."""

    def __init__(self, prompt_server: Any) -> None:
        self._server = prompt_server
        self._queue = prompt_server.prompt_queue
        self._handler = NativePrompt(prompt_server)
        self._listener: HostListener
        #: The guard's jobs that ComfyUI has, queued or running.
        self._runs: dict[str, Run] = {}
        #: The prompt that each worker thread took last and has not given back.
        self._current: dict[int, str] = {}
        self._stops: set[str] = set()
        self._worker: threading.Thread | None = None
        self._replays_outputs: dict[type, bool] = {}

    def listen(self, listener: HostListener) -> None:
        self._listener = listener
        for name in ("put", "get", "task_done", "delete_queue_item", "wipe_queue"):
            self._wrap(self._queue, name)
        #: Past our own wrapper, which would hold it back again.
        self._send = self._server.send_sync
        self._wrap(self._server, "send_sync")
        self._wrap_interrupt_check()

    def _wrap(self, owner: Any, name: str) -> None:
        native = getattr(owner, name)
        ours = getattr(self, f"_{name}")
        setattr(owner, name, lambda *args, **kwargs: ours(native, *args, **kwargs))

    def _wrap_interrupt_check(self) -> None:
        native = comfy.model_management.throw_exception_if_processing_interrupted

        def throw_exception_if_processing_interrupted() -> None:
            if self._stops and self._executing() in self._stops:
                raise comfy.model_management.InterruptProcessingException()
            native()

        # Most callers go through the module; a few have imported the name.
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(native.__name__) is native:
                setattr(module, native.__name__, throw_exception_if_processing_interrupted)

    # What the core asks. -------------------------------------------------------------------------------------

    async def rehearse(self, body: dict[str, Any]) -> Rehearsal:
        item, refusal = await self._handled(body)
        if refusal is not None:
            return Rehearsal(refusal)
        return Rehearsal(None, tuple(item[4]))

    async def dispatch(self, job_id: str, client_id: str, body: dict[str, Any]) -> Refusal | None:
        self._own_outputs(job_id, body["prompt"])
        item, refusal = await self._handled(body)
        if refusal is not None:
            return refusal
        self._runs[job_id] = Run(job_id, client_id, len(body["prompt"]))
        self._queue.put(item)
        return None

    def stop(self, job_id: str) -> None:
        with self._queue.mutex:
            if job_id not in self._runs:
                return
            self._stops.add(job_id)
            waiting = any(item[1] == job_id for item in self._queue.queue)
        if waiting:
            # Its wrapper tells the listener; where the worker was faster, the stop above holds.
            self._queue.delete_queue_item(lambda item: item[1] == job_id)

    def announce(self, job_id: str, client_id: str | None, error: GuardError) -> None:
        run = self._runs.get(job_id)
        if run is not None:
            if run.announce_once():
                self._send(
                    *report.execution_error(run.job_id, error.code, error.message, error.extra_info), run.client_id
                )
        elif client_id is not None:
            # ComfyUI never ran it, so it says nothing; its clients wait for these two.
            self._send(*report.execution_error(job_id, error.code, error.message, error.extra_info), client_id)
            self._send("executing", {"node": None, "prompt_id": job_id}, client_id)

    def missing_classes(self, prompt: Mapping[str, Any]) -> list[str]:
        return sorted({node["class_type"] for node in prompt.values()} - set(nodes.NODE_CLASS_MAPPINGS))

    def worker_alive(self) -> bool:
        return self._worker is None or self._worker.is_alive()

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None:
        return report.resolved(kind, subfolder, filename)

    def folders(self) -> Folders:
        return report.folders()

    def own_directory(self) -> Path:
        return report.own_directory()

    def describe(self) -> dict[str, Any]:
        version = getattr(sys.modules.get("comfyui_version"), "__version__", "unknown")
        return {
            "name": getattr(server, "HOST_NAME", "ComfyUI"),
            "version": version,
            "system_user_directory": hasattr(folder_paths, "get_system_user_directory"),
        }

    # The wrappers. -------------------------------------------------------------------------------------------

    def _put(self, native: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        captured = _captured.get()
        if captured is None:
            return native(item, *args, **kwargs)
        captured.append(item)
        return None

    def _get(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, between two prompts."""
        self._worker = threading.current_thread()
        taken = native(*args, **kwargs)
        if taken is not None:
            job_id = taken[0][1]
            self._current[threading.get_ident()] = job_id
            if job_id in self._runs and not self._told("started", job_id, fallback=True):
                self._stops.add(job_id)
        return taken

    def _task_done(self, native: Any, item_id: Any, history_result: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, without the queue's lock: the verdict comes before its announcement."""
        with self._queue.mutex:
            item = self._queue.currently_running.get(item_id)
        run = self._runs.get(item[1]) if item is not None else None
        if run is not None:
            try:
                args, kwargs = self._settle(run, history_result, args, kwargs)
            except Exception:
                log.exception("job %s could not be settled", run.job_id)
        self._current.pop(threading.get_ident(), None)
        try:
            return native(item_id, history_result, *args, **kwargs)
        finally:
            if run is not None:
                self._let_go(run.job_id)

    def _delete_queue_item(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        return self._dropping(native, *args, **kwargs)

    def _wipe_queue(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        return self._dropping(native, *args, **kwargs)

    def _dropping(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell the listener of every job of its that this call takes out of the queue."""
        with self._queue.mutex:
            before = {item[1] for item in self._queue.queue if item[1] in self._runs}
            result = native(*args, **kwargs)
            gone = before.difference(item[1] for item in self._queue.queue)
        for job_id in gone:
            if job_id in self._runs:
                self._told("dropped", job_id)
                self._let_go(job_id)
        return result

    def _send_sync(self, native: Any, event: Any, data: Any, sid: Any = None, *args: Any, **kwargs: Any) -> Any:
        prompt_id = data.get("prompt_id") if isinstance(data, dict) else None
        run = self._runs.get(prompt_id) if isinstance(prompt_id, str) else None
        if run is not None:
            if run.holds(event, data):
                run.held.append((event, data, sid))
                return None
            if (progress := run.progress(event, data)) is not None:
                self._told("progressed", run.job_id, progress)
        return native(event, data, sid, *args, **kwargs)

    # Helpers. ------------------------------------------------------------------------------------------------

    async def _handled(self, body: dict[str, Any]) -> tuple[Any, Refusal | None]:
        """What ComfyUI's own handler makes of a body: the queue item it would put, or its refusal."""
        items: list[Any] = []
        token = _captured.set(items)
        try:
            refusal = await self._handler.call(body)
        finally:
            _captured.reset(token)
        if refusal is not None:
            return None, refusal
        if len(items) != 1 or items[0][1] != body["prompt_id"]:
            raise RuntimeError("ComfyUI's handler accepted the prompt but did not queue it")
        return items[0], None

    def _own_outputs(self, job_id: str, prompt: dict[str, Any]) -> None:
        """Make every output node of the job run, so that its files are its own; what is upstream stays cached."""
        for node in prompt.values():
            node_class = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
            if node_class is not None and getattr(node_class, "OUTPUT_NODE", False) is True:
                if node_class not in self._replays_outputs:
                    self._replays_outputs[node_class] = not report.takes_any_input(node_class, OWN_INPUT)
                if self._replays_outputs[node_class]:
                    node["inputs"][OWN_INPUT] = job_id

    def _executing(self) -> str | None:
        """The prompt on whose behalf this thread runs."""
        current = self._current.get(threading.get_ident())
        if current is not None:
            return current
        context = report.executing_prompt()
        if context is not None:
            return context
        # A thread that a node has started: it belongs to the only worker there is.
        running = list(self._current.values())
        return running[0] if len(running) == 1 else None

    def _settle(self, run: Run, history_result: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        status = report.find_status(args, kwargs)
        outcome = report.outcome(history_result, status, run)
        verdict = self._listener.finished(run.job_id, outcome)
        if verdict.code is None:
            for event, data, sid in run.held:
                self._send(event, data, sid)
            return args, kwargs
        report.empty(history_result)
        error = report.execution_error(run.job_id, verdict.code, verdict.message, verdict.details)
        own_errors = [held for held in run.held if held[0] == "execution_error"]
        if run.announce_once():
            for event, data, sid in own_errors or [(*error, run.client_id)]:
                self._send(event, data, sid)
        for event, data, sid in run.held:
            if event == "execution_interrupted":
                self._send(event, data, sid)
        return report.with_error(args, kwargs, status, error)

    def _let_go(self, job_id: str) -> None:
        with self._queue.mutex:
            self._runs.pop(job_id, None)
            self._stops.discard(job_id)
        self._told("released", job_id)

    def _told(self, callback: str, *args: Any, fallback: Any = None) -> Any:
        """A fault of ours must not kill ComfyUI's worker."""
        try:
            return getattr(self._listener, callback)(*args)
        except Exception:
            log.exception("the guard failed on %s%r", callback, args)
            return fallback
