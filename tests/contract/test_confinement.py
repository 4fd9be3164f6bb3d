"""What the prompts of keys may not name, over HTTP: `local` may."""

import pytest
from contract.client import assert_refusal, assert_succeeded, node, picture, save, unique


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
        assert body["error"]["details"] == "policy.fetch_hosts"


async def test_what_stays_inside_is_done_for_a_key(bot):
    prefix = f"..{unique()}/%width%_a..b"
    job = await bot.run(saved_as(["3", 0], **{"3": node("PrimitiveString", value=prefix)}))
    assert_succeeded(job)
