"""Every command of examples/curl.md, in its order, and examples/python_client.py, against one fresh sandbox."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.client import PATIENCE_S
from examples.conftest import ENDING_BY_TEXT, EXAMPLES, HOST_NODES, new_key
from PIL import Image

from comfyui_guarded.guard import messages
from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, sandbox_kind

BLOCK = re.compile(r"```(sh|json)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    base = tmp_path_factory.mktemp("examples")
    process = HostProcess(sandbox_kind(), base)
    (base / "custom_nodes" / "ending_by_text").symlink_to(HOST_NODES, target_is_directory=True)
    with process:
        yield process


@pytest.fixture(scope="module")
def key(host: HostProcess) -> str:
    """A key that the server knows; it takes a second or two to notice."""
    key = new_key(host)
    ends_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_s:
        asked = urllib.request.Request(host.url + "/guarded/jobs", headers={"Authorization": f"Bearer {key}"})
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(asked, timeout=PATIENCE_S):
            return key
        time.sleep(0.1)
    raise AssertionError("the server does not take the key")


@pytest.fixture
def folder(tmp_path: Path, face: bytes, cat: bytes) -> Path:
    (tmp_path / "me.jpg").write_bytes(face)
    (tmp_path / "cat.jpg").write_bytes(cat)
    graph = json.loads((ROOT / "workflows" / "api" / "photo_check.json").read_text())
    (loader,) = (node for node in graph.values() if node["class_type"] == "LoadImage")
    loader["inputs"]["image"] = "photo"
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    return tmp_path


def assert_holds(answer: Any, shown: Any, where: str) -> None:
    """What is shown is in the answer; `…` stands for anything."""
    if isinstance(shown, dict):
        assert isinstance(answer, dict), where
        for key, value in shown.items():
            assert key in answer, f"{where}: no {key}"
            assert_holds(answer[key], value, f"{where}.{key}")
    elif isinstance(shown, list) and shown:
        assert answer, where
        assert_holds(answer[0], shown[0], f"{where}[0]")
    elif shown != "…":
        assert answer == shown, where


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="needs curl and bash")
def test_every_command_of_curl_md_does_what_it_shows(host: HostProcess, folder: Path, key: str):
    blocks = BLOCK.findall((EXAMPLES / "curl.md").read_text(encoding="utf-8"))
    commands = [body for kind, body in blocks if kind == "sh"]
    assert sum(body.count("curl ") for body in commands) >= 12
    printed = ""
    for kind, body in blocks:
        if kind == "sh":
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", body.replace("export GUARDED=http://127.0.0.1:8188", "")],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "GUARDED": host.url, "KEY": key, "no_proxy": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert ran.returncode == 0, f"{body}\n{ran.stdout}{ran.stderr}"
            printed = ran.stdout
        else:
            assert_holds(json.loads(printed), json.loads(body), body)
    with Image.open(folder / "result.png") as image:
        assert image.format == "PNG"
    with Image.open(folder / "small.webp") as image:
        assert (image.format, image.size) == ("WEBP", (128, 128))


def client(host: HostProcess, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "python_client.py"), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "GUARDED_URL": host.url, "LANG": "ru_RU.UTF-8", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_python_client_brings_the_picture(host: HostProcess, folder: Path):
    ran = client(host, folder, "me.jpg")
    assert (ran.returncode, ran.stdout) == (0, "result.png\n"), ran.stderr
    with Image.open(folder / "result.png") as image:
        assert image.size == (512, 512)


def test_the_python_client_says_why_not(host: HostProcess, folder: Path):
    ran = client(host, folder, "cat.jpg")
    assert (ran.returncode, ran.stderr.strip()) == (1, messages.text("no_face", "ru"))
    graph = {name: {**node, "inputs": dict(node["inputs"])} for name, node in ENDING_BY_TEXT.items()}
    graph["4"]["inputs"]["text"] = "error"
    (folder / "fails.json").write_text(json.dumps(graph))
    ran = client(host, folder, "me.jpg", "--workflow", "fails.json")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == messages.text_of_end("generation_failed", "ru")
    assert not (folder / "result.png").exists()
