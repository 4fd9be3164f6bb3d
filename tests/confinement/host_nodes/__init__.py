"""Takes layers of the confinement away, so that a test can see what each of the others holds by itself.

A route changes the guard's classes while the server runs, so that one server is enough for all of them.
"""

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NODE_CLASS_MAPPINGS: dict[str, Any] = {}


#: Takes away the layers of which it is sent the names.
ROUTE = "/confinement_layers"
#: What has been replaced: where, its name, and what it was.
_taken: list[tuple[Any, str, Any]] = []


def put(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute until the layers change again."""
    _taken.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def find(ending: str) -> ModuleType:
    """The guard's module with that file."""
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").replace("\\", "/").endswith(f"ComfyUI-Guarded/{ending}"):
            return module
    raise LookupError(ending)


def without_folders() -> None:
    """Keyed owners save into the roots, as everybody."""
    confinement = find("host/comfyui/confine.py").Confinement
    put(confinement, "_place", lambda _self, root: root)
    put(confinement, "_rebase", lambda _self, folder: folder)
    put(find("guard/owners.py"), "_FOLDERS", re.compile("(?!)"))
    put(find("host/comfyui/results.py"), "locate", lambda _run, outputs: outputs)


def without_made() -> None:
    """Whatever a node names counts as made by the run."""
    put(find("host/comfyui/results.py"), "is_made", lambda _run, _file: True)


def without_references() -> None:
    """A prompt that names what it may not is let through as it is."""
    references = find("guard/files/references.py")
    native = references.References.resolve

    async def resolve(self: Any, *args: Any) -> bool:
        try:
            return bool(await native(self, *args))
        except references.BadImageError:
            return False

    put(references.References, "resolve", resolve)
    put(find("host/comfyui/reading.py"), "may_read", lambda _run, _path: True)


def without_writes() -> None:
    """A prompt may name places, addresses and node classes of every kind."""
    put(find("guard/submit/confinement.py").Confinement, "check", lambda *_args: None)


def without_tripwire() -> None:
    """Code may open what it likes."""
    tripwire = find("host/comfyui/tripwire.py")
    put(tripwire.Tripwire, "_may_touch", lambda *_args: True)
    put(tripwire, "_leads_home", lambda _address: False)


def without_content() -> None:
    """Files may be lists of others."""
    for place in ("guard/files/content.py", "guard/files/uploads.py", "guard/files/references.py",
                  "guard/files/files.py", "host/comfyui/reading.py"):  # fmt: skip
        for name in ("check_content", "check_folder"):
            if hasattr(module := find(place), name):
                put(module, name, lambda *_args: None)


def without_cleaning() -> None:
    """Errors and outputs are told as the host tells them."""
    put(find("guard/files/cleaning.py"), "_clean", lambda value, _pattern: value)


def without_metadata() -> None:
    """Files leave as nodes have written them."""
    put(find("guard/life/checking.py").metadata, "strip_results", lambda _files, artifacts: artifacts)


LAYERS: dict[str, Callable[[], None]] = {
    "cleaning": without_cleaning,
    "content": without_content,
    "folders": without_folders,
    "made": without_made,
    "metadata": without_metadata,
    "references": without_references,
    "tripwire": without_tripwire,
    "writes": without_writes,
}


async def take_away(request: Any) -> Any:
    """Give every layer back, and take those away that the body names."""
    names = await request.json()
    while _taken:
        setattr(*_taken.pop())
    for name in names:
        LAYERS[name]()
    return web.json_response(names)


if "server" in sys.modules:  # the tests read LAYERS
    from aiohttp import web

    sys.modules["server"].PromptServer.instance.routes.post(ROUTE)(take_away)
