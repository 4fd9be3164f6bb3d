"""What the prompts of keys may not name, over HTTP: `local` may."""

import hashlib
import json

import pytest
from contract.client import (
    KeyedClient,
    assert_refusal,
    assert_succeeded,
    connected,
    folder_of,
    make_key,
    node,
    photo_copy,
    picture,
    raises,
    save,
    text,
    unique,
)
from contract.test_files import png, upload
from contract.test_form import part, prompt, sent


@pytest.fixture
def bot(client, keys):
    return keys.of(client, "mine")


def saved_as(prefix, **more):
    return {**picture(), "2": node("SaveImage", images=["1", 0], filename_prefix=prefix), **more}


@pytest.mark.parametrize("prefix", ["../../custom_nodes/planted", "/tmp/planted", "x:/a", "a\0b", "\\\\host\\a"])
async def test_a_key_saves_nowhere_but_in_its_folder(bot, prefix):
    body = assert_refusal(await bot.submit(saved_as(prefix)), "policy_violation", 422)
    assert body["error"]["extra_info"]["input"] == "filename_prefix"
    assert body["guard"]["refund"] is True


async def test_a_key_is_refused_a_prefix_that_only_the_run_can_tell(bot):
    linked = saved_as(["3", 0], **{"3": node("SomeNode", value="../x")})
    assert_refusal(await bot.submit(linked), "policy_violation", 422)


@pytest.mark.parametrize("kind", ["SaveImageDataSetToFolder", "SaveImageTextDataSetToFolder"])
async def test_a_key_may_not_use_the_nodes_that_write_elsewhere(bot, kind):
    graph = {**picture(), "2": node(kind, images=["1", 0], folder_name="x", filename_prefix="x")}
    body = assert_refusal(await bot.submit(graph), "policy_violation", 422)
    assert body["error"]["details"] == "policy.keyed_deny_nodes"


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/view?filename=a.png", "http://169.254.169.254/", "http://0x7f.1/"]
)
async def test_a_key_makes_the_server_fetch_nothing_inside(bot, address):
    for kind, name in (("VHS_LoadVideoPath", "video"), ("LoadImage", "image"), ("Anything", "url")):
        graph = {"1": node(kind, **{name: address}), "2": save("1")}
        body = assert_refusal(await bot.submit(graph), "policy_violation", 422)
        # A file's address is fetched before there is a job, whatever else the prompt has.
        wanted = "fetch.allowed_networks" if kind == "LoadImage" else "policy.fetch_hosts"
        assert body["error"]["details"] == wanted


async def test_what_stays_inside_is_done_for_a_key(bot):
    prefix = f"..{unique()}/%width%_a..b"
    job = await bot.run(saved_as(["3", 0], **{"3": node("PrimitiveString", value=prefix)}))
    assert_succeeded(job)


# Files. -----------------------------------------------------------------------------------------------------------

PLAYLIST = b"#EXTM3U\n#EXTINF:1,\n../../secret.mp4\n"


@pytest.mark.parametrize("suffix", ["m3u8", "mp4", "png"])
async def test_a_key_uploads_no_list_of_other_files(bot, suffix):
    name = f"{unique()}.{suffix}"
    for base, kind in (("/guarded", "input"), ("/api/guarded", "temp")):
        answer = await upload(bot, PLAYLIST, name, base=base, type=kind)
        assert_refusal(answer, "bad_image", 422)
    assert_refusal(await bot.request("GET", f"/guarded/view?filename={name}&type=input"), "not_found")


async def test_a_key_sends_no_such_file_with_a_prompt(bot):
    asked = prompt(photo_copy("photo"))
    assert_refusal(await sent(bot, asked, part("photo", PLAYLIST, "photo.png")), "bad_image", 422)
    assert (await sent(bot, asked, part("photo", png(), "photo.png"))).status == 200


async def test_a_key_names_no_such_file_that_lies_there(bot, client):
    base = client.host.base
    for root, shown in (("input", "{}"), ("output", "{} [output]")):
        name = f"{unique()}.png"
        path = base / root / folder_of(base, "mine") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PLAYLIST)
        body = assert_refusal(await bot.submit(photo_copy(shown.format(name))), "bad_image", 422)
        assert body["error"]["extra_info"]["input"] == "image"
        assert "list of other files" in body["error"]["message"]


async def test_the_operator_at_the_machine_uploads_what_he_likes(client):
    answer = await upload(client, PLAYLIST, f"{unique()}.m3u8")
    assert answer.status == 200


# Keys that are tighter than the server. ---------------------------------------------------------------------------


async def test_a_key_for_templates_sends_no_graph_by_any_door(client, keys):
    bot = keys.of(client, "templates")
    for path in ("/guarded/prompt", "/api/guarded/prompt"):
        body = assert_refusal(await bot.request("POST", path, {"prompt": picture()}), "forbidden", 403)
        assert "/guarded/workflows" in body["error"]["details"]
    assert_refusal(await sent(bot, prompt(picture())), "forbidden", 403)
    answer = await bot.request("POST", "/guarded/workflows/photo_check", {"parameters": {}})
    assert answer.status != 403
    assert answer.code != "forbidden"


async def test_a_keys_own_limits_hold(client, keys):
    bot = keys.of(client, "tight")
    large = {"1": node("EmptyImage", width=64, height=65, batch_size=1, color=0), "2": save("1")}
    body = assert_refusal(await bot.submit(large), "policy_violation", 422)
    assert body["error"]["details"] == "key.max_pixels"
    assert_refusal(await bot.submit(photo_copy("photo.png")), "policy_violation", 422)


# What a key's owner sees of the server. ---------------------------------------------------------------------------


async def test_neither_errors_nor_outputs_nor_events_show_a_path_of_the_server(bot, client):
    base = str(client.host.base)
    words = f"cannot open {base}/custom_nodes/pack/nodes.py and {base}/output/a.png"
    async with bot.socket("/guarded/ws", key=bot.key) as socket:
        failed = await bot.run(raises("value_error", words), client_id=socket.client_id)
        shown = await bot.run(text(words), client_id=socket.client_id)
        heard = await socket.until_end_of(shown["prompt_id"])
    assert failed["error"]["details"]["exception_message"].startswith("cannot open nodes.py and a.png")
    assert "cannot open nodes.py and a.png" in json.dumps(shown["outputs"])
    listed = await bot.get(f"/guarded/history/{failed['job_id']}")
    assert base in json.dumps(listed[failed["job_id"]].pop("prompt"))  # its own words
    for told in (failed, shown, heard, listed):
        assert base not in json.dumps(told), told
    assert base in json.dumps(await client.run(text(words)))


async def test_what_is_sold_holds_no_prompt_where_the_operator_says_so(sandbox):
    host = sandbox(GUARDED_RESULTS__STRIP_METADATA="true")
    key = make_key(host.base, "seller")
    async with connected(host) as client:
        seller = KeyedClient(client, key)
        await seller.polled(lambda: seller.request("GET", "/guarded/jobs"), lambda answer: answer.status == 200)
        for sender, holds in ((client, True), (seller, False)):
            job = await sender.run(photo_copy("photo.png"))
            assert_succeeded(job)
            artifact = job["artifacts"][0]
            answer = await sender.request("GET", artifact["url"])
            assert (b"class_type" in answer.content) is holds
            assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (
                artifact["bytes"],
                artifact["sha256"],
            )
