"""The gate without make, for Windows and macOS: `python .ci/portable.py` with Python 3.10 or newer.

It installs what the gate needs into .venv, then runs format, lint, types, imports, the unit and package tests, and jobs
on a sandbox server. `make test` runs more: results, faces, browser, clients and chaos.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / ("python.exe" if os.name == "nt" else "python"))
#: See the Makefile: mypy and import-linter want the package under one fixed name.
ALIAS = ROOT / "build" / "alias"

TESTS = (
    "tests/unit",
    "tests/package",
    "tests/contract/test_submit.py",
    "tests/contract/test_queue.py",
    "tests/contract/test_http.py",
)


def main() -> None:
    if not Path(PYTHON).exists():
        venv.create(VENV, with_pip=True)
    install("--upgrade", "pip")
    install("-r", "requirements.txt", "-r", "requirements-dev.txt")
    link_alias()
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "mypy", "--config-file", "../../pyproject.toml", cwd=ALIAS)
    # Windows runs no program by a path without its .exe.
    lint_imports = shutil.which("lint-imports", path=BIN) or "lint-imports"
    run(lint_imports, "--no-logo", "--cache-dir", "build/import_linter_cache", PYTHONPATH=str(ALIAS))
    run(PYTHON, "-m", "pytest", *TESTS, *sys.argv[1:])


def install(*what: str) -> None:
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", *what)


def link_alias() -> None:
    link = ALIAS / "comfyui_guarded"
    if link.exists():
        return
    ALIAS.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        # A junction needs no rights; a symlink does.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True)
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def run(*command: str, cwd: Path = ROOT, **environment: str) -> None:
    """Raises SystemExit with the command's own exit status unless that is 0."""
    # This folder on sys.path would make our nodes/ and app.py shadow ComfyUI's.
    inherited = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    # Windows' own encoding is not UTF-8, which every text here is.
    status = subprocess.run(command, cwd=cwd, env={**inherited, "PYTHONUTF8": "1", **environment}).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
