"""POST /guarded_faults/known {"prompts": […]}: what the guard makes of prompts that it knows, beside ComfyUI's word."""

import copy
import json
import sys
import uuid
from typing import Any

import execution
import server
from aiohttp import web


@server.PromptServer.instance.routes.post("/guarded_faults/known")
async def post_known(request: web.Request) -> web.Response:
    """Of each prompt in turn: whether ComfyUI takes it, whether it was known, and whether both are the same."""
    module = next(one for name, one in sys.modules.items() if name.endswith(".host.comfyui.known"))
    known = module.Known(server.PromptServer.instance)
    return web.json_response([await _compare(known, prompt) for prompt in (await request.json())["prompts"]])


async def _compare(known: Any, prompt: Any) -> dict[str, bool]:
    ours, theirs = copy.deepcopy(prompt), copy.deepcopy(prompt)
    prompt_id = str(uuid.uuid4())
    form = known.find_form({"prompt": ours, "prompt_id": prompt_id})
    made = known.make(form, {"prompt": ours, "prompt_id": prompt_id}) if form is not None else None
    try:
        valid, _error, outputs, node_errors = await execution.validate_prompt(prompt_id, theirs, None)
    except Exception:  # the handler's answer would be 500
        valid, outputs, node_errors = False, [], {}
    is_taken = bool(valid) and not node_errors
    if made is not None:
        is_same = is_taken and (json.dumps(made[2]), made[4]) == (json.dumps(theirs), outputs)
        return {"taken": is_taken, "known": True, "same": is_same}
    if is_taken:
        known.learn(form, {"prompt": theirs, "prompt_id": prompt_id}, (0, prompt_id, theirs, {}, outputs, {}))
    return {"taken": is_taken, "known": False, "same": True}
