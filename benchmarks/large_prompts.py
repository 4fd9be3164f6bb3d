"""Submit prompts of many nodes: what the event loop stands still, `/guarded/prompt` beside ComfyUI's own `/prompt`.

Both sides take turns. A stall is the longest time between two beats of a heartbeat on the server's loop, by the
processor time of the process. `queue` is what ComfyUI's own lists then take, which copies every prompt in its queue
while it holds the queue's lock.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from collections import defaultdict
from typing import Any

import _common
import aiohttp
from _common import HostProcess

#: Name, nodes, whether each is fed by the one before.
SHAPES = (("400 nodes beside each other", 400, False), ("a chain of 200", 200, True), ("1,000 nodes", 1000, False))


def make_prompt(nodes: int, *, chain: bool) -> dict[str, Any]:
    prompt: dict[str, Any] = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    }
    for number in range(1, nodes - 1):
        source = str(number - 1) if chain else "0"
        prompt[str(number)] = {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}}
    if chain:
        prompt["s"] = {"class_type": "PreviewImage", "inputs": {"images": [str(nodes - 2), 0]}}
    else:  # each of them is validated only if an output needs it
        for number in range(1, nodes - 1, 2):
            prompt[str(number)] = {"class_type": "PreviewImage", "inputs": {"images": [str(number + 1), 0]}}
            prompt[str(number + 1)] = {"class_type": "ImageInvert", "inputs": {"image": ["0", 0]}}
    return prompt


def main() -> None:
    options = _common.make_parser(__doc__, rounds=7).parse_args()
    with _common.start_both(options) as (guarded, bare):
        asyncio.run(_run({"guarded": guarded, "native": bare}, options.rounds))


async def _run(sides: dict[str, HostProcess], rounds: int) -> None:
    async with aiohttp.ClientSession() as session:
        for name, nodes, chain in SHAPES:
            figures: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
            for turn in range(rounds):
                for side, host in sorted(sides.items(), reverse=bool(turn % 2)):
                    figures[side].append(await _submit(session, host, side, make_prompt(nodes, chain=chain)))
            for side, told in figures.items():
                stall, took, queue = (statistics.median(column) * 1000 for column in zip(*told, strict=True))
                print(f"{name:28} {side:8} stall {stall:6.1f} ms, answer {took:6.1f} ms, queue {queue:6.1f} ms")


async def _submit(
    session: aiohttp.ClientSession, host: HostProcess, side: str, prompt: Any
) -> tuple[float, float, float]:
    """(longest stall, time until the answer, time of GET /queue), in seconds."""
    heart = f"{host.url}/guarded_faults/heart"
    body = {"prompt": prompt, "prompt_id": str(uuid.uuid4())}
    await _get(session, heart)
    await asyncio.sleep(0.05)
    await _get(session, heart)
    begun_s = time.perf_counter()
    path = "/guarded/prompt" if side == "guarded" else "/prompt"
    async with session.post(host.url + path, json=body) as answer:
        assert answer.status == 200, await answer.text()
    took_s = time.perf_counter() - begun_s
    stall_s = (await _get(session, heart))["stall_s"]
    begun_s = time.perf_counter()
    await _get(session, f"{host.url}/queue")
    queue_s = time.perf_counter() - begun_s
    await _common.wait_idle(host, guarded=side == "guarded")
    return stall_s, took_s, queue_s


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        return json.loads(await answer.read())


if __name__ == "__main__":
    main()
