"""A search that nobody steers: bodies of every shape, sent in every way, to every route of the contract, with both
judges.

A test run tries the same 300 of them every time; `BOUNDS=3000` tries so many new ones.
"""

import contextlib
import functools
import itertools
import json
import os
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from bounds.conftest import KEYED
from bounds.framing import Framing, framings
from bounds.judges import MIB, read_peak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui_guarded.tests.hosts.launch import HostProcess

#: On each of three kinds of host, where all are found.
EXAMPLES = int(os.environ.get("BOUNDS", "300")) // 3
SPARE_S = 0.05
SPARE_BYTES = 32 * MIB
#: The most that any route takes of a body of JSON, and a little more.
LARGEST = 17 * MIB
#: The one would refuse every job after it, and these two would sweep away what others wait for.
LEFT_OUT = ("/guarded/drain", "/guarded/janitor/sweep", "/guarded/janitor/adopt", "/guarded/janitor/native")

pytestmark = pytest.mark.serial

#: Bodies; `@` is where what repeats stands.
FRAMES = [
    '{"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": @, "seed": 0}}}}',
    '{"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": "x", "seed": 0}}}, "extra_data": @}',
    '{"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": "x"}, "_meta": {"title": @}}}}',
    '{"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": "x", "seed": 0}}}, "guard": {"metadata": @}}',
    '{"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": "x", "seed": 0}}}, "guard": @}',
    '{"prompt": {"1": {"class_type": @, "inputs": {}}}}',
    '{"prompt": @}',
    '{"parameters": @}',
    '{"image": "photo.png", "min_faces": @}',
    '{"path": @}',
    '{"delete": @}',
    '{"job_ids": @}',
    '{"prompt_id": @}',
    '{"type": "feature_flags", "data": @}',
    "@",
]
ITEMS = [
    "[]",
    "{}",
    '{"a":1}',
    "1",
    "1.5e300",
    '"x"',
    '""',
    '"a,b[{"',
    '"\\u0430"',
    '"\\ud83d\\ude00"',
    "null",
    "[[[]]]",
]


@dataclass(frozen=True)
class Sent:
    """One request: what it holds when it is unpacked, and how it is sent."""

    method: str
    path: str
    recipe: tuple[Any, ...]
    encoding: str
    framing: Framing
    keyed: bool

    @functools.cached_property
    def body(self) -> bytes:
        return make_body(*self.recipe)

    @property
    def kind(self) -> str:
        return str(self.recipe[0])

    def pack(self) -> bytes:
        return self.framing.pack(self.body, self.encoding)


