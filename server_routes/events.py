"""/guarded/events and /guarded/jobs/{id}/events: server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

from aiohttp import web

from ..guard.errors import GuardError, InvalidRequestError, NotFoundError
from ..guard.events.event import ALARM, POSITION, PREVIEW, PROGRESS, STATE, Event
from ..guard.events.subscription import Subscription
from ..guard.job import Job
from .about import FLAG, READ, STREAM, About, Schema
from .asked import read_flag, read_number
from .pace import has_room, write_part
from .table import Call, Route

#: Send a comment after so long without an event: proxies cut a silent connection after a minute, and a failed write
#: tells us who has gone.
HEARTBEAT_S = 15.0
HEARTBEAT = b": still here\n\n"
#: Who is cut off is to come again after a second.
RETRY = b"retry: 1000\n\n"
#: So often a stream looks whether its caller's key is still good.
KEY_LOOK_S = 0.5
#: So much is made of a reader's events in one turn of the loop.
_AT_ONCE_BYTES = 2**14
#: Let a reader go that takes nothing for so long. It comes back with the last id that it has seen.
STALLED_S = 60.0

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would collect the events before it passes them on
}


async def get_job_events(call: Call) -> web.StreamResponse:
    """The job as it is, or what the caller has missed of it; then what happens, to its end.

    The data of each event is an `Event`.
    """
    after = read_last_event_id(call)
    job = await call.services.jobs.get(call.request.match_info["job_id"], call.client)
    with (
        call.services.quotas.stream(call.client),
        call.services.events.subscribe(_choose_names(call), job_id=job.job_id, after=after) as reader,
    ):
        if after is not None and job.state.settled and after >= job.event_id:
            return web.Response(status=204)  # what tells a browser not to come again
        first = []
        if after is None:
            job = await call.services.jobs.get(job.job_id, call.client)
            shown = await call.services.jobs.body(job)
            reader.has_seen(job.event_id)
            first = [Event(STATE, lambda: shown, job, job.event_id)]
        return await _stream(call, reader, first)


async def get_events(call: Call) -> web.StreamResponse:
    """What happens from now on, or after the last event that the caller has seen.

    The data of each event is an `Event`.
    """
    owner = call.client.sees_only
    after = read_last_event_id(call)
    if after is None:
        # With its number at hand from the start, a reader misses nothing by being cut off before the first event.
        after = await call.services.events.read_head()
    names = _choose_names(call) | ({ALARM} if call.client.operator else set())
    with (
        call.services.quotas.stream(call.client),
        call.services.events.subscribe(names, owner=owner, after=after) as reader,
    ):
        return await _stream(call, reader, [], after)


async def _stream(call: Call, reader: Subscription, first: list[Event], after: int | None = None) -> web.StreamResponse:
    ends_s = time.monotonic() + read_number(call, "wait", float("inf"), 0, float("inf"))
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(call.request)
    # A browser remembers an id without data, and tells its page of no event.
    chunk = RETRY + (b"" if after is None else f"id: {after}\n\n".encode())
    events, last = first, b""
    # A reader that is slow or gone, or whose events the store cannot read now, will come again.
    with call.services.events.streaming(), contextlib.suppress(ConnectionError, GuardError):
        while True:
            for event in events:
                chunk += event.frame
                if len(chunk) >= _AT_ONCE_BYTES:
                    await write_part(call.request, response, chunk, STALLED_S)
                    chunk = b""
                    await asyncio.sleep(0)  # others have their turn while a long history is made
            if not events:
                chunk += RETRY if reader.is_over else HEARTBEAT
            is_over = reader.job_id is not None and any(_is_ending(event) for event in events)
            if is_over and has_room(call.request, len(chunk)):
                last = chunk
                break
            if chunk:
                await write_part(call.request, response, chunk, STALLED_S)
            call.turn.close()  # from now on it counts as a stream; what it begins with may be large
            chunk = b""
            if is_over:
                break
            rest_s = ends_s - time.monotonic()
            if rest_s <= 0 or (reader.is_over and not events):
                break
            following = await _wait(call, reader, 0 if reader.is_over else min(rest_s, HEARTBEAT_S))
            if following is None:
                break
            events = following
        await response.write_eof(last)  # in one call of the system: the end of a job, and that of its stream
    return response


async def _wait(call: Call, reader: Subscription, wait_s: float) -> list[Event] | None:
    """The next events, or none after so long. None: the caller's key has ended meanwhile."""
    ends_s = time.monotonic() + wait_s
    while True:
        rest_s = max(ends_s - time.monotonic(), 0)
        events = await reader.next(min(rest_s, KEY_LOOK_S))
        if not call.services.access.is_current(call.client):
            return None
        if events or reader.is_over or rest_s <= KEY_LOOK_S:
            return events


def _is_ending(event: Event) -> bool:
    return isinstance(event.job, Job) and event.job.state.settled


def read_last_event_id(call: Call) -> int | None:
    """`Last-Event-ID`, as a browser sends it when it comes again; in the query for clients that cannot send it."""
    given = call.request.headers.get("Last-Event-ID") or call.request.query.get("last_event_id")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise InvalidRequestError("Last-Event-ID must be the id of an event.", extra_info={"field": "last_event_id"})
    return int(given)


def _choose_names(call: Call) -> set[str]:
    names = {STATE, POSITION, PROGRESS}
    return names | {PREVIEW} if read_flag(call, "preview") else names


LAST_EVENT_ID: Schema = {"type": "integer", "minimum": 0, "maximum": 10**18}

_QUERY: Mapping[str, Schema] = {
    "wait": {"type": "number", "minimum": 0},
    "preview": FLAG,
    "last_event_id": LAST_EVENT_ID,
}
_RESUMING = {"Last-Event-ID": "The id of the last event that the client has seen."}

ROUTES = [
    Route("GET", "/events", get_events, about=About({200: STREAM}, _QUERY, _RESUMING, refusals=READ)),
    Route(
        "GET",
        "/jobs/{job_id}/events",
        get_job_events,
        about=About({200: STREAM, 204: None}, _QUERY, _RESUMING, refusals=(NotFoundError, *READ)),
    ),
]
