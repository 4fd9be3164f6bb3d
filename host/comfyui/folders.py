"""ComfyUI's folders: its roots, its models, and where the guard keeps its own files."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...guard.host import Folders
from ...guard.job import ROOTS


def own_directory() -> Path:
    """`<user>/__guarded`: no route of ComfyUI's serves it."""
    system_user = getattr(folder_paths, "get_system_user_directory", None)
    folder = system_user("guarded") if system_user else os.path.join(folder_paths.get_user_directory(), "__guarded")
    return Path(folder)


def folders() -> Folders:
    """The roots, and every folder that is registered for models or belongs to the host itself."""
    keep = [folder_paths.get_user_directory()]
    # Other packs write into this table as they like, from other threads too.
    for entry in list(folder_paths.folder_names_and_paths.values()):
        paths = entry[0] if isinstance(entry, (list, tuple)) and entry else ()
        keep += [path for path in ([paths] if isinstance(paths, str) else list(paths)) if isinstance(path, str)]
    return Folders(
        output=Path(folder_paths.get_output_directory()),
        temp=Path(folder_paths.get_temp_directory()),
        input=Path(folder_paths.get_input_directory()),
        keep=tuple(map(Path, keep)),
        program=Path(folder_paths.__file__).parent,
    )


def model_name(kind: str, file: str) -> str | None:
    """Under which name a model of that kind is listed, in whichever folder it was sorted."""
    listed = folder_paths.get_filename_list(kind) if kind in folder_paths.folder_names_and_paths else []
    if file in listed:
        return file
    for name in listed:
        if name.replace("\\", "/").rpartition("/")[2] == file:
            return str(name)
    return file if os.path.isfile(os.path.join(folder_paths.models_dir, kind, file)) else None


def resolved(kind: str, subfolder: str, filename: str) -> Path | None:
    """The file's real path, if that lies inside the root of its type; symlinks are followed before it is judged."""
    folder = folder_paths.get_directory_by_type(kind) if kind in ROOTS else None
    if folder is None:
        return None
    base = os.path.realpath(folder)
    try:
        full = os.path.realpath(os.path.join(base, subfolder, filename))
        inside = os.path.commonpath([base, full]) == base and full != base
    except ValueError:  # another drive, or a NUL in the name
        return None
    return Path(full) if inside else None
