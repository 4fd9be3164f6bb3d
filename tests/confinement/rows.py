"""What bob tries, and which layers stop each by themselves.

A row's attack returns what bob got or broke; nothing where it failed. Add a row with :func:`row`; add a layer to
`host_nodes` with what takes it away.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confinement.conftest import Bot
from contract.client import Client, Job, node, picture, save, sleep, unique
from contract.test_files import upload
from contract.test_form import part, sent
from contract.test_form import prompt as as_field

Attack = Callable[["Scene"], Awaitable[str]]


@dataclass(frozen=True)
class Row:
    """One thing that bob must not reach. `stopped_by`: the layers of which each alone stops it."""

    name: str
    attack: Attack
    stopped_by: frozenset[str]


ROWS: list[Row] = []


def row(*stopped_by: str) -> Callable[[Attack], Attack]:
    """Make the function a row, whose name is the function's."""

    def add(attack: Attack) -> Attack:
        ROWS.append(Row(attack.__name__, attack, frozenset(stopped_by)))
        return attack

    return add


@dataclass
class Scene:
    """Alice has made a picture; `path` is where it lies, wherever that is in this server."""

    client: Client
    alice: Bot
    bob: Bot
    job: Job
    content: bytes
    path: Path

    @property
    def name(self) -> str:
        """The picture's name, as alice sees it."""
        return str(self.job["artifacts"][0]["filename"])

    async def what_bob_gets(self, prompt: dict[str, Any]) -> str:
        """Run it as bob. What he got of alice's, or what is missing of it afterwards."""
        answer = await self.bob.client.submit(prompt)
        if answer.status == 200:
            job = await self.bob.client.settled(answer.json["prompt_id"])
            for artifact in job["artifacts"]:
                if (await self.bob.client.request("GET", artifact["url"])).content == self.content:
                    return "her picture as his artifact"
            for output in job["outputs"].values():
                if base64.b64encode(self.content).decode() in (output.get("text") or []):
                    return "her picture's bytes"
        return await self.what_alice_lost()

    async def what_bob_is_told(self, prompt: dict[str, Any]) -> str:
        """Run it as bob. What his job says, as text; empty where it is refused."""
        answer = await self.bob.client.submit(prompt)
        if answer.status != 200:
            return ""
        job = await self.bob.client.settled(answer.json["prompt_id"])
        return json.dumps([job["outputs"], job["error"]])

    def is_in(self, outputs: Any) -> bool:
        """Whether outputs have the bytes of alice's picture."""
        return base64.b64encode(self.content).decode() in json.dumps(outputs)

    async def what_alice_lost(self) -> str:
        if not self.path.exists() or self.path.read_bytes() != self.content:
            return "her file is gone"
        if (await self.alice.client.request("GET", f"/guarded/view?filename={self.name}")).status != 200:
            return "she cannot see it any more"
        return ""


async def make_scene(client: Client, alice: Bot, bob: Bot) -> Scene:
    job = await alice.client.run(picture(unique("alice")))
    artifact = job["artifacts"][0]
    content = (await alice.client.request("GET", artifact["url"])).content
    (path,) = (client.base / "output").rglob(artifact["filename"])
    return Scene(client, alice, bob, job, content, path)


# Results that are believed. --------------------------------------------------------------------------------------


@row("folders", "made")
async def takes_over_a_result_by_reporting_its_name(scene: Scene) -> str:
    return await scene.what_bob_gets({"1": node("FaultReport", filename=scene.name, subfolder="", type="output")})


@row("folders", "made")
async def has_a_result_quarantined_by_a_job_that_fails(scene: Scene) -> str:
    return await scene.what_bob_gets(
        {"1": node("FaultReport", filename=scene.name, subfolder="", type="output", missing=True)}
    )


@row("folders", "made")
async def has_an_operators_picture_quarantined(scene: Scene) -> str:
    path = scene.client.base / "output" / f"{unique('operator')}.png"
    path.write_bytes(scene.content)
    got = await scene.what_bob_gets(
        {"1": node("FaultReport", filename=path.name, subfolder="", type="output", missing=True)}
    )
    return got or ("" if path.exists() else "the operator's picture is gone")


# References. -----------------------------------------------------------------------------------------------------


@row("folders", "references")
async def loads_a_result_by_its_annotated_name(scene: Scene) -> str:
    return await scene.what_bob_gets({"1": node("FaultRecord", audio=f"{scene.name} [output]")})


@row("folders", "references", "tripwire")
async def loads_a_result_with_another_letter_before_the_bracket(scene: Scene) -> str:
    return await scene.what_bob_gets({"1": node("FaultRecord", audio=f"{scene.name}/[output]")})


@row("folders", "references", "tripwire")
async def loads_a_result_by_a_name_that_the_run_puts_together(scene: Scene) -> str:
    joined = node("FaultJoin", one=scene.name, other=" [output]")
    return await scene.what_bob_gets({"1": joined, "2": node("FaultRecord", audio=["1", 0])})


# Files that are not what they say. ------------------------------------------------------------------------------


def _list_her_picture(scene: Scene) -> bytes:
    """A playlist with her picture for its segment, from where his uploads lie."""
    return f"#EXTM3U\n#EXTINF:1,\n../../../output/{scene.name}\n".encode()


