"""Boxes of an earlier commit beside boxes of this one, updated one after the other while bots go on. By hand, a minute:

git worktree add --detach ../before COMMIT && GUARDED_FLEET_BEFORE=../before pytest tests/fleet/test_rolling_upgrade.py

The commit's tables must be such that this one's only add to them: the changelog says where that is not so.
"""

import os
import signal
from pathlib import Path

import pytest
from contract.client import make_key
from contract.conftest import put_photo
from fleet.actors import EventReader, Owner
from fleet.conftest import hold_to_verdicts, until
from fleet.test_chaos import hold_to_order

from comfyui_guarded.tests.hosts.launch import ROOT

BEFORE = os.environ.get("GUARDED_FLEET_BEFORE", "")

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BEFORE, reason="by hand: GUARDED_FLEET_BEFORE names an earlier checkout"),
]


def install(box, package):
    """What `git pull` does to a box that does not run."""
    link = box.base / "custom_nodes" / "ComfyUI-Guarded"
    link.unlink()
    link.symlink_to(package, target_is_directory=True)


def test_boxes_are_updated_one_after_the_other_while_bots_go_on(fleet):
    before = Path(BEFORE).resolve()
    boxes = [fleet.make(package=before, tells=True) for _ in range(2)]
    put_photo(boxes[0].base)
    keys = {name: make_key(boxes[0].base, name) for name in ("ann", "ben")}
    operator = make_key(boxes[0].base, "operator", "operate")
    known = []

    def knows_keys(box):
        until(lambda: (box.ask("GET", "/guarded/jobs", key=operator) or [0])[0] == 200)

    for box in boxes:
        known.append(box.start())
        knows_keys(box)
    owners = [Owner(name, key, known, seed) for seed, (name, key) in enumerate(keys.items())]
    reader = EventReader(operator, known, 0)
    for actor in (*owners, reader):
        actor.start()

    def goes_on(*those):
        """Each of the boxes ends jobs that it has begun from now on."""
        query = "SELECT count(*) FROM jobs WHERE box = %s AND state = 'succeeded'"
        for box in those:
            name = (box.base / "user" / "__guarded" / "box.id").read_text()
            count = fleet.ask(query, [name])[0][0]
            until(lambda name=name, count=count: fleet.ask(query, [name])[0][0] > count + 3)

    [(tables,)] = fleet.ask("SELECT version FROM schema_version")
    goes_on(*boxes)
    newest = fleet.make(package=ROOT, tells=True).start()
    knows_keys(newest)
    known.append(newest)
    [(now,)] = fleet.ask("SELECT version FROM schema_version")
    assert now >= tables
    goes_on(*boxes, newest)
    # One of before starts again on the new tables, after a kill.
    boxes[1].kill()
    boxes[1].start()
    goes_on(*boxes, newest)
    for box in boxes:
        os.kill(box.pid, signal.SIGTERM)
        box.wait()
        install(box, ROOT)
        box.start()
        goes_on(*boxes, newest)
    for owner in owners:
        owner.stop()
    hold_to_verdicts(fleet, owners, operator)
    last_id = fleet.ask("SELECT max(event_id) FROM transitions")[0][0]
    until(lambda: reader.seen[-1:] and reader.seen[-1][0] >= last_id)
    reader.stop()
    hold_to_order(fleet, [reader])
    assert tables < now, "the two have the same tables"
