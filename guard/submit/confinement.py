"""Refuse in the prompts of keys what would lead out of the owner's reach: names to write to, addresses to load from,
node classes that write or call where a prompt says.

`local`, the operator at the machine, is not limited. What a prompt's file inputs name is the matter of
:mod:`guard.files.references`.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..client import LOCAL, Client
from ..errors import PolicyViolationError
from ..files.names import DEEPEST
from ..graph import Declared, is_link
from ..settings import PolicySettings
from ..urls import UrlError, is_public, read_url
from .keyed_deny import KEYED_DENY_NODES
from .patterns import compile_patterns

#: Parts of an input's name, or of its type, by which it says that its text is a place: `filename_prefix`, `savepath`.
#: `profile` and `multiplier` say no such thing.
_PLACE = re.compile(r"(?<!pro)file|folder|path|prefix|director(?:y|ies)|(?<![a-z])dirs?(?![a-z])|(?:out|sub|base)dirs?")
#: … unless it holds what is in the file, or one of a few words.
_NO_PLACE = re.compile(r"(?:.*_)?(?:content|contents|text)|.*(?:_type|_format|_mode|_method)")
#: Python takes any letter or sign before a colon for a drive of Windows.
_DRIVE = re.compile(r".:", re.DOTALL)
_PARTS = re.compile(r"[/\\]")

#: Parts of an input's name by which it says that its text is an address, also without a scheme.
_ADDRESS = re.compile(r"(?<![a-z])(?:ur[li]s?|hosts?|hostname|endpoint|webhook|server|proxy)(?![a-z])|base_?ur[li]")
#: Inputs whose text is words, in which an address is a word like any other.
_WORDS = re.compile(
    r"(?:.*_)?(?:text|prompt|positive|negative|caption|string|value|instruction|question|message|lyrics|tags|title|"
    r"description|notes?|style|words|expression|code|markdown)(?:_?[0-9a-z]{1,2})?"
    r"|(?:text|prompt|string|caption)_.*"
)
#: … but not those of node classes that load.
_LOADER = re.compile(r"(?<![a-z])(?:ur[li]|http|https|web|download|fetch|request)(?![a-z])", re.I)
_SCHEME = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2}")
#: A line that is an address as a whole.
_IS_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2}\S*|[/\\]{2}[^/\\\s]+[/\\]\S*|(?:https?|file):\S+", re.I)
#: FFmpeg takes these without slashes, and some of them with a list behind them.
_FFMPEG = re.compile(
    r"(?:https?|file|concatf?|crypto|pipe|fd|cache|async|tee|s?ftp|smb|rtmp\w*|rtsp|tcp|udp|tls|unix|gophers?|ip[fn]s|"
    r"hls|mms[ht]?|s?rtp|srt|httpproxy|bluray|dvd|data(?!:image/)):.*|subfile,.*|(?:crypto|hls)\+.*",
    re.I,
)

#: Nodes whose text can be known beforehand: the inputs that come out, put together as they stand.
_CONSTANTS = {
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "StringConcatenate": ("string_a", "delimiter", "string_b"),
    "StringConstant": ("string",),
    "easy string": ("value",),
}
#: … and those where one of them comes out.
_CHOICES = {"ComfySwitchNode": ("on_false", "on_true")}
_MAX_TEXTS = 64
_MAX_DEPTH = 32
#: Types of links that carry texts. (A FILE_3D has been found already, and VHS_FILENAMES are what a job has made.)
_TEXT_TYPES = frozenset({"", "STRING", "COMBO", "*"})
_PLACE_TYPE = re.compile(r"(?:.*_)?(?:PATH|FOLDER|DIRECTORY)S?", re.I)


#: Node classes that put inputs which they do not declare into the words of a command, and into ffmpeg's filters, which
#: can read and write any file.
_COMMANDS = frozenset({"VHS_VideoCombine"})
#: … but not those that it declares, and what the editor keeps there.
_NO_ARGUMENTS = frozenset(
    {"images", "frame_rate", "loop_count", "filename_prefix", "format", "pingpong", "save_output"}
    | {"audio", "meta_batch", "vae", "videopreview"}
)
_ARGUMENT = re.compile(r"(?:\w[\w.+-]*)?", re.ASCII)


class Confinement:
    """Checks the prompts of keys. Event loop."""

    def __init__(
        self,
        settings: PolicySettings,
        declaration: Callable[[str], Declared],
        file_inputs: Callable[[str], Mapping[str, Any]],
    ) -> None:
        """`declaration`, `file_inputs`: see Host."""
        added = [pattern for pattern in settings.keyed_deny_nodes if not pattern.startswith("!")]
        self._denied = compile_patterns([*KEYED_DENY_NODES, *added])
        self._spared = compile_patterns([pattern[1:] for pattern in settings.keyed_deny_nodes if pattern[:1] == "!"])
        self._hosts = compile_patterns(settings.fetch_hosts)
        self._declaration = declaration
        self._file_inputs = file_inputs

    def check(self, graph: Mapping[str, Any], client: Client) -> None:
        """Check a graph, whose nodes must be objects with a `class_type` and `inputs`.

        Raises:
            PolicyViolationError: it leads out of the client's reach; names the node and the input.
        """
        if client.owner == LOCAL.owner:
            return
        traced = _Texts(graph)
        for node_id, node in graph.items():
            kind = node["class_type"]
            title = (node.get("_meta") or {}).get("title")
            for text in (node_id, kind, title, *node["inputs"]):
                if isinstance(text, str) and _has_control(text):
                    raise _refuse(node_id, kind, "", text, "has a control character in its id, class, title or inputs")
            if self._denied is not None and self._denied.fullmatch(kind) and not self._is_spared(kind):
                raise _refuse(
                    node_id, kind, "class_type", kind, "is not for keys on this server", "policy.keyed_deny_nodes"
                )
            self._check_inputs(traced, node_id, node)

    def _is_spared(self, kind: str) -> bool:
        return self._spared is not None and self._spared.fullmatch(kind) is not None

    def _check_inputs(self, traced: _Texts, node_id: str, node: Mapping[str, Any]) -> None:
        kind = node["class_type"]
        loads = _is_loader(kind) if len(kind) <= _REMEMBERED_CHARS else _is_loader.__wrapped__(kind)
        for name, value in node["inputs"].items():
            if isinstance(value, (int, float)) or value is None:
                continue
            said = _read_name(name) if len(name) <= _REMEMBERED_CHARS else _read_name.__wrapped__(name)
            place, address = self._is_place(kind, name, said), said.address
            argument = kind in _COMMANDS and name not in _NO_ARGUMENTS
            words = not loads and not place and not address and said.words
            if is_link(value):
                if not (place or address or loads or argument) or not self._carries_text(kind, name):
                    continue
                texts = traced.find(value)
                if texts is None:
                    raise _refuse(
                        node_id, kind, name, None, f"takes {_show(name)} from a node whose text only the run can tell"
                    )
            else:
                texts = list(_list_texts(value))
            for text in texts:
                if place and (fault := find_fault(text)) is not None:
                    raise _refuse(node_id, kind, name, text, f"has an input {_show(name)} {fault}")
                if argument and _ARGUMENT.fullmatch(text) is None:
                    raise _refuse(
                        node_id, kind, name, text, f"has an input {_show(name)} that is more than one plain word"
                    )
                for found in _find_addresses(text, words, address):
                    if (fault := self._find_address_fault(found)) is not None:
                        raise _refuse(
                            node_id, kind, name, text, f"has an input {_show(name)} that {fault}", "policy.fetch_hosts"
                        )

    def _is_place(self, kind: str, name: str, said: _Said) -> bool:
        if said.no_place or name in self._file_inputs(kind):
            return False
        if said.place:
            return True
        return _PLACE.search(self._declaration(kind).inputs.get(name, "").lower()) is not None

    def _carries_text(self, kind: str, name: str) -> bool:
        """Whether a link into that input carries a text, as far as the class says."""
        declared = self._declaration(kind).inputs.get(name, "")
        return any(kind in _TEXT_TYPES or _PLACE_TYPE.fullmatch(kind) for kind in declared.split(","))

    def _find_address_fault(self, text: str) -> str | None:
        """Why a key's prompt may not name that address; None if it may."""
        try:
            url = read_url(text)
        except UrlError as error:
            return str(error)
        if url.address is not None and not is_public(url.address):
            return "names an address inside the server's network"
        if self._hosts is None or not self._hosts.fullmatch(url.host):
            return f"names the host {url.host}, which is not among those that this server loads from"
        return None


