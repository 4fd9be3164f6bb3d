"""Files over ComfyUI's /view and /upload: each owner its own, and what is shared."""

import asyncio
import contextlib
import io
import json
import sqlite3
import uuid

import numpy as np
import pytest
from contract.client import (
    KeyedClient,
    assert_refusal,
    assert_succeeded,
    folder_of,
    gated,
    make_key,
    node,
    open_gate,
    photo_copy,
    picture,
    save,
    unique,
)
from contract.conftest import PHOTO
from contract.test_form import form, part
from PIL import Image

from comfyui_guarded.guard.files.uploads import INCOMING
from comfyui_guarded.guard.owners import FOLDER


def png(color=(200, 30, 30), size=(64, 48), mode="RGB"):
    file = io.BytesIO()
    image = Image.new(mode, size, color)
    image.putpixel((0, 0), (1, 2, 3) if mode == "RGB" else (1, 2, 3, 128))
    image.save(file, "PNG")
    return file.getvalue()


def fresh():
    """A picture that no other test has sent, and no check takes for a blank one."""
    file = io.BytesIO()
    noise = np.random.default_rng(uuid.uuid4().int % 2**32).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


async def upload(client, data, name, route="image", base="/guarded", **fields):
    """As every client does it: a multipart form with the file under `image`."""
    boundary = uuid.uuid4().hex
    parts = [f'form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'.encode() + data]
    parts += [f'form-data; name="{field}"\r\n\r\n{value}'.encode() for field, value in fields.items()]
    raw = b"".join(b"--%s\r\nContent-Disposition: %s\r\n" % (boundary.encode(), part) for part in parts)
    raw += b"--%s--\r\n" % boundary.encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return await client.request("POST", f"{base}/upload/{route}", raw=raw, headers=headers)


async def uploaded(client, data, name, **fields):
    answer = await upload(client, data, name, **fields)
    assert answer.status == 200, answer
    return answer.json


async def view(client, filename, **query):
    asked = "&".join(f"{name}={value}" for name, value in {"filename": filename, **query}.items())
    return await client.request("GET", f"/guarded/view?{asked}")


async def result(client, job):
    return (await client.request("GET", job["artifacts"][0]["url"])).content


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int32)


def is_negative(result, of):
    return np.abs(255 - pixels(result) - pixels(of)).max() <= 1


@pytest.fixture
def mine(client, keys):
    return keys.of(client, "mine")


@pytest.fixture
def yours(client, keys):
    return keys.of(client, "yours")


# Uploads. ----------------------------------------------------------------------------------------------------


async def test_a_client_that_reads_only_the_name_goes_on_working(client, mine):
    data = fresh()
    answer = await uploaded(mine, data, "me.png", type="input", overwrite="true")
    assert answer == {"name": "me.png", "subfolder": "", "type": "input"}
    job = await mine.run(photo_copy(answer["name"]))
    assert_succeeded(job)
    assert is_negative(await result(mine, job), data)
    assert (client.base / "input" / folder_of(client.base, "mine") / "me.png").read_bytes() == data
    assert not (client.base / "input" / "me.png").exists()
    assert (await view(mine, "me.png", type="input")).content == data
    # It is shown what it has sent, wherever its prompt comes back.
    entry = (await mine.get(f"/guarded/history/{job['job_id']}"))[job["job_id"]]
    assert entry["prompt"][2]["1"]["inputs"] == {"image": "me.png"}
    assert FOLDER not in json.dumps(entry)


async def test_the_same_name_is_another_file_for_each_owner(client, mine, yours):
    name = f"{unique('same')}.png"
    sent = {bot: fresh() for bot in (client, mine, yours)}
    for bot, data in sent.items():
        assert (await uploaded(bot, data, name))["name"] == name
    for bot, data in sent.items():
        assert (await view(bot, name, type="input")).content == data
        assert is_negative(await result(bot, await bot.run(photo_copy(name))), data)
    assert (client.base / "input" / name).read_bytes() == sent[client]


