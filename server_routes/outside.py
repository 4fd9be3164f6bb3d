"""Connect to addresses that callers name, and to none inside this network: by name, number, redirect or rebinding.

The name is looked up by us, each address that it has is judged, and the socket is made only for an address that was
judged. Nothing follows a redirect by itself.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from typing import Any

import aiohttp
from aiohttp import abc

from ..guard.quotas.threads import SharedThreads, find_whose
from ..guard.urls import Reach
from .hearing import make_connector


class Outside:
    """One pool of connections. Event loop."""

    def __init__(self, reach: Reach, timeout_s: float, at_once: int) -> None:
        self._reach = reach
        self._timeout_s = timeout_s
        self._at_once = at_once
        self._session: aiohttp.ClientSession | None = None

    def open_session(self) -> aiohttp.ClientSession:
        """The session, made at the first use: without cookies, and without a proxy of the environment's."""
        if self._session is None:
            # aiohttp can be given a maker of sockets since 3.12.
            sockets: dict[str, Any] = (
                {"socket_factory": self._make_socket} if hasattr(aiohttp, "SocketFactoryType") else {}
            )
            connector = make_connector(
                resolver=Resolver(self._reach, self._at_once, self._timeout_s),
                use_dns_cache=False,
                limit=self._at_once,
                **sockets,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _make_socket(self, address_info: Any) -> socket.socket:
        """Make a socket, after a last check of the very address that it will connect to."""
        family, kind, protocol, _name, address = address_info
        _check(self._reach, address[0])
        return socket.socket(family, kind, protocol)


class Resolver(abc.AbstractResolver):
    """Looks a name up and returns only addresses that may be reached; aiohttp connects to exactly these."""

    def __init__(self, reach: Reach, at_once: int, timeout_s: float) -> None:
        self._reach = reach
        # Threads of its own: a name whose servers do not answer holds its thread for half a minute, and anybody may
        # send such names, whose look-ups go on when nobody waits for them any more. On the loop's own threads,
        # everything that waits for the disk would wait for them too.
        self._threads = SharedThreads(at_once, "guarded-names")
        self._timeout_s = timeout_s

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[abc.ResolveResult]:
        looking = self._threads.run(find_whose(), _look_up, host, port, family)
        # aiohttp lets it go on where the attempt has ended.
        results = await asyncio.wait_for(looking, self._timeout_s)
        for result in results:
            _check(self._reach, result["host"])
        return results

    async def close(self) -> None:
        self._threads.close()


def is_inside(error: BaseException | None) -> bool:
    """Whether it was our own judgement of an address that ended the connection."""
    while error is not None:
        if isinstance(error, PermissionError):
            return True
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return False


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[abc.ResolveResult]:
    """The addresses of a name. Blocks. Raises OSError."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
    return [
        abc.ResolveResult(
            hostname=host,
            host=str(address[0]),
            port=port,
            family=family,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for family, _kind, protocol, _name, address in addresses
    ]


def _check(reach: Reach, address: str) -> None:
    """Raises OSError if no connection to that address may be made."""
    if not reach.allows(ipaddress.ip_address(address.partition("%")[0])):
        raise PermissionError(errno.EACCES, "its name leads to an address that may not be reached")
