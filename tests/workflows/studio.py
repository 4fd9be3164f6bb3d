"""Makes a folder for a ComfyUI in which nothing is missing that a template names: files without anything in them."""

import shutil
import sys
from pathlib import Path

from workflows import editor

from comfyui_guarded.guard.templates.manifest import Template

TEMPLATES = {path.stem: Template.read(path) for path in sorted(editor.API.glob("*.toml"))}
ASTRONAUT = Path(sys.prefix) / "photos" / "skimage" / "data" / "astronaut.png"
#: What the templates' own graphs call their files.
PHOTO, MOTION = "photo.png", "motion.mp4"


def furnish(base: Path) -> None:
    """Recorded packs, empty models and a photo with a face in the folders of a `HostProcess` that was not started."""
    packs = Path(__file__).parent / "recorded_packs"
    (base / "custom_nodes" / packs.name).symlink_to(packs)
    for template in TEMPLATES.values():
        for model in template.manifest.models:
            path = base / "models" / model.folder / model.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    shutil.copy(ASTRONAUT, base / "input" / PHOTO)
    (base / "input" / MOTION).touch()