async def test_a_shared_input_is_there_for_everybody_until_an_upload_of_its_name(client, mine, yours):
    name = f"{unique('shared')}.png"
    shared, own = fresh(), fresh()
    (client.base / "input" / name).write_bytes(shared)
    (client.base / "input" / "sets").mkdir(exist_ok=True)
    (client.base / "input" / "sets" / name).write_bytes(shared)
    for bot in (client, mine, yours):
        assert is_negative(await result(bot, await bot.run(photo_copy(name))), shared)
        assert is_negative(await result(bot, await bot.run(photo_copy(f"sets/{name}"))), shared)
    await uploaded(mine, own, name)
    assert is_negative(await result(mine, await mine.run(photo_copy(name))), own)
    assert is_negative(await result(yours, await yours.run(photo_copy(f"{name} [input]"))), shared)
    assert (client.base / "input" / name).read_bytes() == shared


async def test_a_name_that_is_taken_gets_a_number_unless_the_file_is_the_same(mine):
    name = unique("again")
    first, second = fresh(), fresh()
    assert [
        (await uploaded(mine, data, f"{name}.png", **fields))["name"]
        for data, fields in ((first, {}), (first, {}), (second, {}), (second, {}), (second, {"overwrite": "1"}))
    ] == [f"{name}.png", f"{name}.png", f"{name} (1).png", f"{name} (1).png", f"{name}.png"]
    assert (await view(mine, f"{name}.png", type="input")).content == second


async def test_what_a_running_job_reads_is_not_replaced_before_its_end(client, mine, yours):
    """A film is opened each time that a node asks for something of it, long after it was looked at."""
    name, gate, first, second = f"{unique('read')}.png", unique("gate"), fresh(), fresh()
    await uploaded(mine, first, name)
    job_id = await mine.admitted(photo_copy(name) | {"9": gated(gate)["1"]})
    await mine.taken(job_id)
    try:
        refused = await upload(mine, second, name, overwrite="true")
        assert_refusal(refused, "file_in_use", 409)
        assert refused.headers["Retry-After"]
        assert (await view(mine, name, type="input")).content == first
        # The same bytes again change nothing; without `overwrite` others get another name.
        assert (await uploaded(mine, first, name, overwrite="true"))["name"] == name
        assert (await uploaded(mine, second, name))["name"] != name
        await uploaded(yours, second, name, overwrite="true")
    finally:
        open_gate(client.base, gate)
    assert_succeeded(await mine.settled(job_id))
    await uploaded(mine, second, name, overwrite="true")
    assert (await view(mine, name, type="input")).content == second


async def test_of_many_uploads_of_one_name_at_once_none_is_lost(mine):
    name = unique("race")
    sent = [fresh() for _ in range(10)]
    answers = await asyncio.gather(*(uploaded(mine, data, f"{name}.png") for data in sent))
    names = [answer["name"] for answer in answers]
    assert len(set(names)) == 10
    for stored, data in zip(names, sent, strict=True):
        assert (await view(mine, stored, type="input")).content == data


async def test_subfolders_and_temp_uploads_are_the_owners_too(client, mine, yours):
    data, name = fresh(), f"{unique('sub')}.png"
    answer = await uploaded(mine, data, name, subfolder="a/b")
    assert answer == {"name": name, "subfolder": "a/b", "type": "input"}
    assert (await view(mine, name, type="input", subfolder="a/b")).content == data
    assert_succeeded(await mine.run(photo_copy(f"a/b/{name}")))
    assert (await uploaded(mine, data, name, type="temp"))["type"] == "temp"
    assert (await view(mine, name, type="temp")).content == data
    assert_succeeded(await mine.run(photo_copy(f"{name} [temp]")))
    for query in ({"type": "input", "subfolder": "a/b"}, {"type": "temp"}):
        assert_refusal(await view(yours, name, **query), "not_found")
    assert_refusal(await yours.submit(photo_copy(f"{name} [temp]")), "bad_image")


