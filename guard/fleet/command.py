"""`fleet list | forget`: the boxes of a fleet as its database has them, and one that never comes back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import add_user_argument, find_guard_folder
from ..errors import GuardError
from ..settings import SettingsError, load
from ..store import StoreUnusableError, open_once

if TYPE_CHECKING:
    from ..store.postgres_once import OnceStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="fleet_command", required=True)
    listing = commands.add_parser("list", help="every box, and the results that it alone has")
    forget = commands.add_parser(
        "forget", help="a box never comes back: nobody is told any more to wait for results that it alone has"
    )
    forget.add_argument("box", help="its name, as `list` and the page have it")
    for command in (listing, forget):
        add_user_argument(command)


def run(
    arguments: argparse.Namespace, environment: Mapping[str, str], package: Path, say: Callable[[str], None]
) -> int:
    """Run the command. Returns the exit status: 0, or 2 where nothing has changed."""
    own = find_guard_folder(arguments, package, say)
    if own is None:
        return 2
    try:
        settings = load(own / "guarded.toml", environment)
        if not settings.fleet.enabled:
            say("this server is in no fleet: fleet.enabled is not set")
            return 2
        once = open_once(settings.store.url)
        return _forget(once, arguments.box, say) if arguments.fleet_command == "forget" else _list(once, say)
    except (SettingsError, StoreUnusableError, GuardError) as error:
        say(str(error))
        return 2


def _list(once: OnceStore, say: Callable[[str], None]) -> int:
    for box, is_alive, held in once.list_boxes().result():
        state = "lives" if is_alive else "is not heard of"
        say(f"{box}  {state}" + (f", and alone has {held} results" if held else ""))
    return 0


def _forget(once: OnceStore, box: str, say: Callable[[str], None]) -> int:
    found = {name: (is_alive, held) for name, is_alive, held in once.list_boxes().result()}
    if box not in found:
        say(f"there is no box {box} that lives, or alone has results")
        return 2
    if found[box][0]:
        say(f"{box} lives; stop it first")
        return 2
    count = once.give_up(box).result()
    say(
        f"{count} results that {box} alone has are answered with 410 now, if it does not come back after all"
        if count
        else f"{box} has nothing that the others lack"
    )
    return 0
