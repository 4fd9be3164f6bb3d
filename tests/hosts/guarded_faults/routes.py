"""GET /guarded_faults/routes: every route of the application, so that a test can walk them all."""

import server
from aiohttp import web


@server.PromptServer.instance.routes.get("/guarded_faults/routes")
async def get_routes(_request: web.Request) -> web.Response:
    routes = server.PromptServer.instance.app.router.routes()
    return web.json_response([[route.method, route.resource.canonical or "/"] for route in routes if route.resource])
