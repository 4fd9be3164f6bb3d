"""The websocket under /guarded: what ComfyUI says to the caller, what it missed, and nothing of anybody else."""

import asyncio
import contextlib
import itertools
import json
import random
import struct
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from contract.client import (
    TERMINAL,
    Client,
    assert_heard_only_an_error,
    assert_native_error,
    assert_succeeded,
    files_announced,
    node,
    picture,
    save,
    sleep,
    text,
    types_of,
    unique,
)
from contract.test_access import make_key

#: As ComfyUI's own: from the start to the word that ends it for every client.
GOOD = ["execution_start", "execution_cached", "executed", "execution_success", "executing"]

_names = itertools.count()


async def _known(client: Client, key: str) -> None:
    """The server looks at its keys once a second."""
    await client.polled(
        lambda: client.request("GET", "/guarded/jobs", headers=_bearer(key)), lambda answer: answer.status == 200
    )


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def too_small() -> dict[str, Any]:
    """ComfyUI calls it a success; the checks do not."""
    return {"1": node("FaultTinyFile", filename_prefix=unique(), seed=0)}


def previewed() -> dict[str, Any]:
    return {"1": node("FaultPreview", steps=3, seed=0), "2": save("1")}


def remaining(event: dict[str, Any]) -> int:
    return int(event["data"]["status"]["exec_info"]["queue_remaining"])


async def test_the_guarded_socket_hears_what_comfyuis_own_hears(client):
    client_id = uuid.uuid4().hex
    async with client.socket("/ws", client_id) as native, client.socket("/guarded/ws", client_id) as guarded:
        assert guarded.seen[0]["type"] == "status"
        assert guarded.seen[0]["data"]["sid"] == client_id
        job_id = await client.admitted(sleep(0.1, steps=4), client_id=client_id)
        theirs, ours = await native.until_end_of(job_id), await guarded.until_end_of(job_id)
    assert [event for event in ours if event["type"] != "guarded"] == theirs
    types = types_of(ours)
    assert [kind for kind in types if kind in GOOD and kind != "executing"] == GOOD[:-1]
    assert len(files_announced(ours)) == 1


async def test_the_jobs_own_events_come_between(client):
    async with client.socket("/guarded/ws") as socket:
        job_id = await client.admitted(sleep(0.5, steps=5), client_id=socket.client_id)
        await client.admitted(text(), client_id="another")

        def ended(event: dict[str, Any]) -> bool:
            return event["type"] == "guarded" and event["data"].get("state") == "succeeded"

        job = (await socket.until(ended))["data"]
        told = [event["data"] for event in socket.seen if event["type"] == "guarded"]
    assert {data["job_id"] for data in told} == {job_id}
    states = [data["state"] for data in told if data["event"] == "state"]
    assert states == ["queued", "dispatched", "running", "validating", "succeeded"]
    assert [data for data in told if data["event"] == "progress" and data["max"] == 5]
    assert {name: value for name, value in job.items() if name not in ("event", "id")} == await client.job(job_id)


async def test_the_count_is_told_between_the_success_and_the_end(client):
    """Clients that watch the count alone take its fall for the end of their job."""
    async with client.socket("/guarded/ws") as socket:
        job_id = await client.admitted(sleep(0.3), client_id=socket.client_id)
        await socket.until(lambda event: event["type"] == "status" and remaining(event) == 1)
        await socket.until_end_of(job_id)
        types = types_of(socket.seen)
        fall = next(
            index
            for index, event in enumerate(socket.seen)
            if index and event["type"] == "status" and not remaining(event)
        )
    assert types.index("execution_success") < fall < len(types) - 1


async def test_a_socket_without_a_client_id_is_given_one(client):
    async with client.socket("/guarded/api/ws", "") as socket:
        sid = socket.seen[0]["data"]["sid"]
        assert sid
        job_id = await client.admitted(text(), client_id=sid)
        assert "execution_success" in types_of(await socket.until_end_of(job_id))


async def test_a_failed_check_is_heard_as_an_error_and_names_no_file(client):
    async with client.socket("/guarded/ws") as socket:
        job_id = await client.admitted(too_small(), client_id=socket.client_id)
        events = await socket.until_end_of(job_id)
        assert_native_error((await client.get(f"/guarded/history/{job_id}"))[job_id])
        assert_heard_only_an_error(events)
        types = [event["type"] for event in socket.seen if event["type"] != "guarded"]
        assert types[-3:] == ["execution_error", "status", "executing"]


