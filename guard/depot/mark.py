"""Know a folder again: where its disk is not mounted, there may be another folder of that name, which is empty."""

from __future__ import annotations

import secrets
from pathlib import Path

from .. import private_files

#: In the folder, what it is called; and in our own folder, which one this box has used.
MARK = "guarded-depot"
KNOWN = "depot.id"


def check_mark(folder: Path, known: Path | None) -> None:
    """Raises OSError where the folder is not the one that this box has used; marks one that nobody has used."""
    there = _read(folder / MARK)
    expected = _read(known) if known is not None else ""
    if expected and there != expected:
        raise OSError(
            f"{folder} is not the folder that this server has used: its disk may not be mounted. Delete {known} if it "
            "is another one on purpose"
        )
    if known is None or expected:
        return
    if not there:
        there = secrets.token_hex(16)
        try:
            (folder / MARK).write_text(there)
        except OSError as error:
            raise OSError(f"{folder} cannot be written: {error.strerror}") from None
    private_files.write_if_possible(known, there.encode())


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
