# Over 400 lines: one run times every operation, and each is a few lines of a request.
"""100,000 waiting jobs and 1,000,000 settled ones: what they do to every operation, and to the start after a SIGKILL.

Two servers of the same kind take turns, one with that database and one with an empty one; a long job holds the
worker of both, so that only the databases differ. While an operation is measured, one look-up of a job after the other
and one small write after the other show for how long these have to wait.

On a machine with other work, much of a wait is none of the server's doing: where the system tells, a wait counts only
as far as the server's process used the processor meanwhile. The table has the whole waits as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

import _backlog_fill
import _common
import _figures
import aiohttp
from _common import HostProcess

from comfyui_guarded.guard.access import keys
from comfyui_guarded.guard.access.keys import Key

BOT = "bot-a"
OWNERS = ("local", BOT, "bot-b", "bot-c", "bot-d", "bot-e")
BODY_BYTES = 1024
WORKFLOWS = 50
#: An operation may take twice as long as without the jobs, or so long; and hold up others for so long.
FACTOR, AT_MOST_MS = 2.0, 20.0
HELD_MS = 50.0
#: Longer than any list takes.
TIMEOUT = aiohttp.ClientTimeout(total=600)


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=3)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--settled", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=40, help="of each operation, per round and server")
    parser.add_argument("--starts", type=int, default=3, help="starts after SIGKILL, per server")
    parser.add_argument("--only", help="operations with this in their names")
    options = parser.parse_args()
    kind = _common.find_host_kind(options.host)
    environment = {
        **_common.NO_LIMITS,
        "GUARDED_NATIVE__MODE": "guarded",
        "GUARDED_LIMITS__JOBS_PER_MINUTE": "0",
        "GUARDED_STORE__MAX_BYTES": str(2**40),
        "GUARDED_STORE__BODIES_MAX_AGE_S": str(365 * 86400),
    }
    with _common.make_base_directory() as base:
        sides = {}
        for name in ("full", "empty"):
            host = HostProcess(kind, base / name, environment=environment)
            own = host.base / "user" / "__guarded"
            own.mkdir(parents=True)
            _key, secret = keys.create(own, Key("", BOT, "submit", "", 0, ""), same_owner=False)
            sides[name] = Side(name, host, secret, options.waiting, options.settled)
        database = sides["full"].host.base / "user" / "__guarded" / "guarded.db"
        began_s = time.monotonic()
        _backlog_fill.fill(database, OWNERS, options.waiting, options.settled, _body(), WORKFLOWS)
        _common.print_headline(kind, options)
        print(
            f"{options.waiting:,} waiting and {options.settled:,} settled jobs of {len(OWNERS)} owners, "
            f"{database.stat().st_size / 2**20:.0f} MiB, written in {time.monotonic() - began_s:.0f} s\n",
            flush=True,
        )
        full, empty = sides.values()
        with full.host, empty.host:
            asyncio.run(_compare(full, empty, options))
            if options.starts:
                _compare_starts(full.host, empty.host, options.starts)


def _body(**more: object) -> bytes:
    """A no-op prompt as long as a real one: the editor's workflow rides along, as ComfyUI's own page sends it."""
    plain = json.loads(_common.make_no_op(**more))
    node = {"id": 1, "type": "PreviewAny", "pos": [120, 340], "size": [210, 80], "widgets_values": ["a photo of …"]}
    rest = BODY_BYTES - len(json.dumps(plain))
    nodes = [node] * max(rest // (len(json.dumps(node)) + 2), 1)
    workflow = {"id": "workflow-3", "nodes": nodes, "links": []}
    return json.dumps({**plain, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}).encode()


# The operations. ---------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One of the two servers, and whom to ask for what there.

    Attributes:
        submitted: jobs that an operation has left waiting.
    """

    name: str
    host: HostProcess
    key: str
    waiting: int
    settled: int
    submitted: list[str] = field(default_factory=list)

    def pick_waiting(self) -> str:
        if self.name == "empty":
            return random.choice(self.submitted)
        return _backlog_fill.name_job(self.settled + random.randrange(1, self.waiting))

    def pick_settled(self) -> str:
        return _backlog_fill.name_job(random.randrange(1, self.settled)) if self.name == "full" else self.pick_waiting()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def _submit(**more: object) -> Callable[[Side], Request]:
    return lambda _side: Request("POST", "/guarded/prompt", _body(**more))


