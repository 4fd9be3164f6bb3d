"""The fleet of `deploy/`, as far as it goes without Docker and GPUs: what its files say, and nginx itself."""

import http.server
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from contract.test_proxies import find_program, nginx, running

from comfyui_guarded.guard.settings import Settings, load
from comfyui_guarded.tests.hosts.launch import ROOT, free_port

DEPLOY = ROOT / "deploy"
SECRETS = {"POSTGRES_PASSWORD": "a" * 64, "S3_SECRET": "b" * 64, "FLEET_SECRET": "c" * 64}
BOXES = ("box1", "box2", "box3")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the image is Linux")


def read_compose():
    text = (DEPLOY / "fleet.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: SECRETS.get(found[1], found[2] or ""), text)
    return yaml.safe_load(text)


def test_the_compose_file_has_the_shape_of_one():
    checker = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [checker, "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "fleet.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_box_has_settings_that_the_server_takes_and_a_card_and_a_disk_of_its_own():
    services = read_compose()["services"]
    boxes = [services[name] for name in BOXES]
    urls = [box["environment"].pop("GUARDED_FLEET__URL") for box in boxes]
    assert urls == [f"http://{name}:8188" for name in BOXES], "where the others reach it"
    environment = boxes[0]["environment"]
    assert all(box["environment"] == environment for box in boxes), "settings that must agree"
    settings = load(None, environment)
    assert settings.fleet.enabled
    assert settings.store.url == f"postgresql://guarded:{SECRETS['POSTGRES_PASSWORD']}@postgres/guarded"
    assert settings.files.url.startswith(f"s3://guarded:{SECRETS['S3_SECRET']}@guarded/files?endpoint=http://s3:8333")
    assert len({box["volumes"][0] for box in boxes}) == 3
    cards = [box["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for box in boxes]
    assert sorted(cards) == [["0"], ["1"], ["2"]]
    for box in boxes:
        assert box["read_only"] is True
        assert box["cap_drop"] == ["ALL"]
        assert "ports" not in box, "past the proxy"
        assert int(box["stop_grace_period"].rstrip("s")) > Settings().watchdog.shutdown_grace_s


def test_no_secret_has_a_value_of_its_own():
    text = (DEPLOY / "fleet.yaml").read_text(encoding="utf-8")
    for name in SECRETS:
        assert re.search(rf"\$\{{{name}:\?", text), f"compose must ask for {name}"
    s3 = yaml.safe_load(read_compose()["configs"]["s3"]["content"])
    [identity] = s3["identities"]
    assert identity["credentials"] == [{"accessKey": "guarded", "secretKey": SECRETS["S3_SECRET"]}]


# nginx itself, before stand-ins for boxes. --------------------------------------------------------------------------


class Box:
    """Answers with its name, or with 503; notes what it was sent."""

    def __init__(self, name):
        self.name, self.had, self.status = name, [], 200
        box = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                box.had.append((self.command, self.path, body))
                self.send_response(box.status)
                self.send_header("Content-Length", str(len(box.name)))
                self.end_headers()
                self.wfile.write(box.name.encode())

            do_POST = do_GET

            def log_message(self, *_args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server.server_port

    def die(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def boxes():
    made = [Box(name) for name in BOXES]
    yield made
    for box in made:
        box.die()


@pytest.fixture
def front(boxes, tmp_path):
    if find_program("nginx") is None:
        pytest.skip("no nginx here")
    text = (DEPLOY / "fleet.nginx.conf").read_text(encoding="utf-8")
    port = free_port()
    text = re.sub(r".*ssl_certificate.*\n", "", text).replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    for box in boxes:
        text = text.replace(f"{box.name}:8188", f"127.0.0.1:{box.port}")
    folder = tmp_path / "nginx"
    folder.mkdir()
    with running(nginx, folder, text, port):
        yield f"http://127.0.0.1:{port}"


def ask(front, path="/guarded/ready", body=None, **headers):
    request = urllib.request.Request(
        front + path, body, {name.replace("_", "-"): text for name, text in headers.items()}
    )
    try:
        with _DIRECT.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_every_box_gets_requests_and_one_that_is_dead_or_cannot_take_any_is_passed_over(front, boxes):
    assert {ask(front)[1] for _ in range(12)} == set(BOXES)
    boxes[0].die()
    boxes[1].status = 503
    assert {ask(front) for _ in range(12)} == {(200, "box3")}
    boxes[1].status = 200
    assert {ask(front)[1] for _ in range(12)} == {"box2", "box3"}
    assert ask(front, "/prompt")[0] == 404


def test_a_prompt_is_tried_elsewhere_only_with_an_idempotency_key(front, boxes):
    for box in boxes[:2]:
        box.status = 503
    with_key = [ask(front, "/guarded/prompt", b"{}", Idempotency_Key="a") for _ in range(9)]
    assert set(with_key) == {(200, "box3")}
    assert {body for _method, _path, body in boxes[2].had} == {b"{}"}
    without = [ask(front, "/guarded/prompt", b"{}") for _ in range(9)]
    assert {status for status, _name in without} == {200, 503}
    assert sum(len(box.had) for box in boxes) >= 18
