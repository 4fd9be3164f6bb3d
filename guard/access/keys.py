"""The keys: a file in our own folder, which the command line writes and the server reads again when it changes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from .. import private_files
from ..client import LOCAL, Client, KeyLimits
from ..clock import Clock

log = logging.getLogger("guarded.access")

FILE = "keys.json"
SUBMIT, OPERATE = "submit", "operate"
SCOPES = (SUBMIT, OPERATE)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"gk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


class KeysError(Exception):
    """A key that cannot be made, found or read."""


@dataclass(frozen=True)
class Key:
    """One key as it is stored: the secret part only as its SHA-256.

    Attributes:
        name: the owner of what is done with it. Several keys may share one name: the old and the new one, say.
        scope: `submit`, or `operate`, which sees and stops everybody's jobs as well.
        webhook_secret: signs what is sent to its owner's webhooks (Standard Webhooks: `whsec_…`).
    """

    key_id: str
    name: str
    scope: str
    sha256: str
    created_at_ms: int
    webhook_secret: str
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    jobs_per_minute: float | None = None
    max_queued: int | None = None
    webhook: str | None = None

    def is_active(self, now_ms: int) -> bool:
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)

    def client(self) -> Client:
        limits = KeyLimits(self.jobs_per_minute, self.max_queued)
        return Client(self.name, self.scope == OPERATE, self.key_id, limits, self.webhook)


_FILE = TypeAdapter(list[Key])


class Keys:
    """What the server knows of the keys. `refresh` runs on any thread, all else on the event loop."""

    def __init__(self, own: Path, clock: Clock) -> None:
        self._path = own / FILE
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._clients: dict[str, Client] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed. One that cannot be read changes nothing, and is complained of."""
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys = read(self._path.parent)
        except KeysError as error:
            log.error("the keys stay as they were: %s", error)
            return
        # Whole new maps: the event loop reads while this thread writes.
        self._clients = {key.key_id: key.client() for key in keys}
        self._keys = {key.key_id: key for key in keys}

    def find(self, secret: str) -> Client | None:
        """The client whose key this is; None for a key that does not count."""
        found = _KEY.fullmatch(secret)
        key = self._keys.get(found[1]) if found else None
        # As long for an unknown id as for a wrong secret.
        fits = hmac.compare_digest(_digest(secret), key.sha256 if key is not None else _digest(""))
        return (
            self._clients.get(key.key_id) if key is not None and fits and key.is_active(self._clock.now_ms()) else None
        )

    def find_by_id(self, key_id: str) -> Client | None:
        """The client of a key that counts."""
        key = self._keys.get(key_id)
        return self._clients.get(key_id) if key is not None and key.is_active(self._clock.now_ms()) else None

    def webhook_secret(self, owner: str) -> str | None:
        """What signs the owner's webhooks: the newest of its keys that count."""
        now_ms = self._clock.now_ms()
        own = [key for key in list(self._keys.values()) if key.name == owner and key.is_active(now_ms)]
        return max(own, key=lambda key: key.created_at_ms).webhook_secret if own else None

    def has_active(self) -> bool:
        now_ms = self._clock.now_ms()
        return any(key.is_active(now_ms) for key in list(self._keys.values()))

    def list_all(self) -> list[Key]:
        return list(self._keys.values())


# What the command line does. ---------------------------------------------------------------------------------


def create(own: Path, wanted: Key, *, same_owner: bool) -> tuple[Key, str]:
    """Make a key; its id, hash and webhook secret are drawn here. Returns it, and the secret, which nobody keeps.

    Raises:
        KeysError: a name that cannot be one, or that has belonged to a key before, whose jobs this one would see.
    """
    if _NAME.fullmatch(wanted.name) is None or wanted.name == LOCAL.owner:
        raise KeysError(f"{wanted.name!r} is no name for a key: letters, digits, '.', '_' and '-', and not 'local'.")
    key_id = secrets.token_hex(4)
    secret = f"gk_{key_id}_{secrets.token_urlsafe(32)}"
    drawn = base64.b64encode(secrets.token_bytes(32)).decode()
    key = replace(wanted, key_id=key_id, sha256=_digest(secret), webhook_secret=f"whsec_{drawn}")
    with _writing(own):
        keys = read(own)
        # Windows and macOS fold case in file names, and owners have folders.
        earlier = {other.name for other in keys if other.name.lower() == key.name.lower()}
        if earlier and not (same_owner and earlier == {key.name}):
            raise KeysError(
                f"there is or was a key named {sorted(earlier)[0]}. With --same-owner the new one sees the same jobs."
            )
        _write(own, [*keys, key])
    return key, secret


def revoke(own: Path, which: str, now_ms: int) -> list[Key]:
    """Revoke the key of that id, or all of that name. Raises KeysError where none counts."""
    with _writing(own):
        keys = read(own)
        gone = [key for key in keys if which in (key.key_id, key.name) and key.revoked_at_ms is None]
        if not gone:
            raise KeysError(f"there is no key {which!r} that could be revoked")
        _write(own, [replace(key, revoked_at_ms=now_ms) if key in gone else key for key in keys])
    return gone


def read(own: Path) -> list[Key]:
    """All keys, the revoked ones too. Raises KeysError where the file cannot be used."""
    path = own / FILE
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise KeysError(f"{path} cannot be read: {error}") from error


def _writing(own: Path) -> FileLock:
    own.mkdir(parents=True, exist_ok=True)
    return FileLock(own / f"{FILE}.lock", timeout=10)


def _write(own: Path, keys: Iterable[Key]) -> None:
    private_files.write(own / FILE, json.dumps([asdict(key) for key in keys], indent=1).encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
