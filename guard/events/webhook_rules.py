"""Refuse webhooks to addresses inside the operator's network: in the URL, and again after each look-up."""

from __future__ import annotations

import ipaddress
import re

from ..errors import InvalidRequestError
from ..settings import WebhooksSettings

#: Narrow on purpose, so that no two parsers disagree on the host: no user, backslash or fragment, ASCII only.
_URL = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{1,5}))?([/?][\x21\x22\x24-\x5b\x5d-\x7e]*)?", re.I
)


_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")

#: These count as public addresses, but reach a cloud's own services from inside.
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


_COMPATIBLE = ipaddress.ip_network("::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Rules:
    """Where webhooks may go."""

    def __init__(self, settings: WebhooksSettings) -> None:
        self._allow_http = settings.allow_http
        self._allowed = [ipaddress.ip_network(network) for network in settings.allowed_networks]

    def check(self, url: str) -> None:
        """Check all that can be checked before the name is looked up.

        Raises:
            InvalidRequestError: it is no plain URL, not https, or names an address that may not be reached.
        """
        parts = _URL.fullmatch(url) if len(url) <= 2000 else None
        if parts is None or int(parts[3] or 443) > 65535:
            raise _error("must be a plain http(s) URL of at most 2000 ASCII characters, without user and fragment")
        scheme, host = parts[1].lower(), parts[2].strip("[]").rstrip(".").lower()
        if scheme != "https" and not self._allow_http:
            raise _error("must begin with https (the operator may allow http: webhooks.allow_http)")
        if host == "localhost" or host.endswith(".localhost"):
            host = "127.0.0.1"
        try:
            address: Address | None = ipaddress.ip_address(host)
        except ValueError:
            address = None
            # 2130706433, 0177.0.0.1, 127.1: some libraries take these for names, others for addresses.
            if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) or not host:
                raise _error("names an address in a spelling that is not taken") from None
        if address is not None and not self.allows(address):
            raise _error("names an address that may not be reached (the operator may: webhooks.allowed_networks)")

    def allows(self, address: Address) -> bool:
        """Whether a webhook may connect to the address: it is public, or the settings allow it."""
        real = _real_address(address)
        if any(seen in network for seen in {address, real} for network in self._allowed):
            return True
        return (
            real.is_global
            and not (real.is_multicast or real.is_reserved or real.is_unspecified)
            and not any(real in network for network in _INSIDE)
        )


def _real_address(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to (mapped, NAT64, 6to4, Teredo, compatible), or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _error(text: str) -> InvalidRequestError:
    return InvalidRequestError(f"guard.webhook.url {text}.", extra_info={"field": "guard.webhook.url"})
