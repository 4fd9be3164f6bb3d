"""Identify the client behind a request: by its key, a signed token, or a direct loopback connection."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..client import LOCAL, Client
from ..errors import ForbiddenError, ServerUnavailableError, UnauthorizedError
from ..settings import AccessSettings
from . import peers
from .addresses import is_loopback, is_loopback_host, read_authority
from .keys import Keys
from .tokens import Tokens, is_token

log = logging.getLogger("guarded.access")

#: The cookie of a browser that `python <folder> open` has signed in, and in its token what stands for a path: no
#: request has that one, and nobody may ask for a token that has.
SESSION = "guarded_session"

#: A tunnel or proxy on this machine adds one of these; the request then comes from an unknown place.
_FORWARDED = frozenset(
    {
        *(
            "via",
            "cdn-loop",
            "forwarded",
            "forwarded-for",
            "x-forwarded",
            "x-real-ip",
            "client-ip",
            "x-client-ip",
            "true-client-ip",
        ),
        *("x-cluster-client-ip", "x-proxyuser-ip", "x-nginx-proxy", "x-remote-addr", "x-remote-ip", "x-varnish"),
    }
)
_FORWARDED_PREFIXES = ("x-forwarded-", "x-original-", "x-envoy-", "x-azure-", "cf-", "fastly-", "fly-", "tailscale-")

#: Browsers say this of every request that a page of another site, or of another port, makes them send, pictures and
#: forms included.
_FOREIGN = ("cross-site", "same-site")


@dataclass(frozen=True)
class Request:
    """What a request says about its sender.

    Attributes:
        peer: the address at the other end of the socket.
        headers: a mapping that ignores case.
        token: from the query string.
        version: of HTTP.
        connection: tells the two ends of the socket (`get_extra_info` of an asyncio transport).
    """

    method: str
    path: str
    peer: str | None
    headers: Mapping[str, str]
    token: str | None = None
    version: tuple[int, int] = (1, 1)
    connection: Any = None


class Access:
    """Knows which client a request acts for. Event loop; nothing here waits."""

    def __init__(self, settings: AccessSettings, keys: Keys, tokens: Tokens) -> None:
        self._settings = settings
        self._keys = keys
        self._tokens = tokens
        self._proxies = tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies)
        self._origins = frozenset(settings.allowed_origins)
        #: Whether a connection is made by the user that we run as. The kernel is asked once for each.
        self._own_connections: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def identify(self, request: Request) -> Client:
        """Find the client behind a request. A key that it sends decides: a wrong one is refused on loopback too, and so
        is a token of ours that is not good.

        Raises:
            UnauthorizedError: it has no key, or an unknown, revoked or expired one.
            ServerUnavailableError: its key may be one of the fleet's, whose keys are not known here yet.
            ForbiddenError: a browser sends it on behalf of a foreign page.
        """
        headers = request.headers
        self._check_origin(headers)
        authorization = headers.get("Authorization")
        key = headers.get("X-API-Key")
        if authorization is not None or key is not None:
            scheme, secret = _read_credential(authorization) if key is None and authorization is not None else ("", key)
            # Browsers keep a password and send it with every request that any page makes.
            if scheme == "basic" and _is_for_foreign_page(request):
                raise ForbiddenError("A foreign page asks for this.")
            client = self._keys.find(secret) if secret else None
            if client is None and self._keys.are_unread:
                raise ServerUnavailableError("The keys of the fleet were not read yet.", retry_after_s=2)
            if client is None:
                raise UnauthorizedError("This key is not known here, has been revoked or has expired.")
            return client
        is_local = self._is_signed_in(headers) or self._is_trusted(request)
        if is_local and not _is_for_foreign_page(request):
            if request.token is not None and is_token(request.token):  # else it is a parameter of another pack
                self._identify_by_token(request)
            return LOCAL
        if request.token is not None:
            return self._identify_by_token(request)
        if is_local:
            raise ForbiddenError("A foreign page asks for this.")
        raise UnauthorizedError("A key is needed.", details=self._explain_keys(request))

    def find_owner(self, owner: str) -> Client:
        """Whoever's jobs have that owner: by its newest key that is valid, otherwise with no rights but its files."""
        return LOCAL if owner == LOCAL.owner else self._keys.find_owner(owner) or Client(owner, operator=False)

    def find_caller(self, key_id: str | None, owner: str) -> Client | None:
        """Whom another box of the fleet has identified: by a key, or as this machine's own; None: nobody here."""
        if key_id is None:
            return LOCAL if owner == LOCAL.owner else None
        return self._keys.find_by_id(key_id)

    def is_current(self, client: Client) -> bool:
        """Whether a client would still be let in: its key is neither revoked nor expired."""
        return client.key_id is None or self._keys.find_by_id(client.key_id) is not None

    def sign(self, client: Client, path: str, ttl_s: float) -> str:
        """Make a token that lets anybody GET `path` as `client`, for `ttl_s` seconds, and nothing else."""
        return self._tokens.sign(client, path, ttl_s)

    def sign_in(self, once: str) -> tuple[str, float]:
        """Use up a link of `python <folder> open`. Blocks; any thread.

        Returns what a browser has to send as its cookie :data:`SESSION` to be `local`, and for how many seconds it may.

        Raises:
            UnauthorizedError: the link is none, or is used up or too old.
        """
        if not self._tokens.use_up(once):
            raise UnauthorizedError(
                "This link has been used already, is over ten minutes old, or is another server's.",
                details="`python custom_nodes/<folder> open` prints a new one.",
            )
        return self._tokens.sign(LOCAL, SESSION, self._settings.max_token_s), self._settings.max_token_s

    def _is_signed_in(self, headers: Mapping[str, str]) -> bool:
        if (cookie := headers.get("Cookie")) is None:
            return False
        for pair in cookie.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == SESSION and (grant := self._tokens.verify(value, SESSION)) and grant.owner == LOCAL.owner:
                return grant.key_id is None
        return False

    def _is_trusted(self, request: Request) -> bool:
        """Whether this machine sends it, and that is enough here."""
        trust = self._settings.trust_loopback
        if not trust or not _comes_from_loopback(request.peer, request.headers):
            return False
        # Most proxies that tell nothing of themselves speak HTTP/1.0, or run as another user.
        return (
            trust is True
            or not self._keys.were_made
            or (request.version == (1, 1) and self._is_made_by_own_user(request.connection))
        )

    def _is_made_by_own_user(self, connection: Any) -> bool:
        if connection is None:
            return False
        known = self._own_connections.get(connection)
        if known is None:
            ends = (connection.get_extra_info("peername"), connection.get_extra_info("sockname"))
            known = self._own_connections[connection] = peers.is_of_own_user(*ends)
        return known

    def find_address(self, peer: str | None, headers: Mapping[str, str]) -> str:
        """Find where a request comes from, for the log: the last address that is no trusted proxy's."""
        address = peer or "unknown"
        hops = [hop.strip() for hop in headers.get("X-Forwarded-For", "").split(",") if hop.strip()]
        while hops and self._is_proxy(address):
            address = hops.pop()
        return address[:64]

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._proxies)

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse pages of other sites. Only browsers send Origin."""
        origin = headers.get("Origin")
        if origin is None or origin in self._origins:
            return
        if read_authority(origin) is None or read_authority(origin) != read_authority(f"//{headers.get('Host', '')}"):
            raise ForbiddenError(
                "A page of another site sends this.",
                details="The setting access.allowed_origins names the sites whose pages may use this server.",
                extra_info={"origin": origin[:200]},
            )

    def _identify_by_token(self, request: Request) -> Client:
        if request.method not in ("GET", "HEAD"):
            raise UnauthorizedError("A token serves GET requests only.")
        grant = self._tokens.verify(request.token or "", request.path)
        if grant is None:
            raise UnauthorizedError("This token is for another path, or has expired.")
        if grant.key_id is None:
            return Client(grant.owner, operator=False)
        client = self._keys.find_by_id(grant.key_id)
        if client is None:
            raise UnauthorizedError("The key that made this token has been revoked or has expired.")
        return client

    def _explain_keys(self, request: Request) -> str:
        if self._settings.trust_loopback == "auto" and _comes_from_loopback(request.peer, request.headers):
            return (
                "There are keys, so this machine is let in without one only as the user that the server runs as, and "
                "over HTTP/1.1 (access.trust_loopback). `python custom_nodes/<folder> open` signs a browser in."
            )
        if not self._keys.has_active():
            return "This server has no keys yet: `python custom_nodes/<folder> keys create NAME` makes one."
        return "Send it as `Authorization: Bearer <key>`, as X-API-Key, or as the password of HTTP Basic."


async def keep_current(
    keys: Keys, access: Access, hang_up: Callable[[Callable[[Client], bool]], object], pause_s: float = 1.0
) -> None:
    """Let keys made or revoked elsewhere take effect within a second, for open sockets too. Event loop."""
    while True:
        try:
            await asyncio.to_thread(keys.refresh)
            hang_up(access.is_current)
        except Exception:
            log.exception("the keys were not looked at; that is tried again")
        await asyncio.sleep(pause_s)


def _read_credential(header: str) -> tuple[str, str | None]:
    """(scheme, key) of an Authorization header; the key is None where the header holds none."""
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
    """Whether a page of another site makes the browser send this, and not by a link that the user follows."""
    if request.headers.get("Sec-Fetch-Site") not in _FOREIGN or request.headers.get("Origin") is not None:
        return False
    return not (request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate")


def _comes_from_loopback(peer: str | None, headers: Mapping[str, str]) -> bool:
    """Whether the peer is this machine, the Host header names it, and no header says that a proxy passed it on."""
    for name in headers:
        lowered = name.lower()
        if lowered in _FORWARDED or lowered.startswith(_FORWARDED_PREFIXES):
            return False
    return is_loopback(peer or "") and is_loopback_host(headers.get("Host", ""))
