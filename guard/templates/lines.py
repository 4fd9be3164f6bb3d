"""Find the line that a fault of a manifest, or of a graph, is about."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

#: Keys and numbers that lead to a value of the manifest.
Place = tuple[str | int, ...]


def find_line(text: str, place: Sequence[str | int]) -> int:
    """The line, from 1 on, of a place in the parsed text (`("models", 1, "file")`); 0 where it cannot be told.

    Where the value itself is not found, that of the table around it.
    """
    lines = text.splitlines()
    names = [part for part in place if isinstance(part, str)]
    number = next((part for part in place if isinstance(part, int)), 0)
    if not names:
        return 0
    for depth in range(len(names), 0, -1):
        if (header := _find_header(lines, names[:depth], number)) is None:
            continue
        rest = names[depth : depth + 1]
        return (_find_key(lines, header + 1, rest[0]) if rest else 0) or header + 1
    return _find_key(lines, 0, names[0])


def _find_header(lines: Sequence[str], names: Sequence[str], number: int) -> int | None:
    """The index of the header of a table, or of the `number`-th of an array of tables, or of a table within that."""
    found = _list_headers(lines, names)
    if not found:
        return None
    if len(names) > 1 and (around := [index for index, mark in _list_headers(lines, names[:1]) if mark == "[["]):
        begin, end = (*around, len(lines), len(lines))[number : number + 2] if number < len(around) else (0, len(lines))
        return next((index for index, _ in found if begin < index < end), None)
    return found[min(number, len(found) - 1) if found[0][1] == "[[" else 0][0]


def _list_headers(lines: Sequence[str], names: Sequence[str]) -> list[tuple[int, str]]:
    """(index, its opening brackets) of each header of that name."""
    wanted = re.compile(r"\s*(\[\[?)\s*" + r"\s*\.\s*".join(rf'"?{re.escape(name)}"?' for name in names) + r"\s*\]")
    return [(index, match[1]) for index, line in enumerate(lines) if (match := wanted.match(line))]


def _find_key(lines: Sequence[str], begin: int, key: str) -> int:
    wanted = re.compile(rf'\s*"?{re.escape(key)}"?\s*[.=]')
    for index in range(begin, len(lines)):
        if lines[index].lstrip().startswith("["):
            return 0
        if wanted.match(lines[index]):
            return index + 1
    return 0


def find_node_line(text: str, node_id: str) -> int:
    """The line of a graph's text on which a node begins; 1 where it cannot be told."""
    for written in (json.dumps(node_id), json.dumps(node_id, ensure_ascii=False)):
        if (found := re.search(re.escape(written) + r"\s*:", text)) is not None:
            return text.count("\n", 0, found.start()) + 1
    return 1


_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


def find_deep_line(text: str, most: int) -> int:
    """The line on which JSON is first nested more than so deep; 1 where it is not."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        mark = found.group()
        depth += (mark in "[{") - (mark in "]}")
        if depth > most:
            return text.count("\n", 0, found.start()) + 1
    return 1
