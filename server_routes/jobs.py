"""/guarded/jobs: look at, wait for, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from ..guard.bounds import COMMAND as SMALL
from ..guard.bounds import read_model
from ..guard.callers.inline import measure
from ..guard.errors import InvalidRequestError, NotFoundError, PromptGoneError
from ..guard.job import Job, JobBody, JobState
from ..guard.quotas import Kind
from ..guard.quotas.threads import work
from ..guard.store import Wanted
from ..guard.store.outbox import DeliveryBody
from .about import ADMISSION, COMMAND, READ, WAIT, WRITE, About, Schema, describe_page
from .asked import check_query, read_given, read_number, read_page, read_state, read_states, read_whole_number
from .table import Call, Route, respond, respond_at_length

_PAGE = 50
_PAGE_AT_MOST = 500
#: The ids of ten thousand jobs.
_CANCEL_BYTES = 2**20
_MS = {"type": "integer"}
#: Beside the page's own fields; `metadata.<name>` has no name that the contract could tell.
_FILTERS: dict[str, Schema] = {
    "owner": {"type": "string"},
    "code": {"type": "string"},
    "text": {"type": "string"},
    "template": {"type": "string"},
    "user": {"type": "string"},
    "idempotency_key": {"type": "string"},
    "created_after_ms": _MS,
    "created_before_ms": _MS,
    "settled_after_ms": _MS,
}
_STATE = {"type": "string", "enum": [state.value for state in JobState]}


class JobsBody(TypedDict):
    """A page of jobs, newest first; `next` is the `before` of the next page."""

    jobs: list[JobBody]
    next: int | None


class StateBody(TypedDict):
    """A state that a job has been in, and since when."""

    state: JobState
    at_ms: int


class WayBody(TypedDict):
    """The states that a job has been in, and its webhooks; oldest first. `retried_as` is the job that repeats it."""

    states: list[StateBody]
    webhooks: list[DeliveryBody]
    retried_as: str | None


class PromptBody(TypedDict):
    """What the job runs."""

    prompt: dict[str, Any]


class CancelJobsRequest(BaseModel):
    """Which jobs to cancel: these, or all of this owner."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job_ids: Annotated[list[str], Field(max_length=10_000)] | None = None
    owner: Annotated[str, Field(max_length=64)] | None = None


class CancelledCountBody(TypedDict):
    """How many jobs were cancelled."""

    cancelled: int


async def get_job(call: Call) -> web.StreamResponse:
    """`wait` holds the answer until the state changes: from `state`, where the caller names the one it knows."""
    jobs = call.services.jobs
    wait_s = read_number(call, "wait", 0, 0, 86400)
    job = await jobs.get(call.request.match_info["job_id"], call.client)
    if not job.state.settled:
        call.turn.rest()  # who asks again and again is held for a moment, too
        if wait_s:
            known = read_state(call.request.query.get("state", job.state.value), JobState)
            job = await jobs.wait(job, wait_s, known=known)
        else:
            job = await jobs.hold(job, call.client)
        await call.turn.take(Kind.WORK)
    return await _respond_with_files(call, job)


async def _respond_with_files(call: Call, job: Job) -> web.StreamResponse:
    body = await call.services.jobs.body(job, call.locale)
    await call.services.inline.add(body, job, call.client)
    return await work(measure(body), respond, body)


async def get_job_prompt(call: Call) -> web.StreamResponse:
    """The prompt of a job, in API format: with `converted`, what its workflow was made into."""
    await call.turn.take(Kind.LARGE)
    job_id = call.request.match_info["job_id"]
    body: PromptBody = {"prompt": await call.services.jobs.find_prompt(job_id, call.client)}
    return respond(body)


async def get_way(call: Call) -> web.StreamResponse:
    """The job's states with their times, the last 100, and its last 50 webhooks."""
    jobs = call.services.jobs
    states, deliveries, retry = await jobs.find_way(await jobs.get(call.request.match_info["job_id"], call.client))
    body: WayBody = {
        "states": [{"state": state, "at_ms": at_ms} for state, at_ms in states],
        "webhooks": [delivery.body() for delivery in deliveries],
        "retried_as": retry.job_id if retry is not None else None,
    }
    return respond(body)


async def post_retry(call: Call) -> web.StreamResponse:
    """A new job from what an ended one was submitted with, of the same owner, with `retry_of`; nothing is charged.

    Asked again, it answers with the job that it made before, and `Idempotency-Replayed: true`. An operator's retry
    counts against nobody's limits.
    """
    services = call.services
    job = await services.jobs.get(call.request.match_info["job_id"], call.client)
    is_own = call.client.owner == job.owner
    owner = call.client if is_own else services.access.find_owner(job.owner)
    submitted = await services.retries.repeat(job, owner, by_operator=call.client.operator)
    body = await services.jobs.body(submitted.job, call.locale)
    return respond(body, {"Idempotency-Replayed": "true"} if submitted.replayed else None)


