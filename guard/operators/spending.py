"""What each owner, user and template has taken of the GPU, for a bot that sets prices, and as a table for a month."""

from __future__ import annotations

import csv
import io
import re
from asyncio import wrap_future
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Protocol

from typing_extensions import TypedDict

from ..client import Client
from ..clock import Clock
from ..errors import InvalidRequestError
from ..store import Spending, name_day

_MONTH = re.compile(r"2[0-9]{3}-(?:0[1-9]|1[0-2])")
#: Rows of a month that are read, and that an answer as JSON has.
ROWS = 100_000
SHOWN = 1000


class SpendingRow(TypedDict):
    """The runs of an owner's user and template ("": of none), and the seconds that they took of the worker."""

    owner: str
    user: str
    template: str
    runs: int
    gpu_s: float
    load_s: float


class SpendingBody(TypedDict):
    """A month; `rows` are those that took most, `runs` and `gpu_s` those of all."""

    month: str
    runs: int
    gpu_s: float
    rows: list[SpendingRow]


class Records(Protocol):
    """What is asked of the job store: see :class:`guard.store.Store`."""

    def read_spending(self, owner: str | None, first: str, last: str, limit: int) -> Future[list[Spending]]: ...


class Bills:
    """Event loop; the store's lister thread reads."""

    def __init__(self, store: Records, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def month(self, client: Client, month: str | None) -> SpendingBody:
        """A month's sums: of everybody for an operator, else of the client's own. Raises InvalidRequestError."""
        month = self._check(month)
        rows = await self._read(client, month)
        sums = sum_up(rows)
        return {
            "month": month,
            "runs": sum(row.runs for row in rows),
            "gpu_s": round(sum(row.gpu_ms for row in rows) / 1000, 3),
            "rows": sums[:SHOWN],
        }

    async def month_as_csv(self, client: Client, month: str | None) -> list[Spending]:
        """A month's rows by day, for :func:`write_csv`. Raises InvalidRequestError."""
        return await self._read(client, self._check(month))

    def _check(self, month: str | None) -> str:
        month = month or name_day(self._clock.now_ms())[:7]
        if _MONTH.fullmatch(month) is None:
            raise InvalidRequestError("month must be like 2026-11.", extra_info={"field": "month"})
        return month

    async def _read(self, client: Client, month: str) -> list[Spending]:
        return await wrap_future(self._store.read_spending(client.sees_only, f"{month}-01", f"{month}-31", ROWS))


def sum_up(rows: Iterable[Spending]) -> list[SpendingRow]:
    """The sums over the days, the largest first."""
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        one = sums[row.owner, row.user, row.template]
        one[0] += row.runs
        one[1] += row.gpu_ms
        one[2] += row.load_ms
    return [
        {
            "owner": owner,
            "user": user,
            "template": template,
            "runs": runs,
            "gpu_s": round(gpu_ms / 1000, 3),
            "load_s": round(load_ms / 1000, 3),
        }
        for (owner, user, template), (runs, gpu_ms, load_ms) in sorted(sums.items(), key=lambda item: -item[1][1])
    ]


def write_csv(rows: Iterable[Spending]) -> str:
    """The rows as a table. Not for the event loop."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("day", "owner", "user", "template", "runs", "gpu_s", "load_s"))
    for row in rows:
        names = map(_disarm, (row.owner, row.user, row.template))
        writer.writerow((row.day, *names, row.runs, f"{row.gpu_ms / 1000:.3f}", f"{row.load_ms / 1000:.3f}"))
    return table.getvalue()


def _disarm(name: str) -> str:
    """A name that no spreadsheet takes for a formula: users name themselves."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t") else name
