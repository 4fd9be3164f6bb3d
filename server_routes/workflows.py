"""GET /guarded/workflows and POST /guarded/workflows/{name}: prompts made from named parameters."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..guard.errors import NotFoundError
from .about import ADMISSION, SUBMIT_HEADERS, WAIT, About
from .prompt import admitted
from .table import Call, Route, answered


async def get_workflows(call: Call) -> web.StreamResponse:
    """The templates, what each takes, and what this server lacks for it."""
    locale = call.locale or call.services.settings.messages.locale
    return answered({"workflows": await asyncio.to_thread(call.services.templates.describe, locale)})


async def post_workflow(call: Call) -> web.StreamResponse:
    """Render a template and admit the job; headers, forms, `?wait` and the answer are those of a prompt."""
    return await admitted(call, call.request.match_info["name"])


ROUTES = [
    Route("GET", "/workflows", get_workflows, about=About({200: "Workflows"})),
    Route(
        "POST",
        "/workflows/{name}",
        post_workflow,
        limited=True,
        about=About(
            {200: "Submitted"},
            query={"wait": WAIT},
            headers=SUBMIT_HEADERS,
            body={"application/json": "Rendering", "multipart/form-data": "RenderingForm"},
            refusals=(*ADMISSION, NotFoundError),
        ),
    ),
]
