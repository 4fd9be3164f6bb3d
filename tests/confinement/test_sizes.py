"""A key that may have small pictures only gets no larger ones, whichever node makes them."""

import pytest
from confinement.graphs import PHOTO
from contract.client import assert_ended_badly, assert_refusal, assert_succeeded, node, picture, save

SMALL = {
    "1": node("EmptyImage", width=64, height=32, batch_size=1, color=0xFFFFFF),
    "2": save("3"),
}


def padded(top, left=0):
    pad = node("ImagePadForOutpaint", image=["1", 0], left=left, top=top, right=0, bottom=0, feathering=8)
    return {**SMALL, "3": pad}


def batched(count):
    """`count` pictures of 64 × 32."""
    prompt = {**SMALL, "2": save("1")}
    for number in range(count - 1):
        prompt[f"b{number}"] = node("ImageBatch", image1=prompt["2"]["inputs"]["images"], image2=["1", 0])
        prompt["2"] = save(f"b{number}")
    return prompt


LARGE = {
    "a node without sizes": (picture(), 128 * 128),
    "an input as large as it is": ({"1": node("LoadImage", image=PHOTO), "2": save("1")}, 128 * 128),
}


@pytest.mark.parametrize("case", LARGE)
async def test_no_node_makes_larger_pictures_than_the_key_may_have(tight, bob, case):
    prompt, pixels = LARGE[case]
    job = await tight.client.run(prompt)
    assert_ended_badly(job, "policy_violation")
    assert (job["error"]["details"]["value"], job["error"]["details"]["limit"]) == (pixels, 4096)
    assert_succeeded(await bob.client.run(prompt))


@pytest.mark.parametrize(("prompt", "pixels"), [(padded(33), 64 * 65), (padded(0, left=65), 129 * 32)])
async def test_what_can_be_seen_before_the_run_is_refused(tight, bob, prompt, pixels):
    error = assert_refusal(await tight.client.submit(prompt), "policy_violation")["error"]
    assert (error["extra_info"]["node_id"], error["extra_info"]["value"]) == ("3", pixels)
    assert error["details"] == "key.max_pixels"
    assert_succeeded(await bob.client.run(prompt))


async def test_what_is_as_large_as_the_key_may_have_is_delivered(tight):
    for prompt in (padded(32), padded(0, left=64), batched(2)):
        assert_succeeded(await tight.client.run(prompt))


async def test_what_a_node_reports_for_a_page_counts_too(tight):
    shown = node("PreviewImage", images=["1", 0])
    job = await tight.client.run({"1": node("LoadImage", image=PHOTO), "2": shown})
    assert_ended_badly(job, "policy_violation")
