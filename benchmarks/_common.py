"""What the benchmarks share: the hosts, their prompts, the load generator."""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import math
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from _figures import percentile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import alias  # noqa: E402

alias.register()

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, real_kinds, sandbox_kind  # noqa: E402

#: No limit of the guard and no timeout may end what a benchmark sets up.
NO_LIMITS = {
    "GUARDED_QUEUE__MAX_QUEUED": "10000000",
    "GUARDED_QUEUE__TIMEOUT_S": "86400",
    "GUARDED_WATCHDOG__JOB_TIMEOUT_S": "86400",
}
#: Above this share of one CPU, the figures may show the load generator instead of the server.
BUSY_GENERATOR = 0.85

_JSON = {"Content-Type": "application/json"}
_counter = itertools.count(random.SystemRandom().randrange(2**32))


# The hosts. --------------------------------------------------------------------------------------------------


def make_parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--host", choices=("sandbox", "newest", "oldest"), default="sandbox", help="real ones: as launch.py finds them"
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}; medians are over these")
    return parser


def find_host_kind(name: str) -> HostKind:
    if name == "sandbox":
        return sandbox_kind()
    kinds = sorted(real_kinds(), key=lambda kind: [int(part) for part in kind.name.split()[-1].split(".")])
    if not kinds:
        sys.exit("No real ComfyUI was found; COMFYUI_PATH names one (tests/hosts/launch.py says where we look).")
    return kinds[-1 if name == "newest" else 0]


def print_headline(kind: HostKind, options: argparse.Namespace) -> None:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{kind.name}; {options.rounds} rounds, alternating, medians; "
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs{load}",
        flush=True,
    )


@contextmanager
def make_base_directory() -> Iterator[Path]:
    """Make a temporary folder for the servers' base directories; keep it if something goes wrong."""
    base = Path(tempfile.mkdtemp(prefix="guarded-benchmark-")).resolve()
    try:
        yield base
    except BaseException:
        print(f"The servers' logs are in {base}.", file=sys.stderr)
        raise
    shutil.rmtree(base, ignore_errors=True)


@contextmanager
def start_both(
    options: argparse.Namespace, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[HostProcess, HostProcess]]:
    """Start a guarded server without limits and a bare one of the same kind, and say what runs.

    Args:
        options: of `make_parser`.
        environment: more settings of the guarded one.
    """
    kind = find_host_kind(options.host)
    with (
        make_base_directory() as base,
        HostProcess(kind, base / "guarded", environment={**NO_LIMITS, **(environment or {})}) as guarded,
        HostProcess(kind, base / "bare", guarded=False) as bare,
    ):
        print_headline(kind, options)
        yield guarded, bare


def time_start_s(host: HostProcess, path: str, within_s: float = 240) -> float:
    """Start a host, and return the seconds from the start of its process until it answers `path` with 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began_s = time.perf_counter()
    host.spawn()
    while time.perf_counter() - began_s < within_s:
        try:
            with opener.open(host.url + path, timeout=5):
                return time.perf_counter() - began_s
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"{host.kind.name} did not come up; the end of its log:\n{host.log_tail()}")


# Prompts. ----------------------------------------------------------------------------------------------------


def make_no_op(**more: Any) -> bytes:
    """Make the body of a prompt that does next to nothing and is unique: it shows a number."""
    prompt = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": next(_counter)}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    return json.dumps({"prompt": prompt, **more}).encode()


def make_picture() -> bytes:
    """Make the body of a prompt that saves a picture of 128 × 128, without models."""
    sleep = {"seconds": 0.0, "checks_interrupt": False, "steps": 0, "seed": next(_counter)}
    prompt = {
        "1": {"class_type": "FaultSleep", "inputs": sleep},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
    }
    return json.dumps({"prompt": prompt}).encode()


def make_key(host: HostProcess) -> str:
    """Make a key of the host's server; it takes the server two seconds to notice."""
    package = host.base / "custom_nodes" / "ComfyUI-Guarded"
    command = [sys.executable, str(package), "keys", "create", "bench", "--user", str(host.base / "user")]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"gk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", made)
    if found is None:
        raise RuntimeError(f"no key in {made!r}")
    return found[0]


