"""Webhooks while the database takes no writes: what was received is not sent twice, and every attempt counts."""

import asyncio
import contextlib
import itertools
import sqlite3
import time

import pytest
from unit.fakes import LONG_S, settings
from unit.test_webhooks import finish

from comfyui_guarded.guard.client import LOCAL
from comfyui_guarded.guard.errors import DiskFullError
from comfyui_guarded.guard.events import attempts as attempts_module
from comfyui_guarded.guard.events import carrier as carrier_module
from comfyui_guarded.guard.events.outbox import Outbox
from comfyui_guarded.guard.job import Webhook
from comfyui_guarded.guard.store import DeliveryState
from comfyui_guarded.server_routes.sender import Sender

#: So many pauses pass that a delivery sent again after each of them would show.
PAUSES = 10


class Receiver:
    """A bot's web server that counts. Its answers are the given statuses in turn, and the last one for ever."""

    def __init__(self, *answers):
        self._answers = list(answers)
        #: The webhook-id of each request.
        self.ids = []
        self.at_s = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._receive, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"
        return self

    async def __aexit__(self, *_error):
        self._server.close()
        await self._server.wait_closed()

    async def _receive(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        await reader.readexactly(int(headers["content-length"]))
        self.at_s.append(time.monotonic())
        self.ids.append(headers["webhook-id"])
        status = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        writer.write(f"HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


class Disk:
    """A database that may not grow while this is full. Whatever becomes of a webhook takes some of its pages."""

    def __init__(self, store):
        self._store = store
        with contextlib.closing(sqlite3.connect(store.path)) as db:
            db.execute("CREATE TABLE ballast (content BLOB)")
            db.execute(
                "CREATE TRIGGER takes_room BEFORE UPDATE ON webhooks "
                "BEGIN INSERT INTO ballast VALUES (randomblob(20000)); END"
            )
            db.commit()
        self.refused = 0
        wrapped = store.record_attempt

        def record_attempt(*args):
            future = wrapped(*args)
            future.add_done_callback(self._count)
            return future

        store.record_attempt = record_attempt

    def _count(self, future):
        self.refused += future.exception() is not None

    def set_full(self, full):
        def operation(db):
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages if full else 2**30}").fetchone()

        is_set = False
        while not is_set:
            # It fails together with an attempt to write that is in the same commit.
            with contextlib.suppress(DiskFullError):
                self._store._engine.write(operation).result(LONG_S)
                is_set = True


@pytest.fixture
def disk(store, monkeypatch):
    monkeypatch.setattr(attempts_module, "WRITE_AGAIN_S", 0.05)
    monkeypatch.setattr(carrier_module, "PAUSE_S", 0.05)
    return Disk(store)


@contextlib.asynccontextmanager
async def sending(store, clock, first_retry_s=0.05):
    facts = {"allow_http": True, "allowed_networks": ["127.0.0.0/8"], "first_retry_s": first_retry_s}
    outbox = Outbox(settings(webhooks=facts).webhooks, store, lambda _owner: "whsec_" + "A" * 43 + "=", clock)
    sender = Sender(outbox, LONG_S)
    outbox.filled.subscribe(sender.wake)
    task = asyncio.create_task(sender.run())
    try:
        yield outbox
    finally:
        task.cancel()
        await asyncio.wait([task])
        await sender.close()


async def until(is_so):
    ends_s = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.01)


def deliveries(store):
    return store.list_deliveries(None, frozenset(DeliveryState), 999).result(LONG_S)


async def test_what_was_received_is_sent_once_and_holds_up_no_other(store, clock, disk):
    async with Receiver(204) as receiver:
        for _ in range(40):  # more than may be under way at once
            finish(store, Webhook(receiver.url))
        disk.set_full(True)
        async with sending(store, clock):
            await until(lambda: len(set(receiver.ids)) == 40)
            tried = disk.refused
            await until(lambda: disk.refused > tried + PAUSES)
            assert len(receiver.ids) == 40
            assert {delivery.state for delivery in deliveries(store)} == {DeliveryState.PENDING}
            disk.set_full(False)
            await until(lambda: {delivery.state for delivery in deliveries(store)} == {DeliveryState.DELIVERED})
        assert {delivery.attempts for delivery in deliveries(store)} == {1}
        assert len(receiver.ids) == 40


