"""`keys create | list | revoke`: a running server notices within a second or two."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from ..cli import add_user_argument, find_guard_folder, parse_age
from ..clock import Clock
from ..errors import InvalidRequestError
from ..events.webhook_rules import Rules
from ..outgoing import MIMES, SIDES
from ..settings import PROFILES, SettingsError, load
from . import keys
from .keys import SCOPES, SUBMIT, Key, KeyFile, KeyPlace, KeysError
from .limit_fields import Kind, describe, list_limits
from .shared_keys import SharedKeys, find_fleet

#: What a bot with thousands of users may ask for. It is there for a bot that has gone wrong: the users have limits of
#: their own.
BOT_JOBS_PER_MINUTE = 6000
BOT_MAX_QUEUED = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="keys_command", required=True)
    create = commands.add_parser("create", help="make a key and print it, this once")
    create.add_argument("name", help="the owner of the jobs made with it, such as a bot's name")
    create.add_argument(
        "--scope",
        choices=SCOPES,
        default=SUBMIT,
        help="`operate` also sees and stops everybody's jobs (default: submit)",
    )
    create.add_argument(
        "--bot",
        action="store_true",
        help=f"for a bot with many users: {BOT_JOBS_PER_MINUTE} jobs per minute, {BOT_MAX_QUEUED} may wait; its users "
        "have the limits.user_* of the settings",
    )
    for limit in list_limits():
        create.add_argument(f"--{limit.name.replace('_', '-')}", help=limit.meaning, **_OPTIONS[limit.kind])
    create.add_argument(
        "--expires", type=_read_age, metavar="AGE", help="24h, 30d; without it, the key does not expire"
    )
    create.add_argument("--webhook", metavar="URL", help="the address to tell when a job of its owner ends")
    create.add_argument("--same-owner", action="store_true", help="make one more key for a name that has one already")
    listing = commands.add_parser("list", help="every key, without its secret")
    revoke = commands.add_parser("revoke", help="end a key for good")
    revoke.add_argument("key", help="its id, or a name to end all keys of that name")
    for command in (create, listing, revoke):
        add_user_argument(command)


def run(arguments: argparse.Namespace, package: Path, say: Callable[[str], None]) -> int:
    """Run the command. Returns the exit status: 0, or 2 where it failed."""
    own = find_guard_folder(arguments, package, say)
    if own is None:
        return 2
    now_ms = Clock().now_ms()
    try:
        place = _find_place(own)
        if arguments.keys_command == "create":
            _create(arguments, own, place, now_ms, say)
        elif arguments.keys_command == "revoke":
            for key in keys.revoke(place, arguments.key, now_ms):
                say(f"revoked {key.key_id} ({key.name})")
        else:
            _list(place, now_ms, say)
    except (KeysError, SettingsError) as error:
        say(str(error))
        return 2
    return 0


def _find_place(own: Path) -> KeyPlace:
    fleet = find_fleet(own)
    return KeyFile(own) if fleet is None else SharedKeys(fleet)


def _create(arguments: argparse.Namespace, own: Path, place: KeyPlace, now_ms: int, say: Callable[[str], None]) -> None:
    if arguments.webhook is not None:
        _check_webhook(arguments.webhook, own)
    if arguments.bot:
        arguments.jobs_per_minute = arguments.jobs_per_minute or BOT_JOBS_PER_MINUTE
        arguments.max_queued = arguments.max_queued or BOT_MAX_QUEUED
    wanted = Key(
        key_id="",
        name=arguments.name,
        scope=arguments.scope,
        sha256="",
        created_at_ms=now_ms,
        webhook_secret="",
        expires_at_ms=None if arguments.expires is None else now_ms + int(arguments.expires * 1000),
        webhook=arguments.webhook,
        **{limit.name: getattr(arguments, limit.name) for limit in list_limits()},
    )
    key, secret = keys.create(place, wanted, same_owner=arguments.same_owner)
    say(secret)
    say(f"webhook secret: {key.webhook_secret}")
    say("Keep both now: neither is shown again.")


def _check_webhook(url: str, own: Path) -> None:
    """Raise KeysError where the server would never deliver there."""
    try:
        Rules(load(own / "guarded.toml", os.environ).webhooks).check(url)
    except InvalidRequestError as error:
        raise KeysError(error.message.replace("guard.webhook.url", f"--webhook {url}")) from None
    except SettingsError as error:
        raise KeysError(f"the settings cannot be used: {error}") from None


def _list(place: KeyPlace, now_ms: int, say: Callable[[str], None]) -> None:
    for key in place.read():
        if key.revoked_at_ms is not None:
            state = f"revoked {_format_day(key.revoked_at_ms)}"
        elif key.expires_at_ms is None:
            state = "active"
        else:
            state = f"{'active until' if key.is_active(now_ms) else 'expired'} {_format_day(key.expires_at_ms)}"
        limits = describe(key.limits)
        say("  ".join([key.key_id, key.name, key.scope, state, *limits, *filter(None, [key.webhook])]))


def _format_day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _read_age(text: str) -> float:
    if text.strip()[-1:].isdigit():
        raise argparse.ArgumentTypeError(f"{text} needs a unit, as in 24h or 30d")
    return parse_age(text)


def _read_patterns(text: str) -> tuple[str, ...]:
    patterns = tuple(part.strip() for part in text.split(",") if part.strip())
    if not patterns:
        raise argparse.ArgumentTypeError("name at least one node class")
    return patterns


def _read_rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _read_between(low: int, high: int, text: str) -> int:
    value = int(text)
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
    return value


def _read_count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


#: How a limit of each kind is read.
_OPTIONS: dict[Kind, dict[str, Any]] = {
    "number": {"type": _read_rate, "metavar": "N"},
    "count": {"type": _read_count, "metavar": "N"},
    "patterns": {"type": _read_patterns, "default": (), "metavar": "A,B*"},
    "profile": {"choices": sorted(PROFILES), "default": ""},
    "flag": {"action": "store_true"},
    "format": {"choices": sorted(MIMES), "default": ""},
    "quality": {"type": partial(_read_between, 1, 100), "metavar": "N"},
    "side": {"type": partial(_read_between, *SIDES), "metavar": "N"},
}
