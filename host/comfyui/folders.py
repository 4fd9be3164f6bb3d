"""ComfyUI's folders: its roots, its models, and where the guard keeps its own files."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import folder_paths

from ...guard.host import Folders
from ...guard.job import ROOTS
from .patching import Native

#: ComfyUI's own functions in `folder_paths`, by name, where `confine` has put its own in front.
natives: dict[str, Native] = {}


def find_root(kind: str) -> str | None:
    """ComfyUI's root of that type, whoever asks. Any thread."""
    if kind not in ROOTS:
        return None
    name = f"get_{kind}_directory"
    return str((natives.get(name) or getattr(folder_paths, name))())


def find_real_root(kind: str) -> str | None:
    """Its real path, looked up once in a second: each job asks for it ten times. Any thread."""
    root = find_root(kind)
    return None if root is None else _resolve_root(root, int(time.monotonic()))


@functools.lru_cache(maxsize=16)
def _resolve_root(root: str, _second: int) -> str:
    return os.path.realpath(root)


def find_own_directory() -> Path:
    """`<user>/__guarded`, which no route of ComfyUI serves."""
    system_user = getattr(folder_paths, "get_system_user_directory", None)
    folder = system_user("guarded") if system_user else os.path.join(folder_paths.get_user_directory(), "__guarded")
    return Path(folder)


def find_folders() -> Folders:
    """Find the roots, and every folder that holds models or belongs to ComfyUI itself. Any thread."""
    keep = [folder_paths.get_user_directory()]
    # Other packs write anything into this table, from other threads too.
    for entry in list(folder_paths.folder_names_and_paths.values()):
        paths = entry[0] if isinstance(entry, (list, tuple)) and entry else ()
        keep += [path for path in ([paths] if isinstance(paths, str) else list(paths)) if isinstance(path, str)]
    roots = tuple(find_root(kind) or "" for kind in ("output", "temp", "input"))
    return _make_folders(roots, tuple(keep), folder_paths.__file__)


@functools.lru_cache(maxsize=4)
def _make_folders(roots: tuple[str, ...], keep: tuple[str, ...], program: str) -> Folders:
    """The same object for the same names: it is asked for with each job, and its paths are many."""
    output, temp, given = map(Path, roots)
    return Folders(output=output, temp=temp, input=given, keep=tuple(map(Path, keep)), program=Path(program).parent)


def find_model_name(kind: str, file: str) -> str | None:
    """The name under which ComfyUI lists a model file of that kind, whatever folder it lies in; None: not there."""
    listed = folder_paths.get_filename_list(kind) if kind in folder_paths.folder_names_and_paths else []
    if file in listed:
        return file
    for name in listed:
        if name.replace("\\", "/").rpartition("/")[2] == file:
            return str(name)
    return file if os.path.isfile(os.path.join(folder_paths.models_dir, kind, file)) else None


def find_model_path(kind: str, name: str) -> Path | None:
    """Where a model lies that ComfyUI lists by that name."""
    listed = folder_paths.get_full_path(kind, name) if kind in folder_paths.folder_names_and_paths else None
    path = Path(listed or os.path.join(folder_paths.models_dir, kind, name))
    return path if path.is_file() else None


def resolve(kind: str, subfolder: str, filename: str) -> Path | None:
    """Resolve a file's symlinks; None unless its real path lies inside the root of its type."""
    root = find_real_root(kind)
    return _resolve_below(root, subfolder, filename) if root is not None else None


def resolve_below(folder: str, subfolder: str, filename: str) -> Path | None:
    """The same below any folder."""
    return _resolve_below(os.path.realpath(folder), subfolder, filename)


def _resolve_below(base: str, subfolder: str, filename: str) -> Path | None:
    """The same below a real path."""
    try:
        full = os.path.realpath(os.path.join(base, subfolder, filename))
    except ValueError:  # a NUL in the name
        return None
    return Path(full) if find_below(base, full) else None


def find_below(root: str, path: str) -> str | None:
    """The part of a real path below a real root, with slashes; None where it is not below."""
    if path == root:
        return ""
    prefix = root if root.endswith(os.sep) else root + os.sep
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else None
