"""Submit a no-op prompt: `/guarded/prompt` beside ComfyUI's own `/prompt`, in one run.

Three sides take turns: the guarded route; the native route of an unguarded server; the native route of the guarded
server, which shows what the seam's wrappers cost those who do not use the guard.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import _common
import _figures
import aiohttp
from _common import HostProcess, Load

CLIENTS = 32
CHUNK = 50
#: How much longer one client may wait for its submit than natively.
ADDED_MS = 0.5
ROUTES = {"guarded": "/guarded/prompt", "native": "/prompt", "beside": "/prompt"}


#: What one client got, and what many got, by side.
Round = tuple[dict[str, Load], dict[str, Load]]


@dataclass(frozen=True)
class Side:
    """`beside` is the native route of the guarded server."""

    name: str
    host: HostProcess

    @property
    def path(self) -> str:
        return ROUTES[self.name]

    async def idle(self) -> None:
        await _common.wait_idle(self.host, guarded=self.name != "native")


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=5)
    parser.add_argument("--sequential", type=int, default=400, help="requests of the one client, per round")
    parser.add_argument("--concurrent", type=int, default=1000, help=f"requests of {CLIENTS} clients, per round")
    parser.add_argument("--whole", type=int, default=100, help="jobs from submit to settled, per round")
    parser.add_argument(
        "--client", choices=("aiohttp", "raw"), default="aiohttp", help="raw: bare sockets, nearly no cost of its own"
    )
    parser.add_argument("--survives", choices=("kill", "power_cut"), default="kill", help="store.survives")
    options = parser.parse_args()
    with _common.start_both(options, {"GUARDED_STORE__SURVIVES": options.survives}) as (guarded, bare):
        sides = [Side("guarded", guarded), Side("native", bare), Side("beside", guarded)]
        asyncio.run(_run(sides, options))


async def _run(sides: list[Side], options: argparse.Namespace) -> None:
    free: list[Round] = []
    held: list[Round] = []
    whole: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    for side in sides:  # warm: imports, caches, SQLite's pages
        await _submit(side, 50, 1, options.client)
        await _whole(side, 20)
        await side.idle()
    for turn in range(options.rounds):
        free.append(await _round(sides, options, idle=True))
        async with AsyncExitStack() as stack:
            for host in {side.host.url: side.host for side in sides}.values():
                await stack.enter_async_context(_common.hold_worker(host))
            held.append(await _round(sides, options, idle=False))
        for side in sides:
            await side.idle()
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            cpu_s = _common.read_cpu_s(side.host.pid)
            whole[side.name].append(statistics.median(await _whole(side, options.whole)))
            await side.idle()
            cpu[side.name].append((_common.read_cpu_s(side.host.pid) - cpu_s) * 1000 / options.whole)
        print(f"round {turn + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    _show("worker free: as it comes, the jobs run meanwhile", free)
    _show("worker held by one long job: admission alone", held)
    _show_whole(whole, cpu)


async def _round(sides: list[Side], options: argparse.Namespace, idle: bool) -> Round:
    """One client, then many. `idle`: let each side finish its jobs before it is the next one's turn."""

    def submits(side: Side, clients: int) -> Callable[[int], Awaitable[Load]]:
        async def submit(count: int) -> Load:
            measured = await _submit(side, count, clients, options.client)
            if idle:
                await side.idle()
            return measured

        return submit

    one = await _common.run_in_turns({side.name: submits(side, 1) for side in sides}, options.sequential, CHUNK)
    many = await _common.run_in_turns(
        {side.name: submits(side, CLIENTS) for side in sides}, options.concurrent, 5 * CHUNK
    )
    return one, many


async def _submit(side: Side, count: int, clients: int, client: str) -> Load:
    requests = [("POST", side.path, _common.make_no_op()) for _ in range(count)]
    return (await _common.load(side.host, requests, clients, client))[0]


async def _whole(side: Side, count: int) -> list[float]:
    """Milliseconds from submit to the end: the guard's `?wait`, ComfyUI's own word on the websocket."""
    times_ms = []
    client_id = uuid.uuid4().hex
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        if side.name == "guarded":
            for _ in range(count):
                body = _common.make_no_op()
                began_s = time.perf_counter()
                async with session.post(f"{side.host.url}{side.path}?wait=60", data=body) as response:
                    answer = await response.json()
                times_ms.append((time.perf_counter() - began_s) * 1000)
                if answer["guard"]["state"] != "succeeded":
                    raise RuntimeError(f"a no-op job did not succeed: {answer}")
            return times_ms
        async with session.ws_connect(f"{side.host.url}/ws?clientId={client_id}") as socket:
            for _ in range(count):
                body = _common.make_no_op(client_id=client_id)
                began_s = time.perf_counter()
                async with session.post(side.host.url + side.path, data=body) as response:
                    prompt_id = (await response.json())["prompt_id"]
                while not _is_end(await socket.receive(), prompt_id):
                    pass
                times_ms.append((time.perf_counter() - began_s) * 1000)
    return times_ms


