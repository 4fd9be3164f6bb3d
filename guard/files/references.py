"""Let a prompt name only its sender's own files and shared ones, and never a way out of ComfyUI's folders.

A bare name in a loader's input means the sender's own upload where there is one. The prompt is then changed to say
where that lies, before validation, the face check, the janitor and ComfyUI look at it.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ..client import LOCAL, Client
from ..errors import ArtifactGoneError, BadImageError
from ..graph import Names, is_link
from ..host import Folders, Host
from ..outgoing import StoredFile
from ..quotas.threads import run_beside, search_beside, work
from .content import check_content, check_folder
from .files import Files
from .inputs import Inputs
from .names import is_annotated, is_plain, mentions_uploads, owner_folder, split_annotation

#: PATH_MAX. ComfyUI removes each `./` from a name before it looks, so that longer names would work there.
_LONGEST = 4096
_SEPARATOR = re.compile(r"[/\\]")
#: Elsewhere than on Windows a backslash is a sign like any other, and so is a drive.
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]" if os.name == "nt" else "/")
#: Every name that is not plain contains one of these.
_MAY_LEAD_OUT = re.compile(r"\.\.|^[/\\]|^.:|\0")
#: What a node that takes a path or an address may be told.
_ADDRESS = re.compile(r"https?://[^/\\]", re.IGNORECASE)

#: Kinds of outputs that may be texts; the kind of a choice may be written out.
_TEXT = re.compile(r"STRING|COMBO|\*|COMFY_|^\[|^\(")


class _Reference(NamedTuple):
    """A text in a prompt, where it stands (`holder[key]`), and what its node says that it names."""

    node_id: str
    input: str
    text: str
    holder: Any
    key: Any
    names: Names | None

    def refuse(self) -> BadImageError:
        """The refusal, the same for every fault, so that nobody learns which files others have."""
        return BadImageError(
            f"The input file {self.text[:200]} cannot be used.",
            details="A prompt may name its sender's uploads and results, and shared input files.",
            extra_info={"node_id": self.node_id, "input": self.input, "value": self.text[:200]},
        )

    def check_content(self, path: Path) -> None:
        """Check the file there, or all in the folder there. Raises BadImageError; blocks on the disk."""
        try:
            check = check_folder if path.is_dir() else check_content
            check(path, self.text)
        except BadImageError as error:
            error.extra_info |= {"node_id": self.node_id, "input": self.input, "value": self.text[:200]}
            raise


class References:
    """Lives on the event loop, and looks at the disk on other threads."""

    def __init__(self, host: Host, files: Files, inputs: Inputs | None = None) -> None:
        """`inputs`: keeps what prompts name in the depot, if there is one."""
        self._inputs = inputs
        self._host = host
        self._files = files

    async def take(
        self,
        graph: Mapping[str, Any],
        client: Client,
        size: int,
        hold: Callable[[], Awaitable[None]],
        called: dict[str, str],
        stack: AsyncExitStack,
    ) -> tuple[bool, tuple[StoredFile, ...]]:
        """Resolve the names, and keep the files in the depot if there is one (:meth:`.inputs.Inputs.keep`) until
        `stack` ends that. Returns whether the prompt changed, and what is in the depot.

        Raises what :meth:`resolve` and the depot do.
        """
        if self._inputs is None:
            return await self.resolve(graph, client, size), ()
        moved = await self._inputs.bring(graph, client.owner, size)
        moved |= await self.resolve(graph, client, size)
        stored = await stack.enter_async_context(self._inputs.keep(graph, client.owner, hold, called, size))
        return moved or bool(stored), stored

    async def resolve(self, graph: Mapping[str, Any], client: Client, size: int = 0) -> bool:
        """Make every file name in the prompt say where the caller's file lies. Returns whether that changed the prompt.

        `size` is that of the prompt's body.

        Raises:
            BadImageError: it names a file that the caller may not use.
        """
        if client.owner == LOCAL.owner:
            await work(size, self._check_local, graph)
            return False
        references = await work(size, self._list_references, graph)
        if not references:
            return False
        changed = False
        names = await run_beside(self._find_names, references, client)
        for reference, name in zip(references, names, strict=True):
            kind, below = split_annotation(reference.text if name is None else name)
            result = await self._files.find_result(client, kind, below) if kind != "input" else None
            if name is None and result is None:
                raise reference.refuse()
            if result is not None:
                try:
                    await self._files.check_unchanged(client, result)
                except ArtifactGoneError:
                    raise reference.refuse() from None
                await search_beside(reference.check_content, result.path)
            if name is not None and name != reference.text:
                reference.holder[reference.key] = name
                changed = True
        return changed

    def _list_references(self, graph: Mapping[str, Any]) -> list[_Reference]:
        """Every text that may name a file."""
        references: list[_Reference] = []
        for node_id, node in graph.items():
            declared = self._host.file_inputs(node["class_type"])
            references += _list_texts(node_id, node, declared)
            for taken in declared:
                if is_link(link := node["inputs"].get(taken)) and self._may_give_name(graph, link):
                    raise BadImageError(
                        f"{node['class_type'][:100]} takes the name of its file from another node.",
                        details="Only the run can tell what that will be: name the file in the loader itself.",
                        extra_info={"node_id": node_id, "input": taken},
                    )
        return [reference for reference in references if not _is_word(reference)]

    def _may_give_name(self, graph: Mapping[str, Any], link: list[Any]) -> bool:
        """Whether a link may bring a text: a picture, say, or a number is no name."""
        source = graph.get(link[0])
        outputs = self._host.declaration(source["class_type"]).outputs if source is not None else ()
        at = link[1]
        if not (math.isfinite(at) and 0 <= at < len(outputs)):
            return True
        return _TEXT.search(outputs[int(at)][0]) is not None

    def _check_local(self, graph: Mapping[str, Any]) -> None:
        """Let no loader's input lead out of its folder; newer ComfyUIs check that themselves."""
        for node_id, node in graph.items():
            # Skips most nodes quickly, because every submit waits for this.
            if not any(map(_may_lead_out, node["inputs"].values())):
                continue
            for reference in _list_texts(node_id, node, {}):
                kind, name = split_annotation(reference.text)
                names = self._host.file_inputs(node["class_type"]).get(reference.input)
                if names is Names.FILE and not is_plain(name) and self._host.file(kind, "", name) is None:
                    raise reference.refuse()

    def _find_names(self, references: list[_Reference], client: Client) -> list[str | None]:
        """The name to put in the place of each; None for a possible result, which only the store knows.

        Not for the event loop.

        Raises:
            BadImageError: see `resolve`.
        """
        own = owner_folder(client.owner)
        host_folders: frozenset[PurePath] | None = None
        names: list[str | None] = []
        for reference in references:
            kind, name = split_annotation(reference.text)
            foreign = mentions_uploads(name) and not _is_below(name, own)
            if reference.names is Names.FILE or (name != reference.text and is_annotated(reference.text)):
                if foreign or not is_plain(name) or len(name) > _LONGEST:
                    raise reference.refuse()
                names.append(self._find_file(reference, client, kind, name))
                continue
            # In an input that takes any path of the server, everything but an address is one.
            path = reference.names is Names.PATH and not _ADDRESS.match(reference.text)
            if not foreign and not path and len(name) <= _LONGEST:
                host_folders = _list_folders(self._host.folders()) if host_folders is None else host_folders
                # Nodes may put a slash for each backslash.
                spelt = {each.replace("\\", sign) for each in (name, reference.text) for sign in "\\/"}
                foreign = any(_leads_inside(each, host_folders) for each in spelt)
            if foreign or path:
                raise reference.refuse()
            names.append(reference.text)
        return names

    def _find_file(self, reference: _Reference, client: Client, kind: str, name: str) -> str | None:
        if (upload := self._files.find_upload(client, kind, name, folders=True)) is not None:
            reference.check_content(upload.path)
            return upload.name if upload.name != name else reference.text
        if kind != "input":
            return None
        path = self._host.file(kind, "", name)
        if path is None or os.path.exists(path):
            raise reference.refuse()
        return reference.text  # the host itself says best that it is missing


