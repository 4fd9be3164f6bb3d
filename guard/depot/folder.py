"""Write into a shared folder, and into no other one that stands in its place: the bare place of a disk, say."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .mark import MARK, read

#: Whether a folder can be held, so that what is done in it is done there whatever its name means meanwhile.
_CAN_HOLD = {os.open, os.unlink} <= os.supports_dir_fd and hasattr(os, "O_DIRECTORY")


def read_mark(folder: Path) -> str:
    """Its mark; empty where it has none, or is not there."""
    return read(folder / MARK)


def check_still(folder: Path, mark: str) -> None:
    """Raises OSError where the folder no longer has that mark; without one, all are right."""
    if mark and read_mark(folder) != mark:
        raise OSError(f"{folder} is not the folder that it was: its disk may not be mounted")


def write(folder: Path, mark: str, name: str, pieces: Iterable[bytes]) -> None:
    """Put a file into the folder with that mark, whole and on its disk, in place of one that has its name.

    Raises OSError, without a number, where the folder cannot be written, and what `pieces` raises.
    """
    with _errors_of(folder):
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if _CAN_HOLD else None

    def call(name: str) -> str:
        return name if at is not None else str(folder / name)

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags, 0o666, dir_fd=at)

    part = f"{name}#{secrets.randbits(40)}"
    try:
        with _errors_of(folder):
            if mark:
                with open(call(MARK), encoding="ascii", errors="replace", opener=opener) as marked:
                    if marked.read().strip() != mark:
                        raise OSError("it is another one, and its disk may not be mounted")
            file = open(call(part), "xb", opener=opener)  # noqa: SIM115
        try:
            with file:
                for piece in pieces:
                    with _errors_of(folder):
                        file.write(piece)
                with _errors_of(folder):
                    file.flush()
                    os.fsync(file.fileno())
            with _errors_of(folder):
                os.replace(call(part), call(name), src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            with suppress(OSError):
                os.unlink(call(part), dir_fd=at)
            raise
        with suppress(OSError):
            if at is not None:
                os.fsync(at)
    finally:
        if at is not None:
            os.close(at)


@contextmanager
def _errors_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not folder.is_dir():
            raise OSError(f"there is no folder {folder}") from None
        raise OSError(f"{folder} cannot be written: {error.strerror or error}") from None
