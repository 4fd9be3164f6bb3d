"""What a keyed owner's job opens is looked at when it is opened: the names that the run makes, and what the files hold
by then."""

import base64
import io
import os

import pytest
from confinement.conftest import tone
from confinement.test_tripwire import is_stopped
from contract.client import assert_ended_badly, assert_succeeded, gated, node, open_gate, sleep, unique
from contract.conftest import hosts, is_real
from PIL import Image
from policy.test_loaded_sounds import caf

from comfyui_guarded.guard.owners import FOLDER

PLAYLIST = b"#EXTM3U\n#EXTINF:1,\n../../secret.mp4\n"
WAYS = ("get", "split", "exists")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the node opens files as on POSIX")


def put(place, content=b"words", suffix=".txt"):
    path = place / f"{unique('file')}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def opens(name, way="get"):
    """A name that the run puts together of pieces too short to say anything."""
    pieces = [name[start : start + 3] for start in range(0, len(name), 3)]
    prompt = {"2": node("FaultOpen", way=way, words=pieces[0])}
    for index, piece in enumerate(pieces[1:]):
        prompt[f"j{index}"] = node("FaultJoin", one=prompt["2"]["inputs"]["words"], other=piece)
        prompt["2"]["inputs"]["words"] = [f"j{index}", 0]
    return prompt


def told(job):
    assert_succeeded(job)
    return job["outputs"]["2"]["text"]


@pytest.mark.parametrize("way", WAYS)
async def test_no_name_that_the_run_makes_leads_out_of_the_owners_folder(client, alice, bob, way):
    hers, upload = put(alice.place()), put(alice.place("input"))
    operators = put(client.base / "output")
    for name in (
        f"{alice.folder}/{hers.name} [output]",
        f"{alice.folder}/{hers.name}/[output]",
        f"x/../{alice.folder}/{hers.name}[output]",
        f"{alice.folder}/{upload.name}",
        f"{bob.folder}/../{alice.folder.removeprefix(FOLDER)[1:]}/{upload.name}",
        f"{operators.name} [output]",
        "words/[output]",
    ):  # fmt: skip
        await is_stopped(bob, opens(name, way))
    link = bob.place("input") / unique("link")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(hers)
    # Newer ComfyUIs refuse what leads out of input; and a link, by our own word or by ComfyUI's.
    for name in (f"../output/{operators.name}", "/etc/hostname", f"{bob.folder}/{link.name}"):
        job = await bob.client.run(opens(name, way))
        if job["state"] == "succeeded":
            assert job["outputs"]["2"]["text"] == ["False"]


@pytest.mark.parametrize("way", WAYS)
async def test_its_own_files_and_shared_ones_open(client, bob, way):
    shown = ["True"] if way == "exists" else [base64.b64encode(b"words").decode()]
    own, result, shared = put(bob.place("input")), put(bob.place()), put(client.base / "input")
    for name in (f"{bob.folder}/{own.name}", f"{bob.folder}/{result.name} [output]", shared.name):
        assert told(await bob.client.run(opens(name, way))) == shown


async def test_a_file_is_checked_once_more_where_it_is_opened(bob):
    path = put(bob.place("input"), PLAYLIST, ".png")
    job = await bob.client.run(opens(f"{bob.folder}/{path.name}"))
    assert_ended_badly(job, "bad_image")
    assert FOLDER not in str(job["error"])


async def test_a_file_that_becomes_a_list_while_its_job_waits_is_refused_before_the_run(bob, client):
    path = put(bob.place("input"), b"RIFF" + bytes(100), ".wav")
    for prompt in (
        {"1": node("FaultRecord", audio=path.name)},
        {"1": node("FaultText", text=f"{path.name}/[input]", seed=1)},  # nothing opens it, as far as anybody can tell
    ):
        path.write_bytes(b"RIFF" + bytes(100))
        busy = await client.submit(sleep(1.0))
        waiting = await bob.client.submit(prompt)
        assert (busy.status, waiting.status) == (200, 200), waiting
        path.write_bytes(PLAYLIST)
        job = await bob.client.settled(waiting.json["prompt_id"])
        assert_ended_badly(job, "bad_image")
        assert "list of other files" in job["error"]["message"]
        assert FOLDER not in str(job["error"])
        await client.settled(busy.json["prompt_id"])


async def test_a_file_that_stays_as_it_was_is_not_refused(bob):
    path = put(bob.place("input"), b"RIFF" + bytes(100), ".wav")
    assert_succeeded(await bob.client.run({"1": node("FaultRecord", audio=path.name)}))


async def test_what_only_sounds_like_a_files_name_is_not_heard(bob):
    """It would hold the worker for as long as its owner likes."""
    path = put(bob.place("input"), caf([2, 1]), ".caf")
    assert_succeeded(await bob.client.run({"1": node("FaultText", text=f"{path.name} [input]", seed=1)}))
    job = await bob.client.run(opens(f"{bob.folder}/{path.name}"))
    assert_ended_badly(job, "bad_video")


def picture(side):
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def upload(bot, name, data):
    """As its client's upload with `overwrite` does: another file takes the name."""
    path = bot.place("input") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name("new").write_bytes(data)
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("is_same", [False, True])
async def test_a_picture_that_is_replaced_while_its_job_waits_is_no_larger(bob, client, is_same):
    name, later = f"{unique('swap')}.png", picture(64 if is_same else 900)
    upload(bob, name, picture(64))
    busy = await client.submit(gated(name))
    waiting = await bob.client.submit(
        {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="swap")}
    )
    assert (busy.status, waiting.status) == (200, 200), waiting
    upload(bob, name, later)
    open_gate(client.base, name)
    job = await bob.client.settled(waiting.json["prompt_id"])
    if is_same:
        assert_succeeded(job)
    else:
        assert_ended_badly(job, "bad_image")
        assert FOLDER not in str(job["error"])
    await client.settled(busy.json["prompt_id"])


@hosts(is_real)  # with LoadAudio
async def test_a_sound_that_would_end_the_server_is_not_read_in_the_place_of_another(bob, client):
    name, deadly = f"{unique('swap')}.wav", caf([2, 1])
    upload(bob, name, tone())
    busy = await client.submit(gated(name))
    waiting = await bob.client.submit({"1": node("LoadAudio", audio=name), "2": node("PreviewAudio", audio=["1", 0])})
    assert (busy.status, waiting.status) == (200, 200), waiting
    upload(bob, name, deadly)
    open_gate(client.base, name)
    job = await bob.client.settled(waiting.json["prompt_id"])
    assert_ended_badly(job, "bad_audio")
    await client.settled(busy.json["prompt_id"])
    assert_succeeded(await bob.client.run({"1": node("FaultText", text="it lives", seed=1)}))