def _is_word(reference: _Reference) -> bool:
    """Whether a text can be the name of no file at all, so that nobody need look at the disk. Quick, and false too
    often rather than too seldom."""
    text = reference.text
    return (
        reference.names is None
        and _SEPARATOR.search(text) is None
        and not text.endswith("]")
        and not mentions_uploads(text)
    )


def _may_lead_out(value: Any) -> bool:
    """Whether an input may hold a name that is not plain. Quick, and true too often rather than too seldom."""
    if type(value) is str:
        return _MAY_LEAD_OUT.search(value) is not None
    return isinstance(value, dict) or (isinstance(value, list) and not is_link(value))


def _list_texts(node_id: str, node: Mapping[str, Any], declared: Mapping[str, Names]) -> Iterator[_Reference]:
    """Every constant text of a node that may be a name, however deeply nested."""
    inputs = node["inputs"]
    for name, value in inputs.items():
        if isinstance(value, (int, float)) or is_link(value):
            continue
        waiting: list[tuple[Any, Any]] = [(inputs, name)]
        while waiting:
            holder, key = waiting.pop()
            item = holder[key]
            if isinstance(item, str):
                if item:
                    yield _Reference(node_id, name, item, holder, key, declared.get(name))
            elif isinstance(item, dict):
                waiting += [(item, part) for part in item]
            elif isinstance(item, list):
                waiting += [(item, part) for part in range(len(item))]


def _is_below(name: str, folder: str) -> bool:
    rest = name.removeprefix(f"{folder}/")
    return rest != name and is_plain(name) and not mentions_uploads(rest)


@functools.lru_cache(maxsize=8)
def _list_folders(folders: Folders) -> frozenset[PurePath]:
    """ComfyUI's folders, both as given and with links followed: a millisecond of the disk's for each new answer."""
    roots = [root for root in (*folders.roots().values(), folders.program) if root is not None]
    return frozenset(
        PurePath(os.path.normcase(path))
        for root in (*roots, *folders.keep)
        for path in (os.path.abspath(root), os.path.realpath(root))
    )


def _leads_inside(text: str, folders: frozenset[PurePath]) -> bool:
    """Whether a text is the absolute path of something in those folders, or a relative one of something that is there.

    Judged by the real path, since `//`, `/proc/self/root` and links lead there too.
    """
    try:
        # A word may be called like one of ComfyUI's own folders.
        is_absolute = _ABSOLUTE.match(text) is not None
        if not is_absolute and not _SEPARATOR.search(text):
            return False
        real = os.path.realpath(text)
        if not is_absolute and not os.path.lexists(real):
            return False
        lexical = os.path.normpath(re.sub(r"^//+", "/", text))
    except (OSError, ValueError):
        return False
    paths = [PurePath(os.path.normcase(path)) for path in (real, lexical)]
    return any(path in folders or any(parent in folders for parent in path.parents) for path in paths)
