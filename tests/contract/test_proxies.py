"""The proxy settings of the deployment manual, word for word, in front of a server; where the proxy is installed."""

import contextlib
import getpass
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from contract.client import PATIENCE_S, sleep, text
from contract.test_access import make_key

from comfyui_guarded.tests.hosts.launch import HostProcess, free_port, sandbox_kind

#: Where `make` has put them, and where Debian does.
PROGRAMS = os.pathsep.join(
    f"{root}/usr/{folder}" for root in (f"{sys.prefix}/tools", "") for folder in ("sbin", "bin", "local/bin")
)
MANUAL = Path(__file__).parents[2] / "docs" / "deploy.md"


def snippet(language: str, port: int, upstream: int) -> str:
    """What the manual says, for this test's ports and without TLS."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    found = re.sub(r".*ssl_certificate.*\n", "", found).replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    return found.replace("gpu.example.org {", f"http://127.0.0.1:{port} {{").replace(
        "127.0.0.1:8188", f"127.0.0.1:{upstream}"
    )


def nginx(folder: Path, port: int, upstream: int) -> list[str]:
    places = "\n".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root it would give its work to somebody who may not write here.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder / 'pid'}; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {places}\n{snippet('nginx', port, upstream)} }}"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, upstream: int) -> list[str]:
    (folder / "Caddyfile").write_text("{\nadmin off\nauto_https off\n}\n" + snippet("caddy", port, upstream))
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(request, tmp_path_factory):
    """(URL of the proxy, key of a bot) of a guarded server behind it."""
    program = shutil.which(request.param.__name__, path=PROGRAMS)
    if program is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    folder = tmp_path_factory.mktemp("proxied")
    key = make_key(folder, "bot")
    port = free_port()
    with HostProcess(sandbox_kind(), folder, environment={"GUARDED_NATIVE__MODE": "guarded"}) as host:
        command = [program, *request.param(folder, port, host.port)[1:]]
        with open(folder / "proxy.log", "wb") as log:
            proxy = subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/bin"})
        try:
            _listening(port, proxy, folder / "proxy.log")
            yield f"http://127.0.0.1:{port}", key
        finally:
            proxy.terminate()
            proxy.wait()


def _listening(port: int, proxy: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert proxy.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)


@pytest.fixture
async def through(proxied):
    """A session of the bot's."""
    url, key = proxied
    timeout = aiohttp.ClientTimeout(total=None, sock_read=PATIENCE_S)
    async with aiohttp.ClientSession(url, timeout=timeout, headers={"Authorization": f"Bearer {key}"}) as session:
        yield session


async def test_what_comes_through_the_proxy_needs_a_key_and_nothing_else_comes_through(through):
    async with through.get("/guarded/jobs", headers={"Authorization": ""}) as answer:
        assert answer.status == 401
    async with through.get("/guarded/jobs") as answer:
        assert answer.status == 200
    async with through.get("/prompt") as answer:
        assert answer.status == 404


async def test_a_large_photo_comes_through(through):
    form = aiohttp.FormData()
    form.add_field("prompt", json.dumps(text()))
    photo = io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(20 * 2**20))
    form.add_field("photo", photo, filename="me.png")
    async with through.post("/guarded/prompt", data=form) as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (400, "invalid_request")  # no node names it


async def test_events_and_a_held_answer_come_through_at_once(through):
    async with through.post("/guarded/prompt", json={"prompt": sleep(3600, steps=100_000)}) as answer:
        job_id = (await answer.json())["prompt_id"]
    async with through.get(f"/guarded/jobs/{job_id}/events") as stream:
        async for line in stream.content:
            if line.startswith(b"event: progress"):  # while the job runs: nothing has been kept back
                break
    async with through.delete(f"/guarded/jobs/{job_id}") as answer:
        assert answer.status == 200
    async with through.post("/guarded/prompt?wait=60", json={"prompt": text()}) as answer:
        assert (await answer.json())["guard"]["state"] == "succeeded"


async def test_a_websocket_comes_through(through):
    async with through.ws_connect("/guarded/ws?clientId=proxied") as socket:
        first = await socket.receive_json()
    assert (first["type"], first["data"]["sid"]) == ("status", "proxied")
