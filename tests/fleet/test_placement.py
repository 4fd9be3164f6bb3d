"""Boxes with different nodes in one fleet: each job runs where it can, and nobody's jobs stand in the way of others."""

import pytest
from contract.client import node, save, sleep
from fleet.conftest import until

from comfyui_guarded.tests.hosts.launch import real_kinds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(360)]

PACK = """
import comfy.model_management
import numpy as np


class {name}:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"seed": ("INT", {{"default": 0, "min": 0, "max": 9}})}}}}

    def make(self, seed):
        pixels = np.random.default_rng(seed).random((1, 128, 128, 3), np.float32)
        torch = getattr(comfy.model_management, "torch", None)  # a real ComfyUI has it
        return (torch.from_numpy(pixels) if torch else pixels,)


NODE_CLASS_MAPPINGS = {{"{name}": {name}}}
"""


def add_node(box, name):
    """Give the box, which has not been started, a node class of that name."""
    pack = box.base / "custom_nodes" / name.lower()
    pack.mkdir()
    (pack / "__init__.py").write_text(PACK.format(name=name))


def make_picture(class_type):
    return {"1": node(class_type, seed=1), "2": save()}


def find_boxes(fleet, ids):
    """Where each of the jobs has run: the place of its box among the fleet's."""
    ran = dict(fleet.ask("SELECT job_id, box FROM jobs WHERE job_id = ANY(%s)", [ids]))
    names = [(box.base / "user" / "__guarded" / "box.id").read_text() for box in fleet.boxes]
    return [names.index(ran[job_id]) for job_id in ids]


@pytest.fixture
def unlike(fleet):
    """Two boxes, each with a node class of its own."""
    boxes = [fleet.make(), fleet.make()]
    for box, name in zip(boxes, ("OnlyFirst", "OnlySecond"), strict=True):
        add_node(box, name)
        box.start()
    return boxes


def test_jobs_run_on_the_box_that_has_their_nodes_and_hold_nobody_up(fleet, unlike):
    first, _second = unlike
    long = first.admitted(sleep(3600))
    holder = until(lambda: first.job(long)["state"] == "running" and fleet.find_box_of(long))
    (free,) = (box for box in unlike if box is not holder)
    other = holder.admitted(make_picture("OnlyFirst" if holder is first else "OnlySecond"))
    plain = [free.admitted(sleep(0.0)) for _ in range(3)]
    assert [free.settled(job_id)["state"] for job_id in plain] == ["succeeded"] * 3, "it must not stand in the way"
    assert free.job(other)["state"] == "queued"
    holder.ask("DELETE", f"/guarded/jobs/{long}")
    assert free.settled(other)["state"] == "succeeded"
    assert find_boxes(fleet, [other]) == [unlike.index(holder)]


def test_each_job_of_many_finds_its_box(fleet, unlike):
    first, second = unlike
    mine = [first.admitted(make_picture("OnlyFirst")) for _ in range(3)]
    theirs = [second.admitted(make_picture("OnlySecond")) for _ in range(3)]
    assert {first.settled(job_id)["state"] for job_id in mine + theirs} == {"succeeded"}
    assert find_boxes(fleet, mine + theirs) == [0] * 3 + [1] * 3


def test_a_job_whose_box_has_died_ends_once_all_that_are_left_have_refused_it(fleet, unlike):
    first, second = unlike
    long = second.admitted(sleep(3600))
    holder = until(lambda: second.job(long)["state"] == "running" and fleet.find_box_of(long))
    (free,) = (box for box in unlike if box is not holder)
    other = holder.admitted(make_picture("OnlyFirst" if holder is first else "OnlySecond"))
    until(lambda: fleet.ask("SELECT count(*) FROM refusals")[0][0])
    holder.kill()
    until(lambda: (free.ask("DELETE", f"/guarded/jobs/{long}") or [0])[0] == 200)
    job = free.settled(other)
    assert (job["state"], job["error"]["code"], job["refund"]) == ("failed", "missing_node", True)


def test_two_versions_of_comfyui_with_different_nodes_share_a_queue(fleet):
    kinds = {kind.name: kind for kind in real_kinds()}
    if len(kinds) < 2:
        pytest.skip("no two versions of ComfyUI here: name their folders in COMFYUI_PATH")
    boxes = [fleet.make(kind=kind) for kind in [*kinds.values()][:2]]
    for box, name in zip(boxes, ("OnlyFirst", "OnlySecond"), strict=True):
        add_node(box, name)
        box.spawn()
    for box in boxes:
        box.wait_ready()
    first, second = boxes
    mine = [first.admitted(make_picture("OnlyFirst")) for _ in range(2)]
    theirs = [second.admitted(make_picture("OnlySecond")) for _ in range(2)]
    ends = [first.settled(job_id) for job_id in mine + theirs]
    assert [job["state"] for job in ends] == ["succeeded"] * 4, ends
    assert find_boxes(fleet, mine + theirs) == [0, 0, 1, 1]
