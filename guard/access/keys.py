"""Store the keys in a file in our own folder. The command line writes it; the server reads it again when it changes.

In a fleet they are in its database (:mod:`.shared_keys`), and the file is a copy, for a start without that database and
for commands that know nothing of it: what these write into it is taken in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from ...own_files import FileError, read_json
from .. import private_files
from ..bounds import read_complaint
from ..client import LOCAL, Client, KeyLimits
from ..clock import Clock
from ..errors import GuardError
from ..settings import PROFILES
from ..store.file_lock import FileLock, LockedError

log = logging.getLogger("guarded.access")

FILE = "keys.json"
SUBMIT, OPERATE = "submit", "operate"
SCOPES = (SUBMIT, OPERATE)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"gk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


class KeysError(Exception):
    """A key that cannot be made, found or read."""


@dataclass(frozen=True)
class Key(KeyLimits):
    """One key as it is stored: the secret part only as its SHA-256.

    Attributes:
        name: the owner of the jobs made with it. Several keys may share a name, such as the old and the new one.
        scope: `submit`, or `operate`, which also sees and stops everybody's jobs.
        webhook_secret: signs its owner's webhooks (Standard Webhooks: `whsec_…`).

    A file of an earlier version lacks some of its limits.
    """

    key_id: str
    name: str
    scope: str
    sha256: str
    created_at_ms: int
    webhook_secret: str
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    webhook: str | None = None

    @property
    def limits(self) -> KeyLimits:
        return KeyLimits(**{field.name: getattr(self, field.name) for field in fields(KeyLimits)})

    def is_active(self, now_ms: int) -> bool:
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)

    def client(self) -> Client:
        return Client(self.name, self.scope == OPERATE, self.key_id, self.limits, self.webhook)


_FILE = TypeAdapter(list[Key])
#: Gets all keys, and returns all that there are to be. It may be called again.
KeyEdit = Callable[[list[Key]], list[Key]]


class KeyPlace(Protocol):
    """Where keys are kept. What cannot be read or written raises KeysError, OSError, LockedError or GuardError."""

    def read(self) -> list[Key]: ...
    def change(self, edit: KeyEdit) -> None: ...


class KeyFile:
    """The keys of a server alone."""

    def __init__(self, own: Path) -> None:
        self._own = own

    def read(self) -> list[Key]:
        return read(self._own)

    def change(self, edit: KeyEdit) -> None:
        with _writing(self._own):
            _write(self._own, edit(read(self._own)))


class Fleet(Protocol):
    """What the server's copy asks of the keys of a fleet: see :class:`.shared_keys.SharedKeys`."""

    def read_news(self, known: int | None) -> tuple[int, list[Key]] | None: ...
    def take_in(self, own: Sequence[Key]) -> None: ...


