"""The contract is good enough for generators: what they make of it compiles, and does a bot's work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients.conftest import INSTALLED
from contract.conftest import kinds
from contract.test_access import make_key
from PIL import Image

from comfyui_guarded.tests.hosts.launch import HostProcess

GENERATED = Path(__file__).parent / "generated"
SCRIPTS = INSTALLED / ("Scripts" if os.name == "nt" else "bin")
NODE_SCRIPTS = INSTALLED / "node_modules" / ".bin"
PATIENCE_S = 120.0

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(scope="module")
def key(base: Path) -> str:
    """Made before the server starts: a running one takes a second to know it."""
    return make_key(base, "generated")


@pytest.fixture(scope="module", params=kinds()[:1])
def host(base: Path, key: str, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with HostProcess(request.param, base) as host:
        yield host


@pytest.fixture(scope="module")
def contract(base: Path, host: HostProcess) -> Path:
    file = base / "contract.json"
    with urllib.request.urlopen(f"{host.url}/guarded/openapi.json", timeout=PATIENCE_S) as answer:
        file.write_bytes(answer.read())
    return file


def run(command: list[str | Path], **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=INSTALLED,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        check=False,
    )
    told = done.stdout.decode(errors="replace")
    assert done.returncode == 0, told
    return told


@pytest.fixture(scope="module")
def python_client(base: Path, contract: Path) -> Path:
    """The folder with the package `guarded_client`, generated without a warning."""
    if sys.version_info < (3, 11):
        pytest.skip("the generator needs Python 3.11")
    if not SCRIPTS.is_dir():
        pytest.skip("the generator is not installed: make clients")
    folder = base / "python"
    folder.mkdir()
    command = ("generate", "--meta", "none", "--fail-on-warning", "--path", contract)
    # It calls the ruff beside it.
    path = os.pathsep.join((str(SCRIPTS), os.environ["PATH"]))
    told = run(
        [SCRIPTS / "openapi-python-client", *command, "--output-path", folder / "guarded_client"],
        PATH=path,
        PYTHONIOENCODING="utf-8",
    )
    assert "arning" not in told
    return folder


def test_the_generated_client_submits_a_photo_waits_and_saves_the_result(host, key, python_client, tmp_path):
    photo, saved = tmp_path / "me.png", tmp_path / "saved.png"
    Image.linear_gradient("L").convert("RGB").save(photo)
    script = GENERATED / "submit_a_photo.py"
    run([SCRIPTS / "python", script, host.url, photo, saved], PYTHONPATH=str(python_client), KEY=key)
    with Image.open(saved) as result:
        assert (result.format, result.size) == ("PNG", (256, 256))
        assert result.convert("L").getpixel((128, 0)) > 250


def _find_npm_generator(name: str) -> Path:
    command = NODE_SCRIPTS / (f"{name}.cmd" if os.name == "nt" else name)
    if not shutil.which("npm") or not SCRIPTS.is_dir():
        pytest.skip("npm is not here, or nothing is installed: make clients")
    assert command.exists(), "npm could not install its clients"
    return command


def test_openapi_typescript_generates_types_that_compile(contract, tmp_path):
    types = tmp_path / "types.ts"
    run([_find_npm_generator("openapi-typescript"), contract, "-o", types])
    run([_find_npm_generator("tsc"), "--noEmit", "--strict", types])
    text = types.read_text(encoding="utf-8")
    assert "Refusal: {" in text
    assert "ErrorCode: " in text


def test_hey_api_generates_a_client(contract, tmp_path):
    folder = tmp_path / "client"
    run([_find_npm_generator("openapi-ts"), "-i", contract, "-o", folder])
    text = (folder / "types.gen.ts").read_text(encoding="utf-8")
    assert "export type Event = Job | Position | ProgressEvent | PreviewEvent | AlarmEvent" in text
    assert "export type Refusal = {" in text
    operations = json.loads(contract.read_text(encoding="utf-8"))["paths"]["/guarded/prompt"]["post"]
    assert operations["operationId"] == "post_prompt"
    assert "export const postPrompt = " in (folder / "sdk.gen.ts").read_text(encoding="utf-8")
