"""Who hears what: by client id and owner; what was missed; and clients that do not keep up."""

import asyncio
import json
from unittest.mock import Mock

import pytest
from aiohttp import WSMsgType
from aiohttp.http_websocket import WebSocketWriter
from unit.fakes import LONG_S, until

from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.callers import socket as one
from comfyui_guarded.guard.callers import sockets
from comfyui_guarded.guard.callers.socket import GOODBYE, Message
from comfyui_guarded.guard.callers.sockets import Sockets
from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import CancelledError
from comfyui_guarded.guard.events.event import Event
from comfyui_guarded.guard.job import SUCCESS, Result
from comfyui_guarded.server_routes.facade import ws

BOT, OTHER = Client("bot", operator=False), Client("other", operator=False)


@pytest.fixture
def hub(machine, store, host, clock):
    made = Sockets(store, host, machine.jobs, machine.events, machine.client_ids, clock)
    store.changed.subscribe(made.follow)
    return made


def opened(hub, client=BOT, client_id="tab"):
    """A socket, and what it has been asked to close for."""
    closed = []
    socket = hub.open(client, client_id, lambda: closed.append(True))
    return socket, closed


async def said(socket):
    """What waits to be sent, as (type, data) pairs."""
    told = []
    while socket._outbox:
        message = await socket.next()
        told.append(json.loads(message.content) if isinstance(message.content, str) else message.content)
    return [(event["type"], event["data"]) if isinstance(event, dict) else event for event in told]


async def succeeded(machine, outputs=None):
    """A job of the client id `tab` that has run and passed."""
    job_id = await machine.run(client_id="tab")
    machine.settler.settle(machine.job(job_id), SUCCESS, Result(outputs or {})).result(LONG_S)
    machine.runs.released(job_id)
    machine.store.flush()
    return job_id


def passed(hub, event, data, sid):
    hub.passed(event, data, sid, json.dumps({"type": event, "data": data}))


def test_client_ids_are_one_space_for_each_owner():
    ids = ClientIds(b"k" * 32)
    assert ids.of("local", "tab") == "tab"
    made = {ids.of("bot", "tab"), ids.of("other", "tab"), ids.of("bot", "tab2"), ids.of("bo", "ttab")}
    assert len(made) == 4
    assert "tab" not in made
    assert ids.of("bot", "tab") == ClientIds(b"k" * 32).of("bot", "tab")
    assert ids.of("bot", "tab") != ClientIds(b"x" * 32).of("bot", "tab")


async def test_the_first_word_is_the_count_and_the_id_as_the_client_knows_it(hub, host, machine):
    machine.submit()
    host.running_nodes[machine.client_ids.of("bot", "tab")] = "7"
    socket, _ = opened(hub)
    assert await said(socket) == [
        ("status", {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "tab"}),
        ("executing", {"node": "7"}),
    ]


async def test_a_message_goes_to_every_socket_of_its_client_id_and_to_no_other(hub, machine):
    first, second, other = opened(hub)[0], opened(hub)[0], opened(hub, OTHER)[0]
    for socket in (first, second, other):
        await said(socket)
    sid = machine.client_ids.of("bot", "tab")
    assert hub.wants(sid)
    assert not hub.wants("tab")
    hub.passed("preview", b"...", sid, b"\x00picture")
    hub.close(first)
    passed(hub, "progress", {"value": 1}, sid)
    assert await said(first) == [b"\x00picture"]
    assert await said(second) == [b"\x00picture", ("progress", {"value": 1})]
    assert await said(other) == []


async def test_what_comfyui_tells_everybody_is_for_operators(hub):
    bot, local = opened(hub)[0], opened(hub, LOCAL)[0]
    for socket in (bot, local):
        await said(socket)
    passed(hub, "logs", {"entries": ["secret"]}, None)
    assert await said(bot) == []
    assert await said(local) == [("logs", {"entries": ["secret"]})]