class Keys:
    """The server's copy of the keys. `refresh` runs on any thread, everything else on the event loop."""

    def __init__(self, own: Path, clock: Clock) -> None:
        self._path = own / FILE
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._clients: dict[str, Client] = {}
        self._were_made = False
        self._lock = threading.Lock()
        #: In a fleet: its keys, the number of the last change that is known, and the file's keys to look at.
        self._fleet: Fleet | None = None
        self._change: int | None = None
        self._unseen: list[Key] | None = None
        self.refresh()

    @property
    def were_made(self) -> bool:
        """Whether there is or was a key, or it cannot be seen. It stays true: a file that is gone opens nothing."""
        return self._were_made or self.are_unread

    @property
    def are_unread(self) -> bool:
        """Whether there may be other keys in the fleet's database, which was not read yet. Any thread."""
        return self._fleet is not None and self._change is None

    def join(self, fleet: Fleet) -> None:
        """Take the keys from the fleet's database from now on. At start."""
        self._fleet, self._unseen = fleet, self.list_all()

    def refresh(self) -> None:
        """Read the keys again where they have changed. What cannot be read changes nothing."""
        with self._lock:
            own = self._read_file()
            if self._fleet is None:
                if own is not None:
                    self._take(own)
                return
            self._unseen = own if own is not None else self._unseen
            try:
                self._refresh_from(self._fleet)
            except (GuardError, KeysError) as error:
                log.debug("the keys stay as they were: %s", error)  # the store has said why

    def _refresh_from(self, fleet: Fleet) -> None:
        """Take in what the file has and the fleet has not, and what the fleet has; then the file is as that."""
        found = fleet.read_news(self._change)
        there = found[1] if found is not None else self.list_all()
        if news := list_news(self._unseen or (), there):
            fleet.take_in(news)
            names = ", ".join(f"{key.name} ({key.key_id})" for key in news)
            log.warning("%s has keys that hold on all boxes of the fleet now, or are revoked on all: %s", FILE, names)
            found = fleet.read_news(self._change)
        if found is not None:
            self._take(found[1])
            self._change = found[0]
        if found is not None or self._unseen is not None:
            self._unseen = self._copy_to_file()

    def _copy_to_file(self) -> list[Key] | None:
        """Leave a copy in the file; what the file has instead where that is not known yet, or no longer.

        A command was quicker, or the database was restored from a backup that does not know what was revoked since.
        """
        own, keys = self._path.parent, self.list_all()
        try:
            if not keys and not self._path.exists():
                return None
            with _writing(own):
                there = read(own)
                if list_news(there, keys):
                    return there
                if there != keys:
                    _write(own, keys)
        except (KeysError, OSError, LockedError) as error:
            log.warning("%s has no copy of the fleet's keys: %s", FILE, error)
        return None

    def _read_file(self) -> list[Key] | None:
        """What the file has, where it has changed; None: it has not, or cannot be read, which is logged."""
        seen: tuple[int, int, int] | None
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError as error:
            is_gone = isinstance(error, FileNotFoundError) and not self._path.is_symlink()
            seen = None if is_gone else (0, 0, 0)
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            keys = read(self._path.parent)
        except KeysError as error:
            self._were_made = True
            log.error("the keys stay as they were: %s", error)
            return None
        self._were_made = self._were_made or (seen is not None and self._path.is_symlink())
        return keys

    def _take(self, keys: list[Key]) -> None:
        self._were_made = self._were_made or bool(keys)
        # Whole new maps: the event loop reads while this thread writes.
        self._clients = {key.key_id: key.client() for key in keys}
        self._keys = {key.key_id: key for key in keys}

    def find(self, secret: str) -> Client | None:
        """The client whose key this is; None where the key is unknown, revoked or expired."""
        match = _KEY.fullmatch(secret)
        key = self._keys.get(match[1]) if match else None
        # This takes as long for an unknown id as for a wrong secret.
        fits = hmac.compare_digest(_digest(secret), key.sha256 if key is not None else _digest(""))
        return self.find_by_id(key.key_id) if key is not None and fits else None

    def find_by_id(self, key_id: str) -> Client | None:
        """The client of the key with that id; None where it is unknown, revoked or expired."""
        key = self._keys.get(key_id)
        return self._clients.get(key_id) if key is not None and key.is_active(self._clock.now_ms()) else None

    def webhook_secret(self, owner: str) -> str | None:
        """The secret that signs the owner's webhooks, that of its newest active key; None where it has none."""
        key = self._find_newest(owner)
        return key.webhook_secret if key is not None else None

    def find_owner(self, owner: str) -> Client | None:
        """The client of the owner's newest active key; None where it has none."""
        key = self._find_newest(owner)
        return key.client() if key is not None else None

    def _find_newest(self, owner: str) -> Key | None:
        now_ms = self._clock.now_ms()
        own = [key for key in list(self._keys.values()) if key.name == owner and key.is_active(now_ms)]
        return max(own, key=lambda key: key.created_at_ms, default=None)

    def max_pixels_of(self, owner: str) -> int:
        """How large the pictures of the owner's jobs may be: the largest limit of its active keys. 0: any size.

        Any thread.
        """
        now_ms = self._clock.now_ms()
        own = [key for key in list(self._keys.values()) if key.name == owner]
        counted = [key for key in own if key.is_active(now_ms)] or own  # the last one may be revoked by now
        limits = [key.max_pixels or int(PROFILES.get(key.profile, {}).get("max_pixels", 0)) for key in counted]
        return max(limits, default=0) if all(limits) else 0

    def list_file_quotas(self, default: int) -> dict[str, int]:
        """How many bytes the files of each owner may have: the largest quota of its active keys. Any thread.

        Owners without a quota are left out.
        """
        now_ms = self._clock.now_ms()
        by_owner: dict[str, list[Key]] = {}
        for key in list(self._keys.values()):
            by_owner.setdefault(key.name, []).append(key)
        quotas = {}
        for owner, own in by_owner.items():
            counted = [key for key in own if key.is_active(now_ms)] or own  # the last one may be revoked by now
            limits = [
                0 if key.scope == OPERATE else default if key.max_file_bytes is None else key.max_file_bytes
                for key in counted
            ]
            if all(limits):
                quotas[owner] = max(limits)
        return quotas

    def has_active(self) -> bool:
        now_ms = self._clock.now_ms()
        return any(key.is_active(now_ms) for key in list(self._keys.values()))

    def list_all(self) -> list[Key]:
        return list(self._keys.values())


