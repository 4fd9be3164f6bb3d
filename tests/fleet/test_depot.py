"""Boxes with folders of their own and one depot: files are everywhere."""

import argparse
import base64
import hashlib
import io
import json
import random
import shutil
import time
import urllib.error
import urllib.request

import pytest
from chaos.test_depot import Bucket, Folder
from contract.client import gated, open_gate, photo_copy, unique
from contract.conftest import put_photo
from fleet.conftest import until
from PIL import Image

from comfyui_guarded.guard.fleet import command
from comfyui_guarded.tests.hosts.launch import ROOT

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


def test_a_new_box_on_which_the_shared_disk_is_not_mounted_takes_no_job(fleet, tmp_path):
    """It has the same address, and an empty folder there."""
    depot = tmp_path / "depot"
    depot.mkdir()
    settings = {"GUARDED_FILES__URL": depot.as_uri(), "shares": False}
    fleet.start(**settings).kill()
    depot.rename(tmp_path / "mounted elsewhere")
    depot.mkdir()
    new = fleet.make(**settings)
    new.spawn()
    until(lambda: "its disk may not be mounted" in new.log_tail())
    status, body = until(lambda: new.ask("GET", "/guarded/ready"))
    assert status == 503
    assert "depot unavailable" in json.dumps(body)
    assert new.submit(photo_copy("photo.png")) is None
    assert not list(depot.iterdir())
    depot.rmdir()
    (tmp_path / "mounted elsewhere").rename(depot)
    until(new.is_ready)


