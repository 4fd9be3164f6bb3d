"""/guarded/stats with a million settled jobs: its answers, and what they do to everybody else.

Two stores, one with the history and one that is empty, in one process without a server. Besides the figures
themselves: the wait of a job that is read while they are counted, and the questions that the watchdog asks twice a
second, which must not grow with the history.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import statistics
import sys
import time
from asyncio import wrap_future
from pathlib import Path

import _common

sys.path.insert(0, str(_common.ROOT / "tests"))

from unit.test_stats import made

from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.operators import stats as module
from comfyui_guarded.guard.operators.stats import Stats
from comfyui_guarded.guard.store import SqliteStore

OWNERS = ("local", "bot-a", "bot-b", "bot-c", "bot-d", "bot-e")
TEMPLATES = ("", "portrait", "talking-head", "upscale")
CODES = ("no_face", "generation_timeout", "generation_failed", "cancelled")
WEEK_MS = 7 * 86_400_000
RESULT = '{"outputs": {"2": {"images": []}}, "artifacts": []}' + " " * 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="settled jobs, spread over the last seven days")
    parser.add_argument("--rounds", type=int, default=20, help="answers, alternating between the stores")
    options = parser.parse_args()
    module.HOLDS_S = 0.0
    with _common.make_base_directory() as base:
        asyncio.run(_compare(base, options))


async def _compare(base: Path, options: argparse.Namespace) -> None:
    clock = Clock()
    stores = {name: SqliteStore(base / name / "guarded.db", clock) for name in ("empty", "full")}
    _fill(stores["full"].path, options.jobs, clock.now_ms())
    stats = {name: made(store, clock, base / name) for name, store in stores.items()}
    print(f"{options.jobs:,} settled jobs in seven days, {stores['full'].path.stat().st_size / 2**20:.0f} MiB\n")
    first = {name: await _first(stats[name], stores[name]) for name in stores}
    rows = {name: ([], [], []) for name in stores}
    for _ in range(options.rounds):
        for name, store in stores.items():
            answers, owners, watchdog = rows[name]
            answers.append(await _time(stats[name].body(LOCAL)))
            owners.append(await _time(stats[name].body(Client("bot-a", operator=False))))
            watchdog.append(await _time(wrap_future(store.list_overdue(clock.now_ms() - WEEK_MS))))
    print(f"{'':44} {'empty':>10} {'full':>10}")
    for label, number in (
        ("the first answer after a start, ms", 0),
        ("the longest wait of a job read meanwhile, ms", 1),
    ):
        print(f"{label:44} {first['empty'][number] * 1000:10.1f} {first['full'][number] * 1000:10.1f}")
    for label, number in (
        ("an operator's answer (median), ms", 0),
        ("a key's answer (median), ms", 1),
        ("the watchdog's question (median), ms", 2),
    ):
        values = [statistics.median(rows[name][number]) * 1000 for name in ("empty", "full")]
        print(f"{label:44} {values[0]:10.2f} {values[1]:10.2f}")
    for store in stores.values():
        store.close()


async def _time(answer) -> float:
    began_s = time.perf_counter()
    await answer
    return time.perf_counter() - began_s


async def _first(stats: Stats, store: SqliteStore) -> tuple[float, float]:
    """How long the first answer takes, and the longest that another reader waits during it."""
    waits = [0.0]
    done = asyncio.Event()

    async def reads() -> None:
        while not done.is_set():
            waits.append(await _time(wrap_future(store.get("there is none"))))
            await asyncio.sleep(0)

    reading = asyncio.create_task(reads())
    took_s = await _time(stats.body(LOCAL))
    done.set()
    await reading
    return took_s, max(waits)


def _fill(path: Path, jobs: int, now_ms: int) -> None:
    chance = random.Random(1)
    db = sqlite3.connect(path, isolation_level=None)

    def rows():
        for number in range(1, jobs + 1):
            ended_ms = now_ms - WEEK_MS + WEEK_MS * number // (jobs + 1)
            code = chance.choice(CODES) if chance.random() < 0.1 else None
            state = "succeeded" if code is None else "cancelled" if code == "cancelled" else "failed"
            run_ms = chance.randrange(1_000, 600_000)
            yield (
                *(number, f"{number:036d}", chance.choice(OWNERS), state, number, ended_ms - run_ms - 5_000),
                *(ended_ms - run_ms, ended_ms, code, chance.choice(TEMPLATES), RESULT),
            )

    db.execute("BEGIN")
    db.executemany(
        "INSERT INTO jobs (number, job_id, owner, state, place, created_at_ms, started_at_ms, settled_at_ms, code, "
        "template, result, priority, attempts, timeout_s, locale, shape, outputs_to_execute, metadata, has_secrets) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 1, 600, 'ru', '', '[]', '{}', 0)",
        rows(),
    )
    db.execute("COMMIT")
    db.close()


if __name__ == "__main__":
    main()
