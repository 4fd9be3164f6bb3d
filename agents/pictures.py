"""Pictures in arguments: the bytes themselves as text, or a path on the machine that the agent runs on."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..guard.results.containers import sniff
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
        if path.stat().st_size > _MAX_BYTES:
            raise _refuse(field, f"names a file of more than {_MAX_BYTES} bytes")
        content = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise _refuse(field, f"cannot be read: {str(error)[:200]}") from None
    # Whatever an agent is talked into, it sends no keys and no letters.
    kind = sniff(content[:32])
    if kind is None:
        raise _refuse(field, "names a file that is no picture, film or sound")
    return File(field, content, kind.mime)


def _refuse(field: str, why: str) -> Refused:
    return Refused("bad_image", f"{field} {why}.", extra_info={"field": field}, refund=True)
