"""The names that a plugin imports from ComfyUI's `comfy` package."""
