"""/api/jobs: the newer view of queue and history together. It is here also where the host has none."""

from __future__ import annotations

from aiohttp import web

from ...guard.callers import as_comfyui
from ...guard.errors import InvalidRequestError, NotFoundError
from ...guard.store import Listing
from ..about import COMMAND, STORE, About
from ..asked import command, ids, number, one_of
from ..table import Call, Route, answered

_AT_MOST = 1000


async def list_jobs(call: Call) -> web.StreamResponse:
    """`status` (comma-separated), `workflow_id`, `sort_by`, `sort_order`, `limit`, `offset`."""
    query = call.request.query
    asked = [name.strip().lower() for name in query.get("status", "").split(",") if name.strip()]
    if unknown := set(asked) - as_comfyui.STATUSES.keys():
        known = ", ".join(as_comfyui.STATUSES)
        raise InvalidRequestError(
            f"status {sorted(unknown)[0][:40]} is none of {known}.", extra_info={"field": "status"}
        )
    offset = int(number(call, "offset", 0, -(2**53), 2**53))
    listing = Listing(
        states=frozenset().union(*(as_comfyui.STATUSES[name] for name in asked or as_comfyui.STATUSES)),
        workflow_id=query.get("workflow_id") or None,
        by_run_time=one_of(call, "sort_by", "created_at", "execution_duration") == "execution_duration",
        ascending=one_of(call, "sort_order", "desc", "asc") == "asc",
        limit=int(number(call, "limit", _AT_MOST, 1, 2**53)),
        offset=max(offset, 0),
    )
    jobs, total = await call.services.jobs.listing(call.client, listing)
    pagination = {
        "offset": listing.offset,
        "limit": listing.limit if "limit" in query else None,
        "total": total,
        "has_more": listing.offset + len(jobs) < total,
    }
    return answered({"jobs": jobs, "pagination": pagination})


async def get_job(call: Call) -> web.StreamResponse:
    """One job, in the shape of ComfyUI's newer view."""
    return answered(await call.services.jobs.listing_of(call.request.match_info["job_id"], call.client))


async def cancel_job(call: Call) -> web.StreamResponse:
    """Whether there was anything to cancel; an id that is unknown, or another's, is none."""
    return answered({"cancelled": await _cancelled(call, call.request.match_info["job_id"])})


async def cancel_jobs(call: Call) -> web.StreamResponse:
    """Whether there was anything to cancel among `job_ids`."""
    named = ids(await command(call), "job_ids")
    if named is None:
        raise InvalidRequestError("job_ids must be a list of ids.", extra_info={"field": "job_ids"})
    return answered({"cancelled": any([await _cancelled(call, job_id) for job_id in named])})


async def _cancelled(call: Call, job_id: str) -> bool:
    jobs = call.services.jobs
    try:
        job = await jobs.get(job_id, call.client)
    except NotFoundError:
        return False
    if job.state.settled:
        return False
    cancelled = await jobs.cancel(job)
    return cancelled.verdict is not None and cancelled.verdict.code == "cancelled"


ROUTES = [
    Route(
        "GET",
        "/api/jobs",
        list_jobs,
        about=About(
            {200: "Object"},
            query={
                "status": {"type": "string"},
                "workflow_id": {"type": "string"},
                "sort_by": {"type": "string", "enum": ["created_at", "execution_duration"]},
                "sort_order": {"type": "string", "enum": ["asc", "desc"]},
                "limit": {"type": "integer", "minimum": 1},
                "offset": {"type": "integer"},
            },
        ),
    ),
    Route(
        "POST",
        "/api/jobs/cancel",
        cancel_jobs,
        about=About({200: "Cancelled"}, body={"application/json": "JobIds"}, refusals=COMMAND),
    ),
    Route("GET", "/api/jobs/{job_id}", get_job, about=About({200: "Object"}, refusals=(NotFoundError,))),
    Route("POST", "/api/jobs/{job_id}/cancel", cancel_job, about=About({200: "Cancelled"}, refusals=STORE)),
]
