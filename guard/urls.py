"""Read plain http(s) URLs, and tell which addresses lie outside this network: for whatever the server fetches or calls
because a caller says so."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Narrow on purpose, so that no two parsers disagree on the host: no user, backslash or fragment, ASCII only.
_URL = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{1,5}))?([/?][\x21\x22\x24-\x5b\x5d-\x7e]*)?", re.I
)
LONGEST = 2000
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")

#: These count as public addresses, but reach a cloud's own services from inside.
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10")))
_CLOUDS = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


class UrlError(ValueError):
    """A text that is no URL which the server would follow; the message goes behind the name of the field."""


class Url(NamedTuple):
    """A plain URL. `scheme` and `host` in lower case, the host without brackets and without a dot at its end;
    `address`: the host, where it is a number or this machine's own name."""

    scheme: str
    host: str
    address: Address | None


def read_url(text: str, longest: int = LONGEST) -> Url:
    """Take a URL apart that every library reads alike. Raises UrlError where the text is none."""
    parts = _URL.fullmatch(text) if len(text) <= longest else None
    if parts is None or int(parts[3] or 443) > 65535:
        raise UrlError(f"must be a plain http(s) URL of at most {longest} ASCII characters, without user and fragment")
    scheme, host = parts[1].lower(), parts[2].strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return Url(scheme, host, ipaddress.ip_address("127.0.0.1"))
    try:
        return Url(scheme, host, ipaddress.ip_address(host))
    except ValueError:
        # 2130706433, 0177.0.0.1, 127.1: some libraries take these for names, others for addresses.
        if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) or not host:
            raise UrlError("names an address in a spelling that is not taken") from None
        return Url(scheme, host, None)


#: A value that says where the file is, or holds it, instead of naming one.
_SOURCE = re.compile(r"data:|https?://", re.I)


def is_source(text: str) -> bool:
    """Whether a text in the place of a file's name is an http(s) address or a `data:` URL."""
    return _SOURCE.match(text) is not None


class Reach:
    """To which URLs and addresses the server may connect for a caller: public ones, and in the networks it is given."""

    def __init__(self, allow_http: bool, networks: Iterable[str]) -> None:
        self._allow_http = allow_http
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def read(self, text: str, longest: int = LONGEST) -> Url:
        """Read a URL, and check all that can be checked before its name is looked up. Raises UrlError."""
        url = read_url(text, longest)
        if url.scheme != "https" and not self._allow_http:
            raise UrlError("must begin with https")
        if url.address is not None and not self.allows(url.address):
            raise UrlError("names an address that may not be reached")
        return url

    def allows(self, address: Address) -> bool:
        """Whether a connection may go there. To be asked again of each address that a name turns out to have."""
        return is_public(address) or self.names(address)

    def names(self, address: Address) -> bool:
        """Whether the address is in one of the networks that it was given."""
        seen = {address, real_address(address)}
        return any(one in network for one in seen for network in self._networks)


def is_public(address: Address) -> bool:
    """Whether an address lies outside this machine, its networks and its cloud."""
    real = real_address(address)
    return (
        real.is_global
        and not (real.is_multicast or real.is_reserved or real.is_unspecified)
        and not any(real in network for network in _INSIDE)
    )


def is_of_cloud(address: Address) -> bool:
    """Whether a cloud answers its machines there: with their credentials, among other things."""
    real = real_address(address)
    return real.is_link_local or real in _CLOUDS or any(real in network for network in _INSIDE)


def real_address(address: Address) -> Address:
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
