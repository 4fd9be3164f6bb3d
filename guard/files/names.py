"""Name files: an owner's folder, ComfyUI's `name [type]`, and what a name looks like to its owner."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..client import LOCAL
from ..errors import GuardError
from ..host_words import MEDIA_SUFFIXES
from ..job import ROOTS
from ..owners import FOLDER, folder_of

#: A place of an owner's may have this many parts. Nobody sorts files deeper; the janitor leaves what lies much deeper,
#: and in a thousand folders inside one another even Python's own functions fail.
DEEPEST = 32


def owner_folder(owner: str) -> str:
    """The owner's folder below a root; empty for `local`."""
    return "" if owner == LOCAL.owner else folder_of(owner)


#: A file's name by its form, in whichever input: `photo.png [output]`. ComfyUI drops any letter before the bracket.
_ANNOTATED = re.compile(r"[^\r\n]*\.\w{1,8}\W*.\[(?:input|output|temp)\]|[^\r\n]*\.\w{1,8}\W*\[(?:input|output|temp)\]")


def is_annotated(text: Any) -> bool:
    """Whether a value is a file's name with its type, by its form alone."""
    return isinstance(text, str) and _ANNOTATED.fullmatch(text) is not None


def split_annotation(name: str) -> tuple[str, str]:
    """(root, name below it) of a file as a loader names it: `a/b.png [output]` is (`output`, `a/b.png`).

    As in ComfyUI (folder_paths.annotated_filepath), a file without a type lies in the input folder.
    """
    for kind in ROOTS:
        if name.endswith(f"[{kind}]"):
            return kind, name[: -len(kind) - 3]
    return "input", name


def is_plain(name: str) -> bool:
    """Whether a name stays below its folder, judged by its letters alone."""
    parts = re.split(r"[/\\]", name)
    return bool(parts[0]) and ".." not in parts and "\0" not in name and not re.match(r"[A-Za-z]:", name)


def mentions_uploads(text: str) -> bool:
    """Whether a text contains the name of the folder that holds the owners' folders, as any file system may read it."""
    if not text.isascii():
        # HFS+ ignores invisible characters.
        visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", visible)
    return FOLDER in text.casefold()


def strip_owner_folder(value: Any, owner: str) -> Any:
    """Copy JSON without the owner's folder in its texts, so that a file is called what its owner calls it."""
    return strip_folder(value, owner_folder(owner))


def strip_folder(value: Any, folder: str) -> Any:
    """Copy JSON without that folder in its texts."""
    return _replace_names(value, {f"{folder}/": "", folder: ""}) if folder else value


def use_owner_names(error: GuardError, owner: str, sent: Mapping[str, str] | None = None) -> None:
    """Call the files in an error what their owner calls them.

    Args:
        sent: stored name → the owner's name, of files that came with the request.
    """
    own = owner_folder(owner)
    names = {**(sent or {}), **({f"{own}/": "", own: ""} if own else {})}
    error.message, error.details = _replace_names(error.message, names), _replace_names(error.details, names)
    error.extra_info, error.node_errors = (
        _replace_names(error.extra_info, names),
        _replace_names(error.node_errors, names),
    )


def _replace_names(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, shown in names.items():
            value = value.replace(name, shown)
        return value
    if isinstance(value, Mapping):
        return {key: _replace_names(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_names(item, names) for item in value]
    return value


def annotate(kind: str, name: str) -> str:
    """The name by which a loader finds a file: `photo.png`, `photo.png [output]`."""
    return name if kind == "input" else f"{name} [{kind}]"


def media_suffix(name: str) -> str:
    """The suffix of a name in lower case, where pictures, films or sounds have such; else empty."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    return suffix if suffix in MEDIA_SUFFIXES else ""
