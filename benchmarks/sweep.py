"""A sweep of many files against `find … -mmin … -type f -delete` of an equal tree, in one run.

    python benchmarks/sweep.py [--files 1000000] [--folders 1000] [--small 10000] [--young 0.1] [--in DIR]

Three figures, each with its budget: the ratio of the two times; how much more memory a sweep of all the
files needs than one of `--small` files; and the longest time that the event loop of the sweeping process stood still,
beside the same loop while `find` works in another process. The sweep is a real one: the janitor's own thread, a job
store with a thousand waiting jobs that name inputs and a thousand results that nobody has fetched.

Needs Linux (GNU find, /proc), and room for twice the files; it deletes what it made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAX_AGE_MIN = 24 * 60
RATIO_BUDGET = 1.5
#: "memory flat": what one folder's names and one batch take, and some malloc.
MEMORY_BUDGET_BYTES = 4 * 2**20
JOBS = 1000
PROBE_S = 0.005


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--young", type=float, default=0.1, help="the share of files that are too young to go")
    parser.add_argument("--bytes", type=int, default=0, help="size of each file")
    parser.add_argument("--ours-first", action="store_true", help="sweep before find, not after it")
    parser.add_argument("--in", dest="base", type=Path, default=None, help="where to make the trees")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(asyncio.run(_time_sweep(options.child))))
        return 0
    base = Path(tempfile.mkdtemp(prefix="guarded-sweep-", dir=options.base))
    try:
        return _compare(base, options)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _compare(base: Path, options: argparse.Namespace) -> int:
    small_ours, ours, theirs = base / "small", base / "ours", base / "find"
    for folder in (small_ours, ours, theirs):
        (folder / "output").mkdir(parents=True)
    began = time.monotonic()
    _make([small_ours], options.small, max(options.small * options.folders // options.files, 1), options)
    _make([ours, theirs], options.files, options.folders, options)
    print(f"made 2 × {options.files:,} files in {options.folders:,} folders in {time.monotonic() - began:.0f} s")
    small = _run_child(small_ours)
    steps: list[Callable[[], Any]] = [lambda: asyncio.run(_time_find(theirs)), lambda: _run_child(ours)]
    if options.ours_first:
        by_sweep, by_find = steps[1](), steps[0]()
    else:
        by_find, by_sweep = steps[0](), steps[1]()
    left = [sum(len(files) for _path, _folders, files in os.walk(folder)) for folder in (ours / "output", theirs)]
    if by_sweep["files"] != options.files - left[1] or left[0] != left[1] + JOBS:
        print(f"the two did not delete the same: {by_sweep['files']} deleted, {left} left")
        return 1
    ratio = by_sweep["seconds"] / by_find["seconds"]
    more = by_sweep["grown"] - small["grown"]
    rows = [
        ("find -mmin -type f -delete", f"{by_find['seconds']:.1f} s", ""),
        ("sweep", f"{by_sweep['seconds']:.1f} s", ""),
        ("sweep / find", f"{ratio:.2f}", f"≤ {RATIO_BUDGET}"),
        (f"memory grown by a sweep of {options.small:,}", f"{small['grown'] / 2**20:.1f} MiB", ""),
        (f"memory grown by a sweep of {options.files:,}", f"{by_sweep['grown'] / 2**20:.1f} MiB", ""),
        ("… more", f"{more / 2**20:.1f} MiB", f"≤ {MEMORY_BUDGET_BYTES / 2**20:.0f} MiB"),
        ("longest stall of the loop beside find", f"{by_find['stall'] * 1000:.0f} ms", ""),
        ("longest stall of the loop in the sweep", f"{by_sweep['stall'] * 1000:.0f} ms", ""),
        ("… 99.9 % of its turns were late by less than", f"{by_sweep['late'] * 1000:.1f} ms", ""),
        ("… beside find", f"{by_find['late'] * 1000:.1f} ms", ""),
    ]
    width = max(len(name) for name, _value, _budget in rows)
    for name, value, budget in rows:
        print(f"{name:<{width}}  {value:>10}  {budget}".rstrip())
    return 0 if ratio <= RATIO_BUDGET and more <= MEMORY_BUDGET_BYTES else 1


def _make(bases: list[Path], files: int, folders: int, options: argparse.Namespace) -> None:
    """The same tree below each base, made side by side so that neither is fresher in the cache."""
    old = time.time() - 2 * 86400
    every = round(1 / options.young) if options.young else 0
    content = b"x" * options.bytes
    for number in range(folders):
        handles = []
        for base in bases:
            path = base / "output" / f"{number % 32:02}" / f"f{number:05}"
            path.mkdir(parents=True)
            handles.append(os.open(path, os.O_RDONLY))
        for index in range(number, files, folders):
            for handle in handles:
                name = f"ComfyUI_{index:08}_.png"
                file = os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=handle)
                if content:
                    os.write(file, content)
                if not every or index % every:
                    os.utime(file, (old, old))
                os.close(file)
        for handle in handles:
            os.close(handle)


def _run_child(base: Path) -> dict[str, Any]:
    """A sweep in a process of its own, whose memory is its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(base)], stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


