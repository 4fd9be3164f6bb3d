"""What a keyed job saves lies in its owner's folder, whichever node saves it, and whoever ran the node before."""

import json

import pytest
from confinement import graphs
from confinement.conftest import only_in
from contract.client import Job, files_announced, node, picture, unique
from contract.test_files import png, uploaded

from comfyui_guarded.guard.owners import FOLDER

#: Nodes that a test cannot wait for, or that need what it has not got.
_LEFT_OUT = ("Fault", "Guarded")


async def run(bot, prompt) -> Job | None:
    answer = await bot.client.submit(prompt)
    return await bot.client.settled(answer.json["prompt_id"]) if answer.status == 200 else None


@pytest.mark.timeout(900)
async def test_every_saver_writes_into_its_owners_folder_and_nowhere_else(client, alice, bob):
    known = await client.get("/object_info")
    ran, saved = [], []
    for class_type, info in known.items():
        if not info.get("output_node") or class_type.startswith(_LEFT_OUT):
            continue
        prefix = unique("s")
        prompt = graphs.make(class_type, info, known, filename_prefix=prefix, folder_name=prefix)
        if prompt is None:
            continue
        for bot in (alice, bob, alice):
            places = [bot.place(kind) for kind in ("output", "temp")]
            async with only_in(*places, base=client.base) as changes:
                job = await run(bot, prompt)
            if job is None:
                break
            ran.append(class_type)
            saved += [class_type] if changes.paths else []
            assert FOLDER not in json.dumps(job), class_type
            for artifact in job["artifacts"]:
                path = bot.place(artifact["type"]) / artifact["subfolder"] / artifact["filename"]
                assert path.is_file(), (class_type, artifact)
                asked = f"filename={artifact['filename']}&subfolder={artifact['subfolder']}&type={artifact['type']}"
                assert (await bot.client.request("GET", f"/guarded/view?{asked}")).content == path.read_bytes()
                other = bob if bot is alice else alice
                assert (await other.client.request("GET", artifact["url"])).status == 404
            # A name that is the owner's own begins anew in its folder.
    assert {"SaveImage", "PreviewImage"} <= set(saved)


async def test_what_is_sold_does_not_say_where_its_owners_files_lie(alice):
    """Savers write the prompt into their files, and the prompt that runs names the upload by its real place."""
    name = f"{unique('photo')}.png"
    await uploaded(alice.client, png(), name)
    prompt = {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix=unique())}
    job = await alice.client.run(prompt)
    (artifact,) = job["artifacts"]
    content = (await alice.client.request("GET", artifact["url"])).content
    assert name.encode() in content  # the prompt is in it
    assert FOLDER.encode() not in content
    assert FOLDER not in json.dumps([job, await alice.client.get(f"/guarded/history/{job['job_id']}")])


async def test_a_socket_names_files_as_their_owner_does(alice):
    prompt = picture(unique("a/b"))
    async with alice.client.socket("/guarded/ws", key=alice.client.key) as socket:
        job = await alice.client.run(prompt, client_id=socket.client_id)
        events = await socket.until_end_of(job["job_id"])
    (file,) = files_announced(events)
    assert (file["filename"], file["subfolder"]) == (job["artifacts"][0]["filename"], "a")
    assert FOLDER not in json.dumps(socket.seen)
    assert (alice.place() / "a" / file["filename"]).is_file()
    asked = f"filename={file['filename']}&subfolder=a&type=output"
    assert (await alice.client.request("GET", f"/guarded/view?{asked}")).status == 200


async def test_a_keyed_editor_in_guarded_mode_sees_its_own_files_under_its_own_names(alice, bob):
    job = await alice.client.run(picture(unique("edit")))
    name = job["artifacts"][0]["filename"]
    assert (await alice.client.request("GET", f"/view?filename={name}&type=output")).status == 200
    assert (await bob.client.request("GET", f"/view?filename={name}&type=output")).status == 404
    entry = (await alice.client.get(f"/history/{job['job_id']}"))[job["job_id"]]
    assert [item["subfolder"] for output in entry["outputs"].values() for item in output["images"]] == [""]


async def test_the_operator_sees_where_an_owners_results_lie(client, alice):
    """ComfyUI's own panels ask ComfyUI's own `/view` for what the history names."""
    job = await alice.client.run(picture(unique("panel")))
    entry = await client.native_entry(job["job_id"])
    ((file,),) = (output["images"] for output in entry["outputs"].values())
    assert file["subfolder"] == alice.folder
    asked = f"filename={file['filename']}&subfolder={file['subfolder']}&type=output"
    assert (await client.request("GET", f"/view?{asked}")).status == 200


async def test_an_error_of_comfyuis_does_not_say_where_its_owners_files_lie(alice):
    prompt = {
        "1": node("FaultJoin", one="..", other="/x"),
        "2": node("FaultWrite", way="prefix", name=["1", 0], seed=1),
    }
    job = await alice.client.run(prompt)
    assert job["state"] == "failed"
    told = json.dumps(
        [
            job,
            await alice.client.get(f"/guarded/history/{job['job_id']}"),
            await alice.client.get(f"/guarded/api/jobs/{job['job_id']}"),
        ]
    )
    assert alice.folder.rpartition("/")[2] not in told
