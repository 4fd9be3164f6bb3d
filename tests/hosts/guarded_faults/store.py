"""POST /guarded_faults/store/silent: the guard's job database does not come back, until POST …/store/speaks."""

import gc
import threading
from typing import Any

import server
from aiohttp import web

_speaks = threading.Event()


def _find_store() -> Any:
    """The store of this process: nothing hands it out."""
    return next(found for found in gc.get_objects() if type(found).__name__ == "SqliteStore")


@server.PromptServer.instance.routes.post("/guarded_faults/store/silent")
async def post_silent(_request: web.Request) -> web.Response:
    """Answers once the writer's thread stands still."""
    still = threading.Event()
    _speaks.clear()
    _find_store()._engine.write(lambda _db: (still.set(), _speaks.wait()))
    while not still.is_set():
        pass
    return web.json_response({})


@server.PromptServer.instance.routes.post("/guarded_faults/store/speaks")
async def post_speaks(_request: web.Request) -> web.Response:
    _speaks.set()
    return web.json_response({})
