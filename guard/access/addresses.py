"""Tell which addresses and hosts are this machine itself."""

from __future__ import annotations

import functools
import ipaddress
from urllib.parse import urlsplit


@functools.lru_cache(maxsize=256)
def is_loopback_host(header: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return host == "localhost" or is_loopback(host)


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a text is a loopback address, IPv6's form of an IPv4 one included."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


@functools.lru_cache(maxsize=256)
def read_authority(url: str) -> tuple[str, int | None] | None:
    """Host and port of a URL, None for a default port; None where there is no host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.hostname.lower(), None if port in (80, 443) else port
