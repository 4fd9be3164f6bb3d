"""ComfyUI's own routes, limited to the caller, so that an existing client works with another base URL."""

from __future__ import annotations

from dataclasses import replace

from .. import prompt
from ..table import Route
from . import files, history, info, jobs, queue, ws

#: By the paths that ComfyUI has them under; `native.mode = "guarded"` answers there in its place.
NATIVE: list[Route] = [
    *prompt.ROUTES,
    *queue.ROUTES,
    *history.ROUTES,
    *files.ROUTES,
    *info.ROUTES,
    *jobs.ROUTES,
    *ws.ROUTES,
]

#: Below the prefix, except what stands there anyhow; and all of it once more below `api/`, where many clients look
#: for it.
ROUTES: list[Route] = [
    *(route for route in NATIVE if route not in prompt.ROUTES),
    *(
        replace(route, path=f"/api{route.path}", is_mirror=True)
        for route in NATIVE
        if not route.path.startswith("/api/")
    ),
]