async def test_an_upload_that_is_no_file_or_too_large_is_refused_and_leaves_nothing(client, mine):
    before = {path for path in (client.base / "input").rglob("*") if path.is_file()}
    for name in (
        "../x.png",
        "a/x.png",
        "..",
        ".",
        "a\\\\x.png",
        "C:x.png",
        "x.png [output]",
        "x" * 300,
        "\x01.png",
        FOLDER,
    ):
        assert_refusal(await upload(mine, fresh(), name), "invalid_request")
    for subfolder in ("..", "/etc", "a/../../b", FOLDER, f"{FOLDER}/{folder_of(client.base, 'yours')}"):
        assert_refusal(await upload(mine, fresh(), "x.png", subfolder=subfolder), "invalid_request")
    assert_refusal(await upload(mine, fresh(), "x.png", type="models"), "invalid_request")
    assert_refusal(await mine.request("POST", "/guarded/upload/image", raw=b"image=x"), "invalid_request")
    assert_refusal(await upload(mine, b"x" * (65 * 2**20), "x.png"), "payload_too_large", 413)
    assert {path for path in (client.base / "input").rglob("*") if path.is_file()} == before


async def test_an_upload_that_breaks_off_leaves_nothing(client, mine):
    head = (
        f"POST /guarded/upload/image HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {mine.key}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="image"; filename="broken.png"\r\n\r\n'
    )
    incoming = client.base / "input" / INCOMING
    _reader, writer = await asyncio.open_connection("127.0.0.1", client.host.port)
    writer.write(head.encode() + b"x" * 50_000)
    await writer.drain()

    async def under_way():
        return list(incoming.glob("*")) if incoming.exists() else []

    await client.polled(under_way, bool)
    writer.close()
    await client.polled(under_way, lambda found: not found)
    assert not (client.base / "input" / folder_of(client.base, "mine") / "broken.png").exists()


async def test_a_mask_is_laid_on_the_senders_picture(client, mine, yours):
    picture_, name = png(), f"{unique('mask')}.png"
    await uploaded(mine, picture_, name)
    mask = png((0, 0, 0, 60), mode="RGBA")
    original = json.dumps({"filename": name, "type": "input", "subfolder": ""})
    answer = await upload(mine, mask, f"clip-{name}", "mask", original_ref=original, subfolder="masks")
    assert answer.json == {"name": f"clip-{name}", "subfolder": "masks", "type": "input"}
    made = Image.open(io.BytesIO((await view(mine, f"clip-{name}", type="input", subfolder="masks")).content))
    assert made.mode == "RGBA"
    assert made.getpixel((5, 5)) == (200, 30, 30, 60)
    assert_refusal(await upload(yours, mask, name, "mask", original_ref=original), "not_found")
    assert_refusal(await upload(mine, b"no picture", name, "mask", original_ref=original), "bad_image")
    for reference in ("{", "[]", "{}", json.dumps({"filename": 5}), json.dumps({"filename": "../x.png"})):
        answer = await upload(mine, mask, name, "mask", original_ref=reference)
        assert_refusal(answer, "invalid_request")


async def test_the_operator_at_the_machine_uploads_as_in_plain_comfyui(client):
    data, name = fresh(), f"{unique('plain')}.png"
    assert await uploaded(client, data, name, subfolder="x") == {"name": name, "subfolder": "x", "type": "input"}
    assert (client.base / "input" / "x" / name).read_bytes() == data
    assert_succeeded(await client.run(photo_copy(f"x/{name}")))


# What a prompt may name. -------------------------------------------------------------------------------------


async def test_a_prompt_names_no_file_that_is_not_its_senders(client, mine, yours):
    name = f"{unique('secret')}.png"
    await uploaded(yours, fresh(), name)
    theirs = await yours.run(picture())
    made = theirs["artifacts"][0]["filename"]
    for value in (
        name,
        f"{folder_of(client.base, 'yours')}/{name}",
        f"{folder_of(client.base, 'yours').upper()}/{name}",
        f"./{folder_of(client.base, 'yours')}/{name}",
        f"x/../{folder_of(client.base, 'yours')}/{name}",
        f"{folder_of(client.base, 'mine')}/../{folder_of(client.base, 'yours').split('/')[1]}/{name}",
        f"../input/{folder_of(client.base, 'yours')}/{name}",
        f"{folder_of(client.base, 'yours')}/{name} [input]",
        f"../output/{made}",
        f"{made} [output]",
        f"none_{made} [output]",
        str(client.base / "output" / made),
        str(client.base / "input" / PHOTO),
        "/etc/hostname",
        "..",
        "../../../../etc/hostname",
        f"..\\{name}",
        f"C:\\{name}",
        f"{made}\0 [output]",
    ):
        refused = assert_refusal(await mine.submit(photo_copy(value)))
        assert refused["guard"]["code"] == "bad_image", value
        assert refused["error"]["extra_info"]["node_id"] == "1", value
    assert (await mine.get("/guarded/queue"))["queue_pending"] == []


