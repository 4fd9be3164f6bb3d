"""/api/jobs: ComfyUI's newer view of queue and history together; here also if the host has none."""

from __future__ import annotations

from aiohttp import web
from typing_extensions import TypedDict

from ...guard.callers import as_comfyui
from ...guard.callers.bodies import ListedJob, ListedJobInFull
from ...guard.errors import InvalidRequestError, NotFoundError
from ...guard.quotas import Kind
from ...guard.store import Listing
from ..about import COMMAND, READ, WRITE, About
from ..asked import read_choice, read_command, read_ids, read_number
from ..shapes import CancelRequest
from ..table import Call, Route, respond, respond_at_length

_AT_MOST = 1000


class Pagination(TypedDict):
    """Where a page of `/api/jobs` stands among all; `limit` is null where the request had none."""

    offset: int
    limit: int | None
    total: int
    has_more: bool


class ListingBody(TypedDict):
    """ComfyUI's `/api/jobs`."""

    jobs: list[ListedJob]
    pagination: Pagination


class CancelledBody(TypedDict):
    """Whether there was anything to cancel."""

    cancelled: bool


async def list_api_jobs(call: Call) -> web.StreamResponse:
    """The caller's jobs, as ComfyUI's newer view lists them; `status` may be comma-separated."""
    query = call.request.query
    asked = [name.strip().lower() for name in query.get("status", "").split(",") if name.strip()]
    if unknown := set(asked) - as_comfyui.STATUSES.keys():
        known = ", ".join(as_comfyui.STATUSES)
        raise InvalidRequestError(
            f"status {sorted(unknown)[0][:40]} is none of {known}.", extra_info={"field": "status"}
        )
    offset = int(read_number(call, "offset", 0, -(2**53), 2**53))
    listing = Listing(
        states=frozenset().union(
            *(states for status, states in as_comfyui.STATUSES.items() if status in asked or not asked)
        ),
        workflow_id=query.get("workflow_id") or None,
        by_run_time=read_choice(call, "sort_by", "created_at", "execution_duration") == "execution_duration",
        ascending=read_choice(call, "sort_order", "desc", "asc") == "asc",
        limit=int(read_number(call, "limit", _AT_MOST, 1, 2**53)),
        offset=max(offset, 0),
    )
    await call.turn.take(Kind.LARGE)
    jobs, count, total = await call.services.jobs.list_page(call.client, listing)
    pagination: Pagination = {
        "offset": listing.offset,
        "limit": listing.limit if "limit" in query else None,
        "total": total,
        "has_more": listing.offset + count < total,
    }
    return await respond_at_length([("jobs", jobs), ("pagination", pagination)])


async def get_api_job(call: Call) -> web.StreamResponse:
    """One job, in the shape of ComfyUI's newer view."""
    await call.turn.take(Kind.LARGE)
    return respond(await call.services.jobs.find_listed_job(call.request.match_info["job_id"], call.client))


async def cancel_api_job(call: Call) -> web.StreamResponse:
    """Cancel one job. Says whether there was anything to cancel; an unknown id, or another owner's, is nothing."""
    body: CancelledBody = {"cancelled": await _cancel(call, call.request.match_info["job_id"])}
    return respond(body)


async def cancel_api_jobs(call: Call) -> web.StreamResponse:
    """Cancel several jobs. Says whether there was anything to cancel among `job_ids`."""
    job_ids = read_ids(await read_command(call), "job_ids")
    if job_ids is None:
        raise InvalidRequestError("job_ids must be a list of ids.", extra_info={"field": "job_ids"})
    body: CancelledBody = {"cancelled": any([await _cancel(call, job_id) for job_id in job_ids])}
    return respond(body)


async def _cancel(call: Call, job_id: str) -> bool:
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
        list_api_jobs,
        about=About(
            {200: ListingBody},
            query={
                "status": {"type": "string"},
                "workflow_id": {"type": "string"},
                "sort_by": {"type": "string", "enum": ["created_at", "execution_duration"]},
                "sort_order": {"type": "string", "enum": ["asc", "desc"]},
                "limit": {"type": "integer", "minimum": 1},
                "offset": {"type": "integer"},
            },
            refusals=READ,
        ),
    ),
    Route(
        "POST",
        "/api/jobs/cancel",
        cancel_api_jobs,
        about=About({200: CancelledBody}, body={"application/json": CancelRequest}, refusals=COMMAND),
    ),
    Route(
        "GET",
        "/api/jobs/{job_id}",
        get_api_job,
        about=About({200: ListedJobInFull}, refusals=(NotFoundError, *READ)),
    ),
    Route("POST", "/api/jobs/{job_id}/cancel", cancel_api_job, about=About({200: CancelledBody}, refusals=WRITE)),
]
