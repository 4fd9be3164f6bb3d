"""Make, limit and revoke keys while the server runs: what the command `keys` does, for the operator's page."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict

from ..client import KeyLimits
from ..clock import Clock
from ..errors import InvalidRequestError, NotFoundError, ServerUnavailableError
from ..events.webhook_rules import Rules
from ..store.file_lock import LockedError
from . import keys
from .keys import Key, KeyPlace, Keys, KeysError
from .limit_fields import TYPES, list_limits

log = logging.getLogger("guarded.access")


class _Limits(BaseModel):
    """The limits of a key; what is not named is as the settings say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def limits(self) -> KeyLimits:
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.model_dump().items()
        }
        return KeyLimits(**given)


if TYPE_CHECKING:
    AskedLimits = _Limits
    LimitsBody = dict[str, Any]
else:
    AskedLimits = create_model(
        "AskedLimits",
        __base__=_Limits,
        **{one.name: TYPES[one.kind][:2] for one in list_limits()},
    )
    AskedLimits.__doc__ = _Limits.__doc__
    LimitsBody = TypedDict("LimitsBody", {one.name: TYPES[one.kind][2] for one in list_limits()})
    LimitsBody.__doc__ = "The limits of a key; null, or empty: as the settings say."


class AskedKey(BaseModel):
    """A key to make; `same_owner` makes one more for a name that has one already."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=64)]
    scope: Literal["submit", "operate"] = "submit"
    expires_in_s: Annotated[float, Field(gt=0, le=100 * 366 * 86400, allow_inf_nan=False)] | None = None
    webhook: Annotated[str, Field(max_length=2000)] | None = None
    same_owner: bool = False
    limits: AskedLimits = AskedLimits()


class KeyBody(TypedDict):
    """A key without its secret."""

    key_id: str
    name: str
    scope: str
    active: bool
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    webhook: str | None
    limits: LimitsBody


class MadeKeyBody(KeyBody):
    """A new key with its secret, and the secret that signs its owner's webhooks: neither is told again."""

    secret: str
    webhook_secret: str


class KeyRing:
    """Changes the keys where they are kept, and lets that count at once. Blocks; any thread but the loop's."""

    def __init__(self, place: KeyPlace, known: Keys, rules: Rules, clock: Clock) -> None:
        self._place = place
        self._known = known
        self._rules = rules
        self._clock = clock

    def list_all(self) -> list[KeyBody]:
        """All keys, the revoked ones too; the newest first."""
        with _refusing():
            found = self._place.read()
        return [self._body(key) for key in sorted(found, key=lambda key: -key.created_at_ms)]

    def create(self, asked: AskedKey, by: str) -> MadeKeyBody:
        """Make a key; `by` is who asks, for the log. Raises InvalidRequestError, ServerUnavailableError."""
        if asked.webhook is not None:
            self._rules.check(asked.webhook)
        now_ms = self._clock.now_ms()
        wanted = Key(
            key_id="",
            name=asked.name,
            scope=asked.scope,
            sha256="",
            created_at_ms=now_ms,
            webhook_secret="",
            expires_at_ms=None if asked.expires_in_s is None else now_ms + math.ceil(asked.expires_in_s * 1000),
            webhook=asked.webhook,
            **asdict(asked.limits.limits()),
        )
        with _refusing():
            key, secret = keys.create(self._place, wanted, same_owner=asked.same_owner)
        self._known.refresh()
        log.info("%s has made the key %s (%s, %s)", by, key.key_id, key.name, key.scope)
        return {**self._body(key), "secret": secret, "webhook_secret": key.webhook_secret}

    def limit(self, key_id: str, asked: AskedLimits, by: str) -> KeyBody:
        """Give the key these limits in place of all that it had. Raises NotFoundError, ServerUnavailableError."""
        self._find(key_id)
        with _refusing():
            key = keys.limit(self._place, key_id, asked.limits())
        self._known.refresh()
        log.info("%s has changed the limits of the key %s (%s)", by, key.key_id, key.name)
        return self._body(key)

    def revoke(self, key_id: str, by: str) -> KeyBody:
        """End the key for good; one that is revoked stays so. Raises NotFoundError, ServerUnavailableError."""
        if (key := self._find(key_id)).revoked_at_ms is None:
            with _refusing():
                keys.revoke(self._place, key_id, self._clock.now_ms())
            self._known.refresh()
            log.info("%s has revoked the key %s (%s)", by, key.key_id, key.name)
        return self._body(self._find(key_id))

    def _find(self, key_id: str) -> Key:
        with _refusing():
            found = [key for key in self._place.read() if key.key_id == key_id]
        if not found:
            raise NotFoundError(f"There is no key {key_id[:64]}.")
        return found[0]

    def _body(self, key: Key) -> KeyBody:
        limits = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(key.limits).items()
        }
        return {
            "key_id": key.key_id,
            "name": key.name,
            "scope": key.scope,
            "active": key.is_active(self._clock.now_ms()),
            "created_at_ms": key.created_at_ms,
            "expires_at_ms": key.expires_at_ms,
            "revoked_at_ms": key.revoked_at_ms,
            "webhook": key.webhook,
            "limits": limits,
        }


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the place says into refusals."""
    try:
        yield
    except KeysError as error:
        raise InvalidRequestError(f"{error}.".replace("..", ".").replace("--same-owner", "same_owner")) from error
    except (OSError, LockedError) as error:
        raise ServerUnavailableError("The keys cannot be changed now.", details=str(error)) from error
