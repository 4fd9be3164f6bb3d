"""Turn named parameters into a prompt, after a template.

A template is a pair of files: `name.json`, a graph in API format as ComfyUI exports it, and `name.toml`, which says
what may change in it and what it needs. `manifest` reads them, `render` fills them in, `catalogue` knows which
templates there are and what this server lacks for them.
"""
