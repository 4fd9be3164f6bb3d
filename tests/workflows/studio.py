"""Makes a folder for a ComfyUI in which nothing is missing that a template names: empty files of the right size."""

import json
import shutil
import sys
from pathlib import Path

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
    (base / "input" / MOTION).touch()
