"""Where the engine is: what `store.url` says of it, and how it is shown without the password."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ..settings import SettingsError, hide_password

PACKAGE = '"psycopg[binary]>=3.2,<4"'


@dataclass(frozen=True)
class Address:
    """A PostgreSQL database. `shown` is for people; only `conninfo` has the password."""

    conninfo: str = field(repr=False)
    shown: str
    passwords: tuple[str, ...] = field(repr=False)

    def hide(self, text: object) -> str:
        """The text in one line, without the password."""
        line = " ".join(str(text).split())
        for password in self.passwords:
            line = line.replace(password, "***")
        return line


def read_address(url: str) -> Address:
    """Read `store.url`. Raises SettingsError where it is none, or the package that it needs is missing."""
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        told = f"store.url: PostgreSQL needs the package psycopg, {_PIP} {PACKAGE}"
        command = f'store.url: PostgreSQL needs the package psycopg: "{sys.executable}" {_PIP} {PACKAGE}'
        raise SettingsError(f"{command} ({error})", told) from None
    try:
        parts: dict[str, Any] = conninfo_to_dict(url)
    except ProgrammingError:  # its words may quote the password
        raise SettingsError(
            f"store.url: {hide_password(url)!r} is no address of a PostgreSQL database, as in "
            "postgresql://user:password@host:5432/database",
            "store.url: it is no address of a PostgreSQL database",
        ) from None
    password = str(parts.get("password") or "")
    hidden = tuple({password, quote(password), quote(password, safe="")} - {""})
    return Address(url, hide_password(url), hidden)


_PIP = "-m pip install"
