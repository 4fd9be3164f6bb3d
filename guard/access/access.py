"""Who asks: the client that a request acts for, by a key, a signed token, or a direct loopback connection."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from ..client import LOCAL, Client
from ..errors import ForbiddenError, UnauthorizedError
from ..settings import AccessSettings
from .addresses import is_loopback, is_loopback_host, read_authority
from .keys import Keys
from .tokens import Tokens

#: A tunnel or proxy on the same box adds one of these; the request then comes from who knows where.
_FORWARDED = ("forwarded", "x-real-ip")
_FORWARDED_PREFIXES = ("x-forwarded-", "cf-")

#: Browsers say so of everything that a foreign page makes them do, pictures and forms included.
_CROSS_SITE = "cross-site"


@dataclass(frozen=True)
class Request:
    """What of a request says who makes it.

    Attributes:
        peer: the address at the other end of the socket.
        headers: looked up without regard to case.
        token: of the query string.
    """

    method: str
    path: str
    peer: str | None
    headers: Mapping[str, str]
    token: str | None = None


class Access:
    """Tells clients apart. Event loop; nothing here waits."""

    def __init__(self, settings: AccessSettings, keys: Keys, tokens: Tokens) -> None:
        self._settings = settings
        self._keys = keys
        self._tokens = tokens
        self._proxies = tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies)
        self._origins = frozenset(settings.allowed_origins)

    def identify(self, request: Request) -> Client:
        """The client behind a request. What it brings along decides: a wrong key is refused on loopback too.

        Raises:
            UnauthorizedError: no key, or none that counts.
            ForbiddenError: a browser sends it on behalf of a foreign page.
        """
        headers = request.headers
        self._check_origin(headers)
        authorization = headers.get("Authorization")
        key = headers.get("X-API-Key")
        if authorization is not None or key is not None:
            scheme, secret = _read_credential(authorization) if key is None and authorization is not None else ("", key)
            # Browsers keep a password and send it with whatever any page asks for.
            if scheme == "basic" and _is_for_foreign_page(request):
                raise ForbiddenError("A foreign page asks for this.")
            client = self._keys.find(secret) if secret else None
            if client is None:
                raise UnauthorizedError("This key is not known here, has been revoked or has expired.")
            return client
        loopback = self._settings.trust_loopback and _comes_from_loopback(request.peer, headers)
        if loopback and not _is_for_foreign_page(request):
            return LOCAL  # whatever `token` says: it may be another pack's parameter
        if request.token is not None:
            return self._identify_by_token(request)
        if loopback:
            raise ForbiddenError("A foreign page asks for this.")
        raise UnauthorizedError("A key is needed.", details=self._explain_keys())

    def is_current(self, client: Client) -> bool:
        """Whether a client that was let in still would be: its key is neither revoked nor expired."""
        return client.key_id is None or self._keys.find_by_id(client.key_id) is not None

    def sign(self, client: Client, path: str, ttl_s: float) -> str:
        """A token that lets whoever has it GET `path` as `client` would, for a while, and nothing else."""
        return self._tokens.sign(client, path, ttl_s)

    def find_address(self, peer: str | None, headers: Mapping[str, str]) -> str:
        """Where a request comes from, for the log: behind a trusted proxy, the last address that none of them has."""
        told = peer or "unknown"
        hops = [hop.strip() for hop in headers.get("X-Forwarded-For", "").split(",") if hop.strip()]
        while hops and self._is_proxy(told):
            told = hops.pop()
        return told[:64]

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._proxies)

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Only a browser sends Origin, and no page of another site has business here."""
        origin = headers.get("Origin")
        if origin is None or origin in self._origins:
            return
        if read_authority(origin) is None or read_authority(origin) != read_authority(f"//{headers.get('Host', '')}"):
            raise ForbiddenError(
                "A page of another site sends this.",
                details="access.allowed_origins names the sites whose pages may use this server.",
                extra_info={"origin": origin[:200]},
            )

    def _identify_by_token(self, request: Request) -> Client:
        if request.method not in ("GET", "HEAD"):
            raise UnauthorizedError("A token is for GET only.")
        grant = self._tokens.verify(request.token or "", request.path)
        if grant is None:
            raise UnauthorizedError("This token is not for this path, or has expired.")
        if grant.key_id is None:
            return Client(grant.owner, operator=False)
        client = self._keys.find_by_id(grant.key_id)
        if client is None:
            raise UnauthorizedError("The key that made this token has been revoked or has expired.")
        return client

    def _explain_keys(self) -> str:
        if not self._keys.has_active():
            return "This server has no keys yet: `python custom_nodes/<folder> keys create NAME` makes one."
        return "Send it as `Authorization: Bearer <key>`, as X-API-Key, or as the password of HTTP Basic."


def _read_credential(header: str) -> tuple[str, str | None]:
    """The scheme, and the key of a Bearer or Basic header; None where there is none in it."""
    scheme, _, value = header.strip().partition(" ")
    scheme, value = scheme.lower(), value.strip()
    if scheme == "bearer":
        return scheme, value
    if scheme == "basic":
        try:
            return scheme, base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, not ASCII, not UTF-8 inside
            return scheme, None
    return scheme, None


def _is_for_foreign_page(request: Request) -> bool:
    """Whether a page of another site makes the browser send this, other than by a link that is followed."""
    if request.headers.get("Sec-Fetch-Site") != _CROSS_SITE or request.headers.get("Origin") is not None:
        return False
    return not (request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate")


def _comes_from_loopback(peer: str | None, headers: Mapping[str, str]) -> bool:
    """Whether the peer is this machine, the Host header names it, and nothing says that it was passed on."""
    for name in headers:
        lowered = name.lower()
        if lowered in _FORWARDED or lowered.startswith(_FORWARDED_PREFIXES):
            return False
    return is_loopback(peer or "") and is_loopback_host(headers.get("Host", ""))
