"""Look through texts that may name other files: drawings, scenes, meshes.

A search in C keeps all other threads waiting, and goes through a long run of blanks once for each of its places where a
pattern has room for two. So a text is read in blocks, and a run of blanks counts as one.
"""

from __future__ import annotations

import codecs
import html
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Any

from ..bounds import Bounds, count_values, shorten
from ..errors import GuardError

#: A search of a block takes a few milliseconds.
_BLOCK = 2**16
#: The next block begins with so much of the one before: nothing that is looked for is longer, …
_SHARED = 2**13
#: … and so much behind it decides whether it is meant.
_AHEAD = 64
#: What JSON a scene may be: one with a hundred thousand parts.
_SCENE = Bounds(values=500_000)
#: Of each text in a scene so much counts. Those that hold a mesh have megabytes.
_URI_BYTES = 1000
#: How it is known: by a key, however that is spelled.
_SCENE_WORDS = re.compile(r"asset\"|\\u")
#: It has so many bytes.
_SCENE_BYTES = 2**26

UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}

#: A name may have a prefix: `<svg:svg`. One that is longer is no name that anybody uses.
_PREFIX = r"(?:[\w.-]{1,128}:)?"
_LONG_NAME = r"<[\w.-]{129}"
_SVG = re.compile(rf"<{_PREFIX}svg[\s>/]|{_LONG_NAME}", re.I)
_SCENES = re.compile(rf"<{_PREFIX}(?:COLLADA|X3D|Scene)[\s>]|^#(?:VRML|X3D)", re.M)
_OUTSIDE = re.compile(
    r"""\b(?:url|href|source)\s*=?\s*["'](?!#|\s*["'])|<init_from>\s*(?:<ref>)?[^<]{0,4096}[./\\:]""", re.I
)
_KEYWORD = r"^(?:mtllib|map_\w{1,32}|bump|disp|decal|refl|norm|call|csh)[ \t]"
_LINE = re.compile(_KEYWORD, re.I | re.M)
_ELSEWHERE = re.compile(rf"{_KEYWORD}.*[/\\:]", re.I | re.M)
_MESH = re.compile(r"^(?:vn?|f|o|g|newmtl|K[ads]|mtllib)[ \t]", re.M)

_DTD = re.compile(
    r"<!DOCTYPE\s+svg\s+PUBLIC\s+([\"'])-//W3C//DTD SVG[^\"'>]*\1\s+([\"'])https?://www\.w3\.org/[^\"'>]*\2\s*>"
)
_ENCODING = re.compile(r"<\?xml[^>]{0,200}encoding\s*=\s*[\"']([^\"'>]{0,40})", re.I)
_READABLE = frozenset({"utf-8", "utf8", "utf-16", "us-ascii", "ascii", "iso-8859-1"})
_EMBEDDED = r"(?!\s*(?:#|data:image/(?:png|jpe?g|gif|webp)[;,]|[\"']))"
_SVG_FAULTS = (
    re.compile(rf"<!(?:DOCTYPE|ENTITY)|<\?xml-stylesheet|{_LONG_NAME}", re.I),
    re.compile(rf"<{_PREFIX}(?:script|foreignObject|iframe|embed|object|include|handler|listener)\b", re.I),
    re.compile(rf"[\s\"':](?:href|src|action|base)\s*=\s*[\"']{_EMBEDDED}", re.I),
    re.compile(rf"attributeName\s*=\s*[\"']\s*(?:[\w.-]{{129}}|{_PREFIX}(?:href|src|style))", re.I),
    re.compile(rf"\burl\(\s*(?:[\"']\s*)?{_EMBEDDED}|@import|image-set\(", re.I),
    re.compile(r"[\s\"']on\w{1,128}\s*=\s*[\"']", re.I),
)
#: CSS can spell anything in numbers.
_NUMBERS, _STYLE = re.compile(r"\\[0-9a-f]", re.I), re.compile("style", re.I)
#: So can XML, with any number of zeros before them. What may be the first half of such a letter is read with the next
#: block.
_LONG_LETTER = re.compile(r"&#[0-9a-fx]{32}", re.I)
_LETTER = 64

_BLANKS, _BREAKS = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+"), re.compile(r" \n[ \n]*|\n[ \n]+")


class _SpelledOutError(Exception):
    """Letters are written in numbers of absurd length."""