async def test_an_end_at_the_deadline_is_an_error_before_it_is_an_interrupt(client):
    """Clients that know no interrupts would wait on."""
    async with client.socket("/guarded/ws") as socket:
        prompt = sleep(3600, steps=100_000)
        job_id = await client.admitted(prompt, client_id=socket.client_id, guard={"timeout_s": 0.5})
        events = await socket.until_end_of(job_id)
        assert_native_error((await client.get(f"/guarded/history/{job_id}"))[job_id])
    assert_heard_only_an_error(events)
    types = types_of(events)
    assert types.index("execution_error") < types.index("execution_interrupted") < types.index("executing", -1)


async def test_a_job_that_never_ran_is_heard_as_an_error(client):
    async with client.busy(), client.socket("/guarded/ws") as socket, client.socket("/ws", socket.client_id) as native:
        job_id = await client.admitted(picture(), client_id=socket.client_id)
        await client.cancel(job_id)
        for ear in (socket, native):
            events = await ear.until_end_of(job_id)
            assert (await client.get(f"/guarded/history/{job_id}"))[job_id]["status"]["status_str"] == "error"
            assert_heard_only_an_error(events)
            assert types_of(events)[-2:] == ["execution_error", "executing"]


async def test_what_was_missed_is_told_at_the_next_connection_and_only_once(client):
    client_id = uuid.uuid4().hex
    async with client.socket("/guarded/ws", client_id):
        pass
    good = await client.run(picture(), client_id=client_id)
    bad = await client.run(too_small(), client_id=client_id)
    async with client.socket("/guarded/ws", client_id) as socket:
        heard = await socket.until_end_of(bad["job_id"])
        assert_heard_only_an_error(heard)
        heard = [event for event in socket.about(good["job_id"]) if event["type"] != "guarded"]
        assert types_of(heard) == ["executed", "execution_success", "executing"]
        assert heard[0]["data"]["output"] == good["outputs"]["2"]
        # And all goes on as ever.
        job_id = await client.admitted(text(), client_id=client_id)
        assert "execution_success" in types_of(await socket.until_end_of(job_id))
    async with client.socket("/guarded/ws", client_id) as socket:
        job_id = await client.admitted(text(), client_id=client_id)
        await socket.until_end_of(job_id)
        assert not socket.about(good["job_id"])
        assert not socket.about(bad["job_id"])


async def test_a_verdict_missed_by_a_socket_that_only_then_opens_is_told_too(client):
    """A quick job ends before a client that posts first has opened its socket."""
    job = await client.run(text(), client_id=(client_id := uuid.uuid4().hex))
    async with client.socket("/guarded/ws", client_id) as socket:
        assert "execution_success" in types_of(await socket.until_end_of(job["job_id"]))


async def test_missed_verdicts_outlive_the_server(sandbox, sandbox_client):
    client = await sandbox_client()
    job = await client.run(picture(), client_id=(client_id := uuid.uuid4().hex))
    client.host.kill()
    client.host.start()
    async with client.socket("/guarded/ws", client_id) as socket:
        assert len(files_announced(await socket.until_end_of(job["job_id"]))) == 1


async def test_an_old_socket_that_closes_takes_nothing_from_the_new_one(client):
    async with client.socket("/guarded/ws") as new:
        async with client.socket("/guarded/ws", new.client_id), client.socket("/ws", new.client_id):
            pass
        job_id = await client.admitted(text(), client_id=new.client_id)
        assert "execution_success" in types_of(await new.until_end_of(job_id))


async def test_previews_pass_as_the_client_has_asked_for_them(client):
    async with client.socket("/guarded/ws") as socket:
        job_id = await client.admitted(previewed(), client_id=socket.client_id)
        await socket.until_end_of(job_id)
        assert len(socket.frames) == 3
        event, kind = struct.unpack(">II", socket.frames[0][:8])
        assert (event, kind) == (1, 1)
        assert socket.frames[0][8:11] == b"\xff\xd8\xff"
    async with client.socket("/guarded/ws") as socket:
        await socket.ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        answer = await socket.until(lambda event: event["type"] == "feature_flags")
        assert answer["data"] == await client.get("/features")
        job_id = await client.admitted(previewed(), client_id=socket.client_id)
        await socket.until_end_of(job_id)
        assert len(socket.frames) == 3
        event, length = struct.unpack(">II", socket.frames[0][:8])
        told = json.loads(socket.frames[0][8 : 8 + length])
        assert (event, told["prompt_id"], told["node_id"], told["image_type"]) == (4, job_id, "1", "image/jpeg")


