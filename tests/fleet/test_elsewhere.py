"""What callers of one box hear of a job that another one runs: progress, previews, ComfyUI's own messages."""

import asyncio
import json
import os
import signal
import struct
from contextlib import aclosing, closing
from dataclasses import dataclass

import aiohttp
import pytest
from contract.client import (
    assert_succeeded,
    connected,
    files_announced,
    gated,
    node,
    open_gate,
    save,
    sleep,
    text,
    types_of,
    unique,
)
from contract.sse import Reader
from fleet.conftest import Box, Fleet, make_fleet, until
from fleet.link import Link

from comfyui_guarded.tests.hosts.launch import free_port

pytestmark = pytest.mark.timeout(240)


def pictured():
    """Shows pictures of what is not finished, for as long as anybody wants to look."""
    return {"1": node("FaultPreview", steps=1000, seed=0), "2": save("1")}


@dataclass
class Pair:
    """A box that takes jobs and runs none, and one that runs them and tells, over a network that can be cut."""

    fleet: Fleet
    front: Box
    worker: Box
    link: Link


@pytest.fixture(scope="module")
def pair(tmp_path_factory, engine):
    port = free_port()
    with closing(Link(port)) as link, make_fleet(tmp_path_factory.mktemp("pair"), engine) as fleet:
        front = fleet.start(GUARDED_QUEUE__MAX_JOBS="0", tells=True)
        worker = fleet.start(port=port, GUARDED_FLEET__URL=f"http://127.0.0.1:{link.port}")
        yield Pair(fleet, front, worker, link)


async def test_progress_and_pictures_come_as_events_of_another_box_and_a_cancel_goes_there(pair):
    front, worker = pair.front, pair.worker
    async with connected(front) as client, connected(worker) as beside:
        job_id = await client.admitted(pictured())
        reader = Reader(client.session, f"{front.url}/guarded/jobs/{job_id}/events?preview=1")
        async with aclosing(reader.events()) as events:
            async for _event in events:
                if reader.of("progress") and len(reader.of("preview")) > 1:
                    break
        assert reader.of("progress")[-1]["node_id"] == "1"
        assert reader.of("preview")[-1]["mime"] == "image/jpeg"
        assert (await client.job(job_id))["progress"]["max"] == 1000
        await client.cancel(job_id)
        await client.polled(lambda: beside.native_running(), lambda running: not running)
    assert pair.fleet.count_ends(job_id) == 1


async def read(reader):
    async for _event in reader.events():
        pass


def list_steps(events):
    """What they say, but for the time, and for what comes again and again."""
    said = [event for event in events if event["type"] not in ("guarded", "progress_state")]
    return [{**event, "data": {**event["data"], "timestamp": None}} for event in said]


async def test_who_connects_to_another_box_right_after_a_submit_is_not_told_that_nothing_waits(pair):
    """A client that takes that for the end would look for a result that is not there."""
    async with connected(pair.front) as client, connected(pair.worker) as beside:
        said, prefix = [], unique()
        for number in range(4):
            job_id = await client.admitted(gated(f"{prefix}-{number}"))
            async with beside.socket("/guarded/ws") as socket:
                first = await socket.until(lambda event: event["type"] == "status")
                said.append(first["data"]["status"]["exec_info"]["queue_remaining"])
            open_gate(pair.worker.base, f"{prefix}-{number}")
            await client.settled(job_id)
        assert said == [1] * 4


@pytest.mark.parametrize("path", ["/ws", "/guarded/ws"])
async def test_a_socket_hears_a_job_of_another_box_from_its_start_to_its_end(pair, path):
    front, worker = pair.front, pair.worker
    prefix = unique()
    async with (
        connected(front) as client,
        client.socket(path) as socket,
        connected(worker) as beside,
        beside.socket("/ws", socket.client_id) as there,
    ):
        job_id = await client.admitted(gated(prefix), client_id=socket.client_id)
        await socket.until(lambda event: event["type"] == "executing" and event["data"]["node"] == "1")
        open_gate(worker.base, prefix)
        ours, theirs = await socket.until_end_of(job_id), await there.until_end_of(job_id)
    assert list_steps(ours) == list_steps(theirs)
    types = types_of([event for event in ours if event["type"] != "guarded"])
    assert types[0] == "execution_start"
    assert types.count("execution_success") == 1
    assert types[-1] == "executing"
    assert len(files_announced(ours)) == 1


