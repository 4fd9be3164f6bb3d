"""ComfyHost: the guard's `Host`, kept by patching a few methods of ComfyUI's queue and server objects.

Only attributes of the instances are replaced (and one function of `comfy.model_management`, which all its callers
reach by attribute), each by a wrapper that passes every argument on: a wrapper with fixed arguments once killed every
worker when ComfyUI added a keyword (ComfyUI #10514).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import execution
import folder_paths
import nodes
import server
from comfy.cli_args import args

from ...guard.errors import GuardError
from ...guard.host import Backlog, Folders, HostListener, Names, Refusal, Rehearsal, SocketListener
from . import folders, inputs, report
from .handler import NativePrompt, native_get
from .merged import Merged
from .run import Run
from .sockets import Passing
from .worker import JobStopped, Workers

log = logging.getLogger("guarded.host")

#: The extra input that makes an output node run again although everything about it is in ComfyUI's cache.
OWN_INPUT = "_guarded"

_rehearsing: contextvars.ContextVar[bool] = contextvars.ContextVar("guarded_rehearsing", default=False)

#: Set while the native handler runs for us: the queue items it tried to put.
_captured: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("guarded_captured", default=None)


class ComfyHost:
    """See :class:`guard.host.Host`, which says what each method does."""

    def __init__(self, prompt_server: Any) -> None:
        self._server = prompt_server
        self._queue = prompt_server.prompt_queue
        self._handler = NativePrompt(prompt_server)
        self._file_inputs = inputs.FileInputs()
        self._listener: HostListener
        #: The guard's jobs that ComfyUI has, queued or running.
        self._runs: dict[str, Run] = {}
        self._stops: set[str] = set()
        #: Those of the stops that a check has raised once already.
        self._raised: set[str] = set()
        self._workers = Workers(prompt_server, self._stops.__contains__)
        self._replays_outputs: dict[type, bool] = {}
        self._passing = Passing(prompt_server)
        self._backlog: Backlog | None = None
        self._status_owed = False

    def listen(self, listener: HostListener) -> None:
        self._listener = listener
        self._native_task_done = self._queue.task_done
        for name in ("put", "get", "task_done"):
            self._wrap(self._queue, name)
        for name in ("delete_queue_item", "wipe_queue"):
            self._wrap(self._queue, name, self._dropping)
        #: Of ComfyUI's own items alone.
        self._delete_item = self._queue.delete_queue_item
        native = self._server.send_sync
        #: Past our own wrapper, which would hold it back again.
        self._send = lambda event, data, sid: self._passing.send(native, event, data, sid)
        self._wrap(self._server, "send_sync")
        self._wrap(self._server, "send", self._send_one)
        self._wrap_interrupt_check()
        inputs.offer_uploads()
        # ComfyUI's own line, once for a job: when it is dispatched.
        logging.getLogger().addFilter(lambda record: record.msg != "got prompt" or not _rehearsing.get())
        self._workers.install()

    def _wrap(self, owner: Any, name: str, ours: Any = None) -> None:
        native = getattr(owner, name)
        ours = ours or getattr(self, f"_{name}")
        setattr(owner, name, lambda *args, **kwargs: ours(native, *args, **kwargs))

    def _wrap_interrupt_check(self) -> None:
        native = comfy.model_management.throw_exception_if_processing_interrupted

        def throw_exception_if_processing_interrupted() -> None:
            self._workers.end_if_disowned()
            if self._stops and (prompt_id := self._workers.executing()) in self._stops:
                if prompt_id in self._raised:
                    raise JobStopped()  # somebody has swallowed the first one
                self._raised.add(prompt_id)
                raise comfy.model_management.InterruptProcessingException()
            native()

        # Most callers go through the module; a few have imported the name.
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(native.__name__) is native:
                setattr(module, native.__name__, throw_exception_if_processing_interrupted)

    # What the core asks. -------------------------------------------------------------------------------------

    async def rehearse(self, body: dict[str, Any]) -> Rehearsal:
        token = _rehearsing.set(True)
        try:
            item, refusal = await self._handled(body)
        finally:
            _rehearsing.reset(token)
        if refusal is not None:
            return Rehearsal(refusal)
        return Rehearsal(None, tuple(item[4]))

    async def dispatch(self, job_id: str, client_id: str, body: dict[str, Any]) -> Refusal | None:
        self._own_outputs(job_id, body["prompt"])
        item, refusal = await self._handled(body)
        if refusal is not None:
            return refusal
        with self._queue.mutex:
            there = (*self._queue.queue, *self._queue.currently_running.values())
            if any(other[1] == job_id for other in there):
                raise RuntimeError("a native prompt has the job's id")
            self._queue.put(item)
            self._runs[job_id] = Run(job_id, client_id, item[2], item[4])
        return None

    def stop(self, prompt_id: str) -> None:
        with self._queue.mutex:
            running = any(item[1] == prompt_id for item in self._queue.currently_running.values())
            if not running and prompt_id not in self._runs:
                return
            self._stops.add(prompt_id)
            waiting = any(item[1] == prompt_id for item in self._queue.queue)
        if waiting:
            # Its wrapper tells the listener; where the worker was faster, the stop above holds.
            self._delete_item(lambda item: item[1] == prompt_id)
        self._workers.cancel(prompt_id)

    def inject(self, prompt_id: str) -> bool:
        return self._workers.inject(prompt_id)

    def hung_workers(self) -> int:
        return self._workers.hung()

    def replace_worker(self, prompt_id: str | None, error: GuardError) -> bool:
        # Before there is another worker: what that one takes is no orphan.
        with self._queue.mutex:
            orphans = [
                (item_id, item)
                for item_id, item in self._queue.currently_running.items()
                if prompt_id is None or item[1] == prompt_id
            ]
        if not self._workers.replace(prompt_id):
            return False
        for item_id, item in orphans:
            self._close(item_id, item, error)
        return True

    def free_memory(self) -> None:
        self._queue.set_flag("unload_models", True)
        self._queue.set_flag("free_memory", True)

    def announce(self, job_id: str, client_id: str | None, error: GuardError) -> None:
        run = self._runs.get(job_id)
        if run is not None:
            if run.announce_once():
                self._send(
                    *report.execution_error(run.job_id, error.code, error.message, error.extra_info), run.client_id
                )
        elif self._backlog is not None:
            asyncio.run_coroutine_threadsafe(
                self._into_history(self._backlog, job_id, client_id, error), self._server.loop
            )
        elif client_id is not None:
            self._announce_unrun(job_id, client_id, error)

    def show_backlog(self, backlog: Backlog) -> None:
        self._backlog = backlog
        Merged(self._queue, backlog, report.item_fields(self._native_task_done)).install(self._wrap)

    def queue_changed(self) -> None:
        if not self._status_owed:
            self._status_owed = True
            self._server.loop.call_soon_threadsafe(self._tell_status)

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        client_id = getattr(self._server, "client_id", None)
        if client_id is not None:  # without one, everybody would be told
            self._server.send_sync("guarded.node", {"node_id": node_id, **facts}, client_id)

    def listen_sockets(self, listener: SocketListener) -> None:
        self._passing.listen(listener)

    def executing(self, sid: str) -> str | None:
        return self._passing.executing(sid)

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        return self._passing.negotiate(sid, flags)

    def socket_left(self, sid: str) -> None:
        self._passing.left(sid)

    def file_inputs(self, class_type: str) -> Mapping[str, Names]:
        return self._file_inputs.of(class_type)

    async def native(self, path: str, **match_info: str) -> bytes:
        return await native_get(self._server, path, match_info)

    def missing_classes(self, prompt: Mapping[str, Any]) -> list[str]:
        return sorted({node["class_type"] for node in prompt.values()} - set(nodes.NODE_CLASS_MAPPINGS))

    def worker_alive(self) -> bool:
        return self._workers.alive()

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None:
        return folders.resolved(kind, subfolder, filename)

    def folders(self) -> Folders:
        return folders.folders()

    def input_folder(self) -> Path:
        return Path(folder_paths.get_input_directory())

    def model_folders(self) -> list[Path]:
        # Packs that register the kind themselves name its folder; we want the one above.
        registered = folder_paths.folder_names_and_paths.get("insightface", ((), ()))[0]
        return list(dict.fromkeys([Path(folder_paths.models_dir), *(Path(folder).parent for folder in registered)]))

    def model_name(self, folder: str, file: str) -> str | None:
        return folders.model_name(folder, file)

    def video_memory(self) -> int | None:
        device = comfy.model_management.get_torch_device()
        # Elsewhere ComfyUI tells of the machine's RAM, or, for DirectML, of one made-up gigabyte.
        if device.type not in ("cuda", "xpu", "npu", "mlu"):
            return None
        return int(comfy.model_management.get_total_memory(device))

    def own_directory(self) -> Path:
        return folders.own_directory()

    def describe(self) -> dict[str, Any]:
        version = getattr(sys.modules.get("comfyui_version"), "__version__", "unknown")
        return {
            "name": getattr(server, "HOST_NAME", "ComfyUI"),
            "version": version,
            "listen": str(getattr(args, "listen", "127.0.0.1")).split(","),
            "port": getattr(args, "port", None),
            "system_user_directory": hasattr(folder_paths, "get_system_user_directory"),
            "replaceable_worker": hasattr(sys.modules["__main__"], "prompt_worker"),
            "jobs_api": hasattr(self._queue, "get_current_queue_volatile"),
            "interrupt_by_id": hasattr(self._queue, "interrupt_if_running"),
        }

    # The wrappers. -------------------------------------------------------------------------------------------

    def _put(self, native: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        captured = _captured.get()
        if captured is None:
            with self._queue.mutex:
                # Two prompts of one id would be taken for one another, and the guard's job be given the other's result.
                if item[1] in self._runs:
                    raise ValueError(f"prompt id {item[1]!r} is taken")
                return native(item, *args, **kwargs)
        captured.append(item)
        return None

    def _get(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, between two prompts."""
        self._workers.serves()
        try:
            taken = native(*args, **kwargs)
        except Exception:
            # A prompt that cannot even be copied or compared; natively it kills the worker, and it is gone either way.
            log.exception("ComfyUI's queue failed to hand out a prompt", extra={"quotes_prompt": True})
            self._tell_lost()
            return None
        if taken is not None:
            prompt_id = taken[0][1]
            self._workers.takes(prompt_id)
            if prompt_id not in self._runs:
                self._told("native_started", prompt_id)
            elif not self._told("started", prompt_id, fallback=True):
                self._stops.add(prompt_id)
        return taken

    def _task_done(self, native: Any, item_id: Any, history_result: Any, *args: Any, **kwargs: Any) -> Any:
        """The worker's thread, without the queue's lock: the verdict comes before its announcement."""
        self._workers.gives_back()
        with self._queue.mutex:
            item = self._queue.currently_running.get(item_id)
        run = self._runs.get(item[1]) if item is not None else None
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
                self._let_go(item[1])

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
        if self._workers.is_disowned():
            return None
        prompt_id = data.get("prompt_id") if isinstance(data, dict) else None
        run = self._runs.get(prompt_id) if isinstance(prompt_id, str) else None
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
            prompt_id = prompt_id or self._workers.executing()
            if prompt_id in self._runs:
                self._told("previewed", prompt_id, mime, encode)

    async def _send_one(self, native: Any, *args: Any, **kwargs: Any) -> None:
        """The loop that sends ComfyUI's events ends at the first one that is no JSON, and the server with it."""
        try:
            await native(*args, **kwargs)
        except Exception:
            log.exception("an event could not be sent")

    # Helpers. ------------------------------------------------------------------------------------------------

    async def _handled(self, body: dict[str, Any]) -> tuple[Any, Refusal | None]:
        """What ComfyUI's own handler makes of a body: the queue item it would put, or its refusal."""
        items: list[Any] = []
        token, named = _captured.set(items), inputs.naming(body["prompt"])
        try:
            refusal = await self._handler.call(body)
        finally:
            _captured.reset(token)
            inputs.done(named)
        if refusal is not None:
            return None, refusal
        if len(items) != 1 or items[0][1] != body["prompt_id"]:
            raise RuntimeError("ComfyUI's handler accepted the prompt but did not queue it")
        return items[0], None

    def _announce_unrun(self, job_id: str, client_id: str, error: GuardError) -> None:
        """ComfyUI never ran it, so it says nothing; its clients wait for these."""
        self._send(*report.execution_error(job_id, error.code, error.message, error.extra_info), client_id)
        self._server.queue_updated()
        self._send("executing", {"node": None, "prompt_id": job_id}, client_id)

    async def _into_history(self, backlog: Backlog, job_id: str, client_id: str | None, error: GuardError) -> None:
        """Its clients look there as soon as they have heard of the end."""
        entry = await asyncio.to_thread(backlog.history_entry, job_id)
        if entry is not None:
            with self._queue.mutex:
                history = self._queue.history
                history.setdefault(job_id, {**entry, "prompt": tuple(entry["prompt"])})
                # ComfyUI takes one out for each prompt that has run, and no more.
                while len(history) > getattr(execution, "MAXIMUM_HISTORY_SIZE", 10_000):
                    del history[next(iter(history))]
        if client_id is not None:
            self._announce_unrun(job_id, client_id, error)

    def _tell_status(self) -> None:
        """Event loop."""
        self._status_owed = False
        self._server.queue_updated()

    def _own_outputs(self, job_id: str, prompt: dict[str, Any]) -> None:
        """Make every output node of the job run, so that its files are its own; what is upstream stays cached."""
        for node in prompt.values():
            node_class = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
            if node_class is not None and getattr(node_class, "OUTPUT_NODE", False) is True:
                if node_class not in self._replays_outputs:
                    self._replays_outputs[node_class] = not report.takes_any_input(node_class, OWN_INPUT)
                if self._replays_outputs[node_class]:
                    node["inputs"][OWN_INPUT] = job_id

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

    def _close(self, item_id: Any, item: Any, error: GuardError) -> None:
        """End a prompt whose worker is gone as ComfyUI would have: history, error, and the last `executing`."""
        prompt_id = item[1]
        run = self._runs.get(prompt_id)
        client_id = run.client_id if run is not None else item[3].get("client_id")
        message = report.execution_error(prompt_id, error.code, error.message, error.extra_info)
        try:
            args, kwargs = report.ended(self._queue, self._native_task_done, message)
            self._native_task_done(item_id, {"outputs": {}, "meta": {}}, *args, **kwargs)
            if client_id is not None:
                if run is None or run.announce_once():
                    self._send(*message, client_id)
                self._send("executing", {"node": None, "prompt_id": prompt_id}, client_id)
        finally:
            self._let_go(prompt_id)

    def _tell_lost(self) -> None:
        """Tell of every job of ours that is neither waiting nor running any more."""
        with self._queue.mutex:
            there = {item[1] for item in (*self._queue.queue, *self._queue.currently_running.values())}
            lost = [job_id for job_id in self._runs if job_id not in there]
        for job_id in lost:
            self._told("lost", job_id)
            self._let_go(job_id)

    def _let_go(self, prompt_id: str) -> None:
        with self._queue.mutex:
            guarded = self._runs.pop(prompt_id, None) is not None
            self._stops.discard(prompt_id)
            self._raised.discard(prompt_id)
        self._told("released" if guarded else "native_finished", prompt_id)

    def _told(self, callback: str, *args: Any, fallback: Any = None) -> Any:
        """A fault of ours must not kill ComfyUI's worker."""
        try:
            return getattr(self._listener, callback)(*args)
        except Exception:
            # The first is the job's id; an outcome would have the whole prompt in it.
            log.exception("the guard failed on %s of %s", callback, args[0], extra={"job_id": args[0]})
            return fallback