async def test_owners_do_not_hear_each_other_whatever_client_id_they_give(client):
    mine, theirs = (make_key(client.base, f"bot{next(_names)}") for _ in range(2))
    await _known(client, theirs)
    client_id = uuid.uuid4().hex
    async with contextlib.AsyncExitStack() as stack:
        socket = await stack.enter_async_context(client.socket("/guarded/ws", client_id, mine))
        others = [
            await stack.enter_async_context(client.socket("/guarded/ws", client_id, theirs)),
            await stack.enter_async_context(client.socket("/guarded/ws", client_id)),
            await stack.enter_async_context(client.socket("/ws", client_id)),
        ]
        assert socket.seen[0]["data"]["sid"] == client_id
        job_id = await client.admitted(picture(), client_id=client_id, headers=_bearer(mine))
        assert "execution_success" in types_of(await socket.until_end_of(job_id))
        # Something that each of the others hears of its own, so that all before it has come.
        for other, headers in zip(others, (_bearer(theirs), None, None), strict=True):
            own = await client.admitted(text(), client_id=client_id, headers=headers)
            await other.until_end_of(own)
            assert not other.about(job_id)
        assert not any("guarded" in str(event) and job_id in str(event) for other in others for event in other.seen)


async def test_a_key_sees_its_own_count_and_no_broadcast(client):
    mine, theirs = (make_key(client.base, f"bot{next(_names)}") for _ in range(2))
    await _known(client, theirs)
    async with client.busy(), client.socket("/guarded/ws", key=mine) as socket:
        assert remaining(socket.seen[0]) == 0
        other = await client.admitted(text(), headers=_bearer(theirs))
        # A prompt without a client id: ComfyUI tells everybody how it goes.
        native = await client.native_submit(text(unique()))
        job_id = await client.admitted(text(), client_id=socket.client_id, headers=_bearer(mine))
        await socket.until(lambda event: event["type"] == "status" and remaining(event) == 1)
    async with client.socket("/guarded/ws", socket.client_id, mine) as again:
        await again.until_end_of(job_id)
    assert_succeeded(await client.settled(other))
    await client.native_entry(native)
    heard = socket.seen + again.seen
    assert {remaining(event) for event in heard if event["type"] == "status"} <= {0, 1}
    assert not [event for event in heard if event["data"].get("prompt_id") in (other, native)]


async def test_a_plain_request_to_the_socket_is_refused_in_json(client):
    answer = await client.request("GET", "/guarded/ws")
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request"


async def test_what_a_client_says_beside_feature_flags_is_ignored(client):
    async with client.socket("/guarded/ws") as socket:
        for word in ("no json", "[" * 5000, '"feature_flags"', '{"type": "feature_flags", "data": 5}'):
            await socket.ws.send_str(word)
        job_id = await client.admitted(text(), client_id=socket.client_id)
        assert "execution_success" in types_of(await socket.until_end_of(job_id))


