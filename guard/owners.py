"""Each owner's folder below ComfyUI's roots, under a name that nobody can guess.

The name is made of the owner's and of a key that only this server or its fleet has, so no list of owners need be kept,
and it is the same below input, output and temp.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import private_files

log = logging.getLogger("guarded")

#: The folder below each root that holds the owners' folders. No text contains this name by chance.
FOLDER = "guarded-uploads"
#: In the guard's own folder: what the names are made of.
KEY_FILE = "folders.key"

_NAME = r"(?:[a-z0-9-]{1,13}-)?[0-9a-f]{32}"
_EARLIER = re.compile(rf"({FOLDER}/(?:[a-z0-9-]{{1,33}}-)?(?:[0-9a-f]{{32}}|[0-9a-f]{{12}}))/".encode())
_FOLDERS = re.compile(rf"{FOLDER}/{_NAME}(?:/|\b)")

#: Until :func:`use_key`, one that dies with the process: no folder can be guessed for lack of a key.
_key = secrets.token_bytes(32)
#: The key of this server from before it was in a fleet.
_former: bytes | None = None
#: The names of owners' folders in an earlier version or under the former key, and those of now.
_taken_over: dict[bytes, bytes] = {}


def use_key(own: Path, key: bytes | None = None) -> None:
    """Name the folders by the `key`, or by the one in the guard's own folder, made at the first call. Call at start.

    Raises OSError.
    """
    global _key, _former
    _former = None
    if key is None:
        _key = private_files.read_or_make_key(own / KEY_FILE)
        return
    _key = key
    if (own / KEY_FILE).exists():
        _former = private_files.read_or_make_key(own / KEY_FILE)


def folder_of(owner: str) -> str:
    """The owner's folder below a root, with slashes; no two owners share one. Its name has 128 bits of the key."""
    return name_folder(_key, owner)


@functools.lru_cache(maxsize=1024)
def name_folder(key: bytes, owner: str) -> str:
    """The folder of that owner on a server with that key."""
    digest = hmac.new(key, owner.encode(), hashlib.sha256).hexdigest()[:32]
    return f"{FOLDER}/{_readable(owner)[:12].strip('-')}-{digest}".replace("/-", "/")


@functools.lru_cache(maxsize=1024)
def earlier_folder_of(owner: str) -> str:
    """The folder as it was called before there was a key: whoever knew the owner's name could tell it."""
    digest = hashlib.sha256(owner.encode()).hexdigest()[:12]
    return f"{FOLDER}/{_readable(owner)[:32].strip('-')}-{digest}".replace("/-", "/")


def _readable(owner: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", owner.lower())


def hide(text: str) -> str:
    """The text without the name of any owner's folder."""
    return _FOLDERS.sub("", text) if FOLDER in text else text


def hide_in(value: Any) -> Any:
    """Copy JSON without the name of any owner's folder in its texts."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: hide_in(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_in(item) for item in value]
    return value


def renew(body: bytes) -> bytes:
    """A stored request with the owners' folders that were taken over under the names that they have now."""
    if FOLDER.encode() not in body:
        return body
    return _EARLIER.sub(lambda match: _taken_over.get(match[1], match[1]) + b"/", body)


def take_over(roots: Iterable[Path], owners: Iterable[str]) -> None:
    """Give the owners' folders of an earlier version the names that they have now. At start; blocks on the disk."""
    for owner in owners:
        _take_over(roots, owner, earlier_folder_of(owner))


def take_over_inputs(root: Path, owners: Iterable[str]) -> None:
    """Give the folders with what owners have uploaded before this server was in a fleet the fleet's names.

    Results keep theirs, by which the records have them. At start; blocks on the disk.
    """
    for owner in owners if _former is not None else ():
        _take_over([root], owner, name_folder(_former or b"", owner))


def _take_over(roots: Iterable[Path], owner: str, earlier: str) -> None:
    now = folder_of(owner)
    _taken_over[earlier.encode()] = now.encode()
    for root in roots:
        try:
            _merge(root / earlier, root / now)
        except OSError as error:
            log.error("the files of %s cannot be moved to their folder: %s", owner, error)


def _merge(source: Path, target: Path) -> None:
    if source.is_symlink() or not source.is_dir():
        return
    if not target.exists():
        os.rename(source, target)
        return
    # A start was killed in between, or somebody has brought an old folder back.
    for folder, _folders, files in os.walk(source):
        for file in files:
            path = Path(folder, file)
            there = target / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            if not there.exists():
                os.rename(path, there)
