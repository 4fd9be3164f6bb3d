"""POST /guarded_faults/packs/{how}: what packs put in front of ComfyUI's methods, until POST …/packs/off.

GET /guarded_faults/shown/{prompt_id}: how often ComfyUI has shown that prompt to packs, in `times`.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import server
from aiohttp import web

_instance = server.PromptServer.instance
_undo: list[Callable[[], None]] = []


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    native = getattr(owner, name)
    setattr(owner, name, make(native))
    _undo.append(lambda: setattr(owner, name, native))


def _raise_after_task_done() -> None:
    def make(native: Any) -> Any:
        def task_done(*args: Any, **kwargs: Any) -> None:
            native(*args, **kwargs)
            raise RuntimeError("a pack's")

        return task_done

    _replace(_instance.prompt_queue, "task_done", make)


def _swallow_task_done() -> None:
    _replace(_instance.prompt_queue, "task_done", lambda _native: lambda *_args, **_kwargs: None)


def _lose_in_get() -> None:
    """Once: the worker may wait inside of it for what comes after `off`."""
    lost: list[Any] = []

    def make(native: Any) -> Any:
        def get(*args: Any, **kwargs: Any) -> Any:
            taken = native(*args, **kwargs)
            if taken is None or lost:
                return taken
            lost.append(taken)
            return None

        return get

    _replace(_instance.prompt_queue, "get", make)


def _raise_in_queue_updated() -> None:
    def make(_native: Any) -> Any:
        def queue_updated() -> None:
            raise RuntimeError("a pack's")

        return queue_updated

    _replace(_instance, "queue_updated", make)


def _tell_each_socket() -> None:
    """As a pack does that shows every client its own queue; ComfyUI calls this under its queue's lock."""
    stop = threading.Event()
    queue = _instance.prompt_queue

    def make(native: Any) -> Any:
        def queue_updated() -> None:
            native()
            for sid in list(_instance.sockets):
                _instance.send_sync("pack.queue", {}, sid)

        return queue_updated

    def keep_telling() -> None:
        while not stop.is_set():
            with queue.mutex:
                _instance.queue_updated()
            time.sleep(0.001)

    _replace(_instance, "queue_updated", make)
    threading.Thread(target=keep_telling, daemon=True).start()
    _undo.append(stop.set)


def _send_ends() -> None:
    """Say how what runs has ended, in every way."""
    for item in list(_instance.prompt_queue.currently_running.values()):
        for event in ("execution_error", "execution_success", "execution_success", "execution_interrupted"):
            _instance.send_sync(event, {"prompt_id": item[1]}, item[3].get("client_id"))
        _instance.send_sync("executing", {"node": None, "prompt_id": item[1]}, item[3].get("client_id"))


def _store_again() -> None:
    """Store what a job's loaders name again whenever what was kept for the job is about to be used."""

    def make(native: Any) -> Any:
        def find(kept: Any, job_id: str) -> Any:
            for path, _mark in kept._made[job_id][4] if job_id in kept._made else ():
                shutil.copyfile(path, f"{path}.again")
                os.replace(f"{path}.again", path)
            return native(kept, job_id)

        return find

    module = next(one for name, one in sys.modules.items() if name.endswith(".host.comfyui.kept"))
    _replace(module.Kept, "find", make)


_WAYS = {
    "send_ends": _send_ends,
    "raise_after_task_done": _raise_after_task_done,
    "swallow_task_done": _swallow_task_done,
    "lose_in_get": _lose_in_get,
    "raise_in_queue_updated": _raise_in_queue_updated,
    "tell_each_socket": _tell_each_socket,
    "store_again": _store_again,
}


@_instance.routes.post("/guarded_faults/packs/{how}")
async def post_pack(request: web.Request) -> web.Response:
    how = request.match_info["how"]
    if how != "off":
        _WAYS[how]()
    while how == "off" and _undo:
        _undo.pop()()
    return web.json_response({})


#: The prompt that takes the place of all that come after it; None: the next one that comes.
_kept: list[Any] = []


def _keep_prompt() -> None:
    """As a pack does that goes on with the prompt that it was shown once."""
    _kept[:] = [None]
    _undo.append(_kept.clear)


_WAYS["keep_prompt"] = _keep_prompt


#: How often ComfyUI has shown the prompt of that id to packs.
_shown: dict[str, int] = {}


def _note_prompt(json_data: Any) -> Any:
    """Count, and change what asks for it."""
    prompt_id = json_data.get("prompt_id")
    if isinstance(prompt_id, str):
        _shown[prompt_id] = _shown.get(prompt_id, 0) + 1
    prompt = json_data.get("prompt")
    for node in prompt.values() if isinstance(prompt, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for name in [name for name, value in inputs.items() if value == "%shown%"] if isinstance(inputs, dict) else ():
            inputs[name] = "shown"
    if _kept:
        _kept[0] = json_data["prompt"] = _kept[0] or prompt
    return json_data


_instance.add_on_prompt_handler(_note_prompt)


@_instance.routes.get("/guarded_faults/shown/{prompt_id}")
async def get_shown(request: web.Request) -> web.Response:
    return web.json_response({"times": _shown.get(request.match_info["prompt_id"], 0)})
