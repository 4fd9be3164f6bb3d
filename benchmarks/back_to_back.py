"""A full queue, worked off: the guard beside ComfyUI without it, in one run.

    python benchmarks/back_to_back.py [--host sandbox|newest|oldest] [--jobs 30] [--rounds 5]

All jobs of a batch wait before the first one begins. ComfyUI notes in its history when it begins and ends each prompt,
to the millisecond: the total is from the first beginning to the last end, and the worker's pause is from the end of one
prompt to the beginning of the next. The sandbox has neither films nor large pictures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import _common
import _figures
from _common import HostKind, HostProcess

Graph = dict[str, Any]

#: ComfyUI keeps at most so many prompts in its history; a batch stays far below.
MOST_JOBS = 1000
#: From this much work on, in seconds, the aims hold: the total against native, and the worker's pause beyond native's.
FROM_S = 0.5
TOTAL, PAUSE_MS = 1.02, 2.0

_seeds = itertools.count(1)


def make_no_op() -> Graph:
    return json.loads(_common.make_no_op())["prompt"]


def make_picture(seconds: float, side: int) -> Callable[[], Graph]:
    """Make what works for so long and saves a PNG; `side` 0 leaves it as the node makes it, 128²."""

    def make() -> Graph:
        sleep = {"seconds": seconds, "checks_interrupt": True, "steps": 0, "seed": next(_seeds)}
        graph: Graph = {"1": {"class_type": "FaultSleep", "inputs": sleep}}
        if side:
            scale = {"image": ["1", 0], "upscale_method": "bilinear", "width": side, "height": side, "crop": "disabled"}
            graph["2"] = {"class_type": "ImageScale", "inputs": scale}
        image = ["2" if side else "1", 0]
        graph["3"] = {"class_type": "SaveImage", "inputs": {"images": image, "filename_prefix": "back"}}
        return graph

    return make


def make_film(frames: int) -> Callable[[], Graph]:
    """Make a 512² film with sound."""

    def make() -> Graph:
        # Two pictures in turns: the guard refuses a film in which nothing moves.
        graph = make_picture(0.0, 512)()
        del graph["3"]
        graph["11"], graph["12"] = make_picture(0.0, 512)()["1"], {**graph["2"], "inputs": {**graph["2"]["inputs"]}}
        graph["12"]["inputs"]["image"] = ["11", 0]
        graph["13"] = {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["12", 0]}}
        graph["4"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["13", 0], "amount": -(-frames // 2)}}
        sound = {"duration": frames / 24, "sample_rate": 44100, "channels": 2}
        graph["5"] = {"class_type": "EmptyAudio", "inputs": sound}
        film = {"images": ["4", 0], "fps": 24.0, "audio": ["5", 0]}
        graph["6"] = {"class_type": "CreateVideo", "inputs": film}
        save = {"video": ["6", 0], "filename_prefix": "video/back", "format": "auto", "codec": "auto"}
        graph["7"] = {"class_type": "SaveVideo", "inputs": save}
        return graph

    return make


def choose_work(kind: HostKind) -> dict[str, Callable[[], Graph]]:
    works = {"no-op": make_no_op, "50 ms, 128² PNG": make_picture(0.05, 0)}
    if kind.real:
        works["0.5 s, 1024² PNG"] = make_picture(0.5, 1024)
        works["film, 75 frames"] = make_film(75)
        works["film, 375 frames"] = make_film(375)
    return works


async def run_batch(host: HostProcess, guarded: bool, make: Callable[[], Graph], jobs: int) -> tuple[float, float]:
    """Work off a full queue. Returns the whole time and the median pause of the worker between two jobs, in ms."""
    route = "/guarded/prompt" if guarded else "/prompt"
    ids = []
    async with _common.hold_worker(host):
        for _ in range(jobs):
            answer = await _common.ask(host.url, "POST", route, json.dumps({"prompt": make()}).encode())
            ids.append(answer["prompt_id"])
    await _common.wait_idle(host, guarded)
    history = await _common.ask(host.url, "GET", "/history")
    spans = sorted(_read_span(history[prompt_id]) for prompt_id in ids)
    pauses = [begin - end for (_begin, end), (begin, _end) in itertools.pairwise(spans)]
    await _common.ask(host.url, "POST", "/history", b'{"clear": true}')
    return float(spans[-1][1] - spans[0][0]), statistics.median(pauses)


def _read_span(entry: dict[str, Any]) -> tuple[int, int]:
    """When ComfyUI began and ended the prompt, in ms."""
    at = {event: data["timestamp"] for event, data in entry["status"]["messages"]}
    if "execution_success" not in at:
        raise RuntimeError(f"a job did not succeed: {entry['status']}")
    return at["execution_start"], at["execution_success"]


async def measure(guarded: HostProcess, bare: HostProcess, options: Any) -> None:
    sides = [("guarded", guarded), ("native", bare)]
    rows = []
    for name, make in choose_work(guarded.kind).items():
        if options.only and options.only not in name:
            continue
        totals: dict[str, list[float]] = defaultdict(list)
        pauses: dict[str, list[float]] = defaultdict(list)
        for side, host in sides:  # warm
            await run_batch(host, side == "guarded", make, 2)
        for turn in range(options.rounds):
            for side, host in sides if turn % 2 else reversed(sides):
                total_ms, pause_ms = await run_batch(host, side == "guarded", make, options.jobs)
                totals[side].append(total_ms)
                pauses[side].append(pause_ms)
        rows.append(_make_row(name, totals, pauses, options.jobs))
        print(f"{name}: done", file=sys.stderr, flush=True)
    head = ["", "guarded, s", "native, s", "ratio", "aim", "", "pause", "native", "more", "aim", ""]
    _figures.print_table(head, rows)


def _make_row(name: str, totals: dict[str, list[float]], pauses: dict[str, list[float]], jobs: int) -> list[str]:
    ratio = _figures.median_ratio(totals["guarded"], totals["native"])
    ours, theirs = (statistics.median(pauses[side]) for side in ("guarded", "native"))
    has_aim = statistics.median(totals["native"]) / jobs >= FROM_S * 1000
    return [
        name,
        *(f"{statistics.median(totals[side]) / 1000:.2f}" for side in ("guarded", "native")),
        f"{ratio:.3f} ×",
        f"≤ {TOTAL} ×" if has_aim else "",
        _figures.format_verdict(ratio, TOTAL) if has_aim else "",
        f"{ours:.0f} ms",
        f"{theirs:.0f} ms",
        f"{ours - theirs:.0f} ms",
        f"≤ {PAUSE_MS:.0f} ms" if has_aim else "",
        _figures.format_verdict(ours - theirs, PAUSE_MS) if has_aim else "",
    ]


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=5)
    parser.add_argument("--jobs", type=int, default=30, help="default 30")
    parser.add_argument("--only", help="works with this in their names; the long film takes minutes a round")
    options = parser.parse_args()
    if not 2 <= options.jobs <= MOST_JOBS:
        parser.error(f"--jobs: 2 to {MOST_JOBS}")
    with _common.start_both(options) as (guarded, bare):
        asyncio.run(measure(guarded, bare, options))


if __name__ == "__main__":
    main()