async def test_a_socket_hears_progress_and_pictures_of_a_job_of_another_box(pair):
    front = pair.front
    async with (
        connected(front) as client,
        client.socket("/ws") as native,
        client.socket("/guarded/ws", native.client_id) as socket,
    ):
        job_id = await client.admitted(pictured(), client_id=socket.client_id)
        for one in (native, socket):
            while not one.frames:
                await one.next()
            assert struct.unpack(">II", one.frames[0][:8]) == (1, 1)
            await one.until(lambda event: event["type"] == "progress")
        await socket.until(lambda event: event["type"] == "guarded" and event["data"]["event"] == "progress")
        await client.cancel(job_id)
        for one in (native, socket):
            types = types_of(await one.until_end_of(job_id))
            ends = [kind for kind in types if kind in ("execution_error", "execution_interrupted")]
            assert (ends, types[-1]) == (["execution_error", "execution_interrupted"], "executing")
        await client.run(text(), client_id=socket.client_id)  # what was still on its way would come before
        for one in (native, socket):
            assert types_of(one.about(job_id))[-1] == "executing"


@pytest.mark.parametrize("path", ["/ws", "/guarded/ws"])
async def test_who_knows_previews_with_metadata_gets_such_of_a_job_of_another_box(pair, path):
    """Newer editors show no others."""
    async with connected(pair.front) as client, client.socket(path) as socket:
        await socket.ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        await socket.until(lambda event: event["type"] == "feature_flags")
        job_id = await client.admitted(pictured(), client_id=socket.client_id)
        while not [frame for frame in socket.frames if frame[:4] == struct.pack(">I", 4)]:
            await socket.next()
        frame = next(frame for frame in socket.frames if frame[:4] == struct.pack(">I", 4))
        (size,) = struct.unpack(">I", frame[4:8])
        metadata = json.loads(frame[8 : 8 + size])
        assert (metadata["prompt_id"], metadata["node_id"]) == (job_id, "1")
        await client.cancel(job_id)
        await socket.until_end_of(job_id)


async def test_a_stream_that_breaks_off_is_taken_up_again_and_nothing_is_told_twice(pair):
    async with connected(pair.front) as client, client.socket("/guarded/ws") as socket:
        job_id = await client.admitted(pictured(), client_id=socket.client_id)
        await socket.until(lambda event: event["type"] == "progress")
        pair.link.cut()
        pair.link.mend()
        seen = list(socket.seen)
        await socket.until(lambda event: event["type"] == "progress" and event not in seen)
        await client.cancel(job_id)
        types = types_of(await socket.until_end_of(job_id))
    assert types.count("execution_start") == 1


async def test_of_a_box_that_cannot_be_reached_the_states_come(pair):
    pair.link.cut()
    try:
        async with connected(pair.front) as client, client.socket("/guarded/ws") as socket:
            job_id = await client.admitted(sleep(0.5, steps=5), client_id=socket.client_id)
            await socket.until(lambda event: event["data"].get("state") == "succeeded")
            types = [event["type"] for event in await socket.until_end_of(job_id) if event["type"] != "guarded"]
            assert types[-3:] == ["executed", "execution_success", "executing"]
    finally:
        pair.link.mend()


async def test_a_box_that_is_asked_to_end_finishes_its_job_begins_none_and_sends_listeners_away(pair):
    other = pair.fleet.start(tells=True)
    prefix = unique()
    async with connected(pair.front) as front:
        await front.running(job_id := await front.admitted(gated(prefix)))
        leaving, stays = (pair.worker, other) if pair.fleet.find_box_of(job_id) is pair.worker else (other, pair.worker)
        reader = Reader(front.session, f"{leaving.url}/guarded/events")
        reading = asyncio.ensure_future(read(reader))
        async with connected(leaving) as there, there.socket("/guarded/ws") as heard:
            os.kill(leaving.pid, signal.SIGTERM)
            await front.polled(lambda: there.request("GET", "/guarded/ready"), lambda answer: answer.status == 503)
            later = await front.admitted(text())
            assert_succeeded(await front.settled(later))
            open_gate(stays.base, prefix)
            while (message := await heard.ws.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.SERVICE_RESTART)
            await reading  # it ended well, and with the words to come again
        job = await front.settled(job_id)
        assert (job["state"], job["attempts"]) == ("succeeded", 1), job
    until(lambda: not leaving.is_ready())
    if leaving is pair.worker:
        leaving.kill()
        leaving.start()


async def test_what_a_box_tells_others_is_told_to_nobody_else(pair):
    async with connected(pair.worker) as client:
        for headers in ({}, {"X-Guarded-Box": "box-00000000 0 00"}, {"X-Guarded-Box": "\xff a b"}):
            answer = await client.request("GET", "/guarded/fleet/stream", headers=headers)
            assert answer.status == 403, answer
