"""Power cuts: `make power` plays 20 rounds of 100 jobs on each kind of disk, on the sandbox and on a real ComfyUI.

`GUARDED_POWER` and `GUARDED_POWER_REAL` say how many rounds, `GUARDED_POWER_JOBS` how many answered submits in each, at
least; `GUARDED_CHAOS_SEED` repeats a run's decisions.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chaos.conftest import newest_real
from chaos.power import Disk, MountedDisk, TracedDisk
from contract.client import PATIENCE_S, TERMINAL, Client, Job, Prompt, connected, picture, raises, text, unique
from contract.test_webhooks import SETTINGS, Receiver

from comfyui_guarded.tests.hosts.launch import ROOT, HostKind, HostProcess, sandbox_kind

SANDBOX_ROUNDS = int(os.environ.get("GUARDED_POWER", "2"))
REAL_ROUNDS = int(os.environ.get("GUARDED_POWER_REAL", "1"))
JOBS = int(os.environ.get("GUARDED_POWER_JOBS", "30"))
CLIENTS = 6
SECRET = "whsec_" + "A" * 43 + "="

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600 + 60 * max(SANDBOX_ROUNDS, REAL_ROUNDS)),
]


def a_picture_below() -> Prompt:
    return picture(f"{unique('folder')}/{unique()}")


class Books:
    """What clients were told before the power failed."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        #: Submits that were answered 200.
        self.answered: set[str] = set()
        #: Of each job whose end somebody was told: whether it is a success.
        self.endings: dict[str, bool] = {}
        #: The same, whole, where the job itself was sent.
        self.jobs: dict[str, Job] = {}
        self.channels: Counter[str] = Counter()
        #: Jobs of which two different ends were told: the first one was lost.
        self.contradicted: set[str] = set()

    def hear(self, channel: str, job_id: str, is_success: bool) -> None:
        self.channels[channel] += 1
        if self.endings.setdefault(job_id, is_success) != is_success:
            self.contradicted.add(job_id)

    def see(self, channel: str, job: Job) -> None:
        if job["state"] in TERMINAL:
            self.hear(channel, job["job_id"], job["state"] == "succeeded")
            if self.jobs.setdefault(job["job_id"], job) != job:
                self.contradicted.add(job["job_id"])

    def forget(self, job_ids: set[str]) -> None:
        self.answered -= job_ids
        for job_id in job_ids:
            self.endings.pop(job_id, None)
            self.jobs.pop(job_id, None)

    async def bot(self, client: Client, receiver: Receiver) -> None:
        """Submit, ask, cancel and listen, until the server dies."""
        client_id = uuid.uuid4().hex
        listening = asyncio.create_task(self._listen(client, client_id))
        mine: list[str] = []
        with contextlib.suppress(aiohttp.ClientError, OSError):
            while True:
                prompt = self.draw.choice([text, picture, a_picture_below, lambda: raises("value_error")])()
                guard = {"webhook": {"url": receiver.url}} if self.draw.random() < 0.5 else {}
                answer = await client.submit(prompt, client_id=client_id, guard=guard)
                assert answer.status in (200, 429), answer
                if answer.status == 200:
                    mine.append(answer.json["prompt_id"])
                    self.answered.add(mine[-1])
                asked = self.draw.choice(mine)
                if self.draw.random() < 0.1:
                    self.see("cancel", await client.cancel(asked))
                else:
                    self.see("poll", await client.job(asked, wait_s=self.draw.choice([0, 0, 0.1])))
        await listening

    async def _listen(self, client: Client, client_id: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with client.session.ws_connect(f"{client.host.url}/ws?clientId={client_id}") as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        event = message.json()
                        if event["type"] in ("execution_success", "execution_error"):
                            is_success = event["type"] == "execution_success"
                            self.hear("websocket", event["data"]["prompt_id"], is_success)


def read_jobs(folder: Path, into: Path) -> dict[str, str]:
    """The state of each job in a copy of the database, which must be whole."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("lost+found", "output"))
    if not (into / "guarded.db").is_file():
        return {}
    with contextlib.closing(sqlite3.connect(into / "guarded.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchall():
            return {}
        return dict(db.execute("SELECT job_id, state FROM jobs").fetchall())


def ruined_files(disk: Disk, jobs: Iterable[Job]) -> set[str]:
    """The jobs with a result file that is no longer what its owner was told."""

    def is_whole(told: dict[str, Any]) -> bool:
        path = disk.folder / "output" / told["subfolder"] / told["filename"]
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]

    return {job["job_id"] for job in jobs if not all(map(is_whole, job["artifacts"]))}


async def power_fails(host: HostProcess, disk: Disk, books: Books, receiver: Receiver) -> None:
    """Load a running server, and cut its power at some moment."""
    before = len(books.answered)
    async with connected(host) as client:
        bots = [asyncio.create_task(books.bot(client, receiver)) for _ in range(CLIENTS)]
        ends_s = time.monotonic() + PATIENCE_S + JOBS
        while len(books.answered) < before + JOBS:
            assert time.monotonic() < ends_s, host.log_tail()
            assert not any(bot.done() for bot in bots), [bot for bot in bots if bot.done()]
            await asyncio.sleep(0.005)
        await asyncio.sleep(books.draw.uniform(0.0, 0.3))
        host.kill()
        await asyncio.wait_for(asyncio.gather(*bots), PATIENCE_S)
    for told in receiver.got:
        books.see("webhook", told.data)
    receiver.got.clear()
    await asyncio.to_thread(disk.cut)


async def rounds_of_power_cuts(
    host: HostProcess, disk: Disk, rounds: int, tmp_path: Path, seed: int
) -> tuple[set[str], str]:
    """Play them, some of them while the server starts; return the jobs that were lost, and the figures."""
    books = Books(random.Random(seed))
    receiver = Receiver(SECRET)
    await receiver.start()
    lost: set[str] = set()
    answered = changed = spoilt = 0
    began_s = time.monotonic()
    try:
        for number in range(rounds):
            if books.draw.random() < 0.2:
                host.spawn()
                await asyncio.sleep(books.draw.uniform(0.0, 2.0))
                host.kill()
                await asyncio.to_thread(disk.cut)
            await asyncio.to_thread(host.start)
            before = len(books.answered)
            await power_fails(host, disk, books, receiver)
            answered += len(books.answered) - before
            left = read_jobs(disk.folder, tmp_path / f"left{number}")
            gone = books.answered - left.keys()
            other = books.contradicted & left.keys() | {
                job_id
                for job_id, is_success in books.endings.items()
                if job_id in left and (left[job_id] not in TERMINAL or (left[job_id] == "succeeded") != is_success)
            }
            ruined = ruined_files(disk, (job for job_id, job in books.jobs.items() if job_id in left))
            spoilt += len(ruined)
            lost |= gone | other | ruined
            changed += len(other)
            books.forget(gone | other | ruined)
            books.contradicted.clear()
            shutil.rmtree(tmp_path / f"left{number}")
        host.log.unlink()
        await asyncio.to_thread(host.start)
        async with connected(host) as client:
            for job_id in sorted(books.answered):
                job = await client.settled(job_id)
                if books.jobs.get(job_id, job) != job:  # what had settled stays as it was told
                    lost.add(job_id)
                    changed += 1
            await client.assert_takes_jobs()
        host.stop()
    finally:
        await receiver.stop()
    assert not list(disk.folder.glob("guarded.db.corrupt*")), "nothing had to be mended"
    return lost, (
        f"{rounds} power cuts in {time.monotonic() - began_s:.0f} s: {answered} submits answered, "
        f"{len(lost) - changed - spoilt} of them lost; ends told through {dict(books.channels)}, {changed} of them "
        f"forgotten; result files of {spoilt} successes gone or cut short, "
        f"of {spoilt + sum(bool(job['artifacts']) for job in books.jobs.values())}"
    )


@pytest.fixture
def disk(request, tmp_path, seed):
    """A disk of each kind; the last one keeps, by chance, half of what was not synced."""
    if request.param == "mounted":
        made = MountedDisk(tmp_path)
    else:
        made = TracedDisk(tmp_path, random.Random(seed), luck=0.5 if request.param == "lucky" else 0.0)
    yield made
    made.close()


@pytest.fixture
def seed(capsys):
    seed = int(os.environ.get("GUARDED_CHAOS_SEED", "0")) or random.SystemRandom().randrange(2**32)
    say(capsys, f"GUARDED_CHAOS_SEED={seed}")
    return seed


def on(disk: Disk, **more: str) -> dict[str, str]:
    url = {"GUARDED_STORE__URL": f"sqlite:///{disk.folder / 'guarded.db'}"}
    queue = {"GUARDED_QUEUE__MAX_QUEUED": "100000", "GUARDED_QUEUE__TIMEOUT_S": "86400"}
    # The janitor's floor would let no job in on a disk this small.
    floors = {f"GUARDED_JANITOR__{name}_FREE_BYTES": "0" for name in ("MIN", "TARGET", "FLOOR")}
    return {**SETTINGS, "GUARDED_WEBHOOKS__SECRET": SECRET, **url, **queue, **floors, **disk.environment, **more}


@pytest.mark.parametrize(
    ("kind", "rounds", "disk"),
    [
        *(
            pytest.param(sandbox_kind(), SANDBOX_ROUNDS, disk, id=f"sandbox-{disk}")
            for disk in ("mounted", "traced", "lucky")
        ),
        *(
            pytest.param(*each.values, REAL_ROUNDS, disk, id=f"{each.id}-{disk}", marks=each.marks)
            for each in newest_real()
            for disk in ("mounted", "traced")
        ),
    ],
    indirect=["disk"],
)
async def test_a_power_cut_loses_no_job_that_was_answered_and_no_end_that_was_told(
    server, kind: HostKind, rounds: int, disk, tmp_path, seed, capsys
):
    host = server(kind, arguments=("--output-directory", str(disk.folder / "output")), **on(disk))
    lost, figures = await rounds_of_power_cuts(host, disk, rounds, tmp_path, seed)
    say(capsys, f"{kind.name}, {type(disk).__name__}: {figures}")
    assert lost == set()


@pytest.mark.parametrize("disk", ["mounted", "traced"], indirect=True)
async def test_these_disks_do_forget_where_the_store_survives_only_a_kill(server, disk, tmp_path, seed, capsys):
    host = server(**on(disk, GUARDED_STORE__SURVIVES="kill"))
    lost, figures = await rounds_of_power_cuts(host, disk, SANDBOX_ROUNDS, tmp_path, seed)
    say(capsys, f"store.survives = kill, {type(disk).__name__}: {figures}")
    assert lost, "otherwise the test above shows nothing"


def test_a_key_or_secret_that_was_made_is_there_after_a_power_cut_and_the_one_before_it_is_not(tmp_path):
    disk = TracedDisk(tmp_path)
    for secret in ("the first", "the second"):
        program = (
            "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from alias import register; "
            "register(); from comfyui_guarded.guard.private_files import write; "
            "write(Path(sys.argv[2]), sys.argv[3].encode())"
        )
        command = [sys.executable, "-c", program, str(ROOT), str(disk.folder / "secret"), secret]
        subprocess.run(command, check=True, env={**os.environ, **disk.environment})
        disk.cut()
        assert [path.name for path in disk.folder.iterdir()] == ["secret"]
        assert (disk.folder / "secret").read_text() == secret


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(line)  # noqa: T201, the figures are what `make power` is run for
