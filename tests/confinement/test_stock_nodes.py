"""What bob has really done with stock nodes of ComfyUI, tried on the real ones."""

import pytest
from confinement import graphs
from confinement.rows import make_scene
from contract.client import assert_succeeded, node, unique
from contract.conftest import hosts, is_real

pytestmark = [hosts(is_real), pytest.mark.comfyui]


async def test_preview3d_takes_over_no_result_and_has_none_quarantined(client, alice, bob):
    scene = await make_scene(client, alice, bob)
    known = await client.get("/object_info")
    operators = client.base / "output" / f"{unique('operator')}.png"
    operators.write_bytes(scene.content)
    for subfolder, name in (("", scene.name), ("", operators.name), (f"../{alice.folder}", scene.name)):
        camera = {"filename": name, "subfolder": subfolder, "type": "output"}
        for model_file in ("x.glb", f"{subfolder}/{name}".strip("/"), str(client.base / "output" / subfolder / name)):
            given = {"camera_info": camera, "model_file": model_file}
            prompt = graphs.make("Preview3D", known["Preview3D"], known, **given)
            prompt["8"] = node("FaultMissingFile", filename_prefix="bob", seed=0)
            assert not await scene.what_bob_gets(prompt)
            assert operators.read_bytes() == scene.content


@pytest.mark.parametrize("class_type", ["SaveImageDataSetToFolder", "SaveImageTextDataSetToFolder", "SaveImage"])
async def test_no_saver_plants_a_file_elsewhere(client, bob, class_type):
    known = await client.get("/object_info")
    if class_type not in known:
        return
    name = unique("planted")
    for prefix in (f"../../custom_nodes/{name}", str(client.base / "custom_nodes" / name), f"../../input/{name}"):
        for linked in (False, True):
            value = ["j", 0] if linked else prefix
            given = {"filename_prefix": value, "folder_name": "x", "texts": "words"}
            prompt = graphs.make(class_type, known[class_type], known, **given)
            prompt["j"] = node("FaultJoin", one=prefix[:3], other=prefix[3:])
            answer = await bob.client.submit(prompt)
            if answer.status == 200:
                await bob.client.settled(answer.json["prompt_id"])
            assert not [path for path in client.base.rglob(f"*{name}*") if bob.place() not in path.parents]


async def test_recordings_and_scenes_read_nothing_of_hers(client, alice, bob):
    scene = await make_scene(client, alice, bob)
    known = await client.get("/object_info")
    tried = 0
    for class_type, name in (("RecordAudio", "audio"), ("Load3D", "image"), ("WebcamCapture", "image")):
        if class_type not in known:
            continue
        for text in (f"{scene.name} [output]", f"{scene.name}/[output]"):
            for value in (text, ["j", 0], {"image": text, "mask": text, "normal": text, "recording": text}):
                prompt = graphs.make(class_type, known[class_type], known, **{name: value})
                if prompt is None:  # it needs what the test has not got
                    continue
                prompt["j"] = node("FaultJoin", one=text[:3], other=text[3:])
                outputs = known[class_type]["output"]
                for number, kind in enumerate(outputs):
                    if kind == "IMAGE":
                        prompt[f"s{number}"] = node("SaveImage", images=["9", number], filename_prefix="bob")
                tried += 1
                assert not await scene.what_bob_gets(prompt)
    assert tried or "RecordAudio" not in known


async def test_a_key_goes_on_with_its_own_results_as_in_the_editor(client, alice, bob):
    """What the media panel shows of its jobs, and what a node of the editor loads of its results."""
    scene = await make_scene(client, alice, bob)
    known = await client.get("/object_info")
    if "LoadImageOutput" in known:
        loaded = {"1": node("LoadImageOutput", image=f"{scene.name} [output]")}
        loaded["2"] = node("SaveImage", images=["1", 0], filename_prefix="again")
        assert_succeeded(await alice.client.run(loaded))
        answer = await bob.client.submit(loaded)
        assert (answer.status, answer.code) == (422, "bad_image")
    listed = await alice.client.request("GET", "/api/jobs")
    if listed.status == 200:
        shown = next(job["preview_output"] for job in listed.json["jobs"] if job["id"] == scene.job["job_id"])
        asked = "&".join(f"{name}={shown[name]}" for name in ("filename", "subfolder", "type"))
        assert (await alice.client.request("GET", f"/view?{asked}")).content == scene.content
        assert (await bob.client.request("GET", f"/view?{asked}")).status == 404
