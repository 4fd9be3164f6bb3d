"""ComfyHost: the guard's `Host`, kept by a running ComfyUI."""

from __future__ import annotations

import contextvars
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import nodes
import server
from comfy.cli_args import args

from ...guard.errors import GuardError
from ...guard.graph import Declared, Names
from ...guard.host import Backlog, Folders, HostListener, Refusal, Rehearsal, SocketListener, Supplier
from ...guard.journal import LINE_CHARS, Throttle
from ...guard.life.contain import EscapedError, OverdueError
from ...guard.weight import ModelWeight
from . import blame, declarations, folders, inputs, report, weights
from .backlog_view import BacklogView
from .handler import FAILED, NativePrompt, call_native_get
from .hooks import Hooks
from .kept import Kept
from .known import Known
from .outputs import Outputs
from .report import QueueItem
from .sockets import SocketRelay
from .stops import Stops
from .worker import Workers

log = logging.getLogger("guarded.host")

_dispatching: contextvars.ContextVar[bool] = contextvars.ContextVar("guarded_dispatching", default=False)
#: What is logged while a prompt is rehearsed: whoever sends bad ones again and again must not fill the log.
_held: contextvars.ContextVar[list[logging.LogRecord] | None] = contextvars.ContextVar("guarded_held", default=None)
_HELD_LINES = 100


def _lets_through(record: logging.LogRecord) -> bool:
    # ComfyUI logs this line for every prompt that its handler takes. Once for a job is enough: at its admission.
    if record.msg == "got prompt":
        return not _dispatching.get()
    if (held := _held.get()) is None:
        return True
    if len(held) < _HELD_LINES:
        held.append(record)
    return False


