"""What a bot hears of its jobs over server-sent events."""

import asyncio
import base64
import io
import random
from contextlib import aclosing, suppress

import pytest
from contract.client import TERMINAL, Client, assert_refusal, assert_succeeded, node, photo_copy, save, sleep, text
from contract.conftest import PHOTO
from contract.sse import Reader
from PIL import Image

#: What may follow what in the life of a job that runs once; `queued` alone may be the first.
LIFE = ["queued", "dispatched", "running", "validating", "succeeded"]


def reader_of(client: Client, job_id: str | None = None, query: str = "") -> Reader:
    path = f"/guarded/jobs/{job_id}/events" if job_id else "/guarded/events"
    return Reader(client.session, f"{client.host.url}{path}{query}")


async def read(reader: Reader) -> Reader:
    """To the end of the stream."""
    async for _told in reader.events():
        pass
    return reader


async def test_a_stream_tells_a_jobs_life_and_ends_with_its_end(client):
    async with client.busy():
        job_id = await client.admitted(text())
        reader = reader_of(client, job_id)
        reading = asyncio.ensure_future(read(reader))
        await client.polled(lambda: asyncio.sleep(0, reader.states), bool)
    await reading
    assert reader.states == LIFE
    ids = [told.id for told in reader.seen if told.name == "state"]
    assert ids == sorted(set(ids))
    assert reader.of("state")[0]["position"] == 1
    job = await client.job(job_id)
    assert_succeeded(job)
    assert reader.of("state")[-1] == job


async def test_a_settled_job_is_told_at_once_and_after_that_there_is_nothing_more(client):
    job = await client.run(text())
    reader = reader_of(client, job["job_id"])
    await read(reader)
    assert [told.data for told in reader.seen] == [job]
    await read(reader)
    assert (reader.status, len(reader.seen)) == (204, 1)


async def test_a_reader_that_comes_late_hears_the_whole_life_if_it_says_so(client):
    job = await client.run(text())
    reader = reader_of(client, job["job_id"])
    reader.last_id = "0"
    await read(reader)
    assert reader.states == LIFE


@pytest.mark.parametrize("value", ["x", "-1", "1e3", "9" * 30, "١"])
async def test_a_last_event_id_that_is_none_is_refused(client, value):
    answer = await client.request("GET", f"/guarded/events?last_event_id={value}")
    assert_refusal(answer, "invalid_request", 400)


async def test_the_stream_of_a_job_that_is_not_there_is_not_found(client):
    assert_refusal(await client.request("GET", "/guarded/jobs/nothing/events"), "not_found", 404)


async def test_progress_names_the_node_and_grows_over_the_whole_graph(client):
    graph = {
        **sleep(1.0, steps=20),
        "1b": node("FaultSleep", seconds=0.5, checks_interrupt=True, steps=10, seed=1),
        "2b": save("1b"),
        # Nothing needs it, so it is not run, and does not count.
        "unused": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    }
    graph["1"]["_meta"] = {"title": "Дремота"}
    reader = await read(reader_of(client, await client.admitted(graph)))
    told = reader.of("progress")
    assert reader.states[-1] == "succeeded"
    assert {data["node_title"] for data in told} >= {"Дремота", "FaultSleep"}
    assert all(set(data) == {"job_id", "value", "max", "node_id", "node_title", "percent"} for data in told)
    percents = [data["percent"] for data in told]
    assert percents == sorted(percents)
    assert percents[-1] >= 50
    assert any(0 < percent < 50 for percent in percents)


async def test_what_comes_from_the_cache_does_not_count_as_work(client):
    """The second time, only the picture is saved again, and two nodes are new: three have to run."""
    graph = photo_copy(PHOTO)
    await client.run(graph)
    graph["4"] = node("FaultSleep", seconds=0.4, checks_interrupt=True, steps=4, seed=7)
    graph["5"] = save("4")
    reader = await read(reader_of(client, await client.admitted(graph)))
    told = [data for data in reader.of("progress") if data["node_id"] == "4"][-1]
    assert told["percent"] in [int(100 * (others + told["value"] / told["max"]) / 3) for others in (0, 1)]


async def test_a_waiting_job_is_told_its_place_as_it_changes(client):
    async with client.busy():
        first = await client.admitted(text())
        second = await client.admitted(text())
        reader = reader_of(client, second)
        reading = asyncio.ensure_future(read(reader))
        await client.polled(lambda: asyncio.sleep(0, reader.of("position")), bool)
        assert reader.of("state")[0]["position"] == 2
        await client.cancel(first)
        await client.polled(lambda: asyncio.sleep(0, reader.of("position")[-1]["position"]), lambda place: place == 1)
        told = reader.of("position")[-1]
        assert set(told) == {"job_id", "position", "eta_s", "running", "max_jobs", "user_message"}
        assert (told["job_id"], told["running"], told["max_jobs"]) == (second, 1, 1)
        assert told["user_message"].startswith("Сервер загружен (1/1 задач).")
    await reading
    assert reader.states == LIFE


