"""A crowd: many open sockets and many submitters at once. It fails where anything is answered 5xx, a socket is lost or
memory stays.

    python tests/chaos/crowd.py [--sockets 500] [--submitters 200] [--seconds 60] [--real]

The same crowd comes for a sixth of the time first: what the server keeps after that (caches, threads, the heap of a
busy moment) it may keep; the minute after it must leave nothing more. `make crowd` runs it; Linux only, since it reads
/proc.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

TESTS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)
    import conftest  # noqa: F401, registers the package under its fixed name

from contract.client import PATIENCE_S, Client, assert_succeeded, connected, text  # noqa: E402

from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds, sandbox_kind  # noqa: E402

#: The noise of an allocator.
SLACK_MB = 24.0
#: At most so many sockets are opened at the same moment: the backlog of a listening socket is 128.
OPENED_AT_ONCE = 50


def rss_mb(host: HostProcess) -> float:
    lines = Path(f"/proc/{host.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@dataclass
class Seen:
    """What the crowd saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    settled: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    opened: int = 0
    messages: int = 0
    wrong: list[str] = field(default_factory=list)
    peak_mb: float = 0.0


async def listen(client: Client, client_id: str, seen: Seen, opening: asyncio.Semaphore, end: asyncio.Event) -> None:
    """One socket; it must live until the end."""
    path = "/guarded/ws" if len(client_id) % 2 else "/ws"
    async with contextlib.AsyncExitStack() as stack:
        async with opening:
            ws = await stack.enter_async_context(
                client.session.ws_connect(f"{client.host.url}{path}?clientId={client_id}", max_msg_size=0)
            )
        seen.opened += 1
        ending = asyncio.create_task(end.wait())
        try:
            while not end.is_set():
                receiving = asyncio.create_task(ws.receive())
                await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    receiving.cancel()
                    break
                if receiving.result().type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                    seen.wrong.append(f"the socket {client_id} was lost: {receiving.result()}")
                    return
                seen.messages += 1
        finally:
            ending.cancel()


async def submit(client: Client, name: str, client_id: str, seen: Seen, end: asyncio.Event) -> None:
    """One bot that has one job after the other made."""
    for count in itertools.count():
        if end.is_set():
            return
        began_s = time.monotonic()
        answer = await client.submit(text(f"{name} {count}"), wait_s=PATIENCE_S, client_id=client_id)
        seen.statuses[answer.status] += 1
        if answer.status >= 500:
            seen.wrong.append(str(answer))
        if answer.status == 200:
            job = answer.json["guard"]["job"]
            seen.settled[job["state"]] += 1
            if job["state"] != "succeeded":
                seen.wrong.append(json.dumps(job))
            seen.took_s.append(time.monotonic() - began_s)


async def crowd(client: Client, sockets: int, submitters: int, seconds: float, mark: str) -> Seen:
    """Let it come, and go."""
    seen = Seen()
    end = asyncio.Event()
    opening = asyncio.Semaphore(OPENED_AT_ONCE)
    ids = [f"{mark}-{at}{'x' * (at % 2)}" for at in range(max(sockets, 1))]
    listening = [asyncio.create_task(listen(client, client_id, seen, opening, end)) for client_id in ids[:sockets]]
    await client.polled(lambda: asyncio.sleep(0, seen.opened), lambda opened: opened == sockets)
    working = [
        asyncio.create_task(submit(client, f"{mark} {at}", ids[at % len(ids)], seen, end)) for at in range(submitters)
    ]
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        await asyncio.sleep(min(1.0, seconds / 5))
        seen.peak_mb = max(seen.peak_mb, rss_mb(client.host))
    end.set()
    for result in await asyncio.gather(*working, *listening, return_exceptions=True):
        if isinstance(result, BaseException):
            seen.wrong.append(repr(result))
    return seen


async def rest(client: Client) -> float:
    """What the server has once nobody is there: the least of some seconds."""
    # ComfyUI keeps the last 10,000 prompts; that growth is its own.
    await client.request("POST", "/history", {"clear": True})
    least_mb = rss_mb(client.host)
    for _ in range(6):
        await asyncio.sleep(0.5)
        least_mb = min(least_mb, rss_mb(client.host))
    return least_mb


async def visited(host: HostProcess, sockets: int, submitters: int, seconds: float) -> tuple[Seen, float, float]:
    """The crowd, and the server's memory in MB before and after it."""
    async with connected(host) as client:
        await crowd(client, sockets, submitters, seconds / 6, "warm")
        before_mb = await rest(client)
        seen = await crowd(client, sockets, submitters, seconds, "crowd")
        after_mb = await rest(client)
        assert_succeeded(await client.run(text()))
    return seen, before_mb, after_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--submitters", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--real", action="store_true", help="on the first real ComfyUI that is found")
    options = parser.parse_args()
    kind = real_kinds()[0] if options.real else sandbox_kind()
    base = Path(tempfile.mkdtemp(prefix="guarded-crowd-"))
    print(f"{kind.name}: {options.sockets} sockets, {options.submitters} submitters; the server's files are in {base}")
    with HostProcess(kind, base) as host:
        seen, before_mb, after_mb = asyncio.run(visited(host, options.sockets, options.submitters, options.seconds))
    took = statistics.quantiles(seen.took_s, n=100) if len(seen.took_s) > 1 else [0.0] * 99
    rate = len(seen.took_s) / options.seconds
    print(f"answers: {dict(seen.statuses)}, jobs: {dict(seen.settled)}, {rate:.0f} a second")
    print(f"submit → settled: p50 {took[49]:.2f} s, p99 {took[98]:.2f} s; {seen.messages} messages on the sockets")
    print(
        f"memory: {before_mb:.0f} MB before, {seen.peak_mb:.0f} at most, {after_mb:.0f} after ({SLACK_MB:.0f} allowed)"
    )
    for line in seen.wrong[:10]:
        print(line[:2000])
    well = not seen.wrong and after_mb - before_mb <= SLACK_MB
    print("well" if well else "FAILED")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