async def test_a_client_that_talks_too_much_at_once_is_shown_out(client):
    async with client.socket("/guarded/ws") as socket:
        await socket.ws.send_str("x" * 2**20)
        while (message := await socket.ws.receive(60)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
    assert_succeeded(await client.run(text()))


def test_the_key_of_the_client_ids_is_nobody_elses_business(host):
    path: Path = host.base / "user" / "__guarded" / "client_ids.key"
    assert len(path.read_bytes()) == 32
    assert path.stat().st_mode & 0o077 == 0


async def test_sockets_that_are_cut_off_at_random_hear_every_state_once(client):
    """Each comes again with the number of the last state that it has heard."""
    chance = random.Random(5)
    life = ["queued", "dispatched", "running", "validating", "succeeded"]

    async def follow(client_id: str, last_id: int, wanted: set[str]) -> list[tuple[str, str, int]]:
        told: list[tuple[str, str, int]] = []
        while not wanted <= {job_id for job_id, state, _id in told if state in TERMINAL}:
            async with client.socket(f"/guarded/ws?last_event_id={last_id}", client_id) as socket:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(socket.until(lambda _event: False), chance.uniform(0.0, 0.4))
                for event in socket.seen:
                    if event["type"] == "guarded" and event["data"]["event"] == "state":
                        last_id = event["data"]["id"]
                        told.append((event["data"]["job_id"], event["data"]["state"], last_id))
        return told

    client_ids = [uuid.uuid4().hex for _ in range(4)]
    before = (await client.run(text(), client_id=client_ids[0]))["job_id"]
    async with client.socket("/guarded/ws?last_event_id=0", client_ids[0]) as socket:
        last = await socket.until(
            lambda event: event["type"] == "guarded" and event["data"].get("state") == "succeeded"
        )
        assert last["data"]["job_id"] == before
    async with client.busy():
        jobs = {one: {await client.admitted(sleep(0.1), client_id=one) for _ in range(2)} for one in client_ids}
        following = [asyncio.ensure_future(follow(one, last["data"]["id"], jobs[one])) for one in client_ids]
        await asyncio.sleep(0.3)
    for one, told in zip(client_ids, await asyncio.gather(*following), strict=True):
        assert {job_id for job_id, _state, _id in told} == jobs[one]
        for job_id in jobs[one]:
            assert [state for other, state, _id in told if other == job_id] == life
        numbers = [number for *_rest, number in told]
        assert numbers == sorted(set(numbers))


async def test_an_odd_event_of_some_pack_silences_nobody(sandbox_client, tmp_path):
    pack = tmp_path / "base0" / "custom_nodes" / "odd"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(
        "from server import PromptServer\n\n\n"
        "class Odd:\n"
        "    OUTPUT_NODE, RETURN_TYPES, FUNCTION, CATEGORY = True, (), 'run', 'odd'\n\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls):\n"
        "        return {'required': {}}\n\n"
        "    def run(self):\n"
        "        server = PromptServer.instance\n"
        "        server.send_sync('odd', {'prompt_id': ['of', 'many']}, server.client_id)\n"
        "        return {'ui': {'text': ['odd']}}\n\n\n"
        "NODE_CLASS_MAPPINGS = {'Odd': Odd}\n"
    )
    client = await sandbox_client()
    async with client.socket("/guarded/ws") as socket:
        job_id = await client.admitted({"1": node("Odd")}, client_id=socket.client_id)
        assert "execution_success" in types_of(await socket.until_end_of(job_id))


@pytest.mark.parametrize("listens", [False, True], ids=["alone", "a pack hears all"])
async def test_comfyuis_loop_is_woken_for_no_event_that_nobody_hears(sandbox_client, tmp_path, listens):
    """A pack may listen where ComfyUI sends: then it hears of jobs that have no socket, too."""
    pack = tmp_path / "base0" / "custom_nodes" / "counting"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(
        "from aiohttp import web\n"
        "from server import PromptServer\n\n"
        "server, queued, heard = PromptServer.instance, [], []\n"
        "put, send_json = server.messages.put_nowait, server.send_json\n\n\n"
        "def put_nowait(message):\n"
        "    queued.append(message[0])\n"
        "    put(message)\n\n\n"
        "async def hear(event, data, sid=None):\n"
        "    heard.append(event)\n"
        "    await send_json(event, data, sid)\n\n\n"
        "server.messages.put_nowait = put_nowait\n"
        f"if {listens}:\n"
        "    server.send_json = hear\n\n\n"
        "@server.routes.get('/counting')\n"
        "async def tell(request):\n"
        "    return web.json_response({'queued': queued, 'heard': heard})\n\n\n"
        "NODE_CLASS_MAPPINGS = {}\n"
    )
    client = await sandbox_client()
    await client.run(text())
    async with client.socket("/guarded/ws") as socket:
        await socket.until_end_of(await client.admitted(text(), client_id=socket.client_id))
        told = (await client.request("GET", "/counting")).json
    assert ("execution_success" in told["heard"]) is listens
    assert bool(told["queued"]) is listens
    async with client.socket("/ws") as socket:
        job_id = await client.admitted(text(), client_id=socket.client_id)
        assert "execution_success" in types_of(await socket.until_end_of(job_id))
