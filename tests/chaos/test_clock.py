"""Servers whose wall clock is set while they run, or between two starts."""

import asyncio
from pathlib import Path

import pytest
from chaos.conftest import newest_real
from chaos.preload import build
from contract.client import assert_ended_badly, assert_succeeded, connected, sleep, text
from contract.test_webhooks import SETTINGS, Receiver, deliveries, ended, secret_of, submit

from comfyui_guarded.tests.hosts.launch import sandbox_kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

DAY_S = 86_400


class WallClock:
    """The wall clock of a server: this machine's, and so many seconds."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set(0)
        self.environment = {"LD_PRELOAD": build("clock", folder), "GUARDED_CLOCK": str(self._file)}

    def set(self, ahead_s: int) -> None:
        self._file.write_text(str(ahead_s))


@pytest.fixture
def wall(tmp_path):
    return WallClock(tmp_path)


@pytest.mark.parametrize("ahead_s", [-DAY_S, DAY_S], ids=["behind", "ahead"])
@pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
async def test_a_webhook_is_signed_with_the_time_of_its_attempt_whatever_the_clock_said_at_the_start(
    server, wall, kind, ahead_s
):
    """The receiver checks with the official library, which takes what is at most five minutes off."""
    wall.set(ahead_s)
    host = server(kind, **{**SETTINGS, "GUARDED_WEBHOOKS__MAX_AGE_S": "600"}, **wall.environment).start()
    receiver = Receiver(secret_of(host.base))
    await receiver.start()
    try:
        async with connected(host) as client:
            early = await submit(client, receiver)
            await client.polled(
                lambda: deliveries(client, early), lambda found: found and found[0]["last_status"] == 500
            )
            assert receiver.got == [], "signed with a clock that is a day off"
            wall.set(0)  # as NTP does, or waking up
            late = await submit(client, receiver)
            for job_id in (early, late):
                (delivery,) = await ended(client, job_id)
                assert delivery["state"] == "delivered", delivery
                assert [told.id for told in receiver.of(job_id)] == [delivery["id"]]
    finally:
        await receiver.stop()


async def test_what_waited_while_the_clock_was_a_day_ahead_goes_on_after_a_start_with_the_right_one(server, wall):
    wall.set(DAY_S)
    host = server(
        **{**SETTINGS, "GUARDED_WEBHOOKS__MAX_AGE_S": "600", "GUARDED_QUEUE__TIMEOUT_S": "20"}, **wall.environment
    ).start()
    receiver = Receiver(secret_of(host.base))
    async with connected(host) as client:
        told = await submit(client, receiver)
        assert_succeeded(await client.settled(told))
        await client.polled(lambda: deliveries(client, told), lambda found: found[0]["attempts"])
        running = await client.admitted(sleep(3600))
        await client.running(running)
        waiting = await client.admitted(text())
    await asyncio.to_thread(host.kill)
    wall.set(0)
    await receiver.start()
    try:
        await asyncio.to_thread(host.start)
        async with connected(host) as client:
            (delivery,) = await ended(client, told)
            assert (delivery["state"], len(receiver.of(told))) == ("delivered", 1)
            await client.running(running)
            assert_ended_badly(await client.settled(waiting), "queue_timeout")
            await client.cancel(running)
    finally:
        await receiver.stop()


async def test_a_start_with_a_clock_that_is_a_year_ahead_deletes_nothing_and_says_so(server, wall):
    wall.set(0)
    host = server(GUARDED_JANITOR__INTERVAL_S="60", GUARDED_STORE__BODIES_MAX_AGE_S="86400", **wall.environment).start()
    async with connected(host) as client:
        told = await client.admitted(text())
        assert_succeeded(await client.settled(told))
        assert (await client.request("GET", "/guarded/stats")).json["alarms"] == []
    host.stop()
    wall.set(400 * DAY_S)
    host.start()
    async with connected(host) as client:
        alarms = (await client.request("GET", "/guarded/stats")).json["alarms"]
        assert [alarm["code"] for alarm in alarms] == ["clock_doubted"]
        later = await client.admitted(text("later"))
        assert_succeeded(await client.settled(later))
        for _ in range(12):  # the database is looked after every second
            assert (await client.request("GET", f"/guarded/jobs/{told}")).status == 200
            assert (await client.request("GET", f"/guarded/jobs/{told}/prompt")).status == 200
            await asyncio.sleep(1)
