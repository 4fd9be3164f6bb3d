"""POST /guarded/prompt."""

from __future__ import annotations

from aiohttp import web

from ..guard.admission import Submission
from .table import Call, Route, answered, number


async def post_prompt(call: Call) -> web.StreamResponse:
    """Admit a job, and answer in ComfyUI's shape with `guard` beside it. The content type is not looked at."""
    wait_s = number(call, "wait", 0, 0, 86400)
    headers = call.request.headers
    submitted = await call.services.admission.admit(
        Submission(
            raw=await call.request.read(),
            client=call.client,
            idempotency_key=headers.get("Idempotency-Key"),
            accept_language=headers.get("Accept-Language"),
        )
    )
    call.services.wake()
    jobs = call.services.jobs
    job = submitted.job
    guard = jobs.place(job, submitted.waiting, job.locale)
    if wait_s:
        job = await jobs.wait(job, wait_s, known=None)
        shown = await jobs.body(job)
        guard = {**guard, **{name: shown[name] for name in ("state", "position", "eta_s")}, "job": shown}
    answer = {"prompt_id": job.job_id, "number": job.number, "node_errors": {}, "guard": guard}
    return answered(answer, {"Idempotency-Replayed": "true"} if submitted.replayed else None)


ROUTES = [Route("POST", "/prompt", post_prompt)]
