import importlib.util
import os
from pathlib import Path

from hypothesis import HealthCheck, settings


def _register_alias() -> None:
    # By path: the repo's root must not be on sys.path, where our `nodes` would shadow ComfyUI's.
    spec = importlib.util.spec_from_file_location("_guarded_alias", Path(__file__).parents[1] / "alias.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()


# Before any test module is imported.
_register_alias()

# ci: the same examples on every run, and no verdict that depends on how busy the machine is.
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
