"""The routes under `/guarded`: a request in, a call to the core, a response out, and no rules of their own."""

from . import (
    access,
    alarms,
    artifacts,
    boxes,
    doctor,
    events,
    facade,
    faces,
    forward,
    health,
    held,
    janitor,
    jobs,
    keys,
    mcp,
    models,
    openapi,
    page,
    prompt,
    spending,
    stats,
    webhooks,
    workflows,
)
from .native import guard_connections, guard_native
from .sending import leave_out_server
from .table import Route, Services, register

ROUTES: list[Route] = [
    *prompt.ROUTES,
    *workflows.ROUTES,
    *access.ROUTES,
    *keys.ROUTES,
    *jobs.ROUTES,
    *events.ROUTES,
    *boxes.ROUTES,
    *forward.ROUTES,
    *held.ROUTES,
    *artifacts.ROUTES,
    *faces.ROUTES,
    *health.ROUTES,
    *janitor.ROUTES,
    *stats.ROUTES,
    *spending.ROUTES,
    *alarms.ROUTES,
    *webhooks.ROUTES,
    *doctor.ROUTES,
    *page.ROUTES,
    *facade.ROUTES,
    *models.ROUTES,
    *mcp.ROUTES,
]

ROUTES.append(openapi.make_route(ROUTES))

#: What ComfyUI has under the same paths without our prefix: `native.mode = "guarded"` answers there in its place.
NATIVE: list[Route] = facade.NATIVE

__all__ = [
    "NATIVE",
    "ROUTES",
    "Route",
    "Services",
    "guard_connections",
    "guard_native",
    "leave_out_server",
    "register",
]
