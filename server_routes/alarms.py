"""/guarded/alarms: what operators should look at, and what they have seen."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from ..guard.bounds import COMMAND as SMALL
from ..guard.bounds import read_model
from ..guard.operators.alarms import KeptAlarmBody
from .about import COMMAND, READ, About, describe_page
from .asked import read_given, read_page
from .table import Call, Route, respond

_PAGE = 50
_PAGE_AT_MOST = 500
_MAX_BYTES = 2**16


class AlarmsBody(TypedDict):
    """A page of alarms, newest first, and how many of all nobody has seen; `next` is the `before` of the next page."""

    alarms: list[KeptAlarmBody]
    unseen: int
    next: int | None


class SeenRequest(BaseModel):
    """Which alarms an operator has seen: those of these ids, and all up to the id `up_to`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: Annotated[list[Annotated[int, Field(ge=1, le=2**53)]], Field(max_length=1000)] = []
    up_to: Annotated[int, Field(ge=0, le=2**53)] = 0


class UnseenBody(TypedDict):
    """How many alarms are left that nobody has seen."""

    unseen: int


async def list_alarms(call: Call) -> web.StreamResponse:
    """The newest thousand are kept, also over a restart."""
    limit, before = read_page(call, _PAGE, _PAGE_AT_MOST)
    alarms = await call.services.alarms.list_page(limit, before)
    body: AlarmsBody = {
        "alarms": alarms,
        "unseen": await call.services.alarms.count_unseen(),
        "next": alarms[-1]["id"] if len(alarms) == limit else None,
    }
    return respond(body)


async def post_seen(call: Call) -> web.StreamResponse:
    """Mark alarms as seen, for all operators."""
    asked: SeenRequest = read_model(SeenRequest, await read_given(call, _MAX_BYTES, SMALL))
    body: UnseenBody = {"unseen": await call.services.alarms.mark_seen(asked.ids, asked.up_to)}
    return respond(body)


_QUERY = {name: schema for name, schema in describe_page(_PAGE_AT_MOST).items() if name != "state"}

ROUTES = [
    Route("GET", "/alarms", list_alarms, operate=True, about=About({200: AlarmsBody}, query=_QUERY, refusals=READ)),
    Route(
        "POST",
        "/alarms/seen",
        post_seen,
        operate=True,
        about=About({200: UnseenBody}, body={"application/json": SeenRequest}, refusals=COMMAND),
    ),
]
