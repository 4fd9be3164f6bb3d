"""GET /guarded_faults/routes: every route of the application. GET …/frozen: what the garbage collector passes over.
POST …/queue/{how}: what packs do to the queue.
"""

import asyncio
import gc
import time

import server
from aiohttp import web


@server.PromptServer.instance.routes.get("/guarded_faults/routes")
async def get_routes(_request: web.Request) -> web.Response:
    routes = server.PromptServer.instance.app.router.routes()
    return web.json_response([[route.method, route.resource.canonical or "/"] for route in routes if route.resource])


@server.PromptServer.instance.routes.get("/guarded_faults/frozen")
async def get_frozen(_request: web.Request) -> web.Response:
    return web.json_response({"frozen": gc.get_freeze_count(), "seen": len(gc.get_objects())})


@server.PromptServer.instance.routes.post("/guarded_faults/queue/{how}")
async def post_queue(request: web.Request) -> web.Response:
    """What packs do to ComfyUI's queue past its methods."""
    queue = server.PromptServer.instance.prompt_queue
    with queue.mutex:
        if request.match_info["how"] == "clear":
            queue.queue.clear()
        elif request.match_info["how"] == "replace":
            queue.queue = []
        elif request.match_info["how"] == "pop_running":
            queue.currently_running.clear()
        else:
            raise web.HTTPNotFound
    return web.json_response({})


@server.PromptServer.instance.routes.post("/guarded_faults/queue/of/{client_id}/delete")
async def post_delete(request: web.Request) -> web.Response:
    """As a pack deletes by something else than the id."""
    wanted = request.match_info["client_id"]
    queue = server.PromptServer.instance.prompt_queue
    return web.json_response({"deleted": queue.delete_queue_item(lambda item: item[3].get("client_id") == wanted)})


@server.PromptServer.instance.routes.post("/guarded_faults/tasks/{name}/cancel")
async def post_cancel(request: web.Request) -> web.Response:
    """As a pack would that cancels every task that it does not know."""
    for task in asyncio.all_tasks():
        if task.get_name() == f"guarded-{request.match_info['name']}":
            task.cancel()
    return web.json_response({})


@server.PromptServer.instance.routes.post("/guarded_faults/loop/hang")
async def hang(_request: web.Request) -> web.Response:
    """The event loop itself, for good."""
    while True:
        time.sleep(3600)
