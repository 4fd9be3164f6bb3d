"""Submit a prompt that loads a file: `/guarded/prompt`, which opens it first, beside ComfyUI's own `/prompt`.

The worker is held by a long job, so nothing runs meanwhile. `first` is a file that the server has not seen, `again` the
same file in another prompt. The processor time is that of the server and of the children that hear sounds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import time
import uuid
import wave
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import _figures
import numpy as np
from _common import HostProcess

RATE, FRAMES_PER_S, SIDES = 48_000, 24, (640, 480)
#: Files that changed in the last two seconds are not remembered.
SETTLED_S = 2.5

Made = tuple[str, Callable[[int], bytes], dict[str, Any]]


def main() -> None:
    options = _common.make_parser(__doc__, rounds=2).parse_args()
    with _common.start_both(options) as (guarded, bare):
        asyncio.run(_run({"guarded": guarded, "native": bare}, options))


async def _run(sides: dict[str, HostProcess], options: argparse.Namespace) -> None:
    known = await _common.ask(sides["native"].url, "GET", "/object_info")
    kinds = {
        name: made for name, made in KINDS.items() if all(node["class_type"] in known for node in made[2].values())
    }
    for name in KINDS.keys() - kinds.keys():
        print(f"{name}: skipped, this host has no node that loads it")
    for name, (suffix, make, _prompt) in kinds.items():
        for turn in range(options.rounds + 1):
            data = make(turn)
            for host in sides.values():
                (Path(host.base) / "input").mkdir(exist_ok=True)
                (Path(host.base) / "input" / f"{_stem(name, turn)}{suffix}").write_bytes(data)
    await asyncio.sleep(SETTLED_S)
    figures: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    async with _common.hold_worker(sides["guarded"]), _common.hold_worker(sides["native"]):
        for turn in range(options.rounds + 1):  # the first one warms both up
            for name, made in kinds.items():
                for time_ in ("first", "again"):
                    for side, host in sorted(sides.items(), reverse=bool(turn % 2)):
                        figure = await _submit(host, side, _fill(name, made, turn))
                        if turn:
                            figures[name, time_, side].append(figure)
        for host in sides.values():
            await _common.ask(host.url, "POST", "/queue", b'{"clear": true}')
    rows = []
    for name in kinds:
        for time_ in ("first", "again"):
            row = [f"{name}, {time_}"]
            for column in (0, 1):
                row += [
                    f"{statistics.median(each[column] for each in figures[name, time_, side]):.1f}" for side in sides
                ]
            rows.append(row)
    _figures.print_table(["", "guarded, ms", "native, ms", "guarded, processor ms", "native, processor ms"], rows)


async def _submit(host: HostProcess, side: str, prompt: dict[str, Any]) -> tuple[float, float]:
    """(time until the answer, processor time of the server and its children), in ms."""
    body = json.dumps({"prompt": prompt, "prompt_id": str(uuid.uuid4())}).encode()
    cpu_s, begun_s = _read_cpu_s(host.pid), time.perf_counter()
    await _common.ask(host.url, "POST", "/guarded/prompt" if side == "guarded" else "/prompt", body)
    return (time.perf_counter() - begun_s) * 1000, (_read_cpu_s(host.pid) - cpu_s) * 1000


def _read_cpu_s(pid: int) -> float:
    """With the children that have ended (proc(5): cutime and cstime)."""
    own_s = _common.read_cpu_s(pid)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own_s + sum(int(each) for each in fields[13:15]) / os.sysconf("SC_CLK_TCK")


def _stem(name: str, turn: int) -> str:
    return f"{name.replace(' ', '_')}_{turn}"


def _fill(name: str, made: Made, turn: int) -> dict[str, Any]:
    text = json.dumps(made[2]).replace("FILE", f"{_stem(name, turn)}{made[0]}").replace("TEXT", uuid.uuid4().hex)
    prompt: dict[str, Any] = json.loads(text)
    return prompt


def _make_sound(turn: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        times = np.arange(RATE * 10) / RATE
        one = (np.sin(2 * np.pi * (440 + turn) * times) * 9000).astype("<i2")
        sound.writeframes(np.repeat(one, 2).tobytes())
    return buffer.getvalue()


def _make_film(turn: int, *, sound: bool) -> bytes:
    import av

    buffer = io.BytesIO()
    noise = np.random.default_rng(turn).integers(0, 255, (SIDES[1], SIDES[0], 3), np.uint8)
    with av.open(buffer, "w", format="mp4") as film:
        stream: Any = film.add_stream("h264", rate=FRAMES_PER_S)
        stream.width, stream.height, stream.pix_fmt = *SIDES, "yuv420p"
        voice: Any = film.add_stream("aac", rate=RATE, layout="stereo") if sound else None
        for at in range(5 * FRAMES_PER_S):
            picture = np.roll(noise // 8 + at, at * 2, axis=1)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        film.mux(stream.encode())
        if voice is not None:
            wave_ = np.sin(np.arange(RATE * 5) / 20)[None].repeat(2, 0).astype(np.float32) * 0.3
            frame = av.AudioFrame.from_ndarray(wave_, "fltp", "stereo")
            frame.sample_rate, frame.pts = RATE, 0
            film.mux(voice.encode(frame))
            film.mux(voice.encode())
    return buffer.getvalue()


def _make_photo(turn: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    small = np.random.default_rng(turn).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(small).resize((2048, 2048), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


_SAVE_FILM = {
    "1": _node("LoadVideo", file="FILE"),
    "2": _node("SaveVideo", video=["1", 0], filename_prefix="TEXT", format="auto", codec="auto"),
}
KINDS: dict[str, Made] = {
    "a photo of 2048²": (
        ".jpg",
        _make_photo,
        {"1": _node("LoadImage", image="FILE"), "2": _node("SaveImage", images=["1", 0], filename_prefix="TEXT")},
    ),
    "a sound of 10 s": (
        ".wav",
        _make_sound,
        {"1": _node("LoadAudio", audio="FILE"), "2": _node("SaveAudio", audio=["1", 0], filename_prefix="TEXT")},
    ),
    "a silent film of 5 s": (".mp4", lambda turn: _make_film(turn, sound=False), _SAVE_FILM),
    "a film of 5 s with sound": (".mp4", lambda turn: _make_film(turn, sound=True), _SAVE_FILM),
}


if __name__ == "__main__":
    main()