class ComfyHost:
    """See :class:`guard.host.Host`, which says what each method does, and on which thread."""

    def __init__(self, prompt_server: Any) -> None:
        """`prompt_server` is ComfyUI's own, untyped object."""
        self._server = prompt_server
        self._queue = prompt_server.prompt_queue
        self._handler = NativePrompt(prompt_server)
        self._file_inputs = inputs.FileInputs()
        self._declarations = declarations.Declarations()
        self._kept = Kept(self._file_inputs.find)
        self._known = Known(prompt_server)
        self._stops = Stops()
        self._workers = Workers(prompt_server, self._stops)
        self._relay = SocketRelay(prompt_server)
        self._hooks = Hooks(prompt_server, self._workers, self._stops, self._relay)
        self._outputs = Outputs(self._hooks.confinement.find_run)
        self._view: BacklogView | None = None
        self._owes_status = False
        self._refusals = Throttle()

    def listen(self, listener: HostListener, supplier: Supplier) -> None:
        self._hooks.install(listener, supplier)
        self._handler.install()
        self._outputs.install()
        inputs.offer_uploads()
        blame.blame_one_input()
        logging.getLogger().addFilter(_lets_through)
        self._workers.install()

    # Prompts on their way in. --------------------------------------------------------------------------------

    async def rehearse(self, body: dict[str, Any], timeout_s: float) -> Rehearsal:
        first = self._server.number
        held: list[logging.LogRecord] = []
        holding = _held.set(held)
        try:
            answer = await self._call_handler(body, timeout_s)
        except (EscapedError, OverdueError) as error:
            answer = Refusal("exception_during_validation", FAILED, str(error), {}, {})
        finally:
            _held.reset(holding)
        self._log(held, is_refused=isinstance(answer, Refusal))
        if isinstance(answer, Refusal):
            return Rehearsal(answer)
        # A pack that gives prompts numbers of its own decides anew at the dispatch.
        is_in_turn = first <= answer[0] < self._server.number
        return Rehearsal(None, tuple(answer[4]), answer if is_in_turn else None)

    def _log(self, held: list[logging.LogRecord], *, is_refused: bool) -> None:
        """Log what was held back, of refusals once a second."""
        if held and (not is_refused or self._refusals.take("rehearsal") is not None):
            chars = 0
            for record in held:
                chars += len(record.getMessage())
                logging.getLogger().handle(record)
                if chars > LINE_CHARS:
                    break

    def prepare(self, job_id: str, rehearsal: Rehearsal, size: int) -> Callable[[], None]:
        item: Any = rehearsal.made
        made = None
        if item is not None:
            try:
                self._outputs.mark(job_id, item[2])
                made = self._kept.prepare(item, size)
            except (Exception, SystemExit, GeneratorExit):  # out of a node class that is asked for its inputs
                log.warning("job %s is not ready before its dispatch", job_id, exc_info=True, extra={"job_id": job_id})

        def keep() -> None:
            if made is not None and self._kept.keep(job_id, made):
                self._hooks.call_worker()

        return keep

    def is_ready(self, job_id: str) -> bool:
        return self._kept.is_ready(job_id)

    def discard(self, job_id: str) -> None:
        self._kept.discard(job_id)

    def put(self, job_id: str, client_id: str, folder: str) -> bool:
        with self._hooks.expect(job_id):
            item = self._find_kept(job_id)
            if item is not None:
                self._hooks.queue_job(_address(item, client_id), client_id, folder, first=True)
        self._kept.discard(job_id)
        return item is not None

    def _find_kept(self, job_id: str) -> QueueItem | None:
        """What was kept for the job, with the number of a prompt that came now."""
        item = self._kept.find(job_id)
        if item is None:
            return None
        with self._queue.mutex:
            number = self._server.number
            self._server.number += 1
        return (number, *item[1:])

    def is_between(self) -> bool:
        return self._hooks.is_between

    async def dispatch(
        self,
        job_id: str,
        client_id: str,
        body: dict[str, Any],
        folder: str,
        *,
        first: bool = False,
        hidden: bool = False,
    ) -> Refusal | None:
        with self._hooks.expect(job_id):
            answer: QueueItem | Refusal = self._find_kept(job_id) or await self._dispatch_anew(job_id, body)
            if isinstance(answer, Refusal):
                return answer
            self._hooks.queue_job(_address(answer, client_id), client_id, folder, first=first, hidden=hidden)
        self._kept.discard(job_id)
        return None

    async def _dispatch_anew(self, job_id: str, body: dict[str, Any]) -> QueueItem | Refusal:
        token = _dispatching.set(True)
        try:
            answer = await self._call_handler(body)
        finally:
            _dispatching.reset(token)
        if not isinstance(answer, Refusal):
            self._outputs.mark(job_id, answer[2])
        return answer

    async def _call_handler(self, body: dict[str, Any], timeout_s: float | None = None) -> QueueItem | Refusal:
        """What ComfyUI's own handler makes of a body: the queue item that it would put, or its refusal."""
        with self._hooks.capture() as items, inputs.offer_files(body["prompt"]):
            is_told, told = self._handler.tell(body)
            form = self._known.find_form(told) if is_told else None
            if form is not None and (made := self._known.make(form, told)) is not None:
                items.append(made)
            elif (refusal := await self._handler.call(told, timeout_s, is_told=is_told)) is not None:
                return refusal
        if len(items) != 1 or items[0][1] != body["prompt_id"]:
            raise RuntimeError("ComfyUI's handler accepted the prompt but did not queue it")
        if is_told:
            self._known.learn(form, told, items[0])
        return items[0]

    def missing_classes(self, prompt: Mapping[str, Any]) -> list[str]:
        return sorted({node["class_type"] for node in prompt.values()} - set(nodes.NODE_CLASS_MAPPINGS))

    def file_inputs(self, class_type: str) -> Mapping[str, Names]:
        return self._file_inputs.find(class_type)

    def declaration(self, class_type: str) -> Declared:
        return self._declarations.find(class_type)

    async def native(self, path: str, **match_info: str) -> bytes:
        return await call_native_get(self._server, path, match_info)

    # Prompts that ComfyUI has. -------------------------------------------------------------------------------

    def held(self) -> frozenset[str]:
        return self._hooks.list_held()

    def let_go(self, job_id: str) -> None:
        self._hooks.forget(job_id)

    def stop(self, prompt_id: str) -> None:
        with self._queue.mutex:
            is_running = any(item[1] == prompt_id for item in self._queue.currently_running.values())
            if not is_running and self._hooks.find_run(prompt_id) is None:
                return
            self._stops.ask(prompt_id)
            is_waiting = any(item[1] == prompt_id for item in self._queue.queue)
        if is_waiting:
            # The hook tells the listener. If the worker takes the prompt first, the stop above ends it.
            self._hooks.delete(prompt_id)
        self._workers.cancel(prompt_id)

    def inject(self, prompt_id: str) -> bool:
        if self._hooks.end_programs(prompt_id):
            return False  # its code may have waited for nothing else
        return self._workers.inject(prompt_id)

    def hung_workers(self) -> int:
        return self._workers.count_hung()

    def worker_alive(self) -> bool:
        return self._workers.is_alive()

    def worker_away_s(self) -> float:
        return self._workers.away_s

    def has_waiting(self) -> bool:
        return bool(self._queue.queue)

    def replace_worker(self, prompt_id: str | None, error: GuardError) -> bool:
        # Before there is another worker: what that one takes is no orphan.
        orphans = self._hooks.list_orphans(prompt_id)
        if not self._workers.replace(prompt_id):
            return False
        for item_id, item in orphans:
            self._hooks.close(item_id, item, error)
        return True

    def free_memory(self) -> None:
        self._queue.set_flag("unload_models", True)
        self._queue.set_flag("free_memory", True)

    # What the sockets and ComfyUI's own queue show. ----------------------------------------------------------

    def announce(self, job_id: str, client_id: str | None, error: GuardError, was_interrupted: bool = False) -> None:
        if self._hooks.announce(job_id, error):
            return
        if self._view is not None:
            # Of what is left in the queue the backlog has told.
            tell = partial(self._announce_unrun, job_id, client_id, error, was_interrupted, lambda: None)
            self._view.tell_end(job_id, tell, self._server.loop)
        else:
            self._announce_unrun(job_id, client_id, error, was_interrupted, self._server.queue_updated)

    def _announce_unrun(
        self,
        job_id: str,
        client_id: str | None,
        error: GuardError,
        was_interrupted: bool,
        tell_queue: Callable[[], None],
    ) -> None:
        """Send what the clients of a job wait for; ComfyUI here says nothing of one that it never ran. Any thread."""
        if client_id is None:
            return
        message = report.make_execution_error(job_id, error.code, error.message, error.extra_info)
        self._hooks.send_in_order(*message, client_id)
        if was_interrupted:
            facts = ("prompt_id", "node_id", "node_type", "executed", "timestamp")
            self._hooks.send_in_order("execution_interrupted", {name: message[1][name] for name in facts}, client_id)
        try:
            tell_queue()
        finally:
            self._hooks.send_in_order("executing", {"node": None, "prompt_id": job_id}, client_id)

    def show_backlog(self, backlog: Backlog) -> None:
        hooks = self._hooks
        fields = hooks.count_item_fields()
        self._view = BacklogView(self._queue, backlog, fields, hooks.list_held, lambda: hooks.is_deleting)
        self._view.install()

    def queue_changed(self) -> None:
        if not self._owes_status:
            self._owes_status = True
            self._server.loop.call_soon_threadsafe(self._send_status)

    def _send_status(self) -> None:
        """Event loop."""
        self._owes_status = False
        self._server.queue_updated()

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        client_id = getattr(self._server, "client_id", None)
        if client_id is not None:  # without one, ComfyUI would send to every socket
            self._server.send_sync("guarded.node", {"node_id": node_id, **facts}, client_id)

    def listen_sockets(self, listener: SocketListener) -> None:
        self._relay.listen(listener)

    def executing(self, sid: str) -> str | None:
        return self._relay.find_executing(sid)

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        return self._relay.negotiate(sid, flags)

    def find_flags(self, sid: str) -> Mapping[str, Any]:
        return self._relay.find_flags(sid)

    def socket_left(self, sid: str) -> None:
        self._relay.forget(sid)

    def mark_names(self, name_box: Callable[[], str]) -> None:
        self._hooks.confinement.name_box = name_box

    def has_socket(self, sid: str) -> bool:
        return sid in self._server.sockets

    def tell_socket(self, sid: str, messages: Sequence[str | bytes]) -> None:
        self._relay.tell_native(sid, messages)

    # What there is. ------------------------------------------------------------------------------------------

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None:
        return folders.resolve(kind, subfolder, filename)

    def file_to_save(self, subfolder: str, filename: str) -> Path | None:
        return folders.resolve_below(folder_paths.get_output_directory(), subfolder, filename)

    def folders(self) -> Folders:
        return folders.find_folders()

    def input_folder(self) -> Path:
        return Path(folder_paths.get_input_directory())

    def model_folders(self) -> list[Path]:
        # Packs that register the kind themselves name its folder; we want the one above.
        registered = folder_paths.folder_names_and_paths.get("insightface", ((), ()))[0]
        return list(dict.fromkeys([Path(folder_paths.models_dir), *(Path(folder).parent for folder in registered)]))

    def find_model(self, folder: str, file: str) -> tuple[str, Path | None] | None:
        name = folders.find_model_name(folder, file)
        path = folders.find_model_path(folder, name) if name is not None else None
        # ComfyUI lists whatever lies in the folder, links to nothing too.
        return (name, path) if name is not None and path is not None else None

    def weigh_model(self, name: str) -> ModelWeight | None:
        return weights.weigh(name)

    def video_memory(self) -> int | None:
        device = comfy.model_management.get_torch_device()
        # For others ComfyUI gives the machine's RAM, or, for DirectML, a made-up gigabyte.
        if device.type not in ("cuda", "xpu", "npu", "mlu"):
            return None
        return int(comfy.model_management.get_total_memory(device))

    def own_directory(self) -> Path:
        return folders.find_own_directory()

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


def _address(item: QueueItem, client_id: str) -> QueueItem:
    """The item for the job's socket, and as new as ComfyUI would have made it now."""
    about = {**item[3], "client_id": client_id}
    if "create_time" in about:
        about["create_time"] = int(time.time() * 1000)
    return (*item[:3], about, *item[4:])
