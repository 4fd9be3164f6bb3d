"""A real ComfyUI that runs one graph after the other, and tells what came of it."""

from pathlib import Path
from typing import Any

import av
import numpy as np
from packs.conftest import PACKS
from PIL import Image
from policy.grown import Graph, Link
from policy.script import Script

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.tests.hosts.launch import real_kinds

#: What lies in the host's input folder.
MEDIA = {
    "photo.png": Media(320, 200),
    "strip.png": Media(1200, 60),
    "moves.gif": Media(48, 32, 5),
    "film.mp4": Media(64, 48, 24, 3.0, 8.0),
}


class Comfy(Script):
    """A real ComfyUI without a server, which runs one graph after the other."""

    def __init__(self, base: Path) -> None:
        packs = sorted(PACKS.iterdir()) if PACKS.is_dir() else []
        super().__init__("measure_graphs.py", real_kinds()[0], base, *map(str, packs))
        self.known = self.greeting

    def measure(self, graph: Graph, link: Link, seconds: float | None = None) -> Any:
        """What came along the link; with `seconds`, which it may take, also what each node made."""
        more = {} if seconds is None else {"seconds": seconds}
        return self.ask({"graph": graph, "link": link, **more})


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
