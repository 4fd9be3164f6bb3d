"""What the worker's time is spent on: counted whatever becomes of the jobs, and of the process."""

import asyncio
import time
from pathlib import Path

import pytest
from contract.client import connected, node

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def ticks(seconds, seed, *, checks=True, raises=False):
    return {"1": node("FaultTicks", seconds=seconds, checks_interrupt=checks, raises=raises, seed=seed)}


def spent_s(base: Path) -> dict[tuple[str, str], float]:
    """What the node itself has written down of each of its runs."""
    runs: dict[tuple[str, str], float] = {}
    for line in (base / "input" / "ticks.log").read_text().splitlines():
        seed, began, elapsed = line.split()
        runs[seed, began] = float(elapsed)
    return runs


async def working(base: Path, seed: int, seconds: float = 0) -> None:
    """Wait until a run with that seed has worked so long."""
    ends_s = time.monotonic() + 120
    while time.monotonic() < ends_s:
        if (base / "input" / "ticks.log").exists() and any(
            run[0] == str(seed) and done >= seconds for run, done in spent_s(base).items()
        ):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not begin")


async def test_what_is_counted_is_what_the_worker_has_spent_whatever_became_of_the_jobs(server):
    """Successes, a failure, a timeout, a cancel, a worker that hangs and is left behind, and two kills."""
    host = server(GUARDED_WATCHDOG__INTERRUPT_GRACE_S="0.5", GUARDED_WATCHDOG__INJECT="false").start()
    async with connected(host) as client:
        good = [await client.run(ticks(1.5, seed)) for seed in (1, 2)]
        bad = await client.run(ticks(1, 3, raises=True))
        late = await client.run(ticks(3600, 4), guard={"timeout_s": 1.5})
        cancelled = await client.admitted(ticks(3600, 5))
        await working(host.base, 5, 1)
        await client.request("DELETE", f"/guarded/jobs/{cancelled}")
        hung = await client.run(ticks(5, 6, checks=False), guard={"timeout_s": 1.5, "user": "hung"})
        done = {seed: elapsed for (seed, _began), elapsed in spent_s(host.base).items()}
        # What ComfyUI does around its nodes, which the node's own clock does not see.
        around_s = [job["cost"]["run_s"] - done[seed] for job, seed in zip([*good, bad], "123", strict=True)]
        assert min(around_s) > -0.02
        assert [late["error"]["code"], hung["error"]["code"]] == ["generation_timeout"] * 2
        killed = await client.admitted(ticks(3, 7))
        await working(host.base, 7, 2)
        host.kill()
    host.start()
    async with connected(host) as client:
        await working(host.base, 7, 2)
        assert (await client.settled(killed))["attempts"] == 2
        last = await client.admitted(ticks(3600, 8))
        await working(host.base, 8, 2)
        host.kill()
    host.start()
    async with connected(host) as client:
        await client.request("DELETE", f"/guarded/jobs/{last}")
        await client.settled(last)
        month = await client.get("/guarded/spending")
    worked = spent_s(host.base)
    by_user = {row["user"]: row["gpu_s"] for row in month["rows"]}
    # The one that hung worked on by itself after the queue had got another worker: half a second after its time.
    assert 1.5 < by_user["hung"] < 4
    others = [elapsed for (seed, _began), elapsed in worked.items() if seed != "6"]
    most_s = 1.01 * sum(others) + len(others) * max(*around_s, 0.0)
    assert 0.99 * sum(others) <= by_user[""] <= most_s
    assert month["gpu_s"] == pytest.approx(sum(by_user.values()))
