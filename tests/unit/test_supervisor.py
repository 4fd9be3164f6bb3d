"""What systemd hears of us."""

import asyncio
import contextlib
import os
import socket
import sys
import time

import pytest

from comfyui_guarded.guard.life.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no systemd")


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        yield ear


def hear(ear):
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard += ear.recv(4096).decode().split("\n")
    return heard


async def tell(environment, work):
    telling = asyncio.create_task(Supervisor(environment).keep_telling())
    await work()
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)


async def test_a_healthy_loop_tells_again_and_again_and_a_hung_one_nothing(systemd):
    async def work():
        heard = []
        while heard.count("WATCHDOG=1") < 4:
            await asyncio.sleep(0.01)
            heard += hear(systemd)
        assert heard[0] == "READY=1"
        assert not any(word.startswith("WATCHDOG_USEC") for word in heard), "the unit has said how long"
        time.sleep(0.5)  # a hung loop
        assert hear(systemd) == []
        heard.clear()
        while not heard:
            await asyncio.sleep(0.01)
            heard += hear(systemd)
        assert heard == ["WATCHDOG=1"]

    await tell({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "150000"}, work)


@pytest.mark.parametrize(
    "watched", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "no"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
async def test_where_the_unit_says_nothing_the_watch_begins_with_us(systemd, watched):
    await tell({"NOTIFY_SOCKET": systemd.getsockname(), **watched}, lambda: asyncio.sleep(0.05))
    assert hear(systemd) == ["READY=1", "WATCHDOG_USEC=300000000", "WATCHDOG=1"]


async def test_a_name_without_a_file_is_understood():
    name = f"guarded-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0" + name)
        ear.setblocking(False)
        await tell({"NOTIFY_SOCKET": f"@{name}"}, lambda: asyncio.sleep(0.05))
        assert "WATCHDOG=1" in hear(ear)


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
async def test_without_systemd_nothing_happens(environment):
    await asyncio.wait_for(Supervisor(environment).keep_telling(), 5)


async def test_a_listener_that_has_gone_stops_nothing(tmp_path):
    await tell({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "30000"}, lambda: asyncio.sleep(0.1))