def make_json(frame: str, item: str, size: int, shape: str) -> bytes:
    count = max(size // (len(item) + 1), 1)
    if shape == "list":
        inside = f"[{','.join([item] * count)}]"
    elif shape == "object":
        inside = "{" + ",".join(f'"k{number}":{item}' for number in range(size // (len(item) + 9))) + "}"
    elif shape == "nested":
        inside = "[" * (size // 2) + "]" * (size // 2)
    elif shape == "text":
        inside = json.dumps(item.strip('"') * count)
    elif shape == "picture":
        inside = f'"data:image/png;base64,{"A" * size}"'
    elif shape == "cut":
        inside = f"[{','.join([item] * count)}"
    elif shape == "nodes":
        nodes = (f'"{number}":{{"class_type":"FaultText","inputs":{{"text":["{number - 1}",0]}}}}'
                 for number in range(size // 60))  # fmt: skip
        inside = "{" + ",".join(nodes) + "}"
    else:
        inside = " " * size + item
    return frame.replace("@", inside).encode()


def make_form(parts: int, size: int, headers: int) -> bytes:
    extra = "".join(f"X-{number}: y\r\n" for number in range(headers))
    each = max(size // max(parts, 1), 1)
    part = (
        f'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n{extra}\r\n'.encode(),
        b"x" * each + b"\r\n",
    )
    names = itertools.cycle((b"prompt", b"image", b"parameters", b"photo"))
    files = itertools.cycle((b"", b'; filename="a.png"'))
    body = b"".join(part[0] % (next(names), next(files)) + part[1] for _ in range(parts))
    return body + b"--b--\r\n"


SIZES = st.sampled_from([1, 100, 10_000, 60_000, 70_000, 300_000, MIB, 3 * MIB, 9 * MIB, 15 * MIB])


@st.composite
def recipes(draw: st.DrawFn) -> tuple[Any, ...]:
    """What to make of which size; hypothesis would print a body itself whole."""
    kind = draw(st.sampled_from(["json", "json", "json", "json", "form", "lines", "bytes"]))
    size = draw(SIZES)
    if kind == "json":
        shape = draw(st.sampled_from(["list", "object", "nested", "text", "picture", "cut", "nodes", "spaces"]))
        return kind, draw(st.sampled_from(FRAMES)), draw(st.sampled_from(ITEMS)), size, shape
    if kind == "form":
        return kind, draw(st.sampled_from([1, 20, 70, 5000])), size, draw(st.sampled_from([0, 0, 100]))
    lines = [b"\r\n", b"\n", b"x\r\n", b"--b\r\n", b"--b\r\n\r\n"]
    return kind, draw(st.sampled_from(lines) if kind == "lines" else st.binary(min_size=1, max_size=8)), size


def make_body(kind: str, *how: Any) -> bytes:
    if kind == "json":
        return make_json(*how)[:LARGEST]
    if kind == "form":
        return make_form(*how)[:LARGEST]
    piece, size = how
    return bytes(piece * (size // 4 + 1))


@st.composite
def requests(draw: st.DrawFn, routes: list[tuple[str, str]]) -> Sent:
    method, path = draw(st.sampled_from(routes))
    recipe = draw(recipes())
    encoding = draw(st.sampled_from(["", "", "gzip", "deflate", "br"]))
    return Sent(method, path, recipe, encoding, draw(framings()), draw(st.integers(0, 5)) > 0)


class Judge:
    """Sends requests to one pair of servers, and judges them."""

    def __init__(self, ours: HostProcess, bare: HostProcess) -> None:
        self.ours = ours
        self.bare = bare

    def judge(self, sent: Sent) -> None:
        packed = sent.pack()
        told = []
        for _ in range(3):
            stall_s, memory_bytes, status = self._measure(self.ours, sent, packed)
            told.append(f"{status}, {stall_s * 1000:.0f} ms, {memory_bytes / MIB:.0f} MiB")
            assert status < 500 or status == 503, (sent, told)
            allowed_bytes = SPARE_BYTES + 4 * len(sent.body) * sent.framing.connections
            if stall_s <= SPARE_S and memory_bytes <= allowed_bytes:
                return
            native_s, native_bytes, _status = 0.0, 0, 0
            if sent.keyed:  # what ComfyUI itself does on the loop for this route, its list of all nodes, say
                native = sent.path.removeprefix("/guarded")
                native_s, native_bytes, _status = self._measure(self.bare, sent, packed, native)
            told.append(f"native {native_s * 1000:.0f} ms, {native_bytes / MIB:.0f} MiB")
            if stall_s <= SPARE_S + native_s and memory_bytes <= max(allowed_bytes, SPARE_BYTES + native_bytes):
                return
            time.sleep(1)
        pytest.fail(f"{sent}, {len(sent.body)} bytes: {told}")

    def _measure(self, host: HostProcess, sent: Sent, packed: bytes, path: str = "") -> tuple[float, int, int]:
        deadline = time.monotonic() + 10
        self._read_stall_s(host)
        while time.monotonic() < deadline and self._read_stall_s(host) > 0.02:
            time.sleep(0.1)  # what the one before has begun
        before = read_peak(host.pid, afresh=True)
        written = self._write(host, sent, packed, path)
        with ThreadPoolExecutor(sent.framing.connections) as pool:
            sending = [pool.submit(self._send, host, sent, written) for _ in range(sent.framing.connections)]
            status = max(each.result() for each in sending)
        time.sleep(0.05)
        return self._read_stall_s(host), read_peak(host.pid) - before, status

    def _read_stall_s(self, host: HostProcess) -> float:
        with urllib.request.urlopen(f"{host.url}/guarded_faults/heart", timeout=120) as answer:
            return float(json.load(answer)["stall_s"])

    def _write(self, host: HostProcess, sent: Sent, packed: bytes, path: str) -> list[bytes]:
        lines = [f"{sent.method} {path or sent.path} HTTP/1.1", "Host: 127.0.0.1"]
        if sent.keyed and host is self.ours:
            lines.append(f"Authorization: Bearer {KEYED[host.url]}")
        if sent.path.endswith("/ws") and not path:
            lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
            lines.append("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
            return ["\r\n".join([*lines, "", ""]).encode(), *sent.framing.write_frames(sent.body[: 4 * MIB])]
        is_form = sent.kind in ("form", "lines")
        lines.append("Content-Type: " + ("multipart/form-data; boundary=b" if is_form else "application/json"))
        if sent.encoding:
            lines.append(f"Content-Encoding: {sent.encoding}")
        return sent.framing.write("\r\n".join([*lines, ""]).encode(), packed)

    def _send(self, host: HostProcess, sent: Sent, written: list[bytes]) -> int:
        with socket.create_connection(("127.0.0.1", host.port), 60) as connection:
            with contextlib.suppress(OSError):
                for number, part in enumerate(written):
                    connection.sendall(part)
                    if sent.framing.slow and number < 100:
                        time.sleep(0.001)
            return self._read_status(connection)

    def _read_status(self, connection: socket.socket) -> int:
        """0: closed without an answer."""
        head = b""
        with contextlib.suppress(OSError):
            connection.settimeout(120)
            while b"\r\n\r\n" not in head and (more := connection.recv(65536)):
                head += more
        return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0


@pytest.fixture(scope="module")
def judge(guarded_host: HostProcess, bare_host: HostProcess) -> Judge:
    return Judge(guarded_host, bare_host)


def read_routes(host: HostProcess) -> list[tuple[str, str]]:
    with urllib.request.urlopen(
        urllib.request.Request(
            f"{host.url}/guarded/openapi.json", headers={"Authorization": f"Bearer {KEYED[host.url]}"}
        )
    ) as answer:
        contract: dict[str, Any] = json.load(answer)
    found = [
        (method.upper(), path.replace("{name}", "sdxl").replace("{", "").replace("}", ""))
        for path, item in contract["paths"].items()
        for method in item
        if path not in LEFT_OUT
    ]
    # Those that take a body come up as often as all others together.
    taking = [route for route in found if route[0] == "POST"]
    return [*found, *taking * max(len(found) // len(taking), 1)]


@pytest.mark.timeout(3 * EXAMPLES + 300)
def test_no_body_stalls_the_server_or_fills_its_memory(judge: Judge):
    routes = read_routes(judge.ours)
    assert len(set(routes)) > 20

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="BOUNDS" not in os.environ,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(requests(routes))
    def search(sent: Sent) -> None:
        judge.judge(sent)

    search()
    assert judge.ours.alive
