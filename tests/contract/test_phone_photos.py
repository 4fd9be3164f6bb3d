"""Photos of phones, which hold more than one picture, on their way to a loader."""

import base64
import io

import numpy as np
import phones
import pytest
from contract.client import Prompt, assert_refusal, assert_succeeded, node, unique
from contract.test_files import upload
from contract.test_form import part, prompt, sent
from PIL import Image, ImageOps


def copy(name: str) -> Prompt:
    """The photo through LoadImage and a saver."""
    save = node("SaveImage", images=["1", 0], filename_prefix=unique("phone"))
    return {"1": node("LoadImage", image=name), "2": save}


async def assert_shows(client, answer, photo: bytes) -> None:
    """The job's one picture is the photo's first, upright."""
    assert answer.status == 200, answer
    job = answer.json["guard"]["job"]
    assert_succeeded(job)
    (artifact,) = job["artifacts"]
    result = await client.request("GET", artifact["url"])
    with Image.open(io.BytesIO(result.content)) as made, Image.open(io.BytesIO(photo)) as first:
        expected = np.asarray(ImageOps.exif_transpose(first).convert("RGB"), float)
        found = np.asarray(made.convert("RGB"), float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4  # libav and libjpeg differ by a little


async def run(client, graph: Prompt):
    return await client.request("POST", "/guarded/prompt?wait=60", {"prompt": graph})


@pytest.mark.parametrize("name", phones.PHOTOS)
async def test_it_comes_with_its_prompt(client, name):
    photo = phones.PHOTOS[name]()
    answer = await sent(client, prompt(copy("photo")), part("photo", photo, "me.jpg"), query="?wait=60")
    await assert_shows(client, answer, photo)


@pytest.mark.parametrize(("form", "orientation"), [("JPEG", 5), ("PNG", 2), ("WEBP", 7), ("JPEG", 6)])
async def test_a_mirrored_or_turned_picture_comes_out_as_it_is_meant(client, form, orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    phones.scene().save(buffer, form, exif=exif)
    photo = buffer.getvalue()
    answer = await sent(client, prompt(copy("photo")), part("photo", photo, "me"), query="?wait=60")
    await assert_shows(client, answer, photo)


@pytest.mark.parametrize("suffix", [".jpg", ".jfif", ""])
async def test_it_is_uploaded_first(client, suffix):
    photo = phones.ultra_hdr()
    stored = (await upload(client, photo, unique("me") + suffix)).json["name"]
    await assert_shows(client, await run(client, copy(stored)), photo)
    again = await upload(client, photo, stored)
    assert again.json["name"] == stored  # it is the same file


async def test_it_comes_in_base64(client):
    photo = phones.motion_in_hdr()
    graph = copy("data:image/jpeg;base64," + base64.b64encode(photo).decode())
    await assert_shows(client, await run(client, graph), photo)


async def test_what_comfyuis_own_upload_has_stored_runs_or_is_refused_with_what_to_do(client):
    photo = phones.ultra_hdr()
    stored = (await upload(client, photo, unique("me"), base="")).json["name"]  # of which libav knows no kind
    answer = await run(client, copy(stored))
    if answer.status == 200:
        await assert_shows(client, answer, photo)
    else:
        assert "/guarded/upload/image" in assert_refusal(answer, "bad_image")["error"]["details"]
