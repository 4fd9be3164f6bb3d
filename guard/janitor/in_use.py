"""The files that open jobs name: in the store, and on their way into it.

A file must not vanish between ComfyUI's look at it and the commit of the job that names it. So admission says what a
prompt names *before* the prompt is validated, and the sweep says what it is about to delete *before* it looks at what
is named: whichever of the two comes second sees the other. Neither waits for a lock.
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

#: What is longer is a prompt, no name: PATH_MAX and NAME_MAX, in bytes.
_PATH_AT_MOST = 4096
_NAME_AT_MOST = 255
_ANNOTATIONS = ("[output]", "[input]", "[temp]")

#: What a file that is about to go is called: see :func:`make_keys`.
Doomed = Callable[[], Iterable[str]]


def _nothing() -> Iterable[str]:
    return ()


def fold(path: str) -> str:
    """A path with slashes as a key: two names that some file system takes for one have one key."""
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def make_keys(root: str, path: str, absolute: Iterable[str]) -> list[str]:
    """The keys by which a prompt may name the file `path` below `root`.

    Args:
        absolute: how the root is called, where a prompt names the whole path.
    """
    key = fold(path)
    return [key, f"{key} [{root}]", *(f"{fold(folder)}/{key}" for folder in absolute)]


def collect_names(prompt: Any, roots: Callable[[], Iterable[str]]) -> set[str]:
    """The keys of everything in a prompt's inputs that might name a file or a folder.

    Any string may: which inputs are file names, only the node knows. As ComfyUI does it, `name [output]` is a name
    below that root; without one it may be meant below any.

    Besides the keys as :func:`make_keys` has them: `a/` for `a/b`, the folder that a node may be about to write into;
    and for a quick look the last part of each key with a slash before it (no key begins with one slash and has no
    other).
    """
    found: set[str] = set()
    if not isinstance(prompt, Mapping):
        return found
    for node in prompt.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        for text in _strings(inputs):
            if len(text) <= _PATH_AT_MOST:
                _add_keys(found, text, roots)
                if text[:1].isspace() or text[-1:].isspace():
                    _add_keys(found, text.strip(), roots)
                if not text.isprintable():
                    for line in text.splitlines():
                        _add_keys(found, line.strip(), roots)
    return found


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is str:
            yield item
        elif type(item) is dict:
            waiting += item.values()
        elif type(item) is list:
            waiting += item


def _add_keys(found: set[str], text: str, roots: Callable[[], Iterable[str]]) -> None:
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
    found.add(f"/{last}")
    if path.startswith("../"):
        # ComfyUI's LoadImage takes such names. From which root it is meant, nobody says.
        found.update(fold(posixpath.normpath(f"{root}/{path}")) for root in roots())
    elif path.startswith("//"):
        found.add(key[1:])
    else:
        found.add(key + annotation)
        while "/" in key:
            key = key.rpartition("/")[0]
            if key:
                found.add(f"{key}/")


class InUse:
    """See the module. The event loop holds, the janitor's thread asks; each step is one operation on a dict or set."""

    def __init__(self, roots: Callable[[], Iterable[str]]) -> None:
        """`roots`: the absolute paths of the three roots, with slashes."""
        self._roots = roots
        self._held: Counter[str] = Counter()
        self._sweeping = False
        #: Of jobs that were let in, or refused, since the sweep began.
        self._recent: set[str] = set()
        #: Of the jobs that were in the store when the sweep began.
        self._stored: set[str] = set()
        self._doomed: Doomed = _nothing

    @contextmanager
    def admission(self) -> Iterator[Hold]:
        """For one request: what it holds stays in use until its job is in the store, or will never be."""
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
        """What is named from here on is remembered until the end of the block. The janitor's thread."""
        self._recent = set()
        self._sweeping = True
        try:
            yield
        finally:
            self._sweeping = False
            self._stored, self._recent = set(), set()

    def add_stored(self, body: bytes) -> None:
        """The body of an open job."""
        try:
            prompt = json.loads(body).get("prompt")
        except (ValueError, AttributeError):
            return  # admission let it in, so this is a fault of ours; ComfyUI will never run it either
        self._stored |= collect_names(prompt, self._roots)

    @contextmanager
    def about_to_delete(self, doomed: Doomed) -> Iterator[None]:
        """Inside the block, ask of each file whether it is named, and delete it if not.

        A prompt that names one of them meanwhile is not validated before the block has ended.
        """
        self._doomed = doomed
        try:
            yield
        finally:
            self._doomed = _nothing

    def may_name(self, name: str) -> bool:
        """Whether anything that is named ends in that file name: mostly not, and then no keys need be made."""
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

    async def keep(self, prompt: Mapping[str, Any]) -> None:
        """From here on nothing that the prompt names is deleted; what was about to go is gone by the end."""
        names = collect_names(prompt, self._in_use._roots) - self.names
        self._in_use._hold(names)
        self.names |= names
        # Some ms at most; the other side is a thread, which knows nothing of this loop.
        while self._in_use._is_doomed(names):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
