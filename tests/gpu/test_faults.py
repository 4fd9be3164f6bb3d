"""What goes wrong on a GPU, and a job after it. `make gpu` has the GPU; elsewhere a CPU and stand-ins for its faults.

The fault nodes are in `tests/hosts/guarded_faults/gpu.py`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from chaos.conftest import booted_again, boots
from contract.client import PATIENCE_S, Client, assert_ended_badly, assert_succeeded, connected, text
from gpu.graphs import ENDLESS, all_memory, asserts, kernel, sampled
from gpu.machine import MIB, ON_GPU, Machine

from comfyui_guarded.tests.hosts.launch import HostProcess

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(360)]

#: What may be more afterwards: caches of torch and its libraries, and what else the machine does.
SLACK_BYTES = 400 * MIB
#: A kernel that is over while somebody waits for it, and one that is not.
LONG_S, FOREVER_S = 40.0 if ON_GPU else 20.0, 3600.0
#: Time enough for a kernel to be begun, on a machine with much else to do too.
SOON = {"guard": {"timeout_s": 2.0 if ON_GPU else 5.0}}


async def until(within_s: float, look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    ends_s = time.monotonic() + within_s
    while not enough(seen := await look()):
        assert time.monotonic() < ends_s, f"still {seen}"
        await asyncio.sleep(0.2)
    return seen


async def warm(machine: Machine, client: Client) -> int:
    """The memory in use once a sampler has run: its libraries are loaded, and it is no model's turn."""
    assert_succeeded(await client.run(sampled(2)))
    await free(client)
    await asyncio.sleep(2)
    return machine.used_bytes(client.host)


async def free(client: Client) -> None:
    await client.request("POST", "/free", {"unload_models": True, "free_memory": True})


async def given_back(machine: Machine, client: Client, before: int) -> None:
    await free(client)  # the models, which are there to stay
    await until(PATIENCE_S, lambda: _used(machine, client), lambda used: used <= before + SLACK_BYTES)


async def _used(machine: Machine, client: Client) -> int:
    return await asyncio.to_thread(machine.used_bytes, client.host)


async def hung_workers(client: Client) -> int:
    return int((await client.get("/guarded/health"))["hung_workers"])


async def inside_the_sampler(client: Client, job_id: str) -> None:
    job = await client.polled(
        lambda: client.job(job_id),
        lambda job: (
            job["settled_at_ms"] or ((job["progress"] or {}).get("max") == ENDLESS and job["progress"]["value"] > 1)
        ),
    )
    assert job["state"] == "running", job


@pytest.mark.parametrize("how", ["cancelled", "interrupted", "generation_timeout"])
async def test_a_sampler_that_is_stopped_lets_go_and_the_next_one_runs(client: Client, how: str):
    booted = boots(client.host)
    assert_succeeded(await client.run(sampled(2)))  # so that the limit below is not spent on loading
    limit = {"guard": {"timeout_s": 5.0}} if how == "generation_timeout" else {}
    job_id = await client.admitted(sampled(ENDLESS, seed=2), **limit)
    if not limit:
        await inside_the_sampler(client, job_id)
    behind = await client.admitted(sampled(2, seed=3))
    if how == "cancelled":
        await client.cancel(job_id)
    elif how == "interrupted":
        await client.request("POST", "/interrupt", {"prompt_id": job_id})
    assert_ended_badly(await client.settled(job_id), how)
    assert_succeeded(await client.settled(behind))
    assert (await hung_workers(client), boots(client.host)) == (0, booted)


async def test_after_running_out_of_memory_all_of_it_is_there_for_the_next_job(machine: Machine, client: Client):
    before, booted = await warm(machine, client), boots(client.host)
    for _ in range(2):
        job = await client.run(all_memory())
        assert_ended_badly(job, "out_of_memory")
        assert job["error"]["details"]["node_type"] == "FaultGpuMemory"
        await given_back(machine, client, before)
        assert_succeeded(await client.run(sampled(2)))
    assert boots(client.host) == booted


