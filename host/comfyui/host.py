"""ComfyHost: the guard's `Host`, kept for ComfyUI. :mod:`.hooks` patches its queue and server."""

from __future__ import annotations

import asyncio
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
from .hooks import Hooks, capturing, rehearsing
from .merged import Merged
from .run import Run
from .sockets import Passing

log = logging.getLogger("guarded.host")

#: The extra input that makes an output node run again although everything about it is in ComfyUI's cache.
OWN_INPUT = "_guarded"


class ComfyHost:
    """See :class:`guard.host.Host`, which says what each method does."""

    def __init__(self, prompt_server: Any) -> None:
        self._server = prompt_server
        self._queue = prompt_server.prompt_queue
        self._handler = NativePrompt(prompt_server)
        self._file_inputs = inputs.FileInputs()
        self._replays_outputs: dict[type, bool] = {}
        self._passing = Passing(prompt_server)
        self._hooks = Hooks(prompt_server, self._passing)
        self._backlog: Backlog | None = None
        self._status_owed = False

    def listen(self, listener: HostListener) -> None:
        self._hooks.install(listener)

    # What the core asks. -------------------------------------------------------------------------------------

    async def rehearse(self, body: dict[str, Any]) -> Rehearsal:
        with rehearsing():
            item, refusal = await self._handled(body)
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
            self._hooks.runs[job_id] = Run(job_id, client_id, item[2], item[4])
        return None

    def stop(self, prompt_id: str) -> None:
        with self._queue.mutex:
            running = any(item[1] == prompt_id for item in self._queue.currently_running.values())
            if not running and prompt_id not in self._hooks.runs:
                return
            self._hooks.stops.add(prompt_id)
            waiting = any(item[1] == prompt_id for item in self._queue.queue)
        if waiting:
            # Its wrapper tells the listener; where the worker was faster, the stop above holds.
            self._hooks.delete_item(lambda item: item[1] == prompt_id)
        self._hooks.workers.cancel(prompt_id)

    def inject(self, prompt_id: str) -> bool:
        return self._hooks.workers.inject(prompt_id)

    def hung_workers(self) -> int:
        return self._hooks.workers.hung()

    def replace_worker(self, prompt_id: str | None, error: GuardError) -> bool:
        # Before there is another worker: what that one takes is no orphan.
        with self._queue.mutex:
            orphans = [
                (item_id, item)
                for item_id, item in self._queue.currently_running.items()
                if prompt_id is None or item[1] == prompt_id
            ]
        if not self._hooks.workers.replace(prompt_id):
            return False
        for item_id, item in orphans:
            self._hooks.close(item_id, item, error)
        return True

    def free_memory(self) -> None:
        self._queue.set_flag("unload_models", True)
        self._queue.set_flag("free_memory", True)

    def announce(self, job_id: str, client_id: str | None, error: GuardError) -> None:
        run = self._hooks.runs.get(job_id)
        if run is not None:
            if run.announce_once():
                self._hooks.send(
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
        Merged(self._queue, backlog, report.item_fields(self._hooks.native_task_done)).install(self._hooks.wrap)

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
        return self._hooks.workers.alive()

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

    # Helpers. ------------------------------------------------------------------------------------------------

    async def _handled(self, body: dict[str, Any]) -> tuple[Any, Refusal | None]:
        """What ComfyUI's own handler makes of a body: the queue item it would put, or its refusal."""
        named = inputs.naming(body["prompt"])
        try:
            with capturing() as items:
                refusal = await self._handler.call(body)
        finally:
            inputs.done(named)
        if refusal is not None:
            return None, refusal
        if len(items) != 1 or items[0][1] != body["prompt_id"]:
            raise RuntimeError("ComfyUI's handler accepted the prompt but did not queue it")
        return items[0], None

    def _announce_unrun(self, job_id: str, client_id: str, error: GuardError) -> None:
        """ComfyUI never ran it, so it says nothing; its clients wait for these."""
        self._hooks.send(*report.execution_error(job_id, error.code, error.message, error.extra_info), client_id)
        self._server.queue_updated()
        self._hooks.send("executing", {"node": None, "prompt_id": job_id}, client_id)

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