async def test_a_status_tells_each_owner_its_own_count(hub, machine, store, monkeypatch):
    monkeypatch.setattr(sockets, "STATUS_EVERY_S", 0)
    bot, other, local = opened(hub)[0], opened(hub, OTHER)[0], opened(hub, LOCAL)[0]
    for socket in (bot, other, local):
        await said(socket)
    machine.submit()
    machine.submit(owner="third")
    store.flush()
    await asyncio.sleep(0.05)

    def count(told):
        return [data["status"]["exec_info"]["queue_remaining"] for event, data in told if event == "status"][-1:]

    assert count(await said(bot)) == [1]
    assert count(await said(other)) == [], "nothing that concerns it has changed"
    assert count(await said(local)) == [2]


async def test_the_states_between_admission_and_end_change_no_count(hub, machine, store):
    job_id = await machine.run()
    opened(hub)
    store.validate(job_id).result(LONG_S)
    store.flush()
    await asyncio.sleep(0.05)
    assert hub._status_due is None
    store.settle(job_id, SUCCESS, Result()).result(LONG_S)
    await until(lambda: hub._status_due is not None)


async def count_told(hub, socket):
    """The counts that the socket hears of in the next few rounds of `status`."""
    await asyncio.sleep(0.05)
    return [data["status"]["exec_info"]["queue_remaining"] for event, data in await said(socket) if event == "status"]


@pytest.mark.parametrize("client", [BOT, LOCAL], ids=["its owner", "an operator"])
async def test_the_count_falls_only_once_the_end_is_told(hub, machine, store, monkeypatch, client):
    monkeypatch.setattr(sockets, "STATUS_EVERY_S", 0.001)
    watching = opened(hub, client)[0]
    opened(hub)
    job_id = await machine.run(client_id="tab")
    assert await count_told(hub, watching) == [0, 1]
    store.settle(job_id, SUCCESS, Result()).result(LONG_S)
    assert await count_told(hub, watching) == [], "the verdict is on disk, and nobody has heard of it"
    sid = machine.client_ids.of("bot", "tab")
    passed(hub, "executing", {"node": None, "prompt_id": job_id}, sid)
    assert await count_told(hub, watching) == [0]


async def test_the_count_falls_all_the_same_where_an_end_is_never_told(hub, machine, store, clock, monkeypatch):
    monkeypatch.setattr(sockets, "STATUS_EVERY_S", 0.001)
    socket = opened(hub)[0]
    job_id = await machine.run(client_id="tab")
    store.settle(job_id, SUCCESS, Result()).result(LONG_S)
    assert await count_told(hub, socket) == [0, 1]
    now_s = clock.monotonic_s() + sockets.END_TOLD_WITHIN_S
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s)
    assert await count_told(hub, socket) == [0]


async def test_the_new_count_comes_before_the_end_of_the_job(hub, machine, store):
    job_id = await machine.run(client_id="tab")
    socket, _ = opened(hub)
    await hub.catch_up(socket)
    await said(socket)
    store.settle(job_id, SUCCESS, Result()).result(LONG_S)
    passed(hub, "executing", {"node": None, "prompt_id": job_id}, socket.sid)
    assert [event for event, _data in await said(socket)] == ["status", "executing"]


async def test_a_jobs_events_go_to_the_sockets_of_its_client_id(hub, machine, store):
    first, second, other = opened(hub)[0], opened(hub)[0], opened(hub, client_id="elsewhere")[0]
    await asyncio.sleep(0)  # the reader of the events begins
    job_id = machine.submit(client_id="tab")
    machine.submit(client_id="tab", owner="third")
    store.flush()
    for socket in (first, second):
        message = None
        while message is None or json.loads(message.content)["type"] != "guarded":
            message = await asyncio.wait_for(socket.next(), LONG_S)
        data = json.loads(message.content)["data"]
        assert (data["event"], data["state"], data["job_id"]) == ("state", "queued", job_id)
        assert all(event != "guarded" for event, _data in await said(socket))
    assert all(event != "guarded" for event, _data in await said(other))


async def test_an_alarm_is_for_operators(hub, machine):
    bot, local = opened(hub)[0], opened(hub, LOCAL)[0]
    await asyncio.sleep(0)
    machine.events.tell(Event("alarm", lambda: {"code": "worker_died", "job_id": None, "message": "dead"}))
    await asyncio.sleep(0.05)
    told = {"event": "alarm", "code": "worker_died", "job_id": None, "message": "dead"}
    assert (await said(local))[-1] == ("guarded", told)
    assert [event for event, _data in await said(bot)] == ["status"]