@row("folders", "content")
async def follows_a_playlist_that_he_uploads(scene: Scene) -> str:
    name = f"{unique('clip')}.mp4"
    answer = await upload(scene.bob.client, _list_her_picture(scene), name, subfolder="")
    if answer.status != 200:
        return ""
    return await scene.what_bob_gets({"1": node("FaultFollow", video=name)})


@row("folders", "content")
async def follows_a_playlist_that_he_sends_with_the_prompt(scene: Scene) -> str:
    prompt = {"1": node("FaultFollow", video="clip")}
    answer = await sent(scene.bob.client, as_field(prompt), part("clip", _list_her_picture(scene), "clip.mp4"))
    if answer.status == 200:
        job = await scene.bob.client.settled(answer.json["prompt_id"])
        if scene.is_in(job["outputs"]):
            return "her picture's bytes"
    return await scene.what_alice_lost()


@row("folders", "content")
async def follows_a_playlist_that_his_file_becomes_while_the_job_waits(scene: Scene) -> str:
    path = scene.bob.place("input") / f"{unique('clip')}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.content)
    await scene.client.admitted(sleep(0.5))
    waiting = await scene.bob.client.admitted({"1": node("FaultFollow", video=path.name)})
    path.write_bytes(_list_her_picture(scene))
    job = await scene.bob.client.settled(waiting)
    return "her picture's bytes" if scene.is_in(job["outputs"]) else await scene.what_alice_lost()


# Addresses. -----------------------------------------------------------------------------------------------------


@row("writes", "tripwire")
async def has_the_server_ask_itself_as_the_operator(scene: Scene) -> str:
    """From this machine, as the server's own user, no key is needed."""
    url = f"{scene.client.host.url}/guarded/jobs/{scene.job['job_id']}"
    told = await scene.what_bob_is_told({"1": node("FaultFetch", url=url)})
    return "her job" if scene.name in told else ""


# What errors and files tell. ------------------------------------------------------------------------------------


@row("folders", "cleaning", "tripwire")
async def opens_a_path_that_an_error_tells(scene: Scene) -> str:
    made = await scene.alice.client.run({"1": node("FaultGossip", fails=False, seed=uuid.uuid4().int % 2**32)})
    (artifact,) = made["artifacts"]
    content = (await scene.alice.client.request("GET", artifact["url"])).content
    told = await scene.what_bob_is_told({"1": node("FaultGossip", fails=True, seed=0)})
    assert artifact["filename"] in told
    if (found := re.search(rf"'(/[^']*{artifact['filename']})'", told)) is None:
        return ""
    path = found[1]
    joined = node("FaultJoin", one=path[:2], other=path[2:])
    told = await scene.what_bob_is_told({"1": joined, "2": node("FaultReadPath", words=["1", 0])})
    return "her picture's bytes" if base64.b64encode(content).decode() in told else ""


@row("folders", "made", "metadata")
async def reads_her_prompt_out_of_a_file_that_he_reports(scene: Scene) -> str:
    words = unique("her-words")
    prompt = {**picture(words), "9": node("FaultText", text=words, seed=0)}
    (artifact,) = (await scene.alice.client.run(prompt))["artifacts"]
    stolen = node("FaultReport", filename=artifact["filename"], subfolder="", type="output")
    answer = await scene.bob.client.submit({"1": stolen})
    job = await scene.bob.client.settled(answer.json["prompt_id"])
    for mine in job["artifacts"]:
        if b"FaultText" in (await scene.bob.client.request("GET", mine["url"])).content:
            return "her prompt"
    return ""


# Where files go. -------------------------------------------------------------------------------------------------


@row("folders", "tripwire", "writes")
async def plants_a_file_into_her_folder(scene: Scene) -> str:
    """Should its name ever leak, he names it in a prefix that arrives by a link."""
    name = unique("planted")
    prefix = f"{scene.alice.folder}/{name}"
    prompt = {
        "1": node("FaultJoin", one=prefix[:8], other=prefix[8:]),
        "2": node("FaultSleep", seconds=0, checks_interrupt=False, steps=0, seed=7),
        "3": save("2"),
    }
    prompt["3"]["inputs"]["filename_prefix"] = ["1", 0]
    await scene.what_bob_gets(prompt)
    seen = await scene.alice.client.request("GET", f"/guarded/view?filename={name}_00001_.png")
    return "she sees his file as hers" if seen.status == 200 else ""


async def _writes_over_hers(scene: Scene, way: str) -> str:
    target = f"{scene.client.base / 'output' / scene.name}" if way == "given" else scene.name
    joined = node("FaultJoin", one=target[:5], other=target[5:].removesuffix(".png"))
    return await scene.what_bob_gets({"1": joined, "2": node("FaultWrite", way=way, name=["1", 0], seed=9)})


for _way in ("getter", "kept", "variable", "imported", "given"):
    ROWS.append(
        Row(
            f"writes_over_hers_{_way}",
            functools.partial(_writes_over_hers, way=_way),
            frozenset({"folders", "tripwire"}),
        )
    )
