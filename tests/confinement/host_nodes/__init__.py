"""Takes layers of the confinement away, so that a test can see what each of the others holds by itself.

`LAYERS_OFF` names them. The guard's classes are changed when the server starts to serve, when every pack is loaded.
"""

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NODE_CLASS_MAPPINGS: dict[str, Any] = {}


def find(ending: str) -> ModuleType:
    """The guard's module with that file."""
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").replace("\\", "/").endswith(f"ComfyUI-Guarded/{ending}"):
            return module
    raise LookupError(ending)


def without_folders() -> None:
    """Keyed owners save into the roots, as everybody."""
    confinement = find("host/comfyui/confine.py").Confinement
    confinement._place = lambda _self, root: root
    confinement._rebase = lambda _self, folder: folder
    find("host/comfyui/results.py").locate = lambda _run, outputs: outputs


def without_made() -> None:
    """Whatever a node names counts as made by the run."""
    find("host/comfyui/results.py").is_made = lambda _run, _file: True


def without_references() -> None:
    """A prompt that names what it may not is let through as it is."""
    references = find("guard/files/references.py")
    native = references.References.resolve

    async def resolve(self: Any, graph: Any, client: Any) -> bool:
        try:
            return bool(await native(self, graph, client))
        except references.BadImageError:
            return False

    references.References.resolve = resolve
    find("host/comfyui/reading.py").may_read = lambda _run, _path: True


def without_writes() -> None:
    """A prompt may name places, addresses and node classes of every kind."""
    find("guard/submit/confinement.py").Confinement.check = lambda *_args: None


def without_tripwire() -> None:
    """Code may open what it likes."""
    find("host/comfyui/tripwire.py").Tripwire._may_touch = lambda *_args: True


LAYERS: dict[str, Callable[[], None]] = {
    "folders": without_folders,
    "made": without_made,
    "references": without_references,
    "tripwire": without_tripwire,
    "writes": without_writes,
}


async def take_away(_application: Any) -> None:
    for layer in filter(None, os.environ.get("LAYERS_OFF", "").split(",")):
        LAYERS[layer]()


if "server" in sys.modules:  # the tests read LAYERS
    sys.modules["server"].PromptServer.instance.app.on_startup.append(take_away)
