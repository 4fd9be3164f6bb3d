"""Thousands of idle websockets, ComfyUI's own against ours: what each costs, and what they do to the jobs.

One server; the sockets are opened on the one path, jobs are run through ComfyUI's `/prompt` one after the other, the
sockets are closed, and the same with the other path. ComfyUI tells every socket of every change of its queue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time

import _common
import aiohttp
from _common import HostProcess

PATHS = {"native": "/ws", "guarded": "/guarded/ws"}
#: Opened at once: the server's backlog of connections is not what is measured.
TOGETHER = 100


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=3)
    parser.add_argument("--sockets", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=20, help="per round and path")
    options = parser.parse_args()
    if sys.platform != "win32":
        import resource

        wanted = options.sockets * 2 + 500
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    kind = _common.find_host_kind(options.host)
    with _common.make_base_directory() as base, HostProcess(kind, base / "host", environment=_common.NO_LIMITS) as host:
        _common.print_headline(kind, options)
        asyncio.run(_measure(host, options))


async def _measure(host: HostProcess, options: argparse.Namespace) -> None:
    kib: dict[str, list[float]] = {name: [] for name in PATHS}
    per_job_ms: dict[str, list[float]] = {name: [] for name in (*PATHS, "none")}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await _run(session, host, 50)  # what the first ones cost is no socket's
        for _ in range(options.rounds):
            per_job_ms["none"].append(await _run(session, host, options.jobs))
            for name, path in PATHS.items():
                before = _memory_kib(host.pid)
                opened = []
                for _part in range(0, options.sockets, TOGETHER):
                    opened += await asyncio.gather(*(_open(session, host.url + path) for _ in range(TOGETHER)))
                kib[name].append((_memory_kib(host.pid) - before) / len(opened))
                reading = [asyncio.create_task(_read(ws)) for ws in opened]
                per_job_ms[name].append(await _run(session, host, options.jobs))
                await asyncio.gather(*(ws.close() for ws in opened))
                await asyncio.gather(*reading)
    rows = [("no sockets", "", f"{statistics.median(per_job_ms['none']):.1f} ms", "")]
    for name in PATHS:
        ratio = statistics.median(per_job_ms[name]) / statistics.median(per_job_ms["none"])
        rows.append(
            (
                f"{options.sockets:,} on {PATHS[name]}",
                f"{max(kib[name]):.1f} KiB",
                f"{statistics.median(per_job_ms[name]):.1f} ms",
                f"{ratio:.1f} ×",
            )
        )
    print(f"\n{'':24}{'each, at most':>16}{'per job':>12}{'ratio':>10}")
    for label, memory, job, ratio_text in rows:
        print(f"{label:24}{memory:>16}{job:>12}{ratio_text:>10}")


async def _open(session: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    ws = await session.ws_connect(url)
    await ws.receive()
    return ws


async def _read(ws: aiohttp.ClientWebSocketResponse) -> None:
    async for _message in ws:
        pass


async def _run(session: aiohttp.ClientSession, host: HostProcess, jobs: int) -> float:
    """Milliseconds for one native no-op job, from its submission until it is in the history."""
    began_s = time.perf_counter()
    for _ in range(jobs):
        async with session.post(f"{host.url}/prompt", data=_common.make_no_op(client_id="bench")) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        entries: dict[str, object] = {}
        while not entries:
            async with session.get(f"{host.url}/history/{prompt_id}") as answer:
                entries = json.loads(await answer.read())
    return (time.perf_counter() - began_s) * 1000 / jobs


def _memory_kib(pid: int) -> float:
    """Of the process, resident."""
    with open(f"/proc/{pid}/status") as lines:
        return next(float(line.split()[1]) for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
