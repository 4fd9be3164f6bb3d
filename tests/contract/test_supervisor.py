"""Under a supervisor that listens as systemd does: a server whose event loop hangs is restarted, and loses nothing."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

import aiohttp
import pytest
from contract.client import PATIENCE_S, assert_succeeded, connected, sleep, text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no systemd")

HUNG_S = 5.0


async def test_a_hung_event_loop_is_noticed_and_the_jobs_live_on(sandbox, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)

        async def hear(within_s):
            return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ear, 4096), within_s)).decode()

        async def hear_in_time():
            with contextlib.suppress(asyncio.TimeoutError):
                return await hear(HUNG_S)

        server = sandbox(NOTIFY_SOCKET=ear.getsockname(), WATCHDOG_USEC=str(int(HUNG_S * 1e6)))
        assert await hear(PATIENCE_S) == "READY=1"
        async with connected(server) as client:
            running, waiting = await client.admitted(sleep(3600, steps=100_000)), await client.admitted(text())
            await client.running(running)
            for _ in range(3):
                assert await hear(PATIENCE_S) == "WATCHDOG=1"
            with contextlib.suppress(asyncio.TimeoutError):
                url = client.host.url + "/guarded_faults/loop/hang"
                await client.session.post(url, timeout=aiohttp.ClientTimeout(total=1))
            while await hear_in_time():  # what was sent before
                pass
            os.kill(server.pid, signal.SIGABRT)
            await asyncio.to_thread(server.wait)
            await asyncio.to_thread(server.start)
            assert "READY=1" in await hear(PATIENCE_S)
            await client.cancel(running)
            assert_succeeded(await client.settled(waiting))
