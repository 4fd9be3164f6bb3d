"""For scripts that a real ComfyUI's Python runs without a server: the package under its name."""

import importlib.util
import sys
import types
from pathlib import Path


def register(alias: str) -> None:
    """Make `comfyui_guarded` importable. `alias`: the path of alias.py."""
    spec = importlib.util.spec_from_file_location("_guarded_alias", alias)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    for name in ("host", "host.comfyui"):  # which would want a server
        package = types.ModuleType(f"comfyui_guarded.{name}")
        package.__path__ = [str(Path(alias).parent / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
