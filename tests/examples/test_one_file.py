"""examples/guarded.py and examples/guarded.ts: whichever process is killed, a key has one job and its picture comes."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from clients.conftest import INSTALLED
from contract.client import PATIENCE_S, Client, connected, make_key, node, unique
from contract.conftest import kinds
from examples.conftest import EXAMPLES
from PIL import Image

from comfyui_guarded.server_routes import ROUTES, openapi
from comfyui_guarded.tests.hosts.launch import HostProcess

HERE = Path(__file__).parent / "one_file"
TOOLS = INSTALLED / "node_modules" / ".bin"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600), pytest.mark.chaos]


@pytest.fixture(scope="module", params=kinds())
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HostProcess, str]]:
    """A host and a key, made before it starts: a running one takes a second to know it."""
    base = tmp_path_factory.mktemp("one-file")
    key = make_key(base, "bot")
    with HostProcess(request.param, base, environment={"GUARDED_WATCHDOG__MAX_ATTEMPTS": "9"}) as host:
        yield host, key


@pytest.fixture(scope="module")
def host(server: tuple[HostProcess, str]) -> HostProcess:
    return server[0]


@pytest.fixture(scope="module")
def key(server: tuple[HostProcess, str]) -> str:
    return server[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(host: HostProcess) -> AsyncIterator[Client]:
    async with connected(host) as client:
        yield client


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/guarded.ts and what calls it, as JavaScript; its types agree with the contract's."""
    if not (TOOLS / "tsc").exists() or shutil.which("node") is None:
        pytest.skip("node and the tools of `make clients` are needed")
    folder = tmp_path_factory.mktemp("ts")
    for file in (EXAMPLES / "guarded.ts", HERE / "client.ts", HERE / "contract.ts"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "contract.json").write_text(json.dumps(openapi.document(ROUTES)))
    (folder / "node.d.ts").write_text(
        'declare const process: { argv: string[] };\ndeclare module "node:fs" {\n'
        "  export function readFileSync(path: string): Uint8Array;\n"
        "  export function readFileSync(path: string, encoding: string): string;\n"
        "  export function writeFileSync(path: string, data: Uint8Array): void;\n}\n"
    )
    run([TOOLS / "openapi-typescript", "contract.json", "-o", "contract-types.ts"], folder)
    options = "--strict --target es2022 --module nodenext --moduleResolution nodenext --lib es2023,dom,dom.iterable"
    run([TOOLS / "tsc", *options.split(), "node.d.ts", "client.ts", "contract.ts"], folder)
    return folder


def run(command: list[Any], folder: Path) -> None:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=["python", "typescript"])
def program(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "python":
        return [sys.executable, str(HERE / "client.py")]
    return ["node", str(request.getfixturevalue("compiled") / "client.js")]


def graph(seconds: float, kind: str = "") -> dict[str, Any]:
    made = {
        "1": node("LoadImage", image="photo"),
        "2": node("SaveImage", images=["1", 0], filename_prefix=unique()),
        "3": node("FaultSleep", seconds=seconds, checks_interrupt=True, steps=0, seed=0),
        "4": node("SaveImage", images=["3", 0], filename_prefix=unique()),
    }
    return {**made, "5": node("FaultRaise", kind=kind, message="on purpose", seed=0), "6": node(
        "SaveImage", images=["5", 0], filename_prefix=unique())} if kind else made  # fmt: skip


class Order:
    """A program that runs one job, started again under the same key whenever it is killed."""

    def __init__(self, program: list[str], host: HostProcess, key: str, folder: Path, what: dict[str, Any]) -> None:
        self.key = uuid.uuid4().hex
        self.to = folder / f"{self.key}.png"
        (folder / f"{self.key}.json").write_text(json.dumps(what))
        Image.linear_gradient("L").convert("RGB").save(folder / "photo.png")
        self._command = [*program, host.url, key, self.key, str(folder / f"{self.key}.json"),
                         str(folder / "photo.png"), str(self.to)]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None
        self.told: list[dict[str, Any]] = []

    async def start(self) -> None:
        environment = {**os.environ, "EXAMPLES": str(EXAMPLES), "no_proxy": "127.0.0.1"}
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
        )

    async def hears(self) -> None:
        """Wait until the program has told of its job once: it has the answer to its submit."""
        assert self._process is not None
        assert self._process.stdout is not None
        self.told.append(json.loads(await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)))

    async def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.communicate()

    async def end(self) -> dict[str, Any]:
        assert self._process is not None
        out, errors = await asyncio.wait_for(self._process.communicate(), PATIENCE_S)
        assert self._process.returncode == 0, errors.decode()
        self.told += [json.loads(line) for line in out.decode().splitlines()]
        return self.told[-1]


async def test_a_picture_comes_for_every_key_whoever_is_killed(host, key, client, program, tmp_path):
    draw = random.Random(3)
    orders = [Order(program, host, key, tmp_path, graph(0.4)) for _ in range(3)]
    for order in orders:
        await order.start()
    for _ in range(2):
        await asyncio.sleep(draw.uniform(0.3, 1.2))
        await orders[0].kill()
        host.kill()
        await asyncio.sleep(draw.uniform(0, 1))
        await orders[0].start()
        await asyncio.to_thread(host.start)
    for order in orders:
        ended = await order.end()
        assert (ended["state"], ended["refund"], len(ended["found"])) == ("succeeded", False, 1), ended
        assert ended["found"] == [ended["job_id"]]
        with Image.open(order.to) as image:
            assert image.format == "PNG"
    jobs = [await client.job(order.told[-1]["job_id"]) for order in orders]
    assert [(job["idempotency_key"], job["user"]) for job in jobs] == [(order.key, "7") for order in orders]


async def test_a_server_that_is_away_is_told_of_and_its_return_too(host, key, client, program, tmp_path):
    order = Order(program, host, key, tmp_path, graph(3.0))
    await order.start()
    await order.hears()
    await client.polled(lambda: client.jobs("state=running"), bool)
    host.kill()
    await asyncio.sleep(3)
    await asyncio.to_thread(host.start)
    assert (await order.end())["state"] == "succeeded"
    kinds = [told["kind"] for told in order.told[:-1]]
    assert "away" in kinds, kinds
    assert "back" in kinds[kinds.index("away") :], kinds


async def test_a_job_that_fails_and_one_that_is_refused_say_what_goes_back(host, key, program, tmp_path):
    fails = Order(program, host, key, tmp_path, graph(0.0, kind="out_of_memory"))
    refused = Order(program, host, key, tmp_path, {**graph(0.0), "9": node("NoSuchNode")})
    for order in (fails, refused):
        await order.start()
    ended = await fails.end()
    assert (ended["code"], ended["refund"], ended["found"]) == ("out_of_memory", True, [ended["job_id"]])
    assert await refused.end() == {"code": "missing_node", "refund": True, "job_id": None, "found": []}
