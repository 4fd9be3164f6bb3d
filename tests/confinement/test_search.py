"""A search that nobody steers: bob asks for alice's files by every input of every stock node that takes a text.

`CONFINEMENT=2000` for a long one.
"""

import asyncio
import io
import json
import os
import re
import urllib.parse
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from confinement import graphs
from confinement.conftest import Bot, only_in
from contract.client import Client, Prompt, node, unique
from contract.test_files import uploaded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyui_guarded.guard.owners import FOLDER

GRAPHS = int(os.environ.get("CONFINEMENT", "200"))
#: No other picture here has this size: a result that has it shows hers.
SIDES = (97, 61)
SECRET = "a heron that nobody else may read of"

#: By what a node gives: what shows it to whoever asked.
SHOWS = {
    "IMAGE": lambda link: node("SaveImage", images=link, filename_prefix=unique("bob")),
    "AUDIO": lambda link: node("SaveAudio", audio=link, filename_prefix=unique("bob")),
    "VIDEO": lambda link: node("SaveVideo", video=link, filename_prefix=unique("bob"), format="auto", codec="auto"),
    "LATENT": lambda link: node("SaveLatent", samples=link, filename_prefix=unique("bob")),
}

SPELLINGS: list[Any] = [
    lambda name, base: name,
    lambda name, base: f"{name} [output]",
    lambda name, base: f"{name}[output]",
    lambda name, base: f"{name}/[output]",
    lambda name, base: f"{name} [input]",
    lambda name, base: f"{name}. [output]",
    lambda name, base: f"./{name} [output]",
    lambda name, base: f"x/../{name} [output]",
    lambda name, base: f"{FOLDER}/{name}",
    lambda name, base: f"{FOLDER}/*/{name}",
    lambda name, base: f"../output/{name}",
    lambda name, base: f"../input/{FOLDER}/{name}",
    lambda name, base: f"output/{name}",
    lambda name, base: str(base / "output" / name),
    lambda name, base: f"/{base / 'output' / name}",
    lambda name, base: f"/proc/self/root{base / 'output' / name}",
    lambda name, base: f"/proc/self/cwd/../../{base / 'output'}/{name}",
    lambda name, base: str(base / "output"),
    lambda name, base: str(base / "input" / FOLDER),
    lambda name, base: str(base / "output" / FOLDER),
    lambda name, base: str(base / "user" / "__guarded" / "keys.json"),
    lambda name, base: f"file://{base / 'output' / name}",
    lambda name, base: f"x://../{base / 'output'}/{name}",
    lambda name, base: f"http://127.0.0.1/../{name}",
    lambda name, base: urllib.parse.quote(f"../output/{name}", safe=""),
    lambda name, base: name.upper(),
    lambda name, base: f"{name}...",
    lambda name, base: f"{name} ",
    lambda name, base: f"..\\output\\{name}",
    lambda name, base: f"C:\\output\\{name}",
    lambda name, base: f"~/{name}",
    lambda name, base: f"{name}\0.png",
    lambda name, base: f"../../custom_nodes/planted_{name}",
    lambda name, base: f"../../{name}",
    lambda name, base: str(base / "planted"),
    # What lies in bob's own folder: see `make_his`.
    lambda name, base: f"{kind_of(name)}.m3u8",
    lambda name, base: f"{kind_of(name)}.mp4",
    lambda name, base: f"{kind_of(name)}.wav",
    lambda name, base: f"{kind_of(name)}.png",
    lambda name, base: f"{kind_of(name)}.png [output]",
    lambda name, base: f"{kind_of(name)}",
    lambda name, base: f"{kind_of(name)}/{name}",
    lambda name, base: f"{kind_of(name)}.gltf",
]


def kind_of(name: str) -> str:
    """What lies in bob's folders that leads to that file of alice's is called so."""
    return "her-upload" if name.startswith("private") else "her-result"


def make_his(alice: Bot, bob: Bot, hers: "Hers") -> None:
    """Give bob lists and links that lead to alice's files, as though he could put them there."""
    for name, kind in zip(hers.names, ("input", "output"), strict=True):
        target = alice.place(kind) / name
        for place in (bob.place("input"), bob.place("output")):
            place.mkdir(parents=True, exist_ok=True)
            list_of_one = (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{os.path.relpath(target, place)}\n#EXT-X-ENDLIST\n"
            )
            for suffix in (".m3u8", ".mp4"):
                (place / f"{kind_of(name)}{suffix}").write_text(list_of_one)
            (place / f"{kind_of(name)}.wav").write_text(f"ffconcat version 1.0\nfile '{target}'\n")
            scene = {"asset": {"version": "2.0"}, "images": [{"uri": os.path.relpath(target, place)}]}
            (place / f"{kind_of(name)}.gltf").write_text(json.dumps(scene))
            (place / f"{kind_of(name)}.png").symlink_to(target)
            (place / kind_of(name)).symlink_to(target.parent, target_is_directory=True)