async def list_jobs(call: Call) -> web.StreamResponse:
    """Newest first, or with `settled_after_ms` last settled first; `before` is the `next` of the page before.

    All filters must hold: `state` may be repeated or comma-separated, and `metadata.<name>` is the text of a value in
    the job's metadata. `text` is the id of a job or how that begins (8 letters at least), its idempotency key or client
    id, or the text of any value of its metadata; `owner` is for operators. A page looks at a thousand jobs, so it may
    hold few or none although there are more: `next` is null once there are none. An unknown field is refused.
    """
    check_query(call, {"state", *describe_page(_PAGE_AT_MOST), *_FILTERS}, prefix="metadata.")
    limit, before = read_page(call, _PAGE, _PAGE_AT_MOST)
    query = call.request.query
    wanted = Wanted(
        states=read_states(call, JobState) or None,
        code=query.get("code"),
        text=query.get("text"),
        template=query.get("template"),
        user=query.get("user"),
        idempotency_key=query.get("idempotency_key"),
        metadata={
            name.removeprefix("metadata."): value for name, value in query.items() if name.startswith("metadata.")
        },
        created_after_ms=read_whole_number(call, "created_after_ms"),
        created_before_ms=read_whole_number(call, "created_before_ms"),
        settled_after_ms=read_whole_number(call, "settled_after_ms"),
    )
    await call.turn.take(Kind.LARGE)
    found = await call.services.jobs.search(call.client, query.get("owner"), wanted, limit, before)
    jobs = await call.services.jobs.describe_all(found.jobs, call.locale)
    return await respond_at_length([("jobs", jobs), ("next", found.next)])


async def cancel_jobs(call: Call) -> web.StreamResponse:
    """Cancel those of `job_ids`, or all of one `owner` that were there when this was asked, running ones as well.

    Says how many of them this has cancelled. Jobs that the caller may not see are none.
    """
    asked: CancelJobsRequest = read_model(CancelJobsRequest, await read_given(call, _CANCEL_BYTES, SMALL))
    if (asked.job_ids is None) == (asked.owner is None):
        raise InvalidRequestError("Name either job_ids or an owner.", extra_info={"field": "job_ids"})
    jobs = call.services.jobs
    if asked.owner is not None:
        count = await jobs.cancel_all_of(call.client, asked.owner)
    else:
        count = await jobs.cancel_many(call.client, asked.job_ids or [])
    body: CancelledCountBody = {"cancelled": count}
    return respond(body)


async def delete_job(call: Call) -> web.StreamResponse:
    """Cancel. Asked again, or of a job that has ended, it answers the same way: with the job as it is."""
    jobs = call.services.jobs
    job = await jobs.get(call.request.match_info["job_id"], call.client)
    if not job.state.settled:
        job = await jobs.cancel(job)
    return respond(await jobs.body(job, call.locale))


ROUTES = [
    Route(
        "GET",
        "/jobs",
        list_jobs,
        about=About(
            {200: JobsBody},
            query={**describe_page(_PAGE_AT_MOST), **_FILTERS},
            refusals=READ,
        ),
    ),
    Route(
        "GET",
        "/jobs/{job_id}",
        get_job,
        about=About({200: JobBody}, query={"wait": WAIT, "state": _STATE}, refusals=(NotFoundError, *READ)),
    ),
    Route("GET", "/jobs/{job_id}/way", get_way, about=About({200: WayBody}, refusals=(NotFoundError, *READ))),
    Route(
        "GET",
        "/jobs/{job_id}/prompt",
        get_job_prompt,
        about=About({200: PromptBody}, refusals=(NotFoundError, PromptGoneError, *READ)),
    ),
    Route(
        "POST",
        "/jobs/{job_id}/retry",
        post_retry,
        about=About({200: JobBody}, refusals=(NotFoundError, PromptGoneError, *ADMISSION)),
    ),
    Route(
        "POST",
        "/jobs/cancel",
        cancel_jobs,
        about=About({200: CancelledCountBody}, body={"application/json": CancelJobsRequest}, refusals=COMMAND),
    ),
    Route(
        "DELETE",
        "/jobs/{job_id}",
        delete_job,
        about=About({200: JobBody}, refusals=(NotFoundError, *WRITE)),
    ),
]
