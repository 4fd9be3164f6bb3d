"""Read the files beside a server that people or the server itself have written: settings, keys, templates, notes.

Whatever lies there, reading it ends soon, and the error names the file, and the line where that is known. It needs
nothing but Python, since anything else may be what is missing.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

#: No file that is read whole is larger.
MOST_BYTES = 16 * 2**20
#: TOML is read by Python alone, and takes its time.
MOST_TOML_BYTES = 2**20
#: Neither settings nor graphs are nested deeper.
DEEPEST = 100
#: Whole numbers have so many bits at most.
_BITS = 64
_DIGITS = re.compile(r"\d{400}")

#: What a dotted name in TOML is made of, and anything that ends one.
_NAMES = re.compile(r"""[\w-]+|"[^"\n]*"|'[^'\n]*'|[^ \t]""")

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FileError(Exception):
    """A file that cannot be used. The message names it, without its folder.

    Attributes:
        path: the file; `reason`: what is wrong with it; `line`: where, from 1; 0: not in a line.
    """

    def __init__(self, path: Path, reason: str, line: int = 0) -> None:
        self.path, self.reason, self.line = path, reason, line
        Exception.__init__(self, path, reason, line)  # OSError would read something else into these

    def __str__(self) -> str:
        name = _shorten(self.path.name or str(self.path))
        return f"{name}, line {self.line}: {self.reason}" if self.line else f"{name} {self.reason}"


class UnreadableFileError(FileError, OSError):
    """It is there, and is no file, too large, or may not be read."""


class MalformedFileError(FileError, ValueError):
    """It does not hold what it should."""


def find_kind(path: Path) -> str | None:
    """What lies there that is no file, in two words; None where there is a file, or nothing. Raises OSError."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else None
    return _name_kind(mode)


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file. Waits for nobody who might write into it.

    Raises FileNotFoundError where nothing lies there, and else UnreadableFileError.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        if path.is_symlink():
            raise UnreadableFileError(path, "cannot be read: it is a link to nothing") from None
        raise
    except (OSError, ValueError) as error:
        raise UnreadableFileError(path, f"cannot be read: {_explain(path, error)}") from None
    try:
        with os.fdopen(handle, "rb") as file:
            if (kind := _name_kind(os.fstat(handle).st_mode)) is not None:
                raise UnreadableFileError(path, f"cannot be read: it is {kind}, not a file")
            content = file.read(most_bytes + 1)
    except UnreadableFileError:
        raise
    except OSError as error:
        raise UnreadableFileError(path, f"cannot be read: {_explain(path, error)}") from None
    if len(content) > most_bytes:
        raise UnreadableFileError(path, f"cannot be read: it has over {most_bytes} bytes")
    return content


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The same as text, without a byte-order mark. Raises MalformedFileError too, where it is not UTF-8."""
    content = read_bytes(path, most_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MalformedFileError(path, "it is not UTF-8", line) from None


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The same as JSON that everything else can take: within bounds, and of text that is text."""
    return parse_json(path, read_text(path, most_bytes))


def parse_json(path: Path, text: str) -> Any:
    """Read the text of that file as JSON. Raises MalformedFileError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedFileError(path, f"it is not JSON: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError) as error:
        _refuse(path, text, "JSON", error)
    _check(path, text, value, is_json=True)
    return value


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The same as TOML, and its text."""
    text = read_text(path, MOST_TOML_BYTES)
    return parse_toml(path, text), text


def parse_toml(path: Path, text: str, *, any_integers: bool = False) -> dict[str, Any]:
    """Read the text of that file as TOML. Raises MalformedFileError.

    Args:
        any_integers: who asks looks himself for those that are too large.
    """
    if line := _find_long_name(text):  # whose reader takes the square of its parts
        raise MalformedFileError(path, "it is nested too deep", line)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MalformedFileError(
            path, f"it is not TOML: {_shorten(str(error))}", _find_told_line(text, error)
        ) from None
    except (ValueError, RecursionError, OverflowError) as error:
        _refuse(path, text, "TOML", error)
    _check(path, text, values, is_json=False, any_integers=any_integers)
    return values


def _find_long_name(text: str) -> int:
    """The line of a name with too many parts (`a.b.c`); 0: there is none."""
    parts = 0
    for found in _NAMES.finditer(text):
        token = found[0]
        if token == ".":
            parts += 1
            if parts > DEEPEST:
                return _count_lines(text, found.start())
        elif token[0] not in "\"'" and not (token[0].isalnum() or token[0] in "_-"):
            parts = 0
    return 0


def _refuse(path: Path, text: str, language: str, error: Exception) -> NoReturn:
    if isinstance(error, RecursionError):
        raise MalformedFileError(path, "it is nested too deep", _find_depth(text)) from None
    if (found := _DIGITS.search(text)) is not None:
        raise MalformedFileError(path, "a number has too many digits", _count_lines(text, found.start())) from None
    raise MalformedFileError(path, f"it is not {language}: {_shorten(str(error))}") from None


def _check(path: Path, text: str, value: Any, *, is_json: bool, any_integers: bool = False) -> None:
    """Refuse what no reader of the values could bear. TOML has infinity: each setting says whether it takes it."""
    level = [value]
    for _ in range(DEEPEST):
        following: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                following += each.keys()
                following += each.values()
            elif isinstance(each, list):
                following += each
            elif isinstance(each, str):
                _check_text(path, text, each)
            elif isinstance(each, int) and each.bit_length() > _BITS and not any_integers:
                found = _DIGITS.search(text)
                line = _count_lines(text, found.start()) if found is not None else 0
                raise MalformedFileError(path, "it has a number that is too large", line)
            elif is_json and isinstance(each, float) and not math.isfinite(each):
                raise MalformedFileError(path, "it has a number that is not finite")
        if not following:
            return
        level = following
    raise MalformedFileError(path, "it is nested too deep", _find_depth(text))


def _check_text(path: Path, text: str, value: str) -> None:
    if value.isascii():
        if "\0" not in value:
            return
        found = "\\u0000"
    else:
        try:
            value.encode()
        except UnicodeEncodeError:
            found = "\\ud"
        else:
            if "\0" not in value:
                return
            found = "\\u0000"
    at = text.lower().find(found)
    raise MalformedFileError(path, "it has a character that is none", _count_lines(text, at) if at >= 0 else 0)


def _find_depth(text: str) -> int:
    """The line in which brackets are nested too deep; 0: not found."""
    depth = 0
    for found in re.finditer(r"[\[{\]}\n]", text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth >= DEEPEST:
            return _count_lines(text, found.start())
    return 0


def _find_told_line(text: str, error: Exception) -> int:
    found = re.search(r"at line (\d+)", str(error))
    if found is None and "end of document" in str(error):
        return _count_lines(text, len(text.rstrip()))
    return int(found[1]) if found is not None else 0


def _count_lines(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _name_kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "something else")


def _explain(path: Path, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return "its name has a character that is none"
    try:
        # Windows opens no folder, and nobody opens a socket.
        kind = _name_kind(os.stat(path).st_mode)
    except OSError:
        kind = None
    return f"it is {kind}, not a file" if kind is not None else error.strerror or type(error).__name__


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