@dataclass
class Hers:
    """What alice has: a result, an upload and the words of her prompt."""

    names: list[str]
    contents: list[bytes]


def noise() -> bytes:
    pixels = np.random.default_rng().integers(0, 255, (SIDES[1], SIDES[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def make_hers(alice: Bot) -> Hers:
    upload, name = noise(), f"{unique('private')}.png"
    await uploaded(alice.client, upload, name)
    prompt = {
        "1": node("LoadImage", image=name),
        "2": node("SaveImage", images=["1", 0], filename_prefix=unique("alice")),
        "3": node("FaultText", text=SECRET, seed=0),
    }
    job = await alice.client.run(prompt)
    (made,) = job["artifacts"]
    return Hers([name, made["filename"]], [upload, (await alice.client.request("GET", made["url"])).content])


def list_texts(known: dict[str, Any]) -> list[tuple[str, str]]:
    """(class, input) of every input that takes a text, a choice, or something that only a client can make."""
    sockets = {kind for info in known.values() for kind in info.get("output") or () if isinstance(kind, str)}
    sockets |= {"INT", "FLOAT", "BOOLEAN"}
    return [
        (class_type, name)
        for class_type, info in sorted(known.items())
        for name, kind, _options, _required in graphs.declared(info)
        if isinstance(kind, list) or kind in ("STRING", "COMBO") or kind not in sockets
    ]


def build(known: dict[str, Any], class_type: str, name: str, text: str, cut: int | None) -> Prompt | None:
    """A prompt in which that input has the text; with `cut`, put together while it runs."""
    value: Any = text if cut is None else ["join", 0]
    prompt = graphs.make(class_type, known[class_type], known, **{name: value})
    if prompt is None:
        return None
    if cut is not None:
        prompt["join"] = node("FaultJoin", one=text[:cut], other=text[cut:])
    if not known[class_type].get("output_node"):
        outputs = known[class_type].get("output") or []
        for number, kind in enumerate(outputs):
            if kind in SHOWS and (show := SHOWS[kind](["9", number]))["class_type"] in known:
                prompt[f"show{number}"] = show
            elif "PreviewAny" in known:
                prompt[f"show{number}"] = node("PreviewAny", source=["9", number])
    return prompt


async def look_for_hers(bob: Bot, hers: Hers, job: Any, asked: str) -> None:
    """Nothing of hers is in what bob is told, and in no file that he may fetch."""
    history = await bob.client.get(f"/guarded/history/{job['job_id']}")
    told = json.dumps([job, history])
    assert SECRET not in told, asked
    assert not re.findall(
        rf".{{0,60}}{FOLDER}/[a-z0-9-]*[0-9a-f]{{32}}.{{0,99}}", told.replace(json.dumps(asked)[1:-1], "")
    ), asked
    for artifact in job["artifacts"]:
        content = (await bob.client.request("GET", artifact["url"])).content
        assert content not in hers.contents, asked
        assert SECRET.encode() not in content, asked
        if artifact["kind"] == "image":
            with Image.open(io.BytesIO(content)) as image:
                assert image.size != SIDES, asked


@pytest.mark.timeout(3600)
async def test_bob_gets_nothing_of_alices_by_any_input_of_any_node(client: Client, alice: Bot, bob: Bot):
    known = await client.get("/object_info")
    hers = await make_hers(alice)
    await asyncio.to_thread(make_his, alice, bob, hers)
    places = [bob.place(kind) for kind in ("output", "temp", "input")]
    texts = list_texts(known)

    @settings(
        max_examples=GRAPHS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(texts),
        st.sampled_from(SPELLINGS),
        st.sampled_from(hers.names),
        st.none() | st.integers(1, 12),
    )
    async def search(where: tuple[str, str], spell: Any, name: str, cut: int | None) -> None:
        text = spell(name, client.base)
        prompt = build(known, *where, text, cut)
        if prompt is None:
            return
        async with only_in(*places, base=client.base):
            answer = await bob.client.submit(prompt, guard={"timeout_s": 20})
            assert answer.status < 500 or answer.status == 503, (where, text, answer)
            if answer.status == 200:
                job = await bob.client.settled(answer.json["prompt_id"])
                await look_for_hers(bob, hers, job, text)

    await run_search(search)
    for name, content in zip(hers.names, hers.contents, strict=True):
        kind = "input" if name == hers.names[0] else "output"
        seen = await alice.client.request("GET", f"/guarded/view?filename={name}&type={kind}")
        assert (seen.status, seen.content) == (200, content)


async def run_search(search: Any) -> None:
    """Run hypothesis, which knows no event loop, on a thread, and each example on this loop."""
    loop = asyncio.get_running_loop()
    native = search.hypothesis.inner_test

    def example(*args: Any, **kwargs: Any) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(native(*args, **kwargs), loop)
        future.result()

    search.hypothesis.inner_test = example
    await asyncio.to_thread(search)
