"""What the commands share: where our folder lies, and ages as people write them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_age(text: str) -> float:
    """Parse `90m`, `24h`, `7d` or seconds; return seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"an age is a number followed by s, m, h or d, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def user_folder(package: Path) -> Path | None:
    """`<ComfyUI>/user`, where the package lies in `<ComfyUI>/custom_nodes`."""
    return package.parent.parent / "user" if package.parent.name == "custom_nodes" else None


def add_user_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", type=Path, metavar="DIR",
        help="ComfyUI's user folder (default: that of the ComfyUI that this package lies in)",
    )  # fmt: skip


def find_guard_folder(arguments: argparse.Namespace, package: Path, say: Callable[[str], None]) -> Path | None:
    """Our folder in the user folder that `--user` names, or that of the package's ComfyUI. None: it says why not."""
    user = arguments.user or user_folder(package)
    try:
        is_there = user is not None and user.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    if user is None or not is_there:
        say(f"{user or 'the user folder'} does not exist: start ComfyUI once, or name its user folder with --user DIR")
        return None
    return guard_folder(user)


def guard_folder(user: Path) -> Path:
    """Our folder below ComfyUI's user folder; none of ComfyUI's routes serves it."""
    return user / "__guarded"