async def test_without_sockets_nobody_reads_the_events(hub, machine, monkeypatch):
    monkeypatch.setattr(sockets, "FOLLOW_S", 0.01)
    socket, _ = opened(hub)
    await asyncio.sleep(0)
    assert machine.events.has_readers("state")
    hub.close(socket)
    await asyncio.sleep(0.1)
    assert not machine.events.has_readers("state")
    opened(hub)
    await asyncio.sleep(0)
    assert machine.events.has_readers("state")


async def test_missed_verdicts_are_told_in_order_and_forgotten_once_they_are_sent(hub, machine, store):
    good = await succeeded(machine, {"2": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}})
    bad = machine.submit(client_id="tab")
    machine.submit(client_id="elsewhere")
    machine.settler.end(machine.job(bad), CancelledError("The job was cancelled.")).result(LONG_S)
    socket, _ = opened(hub)
    await said(socket)
    await hub.catch_up(socket)
    verdicts = [message for message in socket._outbox if message.verdict_of]
    told = await said(socket)
    assert [(event, data["prompt_id"]) for event, data in told if event != "guarded"] == [
        ("executed", good), ("execution_success", good), ("executing", good),
        ("execution_error", bad), ("executing", bad),
    ]  # fmt: skip
    assert [(data["event"], data["state"]) for event, data in told if event == "guarded"] == [
        ("state", "succeeded"), ("state", "cancelled"),
    ]  # fmt: skip
    again, _ = opened(hub)
    await hub.catch_up(again)
    assert len(await said(again)) == 1 + len(told), "nothing was sent yet"
    for message in verdicts:
        hub.mark_sent(message)
    store.flush()
    last, _ = opened(hub)
    await hub.catch_up(last)
    assert len(await said(last)) == 1


async def test_a_verdict_that_comes_while_the_missed_ones_are_looked_up_is_told_once(hub, machine):
    live, late = await succeeded(machine), await succeeded(machine)
    socket, _ = opened(hub)
    passed(hub, "execution_success", {"prompt_id": live}, socket.sid)
    await hub.catch_up(socket)
    for event, data in (("execution_success", {}), ("executing", {"node": None})):
        passed(hub, event, {**data, "prompt_id": late}, socket.sid)
    told = [(event, data["prompt_id"]) for event, data in await said(socket) if event == "execution_success"]
    assert told == [("execution_success", live), ("execution_success", late)]


async def test_the_last_word_on_a_job_that_ended_before_the_socket_opened_comes_behind_its_verdict(hub, machine):
    missed = await succeeded(machine)
    socket, _ = opened(hub)
    await said(socket)
    for prompt_id in (missed, "a native one"):
        passed(hub, "executing", {"node": None, "prompt_id": prompt_id}, socket.sid)
    assert await said(socket) == []
    await hub.catch_up(socket)
    told = [(event, data["prompt_id"]) for event, data in await said(socket) if event.startswith("exec")]
    assert told == [("execution_success", missed), ("executing", missed), ("executing", "a native one")]
    passed(hub, "executing", {"node": None, "prompt_id": "the next"}, socket.sid)
    assert ("executing", {"node": None, "prompt_id": "the next"}) in await said(socket)


async def test_what_was_missed_is_told_before_an_end_that_comes_while_it_is_looked_up(hub, machine):
    missed, live = await succeeded(machine), await succeeded(machine)
    socket, _ = opened(hub)
    await said(socket)
    whole = (("executed", {"node": "2"}), ("execution_success", {}), ("executing", {"node": None}))
    for event, data in whole:
        passed(hub, event, {**data, "prompt_id": live}, socket.sid)
    assert await said(socket) == []
    await hub.catch_up(socket)
    told = [(name, data["prompt_id"]) for name, data in await said(socket) if name.startswith("exec")]
    expected = [("execution_success", missed), ("executing", missed), *((event, live) for event, _data in whole)]
    assert told == expected


