"""Attacks on every place that takes the name of a file: none leads outside, and none is more than a refusal."""

import asyncio
import json
import os
from urllib.parse import urlencode

import aiohttp
import pytest
from contract.client import Answer, assert_refusal, node, text
from contract.conftest import put_photo
from contract.test_access import ELSEWHERE, Box, opened

from comfyui_guarded.tests.hosts.launch import sandbox_kind

SECRET = b"the secret that nobody is to read"

NAMES = [
    *(
        "../secret.png",
        "../../secret.png",
        "..\\secret.png",
        "a/../../secret.png",
        "./../secret.png",
        "....//secret.png",
    ),
    *("/etc/passwd", "//etc/passwd", "\\\\server\\share\\x.png", "C:\\x.png", "C:x.png", "file:///etc/passwd"),
    *("%2e%2e/secret.png", "..%2fsecret.png", "..%c0%afsecret.png", "\u2025/secret.png", "．．/secret.png"),
    *("../user/__guarded/guarded.db", "../user/__guarded/keys.toml", "link/secret.png", "link.png", "pipe.png"),
    *("photo.png/../../secret.png", "photo.png\0.png", "photo.png\n", "photo.png ", "photo.png.", " photo.png"),
    *(".", "..", "/", "\\", "~", "~/x.png", "", " ", "\0", "a" * 300 + ".png", "a/" * 1000 + "x.png", "\ud800.png"),
    *("CON", "NUL.png", "folder", "folder/", "../secret.png [input]", "../secret.png [output]", "x [temp]", "[output]"),
    *("$HOME/x.png", "`id`.png", "x.png;ls", "<script>.png", '"; filename="x.png', "a\r\nSet-Cookie: x=1", "{job_id}"),
]
TYPES = ["input", "output", "temp", "", "..", "../user", "user", "checkpoints", "INPUT", "input/..", "\0", "asset"]
SUBFOLDERS = ["", "..", "../..", "/", "/etc", "folder/../..", "link", "\\..", "\0", "a" * 300, "guarded-uploads", "."]


