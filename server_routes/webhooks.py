"""/guarded/webhooks: what could not be delivered; and the sending of all that is in the outbox."""

from __future__ import annotations

import logging

from aiohttp import web

from ..guard.errors import DiskFullError, InvalidRequestError, NotFoundError, ServerUnavailableError
from ..guard.store import DeliveryState
from .about import About
from .asked import number
from .table import Call, Route, answered

log = logging.getLogger("guarded.webhooks")


_PAGE = 50
_PAGE_AT_MOST = 500


# The routes. -------------------------------------------------------------------------------------------------


async def list_webhooks(call: Call) -> web.StreamResponse:
    """Given up ones, newest first; `state` (repeated or comma-separated) asks for others."""
    limit = int(number(call, "limit", _PAGE, 1, _PAGE_AT_MOST))
    before = int(number(call, "before", 2**53, 1, 2**53)) if "before" in call.request.query else None
    names = [name for value in call.request.query.getall("state", ["dead"]) for name in value.split(",") if name]
    try:
        states = frozenset(map(DeliveryState, names))
    except ValueError:
        known = ", ".join(state.value for state in DeliveryState)
        raise InvalidRequestError(f"state must be one of {known}.", extra_info={"field": "state"}) from None
    found = await call.services.outbox.page(call.client, states, limit, before)
    return answered(
        {
            "webhooks": [delivery.body() for delivery in found],
            "next": found[-1].number if len(found) == limit else None,
        }
    )


async def post_redeliver(call: Call) -> web.StreamResponse:
    """Try it again now, under its old id, whatever has become of it."""
    return answered((await call.services.outbox.redeliver(call.request.match_info["webhook_id"], call.client)).body())


ROUTES = [
    Route(
        "GET",
        "/webhooks",
        list_webhooks,
        about=About(
            {200: "Webhooks"},
            query={
                "state": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1, "maximum": _PAGE_AT_MOST},
                "before": {"type": "integer", "minimum": 1, "maximum": 2**53},
            },
        ),
    ),
    Route(
        "POST",
        "/webhooks/{webhook_id}/redeliver",
        post_redeliver,
        about=About({200: "Object"}, refusals=(NotFoundError, ServerUnavailableError, DiskFullError)),
    ),
]
