"""/guarded/webhooks: what could not be delivered, and sending it again."""

from __future__ import annotations

from aiohttp import web
from typing_extensions import TypedDict

from ..guard.errors import NotFoundError
from ..guard.store import DeliveryState
from ..guard.store.outbox import DeliveryBody
from .about import READ, WRITE, About, describe_page
from .asked import read_page, read_states
from .table import Call, Route, respond

_PAGE = 50
_PAGE_AT_MOST = 500


class WebhooksBody(TypedDict):
    """A page of webhooks, newest first; `next` is the `before` of the next page."""

    webhooks: list[DeliveryBody]
    next: int | None


async def list_webhooks(call: Call) -> web.StreamResponse:
    """Newest first; those that were given up, or those in a `state` (repeated or comma-separated)."""
    limit, before = read_page(call, _PAGE, _PAGE_AT_MOST)
    states = read_states(call, DeliveryState, usual=("dead",))
    deliveries = await call.services.outbox.list_deliveries(call.client, states, limit, before)
    body: WebhooksBody = {
        "webhooks": [delivery.body() for delivery in deliveries],
        "next": deliveries[-1].number if len(deliveries) == limit else None,
    }
    return respond(body)


async def post_redeliver(call: Call) -> web.StreamResponse:
    """Try it again now, under its old id, whatever has become of it."""
    delivery = await call.services.outbox.redeliver(call.request.match_info["webhook_id"], call.client)
    return respond(delivery.body())


ROUTES = [
    Route(
        "GET",
        "/webhooks",
        list_webhooks,
        about=About({200: WebhooksBody}, query=describe_page(_PAGE_AT_MOST), refusals=READ),
    ),
    Route(
        "POST",
        "/webhooks/{webhook_id}/redeliver",
        post_redeliver,
        about=About({200: DeliveryBody}, refusals=(NotFoundError, *WRITE)),
    ),
]
