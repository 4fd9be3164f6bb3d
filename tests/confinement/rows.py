"""What bob tries, and which layers stop each by themselves.

A row's attack returns what bob got or broke; nothing where it failed. Add a row with :func:`row`; add a layer to
`host_nodes` with what takes it away.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confinement.conftest import Bot
from contract.client import Client, Job, node, picture, save, unique

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