def upload(box, data, **fields):
    """Send a picture; what it is called."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    parts.append('--x\r\nContent-Disposition: form-data; name="image"; filename="n.png"\r\n\r\n')
    body = "".join(parts).encode() + data + b"\r\n--x--\r\n"
    asked = urllib.request.Request(
        f"{box.url}/guarded/upload/image", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with _DIRECT.open(asked, timeout=30) as answer:
        return json.load(answer)["name"]


def draw(seed):
    sink = io.BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(seed).randbytes(64 * 64 * 3)).save(sink, "PNG")
    return sink.getvalue()


def read_pixel(data):
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((5, 5))


def test_a_name_of_an_upload_means_one_picture_on_all_boxes_also_once_it_is_overwritten(fleet, tmp_path):
    (tmp_path / "depot").mkdir()
    settings = {"GUARDED_FILES__URL": (tmp_path / "depot").as_uri(), "shares": False}
    one, other = fleet.start(**settings), fleet.start(**settings)

    def see(box, name):
        job = box.settled(box.admitted(photo_copy(name)))
        assert job["state"] == "succeeded", job
        return read_pixel(fetch(box, job["artifacts"][0]))

    first, second, third = (draw(seed) for seed in range(3))
    assert upload(one, first) == "n.png"
    assert upload(other, second) == "n (1).png"
    assert upload(other, first) == "n.png"
    before = see(one, "n.png")
    assert see(other, "n.png") == before
    time.sleep(1.1)  # the files' times go by the machine's clock
    assert upload(one, third, overwrite="true") == "n.png"
    after = see(one, "n.png")
    assert after != before
    assert see(other, "n.png") == after
    name = "n (1).png"
    shutil.rmtree(other.base / "input")
    for box in (one, other):
        found = box.ask("POST", "/guarded/face-check", {"image": name})
        assert found[1]["error"]["type"] == "no_face", found
    with _DIRECT.open(f"{other.url}/guarded/view?filename=n.png&type=input", timeout=30) as answer:
        assert answer.read() == third
    of_second = [see(box, "n (1).png") for box in (one, other)]
    assert of_second[0] == of_second[1] not in (before, after)


# What the depot lacks. ---------------------------------------------------------------------------------------------


def ask(box, path, **headers):
    """Status, headers and body."""
    try:
        with _DIRECT.open(urllib.request.Request(box.url + path, headers=headers), timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def run_command(fleet, box, *words):
    """`fleet …` as an operator types it: the status and what it says."""
    environment = {"GUARDED_STORE__URL": fleet.engine.url(), "GUARDED_FLEET__ENABLED": "true"}
    environment["GUARDED_FLEET__SECRET"] = "c0ffee" * 8
    parser, said = argparse.ArgumentParser(), []
    command.add_arguments(parser)
    asked = parser.parse_args([*words, "--user", str(box.base / "user")])
    return command.run(asked, environment, ROOT, said.append), said


@pytest.fixture(params=[Folder, Bucket])
def storage(request, tmp_path):
    made = request.param(tmp_path / "depot")
    yield made
    if isinstance(made, Bucket):
        made.server.stop()


@pytest.mark.parametrize("is_there", [True, False], ids=["with other bytes", "not at all"])
def test_a_result_that_the_depot_has_lost_is_served_by_every_box_while_its_maker_has_it(fleet, tmp_path, is_there):
    (tmp_path / "depot").mkdir()
    settings = {"GUARDED_FILES__URL": (tmp_path / "depot").as_uri(), "shares": False, "tells": True}
    front, worker = fleet.start(GUARDED_QUEUE__MAX_JOBS="0", **settings), fleet.start(**settings)
    (worker.base / "input" / "photo.png").write_bytes(draw(1))
    job = worker.settled(worker.admitted(photo_copy("photo.png")))
    (artifact,) = job["artifacts"]
    until(lambda: not fleet.ask("SELECT 1 FROM unstored"))
    (stored,) = (tmp_path / "depot").glob(f"{artifact['sha256']}*")
    if is_there:
        data = stored.read_bytes()
        stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        stored.unlink()
    fetch(front, artifact)
    shutil.rmtree(worker.base / "output")
    status, _headers, body = ask(front, artifact["url"])
    assert (status, json.loads(body)["error"]["type"]) == (410, "artifact_gone")


def test_a_result_that_came_while_the_depot_was_away_is_served_by_every_box_and_put_in_later(fleet, storage):
    settings = {"GUARDED_FILES__URL": storage.url, "GUARDED_FILES__REDIRECT": "true", "shares": False, "tells": True}
    front = fleet.start(GUARDED_QUEUE__MAX_JOBS="0", **settings)
    worker = fleet.start(**settings)
    prefix = unique()
    job_id = front.admitted(gated(prefix), guard={"results": {"format": "webp", "inline": True}})
    worker.reached(job_id, "running")
    storage.put_away()
    open_gate(worker.base, prefix)
    job = front.settled(job_id)
    assert job["state"] == "succeeded", job
    (artifact,) = job["artifacts"]
    whole = fetch(worker, artifact)
    assert fetch(front, artifact) == whole
    status, headers, part = ask(front, artifact["url"], Range="bytes=100-199")
    assert (status, part, headers["ETag"]) == (206, whole[100:200], f'"{artifact["sha256"]}"')
    copy = ask(front, artifact["converted"]["url"])[2]
    assert hashlib.sha256(copy).hexdigest() == artifact["converted"]["sha256"]
    assert ask(front, f"/guarded/view?filename={artifact['filename']}")[::2] == (200, whole)
    assert ask(front, f"{artifact['url']}?preview=webp")[0] == 200
    assert base64.b64decode(artifact["inline"]["base64"]) == copy
    assert ask(front, f"/guarded/fleet/results/{job_id}/0/original")[0] == 403, "for boxes alone"
    worker.kill()
    status, headers, body = ask(front, artifact["url"])
    assert (status, json.loads(body)["error"]["type"]) == (503, "server_unavailable")
    assert int(headers["Retry-After"]) > 0
    storage.bring_back()
    until(front.is_ready)
    refused = until(
        lambda: front.ask("POST", "/guarded/prompt", {"prompt": photo_copy(f"{artifact['filename']} [output]")})
    )
    assert refused[0] == 503, refused
    name = (worker.base / "user" / "__guarded" / "box.id").read_text()
    until(lambda: run_command(fleet, front, "forget", name)[0] == 0)  # once its lease is over
    status, _headers, body = until(lambda: (answer := ask(front, artifact["url"]))[0] != 503 and answer)
    assert (status, json.loads(body)["error"]["type"]) == (410, "artifact_gone")
    (alarm,) = [alarm for alarm in front.ask("GET", "/guarded/alarms")[1]["alarms"] if alarm["code"] == "box_forgotten"]
    assert (alarm["box"], alarm["seen_at_ms"]) == (name, None)
    worker.start()  # it comes back after all
    until(lambda: ask(front, artifact["url"])[0] == 200)
    until(lambda: not fleet.ask("SELECT 1 FROM unstored"))
    worker.kill()
    shutil.rmtree(worker.base / "output")
    assert until(lambda: (answer := ask(front, f"{artifact['url']}?download=1"))[0] == 200 and answer[2]) == whole