async def test_another_owner_or_an_old_verdict_is_not_missed(hub, machine, store, monkeypatch):
    await succeeded(machine)
    other, _ = opened(hub, OTHER)
    await hub.catch_up(other)
    assert len(await said(other)) == 1
    monkeypatch.setattr(sockets, "MISSED_FOR_MS", -1_000)
    old, _ = opened(hub)
    await hub.catch_up(old)
    assert len(await said(old)) == 1


async def test_a_client_that_does_not_read_is_closed_and_its_rest_dropped(hub):
    socket, closed = opened(hub)
    for _ in range(one.OUTBOX_MESSAGES):
        passed(hub, "progress", {}, socket.sid)
    assert closed == [True]
    passed(hub, "progress", {}, socket.sid)
    assert closed == [True]
    assert await said(socket) == []
    big, closed = opened(hub)
    big.put(Message(b"x" * (one.OUTBOX_BYTES + 1)))
    assert closed == [True]


async def test_only_the_first_word_can_be_feature_flags(hub, host):
    socket, _ = opened(hub)
    await said(socket)
    hub.hear(socket, '{"type": "feature_flags", "data": {"a": true}}')
    hub.hear(socket, '{"type": "feature_flags", "data": {"a": false}}')
    assert await said(socket) == [("feature_flags", {"supports_preview_metadata": True})]
    assert host.flags == {socket.sid: {"a": True}}
    hub.close(socket)
    assert host.flags == {}


async def test_a_store_that_cannot_be_read_leaves_the_socket_open(hub, store):
    socket, closed = opened(hub)
    store.close()
    await hub.catch_up(socket)
    hub.mark_sent(Message("{}", verdict_of="x"))
    assert closed == []


def test_open_jobs_are_counted_by_owner_also_after_a_restart(machine, store, tmp_path, clock):
    machine.submit()
    running = machine.submit(owner="other")
    store.claim("local", 2).result(LONG_S)
    store.claim("local", 2).result(LONG_S)
    assert [store.count_open(owner) for owner in ("bot", "other", None, "nobody")] == [1, 1, 2, 0]
    store.start(running).result(LONG_S)
    machine.submit()
    store.close()
    again = type(store)(tmp_path / "guarded.db", clock)
    try:
        assert (again.count_open("bot"), again.count_open("other"), again.count_open(None)) == (2, 1, 3)
        again.settle(running, SUCCESS).result(LONG_S)
        again.recover("local", 2).result(LONG_S)
        assert (again.count_open("bot"), again.count_open("other")) == (2, 0)
    finally:
        again.close()


async def test_what_waits_is_taken_together_but_for_what_is_long_and_the_goodbye(hub):
    socket, _closed = opened(hub)
    await said(socket)
    short, long = Message("x" * 100), Message("y" * 2**15)
    for message in (short, short, b"\x00picture", long, short, GOODBYE):
        socket.put(Message(message) if isinstance(message, bytes) else message)
    assert [await socket.next(), *socket.take_more()] == [short, short, Message(b"\x00picture")]
    assert socket.bytes == 208 + 2**15 + 100, "what is being sent counts until it has left"
    assert [await socket.next(), *socket.take_more()] == [long]
    assert socket.bytes == 2**15 + 100
    assert [await socket.next(), *socket.take_more()] == [short]
    assert await socket.next() is GOODBYE
    assert socket.bytes == 0


@pytest.mark.parametrize("size", [0, 1, 125, 126, 2**16 - 1, 2**16])
@pytest.mark.parametrize("kind", ["text", "ü", b"picture"])
async def test_frames_are_those_of_aiohttp(size, kind):
    content = (kind * size)[:size]

    class Transport:
        written = b""

        def write(self, data):
            self.written += data

        def writelines(self, parts):
            self.written += b"".join(parts)

        def is_closing(self):
            return False

    transport = Transport()
    data, opcode = (content.encode(), WSMsgType.TEXT) if isinstance(content, str) else (content, WSMsgType.BINARY)
    await WebSocketWriter(Mock(_paused=False), transport).send_frame(data, opcode)
    assert ws._frame(content) == transport.written
