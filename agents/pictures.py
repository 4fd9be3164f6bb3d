"""Pictures in arguments: the bytes themselves as text, or a path on the machine that the agent runs on."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..guard.results.containers import BrokenFileError, sniff
from .api import File, Refused

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*?;base64,", re.ASCII)
#: A file's name has no more characters; what is longer is a picture.
_NAME_LENGTH = 255
_URLS = ("https:", "http:")
_MAX_BYTES = 2**27


def read_picture(field: str, value: str, *, reads_paths: bool) -> File | None:
    """The file that an argument holds or names; None where the server has to find it. Blocks.

    Raises:
        Refused: `bad_image`: it is neither.
    """
    if match := _DATA.match(value):
        return _decode(field, value[match.end() :], match[1])
    if value.startswith("data:"):
        raise _refuse(field, "is a data: URL without base64")
    if len(value) > _NAME_LENGTH and not value.startswith(_URLS) and not (reads_paths and _is_path(value)):
        return _decode(field, value, None)
    if reads_paths and not value.startswith(_URLS):
        return _read_path(field, value)
    return None


def _decode(field: str, text: str, mime: str | None) -> File:
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _refuse(field, "is not base64") from None
    if not content:
        raise _refuse(field, "holds no picture")
    kind = sniff(content[:32])
    return File(field, content, kind.mime if kind else mime or "application/octet-stream")


def _is_path(value: str) -> bool:
    return value.startswith(("file:", "/", "~")) or bool(re.match(r"[A-Za-z]:[\\/]", value))


def _read_path(field: str, value: str) -> File | None:
    """The picture at a path; None where there is no such file, and the path is no whole one: it may be a name."""
    path = Path(url2pathname(urlsplit(value).path) if value.startswith("file:") else value)
    try:
        path = path.expanduser()
        if not path.is_file():
            if _is_path(value):
                raise _refuse(field, f"names {value[:200]}, and there is no such file on this machine")
            return None
        with _open(path) as file:
            return _read_whole(field, file)
    except (OSError, ValueError, RuntimeError) as error:
        raise _refuse(field, f"cannot be read: {str(error)[:200]}") from None


def _open(path: Path) -> BinaryIO:
    """Open the file without waiting for a writer or a device. Raises OSError."""
    return open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")


def _read_whole(field: str, file: BinaryIO) -> File:
    """A picture, film or sound, whole by its own structure. Whatever an agent is talked into, it sends no keys and no
    letters; whether it is a picture that can be used is the server's to say. Raises OSError."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise _refuse(field, "names what is no file")
    if found.st_size > _MAX_BYTES:
        raise _refuse(field, f"names a file of more than {_MAX_BYTES} bytes")
    # The kernel's own files say that they are empty; to read one may take for ever, or take what others wait for.
    kind = sniff(file.read(32)) if found.st_size else None
    if kind is None:
        raise _refuse(field, "names a file that is no picture, film or sound")
    try:
        kind.check_whole(file, found.st_size)
    except BrokenFileError as error:
        raise _refuse(field, f"names a file that is not whole: {error}") from None
    file.seek(0)
    content = file.read(found.st_size)
    if _is_text(content[4:]):  # some sounds have no structure to be judged by
        raise _refuse(field, "names a text")
    return File(field, content, kind.mime)


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode())
    except UnicodeDecodeError:
        return False


def _refuse(field: str, why: str) -> Refused:
    return Refused("bad_image", f"{field} {why}.", extra_info={"field": field}, refund=True)
