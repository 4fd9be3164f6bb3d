"""A prompt and its files in one request."""

import asyncio
import io
import json
import uuid
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from contract.client import Answer, assert_refusal, assert_succeeded, folder_of, node, photo_copy, raises, save, unique
from contract.conftest import PHOTO
from PIL import Image

from comfyui_guarded.guard.owners import FOLDER


def noise(seed: int, size: int = 64) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fresh() -> bytes:
    """A picture that no other test has sent."""
    return noise(uuid.uuid4().int % 2**32)


def part(name: str, value: bytes, filename: str | None = None, *headers: str) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    lines = [f'Content-Disposition: form-data; name="{name}"{named}', *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


def form(*parts: bytes, boundary: str = "xxBOUNDARYxx") -> tuple[bytes, dict[str, str]]:
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + each for each in parts)
    return body + b"--" + boundary.encode() + b"--\r\n", {"Content-Type": f"multipart/form-data; boundary={boundary}"}


async def sent(client, *parts: bytes, query: str = "", boundary: str = "xxBOUNDARYxx", **headers: str) -> Answer:
    raw, content = form(*parts, boundary=boundary)
    return await client.request("POST", f"/guarded/prompt{query}", raw=raw, headers={**content, **headers})


def prompt(graph) -> bytes:
    return part("prompt", json.dumps(graph).encode())


def uploaded(base: Path) -> set[str]:
    """The files that lie in anybody's upload folder, those on their way included."""
    return {path.relative_to(base).as_posix() for path in (base / "input" / FOLDER).rglob("*") if path.is_file()}


@pytest.mark.parametrize("called", ["photo", "me.png"])
async def test_a_photo_comes_with_its_prompt_and_the_loader_finds_it(client, called):
    data = fresh()
    answer = await sent(
        client,
        prompt(photo_copy(called)),
        part("guard", b'{"metadata": {"chat": 5}}'),
        part("photo", data, "me.png", "Content-Type: image/png"),
        query="?wait=60",
    )
    assert answer.status == 200, answer
    job = answer.json["guard"]["job"]
    assert_succeeded(job)
    assert job["metadata"] == {"chat": 5}
    result = await client.request("GET", job["artifacts"][0]["url"])
    inverted, given = Image.open(io.BytesIO(result.content)), Image.open(io.BytesIO(data))
    np.testing.assert_allclose(255.0 - np.asarray(inverted.convert("RGB")), np.asarray(given), atol=1)


async def test_aiohttps_and_curls_way_to_send_a_form_work_too(client):
    """As `-F prompt=@graph.json -F photo=@me.png` does it: the prompt with a file name and a type."""
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("prompt", json.dumps(photo_copy("photo")), filename="graph.json", content_type="application/json")
    data.add_field("photo", io.BytesIO(fresh()), filename="фото.png")
    async with client.session.post(client.host.url + "/guarded/prompt?wait=60", data=data) as response:
        assert response.status == 200, await response.text()
        assert_succeeded((await response.json())["guard"]["job"])


async def test_the_same_photo_is_stored_once_however_many_send_it_at_once(client):
    data, before = fresh(), uploaded(client.base)
    answers = await asyncio.gather(
        *(sent(client, prompt(photo_copy("photo")), part("photo", data, f"{n}.png")) for n in range(12))
    )
    for answer in answers:
        assert answer.status == 200, answer
        assert_succeeded(await client.settled(answer.json["prompt_id"]))
    (stored,) = uploaded(client.base) - before
    assert stored.startswith(f"input/{folder_of(client.base, 'local')}/")


async def test_a_photo_that_is_stored_again_just_as_its_jobs_begin_costs_none_of_them(client):
    data = fresh()
    await client.request("POST", "/guarded_faults/packs/store_again")
    try:
        answers = await asyncio.gather(
            *(sent(client, prompt(photo_copy("photo", unique())), part("photo", data, f"{n}.png")) for n in range(12))
        )
        for answer in answers:
            assert answer.status == 200, answer
            assert_succeeded(await client.settled(answer.json["prompt_id"]))
    finally:
        await client.request("POST", "/guarded_faults/packs/off")


async def test_a_refusal_leaves_no_file(client):
    before = uploaded(client.base)
    graph = {**photo_copy("photo"), "4": node("NoSuchNode", image=["1", 0])}
    assert_refusal(await sent(client, prompt(graph), part("photo", fresh(), "me.png")), "missing_node")
    assert_refusal(
        await sent(client, prompt(raises("value_error")), part("photo", fresh(), "me.png")), "invalid_request"
    )
    assert_refusal(await sent(client, prompt(photo_copy("photo")), part("photo", b"", "me.png")), "bad_image")
    assert_refusal(await sent(client, part("photo", fresh(), "me.png")), "invalid_request")
    assert uploaded(client.base) == before


async def test_a_photo_without_a_face_is_refused_at_the_door_and_not_kept(client):
    before = uploaded(client.base)
    answer = await sent(
        client,
        prompt(photo_copy("photo")),
        part("guard", b'{"face_check": true, "locale": "ru"}'),
        part("photo", fresh(), "me.png"),
    )
    body = assert_refusal(answer, "no_face")
    assert body["error"]["extra_info"]["node_id"] == "1"
    assert body["error"]["extra_info"]["image"] == "me.png", "as it was sent, not as it would have been stored"
    assert body["error"]["message"] == "No face found in me.png."
    assert body["guard"]["user_message"].startswith("На фото не обнаружено лицо")
    assert uploaded(client.base) == before


