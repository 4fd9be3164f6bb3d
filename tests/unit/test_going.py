"""What an answer asks of a connection that is gone."""

import asyncio
from types import SimpleNamespace

from comfyui_guarded.server_routes.pace import Going


async def test_a_piece_is_chosen_after_the_connection_was_cut():
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as server:
        _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        going = Going(SimpleNamespace(transport=writer.transport, writer=None), 60)
        before = going.choose_piece()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        assert writer.transport.get_extra_info("socket").fileno() == -1
        assert going.choose_piece() == before
        await going.let_out()