async def test_a_text_that_leads_into_anothers_folder_is_refused_whatever_input_it_stands_in(client, mine):
    for words in (f"{folder_of(client.base, 'yours')}/x.png", str(client.base / "output" / "x.png"), f"see {FOLDER}/"):
        graph = {"1": node("FaultText", text=words, seed=0)}
        assert_refusal(await mine.submit(graph), "bad_image")
    for words in ("a guarded castle", "/imagine a cat", "one/two", "photo.png", "../x", "what [output]"):
        assert_succeeded(await mine.run({"1": node("FaultText", text=words, seed=0)}))


async def test_a_prompt_may_go_on_with_what_its_sender_has_made(mine, yours):
    made = (await mine.run(picture()))["artifacts"][0]
    graph = {"1": node("LoadImageOutput", image=f"{made['filename']} [output]"), "2": save("1")}
    answer = await mine.submit(graph)
    if answer.status == 422 and answer.code == "missing_node":
        graph["1"] = node("LoadImage", image=f"{made['filename']} [output]")
        answer = await mine.submit(graph)
    assert answer.status == 200, answer
    assert_succeeded(await mine.settled(answer.json["prompt_id"]))
    assert_refusal(await yours.submit(graph), "bad_image")


async def test_a_link_among_the_inputs_leads_nowhere_else(client, mine, yours):
    await uploaded(yours, fresh(), "linked.png")
    secret = client.base / "user" / "__guarded" / "keys.json"
    for number, target in enumerate((secret, client.base / "input" / folder_of(client.base, "yours") / "linked.png")):
        link = client.base / "input" / f"link{number}.png"
        link.symlink_to(target)
        try:
            assert_refusal(await view(mine, link.name, type="input"), "not_found")
            assert_refusal(await mine.submit(photo_copy(link.name)), "bad_image")
        finally:
            link.unlink()


async def test_what_may_be_of_several_kinds_names_no_file_and_may_come_from_another_node(mine):
    words = node("FaultJoin", one="51", other="2")
    pixels = node("FaultSleep", seconds=0.0, checks_interrupt=True, steps=0, seed=0)
    graph = {"1": words, "2": pixels, "3": node("FaultEither", value=["1", 0], picture=["2", 0])}
    job = await mine.run(graph)
    assert_succeeded(job)
    assert job["outputs"]["3"]["text"] == ["512", "True"]
    # It is no loader's: a text of several words, or with dots, is what it says.
    assert_succeeded(await mine.run({"3": node("FaultEither", value="photo.png")}))


async def test_a_missing_input_is_called_by_the_name_that_was_sent(mine):
    refused = assert_refusal(await mine.submit(photo_copy("nowhere.png")), "bad_image")
    assert "nowhere.png" in refused["error"]["message"]


async def test_a_loader_that_checks_nothing_itself_takes_an_upload_too(client, mine, yours):
    """Most packs' loaders list the files in the root of input, and ComfyUI refuses what is not in the list."""
    name = f"{unique('listed')}.txt"
    (client.base / "input" / "any.txt").write_text("shared")
    await uploaded(mine, b"own words", name)
    graph = {"1": node("FaultReadFile", file=name)}
    job = await mine.run(graph)
    assert_succeeded(job)
    assert job["outputs"]["1"]["text"] == ["own words"]
    assert_refusal(await yours.submit(graph))
    offered = (await mine.get("/guarded/object_info/FaultReadFile"))["FaultReadFile"]["input"]["required"]["file"][0]
    assert "any.txt" in offered


async def test_object_info_offers_own_uploads_and_hides_other_owners(client, mine, yours):
    name = f"{unique('offer')}.png"
    await uploaded(mine, fresh(), name)

    async def offered(bot):
        declared = (await bot.get("/guarded/object_info/LoadImage"))["LoadImage"]["input"]["required"]["image"]
        return declared[0] if isinstance(declared[0], list) else declared[1]["options"]

    assert name in await offered(mine)
    assert name not in await offered(yours)
    assert PHOTO in await offered(yours)
    assert FOLDER not in json.dumps(await yours.get("/guarded/object_info"))


