"""/guarded/spending: what owners, users and templates have taken of the GPU in a month."""

from __future__ import annotations

from aiohttp import web

from ..guard.operators.spending import SpendingBody, write_csv
from ..guard.quotas.threads import run_beside
from .about import READ, About
from .asked import check_query, read_choice
from .table import Call, Route, respond


async def get_spending(call: Call) -> web.StreamResponse:
    """Sums of a month (`month=2026-11`, in UTC; else this one), or with `format=csv` a table by day.

    An operator sees everybody's, a key its own.
    """
    check_query(call, ("month", "format"), "month")
    month = call.request.query.get("month")
    if read_choice(call, "format", "json", "csv") == "json":
        return respond(await call.services.bills.month(call.client, month))
    text = await run_beside(write_csv, await call.services.bills.month_as_csv(call.client, month))
    return web.Response(text=text, content_type="text/csv")


ROUTES = [
    Route(
        "GET",
        "/spending",
        get_spending,
        about=About(
            {200: (SpendingBody, "text/csv")},
            query={
                "month": {"type": "string", "pattern": "^2[0-9]{3}-(0[1-9]|1[0-2])$"},
                "format": {"type": "string", "enum": ["json", "csv"]},
            },
            refusals=READ,
        ),
    )
]
