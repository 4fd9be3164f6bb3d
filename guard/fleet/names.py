"""The name of this box, which its next process has again."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from ...own_files import MalformedFileError, read_text
from .. import private_files

FILE = "box.id"
_NAME = re.compile(r"box-[0-9a-f]{8}")


def read_or_make_name(own: Path) -> str:
    """The name that lies in our own folder; made at the first start. Raises OSError where it cannot be read."""
    path = own / FILE
    try:
        name = read_text(path).strip()
    except (FileNotFoundError, MalformedFileError):
        name = ""
    return name if _NAME.fullmatch(name) else rename(own)


def rename(own: Path) -> str:
    """Make a name, and keep it for the next process."""
    name = make_name()
    private_files.write_if_possible(own / FILE, name.encode())
    return name


def make_name() -> str:
    return f"box-{secrets.token_hex(4)}"
