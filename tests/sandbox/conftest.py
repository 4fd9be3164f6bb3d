"""The sandbox, and a real ComfyUI where there is one, each as a process of its own on loopback."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui_guarded.tests.hosts.launch import HostKind, free_port, real_kinds

REPO = Path(__file__).parents[2]
FAULTS = REPO / "tests/hosts/guarded_faults"
EVENT_TIMEOUT_S = 20


class Host:
    """One running server, and how tests talk to it."""

    def __init__(self, command: list[str], base: Path, start_timeout_s: float) -> None:
        self.port = free_port()
        self.base = base
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        arguments = ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(base)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command + arguments, stdout=log, stderr=log)
        deadline_s = time.monotonic() + start_timeout_s
        while "To see the GUI go to" not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                raise RuntimeError(f"did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def request(self, path: str, body: Any = None, raw: bytes | None = None, method: str = "") -> tuple[int, Any]:
        """Status, and the body: JSON where it is JSON, else bytes. A `body` or `raw` makes it a POST."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, method=method or None)
        try:
            with urllib.request.urlopen(asked, timeout=30) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as refusal:
            status, content = refusal.code, refusal.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def submit(self, prompt: dict[str, Any], **more: Any) -> str:
        status, answer = self.request("/prompt", {"prompt": prompt, **more})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout_s: float = EVENT_TIMEOUT_S) -> dict[str, Any]:
        """The history entry, as soon as there is one."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            _, history = self.request(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.01)
        raise AssertionError(f"no history entry for {prompt_id} after {timeout_s} s")

    def run(self, prompt: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.wait(self.submit(prompt, **more))

    def events(self, prompt: dict[str, Any], client: bool = True, interrupt_after: str = "", **more: Any) -> list[Any]:
        """Submit and give every websocket message up to the job's end, the socket's first `status` included.

        With `client` the socket is the job's own, else it belongs to somebody else. `interrupt_after` names
        the event at which an interrupt is sent.
        """
        return asyncio.run(self._events(prompt, client, interrupt_after, more))

    async def _events(self, prompt: dict, client: bool, interrupt_after: str, more: dict) -> list[Any]:
        sid = uuid.uuid4().hex
        body = {"prompt": prompt, **({"client_id": sid} if client else {}), **more}
        seen: list[Any] = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={sid}") as ws,
        ):
            seen.append(json.loads((await ws.receive(EVENT_TIMEOUT_S)).data))
            async with session.post(f"{self.url}/prompt", json=body) as response:
                assert response.status == 200, await response.text()
            while not _is_last(seen, client):
                message = await ws.receive(EVENT_TIMEOUT_S)
                assert message.type is aiohttp.WSMsgType.TEXT, message
                seen.append(json.loads(message.data))
                if seen[-1]["type"] == interrupt_after:
                    interrupt_after = ""
                    await session.post(f"{self.url}/interrupt", json={})
        return seen


def _is_last(seen: list[Any], client: bool) -> bool:
    last = seen[-1]
    if client:
        return last["type"] == "executing" and last["data"]["node"] is None
    remaining = last["data"].get("status", {}).get("exec_info", {}).get("queue_remaining")
    return len(seen) > 2 and remaining == 0


def start_sandbox(base: Path, *flags: str) -> Host:
    base.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPO / "sandbox/main.py"), "--extra-custom-node", str(FAULTS), *flags]
    return Host(command, base, start_timeout_s=30)


def start_real(kind: HostKind, base: Path) -> Host:
    for folder in ("user", "input", "custom_nodes"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes/guarded_faults").symlink_to(FAULTS)
    database = f"sqlite:///{base}/user/comfyui.db"
    flags = ["--cpu", "--disable-api-nodes", "--database-url", database]
    return Host([kind.python, str(kind.main), *flags], base, start_timeout_s=150)


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = start_sandbox(tmp_path_factory.mktemp("sandbox"))
    yield host
    host.stop()


@pytest.fixture
def fresh_sandbox(tmp_path: Path) -> Iterator[Host]:
    """One that a test may ruin."""
    host = start_sandbox(tmp_path / "base")
    yield host
    host.stop()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    kinds = real_kinds()
    if not kinds:
        pytest.skip("no real ComfyUI was found: set COMFYUI_PATH and COMFYUI_PYTHON")
    host = start_real(kinds[0], tmp_path_factory.mktemp("real"))
    yield host
    host.stop()


@pytest.fixture
def nodes() -> type["Nodes"]:
    return Nodes


class Nodes:
    """Graphs for tests."""

    @staticmethod
    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    @classmethod
    def image(cls, **more: Any) -> dict[str, Any]:
        return cls.node("EmptyImage", **({"width": 64, "height": 32, "batch_size": 1, "color": 0x336699} | more))

    @classmethod
    def save(cls, prefix: str, source: str = "1", **more: Any) -> dict[str, Any]:
        return cls.node("SaveImage", images=[source, 0], filename_prefix=prefix, **more)

    @classmethod
    def saved(cls, prefix: str, **more: Any) -> dict[str, Any]:
        """Two nodes: an image of one colour, saved."""
        return {"1": cls.image(), "2": cls.save(prefix, **more)}

    @classmethod
    def fault(cls, class_type: str, prefix: str = "fault", **inputs: Any) -> dict[str, Any]:
        """A faulty image node, saved."""
        return {"1": cls.node(class_type, **({"seed": 0} | inputs)), "2": cls.save(prefix)}
