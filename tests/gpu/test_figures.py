"""What the guard says of a GPU, beside what `nvidia-smi` says. Collected by `make gpu` alone."""

import asyncio
from typing import Any

import pytest
from contract.client import PATIENCE_S, Client, assert_succeeded
from gpu.graphs import kernel, sampled
from gpu.machine import MIB, Figures, ask_nvidia_smi
from gpu.test_faults import until

from comfyui_guarded.guard.operators.gpu import LOOK_S

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(360)]

HELD_MIB = 4096
#: `nvidia-smi` rounds to MiB, and a driver counts some pages one way or the other.
SLACK_BYTES = 64 * MIB


async def both(client: Client) -> tuple[dict[str, Any] | None, Figures]:
    """The guard's figures of a moment at which nvidia-smi said the same before and after."""
    while True:
        before = await asyncio.to_thread(ask_nvidia_smi)
        await asyncio.sleep(1.5 * LOOK_S)
        ours = (await client.get("/guarded/stats"))["gpu"]
        after = await asyncio.to_thread(ask_nvidia_smi)
        assert before.used_bytes is not None
        assert after.used_bytes is not None
        if abs(after.used_bytes - before.used_bytes) < MIB:
            return ours, after


def differ_by(ours: dict[str, Any], theirs: Figures) -> int:
    """NVML's older question, which every driver answers, counts what the driver has reserved as used."""
    assert theirs.used_bytes is not None
    with_reserved = theirs.used_bytes + (theirs.reserved_bytes or 0)
    return min(abs(ours["vram_used_bytes"] - used) for used in (theirs.used_bytes, with_reserved))


async def test_the_guards_figures_are_those_of_nvidia_smi(client: Client):
    assert_succeeded(await client.run(sampled(2)))
    ours, theirs = await both(client)
    assert ours is not None, "is nvidia-ml-py there for the server's Python?"
    assert ours["name"] == theirs.name
    assert theirs.total_bytes is not None
    assert abs(ours["vram_total_bytes"] - theirs.total_bytes) <= SLACK_BYTES + (theirs.reserved_bytes or 0)
    assert differ_by(ours, theirs) <= SLACK_BYTES, (ours, theirs)
    at_rest = ours["vram_used_bytes"]

    job_id = await client.admitted(kernel(8 * LOOK_S, mib=HELD_MIB))
    await client.running(job_id)
    await until(PATIENCE_S, lambda: _stats(client), lambda gpu: (gpu["utilization_percent"] or 0) >= 50)
    ours, theirs = await both(client)
    assert ours is not None
    assert ours["vram_used_bytes"] - at_rest >= HELD_MIB * MIB - SLACK_BYTES
    assert differ_by(ours, theirs) <= SLACK_BYTES, (ours, theirs)
    assert theirs.busy_percent is not None
    assert theirs.busy_percent >= 50
    assert_succeeded(await client.settled(job_id))


async def _stats(client: Client) -> Any:
    return (await client.get("/guarded/stats"))["gpu"]
