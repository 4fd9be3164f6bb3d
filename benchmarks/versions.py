"""This checkout of the package beside another one, in one run: what a submit, a whole job and a start cost.

`--against FOLDER` is the other checkout, for example an earlier commit (`git worktree add FOLDER COMMIT`). The servers'
processor time is the judge where the machine is shared, because others disturb it least.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import _common
import _figures
from _common import HostProcess, Load

CLIENTS = 32
CHUNK = 50
#: "No worse", allowing for what the rounds differ by.
BUDGET = 1.05


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=5)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of this package")
    parser.add_argument("--sequential", type=int, default=400, help="requests of the one client, per round")
    parser.add_argument("--concurrent", type=int, default=1000, help=f"requests of {CLIENTS} clients, per round")
    parser.add_argument("--whole", type=int, default=100, help="jobs from submit to settled, per round")
    parser.add_argument("--keyed", action="store_true", help="also whole jobs that come with a key")
    parser.add_argument("--starts", type=int, default=5, help="starts of each side")
    options = parser.parse_args()
    kind = _common.find_host_kind(options.host)
    with _common.make_base_directory() as base:
        _common.print_headline(kind, options)
        hosts = {
            "this": HostProcess(kind, base / "this", environment=_common.NO_LIMITS),
            "other": HostProcess(
                kind, base / "other", environment=_common.NO_LIMITS, package=options.against.resolve(strict=True)
            ),
        }
        starts = _start_in_turns(hosts, options.starts)
        with hosts["this"], hosts["other"]:
            figures = asyncio.run(_run(hosts, options))
    _show({**starts, **figures})


#: A figure's name -> its value in each round, by side.
Figures = dict[str, dict[str, list[float]]]


def _start_in_turns(hosts: dict[str, HostProcess], count: int) -> Figures:
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for turn in range(count + 1):
        for name in ("this", "other") if turn % 2 else ("other", "this"):
            seconds = _common.time_start_s(hosts[name], "/guarded/ready")
            cpu_s = _common.read_cpu_s(hosts[name].pid)
            hosts[name].stop()
            if turn:  # the first one compiles, creates the database, and warms the disk's cache
                figures["start until ready, s"][name].append(seconds)
                figures["start until ready, CPU s"][name].append(cpu_s)
        print(f"start {turn} of {count} done", file=sys.stderr, flush=True)
    return figures


async def _run(hosts: dict[str, HostProcess], options: argparse.Namespace) -> Figures:
    figures: Figures = defaultdict(lambda: defaultdict(list))

    def works(host: HostProcess, make: Callable[[], bytes]) -> Callable[[int], Awaitable[Load]]:
        async def work(count: int) -> Load:
            requests = [("POST", "/guarded/prompt?wait=60", make()) for _ in range(count)]
            return (await _common.load(host, requests, key=keys[host]))[0]

        return work

    def submits(host: HostProcess, clients: int, path: str) -> Callable[[int], Awaitable[Load]]:
        async def submit(count: int) -> Load:
            return (await _common.load(host, [("POST", path, _common.make_no_op()) for _ in range(count)], clients))[0]

        return submit

    for host in hosts.values():  # warm: imports, caches, SQLite's pages
        await submits(host, 1, "/guarded/prompt?wait=60")(50)
    keys = {host: _common.make_key(host) for host in hosts.values()} if options.keyed else {}
    await asyncio.sleep(3 if keys else 0)
    for turn in range(options.rounds):
        for what, make in (("a small job", _common.make_no_op), ("a picture", _common.make_picture)) if keys else ():
            sides = {name: works(host, make) for name, host in hosts.items()}
            for name, load in (await _common.run_in_turns(sides, options.whole, 10)).items():
                figures[f"{what} of a key, p50 ms"][name].append(load.p50_ms)
                figures[f"{what} of a key, CPU ms of the server"][name].append(load.server_cpu_ms)
        whole = {name: submits(host, 1, "/guarded/prompt?wait=60") for name, host in hosts.items()}
        for name, load in (await _common.run_in_turns(whole, options.whole, 10)).items():
            figures["submit until settled, p50 ms"][name].append(load.p50_ms)
            figures["submit until settled, CPU ms of the server"][name].append(load.server_cpu_ms)
        async with AsyncExitStack() as stack:
            for host in hosts.values():
                await stack.enter_async_context(_common.hold_worker(host))
            one = {name: submits(host, 1, "/guarded/prompt") for name, host in hosts.items()}
            many = {name: submits(host, CLIENTS, "/guarded/prompt") for name, host in hosts.items()}
            for name, load in (await _common.run_in_turns(one, options.sequential, CHUNK)).items():
                figures["submit, 1 client, p50 ms"][name].append(load.p50_ms)
                figures["submit, 1 client, CPU ms of the server"][name].append(load.server_cpu_ms)
            for name, load in (await _common.run_in_turns(many, options.concurrent, 5 * CHUNK)).items():
                figures[f"submit, {CLIENTS} clients, p50 ms"][name].append(load.p50_ms)
                figures[f"submit, {CLIENTS} clients, CPU ms of the server"][name].append(load.server_cpu_ms)
        for host in hosts.values():
            await _common.wait_idle(host, guarded=True)
        print(f"round {turn + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    return figures


def _show(figures: Figures) -> None:
    rows = []
    for name, values in figures.items():
        ratio = _figures.median_ratio(values["this"], values["other"])
        rows.append(
            [
                name,
                *(f"{statistics.median(values[side]):.2f}" for side in ("this", "other")),
                f"{ratio:.2f} ×",
                f"≤ {BUDGET:.2f} ×",
                _figures.format_verdict(ratio, BUDGET),
            ]
        )
    _figures.print_table(["", "this", "other", "ratio", "budget", ""], rows)


if __name__ == "__main__":
    main()
