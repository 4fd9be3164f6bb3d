"""Programs that tests run in a process of their own, where the package has its name and tests are found as here."""

import sys
from pathlib import Path

REPO = Path(__file__).parents[2]

#: How each begins. Its arguments begin at 1.
_BEGIN = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("_alias", {str(REPO / "alias.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.register()
sys.path.insert(0, {str(REPO / "tests")!r})
"""


def as_child(program: str, *arguments: object) -> list[str]:
    """The command that starts such a program."""
    return [sys.executable, "-c", _BEGIN + program, *map(str, arguments)]
