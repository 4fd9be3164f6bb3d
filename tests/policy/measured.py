"""A real ComfyUI that runs one graph after the other, and tells what came of it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
from packs.conftest import PACKS
from PIL import Image
from policy.grown import Graph, Link

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.tests.hosts.launch import real_kinds

#: What lies in the host's input folder.
MEDIA = {
    "photo.png": Media(320, 200),
    "strip.png": Media(1200, 60),
    "moves.gif": Media(48, 32, 5),
    "film.mp4": Media(64, 48, 24, 3.0, 8.0),
}


class Comfy:
    """A real ComfyUI without a server, which runs one graph after the other."""

    def __init__(self, base: Path) -> None:
        newest = real_kinds()[0]
        packs = sorted(PACKS.iterdir()) if PACKS.is_dir() else []
        script = Path(__file__).with_name("measure_graphs.py")
        site = os.environ.get("GUARDED_PACKS_SITE") or PACKS.with_name("packs-site")
        self._log = open(base / "log", "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            [newest.python, str(script), str(newest.main.parent), str(base), *map(str, packs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "PYTHONPATH": str(site)},
        )  # fmt: skip
        self.known = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()[-3000:]
        return json.loads(line)

    def measure(self, graph: Graph, link: Link, seconds: float | None = None) -> Any:
        """What came along the link; with `seconds`, which it may take, also what each node made."""
        assert self._process.stdin is not None
        more = {} if seconds is None else {"seconds": seconds}
        self._process.stdin.write(json.dumps({"graph": graph, "link": link, **more}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate(timeout=120)  # it ends with its input
        self._log.close()


def write_files(folder: Path) -> None:
    folder.mkdir()
    for name in ("photo.png", "strip.png"):
        Image.new("RGB", (MEDIA[name].width, MEDIA[name].height), "grey").save(folder / name)
    first, *others = (Image.new("L", (48, 32), at * 20) for at in range(5))
    first.save(folder / "moves.gif", save_all=True, append_images=others)
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), at * 10, np.uint8))))
        container.mux(stream.encode())
