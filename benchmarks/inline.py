"""A result within the answer to `?wait`, in Base64, against the same answer and a second request for the file.

Both sides take turns on one server, with pictures of several sizes that ComfyUI saves as PNG. The time is from the
submit until the bot has the file's bytes; the processor time is the server's, with the run of the job itself.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import time
from collections import defaultdict
from typing import Any

import _common
import _figures
import aiohttp
import numpy as np
from _common import HostProcess
from PIL import Image

#: Pixels a side; noise does not compress, so a PNG has three bytes for each.
SIDES = (64, 256, 512, 1024)
BOTH = ("inline", "fetched")


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=9)
    parser.add_argument("--jobs", type=int, default=20, help="of each side and size, per round")
    options = parser.parse_args()
    with (
        _common.make_base_directory() as base,
        HostProcess(_common.find_host_kind(options.host), base / "guarded", environment=_common.NO_LIMITS) as host,
    ):
        _common.print_headline(host.kind, options)
        for side in SIDES:
            noise = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(host.base / "input" / f"noise{side}.png")
        asyncio.run(_measure(host, options.rounds, options.jobs))


async def _measure(host: HostProcess, rounds: int, jobs: int) -> None:
    rows = []
    async with aiohttp.ClientSession() as session:
        for side in SIDES:
            times_ms: dict[str, list[float]] = defaultdict(list)
            cpu_ms: dict[str, list[float]] = defaultdict(list)
            size = 0
            for turn in range(rounds):
                for way in BOTH[turn % 2 :] + BOTH[: turn % 2]:
                    began_cpu_s = _common.read_cpu_s(host.pid)
                    took = [await _get_one(session, host, side, way) for _ in range(jobs)]
                    cpu_ms[way].append((_common.read_cpu_s(host.pid) - began_cpu_s) * 1000 / jobs)
                    times_ms[way].append(statistics.median(ms for ms, _size in took))
                    size = took[0][1]
            rows.append(
                [
                    f"{side}², {size / 1024:.0f} KiB",
                    *(f"{statistics.median(times_ms[way]):.1f}" for way in BOTH),
                    f"{_figures.median_ratio(times_ms['inline'], times_ms['fetched']):.2f} ×",
                    *(f"{statistics.median(cpu_ms[way]):.1f}" for way in BOTH),
                    f"{_figures.median_ratio(cpu_ms['inline'], cpu_ms['fetched']):.2f} ×",
                ]
            )
    heads = ["picture", *(f"{way}, ms" for way in BOTH), "ratio", *(f"{way}, CPU ms" for way in BOTH), "ratio"]
    _figures.print_table(heads, rows)


async def _get_one(session: aiohttp.ClientSession, host: HostProcess, side: int, way: str) -> tuple[float, int]:
    """Milliseconds from the submit until the file is there, and its bytes."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": f"noise{side}.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
    }
    body: dict[str, Any] = {"prompt": prompt}
    if way == "inline":
        body["guard"] = {"results": {"inline": True}}
    began_s = time.perf_counter()
    async with session.post(f"{host.url}/guarded/prompt?wait=60", data=json.dumps(body)) as response:
        (artifact,) = (await response.json())["guard"]["job"]["artifacts"]
    if way == "inline":
        content = base64.b64decode(artifact["inline"]["base64"])
    else:
        async with session.get(host.url + artifact["url"]) as response:
            content = await response.read()
    took_ms = (time.perf_counter() - began_s) * 1000
    if len(content) != artifact["bytes"]:
        raise RuntimeError(f"{way} has {len(content)} bytes of {artifact['bytes']}")
    return took_ms, len(content)


if __name__ == "__main__":
    main()