def _is_end(message: aiohttp.WSMessage, prompt_id: str) -> bool:
    """`executing` without a node: the prompt is in the history by then."""
    if message.type is aiohttp.WSMsgType.BINARY:
        return False
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise RuntimeError(f"the websocket ended: {message}")
    event = json.loads(message.data)
    data = event["data"]
    return event["type"] == "executing" and data.get("node") is None and data.get("prompt_id") == prompt_id


def _show(title: str, rounds: list[Round]) -> None:
    print(f"\n{title}")
    rows = []
    for name, unit, budget, at_least, of in (
        ("submit p50, 1 client", "ms", None, False, lambda one, many: one.p50_ms),
        ("submit p99, 1 client", "ms", None, False, lambda one, many: one.p99_ms),
        (f"submits per second, {CLIENTS} clients", "/s", 0.50, True, lambda one, many: many.per_s),
        (f"submit p50, {CLIENTS} clients", "ms", None, False, lambda one, many: many.p50_ms),
        (f"submit p99, {CLIENTS} clients", "ms", None, False, lambda one, many: many.p99_ms),
        ("the server's CPU time per submit, 1 client", "ms", None, False, lambda one, many: one.server_cpu_ms),
        (
            f"the server's CPU time per submit, {CLIENTS} clients",
            "ms",
            None,
            False,
            lambda one, many: many.server_cpu_ms,
        ),
    ):
        values = {side: [of(one[side], many[side]) for one, many in rounds] for side in ROUTES}
        ours = _figures.median_ratio(values["guarded"], values["native"])
        digits = ".0f" if unit == "/s" else ".2f"
        rows.append(
            [
                f"{name}, {unit}",
                *(f"{statistics.median(values[side]):{digits}}" for side in ("guarded", "native")),
                f"{ours:.2f} ×",
                f"{'≥' if at_least else '≤'} {budget:.2f} ×" if budget else "",
                _figures.format_verdict(ours, budget, at_least) if budget else "",
                f"{statistics.median(values['beside']):{digits}}",
                f"{_figures.median_ratio(values['beside'], values['native']):.2f} ×",
            ]
        )
    _figures.print_table(
        ["", "guarded", "native", "ratio", "budget", "", "native route, guarded server", "its ratio"], rows
    )
    added_ms = statistics.median(one["guarded"].p50_ms - one["native"].p50_ms for one, _many in rounds)
    verdict = _figures.format_verdict(added_ms, ADDED_MS)
    print(f"One client waits {added_ms:+.2f} ms longer; at most {ADDED_MS:+.1f} ms: {verdict}.")
    share = max(statistics.median(many[side].generator_share for _one, many in rounds) for side in ROUTES)
    print(f"At {CLIENTS} clients the load generator used {share:.0%} of one CPU.", end=" ")
    if share > _common.BUSY_GENERATOR:
        print("IT MAY BE THE BOTTLENECK of the figures per second; --client raw costs less.", end="")
    print(flush=True)


def _show_whole(whole: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    added_ms = statistics.median(ours - theirs for ours, theirs in zip(whole["guarded"], whole["native"], strict=True))
    ratio = _figures.median_ratio(cpu["guarded"], cpu["native"])
    print("\nend to end: submit until settled (guarded, ?wait) against submit until `executing` null on the websocket")
    _figures.print_table(
        ["", "guarded", "native", "ratio", "budget", "", "native route, guarded server"],
        [
            [
                "no-op job, p50, ms",
                *(f"{statistics.median(whole[side]):.2f}" for side in ("guarded", "native")),
                f"{added_ms:+.2f} ms",
                "≤ +10 ms",
                _figures.format_verdict(added_ms, 10),
                f"{statistics.median(whole['beside']):.2f}",
            ],
            [
                "the server's CPU time per job, ms",
                *(f"{statistics.median(cpu[side]):.2f}" for side in ("guarded", "native")),
                f"{ratio:.2f} ×",
                "≤ 2.00 ×",
                _figures.format_verdict(ratio, 2.0),
                f"{statistics.median(cpu['beside']):.2f}",
            ],
        ],
    )


if __name__ == "__main__":
    main()
