"""The proxy settings of the deployment manual, word for word, in front of a server, and six that are wrong."""

import contextlib
import functools
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
from contract.test_loopback import DOORS, command, root, status

from comfyui_guarded.tests.hosts.launch import HostProcess, free_port, sandbox_kind

#: Where `make` has put them, and where Debian does.
PROGRAMS = os.pathsep.join(
    f"{root}/usr/{folder}" for root in (f"{sys.prefix}/tools", "") for folder in ("sbin", "bin", "local/bin")
)
MANUAL = Path(__file__).parents[2] / "docs" / "deploy.md"


def snippet(language: str, port: int, upstream: int, *, editor: bool = False) -> str:
    """What the manual says, for this test's ports and without TLS; with the editor, as the manual's comments say."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    found = re.sub(r".*ssl_certificate.*\n", "", found).replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    found = found.replace("X-Forwarded-Proto https", "X-Forwarded-Proto http")
    found = re.sub(r"bind :443 ssl crt \S+", f"bind 127.0.0.1:{port}", found)
    if editor:
        assert "# for the editor: " in found
        found = re.sub(r".*# for the editor: without this line\n", "", found)
        found = re.sub(r"(respond|return) 404(; \})? *# for the editor: (.*)", r"\3 \2", found).replace("; ; }", "; }")
    return found.replace("gpu.example.org {", f"http://127.0.0.1:{port} {{").replace(
        "127.0.0.1:8188", f"127.0.0.1:{upstream}"
    )


def find_group(user: str) -> str:
    import grp  # not on Windows, where none of these proxies is looked for
    import pwd

    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def nginx(folder: Path, text: str, user: str) -> list[str]:
    places = "\n".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root it would give its work to somebody who may not write here.
    user = f"user {user} {find_group(user)};" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder / 'pid'}; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {places}\n{text} }}"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, text: str, _user: str) -> list[str]:
    (folder / "Caddyfile").write_text("{\nadmin off\nauto_https off\n}\n" + text)
    return ["caddy", "run", "--config", "-", "--adapter", "caddyfile"]


def haproxy(folder: Path, text: str, user: str) -> list[str]:
    user = f"user {user}" if os.geteuid() == 0 else ""
    (folder / "haproxy.cfg").write_text(f"global\n    {user}\n{text}")
    return ["haproxy", "-db", "-q", "-f", str(folder / "haproxy.cfg")]


@functools.cache
def find_program(name: str) -> tuple[str, dict[str, str]] | None:
    """A proxy that runs here, and the environment that it needs; None where there is none."""
    libraries = os.pathsep.join(str(found.parent) for found in Path(sys.prefix, "tools").glob("usr/lib/*/*.so*"))
    environment = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": libraries}
    program = shutil.which(name, path=PROGRAMS)
    asks = "version" if name == "caddy" else "-v"
    if program is None or subprocess.run([program, asks], env=environment, capture_output=True).returncode:
        return None
    return program, environment


#: Those that are installed.
KINDS = [pytest.param(make, id=make.__name__) for make in (nginx, caddy, haproxy) if find_program(make.__name__)]


@contextlib.contextmanager
def running(make, folder: Path, text: str, port: int, user: str = getpass.getuser()):
    """The proxy with that configuration, its work done by `user`."""
    folder.mkdir(exist_ok=True)
    program, environment = find_program(make.__name__)
    command = [program, *make(folder, text, user)[1:]]
    # The others change their user by themselves.
    is_other = make is caddy and user != getpass.getuser()
    whose = {"user": user, "group": find_group(user), "extra_groups": []} if is_other else {}
    config = folder / ("Caddyfile" if make is caddy else os.devnull)
    with open(folder / "proxy.log", "wb") as log, open(config) as stdin:
        proxy = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=log,
            stderr=log,
            env={**environment, "HOME": str(folder)},
            **whose,
        )
    try:
        _listening(port, proxy, folder / "proxy.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        proxy.terminate()
        proxy.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server as the manual sets it up, and the keys of a bot and of an operator."""
    folder = tmp_path_factory.mktemp("proxied")
    key, admin = make_key(folder, "bot"), make_key(folder, "admin", "operate")
    environment = {
        "GUARDED_NATIVE__MODE": "guarded",
        "GUARDED_ACCESS__TRUST_LOOPBACK": "false",
        "GUARDED_ACCESS__TRUSTED_PROXIES": "127.0.0.1",
    }
    with HostProcess(sandbox_kind(), folder, environment=environment) as host:
        yield host, key, admin


