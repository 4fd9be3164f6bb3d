"""Makes a folder for a ComfyUI in which nothing is missing that a template names: models are empty files of the right
size."""

import json
import shutil
import sys
from pathlib import Path

import av
import numpy as np
from workflows import editor

from comfyui_guarded.guard.templates.manifest import Template

TEMPLATES = {path.stem: Template.read(path) for path in sorted(editor.API.glob("*.toml"))}
ASTRONAUT = Path(sys.prefix) / "photos" / "skimage" / "data" / "astronaut.png"
#: What the templates' own graphs call their files.
PHOTO, MOTION = "photo.png", "motion.mp4"


def put_model(path: Path, size_mb: int) -> None:
    """A file of the right size that takes no room on the disk, with a header where its kind has one."""
    with open(path, "wb") as file:
        if path.suffix == ".safetensors":
            entry = {"dtype": "U8", "shape": [size_mb * 10**6], "data_offsets": [0, size_mb * 10**6]}
            header = json.dumps({"w": entry}).encode()
            file.write(len(header).to_bytes(8, "little") + header)
        elif path.suffix == ".onnx":  # a version, and a graph of that length
            length = size_mb * 10**6
            sevens = [length >> at for at in range(0, 35, 7) if length >> at]
            file.write(b"\x08\x08\x3a" + bytes(part & 127 | 128 * (part > 127) for part in sevens))
        elif path.suffix in (".bin", ".ckpt", ".pt", ".pth"):  # as PyTorch wrote it before 1.6
            file.write(b"\x80\x02")
        file.truncate(file.tell() + size_mb * 10**6)


def furnish(base: Path) -> None:
    """Recorded packs, empty models and a photo with a face in the folders of a `HostProcess` that was not started."""
    packs = Path(__file__).parent / "recorded_packs"
    (base / "custom_nodes" / packs.name).symlink_to(packs)
    for template in TEMPLATES.values():
        for model in template.manifest.models:
            path = base / "models" / model.folder / model.file
            path.parent.mkdir(parents=True, exist_ok=True)
            put_model(path, model.size_mb)
    shutil.copy(ASTRONAUT, base / "input" / PHOTO)
    with av.open(str(base / "input" / MOTION), "w") as film:
        stream = film.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for at in range(12):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * at, np.uint8))))
        film.mux(stream.encode())
