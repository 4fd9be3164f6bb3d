"""What :mod:`fleet` measures of whole boxes: cancels, what a dead box leaves, an engine that is far away."""

from __future__ import annotations

import operator
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import _common
import _figures

sys.path.insert(0, str(_common.ROOT / "tests"))

from contract.client import gated, open_gate, sleep, text, unique
from postgres import Server

from comfyui_guarded.tests.fleet.conftest import Box, Fleet, until
from comfyui_guarded.tests.fleet.link import Link

#: The budgets in seconds; how long a lease is, and how long each way to an engine that is far away takes.
CANCEL_S, BEYOND_LEASE_S = 1.0, 2.0
LEASE_S, DELAY_S = 4, 0.02
RUN_MS = 100


def measure_boxes(engine: Server, folder: Path, rounds: int) -> None:
    cancels, begins = [], []
    with fleet(folder / "boxes", engine) as boxes:
        front = boxes.start(GUARDED_QUEUE__MAX_JOBS="0")
        workers = [boxes.start() for _ in range(2)]
        for _ in range(rounds):
            job_id = front.admitted(sleep(3600))
            front.reached(job_id, "running")
            after = front.admitted(text())
            began_s = time.perf_counter()
            front.ask("DELETE", f"/guarded/jobs/{job_id}")
            until(lambda job_id=job_id: not is_running(workers, job_id))
            cancels.append(time.perf_counter() - began_s)
            front.settled(after)
        for _ in range(rounds):
            prefix = unique()
            job_id = front.admitted(gated(prefix))
            front.reached(job_id, "running")
            dead = boxes.find_box_of(job_id)
            dead.kill()
            began_s = time.perf_counter()
            until(lambda dead=dead, job_id=job_id: boxes.find_box_of(job_id) is not dead)
            begins.append(time.perf_counter() - began_s)
            open_gate(front.base, prefix)
            front.settled(job_id)
            dead.start()
    rows = [
        ["a run that another box is asked to stop has stopped", *show(cancels, CANCEL_S)],
        [f"a job of a killed box begins elsewhere (lease {LEASE_S} s)", *show(begins, LEASE_S + BEYOND_LEASE_S)],
    ]
    _figures.print_table(["", "median, s", "longest, s", "budget", ""], rows)


def is_running(boxes: list[Box], job_id: str) -> bool:
    """Whether ComfyUI itself runs it, on any box."""
    queues = (box.ask("GET", "/queue") for box in boxes)
    return any(row[1] == job_id for queue in queues if queue for row in queue[1]["queue_running"])


def show(times_s: list[float], budget_s: float) -> list[str]:
    verdict = _figures.format_verdict(max(times_s), budget_s)
    return [f"{statistics.median(times_s):.2f}", f"{max(times_s):.2f}", f"≤ {budget_s:g} s", verdict]


@contextmanager
def fleet(folder: Path, engine: Server) -> Iterator[Fleet]:
    made = Fleet(folder, engine)
    try:
        yield made
    finally:
        made.stop()
        with closing(engine.connect()) as db:
            db.execute("DROP SCHEMA public CASCADE")
            db.execute("CREATE SCHEMA public")


def measure_far(engine: Server, folder: Path, rounds: int, jobs: int = 20) -> None:
    """All sides in turns: what slows a round down slows each of them."""
    sides = [(max_jobs, delay_s) for delay_s in (0.0, DELAY_S) for max_jobs in (1, 2)]
    submits: dict[tuple[int, float], list[float]] = {side: [] for side in sides}
    each: dict[tuple[int, float], list[float]] = {side: [] for side in sides}
    with ExitStack() as stack:
        boxes = {side: start_far(stack, engine, folder, *side) for side in sides}
        for turn in range(rounds):
            for side in sorted(sides, reverse=bool(turn % 2)):
                times, took_s = work_off(boxes[side], lambda: sleep(RUN_MS / 1000), jobs)
                submits[side] += times
                each[side].append(took_s / jobs * 1000 - RUN_MS)
    rows = [
        [
            f"max_jobs {max_jobs}, engine {2 * delay_s * 1000:.0f} ms away",
            f"{statistics.median(submits[max_jobs, delay_s]):.0f}",
            f"{statistics.median(each[max_jobs, delay_s]):.0f}",
            f"{min(each[max_jobs, delay_s]):.0f} to {max(each[max_jobs, delay_s]):.0f}",
            f"{statistics.median(map(operator.sub, each[max_jobs, delay_s], each[1, delay_s])):+.0f}",
        ]
        for max_jobs, delay_s in sides
    ]
    print(f"{jobs} jobs of {RUN_MS} ms at once, {rounds} rounds, each of all sides in turns")
    _figures.print_table(["", "submit p50, ms", "a job beyond its run, ms", "", "against max_jobs 1, paired"], rows)


def start_far(stack: ExitStack, engine: Server, folder: Path, max_jobs: int, delay_s: float) -> Box:
    """A box with a queue of its own; the way to its database takes so long."""
    name = f"far_{max_jobs}_{delay_s * 1000:.0f}"
    with closing(engine.connect()) as db:
        db.execute(f"CREATE SCHEMA {name}")
    link = stack.enter_context(closing(Link(engine.port, delay_s)))
    boxes = Fleet(folder / name, engine)
    stack.callback(boxes.stop)
    settings: dict[str, Any] = {"GUARDED_QUEUE__MAX_JOBS": str(max_jobs), "GUARDED_FLEET__LEASE_S": "30"}
    box = boxes.start(url=engine.url(name, port=link.port), **settings)
    box.settled(box.admitted(text()))
    return box


def work_off(box: Box, make: Callable[[], dict[str, Any]], jobs: int) -> tuple[list[float], float]:
    """Milliseconds of each submit, and seconds from the first begin to the last end."""
    ids, times = [], []
    for _ in range(jobs):
        began_s = time.perf_counter()
        ids.append(box.admitted(make()))
        times.append((time.perf_counter() - began_s) * 1000)
    ended = [box.settled(job_id) for job_id in ids]
    begun, last = min(map(read_begin, ended)), max(map(read_end, ended))
    return times, (last - begun) / 1000


def read_begin(job: dict[str, Any]) -> int:
    return int(job["started_at_ms"])


def read_end(job: dict[str, Any]) -> int:
    return int(job["settled_at_ms"])
