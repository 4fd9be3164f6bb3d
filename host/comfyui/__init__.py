"""THE SEAM: the only place that imports ComfyUI. It serves ComfyUI and the sandbox, which has the same modules.

docs/comfyui.md describes ComfyUI's surprises, as measured. The seam looks for features and never compares version
numbers, since hosts newer than any that we know will come.
"""

from typing import Any

import server

from .host import ComfyHost


def prompt_server() -> Any:
    """ComfyUI's one server object, which has no types of its own."""
    return server.PromptServer.instance


__all__ = ["ComfyHost", "prompt_server"]
