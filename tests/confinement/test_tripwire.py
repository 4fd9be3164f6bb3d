"""A keyed owner's job that reaches for what is not its owner's: the node gets an error, and the operator an alarm."""

import asyncio
import base64
import os
import uuid

import pytest
from confinement.conftest import start_host
from contract.client import KeyedClient, assert_ended_badly, assert_succeeded, connected, make_key, node, text, unique

from comfyui_guarded.guard.owners import FOLDER
from comfyui_guarded.tests.hosts.launch import sandbox_kind

#: Counts the audit hooks that are added to the server's process.
COUNTER = """
import sys
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
ADDED = []
native = sys.addaudithook
sys.addaudithook = lambda hook: (ADDED.append(hook), native(hook))[1]


@PromptServer.instance.routes.get("/hooks")
async def hooks(_request):
    return web.json_response({"added": len(ADDED)})
"""


#: Takes pictures of the machine by every way, with stand-ins for packages that open a display or a camera.
CAMERAS = """
import importlib
import socket
import sys
from pathlib import Path

HERE = Path(__file__).parent
(HERE / "site" / "mss").mkdir(parents=True)
(HERE / "site" / "mss" / "__init__.py").write_text("from mss.base import MSS, mss")
(HERE / "site" / "mss" / "base.py").write_text('''
class MSS:
    def grab(self, monitor):
        return "screen"

mss = MSS
''')
(HERE / "site" / "cv2.py").write_text('''
class VideoCapture:
    def __init__(self, *source):
        pass

    def __init_subclass__(cls):
        raise TypeError("the real one ends the process")

    def open(self, source):
        return True

    def read(self):
        return "picture"
''')
sys.path.insert(0, str(HERE / "site"))
KEPT = []


def see(way):
    what, _, name = way.partition(" ")
    if what == "pillow":
        from PIL import ImageGrab
        return getattr(ImageGrab, name)()
    if what == "mss":
        import mss
        return mss.mss().grab({})
    if what == "file":
        return open(name, "rb").read(1)
    if what == "display":
        return socket.socket(socket.AF_UNIX).connect(name)
    cv2 = importlib.import_module("cv2")
    if what == "film":
        return cv2.VideoCapture(name).read()
    if what == "camera":
        KEPT.append(cv2.VideoCapture(int(name) if name.isdigit() else name))
    if what == "later":
        KEPT.append(cv2.VideoCapture())
        KEPT[-1].open(int(name))
    return KEPT[-1].read()


class See:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"way": ("STRING", {})}}

    def run(self, way):
        return {"ui": {"text": [str(see(way))]}}


NODE_CLASS_MAPPINGS = {"See": See}
"""


def joined(text):
    """The text, put together by the run: nothing in the prompt says it."""
    cut = next(number for number, letter in enumerate(text) if letter.isalnum()) + 1
    inside = text.find("-uploads") if "-uploads" in text else len(text)
    return {
        "0": node("FaultJoin", one=text[:cut], other=text[cut:inside]),
        "1": node("FaultJoin", one=["0", 0], other=text[inside:]),
    }


def reads(path):
    return {**joined(str(path)), "2": node("FaultReadPath", words=["1", 0])}


def writes(path):
    return {**joined(str(path)), "2": node("FaultWrite", way="given", name=["1", 0], seed=1)}


async def is_stopped(bot, prompt):
    job = await bot.client.run(prompt)
    assert_ended_badly(job, "policy_violation")
    return job


async def test_no_job_of_a_key_reads_what_is_the_servers_or_anothers(client, alice, bob):
    await alice.client.run(writes(alice.place() / "hers"))
    (alice.place()).mkdir(parents=True, exist_ok=True)
    (alice.place() / "hers.png").write_bytes(b"hers")
    operators = client.base / "output" / f"{unique('operator')}.png"
    operators.write_bytes(b"the operator's")
    secrets = client.base / "user" / "__guarded"
    for path in (alice.place() / "hers.png", operators, secrets / "keys.json", secrets / "folders.key"):
        await is_stopped(bob, reads(path))
    for folder in (alice.place(), client.base / "output" / FOLDER, secrets):
        await is_stopped(bob, reads(folder))
    link = bob.place() / "link.png"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(alice.place() / "hers.png")
    await is_stopped(bob, reads(link))


async def test_no_job_of_a_key_writes_where_code_settings_or_others_files_lie(client, alice, bob):
    name = unique("planted")
    (client.base / "custom_nodes" / "pack").mkdir(exist_ok=True)
    for folder in ("custom_nodes", "custom_nodes/pack", "user", "user/default", "user/__guarded", "input"):
        (client.base / folder).mkdir(exist_ok=True)
        await is_stopped(bob, writes(client.base / folder / name))
        assert not (client.base / folder / f"{name}.png").exists()
    await is_stopped(bob, writes(alice.place() / name))
    await is_stopped(bob, writes(client.host.kind.main.parent / name))
    assert not (client.host.kind.main.parent / f"{name}.png").exists()


