"""What a node shows of itself in ComfyUI's editor, and only there: a bot's websocket is told nothing of it.

It goes over the websocket and not into the node's outputs: those are in ComfyUI's history, where clients take every
list for result files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..guard import runtime
from ..guard.faces import Pixels

#: Pixels of a shown picture's longer side.
_SIDE = 512

#: What a node asks of ComfyUI to be shown: `unique_id` is its own id, `extra_pnginfo` has the editor's workflow.
HIDDEN = {"unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"}


def is_watched(unique_id: Any, extra_pnginfo: Any) -> bool:
    """Whether an editor sent the prompt: it sends its workflow along."""
    return unique_id is not None and isinstance(extra_pnginfo, Mapping) and "workflow" in extra_pnginfo


def show(unique_id: Any, extra_pnginfo: Any, facts: dict[str, Any]) -> None:
    """Show facts on the node, where an editor watches it. The worker's thread."""
    host = runtime.current().host
    if host is not None and is_watched(unique_id, extra_pnginfo):
        host.show_on_node(str(unique_id), facts)


def small_picture(pixels: Pixels) -> str:
    """A picture (uint8, height × width × 3) as a small JPEG in a `data:` address."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
