"""Links that sign a browser in as `local`: made on the command line, good for one use and a few minutes.

A link is a file of our folder whose name is the token's hash, so whoever may write there may make one, as with keys.
To use a link is to delete that file: it works once, whatever crashes or restarts. In a fleet it is a row of the
database, where the command knows of that, and works once on any of the boxes.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from ...own_files import read_bytes
from .. import private_files
from ..cli import add_user_argument, find_guard_folder
from ..clock import Clock
from ..settings import SettingsError
from ..store import StoreUnusableError
from .shared_keys import find_fleet

log = logging.getLogger("guarded.access")

FOLDER = "sign_in"
GOOD_FOR_S = 600

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def make(own: Path, now_ms: int) -> str:
    """Make the token of a link. Raises OSError."""
    for old in list((own / FOLDER).glob("*")):
        if not _is_good(old, now_ms):
            old.unlink(missing_ok=True)
    token = secrets.token_urlsafe(32)
    private_files.write(_find_file(own, token), str(now_ms + GOOD_FOR_S * 1000).encode())
    return token


def use(own: Path, token: str, now_ms: int) -> bool:
    """Use a link up, and say whether it was good. Blocks; any thread."""
    if not is_token(token):
        return False
    file = _find_file(own, token)
    is_good = _is_good(file, now_ms)
    try:
        file.unlink()
    except OSError as error:
        if is_good and not isinstance(error, FileNotFoundError):  # else another request was quicker
            log.error("a link that signs in cannot be used up, and so does not count: %s", error)
        return False
    return is_good


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _find_file(own: Path, token: str) -> Path:
    return own / FOLDER / digest(token)


def _is_good(file: Path, now_ms: int) -> bool:
    try:
        ends_ms = int(read_bytes(file, 100))
    except (OSError, ValueError):
        return False
    return now_ms < ends_ms <= now_ms + 2 * GOOD_FOR_S * 1000  # a clock that was set back makes no link eternal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="where your browser reaches the server, such as https://gpu.example.org")
    add_user_argument(parser)


def run(
    arguments: argparse.Namespace, package: Path, find_address: Callable[[Path], str], say: Callable[[str], None]
) -> int:
    """Run the command. Returns the exit status: 0, or 2 where it failed."""
    own = find_guard_folder(arguments, package, say)
    if own is None:
        return 2
    try:
        fleet = find_fleet(own)
        if fleet is None:
            token = make(own, Clock().now_ms())
        else:
            token = secrets.token_urlsafe(32)
            fleet.put_sign_in(digest(token), GOOD_FOR_S * 1000).result()
    except OSError as error:
        say(f"no link can be made; run this as the user that the server runs as: {error}")
        return 2
    except (SettingsError, StoreUnusableError) as error:
        say(f"no link can be made: {error}")
        return 2
    say(f"{(arguments.url or find_address(own)).rstrip('/')}/guarded/open?once={token}")
    say(f"Open it within {GOOD_FOR_S // 60} minutes: it works once, and signs that browser in as the operator.")
    return 0
