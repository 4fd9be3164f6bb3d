"""Answer callers about their jobs, in our own shapes and in ComfyUI's."""
