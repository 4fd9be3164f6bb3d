"""How long the job database's writer is held while gigabytes of prompts are deleted and their pages given back.

Somebody hands in a durable write every few milliseconds, first while nothing else happens, then while the database is
made smaller. The judges are the longest slice and the waits, against the waits before; the bytes are the file's.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from typing import Any

import _common
import _figures

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import JobState, NewJob, Verdict
from comfyui_guarded.guard.store import Limits, SqliteStore, upkeep

#: A day of a bot: small graphs, graphs with the editor's workflow, and pictures within the prompt.
SIZES = (5_000, 50_000, 50_000, 200_000, 2_000_000)
LARGEST = 15 * 2**20
ENDED = Verdict(JobState.CANCELLED, "cancelled", "The job was cancelled.")
EVERY_S = 0.005
#: What holds the writer.
STEPS = {
    "_thin": "deleting prompts",
    "_give_back": "giving back pages",
    "_cut_log": "cutting off the log",
    "turn": "all of a slice",
}
#: Nothing may hold the writer longer.
BUDGET_MS = 50.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2048, help="of prompts")
    parser.add_argument("--survives", choices=("kill", "power_cut"), default="kill")
    options = parser.parse_args()
    slices: dict[str, list[float]] = {}
    _time_slices(slices)
    with _common.make_base_directory() as base:
        path = base / "guarded.db"
        clock = _Later()
        store = SqliteStore(path, clock, options.survives, Limits(bodies_max_age_s=86400))
        _fill(store, options.megabytes * 2**20)
        before = os.path.getsize(path)
        quiet = _write(store, lambda waits: len(waits) >= 1000)
        for took in slices.values():
            took.clear()
        clock.ahead_ms = 2 * 86_400_000
        began_s = time.monotonic()
        busy = _write(store, lambda _waits: store.size.bytes < before / 10 and not store.size.log_bytes > 2**26)
        took_s = time.monotonic() - began_s
        after = os.path.getsize(path)
        store.close()
    print(f"{before / 2**20:,.0f} MiB became {after / 2**20:,.0f} in {took_s:.0f} s, while somebody wrote\n")
    rows = [
        *(
            _row(f"{name}, {per_cent:g} %, ms", took, per_cent)
            for name, took in slices.items()
            if took
            for per_cent in (50, 99.9, 100)
        ),
        *(
            [f"a write, {name}, ms", f"{of(quiet):.2f}", f"{of(busy):.2f}", "", ""]
            for name, of in (
                ("p50", lambda waits: _figures.percentile(waits, 50)),
                ("p99", lambda waits: _figures.percentile(waits, 99)),
                ("longest", max),
            )
        ),
    ]
    _figures.print_table(["", "before", "meanwhile", "budget", ""], rows)


def _row(name: str, took: list[float], per_cent: float) -> list[str]:
    value = _figures.percentile(took, per_cent)
    return [name, "", f"{value:.1f}", f"≤ {BUDGET_MS:g}", _figures.format_verdict(value, BUDGET_MS)]


class _Later(Clock):
    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def _time_slices(slices: dict[str, list[float]]) -> None:
    """Note how long each turn of the upkeep has the writer."""
    for name in STEPS:
        setattr(
            upkeep.Upkeep,
            name,
            _timed(
                getattr(upkeep.Upkeep, name),
                slices.setdefault(STEPS[name], []),
                slices.setdefault(f"{STEPS[name]} (processor time)", []),
            ),
        )


def _timed(step: Any, took: list[float], used: list[float]) -> Any:
    def timed(*args: Any) -> Any:
        began_s, used_s = time.perf_counter(), time.thread_time()
        try:
            return step(*args)
        finally:
            took.append((time.perf_counter() - began_s) * 1000)
            used.append((time.thread_time() - used_s) * 1000)

    return timed


def _fill(store: SqliteStore, size: int) -> None:
    count = written = 0
    while written < size:
        count += 1
        body = os.urandom(LARGEST if count % 50 == 0 else SIZES[count % len(SIZES)])
        new = NewJob(str(uuid.uuid4()), "bot", body, created_at_ms=1000, timeout_s=600, locale="en")
        store.submit(new, 10**9).result()
        store.settle(new.job_id, ENDED).result()
        written += len(body)


def _write(store: SqliteStore, is_over: Any) -> list[float]:
    waits: list[float] = []
    while not is_over(waits):
        began_s = time.perf_counter()
        store._engine.write(lambda db: db.execute("UPDATE epoch SET only = 1"), durable=True).result()
        waits.append((time.perf_counter() - began_s) * 1000)
        time.sleep(EVERY_S)
    return waits


if __name__ == "__main__":
    main()
