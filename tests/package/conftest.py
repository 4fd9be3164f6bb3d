import os
import subprocess
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).resolve().parents[2]


def _ignore_file(name: str) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines((ROOT / name).read_text(encoding="utf-8").splitlines())


def _files_git_would_commit() -> list[str]:
    """Tracked files, and untracked ones that git does not ignore: what would be published after a commit."""
    try:
        answer = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return _files_not_ignored()  # no git here, or an unpacked archive
    return [name for name in answer.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _files_not_ignored() -> list[str]:
    ignored = _ignore_file(".gitignore")
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        subfolders[:] = [
            name for name in subfolders if name != ".git" and not ignored.match_file((here / name).as_posix() + "/")
        ]
        paths = [(here / name).as_posix() for name in names]
        found += [path for path in paths if not ignored.match_file(path)]
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def published() -> list[str]:
    """The files that `comfy node publish` would pack, as POSIX paths relative to the root.

    It packs what git lists, less what .comfyignore names (comfy-cli, file_utils.zip_files).
    """
    withheld = _ignore_file(".comfyignore")
    return sorted(name for name in set(_files_git_would_commit()) if not withheld.match_file(name))


@pytest.fixture(scope="session")
def published_python(published: list[str]) -> list[str]:
    return [name for name in published if name.endswith(".py")]
