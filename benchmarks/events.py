"""How soon does a bot know? From the end of the job's last node to the verdict in the bot's hands.

    python benchmarks/events.py [--host sandbox|newest|oldest] [--jobs 300] [--readers 0]

One job at a time runs on an otherwise idle server. Its only node reports the time at which it ends; the benchmark
measures how long after that the bot has the verdict, with file checks and commit to disk: over server-sent events, over
the websocket (`execution_success`, for which clients of ComfyUI wait), by a webhook, and with `?wait` on the submit.
All of them listen to the same jobs. `--readers` adds this many readers of everything in the same process. They slow the
measurement down; then only the server's own time for each of them and each event counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from _common import find_host_kind, make_base_directory, make_parser, read_cpu_s
from _figures import percentile, print_table
from aiohttp import web

from comfyui_guarded.tests.hosts.launch import HostProcess, free_port

TARGET_MS = 50.0
SETTINGS = {"GUARDED_WEBHOOKS__ALLOW_HTTP": "true", "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8"}
#: queued, dispatched, running, validating, succeeded.
STATES = 5
WAYS = ("server-sent events", "websocket", "webhook", "?wait")


class Heard:
    """When the bot knew, by way and job."""

    def __init__(self) -> None:
        self._at_s: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], asyncio.Event] = defaultdict(asyncio.Event)

    def now(self, way: str, job_id: str) -> None:
        self._at_s.setdefault((way, job_id), time.time())
        self._waiting[way, job_id].set()

    async def at_s(self, way: str, job_id: str) -> float:
        await asyncio.wait_for(self._waiting[way, job_id].wait(), 30)
        return self._at_s[way, job_id]


async def read_events(session: aiohttp.ClientSession, url: str, heard: Heard, open_: asyncio.Event) -> None:
    async with session.get(f"{url}/guarded/events") as response:
        async for line in response.content:
            open_.set()
            if line.startswith(b"data: "):
                data = json.loads(line[6:])
                if data.get("refund") is not None:
                    heard.now(WAYS[0], data["job_id"])


async def read_socket(ws: aiohttp.ClientWebSocketResponse, heard: Heard) -> None:
    async for message in ws:
        if message.type is aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
            if event["type"] in ("execution_success", "execution_error"):
                heard.now(WAYS[1], event["data"]["prompt_id"])


@contextlib.asynccontextmanager
async def receiver(heard: Heard) -> AsyncIterator[str]:
    async def receive(request: web.Request) -> web.Response:
        heard.now(WAYS[2], (await request.json())["data"]["job_id"])
        return web.Response(status=204)

    app, port = web.Application(), free_port()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/hook"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def idle_readers(session: aiohttp.ClientSession, url: str, count: int) -> AsyncIterator[None]:
    """So many who follow everything, and read what comes without looking at it."""

    async def read() -> None:
        async with session.get(f"{url}/guarded/events") as response:
            async for _chunk in response.content.iter_any():
                pass

    tasks = [asyncio.create_task(read()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(host: HostProcess, jobs: int, readers: int) -> dict[str, list[float]]:
    """Milliseconds from the node's end to the bot's knowing, by way."""
    heard, late_ms = Heard(), defaultdict(list)
    client_id = uuid.uuid4().hex
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
        receiver(heard) as hook,
        session.ws_connect(f"{host.url}/guarded/ws?clientId={client_id}") as ws,
        idle_readers(session, host.url, readers),
    ):
        open_ = asyncio.Event()
        listening = [
            asyncio.create_task(read_events(session, host.url, heard, open_)),
            asyncio.create_task(read_socket(ws, heard)),
        ]
        await open_.wait()
        for number in range(jobs + 5):
            prompt = {"1": {"class_type": "FaultClock", "inputs": {"filename_prefix": "x", "seed": number}}}
            body = {"prompt": prompt, "client_id": client_id, "guard": {"webhook": {"url": hook}}}
            async with session.post(f"{host.url}/guarded/prompt?wait=60", json=body) as response:
                answer = await response.json(content_type=None)
            job: dict[str, Any] = answer["guard"]["job"]
            heard.now(WAYS[3], job["job_id"])
            ended_s = float(job["outputs"]["1"]["text"][0])
            for way in WAYS:
                at_s = await heard.at_s(way, job["job_id"])
                if number >= 5:  # the first ones open connections and load modules
                    late_ms[way].append((at_s - ended_s) * 1000)
            await asyncio.sleep(0.02)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    return late_ms


def main() -> None:
    assert __doc__ is not None
    parser = make_parser(__doc__, 1)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--readers", type=int, default=0, help="readers of all events beside the bot")
    options = parser.parse_args()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kind = find_host_kind(options.host)
    print(f"{kind.name}: {options.jobs} jobs one after the other, {options.readers} idle readers", flush=True)
    kept = True
    for _ in range(options.rounds):
        with make_base_directory() as base, HostProcess(kind, base, environment=SETTINGS) as host:
            before_s = read_cpu_s(host.pid)
            late_ms = asyncio.run(measure(host, options.jobs, options.readers))
            spent_s = read_cpu_s(host.pid) - before_s
        rows = []
        for way in WAYS:
            figures = [*(percentile(late_ms[way], per_cent) for per_cent in (50, 99)), max(late_ms[way])]
            kept &= figures[1] <= TARGET_MS
            rows.append([way, *(f"{figure:.1f}" for figure in figures)])
        print_table(["ms from the node's end", "p50", "p99", "max"], rows)
        if options.readers:
            each_us = spent_s / options.readers / (options.jobs * STATES) * 1e6
            print(f"server: {spent_s:.1f} s of processor time, {each_us:.0f} us for each reader and state at the most")
    if options.readers:
        return
    print(f"p99 within {TARGET_MS:g} ms by each way: {'kept' if kept else 'BROKEN'}")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
