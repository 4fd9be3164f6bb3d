"""Clients that ask for much and never read it: what waits for them is bounded, and nobody else waits for them."""

import contextlib
import http.client
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bounds.conftest import KEYED
from bounds.judges import MIB, Patient, read_peak
from bounds.shapes import JSON, node
from bounds.test_floods import open_socket
from contract.client import PATIENCE_S, make_key, sleep

from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, sandbox_kind

#: Another one, to see the test fail there.
PACKAGE = Path(os.environ.get("GUARDED_PACKAGE", ROOT))
READERS = 100
ANSWER_BYTES = 5 * MIB
#: What all of them may hold. An owner has the turns of four large answers and of 256 files at a time; each answer is
#: there once, and while it is made three times as large. Without turns it is 1,083 MiB.
ALLOWED_BYTES = 4 * 3 * ANSWER_BYTES + 100 * MIB


def ask(host: HostProcess, key: str, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {key}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def fill(host: HostProcess, key: str) -> tuple[str, str]:
    """Give the key a history of some size, a job with a large prompt and a large file; name the last two."""
    for number in range(6):
        given = {"1": node("FaultText", text="x" * (900 * 1024), seed=number)}
        body = json.dumps({"prompt": given}).encode()
        status, answer = ask(host, key, "POST", f"/guarded/prompt?wait={PATIENCE_S:g}", body)
        assert status == 200, answer
    picture = b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(ANSWER_BYTES)
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="large.png"\r\n\r\n%s\r\n--b--\r\n' % picture
    status, told = ask(
        host, key, "POST", "/guarded/upload/image", form, **{"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert status == 200, told
    return json.loads(answer)["prompt_id"], json.loads(told)["name"]


def open_reader(host: HostProcess, key: str, path: str) -> socket.socket:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(PATIENCE_S)
    reader.connect(("127.0.0.1", host.port))
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    return reader


@contextlib.contextmanager
def readers(host: HostProcess, key: str, path: str, count: int = READERS) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_reader(host, key, path)) for _ in range(count)]


@pytest.fixture(scope="module")
def filled(guarded_host: HostProcess) -> dict[str, str]:
    other = make_key(guarded_host.base, "other")
    job_id, name = fill(guarded_host, KEYED[guarded_host.url])
    while ask(guarded_host, other, "GET", "/guarded/prompt")[0] == 401:
        time.sleep(0.1)  # a new key takes effect within a second
    return {
        "other": other,
        "a history": "/guarded/history",
        "a list of ComfyUI's": "/guarded/api/history?max_items=5",
        "a file": f"/guarded/view?filename={name}&type=input",
        "a job's events": f"/guarded/jobs/{job_id}/events",
    }


@pytest.mark.serial
@pytest.mark.parametrize("what", ["a history", "a list of ComfyUI's", "a file", "a job's events"])
def test_answers_that_nobody_reads_fill_no_memory_and_hold_nobody_up(
    what: str, guarded_host: HostProcess, filled: dict[str, str]
):
    host, key = guarded_host, KEYED[guarded_host.url]
    before = read_peak(host.pid, afresh=True)
    count = 40 if what == "a job's events" else READERS
    with readers(host, key, filled[what], count):
        time.sleep(4)
        grown = read_peak(host.pid) - before
        print(what, f"+{grown / MIB:.0f} MiB")  # noqa: T201
        assert grown < ALLOWED_BYTES
        began_s = time.monotonic()
        status, answer = ask(host, filled["other"], "GET", "/guarded/history")
        assert (status, answer) == (200, b"{}")
        assert time.monotonic() - began_s < 5
        assert ask(host, key, "GET", "/guarded/prompt")[0] == 200, "the owner's other requests are answered"


@pytest.mark.serial
def test_answers_that_were_read_are_not_kept_with_their_idle_connections(
    guarded_host: HostProcess, filled: dict[str, str]
):
    host, key = guarded_host, KEYED[guarded_host.url]
    before = read_peak(host.pid, afresh=True)
    with contextlib.ExitStack() as stack:
        for _ in range(READERS):
            connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=PATIENCE_S)
            stack.callback(connection.close)
            connection.request("GET", filled["a history"], headers={"Authorization": f"Bearer {key}"})
            assert len(connection.getresponse().read()) > ANSWER_BYTES
        grown = read_peak(host.pid) - before
    print(f"+{grown / MIB:.0f} MiB")  # noqa: T201
    assert grown < READERS * ANSWER_BYTES / 2


LISTS = ["/guarded/history", "/guarded/queue", "/guarded/api/jobs", "/guarded/jobs?limit=500"]


