"""How late does the bot hear of a timeout? The promise: at its deadline + 1 s at the latest, 100 of 100.

    python benchmarks/deadline.py [--host sandbox|newest|oldest] [--jobs 100] [--load 16]

Each job runs past its deadline; some of them check for interrupts and some do not (a loop in Python, which also keeps
the interpreter from the event loop, and calls into C, which outlive the ladder). Each is submitted with `?wait`; the
benchmark compares the time of that answer with `started_at_ms` + `timeout_s` of the job. Meanwhile other clients keep
the event loop busy with submits, lists and long-polls.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from _common import (
    find_host_kind,
    make_base_directory,
    make_no_op,
    make_parser,
    open_connections,
)
from _figures import percentile, print_table

from comfyui_guarded.tests.hosts.launch import HostProcess

PROMISE_S = 1.0
TIMEOUT_S = 0.5
SETTINGS = {
    "GUARDED_QUEUE__MAX_QUEUED": "1000000",
    "GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "0.5",
    "GUARDED_WATCHDOG__MAX_DISOWNED": "8",
}
#: What runs past its deadline, in turns. A call into C outlives the ladder, by a time after which it is gone again.
KINDS: dict[str, dict[str, Any]] = {
    "checks": {"class_type": "FaultSleep", "inputs": {"seconds": 60.0, "checks_interrupt": True, "steps": 0}},
    "Python loop": {"class_type": "FaultHangPython", "inputs": {"seconds": 60.0}},
    "async": {"class_type": "FaultAsyncHang", "inputs": {"seconds": 60.0}},
    "C call": {"class_type": "FaultHangC", "inputs": {"seconds": 3.0}},
}


def make_overdue(number: int, kind: str) -> bytes:
    node = {**KINDS[kind], "inputs": {**KINDS[kind]["inputs"], "seed": number}}
    prompt = {"1": node, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    # Ahead of all that the load submits, so that none of those runs in between.
    return json.dumps({"prompt": prompt, "guard": {"timeout_s": TIMEOUT_S, "priority": 10}}).encode()


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[float, dict[str, Any]]:
    """When the answer with the verdict was there (seconds since the epoch), and the job."""
    async with session.post(f"{url}/guarded/prompt?wait=600", data=body) as response:
        answer = json.loads(await response.read())
        heard_s = time.time()
    if response.status != 200:
        raise RuntimeError(f"HTTP {response.status}: {answer}")
    return heard_s, answer["guard"]["job"]


@asynccontextmanager
async def busy_event_loop(url: str, clients: int) -> AsyncIterator[list[float]]:
    """So many clients that never pause; the latencies of their requests, in milliseconds."""
    latencies_ms: list[float] = []
    paths = itertools.cycle(["/guarded/jobs?limit=50", "/guarded/health", "/queue", "submit"])

    async def one(connection: Any) -> None:
        for path in paths:
            began_s = time.perf_counter()
            if path == "submit":
                await connection.request("POST", "/guarded/prompt", make_no_op())
            else:
                await connection.request("GET", path)
            latencies_ms.append((time.perf_counter() - began_s) * 1000)

    async with open_connections(url, clients, "raw") as opened:
        tasks = [asyncio.create_task(one(connection)) for connection in opened]
        try:
            yield latencies_ms
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def measure(host: HostProcess, jobs: int, load: int) -> bool:
    kinds = list(itertools.islice(itertools.cycle(KINDS), jobs))
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
        busy_event_loop(host.url, load) as latencies_ms,
    ):
        began_s = time.perf_counter()
        bodies = [make_overdue(number, kind) for number, kind in enumerate(kinds)]
        answers = await asyncio.gather(*(post(session, host.url, body) for body in bodies))
        took_s = time.perf_counter() - began_s
    late_s = [heard_s - (job["started_at_ms"] / 1000 + job["timeout_s"]) for heard_s, job in answers]
    codes = Counter(job["error"]["code"] for _heard, job in answers)
    print(
        f"{len(latencies_ms)} other requests in {took_s:.0f} s, {len(latencies_ms) / took_s:.0f} per s: "
        f"p50 {percentile(latencies_ms, 50):.0f} ms, p99 {percentile(latencies_ms, 99):.0f} ms\n"
    )

    def in_time(part: list[float]) -> str:
        return f"{sum(late <= PROMISE_S for late in part)} of {len(part)}"

    rows = []
    for kind in ("all", *KINDS):
        part = [late for late, each in zip(late_s, kinds, strict=True) if kind in ("all", each)]
        if part:
            figures = [*(percentile(part, per_cent) for per_cent in (50, 99)), max(part)]
            rows.append([kind, str(len(part)), *(f"{late * 1000:.0f}" for late in figures), in_time(part)])
    print_table(["ms after the deadline", "jobs", "p50", "p99", "max", f"within {PROMISE_S:g} s"], rows)
    kept = max(late_s) <= PROMISE_S and codes == {"generation_timeout": jobs}
    print(f"verdicts: {dict(codes)}; {in_time(late_s)}: {'kept' if kept else 'BROKEN'}")
    return kept


def main() -> None:
    assert __doc__ is not None
    parser = make_parser(__doc__, 1)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--load", type=int, default=16, help="clients that keep the event loop busy; default 16")
    options = parser.parse_args()
    kind = find_host_kind(options.host)
    print(f"{kind.name}: {options.jobs} jobs past their deadline, {options.load} clients beside them", flush=True)
    kept = True
    for _ in range(options.rounds):
        with make_base_directory() as base, HostProcess(kind, base, environment=SETTINGS) as host:
            kept &= asyncio.run(measure(host, options.jobs, options.load))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
