"""What the worker's time is spent on: counted whatever becomes of the jobs, and of the process."""

import asyncio
import time
from pathlib import Path

import pytest
from contract.client import connected, node

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def ticks(seconds, seed, *, checks=True, raises=False):
    return {"1": node("FaultTicks", seconds=seconds, checks_interrupt=checks, raises=raises, seed=seed)}


def spent_s(base: Path) -> dict[str, float]:
    """What the node itself has written down of its runs, of each seed together."""
    runs: dict[tuple[str, str], float] = {}
    for line in (base / "input" / "ticks.log").read_text().splitlines():
        if len(words := line.split()) == 3:  # a kill may cut the last one off
            runs[words[0], words[1]] = float(words[2])
    return {seed: sum(s for (of, _began), s in runs.items() if of == seed) for seed, _began in runs}


async def working(base: Path, seed: int, seconds: float = 0) -> None:
    """Wait until a run with that seed has worked so long."""
    ends_s = time.monotonic() + 120
    while time.monotonic() < ends_s:
        if (base / "input" / "ticks.log").exists() and any(
            of == str(seed) and done >= seconds for of, done in spent_s(base).items()
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
        began_s = time.monotonic()
        late = await client.run(ticks(3600, 4), guard={"timeout_s": 1.5})
        cancelled = await client.admitted(ticks(3600, 5))
        await working(host.base, 5, 1)
        await client.request("DELETE", f"/guarded/jobs/{cancelled}")
        hanging = await client.admitted(ticks(5, 6, checks=False), guard={"timeout_s": 1.5, "user": "hung"})
        await working(host.base, 6)
        # What ComfyUI does around its nodes, and how late it hears of a stop, the node's own clock does not see.
        most_s = time.monotonic() - began_s
        hung = await client.settled(hanging)
        assert [late["error"]["code"], hung["error"]["code"]] == ["generation_timeout"] * 2
        began_s = time.monotonic()
        killed = await client.admitted(ticks(3, 7))
        await working(host.base, 7, 2)
        host.kill()
        most_s += time.monotonic() - began_s
    lost = spent_s(host.base)["7"]  # of the run that the kill ended
    host.start()
    async with connected(host) as client:
        again = await client.settled(killed)
        assert again["attempts"] == 2
        began_s = time.monotonic()
        last = await client.admitted(ticks(3600, 8))
        await working(host.base, 8, 2)
        host.kill()
        most_s += time.monotonic() - began_s
    began_s = time.monotonic()
    host.start()
    async with connected(host) as client:
        await client.request("DELETE", f"/guarded/jobs/{last}")
        await client.settled(last)
        most_s += time.monotonic() - began_s
        month = await client.get("/guarded/spending")
    worked = spent_s(host.base)
    whole = {"1": good[0], "2": good[1], "3": bad}
    by_user = {row["user"]: row["gpu_s"] for row in month["rows"]}
    # The one that hung worked on by itself after the queue had got another worker: half a second after its time.
    assert 1.5 < by_user["hung"] < 4
    assert all(job["cost"]["run_s"] > worked[seed] - 0.02 for seed, job in whole.items())
    # Runs that ended by themselves count as their jobs say; of a killed process its marks on the disk count.
    stopped_s = by_user[""] - sum(job["cost"]["run_s"] for job in (*whole.values(), again))
    assert 0.8 * (worked["4"] + worked["5"] + lost + worked["8"]) <= stopped_s <= most_s
    assert month["gpu_s"] == pytest.approx(sum(by_user.values()))
