"""Who asks: the owner that a request acts for."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import UnauthorizedError
from .settings import AccessSettings

#: A tunnel or proxy on the same box adds one of these; the request then comes from who knows where.
_FORWARDED = ("forwarded", "x-real-ip")
_FORWARDED_PREFIXES = ("x-forwarded-", "cf-")


@dataclass(frozen=True)
class KeyLimits:
    """What a key may ask for; None leaves it to the settings."""

    jobs_per_minute: float | None = None
    max_queued: int | None = None


@dataclass(frozen=True)
class Client:
    """Who a job belongs to. `operator` sees and stops everybody's.

    `key_id` is None for trusted loopback; `webhook` is where the key's owner wants to be told of its jobs.
    """

    owner: str
    operator: bool
    key_id: str | None = None
    limits: KeyLimits = KeyLimits()
    webhook: str | None = None


LOCAL = Client("local", operator=True)


def identify(settings: AccessSettings, peer: str | None, headers: Mapping[str, str]) -> Client:
    """The client behind a request.

    Args:
        peer: the address at the other end of the socket.
        headers: the request's, looked up without regard to case.

    Raises:
        UnauthorizedError: it is not a direct loopback connection, and no key is known.
    """
    if settings.trust_loopback and _is_loopback(peer, headers):
        return LOCAL
    raise UnauthorizedError(
        "Only direct connections from this machine are let in.",
        details=(
            "This version has no keys yet: connect to 127.0.0.1 from the same machine, not through a proxy or tunnel."
            if settings.trust_loopback
            else "access.trust_loopback is off, and this version has no keys yet."
        ),
    )


def _is_loopback(peer: str | None, headers: Mapping[str, str]) -> bool:
    """Whether the peer is this machine, the Host header names it, and nothing says that it was passed on."""
    for name in headers:
        lowered = name.lower()
        if lowered in _FORWARDED or lowered.startswith(_FORWARDED_PREFIXES):
            return False
    return _names_loopback(peer or "") and _is_loopback_host(headers.get("Host", ""))


@functools.lru_cache(maxsize=256)
def _is_loopback_host(header: str) -> bool:
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _names_loopback(host)


@functools.lru_cache(maxsize=256)
def _names_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
