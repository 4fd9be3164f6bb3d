"""What a prompt's words reach beside the names of files: commands that nodes run, and what refusals list."""

import json
import re

import aiohttp
import pytest
from confinement import graphs
from confinement.conftest import has_video_helper_suite, only_in
from contract.client import node, picture, unique
from contract.conftest import PHOTO, hosts, is_real

from comfyui_guarded.guard.owners import FOLDER

COMMAND = "VHS_VideoCombine"


def combine(**inputs):
    given = {"frame_rate": 8, "loop_count": 0, "filename_prefix": "x", "pingpong": False, "save_output": True}
    return {"1": node("LoadImage", image=PHOTO), "2": node(COMMAND, images=["1", 0], **given, **inputs)}


@hosts(has_video_helper_suite)
async def test_no_word_of_a_format_makes_ffmpeg_open_anybodys_file(client, alice, bob):
    """FFmpeg's filters read and write any file, and nothing in the server hears of it."""
    known = await client.get("/object_info")
    assert COMMAND in known
    await alice.client.run(picture(unique("alice")))
    hers = f"{client.base}/output/{FOLDER[:1]}*/alice-*/*.png"
    spied = client.base / unique("spied")
    attacks = (
        f"none [x]; movie='{hers}':format_opts=pattern_type=glob [y]; [x][y] hstack",
        f"none,drawtext=textfile={client.base}/server.log",
        f"none,metadata=mode=print:file={spied}",
    )
    tried = 0
    for choice, widgets in known[COMMAND]["input"]["required"]["format"][1]["formats"].items():
        for name, *_ in widgets:
            for attack in attacks:
                for value in (attack, {"__value__": attack}, ["3", 0]):
                    prompt = combine(format=choice, **{name: value})
                    if value == ["3", 0]:
                        prompt["3"] = node("PrimitiveString", value=attack)
                    answer = await bob.client.submit(prompt)
                    assert answer.status == 422, (choice, name, value)
                    tried += 1
    assert tried
    assert not spied.exists()


@hosts(has_video_helper_suite)
async def test_no_prompt_goes_back_into_the_queue_as_nobodys(client, bob):
    """A batch of VideoHelperSuite's would run again and again as ComfyUI's own prompt, in the roots themselves."""
    known = await client.get("/object_info")
    assert "VHS_BatchManager" in known
    prompt = combine(format="video/h264-mp4", meta_batch=["3", 0])
    prompt["3"] = node("VHS_BatchManager", frames_per_batch=1)
    async with only_in(*(bob.place(kind) for kind in ("output", "temp")), base=client.base):
        answer = await bob.client.submit(prompt)
        assert answer.status == 422, answer


@hosts(has_video_helper_suite)
async def test_the_usual_words_of_a_format_are_taken(client, bob):
    preview = {"hidden": False, "params": {"filename": "x y.mp4", "format": "video/h264-mp4"}}
    for words in (
        {"format": "video/h264-mp4", "pix_fmt": "yuv420p10le", "crf": 20, "videopreview": preview},
        {"format": "video/ffmpeg-gif", "dither": "sierra2_4a"},
    ):
        async with only_in(*(bob.place(kind) for kind in ("output", "temp")), base=client.base):
            job = await bob.client.run(combine(**words))
        assert job["state"] == "succeeded", job


@pytest.mark.timeout(600)
async def test_no_class_opens_a_file_by_a_path_that_is_the_prompts(client, bob):
    """Relative to the server's own folder, where packs keep their settings: errors quote what they have read."""
    known = await client.get("/object_info")
    wanted = f"{unique('no-such')}/file.txt"
    opened = []
    for class_type, info in known.items():
        for name, kind, _options, _required in graphs.declared(info):
            if kind != "STRING" or not re.search(r"path|file(?!name_prefix)|folder|dir", name):
                continue
            prompt = graphs.make(class_type, info, known, **{name: wanted})
            if prompt is None or class_type.startswith("Fault"):
                continue
            prompt["10"] = node("PreviewAny", source=["9", 0])
            if not info["output"]:
                del prompt["10"]
            answer = await bob.client.submit(prompt)
            if answer.status == 200:
                job = await bob.client.settled(answer.json["prompt_id"])
                if re.search(r"No such file|not found|does not exist", json.dumps(job["error"])):
                    opened.append((class_type, name))
    assert not opened


async def test_no_refusal_lists_owners_folders(client, alice, bob):
    """ComfyUI says which choices an input has, subfolders of the input folder among them."""
    for bot in (alice, bob):
        form = aiohttp.FormData({"subfolder": unique("album")})
        form.add_field("image", (client.base / "input" / PHOTO).read_bytes(), filename="a.png")
        headers = {"Authorization": f"Bearer {bot.client.key}"}
        async with client.session.post(f"{client.host.url}/guarded/upload/image", data=form, headers=headers) as answer:
            assert answer.status == 200
    known = await client.get("/object_info")
    asked = 0
    for class_type, info in known.items():
        for name, one in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
            if isinstance(one[0], list) or one[0] == "COMBO":
                prompt = {"1": node(class_type, **{name: "no such"}), "2": node("PreviewAny", source=["1", 0])}
                answer = await bob.client.submit(prompt)
                asked += answer.status in (400, 422)
                assert FOLDER not in json.dumps(answer.json), (class_type, name)
    assert asked


@hosts(is_real)  # the sandbox has no sound
async def test_a_job_may_load_a_shared_sound(client, bob):
    """The loaders of ComfyUI make sure that their folders are there."""
    save = node("SaveAudio", audio=["1", 0], filename_prefix=unique("sound"))
    job = await bob.client.run({"1": node("LoadAudio", audio="tone.wav"), "2": save})
    assert job["state"] == "succeeded", job
