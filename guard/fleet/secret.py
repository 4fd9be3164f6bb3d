"""The keys that a server makes for itself, the same on every box of a fleet: each is drawn from `fleet.secret`.

HKDF with SHA-256 (RFC 5869), without a salt: whoever gets hold of one key learns nothing of the secret or of others.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from ..settings import FleetSettings

KEY_BYTES = 32
_NO_SALT = bytes(KEY_BYTES)


def derive(secret: str, name: str) -> bytes:
    """The key of that name: 32 bytes."""
    return _expand(secret.encode(), f"comfyui-guarded {name}".encode())


def make_keys(settings: FleetSettings) -> Callable[[str], bytes | None]:
    """Gives the fleet's key of a name; None where this server is in none, and has keys of its own."""
    if not settings.enabled:
        return lambda _name: None
    return lambda name: derive(settings.secret, name)


def _expand(secret: bytes, info: bytes, salt: bytes = _NO_SALT) -> bytes:
    drawn = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(drawn, info + b"\x01", hashlib.sha256).digest()
