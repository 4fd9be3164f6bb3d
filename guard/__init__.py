"""The core of ComfyUI-Guarded: what a job is, how it gets in, waits, runs, is checked and settles.

Nothing here imports ComfyUI, aiohttp or torch; the core reaches the host through :mod:`.host` only.
"""
