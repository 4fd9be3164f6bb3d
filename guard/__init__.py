"""The core of ComfyUI-Guarded: what a job is, how it gets in, waits, runs, is checked and settles.

Nothing here imports ComfyUI, aiohttp or torch; the host is reached through :mod:`.host` alone.
"""
