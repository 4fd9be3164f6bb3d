"""Rounds of SIGKILL at random moments under load: `make chaos` plays 200 on the sandbox and 20 on a real ComfyUI.

`GUARDED_CHAOS` and `GUARDED_CHAOS_REAL` say how many; `GUARDED_CHAOS_SEED` repeats a run's decisions.
"""

import asyncio
import contextlib
import itertools
import os
import random
import time
import uuid
from collections import Counter

import aiohttp
import pytest
from chaos.conftest import assert_settled_once, newest_real, transitions
from contract.client import (
    PATIENCE_S,
    TERMINAL,
    Client,
    Job,
    Prompt,
    connected,
    node,
    picture,
    raises,
    save,
    sleep,
    text,
)

from comfyui_guarded.guard.job import TRANSITIONS, JobState
from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

SANDBOX_ROUNDS = int(os.environ.get("GUARDED_CHAOS", "20"))
REAL_ROUNDS = int(os.environ.get("GUARDED_CHAOS_REAL", "3"))
#: Longer than a round with a cold real ComfyUI may take on two busy cores.
ROUND_WITHIN_S = 60

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600 + ROUND_WITHIN_S * max(SANDBOX_ROUNDS // 6, REAL_ROUNDS)),
]

CLIENTS, JOBS_A_ROUND = 4, 12
MAX_ATTEMPTS = 2


class Bots:
    """What the clients of all rounds were told, to be held against what there is in the end."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.admitted: set[str] = set()
        #: The settled jobs that somebody has seen, whole.
        self.seen: dict[str, Job] = {}
        self.cancelled: set[str] = set()
        self.keys: dict[str, str] = {}

    def prompt(self) -> Prompt:
        return self.draw.choice(
            [
                text,
                picture,
                lambda: sleep(self.draw.uniform(0.01, 0.3), steps=20),
                lambda: raises(self.draw.choice(["value_error", "out_of_memory", "system_exit"])),
                lambda: {"1": node("FaultTruncatedImage", filename_prefix="chaos", seed=0)},
                lambda: {"1": node("FaultKillWorker", when="handing_back", kind="system_exit", seed=0), "2": save()},
            ]
        )()

    async def load(self, client: Client, count: int) -> None:
        """One bot: submits, asks, cancels, repeats itself; until the server dies under it."""
        mine: list[str] = []
        with contextlib.suppress(aiohttp.ClientError, OSError):
            for _ in range(count):
                prompt, key = self.prompt(), uuid.uuid4().hex
                headers = {"Idempotency-Key": key}
                first = await client.submit(prompt, headers=headers)
                assert first.status in (200, 503), first
                if first.status == 503:
                    continue  # its worker has just died
                mine.append(first.json["prompt_id"])
                self.admitted.add(mine[-1])
                match self.draw.randrange(4):
                    case 0:
                        again = await client.submit(prompt, headers=headers)
                        assert again.json["prompt_id"] == mine[-1], again
                    case 1:
                        answered = await client.cancel(self.draw.choice(mine))
                        assert answered["state"] in TERMINAL, answered
                        self.saw(answered)
                    case _:
                        self.saw(await client.job(self.draw.choice(mine), wait_s=self.draw.choice([0, 0, 0.05])))
            while self.admitted:
                self.saw(await client.job(self.draw.choice(sorted(self.admitted)), wait_s=0.1))

    def saw(self, job: Job) -> None:
        if job["state"] in TERMINAL:
            told = self.seen.setdefault(job["job_id"], job)
            assert told == job, "a verdict that was told never changes"


async def killed_round(host: HostProcess, bots: Bots) -> str:
    """Start, load, SIGKILL; most die under load, some while they start."""
    if bots.draw.random() < 0.1:
        host.spawn()
        await asyncio.sleep(bots.draw.uniform(0.0, 1.0))
        host.kill()
        return "starting"
    await asyncio.to_thread(host.start)
    async with connected(host) as client:
        loading = [asyncio.create_task(bots.load(client, JOBS_A_ROUND // CLIENTS)) for _ in range(CLIENTS)]
        await asyncio.sleep(bots.draw.uniform(0.0, 0.8))
        host.kill()
        done, _ = await asyncio.wait(loading, timeout=PATIENCE_S)
        for task in done:
            task.result()
        assert len(done) == len(loading)
    return "under load"


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        pytest.param(sandbox_kind(), SANDBOX_ROUNDS, id="sandbox"),
        *(pytest.param(*each.values, REAL_ROUNDS, id=each.id, marks=each.marks) for each in newest_real()),
    ],
)
async def test_after_rounds_of_sigkill_every_admitted_job_has_settled_exactly_once(server, kind, rounds, capsys):
    seed = int(os.environ.get("GUARDED_CHAOS_SEED", "0")) or random.SystemRandom().randrange(2**32)
    say(capsys, f"GUARDED_CHAOS_SEED={seed}")
    bots = Bots(random.Random(seed))
    host = server(kind, GUARDED_WATCHDOG__MAX_ATTEMPTS=str(MAX_ATTEMPTS))
    began_s = time.monotonic()
    died = Counter([await killed_round(host, bots) for _ in range(rounds)])
    await asyncio.to_thread(host.start)
    async with connected(host) as client:
        jobs = await every_job(client, bots)
        await client.assert_takes_jobs()
    host.stop()

    assert bots.admitted <= jobs.keys(), "none that was answered 200 is lost"
    for job_id, job in bots.seen.items():
        assert jobs[job_id] == job, "what had settled stays as it was told"
    for job in jobs.values():
        assert job["attempts"] <= MAX_ATTEMPTS, job
    seen = transitions(host.base)
    for job_id in jobs:
        assert_legal(seen[job_id])
        assert seen[job_id][-1] == jobs[job_id]["state"]
    states = Counter(job["error"]["code"] if job["error"] else "succeeded" for job in jobs.values())
    killed = sum(states.count("running") > 1 for states in seen.values())
    say(
        capsys,
        f"{kind.name}: {rounds} rounds in {time.monotonic() - began_s:.0f} s, killed {dict(died)}; "
        f"{len(jobs)} jobs, {len(bots.admitted)} of them answered, {len(bots.seen)} seen to settle before a kill, "
        f"{killed} begun twice; {dict(states.most_common())}",
    )


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(line)  # noqa: T201, the figures are what `make chaos` is run for


async def every_job(client: Client, bots: Bots) -> dict[str, Job]:
    """All jobs there are, once the last has settled; known or not: an answer may have died on its way."""
    jobs: dict[str, Job] = {}
    before: str = ""
    while True:
        page = await client.get(f"/guarded/jobs?limit=500{before}")
        for job in page["jobs"]:
            jobs[job["job_id"]] = job if job["state"] in TERMINAL else await client.settled(job["job_id"])
        if not page.get("next"):
            return jobs
        before = f"&before={page['next']}"


def assert_legal(states: list[str]) -> None:
    """From `queued` to one end, along the arrows; so that a success or a refund is written once."""
    assert states[0] == "queued", states
    assert states[-1] in TERMINAL, states
    assert_settled_once(states)
    for one, other in itertools.pairwise(states):
        assert JobState(other) in TRANSITIONS[JobState(one)], states