async def test_a_jobs_own_files_the_shared_ones_and_the_rest_of_the_machine_are_open(client, bob, tmp_path):
    (client.base / "input" / "shared.txt").write_bytes(b"everybody's")
    job = await bob.client.run(reads(client.base / "input" / "shared.txt"))
    assert_succeeded(job)
    assert job["outputs"]["2"]["text"] == [base64.b64encode(b"everybody's").decode()]
    for folder in (bob.place(), client.base / "models", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        job = await bob.client.run(writes(folder / "own"))
        assert (folder / "own.png").is_file()
        assert job["error"] is None or job["error"]["code"] == "result_missing"


async def test_the_operator_and_native_prompts_are_not_watched(client, alice):
    alice.place().mkdir(parents=True, exist_ok=True)
    (alice.place() / "hers.png").write_bytes(b"hers")
    assert_succeeded(await client.run(reads(alice.place() / "hers.png")))
    await client.run(writes(client.base / "custom_nodes" / "operators"))
    assert (client.base / "custom_nodes" / "operators.png").is_file()


def make_host_with_pack(base, name, code):
    """A host, not started yet, whose packs are one more, and bob's key there."""
    host = start_host(sandbox_kind(), base)
    pack = host.base / "custom_nodes" / name
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(code)
    return host, make_key(host.base, "bob")


async def test_a_server_on_which_no_key_runs_jobs_has_no_hook_that_all_its_code_would_pay_for(tmp_path):
    host, key = make_host_with_pack(tmp_path / "base", "aa_counter", COUNTER)
    secret = host.base / "user" / "__guarded" / "keys.json"
    with host:
        async with connected(host) as client:
            assert_succeeded(await client.run(text("the operator's")))
            assert await client.get("/hooks") == {"added": 0}
            bob = KeyedClient(client, key)
            for _ in range(2):
                assert_ended_badly(await bob.run(reads(secret)), "policy_violation")
            assert await client.get("/hooks") == {"added": 1}


async def test_no_job_of_a_key_takes_pictures_of_the_screen_or_by_a_camera(tmp_path):
    host, key = make_host_with_pack(tmp_path / "base", "aa_cameras", CAMERAS)
    with host:
        async with connected(host) as client:
            bob = KeyedClient(client, key)

            async def sees(sender, way):
                return await sender.run({"1": node("See", way=way)})

            for way in (
                "pillow grab", "pillow grabclipboard", "mss", "camera 0", "later 1", "camera /dev/video0",
                "file /dev/video0", "file /dev/fb0", "display /tmp/.X11-unix/X999", "display /run/user/999/wayland-0",
            ):  # fmt: skip
                assert_ended_badly(await sees(bob, way), "policy_violation")
            for way in ("film a.mp4", "film 0"):
                assert (await sees(bob, way))["outputs"]["1"]["text"] == ["picture"]
            for way, seen in (("mss", "screen"), ("camera 0", "picture"), ("later 1", "picture")):
                assert (await sees(client, way))["outputs"]["1"]["text"] == [seen]
            assert_ended_badly(await sees(bob, "one that is open"), "policy_violation")


@pytest.mark.parametrize("on_thread", [False, True])
async def test_no_job_queues_a_prompt_past_the_guard(client, bob, on_thread):
    async def queue(sender):
        queued = str(uuid.uuid4())
        return queued, await sender.run({"1": node("FaultRequeue", id=queued, on_thread=on_thread)})

    for sender in (bob.client, client):
        queued, job = await queue(sender)
        assert_ended_badly(job, "policy_violation")
        assert_succeeded(await client.run(text("what runs next")))
        assert await client.get(f"/history/{queued}") == {}


async def test_no_job_of_a_key_calls_the_server_or_its_clouds_own_services(client, bob):
    def calls(url):
        pieces = {"0": node("FaultJoin", one="ht", other="tp:/"), "1": node("FaultJoin", one=["0", 0], other=url[6:])}
        return {**pieces, "2": node("FaultReadPath", words=["1", 0])}

    port = client.host.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"0.0.0.0:{port}", f"2130706433:{port}", "169.254.169.254"):
        await is_stopped(bob, calls(f"http://{host}/guarded/jobs"))
    assert_succeeded(await client.run(calls(f"http://127.0.0.1:{port}/guarded/health")))

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nof another program")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        job = await bob.client.run(calls(url))
    assert_succeeded(job)
    assert job["outputs"]["2"]["text"] == ["of another program"]


@pytest.mark.skipif(os.name == "nt", reason="needs cat")
async def test_no_job_of_a_key_runs_a_program_on_files_of_others(client, alice, bob):
    for place in (alice.place(), bob.place()):
        place.mkdir(parents=True, exist_ok=True)
        (place / "film.txt").write_bytes(b"a film")
    for path in (alice.place() / "film.txt", client.base / "user" / "__guarded" / "keys.json"):
        await is_stopped(bob, reads(f"cat:{path}"))
    job = await bob.client.run(reads(f"cat:{bob.place() / 'film.txt'}"))
    assert_succeeded(job)
    assert job["outputs"]["2"]["text"] == [base64.b64encode(b"a film").decode()]


async def test_the_operator_is_told(client, bob):
    before = client.host.log.read_text(errors="replace").count("tried to read")
    job = await is_stopped(bob, reads(client.base / "user" / "__guarded" / "keys.json"))
    assert "keys.json" not in str(job["error"])
    assert client.host.log.read_text(errors="replace").count("tried to read keys.json") > 0
    assert client.host.log.read_text(errors="replace").count("tried to read") == before + 1


@pytest.mark.skipif(os.name == "nt", reason="needs /proc")
async def test_no_spelling_of_a_path_gets_past(client, alice, bob):
    alice.place().mkdir(parents=True, exist_ok=True)
    (alice.place() / "hers.png").write_bytes(b"hers")
    path = alice.place() / "hers.png"
    inside = f"{client.base}/output/../output/./{alice.folder}/hers.png"
    for spelled in (f"/{path}", f"//{path}", f"/proc/self/root{path}", inside):
        await is_stopped(bob, reads(spelled))
