"""A full queue of samplers, worked off by a guarded ComfyUI and by the same one without the guard."""

import itertools
import statistics
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from contract.client import Client, connected
from gpu.graphs import sampled
from gpu.machine import Machine

from comfyui_guarded.tests.hosts.launch import HostProcess

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(360)]

#: The aim, from half a second of work on. On a CPU, which others use too, only a wait of another kind is found.
RATIO, CPU_RATIO = 1.02, 4.0
WORK_MS, CPU_WORK_MS = 600.0, 60.0
#: The first batches find the right number of steps.
STEPS = 20
SIZE, CPU_SIZE = 512, 64

_seeds = itertools.count(100)


async def worked_off(client: Client, guarded: bool, jobs: int, steps: int, size: int) -> float:
    """From the first beginning to the last end, in ms, as ComfyUI's history has them; all wait before one begins."""
    busy: AbstractAsyncContextManager[str] = client.busy() if guarded else client.busy_natively()
    async with busy:
        submit = client.admitted if guarded else client.native_submit
        ids = [await submit(sampled(steps, next(_seeds), size)) for _ in range(jobs)]
    entries = [await client.native_entry(prompt_id) for prompt_id in ids]
    times = [_span(entry) for entry in entries]
    return max(ended for _began, ended in times) - min(began for began, _ended in times)


def _span(entry: dict[str, Any]) -> tuple[float, float]:
    at = {event: data["timestamp"] for event, data in entry["status"]["messages"]}
    assert "execution_success" in at, entry["status"]
    return at["execution_start"], at["execution_success"]


async def test_in_a_full_queue_the_gpu_waits_for_nobody(
    machine: Machine, host: HostProcess, bare: HostProcess, capsys: pytest.CaptureFixture[str]
):
    size, work_ms = (SIZE, WORK_MS) if machine.on_gpu else (CPU_SIZE, CPU_WORK_MS)
    jobs, rounds = (15, 3) if machine.on_gpu else (3, 1)
    async with connected(host) as guarded_client, connected(bare) as bare_client:
        sides = {"guarded": guarded_client, "native": bare_client}
        took = {side: await worked_off(client, side == "guarded", 2, STEPS, size) for side, client in sides.items()}
        took["native"] = await worked_off(bare_client, False, 2, STEPS, size)  # warm
        steps = max(round(STEPS * work_ms / (took["native"] / 2)), 1)
        totals: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(rounds):
            for side in list(sides) if turn % 2 else list(reversed(sides)):
                totals[side].append(await worked_off(sides[side], side == "guarded", jobs, steps, size))
    ours, theirs = (statistics.median(totals[side]) for side in ("guarded", "native"))
    with capsys.disabled():
        print(  # noqa: T201, the figures are what it is run for
            f"\n{machine.kind.name}: {jobs} samplers of {steps} steps: {ours:.0f} ms, native {theirs:.0f} ms, "
            f"{ours / theirs:.3f} ×"
        )
    if machine.on_gpu:
        assert theirs / jobs >= WORK_MS / 2, "else the work is too short to say anything"
    assert ours / theirs <= (RATIO if machine.on_gpu else CPU_RATIO)