async def test_the_face_check_takes_an_upload_by_its_name(client, mine, yours):
    (client.base / "input" / "shared_face.png").write_bytes((client.base / "input" / PHOTO).read_bytes())
    data, name = fresh(), f"{unique('face')}.png"
    await uploaded(mine, data, name)
    for body in ({"image": name}, {"image": name, "type": "input"}, {"image": f"{name} [input]"}):
        refused = assert_refusal(await mine.request("POST", "/guarded/face-check", body), "no_face")
        assert FOLDER not in json.dumps(refused)
        assert_refusal(await yours.request("POST", "/guarded/face-check", body), "bad_image")
    body = {"image": f"{folder_of(client.base, 'mine')}/{name}"}
    assert_refusal(await yours.request("POST", "/guarded/face-check", body), "bad_image")
    refused = assert_refusal(await mine.submit(photo_copy(name), guard={"face_check": True}), "no_face")
    assert FOLDER not in json.dumps(refused)


# View. -------------------------------------------------------------------------------------------------------


async def test_view_serves_the_callers_results_in_ranges(client, mine, yours):
    job = await mine.run(picture())
    file = job["artifacts"][0]
    whole = await result(mine, job)
    for path in ("/guarded/view", "/guarded/api/view", "/api/guarded/view"):
        answer = await mine.request("GET", f"{path}?filename={file['filename']}&subfolder=&type=output&rand=0.1")
        assert (answer.status, answer.content) == (200, whole)
        assert answer.headers["Content-Type"] == "image/png"
    part = await mine.request("GET", f"/guarded/view?filename={file['filename']}", headers={"Range": "bytes=10-19"})
    assert (part.status, part.content) == (206, whole[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
    again = await mine.request(
        "GET", f"/guarded/view?filename={file['filename']}", headers={"If-None-Match": part.headers["ETag"]}
    )
    assert again.status == 304
    # The operator names files below ComfyUI's own roots.
    folder = folder_of(client.base, "mine")
    assert (await view(client, file["filename"], subfolder=folder)).content == whole
    assert_refusal(await view(yours, file["filename"], subfolder=folder), "not_found")
    assert_refusal(await view(yours, file["filename"]), "not_found")
    assert_refusal(await view(yours, f"{file['filename']} [output]", type="input"), "not_found")
    assert (await view(mine, f"{file['filename']} [output]", type="input")).content == whole


async def test_a_result_whose_name_is_another_jobs_by_now_is_not_shown(client, mine, yours):
    """ComfyUI's counter starts again after a deletion, and the next picture gets the name."""
    prefix = unique("again")
    first = await mine.run(picture(prefix))
    name = first["artifacts"][0]["filename"]
    path = client.base / "output" / folder_of(client.base, "mine") / name
    path.unlink()
    assert (await yours.run(picture(prefix)))["artifacts"][0]["filename"] == name
    assert_refusal(await view(mine, name), "not_found")
    assert (await view(yours, name)).status == 200
    second = await mine.run(picture(prefix))
    assert second["artifacts"][0]["filename"] == name
    assert (await mine.request("GET", first["artifacts"][0]["url"])).status == 410
    path.write_bytes(fresh())
    assert_refusal(await view(mine, name), "artifact_gone", 410)


async def test_view_converts_as_comfyuis_does(client, mine):
    name = f"{unique('alpha')}.png"
    await uploaded(mine, png((200, 30, 30, 60), mode="RGBA"), name)
    await uploaded(client, png((200, 30, 30, 60), mode="RGBA"), name)
    for query in (
        {"preview": "webp;80"}, {"preview": "jpeg"}, {"preview": "x;y"}, {"preview": "jpeg;50", "channel": "a"},
        {"channel": "rgb"}, {"channel": "a"}, {"channel": "rgba"}, {"preview": "webp", "channel": "rgb"},
    ):  # fmt: skip
        ours = await view(mine, name, type="input", **query)
        asked = "&".join(f"{key}={value}" for key, value in {"filename": name, "type": "input", **query}.items())
        theirs = await client.request("GET", f"/view?{asked}")
        assert ours.headers["Content-Type"] == theirs.headers["Content-Type"], query
        mine_, native = Image.open(io.BytesIO(ours.content)), Image.open(io.BytesIO(theirs.content))
        assert (mine_.mode, mine_.size) == (native.mode, native.size), query
        assert mine_.getpixel((5, 5)) == native.getpixel((5, 5)), query
    (client.base / "input" / "words.txt").write_text("words")
    assert_refusal(await view(mine, "words.txt", type="input", preview="webp"), "bad_image")


async def test_view_shows_nothing_outside_and_nothing_that_is_not_the_callers(client, mine, yours):
    name = f"{unique('hidden')}.png"
    await uploaded(yours, fresh(), name)
    (client.base / "output" / "native.png").write_bytes(fresh())
    folder = folder_of(client.base, "yours")
    for filename, query, code in (
        (name, {"type": "input"}, "not_found"),
        (name, {"type": "input", "subfolder": folder}, "not_found"),
        (name, {"type": "input", "subfolder": folder.upper()}, "not_found"),
        (name, {"type": "input", "subfolder": f"x/../{folder}"}, "forbidden"),
        (
            name,
            {"type": "input", "subfolder": f"{folder_of(client.base, 'mine')}/../{folder.split('/')[1]}"},
            "forbidden",
        ),
        ("native.png", {}, "not_found"),
        ("native.png", {"type": "input", "subfolder": "../output"}, "forbidden"),
        ("native.png", {"subfolder": str(client.base / "output")}, "forbidden"),
        ("../output/native.png", {"type": "input"}, "invalid_request"),
        ("/etc/hostname", {}, "invalid_request"),
        ("keys.json", {"type": "user"}, "invalid_request"),
        ("keys.json", {"subfolder": "../user/__guarded"}, "forbidden"),
        ("%00", {}, "invalid_request"),
        ("%F0%9F", {}, "not_found"),
        ("x" * 5000, {}, "not_found"),
        ("blake3:0000", {}, "not_found"),
    ):
        assert_refusal(await view(mine, filename, **query), code)
    assert (await view(client, "native.png")).status == 200
    assert (await view(client, name, type="input", subfolder=folder)).status == 200


async def test_nothing_that_a_browser_would_run_is_shown_as_such(mine):
    for name, data in (("x.html", b"<script>1</script>"), ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")):
        await uploaded(mine, data, name)
        answer = await view(mine, name, type="input")
        assert answer.content == data
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_result_need_not_be_kept_once_its_owner_has_its_last_byte(client, mine):
    async def unread(job):
        with contextlib.closing(sqlite3.connect(client.base / "user" / "__guarded" / "guarded.db")) as db:
            return db.execute("SELECT count(*) FROM unread WHERE job_id = ?", (job["job_id"],)).fetchone()[0]

    job = await mine.run(picture())
    name, size = job["artifacts"][0]["filename"], job["artifacts"][0]["bytes"]
    await view(client, name)  # another caller's look, an operator's too, is not the owner's
    await view(mine, name, preview="webp")
    await mine.request("HEAD", f"/guarded/view?filename={name}")
    await mine.request("GET", f"/guarded/view?filename={name}", headers={"Range": "bytes=0-9"})
    assert await unread(job) == 1
    await mine.request("GET", f"/guarded/view?filename={name}", headers={"Range": f"bytes={size - 5}-"})
    await client.polled(lambda: unread(job), lambda left: left == 0)  # written once the answer is out
    job = await mine.run(picture())
    await view(mine, job["artifacts"][0]["filename"])
    await client.polled(lambda: unread(job), lambda left: left == 0)


async def test_in_guarded_mode_comfyuis_own_paths_do_the_same(sandbox_client):
    """For clients that drop the path of a base URL."""
    plain = await sandbox_client(GUARDED_NATIVE__MODE="guarded")
    bot = KeyedClient(plain, make_key(plain.base, "mine"), {"X-Forwarded-For": "203.0.113.9"})

    async def known():
        return (await bot.request("GET", "/guarded/jobs")).status

    await bot.polled(known, lambda status: status == 200)
    data = fresh()
    answer = await upload(bot, data, "me.png", base="")
    assert answer.json == {"name": "me.png", "subfolder": "", "type": "input"}
    assert not (plain.base / "input" / "me.png").exists()
    job_id = await bot.native_submit(photo_copy("me.png"))
    entry = await bot.native_entry(job_id)
    (file,) = entry["outputs"]["3"]["images"]
    shown = await bot.request("GET", f"/view?filename={file['filename']}&subfolder=&type=output")
    assert is_negative(shown.content, data)
    assert list(await bot.get("/history")) == [job_id]
    assert await bot.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert (await bot.get("/api/jobs"))["jobs"][0]["id"] == job_id
    # On this machine all is as in plain ComfyUI.
    assert (await upload(plain, data, "me.png", base="")).status == 200
    assert (plain.base / "input" / "me.png").read_bytes() == data


LOADERS = {
    **dict.fromkeys(("LoadImage", "LoadImageMask", "LoadImageOutput"), "image"),
    "LoadAudio": "audio",
    "LoadVideo": "file",
    "LoadLatent": "latent",
    "Load3D": "model_file",
    "Painter": "mask",
    **dict.fromkeys(("LoadImageSetFromFolderNode", "LoadImageDataSetFromFolder"), "folder"),
}


async def test_the_hosts_own_loaders_are_known_by_what_they_declare(client, mine):
    known = (await client.get("/object_info")).keys()
    for class_type, name in LOADERS.items():
        if class_type in known:
            graph = {"1": node(class_type, **{name: "../x"}), "2": node("FaultText", text="x", seed=0)}
            refused = assert_refusal(await mine.submit(graph), "bad_image")
            assert refused["error"]["extra_info"]["input"] == name, class_type
    # And of what they take besides, nothing is.
    graph = {"1": node("LoadImageMask", image=PHOTO, channel="../x"), "2": node("FaultText", text="x", seed=0)}
    if "LoadImageMask" in known:
        assert_succeeded(await mine.run(graph))


async def test_a_name_that_is_somebody_elses_picture_by_now_gives_nothing_of_it(client, mine):
    """Deleted names are given out again, to prompts of people who know no guard as well."""
    (made,) = (await mine.run(photo_copy(PHOTO)))["artifacts"]
    name, path = made["filename"], client.base / "output" / folder_of(client.base, "mine") / made["filename"]
    asked = {"image": name, "type": "output", "min_faces": 0}

    mask = png((0, 0, 0, 60), size=(128, 128), mode="RGBA")
    original = json.dumps({"filename": name, "type": "output", "subfolder": ""})

    async def asks():
        yield await mine.submit({"1": node("LoadImage", image=f"{name} [output]"), "2": save("1")}, wait_s=60)
        yield await upload(mine, mask, "m.png", "mask", original_ref=original)
        yield await mine.request("POST", "/guarded/face-check", asked)

    assert [answer.status async for answer in asks()] == [200, 200, 200]
    path.unlink()
    path.write_bytes(fresh())
    refused = [answer async for answer in asks()]
    assert [answer.code for answer in refused] == ["bad_image", "artifact_gone", "bad_image"]


async def test_bytes_are_counted_whichever_way_they_come(sandbox_client):
    client = await sandbox_client(GUARDED_LIMITS__UPLOAD_BYTES_PER_HOUR=str(2 * len(fresh()) + 500))
    await uploaded(client, fresh(), "one.png")
    raw, headers = form(part("prompt", json.dumps(photo_copy("two")).encode()), part("two", fresh(), "two.png"))
    once = {**headers, "Idempotency-Key": "once"}
    for _ in range(2):  # sent again, since the first answer was lost: it is no refusal now
        answer = await client.request("POST", "/guarded/prompt", raw=raw, headers=once)
        assert answer.status == 200, answer
    await client.settled(answer.json["prompt_id"])
    refused = await upload(client, fresh(), "three.png")
    assert_refusal(refused, "rate_limited", 429)
    assert int(refused.headers["Retry-After"]) > 0
    assert_refusal(await client.request("POST", "/guarded/prompt", raw=raw, headers=headers), "rate_limited", 429)
    assert not (client.base / "input" / "three.png").exists()