@pytest.mark.parametrize("with_metadata", [False, True])
async def test_previews_come_to_those_who_ask_for_them(client, with_metadata):
    """Whether or not the job's websocket wants them with metadata, which ComfyUI then sends instead."""
    graph = {"1": node("FaultPreview", steps=20, seed=3), "2": save("1")}
    async with client.socket() as socket:
        if with_metadata:
            await socket.ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            await client.polled(lambda: socket.next(), lambda event: event["type"] == "feature_flags")
        job_id = await client.admitted(graph, client_id=socket.client_id)
        asked, other = reader_of(client, job_id, "?preview=1"), reader_of(client, job_id)
        await asyncio.gather(read(asked), read(other))
    assert asked.states[-1] == "succeeded"
    assert other.of("preview") == []
    shown = asked.of("preview")
    assert 1 <= len(shown) <= 20
    for data in shown:
        assert (set(data), data["job_id"], data["mime"]) == ({"job_id", "mime", "data"}, job_id, "image/jpeg")
        picture = Image.open(io.BytesIO(base64.b64decode(data["data"])))
        assert (picture.format, max(picture.size)) == ("JPEG", 64)


async def test_an_operator_is_told_of_a_timeout_as_an_alarm(client):
    reader = reader_of(client)
    stream = reader.events()
    async with aclosing(stream):
        first = asyncio.ensure_future(anext(stream))
        await client.polled(lambda: asyncio.sleep(0, reader.last_id), bool)
        job_id = await client.admitted(sleep(60), guard={"timeout_s": 0.2})
        await first
        while not reader.of("alarm"):
            await anext(stream)
    alarm = reader.of("alarm")[0]
    assert (alarm["code"], alarm["job_id"]) == ("generation_timeout", job_id)
    await client.settled(job_id)


async def test_all_of_a_callers_jobs_come_in_one_stream(client):
    reader = reader_of(client)
    stream = reader.events()
    async with aclosing(stream):
        first = asyncio.ensure_future(anext(stream))
        await client.polled(lambda: asyncio.sleep(0, reader.last_id), bool)
        ids = [await client.admitted(text()) for _ in range(3)]
        await first
        while {data["job_id"] for data in reader.of("state") if data["state"] in TERMINAL} != set(ids):
            await anext(stream)
    for job_id in ids:
        assert [data["state"] for data in reader.of("state") if data["job_id"] == job_id] == LIFE


async def test_a_stream_ends_after_the_time_that_was_asked_for(client):
    reader = reader_of(client, query="?wait=0.2")
    await read(reader)
    assert reader.status == 200
    assert int(reader.last_id) > 0


async def test_readers_that_are_cut_off_at_random_see_every_state_once(client):
    """Half of them follow one job, half follow everything."""
    chance = random.Random(9)
    ends: dict[str, str] = {}

    async def follow(reader: Reader, wanted: set[str]) -> None:
        while not wanted <= {t.data["job_id"] for t in reader.seen if t.data.get("state") in TERMINAL}:
            stream = reader.events()
            async with aclosing(stream):
                with suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(_some(stream, chance.randint(0, 3)), chance.uniform(0.0, 0.3))

    start = reader_of(client, query="?wait=0")
    await read(start)
    async with client.busy():
        ids = [await client.admitted(sleep(0.1, steps=2)) for _ in range(6)]
        cancelled = ids[4]
        readers = [reader_of(client, job_id) for job_id in ids] + [reader_of(client) for _ in range(4)]
        for reader in readers:
            reader.last_id = start.last_id
        following = [
            asyncio.ensure_future(follow(reader, {job_id} if job_id else set(ids)))
            for reader, job_id in zip(readers, [*ids, None, None, None, None], strict=True)
        ]
        await asyncio.sleep(0.2)
        await client.cancel(cancelled)
    await asyncio.gather(*following)
    for job_id in ids:
        ends[job_id] = (await client.job(job_id))["state"]
    assert ends == {job_id: "cancelled" if job_id == cancelled else "succeeded" for job_id in ids}
    for reader, own in zip(readers, [*([job_id] for job_id in ids), ids, ids, ids, ids], strict=True):
        for job_id in own:
            seen = [t.data["state"] for t in reader.seen if t.name == "state" and t.data["job_id"] == job_id]
            assert seen == (["queued", "cancelled"] if job_id == cancelled else LIFE)


async def test_a_reader_that_does_not_read_for_a_while_misses_no_state(client):
    """More happens meanwhile than the sockets' buffers hold and than the server keeps for it."""
    reader = reader_of(client)
    stream = reader.events()
    async with aclosing(stream):
        first = asyncio.ensure_future(anext(stream))
        await client.polled(lambda: asyncio.sleep(0, reader.last_id), bool)
        ids = [await client.admitted(text(), guard={"metadata": {"x": "y" * 60_000}}) for _ in range(100)]
        await first
        await client.settled(ids[-1])
        while sum(data["state"] in TERMINAL for data in reader.of("state")) < len(ids):
            await anext(stream)
    for job_id in ids:
        assert [data["state"] for data in reader.of("state") if data["job_id"] == job_id] == LIFE


async def _some(stream, count):
    """Takes that many events, and then hangs on without reading."""
    for _ in range(count):
        if await anext(stream, None) is None:
            return
    await asyncio.sleep(60)
