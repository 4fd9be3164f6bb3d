"""What a keyed job saves lies in its owner's folder, whichever node saves it, and whoever ran the node before."""

import json

import pytest
from confinement import graphs
from confinement.conftest import only_in
from contract.client import Job, unique

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
