"""Prompts in, the queue, the history, and the buttons that stop things."""

import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

import execution
import nodes
from aiohttp import web

from api_server.job_routes import canonical_uuid

if TYPE_CHECKING:
    from server import PromptServer


def without_secrets(items: list[tuple]) -> list[tuple]:
    return [item[:5] for item in items]


def register(server: "PromptServer") -> None:
    routes = server.routes

    @routes.get("/prompt")
    async def get_prompt(request: web.Request) -> web.Response:
        return web.json_response(server.get_queue_info())

    @routes.post("/prompt")
    async def post_prompt(request: web.Request) -> web.Response:
        """Validate and queue. Bodies of a wrong shape raise and are plain 500s, as in ComfyUI."""
        logging.info("got prompt")
        body = server.trigger_on_prompt(await request.json())
        number = _take_number(server, body)
        if "prompt" not in body:
            return _refusal("no_prompt", "No prompt provided", "No prompt provided")
        prompt, prompt_id = body["prompt"], body.get("prompt_id")
        try:
            prompt_id = str(uuid.uuid4()) if prompt_id is None else canonical_uuid(prompt_id)
        except ValueError:
            details = (
                "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
                "omit it to let the server generate one"
            )
            return _refusal("invalid_prompt_id", "prompt_id must be a valid UUID", details)

        _walk(prompt)
        validated = await execution.validate_prompt(prompt_id, prompt, body.get("partial_execution_targets"))
        valid, error, outputs, node_errors = validated
        extra_data = body.get("extra_data", {})
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        if "comfy_usage_source" not in extra_data and (source := request.headers.get("Comfy-Usage-Source")):
            extra_data["comfy_usage_source"] = source
        if not valid:
            logging.warning("invalid prompt: %s", error)
            return web.json_response({"error": error, "node_errors": node_errors}, status=400)

        secrets = {key: extra_data.pop(key) for key in execution.SENSITIVE_EXTRA_DATA_KEYS if key in extra_data}
        extra_data["create_time"] = int(time.time() * 1000)
        server.prompt_queue.put((number, prompt_id, prompt, extra_data, outputs, secrets))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": node_errors})

    @routes.get("/queue")
    async def get_queue(request: web.Request) -> web.Response:
        running, pending = server.prompt_queue.get_current_queue_volatile()
        return web.json_response({"queue_running": without_secrets(running), "queue_pending": without_secrets(pending)})

    @routes.post("/queue")
    async def post_queue(request: web.Request) -> web.Response:
        body = await request.json()
        if _read_field(body, "clear"):
            server.prompt_queue.wipe_queue()
        for prompt_id in _read_field(body, "delete") or ():
            server.prompt_queue.delete_queue_item(lambda item, wanted=prompt_id: item[1] == wanted)
        return web.Response()

    @routes.get("/history")
    async def get_history(request: web.Request) -> web.Response:
        query = request.rel_url.query
        max_items = int(query["max_items"]) if "max_items" in query else None
        offset = int(query["offset"]) if "offset" in query else -1
        return web.json_response(server.prompt_queue.get_history(max_items=max_items, offset=offset))

    @routes.get("/history/{prompt_id}")
    async def get_history_prompt_id(request: web.Request) -> web.Response:
        return web.json_response(server.prompt_queue.get_history(prompt_id=request.match_info["prompt_id"]))

    @routes.post("/history")
    async def post_history(request: web.Request) -> web.Response:
        body = await request.json()
        if _read_field(body, "clear"):
            server.prompt_queue.wipe_history()
        for prompt_id in _read_field(body, "delete") or ():
            server.prompt_queue.delete_history_item(prompt_id)
        return web.Response()

    @routes.post("/interrupt")
    async def post_interrupt(request: web.Request) -> web.Response:
        """Always 200. With an id it looks first and sets the flag afterwards: a race that ComfyUI has."""
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = body.get("prompt_id")
        if prompt_id:
            running, _ = server.prompt_queue.get_current_queue()
            if not any(item[1] == prompt_id for item in running):
                logging.info("Prompt %s is not currently running, skipping interrupt", prompt_id)
                return web.Response()
        nodes.interrupt_processing()
        return web.Response()

    @routes.post("/free")
    async def post_free(request: web.Request) -> web.Response:
        body = await request.json()
        for flag in ("unload_models", "free_memory"):
            if body.get(flag, False):
                server.prompt_queue.set_flag(flag, body[flag])
        return web.Response()


def _take_number(server: "PromptServer", body: Any) -> float:
    """The position in the queue: smaller runs sooner."""
    if "number" in body:
        return float(body["number"])
    number = server.number
    server.number += 1
    return -number if _read_field(body, "front") else number


def _read_field(body: Any, name: str) -> Any:
    """Read a field, if it is there; `in` instead of `.get` lets a list as body pass wherever ComfyUI does."""
    if name in body:
        return body[name]
    return None


def _walk(prompt: Any) -> None:
    """Raise for what ComfyUI's node replacement, which comes before validation, trips over."""
    for node in prompt.values():
        if "class_type" in node and "inputs" in node:
            node["inputs"].items()


def _refusal(kind: str, message: str, details: str) -> web.Response:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=400)