@pytest.fixture
async def box(tmp_path):
    for path in ("secret.png", "elsewhere/secret.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(SECRET)
    for root in ("input", "output", "temp"):
        (tmp_path / root / "folder").mkdir(parents=True)
        (tmp_path / root / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / root / "link.png").symlink_to(tmp_path / "secret.png")
        os.mkfifo(tmp_path / root / "pipe.png")
    put_photo(tmp_path)
    async with opened(sandbox_kind(), tmp_path) as opened_box:
        yield opened_box


def assert_harmless(answer: Answer, asked: object) -> None:
    assert answer.status < 500, (asked, answer)
    assert SECRET not in answer.content, asked
    assert b"SQLite format" not in answer.content, asked
    assert b"root:" not in answer.content, asked
    assert "Set-Cookie" not in answer.headers, asked
    if answer.status >= 400:
        assert_refusal(answer)
        assert b"/elsewhere" not in answer.content, (asked, answer)


def query(**fields: str) -> str:
    return urlencode({name: value.encode("utf-8", "surrogatepass") for name, value in fields.items()})


async def test_view_leads_nowhere_else(box: Box):
    asked = [{"filename": name, "type": kind} for name in NAMES for kind in ("input", "output")]
    asked += [{"filename": "secret.png", "type": kind} for kind in TYPES]
    asked += [{"filename": "secret.png", "type": "input", "subfolder": folder} for folder in SUBFOLDERS]
    asked += [{"filename": "photo.png", "type": "input", "preview": name, "channel": name} for name in NAMES]
    for who in ("owner", "operator"):
        for fields in asked:
            for path in ("/guarded/view", "/guarded/api/view"):
                answer = await asyncio.wait_for(box.ask(who, "GET", f"{path}?{query(**fields)}"), 30)
                assert_harmless(answer, fields)


async def test_uploads_go_nowhere_else(box: Box, tmp_path):
    before = {path for path in tmp_path.rglob("*") if "guarded-uploads" not in path.parts}

    async def upload(who: str, filename: str, **words: str) -> None:
        form = aiohttp.MultipartWriter("form-data")
        part = form.append(b"\x89PNG\r\n\x1a\n")
        part.set_content_disposition("form-data", quote_fields=False, name="image", filename=filename)
        for name, word in words.items():
            form.append(word.encode("utf-8", "replace")).set_content_disposition("form-data", name=name)
        headers = {**ELSEWHERE, "Authorization": f"Bearer {box.keys[who]}"}
        url = f"{box.client.host.url}/guarded/upload/image"
        async with box.client.session.post(url, data=form, headers=headers) as response:
            answer = Answer(response.status, response.headers.copy(), await response.read())
        assert_harmless(answer, (filename, words))

    for name in NAMES:
        if name.isprintable():
            await upload("owner", name)
    for word in (*TYPES, *NAMES):
        await upload("owner", "x.png", type=word)
    for word in (*SUBFOLDERS, *NAMES):
        await upload("owner", "x.png", subfolder=word)
        await upload("owner", "x.png", subfolder=word, overwrite="1")
    made = {path for path in tmp_path.rglob("*") if "guarded-uploads" not in path.parts} - before
    made = {path for path in made if not {"user", "__pycache__"} & set(path.parts)}
    assert made == set(), "something lies outside the owner's folder"
    assert (tmp_path / "secret.png").read_bytes() == SECRET


async def test_prompts_and_face_checks_read_nothing_else(box: Box):
    for name in NAMES:
        prompt = {
            "1": node("LoadImage", image=name),
            "2": node("ImageInvert", image=["1", 0]),
            "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
        }
        raw = json.dumps({"prompt": prompt}).encode()
        answer = await asyncio.wait_for(box.ask("owner", "POST", "/guarded/prompt?wait=20", raw=raw), 60)
        assert_harmless(answer, name)
        for kind, folder in (("input", ""), ("output", ""), ("input", "folder/.."), ("..", "")):
            raw = json.dumps({"image": name, "type": kind, "subfolder": folder}).encode()
            answer = await asyncio.wait_for(box.ask("owner", "POST", "/guarded/face-check", raw=raw), 60)
            assert_harmless(answer, (name, kind, folder))


async def test_a_prefix_cannot_write_outside_output(box: Box, tmp_path):
    for name in ("../x", "../../x", "/tmp/guarded-x", "link/x", "..\\x", "a" * 300, "x\0y"):
        prompt = {
            "1": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
            "2": node("SaveImage", images=["1", 0], filename_prefix=name),
        }
        answer = await box.ask("owner", "POST", "/guarded/prompt?wait=30", body={"prompt": prompt})
        assert_harmless(answer, name)
    outside = [path for path in tmp_path.rglob("x_*") if "output" not in path.parts]
    assert outside == []
    assert list((tmp_path / "elsewhere").iterdir()) == [tmp_path / "elsewhere" / "secret.png"]


@pytest.mark.parametrize("value", ["\ud800", "\0", "x" * 700, "../x", "", "é"], ids=repr)
async def test_an_id_may_be_anything(box: Box, value):
    for method, path, body in (
        ("POST", "/guarded/history", {"delete": [value]}),
        ("POST", "/guarded/queue", {"delete": [value]}),
        ("POST", "/guarded/interrupt", {"prompt_id": value}),
        ("POST", "/guarded/api/jobs/cancel", {"job_ids": [value]}),
        ("POST", "/guarded/prompt", {"prompt": text(), "client_id": value}),
        ("GET", "/guarded/api/jobs?" + query(workflow_id=value, status=value), None),
        ("GET", "/guarded/jobs?" + query(state=value), None),
    ):
        raw = None if body is None else json.dumps(body).encode()
        assert_harmless(await box.ask("owner", method, path, raw=raw), (path, body))
