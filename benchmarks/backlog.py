"""A queue of 100,000: what it does to a submit, to reading a job's position, and to the start after a SIGKILL.

Two servers of the same kind take turns, one with the backlog and one with an empty store; a long native job holds
the worker of both, so that only the queue's length differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import _common
from _common import HostProcess, Load

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import NewJob
from comfyui_guarded.guard.store import SqliteStore

OWNERS = ("local", "bot-a", "bot-b", "bot-c", "bot-d", "bot-e")
BODY_BYTES = 2048
CHUNK = 50


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=5)
    parser.add_argument("--jobs", type=int, default=100_000, help="length of the backlog")
    parser.add_argument("--submits", type=int, default=300, help="per round and server")
    parser.add_argument("--reads", type=int, default=300, help="per round and server")
    parser.add_argument("--starts", type=int, default=3, help="starts after SIGKILL, per server")
    parser.add_argument("--client", choices=("aiohttp", "raw"), default="aiohttp")
    parser.add_argument("--fill", type=Path, metavar="DATABASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        _fill(options.fill, options.jobs)
        return
    kind = _common.find_host_kind(options.host)
    with _common.make_base_directory() as base:
        full = HostProcess(kind, base / "full", environment=_common.NO_LIMITS)
        empty = HostProcess(kind, base / "empty", environment=_common.NO_LIMITS)
        database = full.base / "user" / "__guarded" / "guarded.db"
        began_s = time.monotonic()
        job_ids = _fill_store(database, options.jobs)
        _common.print_headline(kind, options)
        print(
            f"{options.jobs:,} jobs of {len(OWNERS)} owners, {database.stat().st_size / 2**20:.0f} MiB, "
            f"written in {time.monotonic() - began_s:.0f} s\n",
            flush=True,
        )
        with full, empty:
            asyncio.run(_compare_latencies(full, empty, job_ids, options))
            _compare_starts(full, empty, options.starts)


# The backlog. ------------------------------------------------------------------------------------------------


def _fill_store(database: Path, jobs: int) -> list[str]:
    """Fill a store while its server is off, in a process that owns it meanwhile; some of the jobs' ids."""
    command = [sys.executable, __file__, "--fill", str(database), "--jobs", str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the backlog could not be written: {done.stderr}")
    ids: list[str] = json.loads(done.stdout)
    return ids


def _fill(database: Path, jobs: int) -> None:
    store = SqliteStore(database, Clock())
    pending: deque[Any] = deque()
    job_ids = []
    for count in range(jobs):
        job_id = str(uuid.uuid4())
        if count % 97 == 0:
            job_ids.append(job_id)
        new = NewJob(
            job_id=job_id,
            owner=OWNERS[count % len(OWNERS)],
            body=_body(),
            created_at_ms=time.time_ns() // 1_000_000,
            timeout_s=600,
            locale="ru",
            shape="PreviewAny,PrimitiveInt",
            outputs_to_execute=("2",),
            metadata={"chat": count, "credits": 1},
        )
        pending.append(store.submit(new, 10 * jobs))
        if len(pending) > 2000:
            pending.popleft().result()
    for future in pending:
        future.result()
    store.close()
    print(json.dumps(job_ids))


def _body() -> bytes:
    """A no-op prompt as long as a real one: the editor's workflow rides along, as ComfyUI's own page sends it."""
    plain = json.loads(_common.make_no_op())
    node = {"id": 1, "type": "PreviewAny", "pos": [120, 340], "size": [210, 80], "widgets_values": ["a photo of …"]}
    rest = BODY_BYTES - len(json.dumps(plain))
    nodes = [node] * max(rest // (len(json.dumps(node)) + 2), 1)
    return json.dumps({**plain, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": nodes, "links": []}}}}).encode()


# Submits and reads. ------------------------------------------------------------------------------------------


async def _compare_latencies(
    full: HostProcess, empty: HostProcess, job_ids: list[str], options: argparse.Namespace
) -> None:
    submits: dict[str, list[Load]] = {"full": [], "empty": []}
    reads: dict[str, list[Load]] = {"full": [], "empty": []}
    hosts = {"full": full, "empty": empty}
    async with AsyncExitStack() as stack:
        for host in hosts.values():
            await stack.enter_async_context(_common.hold_worker(host))
        few = [await _submit_one(empty) for _ in range(20)]
        known = {"full": job_ids, "empty": few}
        submitting = {name: _make_submitter(host, options.client) for name, host in hosts.items()}
        reading = {name: _make_reader(host, known[name], options.client) for name, host in hosts.items()}
        await _common.run_in_turns(submitting, CHUNK, CHUNK)
        await _common.run_in_turns(reading, CHUNK, CHUNK)
        for turn in range(options.rounds):
            for name, measured in (await _common.run_in_turns(submitting, options.submits, CHUNK)).items():
                submits[name].append(measured)
            for name, measured in (await _common.run_in_turns(reading, options.reads, CHUNK)).items():
                reads[name].append(measured)
            print(f"round {turn + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    rows = []
    for what, loads, budgets in (
        ("submit, 1 client", submits, (None, 2.0)),
        ("GET /guarded/jobs/{id}, with its position", reads, (None, None)),
    ):
        for (name, of), budget in zip(
            (("p50", lambda load: load.p50_ms), ("p99", lambda load: load.p99_ms)), budgets, strict=True
        ):
            rows.append(_row(f"{what}, {name}, ms", loads, of, budget))
    _common.print_table(["", f"{options.jobs:,} queued", "none queued", "ratio", "budget", ""], rows)


def _row(name: str, loads: dict[str, list[Load]], of: Callable[[Load], float], budget: float | None) -> list[str]:
    values = {side: [of(load) for load in side_loads] for side, side_loads in loads.items()}
    ours = _common.median_ratio(values["full"], values["empty"])
    return [
        name,
        *(f"{statistics.median(values[side]):.2f}" for side in ("full", "empty")),
        f"{ours:.2f} ×",
        f"≤ {budget:g} ×" if budget else "",
        _common.format_verdict(ours, budget) if budget else "",
    ]


async def _submit_one(host: HostProcess) -> str:
    return str((await _common.ask(host.url, "POST", "/guarded/prompt", _body()))["prompt_id"])


def _make_submitter(host: HostProcess, client: str) -> Callable[[int], Awaitable[Load]]:
    async def submits(count: int) -> Load:
        """Submit, and take the jobs back, so that the queue is as long the next time."""
        requests = [("POST", "/guarded/prompt", _body()) for _ in range(count)]
        measured, answers = await _common.load(host, requests, client=client)
        ids = [json.loads(answer)["prompt_id"] for answer in answers]
        await _common.load(host, [("DELETE", f"/guarded/jobs/{job_id}", b"") for job_id in ids], clients=4)
        return measured

    return submits


def _make_reader(host: HostProcess, job_ids: list[str], client: str) -> Callable[[int], Awaitable[Load]]:
    async def reads(count: int) -> Load:
        requests = [("GET", f"/guarded/jobs/{random.choice(job_ids)}", b"") for _ in range(count)]
        return (await _common.load(host, requests, client=client))[0]

    return reads


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
    _common.print_table(
        ["", "backlog", "empty store", "added", "budget", ""],
        [
            [
                "start after SIGKILL until ready, s",
                *(f"{statistics.median(took_s[name]):.2f}" for name in ("full", "empty")),
                f"{added_s:+.2f} s",
                "≤ +2 s",
                _common.format_verdict(added_s, 2),
            ]
        ],
    )


if __name__ == "__main__":
    main()
