"""The names that a plugin imports from ComfyUI's `comfy_api` package."""