def find_fault(text: str) -> str | None:
    """Why a text may not name a place to write to or read from; None if it may."""
    if _has_control(text):
        return "with a control character"
    # macOS ignores invisible characters; it and Windows take some letters for others.
    visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    for seen in (text, unicodedata.normalize("NFKC", visible)):
        parts = _PARTS.split(seen)
        # Windows drops dots and spaces at the end of a name.
        if any(part.strip(" .") == "" and part.count(".") > 1 for part in parts):
            return "that leads upwards"
        if any(_DRIVE.match(part) for part in parts):
            return "that names a drive"
        if (parts[0].strip() == "" and len(parts) > 1) or parts[0].lstrip().startswith("~"):
            return "that begins outside the owner's folder"
        if len(parts) > DEEPEST:
            return f"with more than {DEEPEST} parts"
    return None


#: Control characters, line separators, and what turns the direction of writing. (An emoji may have a joiner in it.)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _has_control(text: str) -> bool:
    """Whether a text has a character that terminals, logs and file systems act on."""
    return _CONTROL.search(text) is not None


def _spread(name: str) -> str:
    """Write a name in lower case, with its words apart: `savePath` is `save_path`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace(" ", "_").replace("-", "_").lower()


class _Said(NamedTuple):
    """What the name of an input says of its text."""

    place: bool
    no_place: bool
    address: bool
    words: bool


#: Names come from clients: longer ones are not remembered.
_REMEMBERED_CHARS = 100


@functools.lru_cache(maxsize=2048)
def _is_loader(kind: str) -> bool:
    return _LOADER.search(_spread(kind)) is not None


@functools.lru_cache(maxsize=2048)
def _read_name(name: str) -> _Said:
    leaf = _spread(name.rpartition(".")[2])
    return _Said(
        _PLACE.search(leaf) is not None,
        _NO_PLACE.fullmatch(leaf) is not None,
        _ADDRESS.search(leaf) is not None,
        _WORDS.fullmatch(leaf) is not None,
    )


def _list_texts(value: Any) -> Iterator[str]:
    """Every text of an input's value, however deeply nested, keys included."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item


