"""The files that open jobs name: in the store, and on their way into it.

A file must not vanish between ComfyUI's look at it and the commit of the job that names it. So admission announces
what a prompt names *before* ComfyUI validates it, and the sweep announces what it is about to delete *before* it looks
at what is named. Whichever comes second sees the other; neither waits for a lock.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..owners import renew
from ..quotas.threads import work

#: A longer text is a prompt, not a name: PATH_MAX and NAME_MAX, in bytes.
_PATH_AT_MOST = 4096
_NAME_AT_MOST = 255
_ANNOTATIONS = ("[output]", "[input]", "[temp]")

#: Yields the keys of files that are about to be deleted: see :func:`make_keys`.
Doomed = Callable[[], Iterable[str]]


def _nothing() -> Iterable[str]:
    return ()


def fold(path: str) -> str:
    """Fold a path with slashes into a key: two names that some file system takes for one have one key."""
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def make_keys(root: str, path: str, absolute: Iterable[str]) -> list[str]:
    """Make the keys by which a prompt may name the file `path` below `root`.

    Args:
        absolute: the names of the root where a prompt gives the whole path.
    """
    key = fold(path)
    return [key, f"{key} [{root}]", *(f"{fold(folder)}/{key}" for folder in absolute)]


def collect_names(prompt: Any, roots: Callable[[], Iterable[str]]) -> set[str]:
    """Collect the keys of everything in a prompt's inputs that might name a file or a folder.

    Any string may: only the node knows which inputs are file names. As in ComfyUI, `name [output]` is a name below
    that root; without a root it may be meant below any.

    Besides the keys of :func:`make_keys` there are `a/` for `a/b`, the folder that a node may be about to write into,
    and, for a quick look, the last part of each key after a slash (no other key begins with its only slash).
    """
    keys: set[str] = set()
    if not isinstance(prompt, Mapping):
        return keys
    for node in prompt.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        for text in _iterate_strings(inputs):
            if len(text) <= _PATH_AT_MOST:
                _add_keys(keys, text, roots)
                if text[:1].isspace() or text[-1:].isspace():
                    _add_keys(keys, text.strip(), roots)
                if not text.isprintable():
                    for line in text.splitlines():
                        _add_keys(keys, line.strip(), roots)
    return keys


def _iterate_strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is str:
            yield item
        elif type(item) is dict:
            waiting += item.values()
        elif type(item) is list:
            waiting += item


def _add_keys(keys: set[str], text: str, roots: Callable[[], Iterable[str]]) -> None:
    path = text.replace("\\", "/")
    annotation = ""
    if path.endswith("]"):
        for suffix in _ANNOTATIONS:
            if path.endswith(suffix):
                path, annotation = path[: -len(suffix)].rstrip(), f" {suffix}"
                break
    if "/" in path:
        if "//" in path or "/." in path or path[0] == "." or path[-1] == "/":
            path = posixpath.normpath(path)
        _folder, _slash, last = path.rpartition("/")
    else:
        last = path
    if last in ("", ".", "..") or len(last) > _NAME_AT_MOST:
        return
    key = fold(path)
    last = fold(last)
    keys.add(f"/{last}")
    if path.startswith("../"):
        # ComfyUI's LoadImage takes such names. Nobody says from which root it is meant.
        keys.update(fold(posixpath.normpath(f"{root}/{path}")) for root in roots())
    elif path.startswith("//"):
        keys.add(key[1:])
    else:
        keys.add(key + annotation)
        while "/" in key:
            key = key.rpartition("/")[0]
            if key:
                keys.add(f"{key}/")


class InUse:
    """Knows what is named. The event loop holds, the janitor's thread asks; each step is one operation on a dict or
    set, which needs no lock."""

    def __init__(self, roots: Callable[[], Iterable[str]]) -> None:
        """`roots`: the absolute paths of the three roots, with slashes."""
        self._roots = roots
        self._held: Counter[str] = Counter()
        self._sweeping = False
        #: Named by requests that ended, accepted or refused, since the sweep began.
        self._recent: set[str] = set()
        #: Named by the jobs that were in the store when the sweep began.
        self._stored: set[str] = set()
        self._doomed: Doomed = _nothing

    @contextmanager
    def admission(self) -> Iterator[Hold]:
        """Give one request its hold: what it names stays in use until its job is in the store, or will never be."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            if self._sweeping:
                self._recent |= hold.names
            for name in hold.names:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Remember what is named from here to the end of the block. The janitor's thread."""
        self._recent = set()
        self._sweeping = True
        try:
            yield
        finally:
            self._sweeping = False
            self._stored, self._recent = set(), set()

    def add_stored(self, body: bytes) -> None:
        """Add what an open job names; `body` is its stored request."""
        try:
            prompt = json.loads(renew(body)).get("prompt")
        except (ValueError, AttributeError):
            return  # admission took it, so this is a fault of ours; ComfyUI will never run it either
        self._stored |= collect_names(prompt, self._roots)

    @contextmanager
    def about_to_delete(self, doomed: Doomed) -> Iterator[None]:
        """Inside the block, ask of each file whether it is named, and delete it if it is not.

        ComfyUI does not validate a prompt that names one of them before the block has ended.
        """
        self._doomed = doomed
        try:
            yield
        finally:
            self._doomed = _nothing

    def may_name(self, name: str) -> bool:
        """Whether any name ends in this file name. Mostly none does, and then no keys need be made."""
        last = "/" + fold(name)
        return last in self._stored or last in self._held or last in self._recent

    def names_any(self, keys: Iterable[str]) -> bool:
        """Whether a file with these keys is named."""
        return any(key in self._stored or key in self._held or key in self._recent for key in keys)

    def _hold(self, names: set[str]) -> None:
        self._held.update(names)

    def _is_doomed(self, names: set[str]) -> bool:
        doomed = self._doomed
        return doomed is not _nothing and not names.isdisjoint(doomed())


class Hold:
    """What one request names."""

    def __init__(self, in_use: InUse) -> None:
        self._in_use = in_use
        self.names: set[str] = set()

    async def keep(self, prompt: Mapping[str, Any], size: int = 0) -> None:
        """From here on nothing that the prompt names is deleted; what was about to be deleted is gone on return.

        `size` is that of the prompt's body.
        """
        names = await work(size, collect_names, prompt, self._in_use._roots) - self.names
        self._in_use._hold(names)
        self.names |= names
        # It takes some ms at most; the other side is a thread that does not know this loop.
        while self._in_use._is_doomed(names):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