async def test_a_kernel_that_nothing_ends_costs_its_own_job_and_the_next_one_only_waits(client: Client):
    assert_succeeded(await client.run(sampled(2)))  # so that the limit is not spent on a cold GPU
    booted = boots(client.host)
    hung = await client.admitted(kernel(LONG_S), **SOON)
    waiting = await client.admitted(sampled(2, seed=4))
    assert_ended_badly(await client.settled(hung), "generation_timeout")
    assert await until(PATIENCE_S, lambda: hung_workers(client), bool) == 1, "it was told before the kernel was over"
    job = await until(
        LONG_S + PATIENCE_S, lambda: client.job(waiting), lambda job: job["state"] in ("succeeded", "failed")
    )
    assert_succeeded(job)
    await until(LONG_S + PATIENCE_S, lambda: hung_workers(client), lambda hung: not hung)
    assert boots(client.host) == booted


async def test_kernels_that_never_end_cost_the_process_and_leave_nothing_on_the_gpu(machine: Machine, client: Client):
    before = await warm(machine, client)
    pid, booted = client.host.pid, boots(client.host)
    # One worker more than may hang.
    hung = [await client.admitted(kernel(FOREVER_S, mib=512), **SOON) for _ in range(2)]
    waiting = await client.admitted(sampled(2, seed=5))
    await booted_again(client.host, booted)
    async with connected(client.host) as again:
        for job_id in hung:
            assert_ended_badly(await again.settled(job_id), "generation_timeout")
        assert_succeeded(await again.settled(waiting))
        assert (again.host.pid, await hung_workers(again)) == (pid, 0)
        await given_back(machine, again, before)


async def test_a_worker_that_waits_for_such_a_kernel_between_two_jobs_holds_nobody_up_for_ever(client: Client):
    """ComfyUI gives memory back between two jobs, and waits for the GPU there, where no job runs that could be late."""
    hung = await client.admitted(kernel(FOREVER_S), **SOON)
    assert_ended_badly(await client.settled(hung), "generation_timeout")
    # It needs no GPU, and after it the worker waits.
    assert_succeeded(await client.run(text()))
    behind = await client.admitted(sampled(2, seed=8), guard={"timeout_s": 20.0})
    async with connected(client.host) as again:
        job = await again.polled(lambda: _seen(again, behind), bool)
        assert_succeeded(job)


async def _seen(client: Client, job_id: str) -> Any:
    """The job once it has settled; the process may begin anew meanwhile."""
    with contextlib.suppress(aiohttp.ClientError, OSError, AssertionError):
        job = await client.job(job_id)
        return job if job["settled_at_ms"] else None
    return None


@pytest.mark.parametrize("late", [False, True])
async def test_after_a_device_side_assert_the_process_begins_anew_and_loses_no_job(
    machine: Machine, client: Client, late: bool
):
    """Nothing can be computed in that process any more, not even memory be given back."""
    before = await warm(machine, client)
    pid, booted = client.host.pid, boots(client.host)
    async with client.busy():  # so that both are queued before the first runs
        fault = await client.admitted(asserts(late=late))
        waiting = await client.admitted(sampled(2, seed=6))
    job = await client.settled(fault)
    assert_ended_badly(job, "generation_failed")
    assert "device-side assert" in job["error"]["message"]
    await booted_again(client.host, booted)
    async with connected(client.host) as again:
        job = await again.settled(waiting)
        assert_succeeded(job)
        assert job["attempts"] == 1, "it had not been begun on the broken GPU"
        assert (again.host.pid, boots(again.host)) == (pid, booted + 1)
        await given_back(machine, again, before)


async def test_what_a_gpu_fault_leaves_behind_takes_further_jobs(host: HostProcess):
    """The last one here."""
    async with connected(host) as client:
        assert_succeeded(await client.run(text()))
        assert_succeeded(await client.run(sampled(2, seed=7)))
