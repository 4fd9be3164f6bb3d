"""Serves over standard input and output: the package's transport, behind a reader that answers what it would drop."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import anyio
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError

from .messages import Answer, Lines


async def serve(server: Server[aiohttp.ClientSession]) -> None:
    """Serve until standard input ends."""
    stdin = _Stdin()
    async with stdio_server(stdin=stdin) as (incoming, outgoing):  # type: ignore[arg-type]
        stdin.answer_by(outgoing)
        await server.run(incoming, outgoing, server.create_initialization_options())


class _Stdin:
    """Standard input, line by line. What is no message of the protocol is answered, and goes no further."""

    def __init__(self) -> None:
        self._lines = Lines(sys.stdin.buffer)
        self._outgoing: Any = None
        self._opened = anyio.Event()

    def answer_by(self, outgoing: Any) -> None:
        self._outgoing = outgoing
        self._opened.set()

    async def __aiter__(self) -> AsyncIterator[str]:
        while (read := await anyio.to_thread.run_sync(self._lines.read)) is not None:
            text, fault = read
            if fault is None:
                yield text
            else:
                await self._tell(fault)

    async def _tell(self, fault: Answer) -> None:
        await self._opened.wait()
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the end has come first
            await self._outgoing.send(SessionMessage(JSONRPCError.model_validate(fault)))
