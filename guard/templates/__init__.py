"""Templates: named parameters → a prompt.

A template is a pair of files: `name.json`, a graph in API format as ComfyUI exports it, and `name.toml`, which says
what may be changed in it and what it needs. :mod:`.manifest` reads them, :mod:`.render` fills them in, and
:mod:`.catalogue` knows which there are and what this server lacks for them.
"""
