"""POST /guarded_faults/checks/hold: from now on, no check of a result ends, until POST …/checks/release."""

import sys
import threading
from typing import Any

import server
from aiohttp import web

_go_on = threading.Event()
_go_on.set()


def _wrap_checks() -> None:
    """Let each check wait first. The guard is loaded under a name of ComfyUI's choice, or not at all."""
    for name, module in list(sys.modules.items()):
        if name.endswith(".guard.results.checks") and not hasattr(module, "native_check"):
            native = module.native_check = module.check

            def check(*args: Any, native: Any = native, **kwargs: Any) -> Any:
                _go_on.wait(60)
                return native(*args, **kwargs)

            module.check = check


@server.PromptServer.instance.routes.post("/guarded_faults/checks/{what}")
async def post_checks(request: web.Request) -> web.Response:
    _wrap_checks()
    if request.match_info["what"] == "hold":
        _go_on.clear()
    else:
        _go_on.set()
    return web.json_response({})
