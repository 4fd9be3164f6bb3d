"""Show in ComfyUI's editor what a node found; bots get nothing of it.

It goes over the websocket and not into the node's outputs: those are in ComfyUI's history, where clients take every
list for a list of result files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..guard import runtime
from ..guard.faces import Pixels

#: The longer side of a thumbnail, in pixels.
_SIDE = 512

#: Hidden inputs for `show`: `unique_id` is the node's own id, `extra_pnginfo` holds the editor's workflow.
HIDDEN = {"unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"}


def is_watched(unique_id: Any, extra_pnginfo: Any) -> bool:
    """Whether an editor sent the prompt: it sends its workflow along."""
    return unique_id is not None and isinstance(extra_pnginfo, Mapping) and "workflow" in extra_pnginfo


def show(unique_id: Any, extra_pnginfo: Any, facts: dict[str, Any]) -> None:
    """Show facts on the node, where an editor watches it. The worker's thread."""
    host = runtime.current().host
    if host is not None and is_watched(unique_id, extra_pnginfo):
        host.show_on_node(str(unique_id), facts)


def make_thumbnail(pixels: Pixels) -> str:
    """Make a small JPEG of a picture (uint8, height × width × 3), as a `data:` URL."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
