"""ComfyUI-Guarded: what ComfyUI loads. Nothing heavy is imported here."""

import sys

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./js"

# A server is there when ComfyUI (or the sandbox) loads us, and not when a tool only looks at the package.
if getattr(sys.modules.get("server"), "PromptServer", None) is not None:
    from .app import install

    install()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