def _get(path: str, **query: object) -> Callable[[Side], Request]:
    return lambda _side: Request("GET", f"{path}?{urlencode(query)}")


def _as_bot(make: Callable[[Side], Request]) -> Callable[[Side], Request]:
    def made(side: Side) -> Request:
        request = make(side)
        return Request(request.method, request.path, request.body, (("Authorization", f"Bearer {side.key}"),))

    return made


def _idempotent(key: Callable[[], str]) -> Callable[[Side], Request]:
    return lambda _side: Request("POST", "/guarded/prompt", ONE_BODY, (("Idempotency-Key", key()),))


ONE_BODY = _body()
CLEAR = b'{"clear": true}'
LISTS = {
    "": {},
    ", waiting": {"state": "queued"},
    ", failed": {"state": "failed"},
    ", open": {"state": "queued,dispatched,running,validating"},
    ", ended": {"state": "succeeded,failed,cancelled"},
    ", next page": {"before": 500_000, "state": "cancelled"},
}
PAGES = {
    "": {},
    ", workflow_id": {"workflow_id": "workflow-3"},
    ", unknown workflow_id": {"workflow_id": "none"},
    ", sort": {"sort_by": "execution_duration", "sort_order": "asc"},
    ", failed": {"status": "failed"},
    ", offset": {"offset": 9_000},
    ", pending, offset": {"status": "pending", "offset": 900},
}

#: By name: what makes a request, and how many of a round's requests are sent, 0 for all.
OPERATIONS: dict[str, tuple[Callable[[Side], Request], int]] = {
    "submit": (_submit(), 0),
    "submit, key": (_as_bot(_submit()), 0),
    "submit, front": (_submit(front=True), 0),
    "submit, priority": (_submit(guard={"priority": 5}), 0),
    "submit, low priority": (_submit(guard={"priority": -5}), 0),
    "submit, number": (_submit(number=1_050_000.5), 0),
    "submit, new Idempotency-Key": (_idempotent(lambda: str(uuid.uuid4())), 0),
    "submit, known Idempotency-Key": (_idempotent(lambda: "known"), 0),
    "GET /guarded/jobs/{id}, waiting": (lambda side: Request("GET", f"/guarded/jobs/{side.pick_waiting()}"), 0),
    "GET /guarded/jobs/{id}, settled": (lambda side: Request("GET", f"/guarded/jobs/{side.pick_settled()}"), 0),
    "GET /guarded/jobs/{id}/prompt": (lambda side: Request("GET", f"/guarded/jobs/{side.pick_settled()}/prompt"), 0),
    "GET /guarded/history/{id}": (lambda side: Request("GET", f"/guarded/history/{side.pick_settled()}"), 0),
    "GET /history/{id}": (lambda side: Request("GET", f"/history/{side.pick_settled()}"), 0),
    "GET /guarded/api/jobs/{id}": (lambda side: Request("GET", f"/guarded/api/jobs/{side.pick_waiting()}"), 0),
    **{f"GET /guarded/jobs{name}": (_get("/guarded/jobs", limit=50, **query), 0) for name, query in LISTS.items()},
    **{
        f"GET /guarded/jobs, key{name}": (_as_bot(_get("/guarded/jobs", limit=50, **query)), 0)
        for name, query in LISTS.items()
    },
    "GET /guarded/queue, operator": (_get("/guarded/queue"), 0),
    "GET /guarded/queue, key": (_as_bot(_get("/guarded/queue")), 0),
    "GET /guarded/prompt": (_get("/guarded/prompt"), 0),
    "GET /queue": (_get("/queue"), 0),
    "GET /prompt": (_get("/prompt"), 0),
    **{
        f"GET /guarded/api/jobs{name}": (_get("/guarded/api/jobs", **{"limit": 50, **query}), 0)
        for name, query in PAGES.items()
    },
    "GET /guarded/api/jobs, key, workflow_id": (_as_bot(_get("/guarded/api/jobs", limit=50, workflow_id="none")), 0),
    "GET /guarded/history, 1000": (_get("/guarded/history"), 0),
    "GET /guarded/history, 50": (_get("/guarded/history", max_items=50), 0),
    "GET /guarded/history, offset": (_get("/guarded/history", max_items=50, offset=5_000), 0),
    "GET /guarded/history, key, 50": (_as_bot(_get("/guarded/history", max_items=50)), 0),
    "GET /guarded/stats": (_get("/guarded/stats"), 0),
    "GET /guarded/metrics": (_get("/guarded/metrics"), 0),
    "GET /guarded/webhooks": (_get("/guarded/webhooks", limit=50), 0),
    "cancel": (lambda side: Request("DELETE", f"/guarded/jobs/{side.pick_waiting()}"), 0),
    "delete from ComfyUI's queue": (
        lambda side: Request("POST", "/queue", json.dumps({"delete": [side.pick_waiting()]}).encode()),
        0,
    ),
    "delete from history": (
        lambda side: Request("POST", "/guarded/history", json.dumps({"delete": [side.pick_settled()]}).encode()),
        0,
    ),
    "clear history, key": (_as_bot(lambda _side: Request("POST", "/guarded/history", CLEAR)), 1),
    "clear queue, key": (_as_bot(lambda _side: Request("POST", "/guarded/queue", CLEAR)), 1),
}
#: What these do, or answer with, is as much as there is; so only what they hold up counts.
LONG = (
    "clear queue, key",
    "GET /guarded/queue, operator",
    "GET /guarded/queue, key",
    "GET /queue",
    "GET /guarded/history, 1000",
)


