"""POST /guarded/prompt."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from typing_extensions import TypedDict

from ..guard.callers.inline import measure
from ..guard.callers.jobs import SubmittedGuard
from ..guard.errors import GuardError, MissingModelError, MissingNodeError
from ..guard.files.uploads import UploadedFile
from ..guard.job import Job
from ..guard.quotas import Kind
from ..guard.quotas.threads import work
from ..guard.store import Submitted
from ..guard.submit.request import FORM_FIELDS, Fill, Submission, from_form
from .about import ADMISSION, SUBMIT_HEADERS, WAIT, About
from .asked import read_body, read_number
from .form import is_form, receive_form
from .shapes import PromptForm, PromptRequest
from .table import Call, Route, respond


class SubmittedBody(TypedDict):
    """ComfyUI's answer to a prompt, and where its job stands."""

    prompt_id: str
    number: int
    node_errors: dict[str, Any]
    guard: SubmittedGuard


async def post_prompt(call: Call) -> web.StreamResponse:
    """Admit a job, and answer in ComfyUI's shape with `guard` beside it.

    The guard ignores the content type, except that a form brings the prompt's files along.
    """
    return await submit(call)


async def submit(call: Call, template: str = "") -> web.StreamResponse:
    """Admit what the request asks for: a prompt, or the parameters of a template."""
    wait_s = read_number(call, "wait", 0, 0, 86400)
    if is_form(call.request):
        limit = call.services.settings.policy.max_body_bytes
        async with receive_form(call, FORM_FIELDS, limit) as form:
            size = sum(map(len, form.fields.values()))
            raw = await work(size, from_form, form.fields, call.services.settings.policy.bounds())
            submitted = await admit(call, raw, form.files, form.bytes, template, call.request.headers)
    else:
        raw = await read_body(call, call.services.settings.policy.max_body_bytes)
        try:
            submitted = await admit(call, raw, (), 0, template, call.request.headers)
        except (MissingNodeError, MissingModelError) as error:
            return await _forward(call, raw, template, wait_s, error)
    return await _answer(call, submitted, wait_s)


async def answer_at_once(call: Call, submitted: Submitted) -> web.StreamResponse:
    """Answer that the job is taken."""
    return await _answer(call, submitted, 0)


async def _forward(call: Call, raw: bytes, template: str, wait_s: float, refusal: GuardError) -> web.StreamResponse:
    """Answer as another box of the fleet does, that has what this one lacks; else with the refusal."""
    forwards = call.services.forwards
    if forwards is None:
        raise refusal
    call.turn.rest()  # it has one there meanwhile, and two boxes may be each other's
    answer = await forwards.forward(call, raw, template, refusal)
    await call.turn.take(Kind.WORK)
    if answer is None:
        raise refusal
    if answer.status != 200 or not wait_s:
        return web.Response(
            body=answer.body, status=answer.status, headers=answer.headers, content_type="application/json"
        )
    body = await work(len(answer.body), json.loads, answer.body)
    job = await call.services.jobs.get(body["prompt_id"], call.client)
    size = await _wait(call, job, wait_s, body["guard"])
    return await work(size, respond, body, dict(answer.headers))


async def _answer(call: Call, submitted: Submitted, wait_s: float) -> web.StreamResponse:
    jobs = call.services.jobs
    job = submitted.job
    guard = jobs.describe_position(job, submitted.waiting, job.locale)
    if job.template:
        guard["template"], guard["parameters"] = job.template, job.parameters
    if submitted.vram is not None:
        guard["vram"] = submitted.vram
    size = 0
    if wait_s:
        size = await _wait(call, job, wait_s, guard)
    else:
        jobs.note_told(job, call.client)
    body: SubmittedBody = {"prompt_id": job.job_id, "number": job.number, "node_errors": {}, "guard": guard}
    return await work(size, respond, body, {"Idempotency-Replayed": "true"} if submitted.replayed else None)


async def _wait(call: Call, job: Job, wait_s: float, guard: SubmittedGuard) -> int:
    """Wait for the job, and say in `guard` how it stands then; returns how large that is."""
    jobs = call.services.jobs
    call.turn.rest()
    job = await jobs.wait(job, wait_s, known=None)
    await call.turn.take(Kind.WORK)
    shown = await jobs.body(job)
    guard["state"], guard["position"], guard["eta_s"] = shown["state"], shown["position"], shown["eta_s"]
    guard["job"] = await call.services.inline.add(shown, job, call.client)
    return measure(shown)


async def admit(
    call: Call,
    raw: bytes,
    files: tuple[UploadedFile, ...],
    file_bytes: int,
    template: str,
    headers: Mapping[str, str | None],
) -> Submitted:
    """Make a job of what the request asks for, or find the one that it made before. Raises GuardError."""
    fill: Fill | None = None
    if template:
        fill = functools.partial(call.services.templates.fill, template, uploaded=[file.field for file in files])
    return await call.services.admission.admit(
        Submission(
            raw=raw,
            client=call.client,
            idempotency_key=headers.get("Idempotency-Key"),
            accept_language=headers.get("Accept-Language"),
            files=files,
            file_bytes=file_bytes,
            template=template,
            fill=fill,
        )
    )


ROUTES = [
    Route(
        "POST",
        "/prompt",
        post_prompt,
        submits=True,
        about=About(
            {200: SubmittedBody},
            query={"wait": WAIT},
            headers=SUBMIT_HEADERS,
            body={"application/json": PromptRequest, "multipart/form-data": PromptForm},
            refusals=ADMISSION,
        ),
    )
]
