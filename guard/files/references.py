"""The files that a prompt names: each caller's its own, or shared ones, and never a way out of ComfyUI's folders.

A bare name in a loader's input is the caller's own upload where there is one. The prompt is then changed to say
where that lies, before anything looks at it: validation, the face check, the janitor and ComfyUI all see that name.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from ..client import LOCAL, Client
from ..errors import ArtifactGoneError, BadImageError
from ..graph import is_link
from ..host import Folders, Host, Names
from .files import Files
from .names import is_plain, mentions_uploads, owner_folder, split_annotation

#: PATH_MAX. ComfyUI takes the `./` out of a name before it looks.
_LONGEST = 4096
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
#: All that is not plain has one of these in it.
_MAY_LEAD_OUT = re.compile(r"\.\.|^[/\\]|^.:|\0")
#: A file name by its form, whatever input it stands in: `photo.png [output]`.
_ANNOTATED = re.compile(r"[^\r\n]*\.\w{1,8} ?\[(?:input|output|temp)\]")


class _Reference(NamedTuple):
    """A text in a prompt, where it stands (`holder[key]`), and what its node declares it to name."""

    node_id: str
    input: str
    text: str
    holder: Any
    key: Any
    names: Names | None

    def refuse(self) -> BadImageError:
        """One answer, whatever is wrong with it: whether somebody else has such a file is nobody's business."""
        return BadImageError(
            f"The input file {self.text[:200]} cannot be used.",
            details="A prompt may name files that its sender has uploaded or made, and those that are shared.",
            extra_info={"node_id": self.node_id, "input": self.input, "value": self.text[:200]},
        )


class References:
    """Event loop; the looking is done on other threads."""

    def __init__(self, host: Host, files: Files) -> None:
        self._host = host
        self._files = files

    async def resolve(self, graph: Mapping[str, Any], client: Client) -> bool:
        """Make every file name in the prompt say where the caller's file lies. Whether that changed the prompt.

        Raises:
            BadImageError: one names a file that is not the caller's to use.
        """
        if client.owner == LOCAL.owner:
            self._check_local(graph)
            return False
        found: list[_Reference] = []
        for node_id, node in graph.items():
            declared = self._host.file_inputs(node["class_type"])
            found += _list_texts(node_id, node, declared)
            for taken in declared:
                if is_link(node["inputs"].get(taken)):
                    raise BadImageError(
                        f"{node['class_type']} takes the name of its file from another node.",
                        details="What that will be is not known before it runs: name the file where it is loaded.",
                        extra_info={"node_id": node_id, "input": taken},
                    )
        if not found:
            return False
        changed = False
        for reference, name in zip(found, await asyncio.to_thread(self._judge, found, client), strict=True):
            if name is None:
                kind, below = split_annotation(reference.text)
                found_file = await self._files.find_result(client, kind, below)
                if found_file is None:
                    raise reference.refuse()
                try:
                    await self._files.check_unchanged(client, found_file)
                except ArtifactGoneError:
                    raise reference.refuse() from None
            elif name != reference.text:
                reference.holder[reference.key] = name
                changed = True
        return changed

    def _check_local(self, graph: Mapping[str, Any]) -> None:
        """Newer ComfyUIs do it themselves: the input of a loader leads nowhere out of its folder."""
        for node_id, node in graph.items():
            # Most nodes have nothing of the kind, and this is in every submit's way.
            if not any(map(_may_lead_out, node["inputs"].values())):
                continue
            for reference in _list_texts(node_id, node, {}):
                kind, name = split_annotation(reference.text)
                names = self._host.file_inputs(node["class_type"]).get(reference.input)
                if names is Names.FILE and not is_plain(name) and self._host.file(kind, "", name) is None:
                    raise reference.refuse()

    def _judge(self, found: list[_Reference], client: Client) -> list[str | None]:
        """What to put in the place of each; None for what only the store can tell, a result. Not for the event loop.

        Raises:
            BadImageError: see `resolve`.
        """
        own = owner_folder(client.owner)
        places: set[PurePath] | None = None
        judged: list[str | None] = []
        for reference in found:
            kind, name = split_annotation(reference.text)
            foreign = mentions_uploads(name) and not _is_below(name, own)
            if reference.names is Names.FILE or (name != reference.text and _ANNOTATED.fullmatch(reference.text)):
                if foreign or not is_plain(name) or len(name) > _LONGEST:
                    raise reference.refuse()
                judged.append(self._find_file(reference, client, kind, name))
                continue
            # Where a node reads any path of the server, only a URL is not one.
            path = reference.names is Names.PATH and "://" not in reference.text
            if not foreign and not path and len(name) <= _LONGEST and _ABSOLUTE.match(name):
                places = _list_folders(self._host.folders()) if places is None else places
                foreign = _is_inside(name, places)
            if foreign or path:
                raise reference.refuse()
            judged.append(reference.text)
        return judged

    def _find_file(self, reference: _Reference, client: Client, kind: str, name: str) -> str | None:
        if (upload := self._files.find_upload(client, kind, name, folders=True)) is not None:
            return upload.name if upload.name != name else reference.text
        if kind != "input":
            return None
        path = self._host.file(kind, "", name)
        if path is None or os.path.exists(path):
            raise reference.refuse()
        return reference.text  # the host says best what it lacks


def _may_lead_out(value: Any) -> bool:
    if type(value) is str:
        return _MAY_LEAD_OUT.search(value) is not None
    return isinstance(value, dict) or (isinstance(value, list) and not is_link(value))


def _list_texts(node_id: str, node: Mapping[str, Any], declared: Mapping[str, Names]) -> Iterator[_Reference]:
    """Every constant text of a node that may be a name, however deep; links are none."""
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


def _list_folders(places: Folders) -> set[PurePath]:
    """ComfyUI's folders, as given and without links."""
    roots = [root for root in (places.input, places.output, places.temp, places.program) if root is not None]
    return {
        PurePath(os.path.normcase(path))
        for root in (*roots, *places.keep)
        for path in (os.path.abspath(root), os.path.realpath(root))
    }


def _is_inside(text: str, places: set[PurePath]) -> bool:
    """Whether a text is the absolute path of something in those folders."""
    path = PurePath(os.path.normcase(os.path.normpath(text)))
    return path in places or any(parent in places for parent in path.parents)