@pytest.mark.serial
@pytest.mark.parametrize("path", LISTS)
async def test_the_largest_lists_do_not_stall_the_loop(
    path: str, ours: Patient, key: dict[str, str], filled: dict[str, str]
):
    if path == "/guarded/queue":  # behind one that runs for as long
        (held, *_others) = [
            (await ours.send("/guarded/prompt", make_waiting(number), {**JSON, **key}))[0] for number in range(9)
        ]
        assert held == 200
    told = []
    for _ in range(3):
        cost = await ours.measure(path, b"", key, "GET")
        assert cost.status == 200
        told.append(f"{len(cost.answer)} bytes, stall {cost.stall_s * 1000:.0f} ms, +{cost.memory_bytes / MIB:.0f} MiB")
        if cost.stall_s <= 0.05 and cost.memory_bytes <= 24 * MIB + 4 * len(cost.answer):
            break
    else:
        pytest.fail(f"{path}: {told}")
    print(path, told)  # noqa: T201
    if path == "/guarded/queue":
        assert (await ours.send("/guarded/queue", b'{"clear": true}', {**JSON, **key}))[0] == 200
        assert (await ours.send("/guarded/interrupt", b"{}", {**JSON, **key}))[0] == 200


def make_waiting(number: int) -> bytes:
    prompt = sleep(PATIENCE_S, steps=100)
    prompt["1"]["inputs"]["seed"] = number
    return json.dumps({"prompt": prompt, "extra_data": {"x": "x" * (900 * 1024)}}).encode()


def test_who_takes_nothing_is_cut_off_and_who_is_slow_gets_it_all(tmp_path):
    """Each turn comes back, and a reader that goes on reading keeps its own."""
    timeout_s = 2
    environment = {
        "GUARDED_ACCESS__TRUST_LOOPBACK": "false",
        "GUARDED_LIMITS__BODY_TIMEOUT_S": str(timeout_s),
        "GUARDED_LIMITS__MAX_REQUESTS": "5",  # one of them large
    }
    host = HostProcess(sandbox_kind(), tmp_path, environment=environment, package=PACKAGE)
    key = make_key(tmp_path, "bot")
    with host:
        job_id, name = fill(host, key)
        whole = len(ask(host, key, "GET", "/guarded/history")[1])
        assert whole > ANSWER_BYTES
        for path, count in (("/guarded/history", 3), (f"/guarded/view?filename={name}&type=input", 3)):
            with readers(host, key, path, count):
                status, answer = ask(host, key, "GET", "/guarded/history")  # in line behind those
                assert (status, len(answer)) == (200, whole)
        with open_reader(host, key, "/guarded/history") as slow:
            came, began_s = 0, time.monotonic()
            while came < whole:
                data = slow.recv(2**18)
                assert data, f"cut off after {came} bytes"
                came += len(data)
                if time.monotonic() - began_s < 3 * timeout_s:
                    time.sleep(0.2)
            assert time.monotonic() - began_s > 2 * timeout_s
        assert job_id


def test_who_never_reads_what_a_websocket_or_a_stream_tells_is_bounded_and_its_jobs_go_on(tmp_path):
    """Thirty jobs tell 27 MB to each of eight sockets and streams, none of which reads: a socket may have 16 MiB
    waiting, and all of an owner's 64 MiB."""
    host = HostProcess(
        sandbox_kind(), tmp_path, environment={"GUARDED_ACCESS__TRUST_LOOPBACK": "false"}, package=PACKAGE
    )
    key = make_key(tmp_path, "bot")
    with host, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(host, key, 7)) for _ in range(8)]
        streams = [stack.enter_context(open_reader(host, key, "/guarded/events")) for _ in range(8)]
        before = read_peak(host.pid, afresh=True)
        for number in range(30):
            given = {"1": node("FaultText", text="x" * (900 * 1024), seed=number)}
            body = json.dumps({"prompt": given, "client_id": "flood7"}).encode()
            status, answer = ask(host, key, "POST", f"/guarded/prompt?wait={PATIENCE_S:g}", body)
            assert status == 200, answer
            assert json.loads(answer)["guard"]["job"]["state"] == "succeeded"
        grown = read_peak(host.pid) - before
        print(f"+{grown / MIB:.0f} MiB")  # noqa: T201
        assert grown < 160 * MIB
        for link in sockets:
            link.settimeout(PATIENCE_S)
            came = 0
            with contextlib.suppress(ConnectionError):
                while data := link.recv(2**20):  # to its end: the server has given it up
                    came += len(data)
                    assert came < 26 * MIB, "it was told everything"
        assert len(streams) == 8
