"""Boxes killed, frozen past their lease, an engine killed, cancels from everywhere: each job has one verdict for good.

`GUARDED_FLEET_ROUNDS=100` for a long one.
"""

import os
import random
import threading
import time

import pytest
from contract.client import sleep
from fleet.conftest import LEASE_S, TERMINAL, until

ROUNDS = int(os.environ.get("GUARDED_FLEET_ROUNDS", "4"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 60 * ROUNDS)]


class Bots(threading.Thread):
    """Submit, cancel, and look, at whichever box answers; remembers what each was told."""

    def __init__(self, boxes, seed):
        super().__init__(daemon=True)
        self.boxes, self.random = boxes, random.Random(seed)
        self.acknowledged, self.told, self.contradicted = [], {}, []
        self._is_over = threading.Event()

    def run(self):
        while not self._is_over.wait(0.05):
            box = self.random.choice(self.boxes)
            job_id = box.submit(sleep(self.random.choice([0.0, 0.1, 0.3])))
            if job_id is not None:
                self.acknowledged.append(job_id)
            if self.acknowledged:
                asked = self.random.choice(self.acknowledged[-8:])
                if self.random.random() < 0.15:
                    answer = box.ask("DELETE", f"/guarded/jobs/{asked}")
                    self._hear(asked, answer[1] if answer is not None and answer[0] == 200 else {})
                else:
                    self._hear(asked, box.job(asked))

    def stop(self):
        self._is_over.set()
        self.join()

    def _hear(self, job_id, job):
        if job.get("state") in TERMINAL:
            verdict = job["state"], job["error"] and job["error"]["code"]
            if self.told.setdefault(job_id, verdict) != verdict:
                self.contradicted.append((job_id, self.told[job_id], verdict))


def kill(box, _rng, _engine):
    box.kill()
    box.start()


def freeze(box, rng, _engine):
    box.freeze()
    time.sleep(rng.choice([0.5, 1.5]) * LEASE_S)
    box.thaw()


def restart_engine(_box, rng, engine):
    engine.kill()
    time.sleep(rng.choice([0, LEASE_S]))
    engine.start()


def test_every_acknowledged_job_has_one_verdict_whatever_dies(fleet, engine):
    seed = int(os.environ.get("GUARDED_FLEET_SEED") or random.randrange(10**6))
    rng = random.Random(seed)
    boxes = [fleet.start() for _ in range(3)]
    bots = Bots(boxes, seed)
    bots.start()
    for fault in rng.choices([kill, freeze, freeze, restart_engine], k=ROUNDS):
        count = len(bots.acknowledged)
        until(lambda count=count: len(bots.acknowledged) > count + 5)
        fault(rng.choice(boxes), rng, engine)
    bots.stop()
    assert not bots.contradicted, f"GUARDED_FLEET_SEED={seed}"
    for box in boxes:
        until(box.is_ready)
    assert len(bots.acknowledged) > ROUNDS
    for job_id in bots.acknowledged:
        job = rng.choice(boxes).settled(job_id)
        verdict = job["state"], job["error"] and job["error"]["code"]
        assert bots.told.get(job_id, verdict) == verdict
        assert fleet.count_ends(job_id) == 1
    left = "SELECT count(*) FROM leases WHERE job_id IN (SELECT job_id FROM jobs WHERE settled_at_ms IS NOT NULL)"
    until(lambda: fleet.ask(left) == [(0,)])
    again = rng.choice(boxes).admitted(sleep(0.0))
    assert rng.choice(boxes).settled(again)["state"] == "succeeded"
