"""The job database on the command line: make its file as small as what is in it, while no server runs."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from ..cli import guard_folder, user_folder
from ..settings import SettingsError, load
from .choice import is_postgres
from .compact import compact
from .disk import StoreTooNewError, database_path
from .file_lock import LockedError
from .held_file import HeldFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", type=Path, metavar="DIR", help="ComfyUI's user folder, with the settings and the job database; by "
        "default that of the ComfyUI that this package lies in"
    )  # fmt: skip


def run(
    arguments: argparse.Namespace, environment: Mapping[str, str], package: Path, say: Callable[[str], None]
) -> int:
    """Copy the database without its free pages. Returns the exit status: 0, or 2 where it is as it was."""
    user = arguments.user or user_folder(package)
    if user is None:
        say("this package lies in no ComfyUI: name its user folder with --user")
        return 2
    own = guard_folder(user)
    try:
        url = load(own / "guarded.toml", environment).store.url
        if is_postgres(url):
            say("PostgreSQL looks after its tables itself; to give space back to its disk, use its VACUUM FULL")
            return 2
        path = database_path(url, own)
    except SettingsError as error:
        say(f"the settings cannot be used: {error}")
        return 2
    if not path.is_file():
        say(f"there is no job database {path}")
        return 2
    before = path.stat().st_size
    file = HeldFile(path, "power_cut")
    try:
        file.open(is_damaged=False).close()
        compact(path)
    except LockedError:
        say("a server runs on this user folder; stop it first")
        return 2
    except (StoreTooNewError, sqlite3.Error, OSError) as error:
        say(f"{path} is as it was: {error}")
        return 2
    finally:
        file.release()
    say(f"{path} has {path.stat().st_size} bytes now instead of {before}")
    return 0