def make_holder() -> bytes:
    """Make a prompt that holds the worker until somebody stops it."""
    sleep = {"seconds": 86400.0, "checks_interrupt": True, "steps": 0, "seed": next(_counter)}
    prompt = {
        "1": {"class_type": "FaultSleep", "inputs": sleep},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    return json.dumps({"prompt": prompt, "prompt_id": str(uuid.uuid4())}).encode()


# The load generator. -----------------------------------------------------------------------------------------


class Connection(Protocol):
    """One client's keep-alive connection."""

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and content."""


class AiohttpConnection:
    """Use aiohttp, as a bot would."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        async with self._session.request(method, self._url + path, data=body, headers=_JSON) as response:
            return response.status, await response.read()


class RawConnection:
    """Bare HTTP/1.1 over a socket: it costs a fifth of aiohttp, so that more of the measured time is the server's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return int(answer.split(b" ", 2)[1]), await self._reader.readexactly(length)


@asynccontextmanager
async def open_connections(
    url: str, count: int, client: str = "aiohttp", key: str = ""
) -> AsyncIterator[list[Connection]]:
    if client == "raw":
        host, port = url.removeprefix("http://").split(":")
        pairs = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
        try:
            yield [RawConnection(*pair) for pair in pairs]
        finally:
            for _reader, writer in pairs:
                writer.close()
        return
    connector = aiohttp.TCPConnector(limit=count, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, headers={"X-API-Key": key} if key else None) as session:
        yield [AiohttpConnection(session, url) for _ in range(count)]


@dataclass(frozen=True)
class Load:
    """The figures of a number of requests.

    Attributes:
        generator_share: how much of one CPU the load generator used itself.
        server_cpu_s: CPU time of the server's process meanwhile, whatever it did; NaN where the system does not tell.
    """

    latencies_ms: list[float]
    wall_s: float
    generator_share: float
    server_cpu_s: float

    @classmethod
    def together(cls, parts: Sequence[Load]) -> Load:
        wall_s = sum(part.wall_s for part in parts)
        return cls(
            [latency_ms for part in parts for latency_ms in part.latencies_ms],
            wall_s,
            sum(part.generator_share * part.wall_s for part in parts) / wall_s,
            sum(part.server_cpu_s for part in parts),
        )

    @property
    def p50_ms(self) -> float:
        return percentile(self.latencies_ms, 50)

    @property
    def p99_ms(self) -> float:
        return percentile(self.latencies_ms, 99)

    @property
    def server_cpu_ms(self) -> float:
        """Per request."""
        return self.server_cpu_s * 1000 / len(self.latencies_ms)

    @property
    def per_s(self) -> float:
        return len(self.latencies_ms) / self.wall_s


def read_cpu_s(pid: int) -> float:
    """Read the CPU seconds that a process has used (Linux); other processes do not disturb them."""
    try:
        # What clock_getcpuclockid(3) makes of a process id; Python does not offer it.
        return time.clock_gettime((~pid << 3) | 2)
    except (AttributeError, OSError):
        return math.nan


async def load(
    host: HostProcess,
    requests: Sequence[tuple[str, str, bytes]],
    clients: int = 1,
    client: str = "aiohttp",
    key: str = "",
) -> tuple[Load, list[bytes]]:
    """Send (method, path, body) requests over `clients` connections that are all busy; return the answers too.

    Raises RuntimeError on an answer that is not 200.
    """
    waiting = iter(requests)
    latencies_ms: list[float] = []
    answers: list[bytes] = []

    async def one(connection: Connection) -> None:
        for method, path, body in waiting:
            began_s = time.perf_counter()
            status, content = await connection.request(method, path, body)
            latencies_ms.append((time.perf_counter() - began_s) * 1000)
            if status != 200:
                raise RuntimeError(f"{method} {path}: HTTP {status}: {content[:300]!r}")
            answers.append(content)

    async with open_connections(host.url, clients, client, key) as opened:
        for connection in opened:  # do not count the setting up of the connection
            await connection.request("GET", "/prompt")
        gc.collect()
        gc.disable()
        began_s, own_s, server_s = time.perf_counter(), time.process_time(), read_cpu_s(host.pid)
        await asyncio.gather(*(one(connection) for connection in opened))
        wall_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
        server_s = read_cpu_s(host.pid) - server_s
        gc.enable()
    return Load(latencies_ms, wall_s, own_s / wall_s, server_s), answers


async def run_in_turns(
    sides: Mapping[str, Callable[[int], Awaitable[Load]]], count: int, chunk: int
) -> dict[str, Load]:
    """Send `count` requests of each side, `chunk` at a time in turns, so that other load on the machine hits all alike.

    Args:
        sides: by name, what sends so many requests.
    """
    parts: dict[str, list[Load]] = {name: [] for name in sides}
    names = deque(sides)
    for _ in range(-(-count // chunk)):
        for name in names:
            parts[name].append(await sides[name](chunk))
        names.rotate(1)
    return {name: Load.together(loads) for name, loads in parts.items()}


async def ask(url: str, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    """Send one request beside the measured ones, and return its JSON."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url + path, data=body or None, headers=_JSON) as response,
    ):
        content = await response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: HTTP {response.status}: {content[:300]!r}")
        return json.loads(content) if content else {}


async def wait_idle(host: HostProcess, guarded: bool, within_s: float = 300) -> None:
    """Wait until nothing is queued or running there."""
    ends_s = time.monotonic() + within_s
    while True:
        left = (await ask(host.url, "GET", "/prompt"))["exec_info"]["queue_remaining"]
        if guarded:
            left += (await ask(host.url, "GET", "/guarded/health"))["queued"]
            states = "dispatched,running,validating"
            left += len((await ask(host.url, "GET", f"/guarded/jobs?limit=1&state={states}"))["jobs"])
        if not left:
            return
        if time.monotonic() > ends_s:
            raise RuntimeError(f"{left} prompts are still there after {within_s:g} s")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def hold_worker(host: HostProcess) -> AsyncIterator[None]:
    """Keep the worker busy with a native job, from before the block until after it."""
    job_id = (await ask(host.url, "POST", "/prompt", make_holder()))["prompt_id"]
    while True:
        running = (await ask(host.url, "GET", "/queue"))["queue_running"]
        if running and running[0][1] == job_id:
            break
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    try:
        yield
    finally:
        await ask(host.url, "POST", "/interrupt", b"{}")
