"""Know a folder again: where its disk is not mounted, there may be another folder of that name, which is empty."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from .. import private_files

#: In the folder, what it is called; and in our own folder, which one this box has used.
MARK = "guarded-depot"
KNOWN = "depot.id"

#: Tells the boxes of a fleet which mark the folder of that path has ('' for none), and returns the one that they go by.
Agree = Callable[[str, str], str]


def check_mark(folder: Path, known: Path | None, agree: Agree | None = None) -> None:
    """Raises OSError where the folder is not the one that this box has used, or its fleet; marks one that nobody has.

    Raises what `agree` does.
    """
    there = read(folder / MARK)
    expected = read(known) if known is not None else ""
    if expected and there != expected:
        raise OSError(
            f"{folder} is not the folder that this server has used: its disk may not be mounted. Delete {known} if it "
            "is another one on purpose"
        )
    if agree is not None:
        _compare(folder, there, agree(str(folder), there))
    if known is None or expected:
        return
    if not there:
        there = _make(folder)
        if agree is not None:
            _compare(folder, there, agree(str(folder), there))
    private_files.write_if_possible(known, there.encode())


def _make(folder: Path) -> str:
    try:
        with open(folder / MARK, "x", encoding="ascii") as file:
            file.write(made := secrets.token_hex(16))
        return made
    except FileExistsError:
        return read(folder / MARK)  # another box was faster
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror}") from None


def _compare(folder: Path, there: str, agreed: str) -> None:
    if agreed and there != agreed:
        raise OSError(
            f"{folder} is not the folder that the other servers use: its disk may not be mounted. Write {agreed} into "
            f"{folder / MARK} if it is in the place of that one on purpose"
        )


def read(path: Path) -> str:
    """What is in a file of a mark; empty where there is none."""
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