# Measuring. --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wait:
    """How long a request took, and how much of that the server worked, on whatever."""

    wall_ms: float
    own_ms: float


@dataclass
class Figures:
    """Of one operation on one server: its waits, and in each round the longest waits of others meanwhile."""

    waits: list[Wait] = field(default_factory=list)
    lookups: list[Wait] = field(default_factory=list)
    writes: list[Wait] = field(default_factory=list)


async def _compare(full: Side, empty: Side, options: argparse.Namespace) -> None:
    figures = {name: (Figures(), Figures()) for name in OPERATIONS if not options.only or options.only in name}
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session,
        _hold_worker(full.host),
        _hold_worker(empty.host),
    ):
        for side in (full, empty):
            for _ in range(50):
                side.submitted.append((await _send(session, side, _submit()(side)))["prompt_id"])
        for turn in range(options.rounds):
            for name, both in figures.items():
                make, at_most = OPERATIONS[name]
                count = min(at_most or options.requests, options.requests)
                for side, mine in zip((full, empty), both, strict=True) if turn % 2 else _swap(full, empty, both):
                    await _measure(session, side, make, count, mine)
                print(f"round {turn + 1} of {options.rounds}", *_row(name, *both), sep="  ", file=sys.stderr)
    rows = [_row(name, *both) for name, both in figures.items()]
    head = [
        "p50 / p99, longest wait of others, ms (by the wall)",
        "full",
        "empty",
        "",
        "look-up",
        "empty",
        "write",
        "empty",
        "",
    ]
    _figures.print_table(head, rows)


@asynccontextmanager
async def _hold_worker(host: HostProcess) -> AsyncIterator[None]:
    """As :func:`_common.hold_worker` does, by a job that goes first, as the guard has the native queue, too."""
    holder = {**json.loads(_common.make_holder()), "front": True}
    job_id = (await _common.ask(host.url, "POST", "/guarded/prompt", json.dumps(holder).encode()))["prompt_id"]
    while (await _common.ask(host.url, "GET", f"/guarded/jobs/{job_id}"))["state"] != "running":  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    try:
        yield
    finally:
        await _common.ask(host.url, "DELETE", f"/guarded/jobs/{job_id}")


def _swap(full: Side, empty: Side, both: tuple[Figures, Figures]) -> Iterator[tuple[Side, Figures]]:
    return iter(((empty, both[1]), (full, both[0])))


async def _measure(
    session: aiohttp.ClientSession, side: Side, make: Callable[[Side], Request], count: int, figures: Figures
) -> None:
    new: list[str] = []
    await _send(session, side, _get("/guarded/health")(side))
    async with (
        _watch(session, side, lambda: Request("GET", f"/guarded/jobs/{side.pick_settled()}"), figures.lookups),
        _watch(session, side, lambda: Request("POST", "/guarded/history", b'{"delete": ["none"]}'), figures.writes),
    ):
        await asyncio.sleep(0.05)
        for _ in range(count):
            request = make(side)
            answer, wait = await _time(session, side, request)
            figures.waits.append(wait)
            if request.path == "/guarded/prompt" and request.method == "POST":
                new.append(answer["prompt_id"])
        await asyncio.sleep(0.05)
    for start in range(0, len(new), 100):  # so that the queue is as long for the next operation
        body = json.dumps({"delete": new[start : start + 100]}).encode()
        await _send(session, side, Request("POST", "/guarded/queue", body))


