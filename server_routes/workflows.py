"""GET /guarded/workflows and POST /guarded/workflows/{name}: prompts made from named parameters."""

from __future__ import annotations

from aiohttp import web
from typing_extensions import TypedDict

from ..guard.errors import NotFoundError
from ..guard.quotas.threads import run_beside
from ..guard.templates.bodies import WorkflowBody
from .about import ADMISSION, SUBMIT_HEADERS, WAIT, About
from .prompt import SubmittedBody, submit
from .shapes import WorkflowForm, WorkflowRequest
from .table import Call, Route, respond


class WorkflowsBody(TypedDict):
    """The templates of this server."""

    workflows: list[WorkflowBody]


async def get_workflows(call: Call) -> web.StreamResponse:
    """The templates, what each takes, and what this server lacks for it."""
    locale = call.locale or call.services.settings.messages.locale
    body: WorkflowsBody = {"workflows": await run_beside(call.services.templates.describe, locale)}
    return respond(body)


async def post_workflow(call: Call) -> web.StreamResponse:
    """Render a template and admit the job; headers, forms, `?wait` and the answer are those of a prompt."""
    return await submit(call, call.request.match_info["name"])


ROUTES = [
    Route("GET", "/workflows", get_workflows, about=About({200: WorkflowsBody})),
    Route(
        "POST",
        "/workflows/{name}",
        post_workflow,
        submits=True,
        about=About(
            {200: SubmittedBody},
            query={"wait": WAIT},
            headers=SUBMIT_HEADERS,
            body={"application/json": WorkflowRequest, "multipart/form-data": WorkflowForm},
            refusals=(*ADMISSION, NotFoundError),
        ),
    ),
]