async def test_attempts_that_failed_count_and_their_pauses_grow(store, clock, disk):
    first_retry_s = 0.1
    async with Receiver(500) as receiver:
        finish(store, Webhook(receiver.url))
        disk.set_full(True)
        async with sending(store, clock, first_retry_s):
            await until(lambda: len(receiver.ids) == 5)
            disk.set_full(False)
            await until(lambda: deliveries(store)[0].attempts >= 5)
    (delivery,) = deliveries(store)
    assert delivery.attempts in (len(receiver.ids), len(receiver.ids) - 1), "the last one may not have ended yet"
    pauses_s = [later_s - earlier_s for earlier_s, later_s in itertools.pairwise(receiver.at_s)]
    # Half of a pause is random.
    assert all(pause_s > 0.45 * first_retry_s * 2**number for number, pause_s in enumerate(pauses_s)), pauses_s


async def test_a_delivery_that_failed_before_is_received_later_and_then_left_alone(store, clock, disk):
    async with Receiver(500, 503, 204) as receiver:
        finish(store, Webhook(receiver.url))
        disk.set_full(True)
        async with sending(store, clock):
            await until(lambda: len(receiver.ids) == 3)
            tried = disk.refused
            await until(lambda: disk.refused > tried + PAUSES)
            assert len(receiver.ids) == 3
            disk.set_full(False)
            await until(lambda: deliveries(store)[0].state is DeliveryState.DELIVERED)
    assert deliveries(store)[0].attempts == 3


async def test_a_redelivery_by_hand_is_sent_whatever_could_not_be_written_down_before(store, clock, disk):
    async with Receiver(204) as receiver:
        finish(store, Webhook(receiver.url))
        disk.set_full(True)
        async with sending(store, clock) as outbox:
            await until(lambda: disk.refused > 0)
            (delivery,) = deliveries(store)
            with pytest.raises(DiskFullError):
                await outbox.redeliver(delivery.webhook_id, LOCAL)
            assert len(receiver.ids) == 1, "what was refused has no effect"
            disk.set_full(False)
            assert (await outbox.redeliver(delivery.webhook_id, LOCAL)).state is DeliveryState.PENDING
            await until(lambda: len(receiver.ids) == 2)
            await until(lambda: deliveries(store)[0].state is DeliveryState.DELIVERED)
    assert len(set(receiver.ids)) == 1


async def test_only_so_many_attempts_are_kept_in_memory_and_the_others_wait(store, clock, disk, monkeypatch):
    monkeypatch.setattr(attempts_module, "UNWRITTEN_AT_MOST", 5)
    async with Receiver(204) as receiver:
        for _ in range(12):
            finish(store, Webhook(receiver.url))
        disk.set_full(True)
        async with sending(store, clock):
            await until(lambda: len(receiver.ids) == 5)
            tried = disk.refused
            await until(lambda: disk.refused > tried + PAUSES)
            assert len(receiver.ids) == 5
            disk.set_full(False)
            await until(lambda: len(receiver.ids) == 12)
            await until(lambda: {delivery.state for delivery in deliveries(store)} == {DeliveryState.DELIVERED})
    assert len(set(receiver.ids)) == 12


async def test_a_fault_of_ours_counts_as_an_attempt_too(store, clock, disk, monkeypatch):
    sent = []

    async def buggy(_self, delivery):
        sent.append(delivery.number)
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Sender, "attempt", buggy)
    finish(store, Webhook("http://127.0.0.1:9/hook"))
    async with sending(store, clock):
        await until(lambda: len(sent) >= 3)
        await until(lambda: deliveries(store)[0].attempts >= 3)
    assert "ZeroDivisionError: on purpose" in deliveries(store)[0].last_error
