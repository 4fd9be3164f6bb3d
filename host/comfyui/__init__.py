"""THE SEAM: the only place that imports ComfyUI. It serves ComfyUI and the sandbox, which has the same modules.

What bites here is written down, measured, in docs/comfyui.md. Everything is found out by looking at what is there;
version numbers are never compared, since hosts newer than any that we know will come.
"""

from typing import Any

import server

from .host import ComfyHost


def prompt_server() -> Any:
    """ComfyUI's one server object."""
    return server.PromptServer.instance


__all__ = ["ComfyHost", "prompt_server"]
