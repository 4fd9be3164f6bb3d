"""How files are named: an owner's folder, ComfyUI's `name [type]`, and what a name looks like to its owner."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..client import LOCAL
from ..errors import GuardError
from ..host_words import MEDIA_SUFFIXES
from ..job import ROOTS


def owner_folder(owner: str) -> str:
    """The owner's folder below a root; empty for `local`."""
    return "" if owner == LOCAL.owner else upload_folder(owner)


def split_annotation(name: str) -> tuple[str, str]:
    """(folder type, name below it) of a file as a loader names it: `a/b.png [output]` is (`output`, `a/b.png`).

    As ComfyUI reads it (folder_paths.annotated_filepath): without a type it lies in the input folder.
    """
    for kind in ROOTS:
        if name.endswith(f"[{kind}]"):
            return kind, name[: -len(kind) - 3]
    return "input", name


def is_plain(name: str) -> bool:
    """Whether a name stays below the folder that it is looked for in, by its letters alone."""
    parts = re.split(r"[/\\]", name)
    return bool(parts[0]) and ".." not in parts and "\0" not in name and not re.match(r"[A-Za-z]:", name)


def mentions_uploads(text: str) -> bool:
    """Whether a text speaks of the folder that holds the owners' folders, however a file system may read it."""
    if not text.isascii():
        # HFS+ takes no notice of characters that do not show.
        seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", seen)
    return FOLDER in text.casefold()


def strip_owner_folder(value: Any, owner: str) -> Any:
    """JSON in which the owner's own folder is not to be seen: what it calls `photo.png` is called so."""
    own = owner_folder(owner)
    return _replace_names(value, {f"{own}/": ""}) if own else value


def use_owner_names(error: GuardError, owner: str, sent: Mapping[str, str] | None = None) -> None:
    """Call the owner's files in an error as the owner calls them; `sent`: what came along, from its stored names."""
    own = owner_folder(owner)
    names = {**(sent or {}), **({f"{own}/": ""} if own else {})}
    error.message, error.details = _replace_names(error.message, names), _replace_names(error.details, names)
    error.extra_info, error.node_errors = (
        _replace_names(error.extra_info, names),
        _replace_names(error.node_errors, names),
    )


def _replace_names(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, seen in names.items():
            value = value.replace(name, seen)
        return value
    if isinstance(value, Mapping):
        return {key: _replace_names(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_names(item, names) for item in value]
    return value


def annotate(kind: str, name: str) -> str:
    return name if kind == "input" else f"{name} [{kind}]"


#: Below the host's folders; holds the owners' folders. No text speaks of it by chance.
FOLDER = "guarded-uploads"


@functools.lru_cache(maxsize=1024)
def upload_folder(owner: str) -> str:
    """The owner's upload folder, below the host's input folder, with slashes. No two owners share one."""
    readable = re.sub(r"[^a-z0-9]+", "-", owner.lower())[:32].strip("-")
    return f"{FOLDER}/{readable}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}".replace("/-", "/")


def media_suffix(name: str) -> str:
    """The suffix of a name that a picture, film or sound may have, in lower case; else empty."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    return suffix if suffix in MEDIA_SUFFIXES else ""
