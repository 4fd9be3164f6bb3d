"""The texts that the editor changes as it sends them: choices and comments in prompts, patterns in file names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

#: Nodes whose `filename_prefix` may hold patterns such as `%date:yyyy-MM-dd%` and `%KSampler.seed%`.
SAVERS = frozenset(
    {"SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio",
     "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat",
     "SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"}
)  # fmt: skip

_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//.*")
_TOKEN = re.compile(r"\\.|[{}|]|[^\\{}|]+|\\", re.DOTALL)
_PATTERN = re.compile(r"%([^%]+)%")
_DATE = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
_ESCAPED = re.compile(r"\\([{}|])")


def choose(text: str, pick: random.Random) -> str:
    """One of the choices of each `{a|b}`, nested ones included; without comments.

    Linear in the text, however deep the choices nest.
    """
    if "{" not in text and "/" not in text and "\\" not in text:
        return text
    # Each open block: its choices so far, each a list of texts and of lists like itself.
    blocks: list[list[list[Any]]] = [[[]]]

    def close() -> None:
        chosen = pick.choice(blocks.pop())
        blocks[-1][-1].append(chosen)

    for token in _TOKEN.findall(_COMMENT.sub("", text)):
        if token == "{":
            blocks.append([[]])
        elif token == "}" and len(blocks) > 1:
            close()
        elif token == "|" and len(blocks) > 1:
            blocks[-1].append([])
        else:
            blocks[-1][-1].append(token)
    while len(blocks) > 1:  # a block that is not closed ends with the text
        close()
    return _ESCAPED.sub(r"\1", "".join(_flatten(blocks[0][0])))


def _flatten(nested: list[Any]) -> Iterator[str]:
    waiting = [iter(nested)]
    while waiting:
        item = next(waiting[-1], None)
        if item is None:
            waiting.pop()
        elif isinstance(item, list):
            waiting.append(iter(item))
        else:
            yield item


def replace(text: str, find: Callable[[str, str], Any], now: datetime) -> str:
    """Fill in the patterns of a file name; `find(node, widget)` raises KeyError where there is none."""

    def fill(match: re.Match[str]) -> str:
        inside = match[1]
        node, dot, widget = inside.partition(".")
        if not dot or "." in widget:
            return format_date(node[5:], now) if node.startswith("date:") else match[0]
        try:
            return _UNSAFE.sub("_", spell(find(node, widget)))
        except KeyError:
            return match[0]

    return _PATTERN.sub(fill, text)


def format_date(pattern: str, now: datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def fill(match: re.Match[str]) -> str:
        text = match[0]
        if text == "yyyy":
            return str(now.year)
        if text == "yy":
            return str(now.year)[2:]
        return str(parts[text[0]]).rjust(len(text), "0") if text[0] in parts else text

    return _DATE.sub(fill, pattern)


def spell(value: Any) -> str:
    """A value as JavaScript puts it into a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    if isinstance(value, Mapping):
        return "[object Object]"
    if isinstance(value, list):
        return ",".join(spell(each) for each in value)
    return str(value)
