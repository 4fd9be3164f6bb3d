"""Packs that keep what they were shown of another owner."""

import io

import numpy as np
import pytest
from contract.client import assert_ended_badly, assert_succeeded, node, photo_copy, text, unique
from contract.test_files import uploaded
from PIL import Image


def noise():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng().integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def keeps(client):
    """A pack puts the first prompt that comes in the place of all others."""
    await client.request("POST", "/guarded_faults/packs/keep_prompt")
    yield
    await client.request("POST", "/guarded_faults/packs/off")


@pytest.mark.usefixtures("keeps")
async def test_a_prompt_that_a_pack_has_kept_opens_nothing_for_another_owner(alice, bob):
    name = f"{unique('private')}.png"
    await uploaded(alice.client, noise(), name)
    assert_succeeded(await alice.client.run({**photo_copy(name), "9": node("FaultText", text="x", seed=1)}))
    answer = await bob.client.submit(text("his own"))
    if answer.status == 200:  # newer ComfyUIs look at the file before
        assert_ended_badly(await bob.client.settled(answer.json["prompt_id"]), "policy_violation")
    assert_succeeded(await alice.client.run(text("hers again")))
