"""Boxes with folders of their own and one depot: files are everywhere."""

import hashlib
import shutil
import urllib.request

import pytest
from contract.client import photo_copy
from contract.conftest import put_photo
from fleet.conftest import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(360)]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(box, artifact):
    with _DIRECT.open(box.url + artifact["url"], timeout=30) as answer:
        data = answer.read()
    assert hashlib.sha256(data).hexdigest() == artifact["sha256"]
    return data


def test_a_photo_on_one_box_is_run_on_another_and_its_result_outlives_that(fleet, tmp_path):
    (tmp_path / "depot").mkdir()
    settings = {"GUARDED_FILES__URL": (tmp_path / "depot").as_uri(), "shares": False}
    front = fleet.start(GUARDED_QUEUE__MAX_JOBS="0", **settings)
    worker = fleet.start(**settings)
    put_photo(front.base)
    job = front.settled(front.admitted(photo_copy("photo.png")))
    assert job["state"] == "succeeded", job
    (artifact,) = job["artifacts"]
    data = fetch(worker, artifact)
    assert not list((front.base / "output").rglob("*.png"))
    assert fetch(front, artifact) == data
    worker.kill()
    shutil.rmtree(worker.base / "output")
    assert fetch(front, artifact) == data
    waiting = front.admitted(photo_copy("photo.png"))
    third = fleet.start(**settings)
    assert third.settled(waiting)["state"] == "succeeded"
    assert until(lambda: front.job(waiting)["state"] == "succeeded")
    fetch(front, front.job(waiting)["artifacts"][0])
