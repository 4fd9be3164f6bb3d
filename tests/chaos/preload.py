"""Libraries between a server and the C library, built from the sources in `shims/` when a test needs them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIMS = Path(__file__).parent / "shims"


def build(name: str, into: Path) -> str:
    """Compile a shim; return what LD_PRELOAD has to say. Skips the test where that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("takes Linux and a C compiler")
    library = into / f"{name}.so"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, "-o", str(library), str(SHIMS / f"{name}.c"), "-ldl"], check=True)
    return str(library)