def _find_addresses(text: str, words: bool, address: bool) -> Iterator[str]:
    """The addresses in a text: lines that are one as a whole, and in inputs that are not words any others too."""
    for line in text.splitlines():
        line = line.strip().strip("\"'<>()[]{},;")
        if not line or (line[:11].lower() == "data:image/" and "," in line):
            continue
        if _IS_ADDRESS.fullmatch(line):
            yield line
        elif words:
            continue
        elif _SCHEME.search(line):
            yield from (part for part in re.split(r"[\s\"'<>,;|]+", line) if _SCHEME.search(part))
        elif _FFMPEG.fullmatch(line):
            yield line
        elif address and (line.isdigit() or any(letter in line for letter in ".:/\\")):
            yield f"http://{line}"


class _Texts:
    """The texts that can come out of the nodes of one graph. Looks at each node once."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph = graph
        self._known: dict[str, list[str] | None] = {}

    def find(self, link: list[Any], depth: int = _MAX_DEPTH) -> list[str] | None:
        """Every text that can come out of a link; None where only the run can tell."""
        node_id = link[0]
        if node_id not in self._known:
            self._known[node_id] = None  # in a circle
            self._known[node_id] = self._find(node_id, depth) if depth else None
        return self._known[node_id]

    def _find(self, node_id: str, depth: int) -> list[str] | None:
        node = self._graph.get(node_id, {"class_type": "", "inputs": {}})
        kind, inputs = node["class_type"], node["inputs"]
        parts: list[list[str]] = []
        for name in _CONSTANTS.get(kind) or _CHOICES.get(kind) or ():
            value = inputs.get(name, "")
            texts = self.find(value, depth - 1) if is_link(value) else [value] if isinstance(value, str) else None
            if texts is None:
                return None
            parts.append(texts)
        if kind in _CHOICES:
            found = list(itertools.chain(*parts))
        elif parts and math.prod(map(len, parts)) <= _MAX_TEXTS:
            found = ["".join(chosen) for chosen in itertools.product(*parts)]
        else:
            return None
        return found if len(found) <= _MAX_TEXTS and max(map(len, found)) <= _LONGEST else None


#: Longer texts are no names. Put together again and again, they would outgrow the memory.
_LONGEST = 65536


def _refuse(
    node_id: str, kind: str, name: str, value: str | None, complaint: str, setting: str = ""
) -> PolicyViolationError:
    return PolicyViolationError(
        f"{_show(kind)} (node {_show(node_id)}) {complaint}.",
        details=setting or "The prompts of a key name places in its own folders, without `..`, drives and roots.",
        extra_info={
            "node_id": _show(node_id),
            "class_type": _show(kind),
            "input": _show(name),
            "value": None if value is None else _show(value, 200),
        },
    )


def _show(text: str, length: int = 100) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:length])