@asynccontextmanager
async def _watch(
    session: aiohttp.ClientSession, side: Side, make: Callable[[], Request], longest: list[Wait]
) -> AsyncIterator[None]:
    """Send one request after the other, every few milliseconds, inside the block; add the longest waits."""
    waits: list[Wait] = []
    is_over = False

    async def go_on() -> None:
        while not is_over:
            waits.append((await _time(session, side, make()))[1])
            await asyncio.sleep(0.004)

    going = asyncio.create_task(go_on())
    try:
        yield
    finally:
        is_over = True
        await going
    longest.append(Wait(max(wait.wall_ms for wait in waits), max(wait.own_ms for wait in waits)))


async def _time(session: aiohttp.ClientSession, side: Side, request: Request) -> tuple[dict[str, str], Wait]:
    began_s, worked_s = time.perf_counter(), _common.read_cpu_s(side.host.pid)
    answer = await _send(session, side, request)
    wall_s, worked_s = time.perf_counter() - began_s, _common.read_cpu_s(side.host.pid) - worked_s
    return answer, Wait(wall_s * 1000, min(wall_s, math.inf if math.isnan(worked_s) else worked_s) * 1000)


async def _send(session: aiohttp.ClientSession, side: Side, request: Request) -> dict[str, str]:
    url, body, headers = side.host.url + request.path, request.body or None, dict(request.headers)
    if body:
        headers["Content-Type"] = "application/json"
    async with session.request(request.method, url, data=body, headers=headers) as response:
        content = await response.read()
        if response.status not in (200, 404, 409):
            raise RuntimeError(f"{request.method} {request.path}: HTTP {response.status}: {content[:300]!r}")
    return json.loads(content) if request.path == "/guarded/prompt" and request.method == "POST" else {}


def _row(name: str, full: Figures, empty: Figures) -> list[str]:
    sides = (full, empty)
    own = [[wait.own_ms for wait in side.waits] for side in sides]
    p99s = [_figures.percentile(each, 99) for each in own]
    walls = [_figures.percentile([wait.wall_ms for wait in side.waits], 99) for side in sides]
    figures = zip(own, p99s, walls, strict=True)
    is_fast = name in LONG or p99s[0] <= max(FACTOR * p99s[1], AT_MOST_MS)
    # Of the rounds the median. What holds others up does so in each round.
    held = [
        (statistics.median(wait.own_ms for wait in waits), statistics.median(wait.wall_ms for wait in waits))
        for waits in (full.lookups, empty.lookups, full.writes, empty.writes)
    ]
    is_free = all(ours <= max(HELD_MS, FACTOR * theirs) for (ours, _), (theirs, _) in (held[:2], held[2:]))
    return [
        name,
        *(f"{_figures.percentile(mine, 50):.1f} / {p99:.1f} ({wall:.0f})" for mine, p99, wall in figures),
        "met" if is_fast else "MISSED",
        *(f"{mine:.0f} ({wall:.0f})" for mine, wall in held),
        "met" if is_free else "MISSED",
    ]


# Starts. -----------------------------------------------------------------------------------------------------


def _compare_starts(full: HostProcess, empty: HostProcess, count: int) -> None:
    """From the start of the process until `/guarded/ready` says so, after a SIGKILL.

    One server at a time: the one with the backlog works it off as soon as it is up.
    """
    took_s: dict[str, list[float]] = {"full": [], "empty": []}
    full.kill()
    empty.kill()
    for turn in range(count):
        for name, host in (("full", full), ("empty", empty)) if turn % 2 else (("empty", empty), ("full", full)):
            took_s[name].append(_common.time_start_s(host, "/guarded/ready"))
            host.kill()
        print(f"start {turn + 1} of {count} done", file=sys.stderr, flush=True)
    added_s = statistics.median(one - other for one, other in zip(took_s["full"], took_s["empty"], strict=True))
    _figures.print_table(
        ["", "backlog", "empty store", "added", "budget", ""],
        [
            [
                "start after SIGKILL until ready, s",
                *(f"{statistics.median(took_s[name]):.2f}" for name in ("full", "empty")),
                f"{added_s:+.2f} s",
                "≤ +2 s",
                _figures.format_verdict(added_s, 2),
            ]
        ],
    )


if __name__ == "__main__":
    main()
