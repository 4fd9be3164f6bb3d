"""Make this checkout importable as `comfyui_guarded`, for benchmarks that call the package itself."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def register() -> None:
    # By path: the repo's root must not be on sys.path, where our `nodes` would shadow ComfyUI's.
    spec = importlib.util.spec_from_file_location("_guarded_alias", ROOT / "alias.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