async def _time_find(base: Path) -> dict[str, Any]:
    loop = _Loop()
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *("find", str(base), "-mmin", f"+{MAX_AGE_MIN}", "-type", "f", "-delete")
    )
    await process.wait()
    return {"seconds": time.monotonic() - began, **loop.end()}


async def _time_sweep(base: Path) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    from alias import register

    register()
    from comfyui_guarded.guard.clock import Clock
    from comfyui_guarded.guard.host import Folders
    from comfyui_guarded.guard.janitor import Janitor
    from comfyui_guarded.guard.settings import Settings
    from comfyui_guarded.guard.store import SqliteStore

    settings = Settings.model_validate(
        {"janitor": {"enabled": False, "output_max_age_s": MAX_AGE_MIN * 60, "adopt_existing": True}}
    )
    store = SqliteStore(base / "own" / "guarded.db", Clock())
    _fill(store, base / "output")
    janitor = Janitor(settings.janitor, store, lambda: Folders(base / "output", None, None), base / "own", Clock())
    janitor.start()
    loop = _Loop()
    before = _read_memory("VmRSS")
    _begin_high_water_mark()
    began = time.monotonic()
    report = await asyncio.wrap_future(janitor.ask(dry_run=False))
    seconds = time.monotonic() - began
    grown = _read_memory("VmHWM") - before
    janitor.close()
    store.close()
    if report.errors or report.kept["unread"].files != JOBS:
        raise RuntimeError(report.body())
    return {"seconds": seconds, "files": report.files, "grown": grown, **loop.end()}


def _fill(store: Any, output: Path) -> None:
    """Jobs that wait for inputs, and results not fetched: a thousand old files among the others."""
    from comfyui_guarded.guard.job import SUCCESS, Artifact, NewJob, Result

    old = time.time() - 2 * 86400
    (output / "unread").mkdir()
    artifacts = []
    for index in range(JOBS):
        path = output / "unread" / f"{index}.png"
        path.touch()
        os.utime(path, (old, old))
        artifacts.append(Artifact(index, "2", "image", path.name, "unread", "output", 0, ""))
        graph = {"1": {"class_type": "LoadImage", "inputs": {"image": f"photo{index}.png [input]"}}}
        body = json.dumps({"prompt": graph}).encode()
        job = NewJob(str(uuid.uuid4()), "bot", body, int(time.time() * 1000), 600.0, "en")
        store.submit(job, JOBS + 1).result()
    claimed = store.claim("local", 1).result()
    store.settle(claimed.job.job_id, SUCCESS, Result({}, tuple(artifacts))).result()


class _Loop:
    """How late a task that wants to run every five milliseconds gets its turn."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(PROBE_S)
            self._late.append(time.monotonic() - began - PROBE_S)

    def end(self) -> dict[str, float]:
        self._task.cancel()
        late = sorted(self._late)
        return {"stall": late[-1], "late": late[int(len(late) * 0.999)]}


def _begin_high_water_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _read_memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


if __name__ == "__main__":
    sys.exit(main())