@pytest.fixture(scope="module", params=KINDS)
def proxied(request, server, tmp_path_factory):
    """(URL of the proxy, key of a bot) of a guarded server behind it."""
    host, key, _admin = server
    port = free_port()
    text = snippet(request.param.__name__, port, host.port)
    with running(request.param, tmp_path_factory.mktemp("proxy"), text, port) as url:
        yield url, key


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


@pytest.mark.parametrize("make", KINDS)
async def test_with_the_editor_behind_it_a_key_or_a_link_is_let_in_and_nobody_else(make, server, tmp_path):
    host, _key, admin = server
    port = free_port()
    with running(make, tmp_path, snippet(make.__name__, port, host.port, editor=True), port) as url:
        assert status(port, "GET", "/") == 401
        assert status(port, "POST", "/prompt") == 401
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {admin}"}) as session:
            async with session.get("/queue") as answer:
                assert answer.status == 200
            async with session.ws_connect("/ws?clientId=editor") as editor:
                assert (await editor.receive_json())["type"] == "status"
        link = command(host.base, "open", "--url", url).splitlines()[0]
        async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            async with session.get(link) as answer:
                assert (answer.status, str(answer.url)) == (200, f"{url}/guarded/")
            async with session.post("/prompt", json={"prompt": sleep(3600)}) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            state = ""
            while state != "running":
                async with session.get(f"/guarded/jobs/{prompt_id}") as answer:
                    state = (await answer.json())["state"]
            async with session.post("/queue", json={"delete": [prompt_id]}) as answer:
                assert answer.status == 200
            async with session.post("/interrupt", json={"prompt_id": prompt_id}) as answer:
                assert answer.status == 200
            async with session.get(f"/guarded/jobs/{prompt_id}?wait=60") as answer:
                job = await answer.json()
            assert (job["owner"], job["state"] in ("cancelled", "failed")) == ("local", True)
            async with session.ws_connect("/ws?clientId=signed-in") as editor:
                assert (await editor.receive_json())["type"] == "status"


_NGINX = "server { listen 127.0.0.1:PORT; location / { %s proxy_pass http://127.0.0.1:8188; } }"
_HAPROXY = """
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen all
    bind 127.0.0.1:PORT
    %s
    server gpu 127.0.0.1:8188
"""
#: What people write, and what it takes for it to be trusted: nothing here says that the request was passed on.
WRONG = {
    "nginx, one line": (nginx, _NGINX % ""),
    "nginx, HTTP/1.1": (nginx, _NGINX % 'proxy_http_version 1.1; proxy_set_header Connection "";'),
    "nginx, Host localhost": (nginx, _NGINX % "proxy_http_version 1.1; proxy_set_header Host localhost;"),
    "HAProxy, Host localhost": (haproxy, _HAPROXY % "mode http\n    http-request set-header Host localhost"),
    "HAProxy, TCP": (haproxy, _HAPROXY % "mode tcp"),
    "Caddy, no headers": (
        caddy,
        "http://:PORT {\nreverse_proxy 127.0.0.1:8188 {\nheader_up Host localhost\nheader_up -X-Forwarded-*\n"
        "header_up -Via\n}\n}\n",
    ),
}


@root
@pytest.mark.parametrize("name", [name for name, (make, _text) in WRONG.items() if find_program(make.__name__)])
def test_through_a_proxy_that_is_set_up_wrong_a_stranger_is_refused(name, tmp_path):
    make, text = WRONG[name]
    make_key(tmp_path / "base", "bot")
    port = free_port()
    with HostProcess(sandbox_kind(), tmp_path / "base", environment={"GUARDED_NATIVE__MODE": "guarded"}) as host:
        text = text.replace("PORT", str(port)).replace("8188", str(host.port))
        with running(make, tmp_path / "proxy", text, port, user="nobody"):
            for headers in ({}, {"Host": "localhost"}, {"Host": f"127.0.0.1:{host.port}"}):
                for method, path in DOORS:
                    seen = status(port, method, path, **headers)
                    assert seen in (401, 403), (method, path, headers, seen)
        assert status(host.port) == 200
