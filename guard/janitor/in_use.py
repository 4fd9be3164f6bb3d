"""The files that open jobs name: in the store, and on their way into it.

A file must not vanish between ComfyUI's look at it and the commit of the job that names it. So admission says what a
prompt names *before* the prompt is validated, and the sweep says what it is about to delete *before* it looks at what
is named: whichever of the two comes second sees the other. Neither waits for a lock.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: Longer texts are prompts, not names (PATH_MAX is 4,096).
_NAME_AT_MOST = 4096
_ANNOTATIONS = {f"[{root}]": root for root in ("output", "input", "temp")}

_ANNOTATED = re.compile(r" \[(output|input|temp)\]$")

#: What a file that is about to go is called: see :func:`called`.
Doomed = Callable[[], Iterable[str]]


def _nothing() -> Iterable[str]:
    return ()


def fold(path: str) -> str:
    """A path with slashes as a key: two names that some file system takes for one have one key."""
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def called(root: str, path: str, absolute: Iterable[str]) -> list[str]:
    """The keys by which a prompt may name the file `path` below `root`.

    Args:
        absolute: how the root is called, where a prompt names the whole path.
    """
    key = fold(path)
    return [key, f"{key} [{root}]", *(f"{fold(folder)}/{key}" for folder in absolute)]


def names_in(prompt: Any, roots: Callable[[], Iterable[str]]) -> set[str]:
    """The keys of everything in a prompt's inputs that might name a file or a folder.

    Any string may: which inputs are file names, only the node knows. As ComfyUI does it, `name [output]` is a name
    below that root; without one it may be meant below any.
    """
    found: set[str] = set()
    if not isinstance(prompt, Mapping):
        return found
    for node in prompt.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        for text in _strings(inputs):
            if 0 < len(text) <= _NAME_AT_MOST:
                for line in {text, *text.splitlines()}:
                    found.update(_keys(line, roots))
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


def _keys(text: str, roots: Callable[[], Iterable[str]]) -> Iterator[str]:
    slashed = text.replace("\\", "/").strip()
    annotation = ""
    for suffix in _ANNOTATIONS:
        if slashed.endswith(suffix):
            slashed, annotation = slashed[: -len(suffix)].rstrip(), f" {suffix}"
            break
    if not slashed:
        return
    path = posixpath.normpath(slashed)
    if path == "..":
        return
    if path.startswith("../"):
        # ComfyUI's LoadImage takes such names. From which root it is meant, nobody says.
        for root in roots():
            yield fold(posixpath.normpath(f"{root}/{path}"))
    elif path.startswith("/") or path[1:2] == ":":
        yield fold(path.replace("//", "/", 1))
    elif path != ".":
        key = fold(path)
        yield key + annotation
        while "/" in key:
            # The folder, as one that is not to be taken away: see `Sweep`. A name cannot end so.
            key = key.rpartition("/")[0]
            yield key + "/"


def _with_last_parts(keys: set[str]) -> set[str]:
    """The keys, and the last part of each with a slash before it, which no key has (absolute ones have two)."""
    return keys.union(f"/{_ANNOTATED.sub('', key).rpartition('/')[2]}" for key in keys)


class InUse:
    """See the module. The event loop holds, the janitor's thread asks; each step is one operation on a dict or set."""

    def __init__(self, roots: Callable[[], Iterable[str]]) -> None:
        """`roots`: the absolute paths of the three roots, with slashes."""
        self._roots = roots
        #: Of each, the keys and, for a quick look, their last parts.
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
            held = _with_last_parts(hold.names)
            if self._sweeping:
                self._recent |= held
            for name in held:
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

    def stored(self, body: bytes) -> None:
        """The body of an open job."""
        try:
            prompt = json.loads(body).get("prompt")
        except (ValueError, AttributeError):
            return  # admission let it in, so this is a fault of ours; ComfyUI will never run it either
        self._stored |= _with_last_parts(names_in(prompt, self._roots))

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

    def names(self, keys: Iterable[str]) -> bool:
        """Whether a file with these keys is named."""
        return any(key in self._stored or key in self._held or key in self._recent for key in keys)

    def _hold(self, names: set[str]) -> None:
        for name in _with_last_parts(names):
            self._held[name] += 1

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
        names = names_in(prompt, self._in_use._roots) - self.names
        self._in_use._hold(names)
        self.names |= names
        # Some ms at most; the other side is a thread, which knows nothing of this loop.
        while self._in_use._is_doomed(names):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