class _Text:
    """A text in a file. Blocks on the disk."""

    def __init__(self, handle: IO[bytes], encoding: str) -> None:
        self._handle = handle
        self._encoding = encoding

    def holds(self, pattern: re.Pattern[str]) -> bool:
        """Whether it has what the pattern means."""
        return any(_has(pattern, text, is_last) for text, is_last in self._read(False))

    def find_in_xml(self, *kinds: tuple[re.Pattern[str], ...]) -> list[bool]:
        """Of each kind, whether one of its patterns is in it, as XML reads it. Raises _SpelledOutError."""
        found = [False] * len(kinds)
        for text, is_last in self._read(True):
            for index, patterns in enumerate(kinds):
                found[index] = found[index] or any(_has(pattern, text, is_last) for pattern in patterns)
        return found

    def read_beginning(self) -> str:
        """What comes behind the blanks with which it begins."""
        return next((text.lstrip() for text, _is_last in self._read(False) if not text.isspace()), "")

    def _read(self, unescape: bool) -> Iterator[tuple[str, bool]]:
        """The text in blocks of which each begins with the end of the one before, and whether it is the last."""
        self._handle.seek(0)
        decoder = codecs.getincrementaldecoder(self._encoding)("replace")
        waiting, shown, is_first, is_last = "", "", True, False
        while not is_last:
            data = self._handle.read(_BLOCK)
            is_last = not data
            waiting += decoder.decode(data, is_last)
            if is_first:
                waiting, is_first = waiting.lstrip("\ufeff"), False
                waiting = _DTD.sub("", waiting, count=1) if unescape else waiting
            if unescape and _LONG_LETTER.search(waiting):
                raise _SpelledOutError
            cut = waiting.rfind("&", max(len(waiting) - _LETTER, 0)) if unescape and not is_last else -1
            piece, waiting = (waiting[:cut], waiting[cut:]) if cut >= 0 else (waiting, "")
            shown += html.unescape(piece) if unescape else piece
            shown = _BREAKS.sub("\n", _BLANKS.sub(" ", shown.replace("\r", "\n")))
            yield shown, is_last
            shown = _keep(shown)


def _has(pattern: re.Pattern[str], text: str, is_last: bool) -> bool:
    found = pattern.search(text)
    return found is not None and (is_last or found.end() < len(text) - _AHEAD)


def _keep(text: str) -> str:
    """The end of a block, behind the word with which its first line begins, or behind what begins no line."""
    start = len(text) - _SHARED
    if start <= 0:
        return text
    word = _LINE.match(text, text.rfind("\n", 0, start) + 1)
    return (word.group() if word is not None else "\0") + text[start:]


def find_text_fault(head: bytes, handle: IO[bytes]) -> str | None:
    """What is wrong with a text that begins with `head`: a drawing with links, a scene with outside files."""
    encoding = next((encoding for order, encoding in UTF16.items() if head.startswith(order)), "utf-8")
    if encoding == "utf-8" and b"\0" in head[:4096]:
        return None
    text = _Text(handle, encoding)
    begin = text.read_beginning()
    if begin.startswith("{"):
        if not text.holds(_SCENE_WORDS):
            return None
        if os.fstat(handle.fileno()).st_size > _SCENE_BYTES:
            return "is too large a scene"
        handle.seek(0)
        raw = handle.read()
        return find_scene_fault(raw if encoding == "utf-8" else raw.decode(encoding, "replace").encode())
    if text.holds(_SVG):
        return _find_svg_fault(text, begin)
    if begin.startswith("#usda"):
        return "refers to other files" if text.holds(re.compile("@")) else None
    if text.holds(_SCENES):
        return "refers to other files" if text.holds(_OUTSIDE) else None
    # An OBJ may name the file of its materials beside it, as usual: that stays with its owner.
    return "refers to files elsewhere" if text.holds(_ELSEWHERE) and text.holds(_MESH) else None


def find_scene_fault(raw: bytes | None) -> str | None:
    """What is wrong with a glTF, which may keep its buffers and pictures in files of their own; other JSON is fine."""
    if raw is None:
        return "has no scene at its beginning"
    outside: list[Any] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Each of them, where there are several: readers differ on which of two equal keys counts.
        outside.extend(
            value
            for name, value in pairs
            if name == "uri" and isinstance(value, str) and not value.lower().startswith("data:")
        )
        return dict(pairs)

    try:
        count_values(raw, _SCENE, "The scene")
    except GuardError:
        return "holds more than can be looked at"
    try:
        short = shorten(raw.removeprefix(b"\xef\xbb\xbf"), _URI_BYTES).decode("utf-8", "replace")
        scene = json.loads(short, object_pairs_hook=note)
    except (ValueError, RecursionError):
        return None
    return "refers to other files" if isinstance(scene, dict) and "asset" in scene and outside else None


def _find_svg_fault(text: _Text, begin: str) -> str | None:
    """A drawing may name pictures, styles and scripts; those inside the file itself are taken."""
    declared = _ENCODING.search(begin[:1000])
    if declared is not None and declared[1].lower() not in _READABLE:
        return "is in an encoding that is not read here"
    try:
        has_numbers, has_style, has_fault = text.find_in_xml((_NUMBERS,), (_STYLE,), _SVG_FAULTS)
    except _SpelledOutError:
        return "spells its letters in long numbers"
    if has_numbers and has_style:
        return "holds styles that are written in numbers"
    return "refers to other files or addresses, or holds a script" if has_fault else None
