"""A soak: a server under mixed load, faults among it, for a long time. It fails where something grows.

    python tests/chaos/soak.py [--minutes 20] [--jobs 2000] [--real]

Prints resident memory, open files and threads as they go, and compares the last fifth of the time with the second:
the first is warming up. `make soak` runs it; Linux only, since it reads /proc.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

TESTS = Path(__file__).resolve().parents[1]
sys.path[0] = str(TESTS)
import conftest  # noqa: E402, F401, registers the package under its fixed name
from contract.client import TERMINAL, Client, Job, Prompt, connected, node, picture, raises, save, sleep, text  # noqa: E402

from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds, sandbox_kind  # noqa: E402

SETTINGS = {
    "GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "1",
    "GUARDED_WATCHDOG__MAX_DISOWNED": "4",
    "GUARDED_WATCHDOG__NATIVE_TIMEOUT_S": "3",
}
#: What may be more at the end than after warming up; the noise of an allocator, and what just happens to be open.
RSS_SLACK_MB, FILES_SLACK, THREADS_SLACK = 8.0, 8, 4
SAMPLE_S = 2.0


def hang(class_type: str, seconds: float) -> Prompt:
    return {"1": node(class_type, seconds=seconds, seed=0), "2": save()}


@dataclass(frozen=True)
class Kind:
    """One kind of job: how often, what, and how it must end."""

    weight: int
    prompt: Callable[[], Prompt]
    ends: tuple[str, ...]
    timeout_s: float | None = None


MIX = {
    "text": Kind(30, text, ("succeeded",)),
    "picture": Kind(30, picture, ("succeeded",)),
    "steps": Kind(10, lambda: sleep(0.2, steps=20), ("succeeded",)),
    "error": Kind(6, lambda: raises("value_error"), ("generation_failed",)),
    "no memory": Kind(4, lambda: raises("out_of_memory"), ("out_of_memory",)),
    "exit": Kind(4, lambda: raises("system_exit"), ("generation_failed",)),
    "half a file": Kind(
        3, lambda: {"1": node("FaultTruncatedImage", filename_prefix="soak", seed=0)}, ("result_corrupt",)
    ),
    "too long": Kind(3, lambda: sleep(60), ("generation_timeout",), 0.3),
    "Python loop": Kind(2, lambda: hang("FaultHangPython", 60), ("generation_timeout",), 0.3),
    "async hang": Kind(2, lambda: hang("FaultAsyncHang", 60), ("generation_timeout",), 0.3),
    "C call": Kind(2, lambda: hang("FaultHangC", 4), ("generation_timeout",), 0.3),
    "dead worker": Kind(
        2,
        lambda: {"1": node("FaultKillWorker", when="handing_back", kind="system_exit", seed=0), "2": save()},
        ("worker_died",),
    ),
    "cancelled": Kind(4, lambda: sleep(0.3), ("cancelled", "succeeded")),
}


@dataclass(frozen=True)
class Sample:
    at_s: float
    rss_mb: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int, at_s: float) -> Sample:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(at_s, int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]))

    def __str__(self) -> str:
        return f"{self.at_s:6.0f} s  {self.rss_mb:7.1f} MB  {self.files:4d} files  {self.threads:3d} threads"


async def one_job(client: Client, draw: random.Random, ended: Counter[str], wrong: list[str]) -> None:
    (name,) = draw.choices(list(MIX), [kind.weight for kind in MIX.values()])
    kind = MIX[name]
    guard = {"guard": {"timeout_s": kind.timeout_s}} if kind.timeout_s else {}
    # 503 where a worker has just died.
    answer = await client.polled(lambda: client.submit(kind.prompt(), **guard), lambda answer: answer.status != 503)
    assert answer.status == 200, answer
    job_id = answer.json["prompt_id"]
    if name == "cancelled":
        await asyncio.sleep(draw.uniform(0, 0.3))
        await client.cancel(job_id)
    job: Job = await client.settled(job_id)
    how = job["error"]["code"] if job["error"] else job["state"]
    ended[how] += 1
    if how not in kind.ends:
        wrong.append(f"{name} ended as {how}: {job}")


async def others(client: Client, draw: random.Random) -> None:
    """Whoever else is there: natives, poison, refused bodies, sockets that come and go."""
    while True:
        await asyncio.sleep(draw.uniform(0.5, 2.0))
        match draw.randrange(5):
            case 0:
                await client.native_submit(picture())
            case 1:
                await client.native_submit({**picture(), "9": {"class_type": "FaultSleep"}})
            case 2:
                await client.request("POST", "/guarded/prompt", raw=b'{"prompt": [1')
            case 3:
                await client.native_submit(raises("system_exit"))
            case _:
                async with client.socket() as socket:
                    job_id = (await client.submit(text(), client_id=socket.client_id)).json.get("prompt_id")
                    if job_id:
                        await socket.until_end_of(job_id)


async def soak(host: HostProcess, minutes: float, jobs: int, clients: int) -> bool:
    draw = random.Random(6)
    began_s = time.monotonic()
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    samples: list[Sample] = []
    started = 0

    def elapsed_s() -> float:
        return time.monotonic() - began_s

    async with connected(host) as client:

        async def bot() -> None:
            nonlocal started
            while started < jobs:
                started += 1
                # Spread over the whole time, so that its end is under load too.
                await asyncio.sleep(max(0.0, started * minutes * 60 / jobs - elapsed_s()))
                await one_job(client, draw, ended, wrong)

        async def watch() -> None:
            while True:
                # ComfyUI keeps the last 10,000 prompts; that growth is its own.
                await client.request("POST", "/history", {"clear": True})
                samples.append(Sample.of(host.pid, elapsed_s()))
                if len(samples) % max(int(minutes * 60 / SAMPLE_S / 12), 1) == 0:
                    print(f"{samples[-1]}  {sum(ended.values()):5d} jobs", flush=True)
                await asyncio.sleep(SAMPLE_S)

        beside = [asyncio.create_task(watch()), asyncio.create_task(others(client, draw))]
        await asyncio.gather(*(bot() for _ in range(clients)))
        for task in beside:
            task.cancel()
        for result in await asyncio.gather(*beside, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                wrong.append(f"a task beside the jobs failed: {result!r}")
        await client.polled(lambda: client.get("/guarded/health"), lambda facts: facts["hung_workers"] == 0)
        left = [job for job in await client.jobs() if job["state"] not in TERMINAL]
        await client.assert_takes_jobs()
        samples.append(Sample.of(host.pid, elapsed_s()))
        print(f"{samples[-1]}  {sum(ended.values()):5d} jobs, at rest", flush=True)
    print(dict(ended.most_common()))
    for line in wrong[:10]:
        print(line)
    return _is_flat(samples) and not wrong and not left and sum(ended.values()) == jobs


def _is_flat(samples: list[Sample]) -> bool:
    fifth = max(len(samples) // 5, 1)
    early, late = samples[fifth : 2 * fifth] or samples, samples[-fifth:]
    flat = True
    for name, slack in (("rss_mb", RSS_SLACK_MB), ("files", FILES_SLACK), ("threads", THREADS_SLACK)):
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in (early, late))
        grown = after - before > slack
        flat &= not grown
        print(f"{name}: {before:.1f} → {after:.1f}, {slack:.1f} more are allowed{': GROWN' if grown else ''}")
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--real", action="store_true", help="on the first real ComfyUI that is found")
    options = parser.parse_args()
    kind = real_kinds()[0] if options.real else sandbox_kind()
    base = Path(tempfile.mkdtemp(prefix="guarded-soak-"))
    print(f"{kind.name}: {options.jobs} jobs in {options.minutes:g} minutes; the server's files are in {base}")
    try:
        with HostProcess(kind, base, environment=SETTINGS) as host:
            well = asyncio.run(soak(host, options.minutes, options.jobs, options.clients))
    except (AssertionError, aiohttp.ClientError, OSError) as error:
        print(f"The server failed: {error!r}\n{host.log_tail()}")
        well = False
    print("flat" if well else "FAILED")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