def list_news(own: Sequence[Key], there: Sequence[Key]) -> list[Key]:
    """The keys of a box's file that are not among those of its fleet, or are revoked in the file alone."""
    known = {key.key_id: key for key in there}
    return [
        key
        for key in own
        if key.key_id not in known or (key.revoked_at_ms is not None and known[key.key_id].revoked_at_ms is None)
    ]


def find_place(place: Path | KeyPlace) -> KeyPlace:
    """Keys are kept in our own folder, or elsewhere."""
    return KeyFile(place) if isinstance(place, Path) else place


def create(place: Path | KeyPlace, wanted: Key, *, same_owner: bool) -> tuple[Key, str]:
    """Make a key like `wanted`, with a new id, secret and webhook secret. Returns it and the secret, kept nowhere.

    Raises:
        KeysError: the name cannot be one, or has belonged to a key before, whose jobs this one would see.
    """
    if _NAME.fullmatch(wanted.name) is None or wanted.name == LOCAL.owner:
        raise KeysError(
            f"{wanted.name!r} cannot be a key's name: use letters, digits, '.', '_' and '-', but not 'local'."
        )
    key_id = secrets.token_hex(4)
    secret = f"gk_{key_id}_{secrets.token_urlsafe(32)}"
    drawn = base64.b64encode(secrets.token_bytes(32)).decode()
    key = replace(wanted, key_id=key_id, sha256=_digest(secret), webhook_secret=f"whsec_{drawn}")

    def add(keys: list[Key]) -> list[Key]:
        # Owners have folders, and Windows and macOS ignore case in their names.
        earlier = {other.name for other in keys if other.name.lower() == key.name.lower()}
        if earlier and not (same_owner and earlier == {key.name}):
            raise KeysError(
                f"there is or was a key named {sorted(earlier)[0]}. With --same-owner the new one sees the same jobs."
            )
        return [*keys, key]

    find_place(place).change(add)
    return key, secret


def revoke(place: Path | KeyPlace, which: str, now_ms: int) -> list[Key]:
    """Revoke the key of that id, or all of that name. Raises KeysError where there is none to revoke."""
    gone: list[Key] = []

    def end(keys: list[Key]) -> list[Key]:
        gone[:] = [key for key in keys if which in (key.key_id, key.name) and key.revoked_at_ms is None]
        if not gone:
            raise KeysError(f"there is no key {which!r} to revoke")
        return [replace(key, revoked_at_ms=now_ms) if key in gone else key for key in keys]

    find_place(place).change(end)
    return gone


def limit(place: Path | KeyPlace, key_id: str, limits: KeyLimits) -> Key:
    """Give the key of that id these limits in place of all that it had. Raises KeysError where there is none."""
    limited: list[Key] = []

    def change(keys: list[Key]) -> list[Key]:
        limited[:] = [replace(key, **asdict(limits)) for key in keys if key.key_id == key_id]
        if not limited:
            raise KeysError(f"there is no key {key_id!r}")
        return [limited[0] if key.key_id == key_id else key for key in keys]

    find_place(place).change(change)
    return limited[0]


def read(own: Path) -> list[Key]:
    """Read all keys, the revoked ones too. Raises KeysError where the file cannot be used."""
    path = own / FILE
    try:
        keys = _FILE.validate_python(read_json(path))
    except FileNotFoundError:
        return []
    except FileError as error:
        raise KeysError(str(error)) from None
    except ValidationError as error:
        place, complaint = read_complaint(error.errors()[0])
        raise KeysError(f"{FILE} cannot be used: {place}: {complaint[:200]}") from None
    return keys


def _writing(own: Path) -> AbstractContextManager[None]:
    private_files.make_folder(own)
    return FileLock(own / f"{FILE}.lock").hold(timeout_s=10)


def _write(own: Path, keys: Iterable[Key]) -> None:
    private_files.write(own / FILE, json.dumps([asdict(key) for key in keys], indent=1).encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
