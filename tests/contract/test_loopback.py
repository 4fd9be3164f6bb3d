"""Being local is proved: what a tunnel or another user of this machine passes on is anybody's, once there are keys."""

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from contract.client import PATIENCE_S, connected, picture, sleep, text
from contract.conftest import kinds
from contract.test_access import make_key

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, free_port, sandbox_kind

REPO = Path(__file__).parents[2]
NOBODY = 65534

#: A tunnel that knows nothing of HTTP: `relay.py UID PORT UPSTREAM`.
RELAY = """
import asyncio, os, sys
uid, port, upstream = map(int, sys.argv[1:])
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def main():
    async def serve(reader, writer):
        there = await asyncio.open_connection(host="127.0.0.1", port=upstream)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
    async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
        "".encode("idna")  # what must be imported while the interpreter's folder can be read
        os.setgroups([]) if os.getuid() == 0 else None
        os.setuid(uid)
        print("ready", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a connection is")
root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="takes root, to act as somebody else")


@contextlib.contextmanager
def relay(uid: int, upstream: int) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-c", RELAY, str(uid), str(port), str(upstream)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield port
        finally:
            process.kill()


def status(port: int, method: str = "GET", path: str = "/guarded/jobs", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        return connection.getresponse().status
    finally:
        connection.close()


DOORS = (
    *(("GET", "/guarded/jobs"), ("GET", "/guarded/stats"), ("POST", "/guarded/prompt"), ("GET", "/api/guarded/doctor")),
    *(("GET", "/queue"), ("POST", "/prompt"), ("GET", "/"), ("GET", "/view?filename=x.png"), ("POST", "/interrupt")),
)
#: What misconfigured proxies make of the Host header: nothing, the upstream's name, or another name of loopback.
HOSTS = ({}, {"Host": "localhost"}, {"Host": "127.0.0.1:8188"}, {"Host": "[::1]"})


@linux
@root
@pytest.mark.parametrize("mode", ["guarded", "closed"])
@pytest.mark.parametrize("kind", kinds())
def test_what_a_tunnel_of_another_user_passes_on_is_refused(kind: HostKind, mode: str, tmp_path: Path):
    key = make_key(tmp_path, "admin", "operate")
    with HostProcess(kind, tmp_path, environment={"GUARDED_NATIVE__MODE": mode}) as host:
        with relay(NOBODY, host.port) as tunnel:
            for headers in HOSTS:
                for method, path in DOORS:
                    seen = status(tunnel, method, path, **headers)
                    assert seen in (401, 403), (method, path, headers, seen)
            assert status(tunnel, Authorization=f"Bearer {key}") == 200
        # A tool of the server's own user, which may be a tunnel too, is that user.
        for method, path in (("GET", "/guarded/jobs"), ("GET", "/queue"), ("GET", "/guarded/stats")):
            assert status(host.port, method, path) == 200
        with relay(os.geteuid(), host.port) as tunnel:
            assert status(tunnel) == 200
            assert status(tunnel, Via="1.1 proxy") == 401


@linux
@root
async def test_one_keep_alive_connection_or_websocket_of_a_tunnel_is_no_better(tmp_path: Path):
    make_key(tmp_path, "bot")
    with HostProcess(sandbox_kind(), tmp_path) as host, relay(NOBODY, host.port) as tunnel:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{tunnel}") as session:
            for _ in range(5):
                async with session.get("/guarded/jobs") as answer:
                    assert answer.status == 401
                    assert "trust_loopback" in (await answer.json())["error"]["details"]
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await session.ws_connect("/guarded/ws?clientId=x")


@linux
def test_an_older_http_which_proxies_speak_is_refused_once_there_are_keys(tmp_path: Path):
    make_key(tmp_path, "bot")
    with HostProcess(sandbox_kind(), tmp_path) as host:
        for version, wanted in ((b"1.0", b"401"), (b"1.1", b"200")):
            with socket.create_connection(("127.0.0.1", host.port)) as raw:
                raw.sendall(b"GET /guarded/jobs HTTP/%s\r\nHost: localhost\r\nConnection: close\r\n\r\n" % version)
                assert raw.makefile("rb").readline().split()[1] == wanted


@linux
@root
@pytest.mark.parametrize(("trust", "theirs", "ours"), [("true", 200, 200), ("false", 401, 401), ("auto", 401, 200)])
def test_who_has_set_it_keeps_what_was_set(tmp_path: Path, trust: str, theirs: int, ours: int):
    make_key(tmp_path, "bot")
    host = HostProcess(sandbox_kind(), tmp_path, environment={"GUARDED_ACCESS__TRUST_LOOPBACK": trust})
    with host, relay(NOBODY, host.port) as tunnel:
        assert (status(tunnel), status(host.port)) == (theirs, ours)


@linux
@root
async def test_the_first_key_takes_effect_for_tunnels_within_seconds(tmp_path: Path):
    with HostProcess(sandbox_kind(), tmp_path) as host, relay(NOBODY, host.port) as tunnel:
        assert status(tunnel) == 200
        make_key(tmp_path, "bot")
        async with connected(host) as client:

            async def seen() -> int:
                return await asyncio.to_thread(status, tunnel)

            await client.polled(seen, lambda answered: answered == 401)
        assert status(host.port) == 200


def command(base: Path, *words: str, check: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, str(REPO), *words, "--user", str(base / "user")], capture_output=True, text=True, check=check
    )
    return done.stdout


@pytest.mark.parametrize("mode", ["guarded", "closed"])
@pytest.mark.parametrize("kind", kinds())
async def test_a_browser_that_a_link_has_signed_in_is_local(kind: HostKind, mode: str, tmp_path: Path):
    make_key(tmp_path, "bot")
    environment = {"GUARDED_NATIVE__MODE": mode, "GUARDED_ACCESS__TRUST_LOOPBACK": "false"}
    with HostProcess(kind, tmp_path, environment=environment) as host:
        assert status(host.port) == 401
        link = command(tmp_path, "open").splitlines()[0]
        assert link.startswith(f"{host.url}/guarded/open?once=")
        async with connected(host) as browser:
            jar = aiohttp.CookieJar(unsafe=True)  # of a server that has no name
            async with aiohttp.ClientSession(cookie_jar=jar) as session:
                async with session.get(link) as page:
                    assert (page.status, page.content_type) == (200, "text/html")
                    assert page.url.path == "/guarded/"
                    (answer,) = page.history
                    set_cookie = answer.headers["Set-Cookie"]
                browser.session = session
                assert "HttpOnly" in set_cookie
                assert "SameSite=Strict" in set_cookie
                async with aiohttp.ClientSession() as other, other.get(link) as again:
                    assert again.status == 401
                # The editor's ways: queue, history, cancel.
                running = await browser.native_submit(sleep(3600))
                waiting = await browser.native_submit(text())
                await browser.polled(browser.native_running, lambda ids: running in ids)
                assert (await browser.request("POST", "/queue", {"delete": [waiting]})).status == 200
                await browser.polled(browser.native_queue, lambda ids: waiting not in ids)
                assert (await browser.request("POST", "/interrupt", {"prompt_id": running})).status == 200
                await browser.polled(browser.native_queue, lambda ids: not ids)
                entry = await browser.native_entry(await browser.native_submit(picture()))
                assert entry["status"]["status_str"] == "success"
                async with browser.socket() as socket:
                    assert socket.seen
                if mode == "guarded":
                    assert {job["owner"] for job in await browser.jobs()} == {"local"}
                job = await browser.run(picture())
                assert job["owner"] == "local"


def test_a_link_is_for_those_who_may_read_our_folder_and_names_where_the_server_is(tmp_path: Path):
    (tmp_path / "user").mkdir()
    assert command(tmp_path, "open").startswith("http://127.0.0.1:8188/guarded/open?once=")
    assert command(tmp_path, "open", "--url", "https://gpu.example.org/").startswith(
        "https://gpu.example.org/guarded/open?once="
    )


def test_the_log_warns_of_doors_that_are_open_in_the_doctors_words(tmp_path: Path):
    make_key(tmp_path, "bot")
    environment = {"GUARDED_ACCESS__TRUST_LOOPBACK": "true"}
    with HostProcess(sandbox_kind(), tmp_path, environment=environment, arguments=("--listen", "0.0.0.0")) as host:
        told = json.loads(command(tmp_path, "doctor", "--json", check=False))["lines"]
        log = host.log.read_text()
    said = {line["check"]: line for line in reversed(told) if line["level"] != "ok"}
    assert said["loopback"]["message"] in log
    assert said["loopback"]["mend"] in log
    (network,) = (line for line in told if line["check"] == "network" and line["level"] == "error")
    assert network["message"].removeprefix("The server listens on 0.0.0.0. ") in log
    assert network["mend"] in log
