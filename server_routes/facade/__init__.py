"""ComfyUI's own routes, limited to the caller."""
