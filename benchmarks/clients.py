"""Clients that each send a picture, wait for its end and send the next: the guard beside ComfyUI's own websocket.

    python benchmarks/clients.py [--host sandbox|newest|oldest] [--clients 32] [--jobs 200] [--rounds 3]

Ways to wait: the websocket, of both; `?wait` on the submit, polling the job, and server-sent events, of the guard. All
sides take turns in one run. The works are a picture of 64² and one of 512² (the sandbox can only do 128²). Besides the
jobs per second of many clients and the time from submit to end for one, the table has the server's processor time for
each job, which other load on the machine does not change, and the clients' own: on two cores both count.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import _common
import _figures
import aiohttp
from _common import HostProcess

#: How long a polling client sleeps between two looks.
POLL_S = 0.01
WAYS = ("websocket", "?wait", "polling", "server-sent events")

_seeds = itertools.count(1)

#: Sends a body and returns once the client knows that the job has succeeded.
Send = Callable[[bytes], Any]


@dataclass(frozen=True)
class Side:
    """A server and a way to wait. `is_guarded` False: ComfyUI alone, on its websocket."""

    host: HostProcess
    is_guarded: bool
    way: str

    @property
    def name(self) -> str:
        return self.way if self.is_guarded else "native websocket"

    @property
    def submit_url(self) -> str:
        return self.host.url + ("/guarded/prompt" if self.is_guarded else "/prompt")


def make_picture(side: int, client_id: str) -> bytes:
    sleep = {"seconds": 0.0, "checks_interrupt": True, "steps": 0, "seed": next(_seeds)}
    graph: dict[str, Any] = {"1": {"class_type": "FaultSleep", "inputs": sleep}}
    if side:
        scale = {"image": ["1", 0], "upscale_method": "bilinear", "width": side, "height": side, "crop": "disabled"}
        graph["2"] = {"class_type": "ImageScale", "inputs": scale}
    # In a folder of its own: ComfyUI lists the whole folder for each file that it saves.
    save = {"images": ["2" if side else "1", 0], "filename_prefix": f"{client_id[:8]}/clients"}
    graph["3"] = {"class_type": "SaveImage", "inputs": save}
    return json.dumps({"prompt": graph, "client_id": client_id}).encode()


# The ways to wait. -------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_sender(session: aiohttp.ClientSession, side: Side, client_id: str) -> AsyncIterator[Send]:
    """What one client does with a body, by its way to wait."""

    async def submit(body: bytes, query: str = "") -> dict[str, Any]:
        async with session.post(side.submit_url + query, data=body) as response:
            answer = await response.json()
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {answer}")
            return dict(answer)

    if side.way == "?wait":

        async def send_and_wait(body: bytes) -> None:
            _check_state((await submit(body, "?wait=120"))["guard"]["state"])

        yield send_and_wait
    elif side.way == "polling":

        async def send_and_poll(body: bytes) -> None:
            job_id = (await submit(body))["prompt_id"]
            while True:
                async with session.get(f"{side.host.url}/guarded/jobs/{job_id}") as response:
                    state = (await response.json())["state"]
                if state not in ("queued", "dispatched", "running", "validating"):
                    return _check_state(state)
                await asyncio.sleep(POLL_S)

        yield send_and_poll
    elif side.way == "websocket":
        path = "/guarded/ws" if side.is_guarded else "/ws"
        async with session.ws_connect(f"{side.host.url}{path}?clientId={client_id}") as socket:

            async def send_and_listen(body: bytes) -> None:
                job_id = (await submit(body))["prompt_id"]
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        if event["data"].get("prompt_id") == job_id:
                            if event["type"] == "execution_success":
                                return
                            if event["type"] in ("execution_error", "execution_interrupted"):
                                raise RuntimeError(f"a job did not succeed: {event}")
                raise RuntimeError("the websocket ended")

            yield send_and_listen
    else:

        async def send_and_follow(body: bytes) -> None:
            job_id = (await submit(body))["prompt_id"]
            async with session.get(f"{side.host.url}/guarded/jobs/{job_id}/events") as stream:
                async for line in stream.content:
                    if line.startswith(b"data: "):
                        state = json.loads(line[6:]).get("state")
                        if state in ("succeeded", "failed", "cancelled"):
                            return _check_state(state)
            raise RuntimeError("the stream ended")

        yield send_and_follow


def _check_state(state: str) -> None:
    if state != "succeeded":
        raise RuntimeError(f"a job did not succeed: {state}")


# The measurement. --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of one side in one round: jobs per second, the median from submit to end, and the server's and the clients' CPU
    time per job."""

    per_s: float
    median_ms: float
    cpu_ms: float
    clients_ms: float


