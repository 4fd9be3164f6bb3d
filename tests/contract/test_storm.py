"""Many short jobs, and a stop aimed at every second one: none is lost, none hits another job."""

import asyncio
import os
import random

import pytest
from contract.client import Client, Job, assert_ended_badly, assert_succeeded, sleep

#: A stop that came too late for a short job is no miss; a long one ends by its stop only.
SHORT_S, LONG_S = 0.03, 3600.0
AIMS = ("at once", "while it waits", "when it is dispatched", "when it runs", "a moment later", "about its end")


async def aimed(client: Client, job_id: str, aim: str, moment_s: float) -> Job:
    """Cancel the job at some moment of its life; what the cancel answered."""
    if aim not in ("at once", "while it waits"):
        # Hundreds wait here for minutes: one request each, not one every few milliseconds.
        while (await client.job(job_id, wait_s=30))["state"] == "queued":
            pass
    match aim:
        case "while it waits":
            await asyncio.sleep(moment_s)
        case "when it is dispatched":
            await client.reached(job_id, "dispatched", "running")
        case "when it runs" | "a moment later" | "about its end":
            await client.reached(job_id, "running")
            # The moment is the aim, drawn anew for each job; nothing waits for anything here.
            await asyncio.sleep({"when it runs": 0.0, "a moment later": moment_s}.get(aim, SHORT_S))
    return await client.cancel(job_id)


@pytest.mark.timeout(900)
async def test_no_stop_is_lost_and_none_is_misdirected(client):
    count = 60 if client.host.kind.real else int(os.environ.get("GUARDED_STORM", "200"))
    draw = random.Random(20_251_101)
    stops: dict[str, asyncio.Task[Job]] = {}
    others: list[str] = []
    for number in range(count):
        is_target = number % 2 == 1
        seconds = LONG_S if is_target and draw.random() < 0.5 else SHORT_S
        job_id = await client.admitted(sleep(seconds, prefix="storm"))
        if is_target:
            aim = aimed(client, job_id, draw.choice(AIMS), draw.random() * 2 * SHORT_S)
            stops[job_id] = asyncio.create_task(aim)
        else:
            others.append(job_id)
    # The queue comes to its end although half of the targets would run for an hour: no stop was lost.
    for job_id in others:
        assert_succeeded(await client.settled(job_id))
    answers = dict(zip(stops, await asyncio.gather(*stops.values()), strict=True))
    for job_id, answered in answers.items():
        job = await client.settled(job_id)
        assert job == answered, "what the cancel said has become the truth"
        if job["state"] == "succeeded":
            assert_succeeded(job)  # it had ended before the cancel came
        else:
            assert_ended_badly(job, "cancelled")
    cancelled = [job_id for job_id, answered in answers.items() if answered["state"] == "cancelled"]
    assert len(cancelled) > count // 4, "most stops came in time"
    assert await client.polled(client.native_queue, lambda queue: not queue) == []
    for job_id in cancelled:
        entry = (await client.get(f"/history/{job_id}")).get(job_id)
        assert entry is None or (entry["outputs"], entry["status"]["status_str"]) == ({}, "error")
    await client.assert_takes_jobs()
