"""Sign short-lived tokens for the query string, because image tags and browsers' websockets can send no header."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .. import private_files
from ..client import Client
from ..clock import Clock
from ..errors import ServerUnavailableError
from . import sign_in

FILE = "token.key"
#: What a token looks like, whoever has signed it: `{"o":"`, in Base64, and a SHA-256.
_SHAPE = re.compile(r"eyJvIjoi[\w-]+\.[\w-]{43}", re.ASCII)
#: How long the use of a link waits for the fleet's database.
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class Grant:
    """What a valid token says: as whom it acts, and which key made it (None: `local`)."""

    owner: str
    key_id: str | None


class Links(Protocol):
    """What this asks of the job store of a fleet."""

    def use_sign_in(self, digest: str) -> Future[bool]: ...


class Tokens:
    """Signs and verifies. Its key lies in our own folder or is the fleet's, so that a token outlives a restart."""

    def __init__(self, own: Path, clock: Clock, key: bytes | None = None) -> None:
        """Without a `key`, read or make one. Blocks, so call it before the event loop serves. Raises OSError."""
        self._own = own
        self._key = key or private_files.read_or_make_key(own / FILE)
        self._clock = clock
        self._fleet: Links | None = None

    def join(self, fleet: Links) -> None:
        """Let links of the whole fleet count, too. At start."""
        self._fleet = fleet

    def sign(self, client: Client, path: str, ttl_s: float) -> str:
        claims = {"o": client.owner, "k": client.key_id, "p": path, "e": self._clock.now_ms() + int(ttl_s * 1000)}
        payload = _encode(json.dumps(claims, separators=(",", ":")).encode())
        return f"{payload}.{self._sign(payload)}"

    def verify(self, token: str, path: str) -> Grant | None:
        """What a token for this very path grants; None for any other token."""
        payload, _, signature = token.partition(".")
        try:
            if not hmac.compare_digest(signature.encode(), self._sign(payload).encode()):
                return None
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (binascii.Error, UnicodeError, ValueError):
            return None
        if claims["p"] != path or self._clock.now_ms() >= claims["e"]:
            return None
        return Grant(claims["o"], claims["k"])

    def use_up(self, once: str) -> bool:
        """Whether a link's token was good; it is no longer. Blocks; any thread."""
        if sign_in.use(self._own, once, self._clock.now_ms()):
            return True
        if self._fleet is None or not sign_in.is_token(once):
            return False
        try:
            return self._fleet.use_sign_in(sign_in.digest(once)).result(_PATIENCE_S)
        except FutureTimeoutError:
            raise ServerUnavailableError("The link cannot be looked up now.", retry_after_s=5) from None

    def _sign(self, payload: str) -> str:
        return _encode(hmac.new(self._key, payload.encode(), hashlib.sha256).digest())


def is_token(text: str) -> bool:
    """Whether it is a token of this package, good or bad, and no parameter of another pack."""
    return _SHAPE.fullmatch(text) is not None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
