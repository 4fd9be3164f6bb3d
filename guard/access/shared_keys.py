"""The keys of a fleet, which are in its database: what one box or a command changes holds on all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import ServerUnavailableError
from ..settings import SettingsError, load
from ..store import StoreUnusableError, open_once
from ..store.key_rows import KeyTable
from .keys import Key, KeyEdit, KeysError

log = logging.getLogger("guarded.access")

if TYPE_CHECKING:
    from ..store.postgres_once import OnceStore

T = TypeVar("T")

#: How long a caller waits for the database.
PATIENCE_S = 15.0
_KEY = TypeAdapter(Key)


class SharedKeys:
    """See :class:`.keys.KeyPlace`. Blocks; not on the event loop."""

    def __init__(self, table: KeyTable) -> None:
        self._table = table

    def read(self) -> list[Key]:
        found = self.read_news(None)
        assert found is not None
        return found[1]

    def read_news(self, known: int | None) -> tuple[int, list[Key]] | None:
        """All keys and the number of the last change; None where that is the `known` one. Raises as :meth:`read`."""
        found = _wait(self._table.read_keys(known))
        return None if found is None else (found[0], _parse(found[1]))

    def change(self, edit: KeyEdit) -> None:
        def change(rows: Mapping[str, str]) -> tuple[KeysError | None, Mapping[str, str]]:
            try:
                keys = _parse(rows)
                edited = edit(keys)
            except KeysError as error:
                return error, {}
            there = set(keys)
            return None, {key.key_id: json.dumps(asdict(key)) for key in edited if key not in there}

        if (refusal := _wait(self._table.change_keys(change))) is not None:
            raise refusal

    def take_in(self, own: Sequence[Key]) -> None:
        """Let keys from a box's file hold on all, and those that were revoked there nowhere."""

        def edit(keys: list[Key]) -> list[Key]:
            known = {key.key_id: key for key in keys}
            for key in own:
                there = known.setdefault(key.key_id, key)
                if there.revoked_at_ms is None and key.revoked_at_ms is not None:
                    known[key.key_id] = replace(there, revoked_at_ms=key.revoked_at_ms)
            return list(known.values())

        self.change(edit)


def find_fleet(own: Path) -> OnceStore | None:
    """The database of the fleet whose box has that folder of ours, for a command.

    None where the settings say nothing of one, or cannot be used: what is left in the folder is taken in by its server.
    Raises SettingsError where they say what cannot be.
    """
    try:
        settings = load(own / "guarded.toml", os.environ)
    except SettingsError:
        return None
    return open_once(settings.store.url) if settings.fleet.enabled else None


def _parse(rows: Mapping[str, str]) -> list[Key]:
    """What is no key opens nothing, and keeps nobody from revoking others."""
    keys = []
    for key_id, body in rows.items():
        try:
            keys.append(_KEY.validate_json(body))
        except ValidationError as error:
            log.error("the key %s of the fleet counts for nothing: %s", key_id[:64], error.errors()[0]["msg"])
    return sorted(keys, key=lambda key: (key.created_at_ms, key.key_id))


def _wait(future: Future[T]) -> T:
    try:
        return future.result(PATIENCE_S)
    except StoreUnusableError as error:
        raise KeysError(str(error)) from None
    except FutureTimeoutError:
        raise ServerUnavailableError("The keys cannot be read or changed now.", retry_after_s=5) from None
