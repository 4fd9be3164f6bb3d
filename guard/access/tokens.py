"""Sign short-lived tokens for the query string, because image tags and browsers' websockets can send no header."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from .. import private_files
from ..client import Client
from ..clock import Clock
from . import sign_in

FILE = "token.key"


@dataclass(frozen=True)
class Grant:
    """What a valid token says: as whom it acts, and which key made it (None: `local`)."""

    owner: str
    key_id: str | None


class Tokens:
    """Signs and verifies. Its key lies in our own folder, so that a token outlives a restart."""

    def __init__(self, own: Path, clock: Clock) -> None:
        """Read or make the key. Blocks, so call it before the event loop serves. Raises OSError."""
        self._own = own
        self._key = private_files.read_or_make_key(own / FILE)
        self._clock = clock

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
        return sign_in.use(self._own, once, self._clock.now_ms())

    def _sign(self, payload: str) -> str:
        return _encode(hmac.new(self._key, payload.encode(), hashlib.sha256).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
