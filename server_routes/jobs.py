"""/guarded/jobs: look at, wait for, cancel."""

from __future__ import annotations

from aiohttp import web

from ..guard.errors import DiskFullError, InvalidRequestError, NotFoundError, ServerUnavailableError
from ..guard.job import JobState
from .about import WAIT, About
from .asked import number
from .table import Call, Route, answered

_PAGE = 50
_PAGE_AT_MOST = 500
_STATE = {"type": "string", "enum": [state.value for state in JobState]}


async def get_job(call: Call) -> web.StreamResponse:
    """`wait` holds the answer until the state changes: from `state`, where the caller names the one it knows."""
    jobs = call.services.jobs
    wait_s = number(call, "wait", 0, 0, 86400)
    job = await jobs.get(call.request.match_info["job_id"], call.client)
    if wait_s and not job.state.settled:
        job = await jobs.wait(job, wait_s, known=_state(call.request.query.get("state", job.state.value)))
    return answered(await jobs.body(job, call.locale))


async def list_jobs(call: Call) -> web.StreamResponse:
    """Newest first; `state` may be repeated or comma-separated; `before` is the `next` of the page before."""
    limit = int(number(call, "limit", _PAGE, 1, _PAGE_AT_MOST))
    before = int(number(call, "before", 2**53, 1, 2**53)) if "before" in call.request.query else None
    jobs = await call.services.jobs.page(call.client, _states(call), limit, before)
    return answered(
        {
            "jobs": [await call.services.jobs.body(job, call.locale) for job in jobs],
            "next": jobs[-1].number if len(jobs) == limit else None,
        }
    )


async def delete_job(call: Call) -> web.StreamResponse:
    """Cancel. Asked again, or of a job that has ended, it answers the same way: with the job as it is."""
    jobs = call.services.jobs
    job = await jobs.get(call.request.match_info["job_id"], call.client)
    if not job.state.settled:
        job = await jobs.cancel(job)
    return answered(await jobs.body(job, call.locale))


def _states(call: Call) -> frozenset[JobState] | None:
    names = [name for value in call.request.query.getall("state", []) for name in value.split(",") if name]
    return frozenset(map(_state, names)) or None


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        known = ", ".join(state.value for state in JobState)
        raise InvalidRequestError(f"state must be one of {known}.", extra_info={"field": "state"}) from None


ROUTES = [
    Route(
        "GET",
        "/jobs",
        list_jobs,
        about=About(
            {200: "Jobs"},
            query={
                "state": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1, "maximum": _PAGE_AT_MOST},
                "before": {"type": "integer", "minimum": 1, "maximum": 2**53},
            },
        ),
    ),
    Route(
        "GET",
        "/jobs/{job_id}",
        get_job,
        about=About({200: "Job"}, query={"wait": WAIT, "state": _STATE}, refusals=(NotFoundError,)),
    ),
    Route(
        "DELETE",
        "/jobs/{job_id}",
        delete_job,
        about=About({200: "Job"}, refusals=(NotFoundError, ServerUnavailableError, DiskFullError)),
    ),
]
