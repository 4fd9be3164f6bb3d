"""One fixed name, `comfyui_guarded`, for this folder, whatever it is called and wherever it lies.

ComfyUI loads the folder by path, under a name made from that path. The command line and the tests need the
same modules without ComfyUI: they register the folder as a package whose own `__init__.py` (which starts the
machine) never runs.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ALIAS = "comfyui_guarded"
ROOT = Path(__file__).resolve().parent


def register() -> None:
    """Make `comfyui_guarded.<module>` importable. May be called more than once.

    The folder itself is taken off `sys.path`, where `python <folder>` and `python -m pytest` put it: bare
    `nodes` and `app` are ComfyUI's.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if ALIAS in sys.modules:
        return
    spec = importlib.machinery.ModuleSpec(ALIAS, loader=None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules[ALIAS] = importlib.util.module_from_spec(spec)
