"""Which page of a SQLite file holds what, and which rows lie on it. See https://sqlite.org/fileformat2.html."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096


@dataclass
class Pages:
    """Attributes:
    kinds: by page number: what it is ("header", "free", "interior", "leaf", "overflow", "index"), and whose.
    rows: by table and rowid: the leaf and the overflow pages that the row lies on.
    """

    data: bytes
    kinds: dict[int, tuple[str, str]] = field(default_factory=dict)
    rows: dict[tuple[str, int], frozenset[int]] = field(default_factory=dict)

    def of(self, kind: str, name: str | None = None) -> list[int]:
        return sorted(page for page, (a, b) in self.kinds.items() if a == kind and name in (None, b))

    def page(self, number: int) -> bytes:
        return self.data[(number - 1) * PAGE : number * PAGE]


def map_pages(path: Path) -> Pages:
    pages = Pages(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        schema = db.execute("SELECT name, type, sql, rootpage FROM sqlite_master WHERE rootpage > 0").fetchall()
    _walk(pages, "sqlite_master", 1)
    for name, kind, sql, root in schema:
        if kind == "table" and "WITHOUT ROWID" not in sql:
            _walk(pages, name, root)
        else:
            _walk_index(pages, name, root)
    trunk = _number(pages.data, 32)
    while trunk:
        pages.kinds[trunk] = ("free", "")
        page = pages.page(trunk)
        for place in range(_number(page, 4)):
            pages.kinds[_number(page, 8 + 4 * place)] = ("free", "")
        trunk = _number(page, 0)
    pages.kinds[1] = ("header", "")
    # What is left are overflow pages of index entries.
    for number in range(1, len(pages.data) // PAGE + 1):
        pages.kinds.setdefault(number, ("index", "?"))
    return pages


def _walk(pages: Pages, name: str, number: int) -> None:
    page = pages.page(number)
    start = 100 if number == 1 else 0
    is_leaf = page[start] == 13
    assert page[start] in (5, 13), (name, number, page[start])
    pages.kinds[number] = ("leaf" if is_leaf else "interior", name)
    for place in range(int.from_bytes(page[start + 3 : start + 5], "big")):
        slot = start + (8 if is_leaf else 12) + 2 * place
        at = int.from_bytes(page[slot : slot + 2], "big")
        if not is_leaf:
            _walk(pages, name, _number(page, at))
            continue
        size, at = _varint(page, at)
        rowid, at = _varint(page, at)
        pages.rows[name, rowid] = frozenset({number, *_overflow(pages, name, page, at, size)})
    if not is_leaf:
        _walk(pages, name, _number(page, start + 8))


def _walk_index(pages: Pages, name: str, number: int) -> None:
    page = pages.page(number)
    assert page[0] in (2, 10)
    pages.kinds[number] = ("index", name)
    if page[0] == 2:
        for place in range(int.from_bytes(page[3:5], "big")):
            _walk_index(pages, name, _number(page, int.from_bytes(page[12 + 2 * place : 14 + 2 * place], "big")))
        _walk_index(pages, name, _number(page, 8))


def _overflow(pages: Pages, name: str, page: bytes, at: int, size: int) -> list[int]:
    if size <= PAGE - 35:
        return []
    least = (PAGE - 12) * 32 // 255 - 23
    local = least + (size - least) % (PAGE - 4)
    following = _number(page, at + (local if local <= PAGE - 35 else least))
    chain = []
    while following:
        chain.append(following)
        pages.kinds[following] = ("overflow", name)
        following = _number(pages.page(following), 0)
    return chain


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(9):
        byte = data[at + place]
        if place == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    raise AssertionError