async def run_clients(side: Side, clients: int, jobs: int, pixels: int) -> Figures:
    left = iter(range(jobs))
    took_ms: list[float] = []

    async def be_client(session: aiohttp.ClientSession) -> None:
        client_id = uuid.uuid4().hex
        async with open_sender(session, side, client_id) as send:
            for _ in left:
                body = make_picture(pixels, client_id)
                began_s = time.perf_counter()
                await send(body)
                took_ms.append((time.perf_counter() - began_s) * 1000)

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        began_s, cpu_s, own_s = time.perf_counter(), _common.read_cpu_s(side.host.pid), time.process_time()
        await asyncio.gather(*(be_client(session) for _ in range(clients)))
        wall_s, cpu_s = time.perf_counter() - began_s, _common.read_cpu_s(side.host.pid) - cpu_s
        own_s = time.process_time() - own_s
    await _common.wait_idle(side.host, side.is_guarded)
    return Figures(jobs / wall_s, statistics.median(took_ms), cpu_s * 1000 / jobs, own_s * 1000 / jobs)


async def measure(sides: list[Side], pixels: int, options: Any) -> None:
    for clients, jobs in ((1, max(options.jobs // 4, 10)), (options.clients, options.jobs)):
        figures: dict[str, list[Figures]] = {side.name: [] for side in sides}
        for side in sides:  # warm
            await run_clients(side, clients, clients * 2, pixels)
        for turn in range(options.rounds):
            start = turn % len(sides)
            for side in sides[start:] + sides[:start]:
                figures[side.name].append(await run_clients(side, clients, jobs, pixels))
        print(f"\n{clients} client{'s' if clients > 1 else ''}, a picture of {pixels or 128}²")
        _show(figures, sides[0].name)
        print(f"{clients} clients at {pixels or 128}²: done", file=sys.stderr, flush=True)


def _show(figures: dict[str, list[Figures]], native: str) -> None:
    rows = []
    for name, rounds in figures.items():
        cells = []
        for of, digits in (
            (lambda one: one.per_s, ".1f"),
            (lambda one: one.median_ms, ".1f"),
            (lambda one: one.cpu_ms, ".2f"),
            (lambda one: one.clients_ms, ".2f"),
        ):
            ours, theirs = [of(one) for one in rounds], [of(one) for one in figures[native]]
            ratio = "" if name == native else f"{_figures.median_ratio(ours, theirs):.2f} ×"
            cells += [f"{statistics.median(ours):{digits}}", ratio]
        rows.append([name, *cells])
    head = ["", "jobs/s", "", "submit to end, ms", "", "server's CPU per job, ms", "", "clients' CPU per job, ms", ""]
    _figures.print_table(head, rows)


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=3)
    parser.add_argument("--clients", type=int, default=32, help="default 32")
    parser.add_argument("--jobs", type=int, default=200, help="of all clients in a round; default 200")
    parser.add_argument("--survives", choices=("kill", "power_cut"), default="kill", help="store.survives")
    options = parser.parse_args()
    with _common.start_both(options, {"GUARDED_STORE__SURVIVES": options.survives}) as (guarded, bare):
        sides = [Side(bare, False, "websocket"), *(Side(guarded, True, way) for way in WAYS)]
        for pixels in (64, 512) if guarded.kind.real else (0,):
            asyncio.run(measure(sides, pixels, options))


if __name__ == "__main__":
    main()