async def test_an_idempotency_key_covers_the_files_and_not_the_form_around_them(client):
    key, graph, data = uuid.uuid4().hex, photo_copy("photo", unique()), fresh()
    parts = [prompt(graph), part("photo", data, "me.png")]
    first = await sent(client, *parts, **{"Idempotency-Key": key})
    again = await sent(client, *reversed(parts), boundary="another", **{"Idempotency-Key": key})
    assert first.status == again.status == 200, again
    assert again.json["prompt_id"] == first.json["prompt_id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = await sent(client, parts[0], part("photo", fresh(), "me.png"), **{"Idempotency-Key": key})
    assert_refusal(other, "conflict")
    await client.settled(first.json["prompt_id"])


async def test_two_photos_that_telegram_calls_alike_are_told_apart_by_their_fields(client):
    graph = {
        "1": node("LoadImage", image="one"),
        "2": node("LoadImage", image="two"),
        "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
        "4": save("3"),
    }
    answer = await sent(
        client,
        prompt(graph),
        part("one", fresh(), "photo.png"),
        part("two", fresh(), "photo.png"),
        query="?wait=60",
    )
    assert answer.status == 200, answer
    assert len(answer.json["guard"]["job"]["artifacts"]) == 2


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/mixed; boundary=x", "application/x-www-form-urlencoded", "text/plain", ""],
)
async def test_json_is_json_whatever_the_content_type_says(client, content_type):
    body = json.dumps({"prompt": photo_copy(PHOTO)}).encode()
    answer = await client.request("POST", "/guarded/prompt", raw=body, headers={"Content-Type": content_type})
    assert answer.status == 200, answer
    assert_succeeded(await client.settled(answer.json["prompt_id"]))


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"",),
        (b"no headers at all",),
        (part("prompt", b"{}").replace(b'name="prompt"', b""),),
        (part("prompt", b"{}"), part("prompt", b"{}")),
        (part("prompt", b"{}", None, "Content-Transfer-Encoding: base64"),),
        (part("prompt", b"{}", None, "Content-Encoding: gzip"),),
        (part("prompt", b"{}", None, "Content-Type: multipart/mixed; boundary=y"),),
        (part("prompt", b"[1]"),),
        (part("gaurd", b"{}"),),
    ],
    ids=range(10),
)
async def test_a_form_that_makes_no_sense_is_a_typed_refusal(client, parts):
    before = uploaded(client.base)
    answer = await sent(client, *parts)
    assert_refusal(answer)
    assert 400 <= answer.status < 500, answer
    assert uploaded(client.base) == before


async def test_a_form_that_is_cut_off_is_a_typed_refusal_and_leaves_no_file(client):
    before = uploaded(client.base)
    raw, headers = form(prompt(photo_copy("photo")), part("photo", fresh(), "me.png"))
    for cut in (10, 60, len(raw) // 2, len(raw) - 8):
        answer = await client.request("POST", "/guarded/prompt", raw=raw[:cut], headers=headers)
        assert_refusal(answer)
        assert 400 <= answer.status < 500, answer
    assert uploaded(client.base) == before


async def test_a_caller_who_hangs_up_in_the_middle_leaves_no_file(client):
    before = uploaded(client.base)
    raw, headers = form(prompt(photo_copy("photo")), part("photo", noise(3, 600), "me.png"))
    _reader, writer = await asyncio.open_connection("127.0.0.1", client.host.port)
    head = f"POST /guarded/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {headers['Content-Type']}\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw[: len(raw) - 50_000])
    await writer.drain()
    await client.polled(lambda: asyncio.to_thread(uploaded, client.base), lambda seen: seen != before)
    writer.close()
    await client.polled(lambda: asyncio.to_thread(uploaded, client.base), lambda seen: seen == before)


async def test_limits_of_size_and_number_are_told_and_leave_no_file(sandbox_client):
    client = await sandbox_client(
        GUARDED_UPLOADS__MAX_FILE_BYTES="20000",
        GUARDED_UPLOADS__MAX_REQUEST_BYTES="50000",
        GUARDED_UPLOADS__MAX_FILES="4",
        GUARDED_POLICY__MAX_BODY_BYTES="4096",
    )
    graph = prompt(photo_copy("a"))

    async def limit(*parts: bytes) -> dict[str, object]:
        body = assert_refusal(await sent(client, *parts), "payload_too_large")
        return dict(body["error"]["extra_info"])

    assert await limit(graph, part("a", noise(1, 100), "a.png")) == {"field": "a", "max_file_bytes": 20000}
    several = [part(name, noise(1), f"{name}.png") for name in "abcde"]
    assert await limit(graph, *several) == {"max_files": 4}
    assert await limit(graph, *(part(name, noise(1, 78), f"{name}.png") for name in "abc")) == {
        "max_request_bytes": 50000
    }
    assert await limit(part("prompt", b" " * 5000)) == {"max_body_bytes": 4096}
    assert uploaded(client.base) == set()
    assert (await sent(client, graph, several[0])).status == 200
