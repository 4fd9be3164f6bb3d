"""ComfyUI-Guarded: what ComfyUI loads. Nothing heavy is imported here."""

import sys

WEB_DIRECTORY = "./js"

# A server is there when ComfyUI (or the sandbox) loads us, and not when a tool only looks at the package.
_server = getattr(sys.modules.get("server"), "PromptServer", None)
if _server is None:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
else:
    from aiohttp import web

    #: Answers in the door's place, once it is known why the package cannot start.
    _answer = None

    @web.middleware
    async def _door(request, handler):  # type: ignore[no-untyped-def]
        """Shut, so that no way of failing opens the server: only a start that has succeeded takes it away."""
        if _answer is None:
            return web.Response(status=503, text="ComfyUI-Guarded cannot start. ComfyUI's log says why.")
        return await _answer(request, handler)

    _middlewares = _server.instance.app.middlewares
    _middlewares.insert(0, _door)
    try:
        from .app import install
        from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

        install()
    except Exception as error:
        from .door import explain

        _answer, _goes_on = explain(error)
        if not _goes_on:
            raise  # ComfyUI logs the traceback, and lists us among the failed imports
    else:
        _middlewares.remove(_door)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
