"""What agents are told, and what a picture in an argument is."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from comfyui_guarded.agents import words
from comfyui_guarded.agents.api import AWAY, Refused
from comfyui_guarded.agents.pictures import read_picture
from comfyui_guarded.agents.tools import make_tools
from comfyui_guarded.guard.errors import FAMILY

PNG = b"\x89PNG\r\n\x1a\n" + bytes(400)


def draw(kind="PNG"):
    """A picture that is one."""
    drawn = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(drawn, kind)
    return drawn.getvalue()


def read(value, reads_paths=False):
    return read_picture("photo", value, reads_paths=reads_paths)


@pytest.mark.parametrize("code", [*FAMILY, AWAY])
def test_every_error_says_what_to_do(code):
    retryable = FAMILY[code].retryable if code in FAMILY else True
    text, facts = words.describe_refusal(Refused(code, "It went wrong.", retryable=retryable, refund=True))
    first, money, advice = text.splitlines()
    assert first == f"{code}: It went wrong."
    assert "nothing is owed" in money
    assert len(advice.split()) > 3
    assert facts["error"]["code"] == code


def test_advice_names_codes_that_there_are():
    assert words._ADVICE.keys() <= {*FAMILY, AWAY}


@pytest.mark.parametrize(
    "value",
    [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "data:;base64," + base64.b64encode(PNG).decode(),
        base64.b64encode(PNG).decode(),
        base64.encodebytes(PNG).decode(),
    ],
)
def test_a_picture_may_stand_in_the_argument_itself(value):
    file = read(value)
    assert (file.content, file.mime) == (PNG, "image/png")


@pytest.mark.parametrize("value", ["data:,x", "data:image/png;base64,", "data:image/png;base64,?", "x" * 301])
def test_what_is_no_picture_is_refused_by_name(value):
    with pytest.raises(Refused) as refused:
        read(value)
    assert refused.value.code == "bad_image"
    assert refused.value.extra_info == {"field": "photo"}


def test_a_path_is_read_only_where_paths_are_and_only_if_a_picture_is_there(tmp_path):
    photo = tmp_path / "me.png"
    photo.write_bytes(draw())
    secret = tmp_path / "id_rsa"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert read(str(photo)) is None
    assert read(str(photo), reads_paths=True).content == draw()
    assert read(photo.as_uri(), reads_paths=True).content == draw()
    for value in (str(secret), secret.as_uri(), str(tmp_path / "none.png"), str(tmp_path)):
        with pytest.raises(Refused, match=r"no picture|no such file"):
            read(value, reads_paths=True)


@pytest.mark.parametrize("value", ["uploaded.png", "https://example.org/me.png", "a [output]"])
def test_what_only_the_server_can_find_is_left_to_it(value):
    assert read(value) is None
    assert read(value, reads_paths=True) is None


def test_a_template_with_odd_names_is_a_tool_all_the_same():
    parameter = {"name": "user", "type": "boolean", "required": True, "default": None, "help": "Whether."}
    template = {
        "name": "Мой шаблон/" + "x" * 80,
        "title": "Mine",
        "description": "Mine.",
        "parameters": [parameter],
        "missing": {"models": [], "node_packs": [], "classes": []},
    }
    tool = make_tools([template], reads_paths=False)[0]
    assert tool.name.isascii()
    assert len(tool.name) <= 64
    assert tool.schema["properties"]["user"]["type"] == "boolean"
    assert tool.options == {"wait_s", "idempotency_key"}, "the template's own parameter comes first"


SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n"
HEADS = [
    b"GIF89a", b"GIF87a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\xff\xff\0\0WAVE", b"OggS",
    b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3", b"ID3", b"fLaC", b"\xff\xfb",
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_text_behind_a_pictures_first_bytes_is_sent_nowhere(tmp_path, head):
    disguised = tmp_path / "id_rsa"
    disguised.write_bytes(head + SECRET)
    with pytest.raises(Refused) as refused:
        read(str(disguised), reads_paths=True)
    assert refused.value.code == "bad_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_every_kind_of_picture_is_sent_whole(tmp_path, kind):
    photo = tmp_path / "me"
    photo.write_bytes(draw(kind))
    assert read(str(photo), reads_paths=True).content == draw(kind)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("flac", "flac"), ("libmp3lame", "mp3"), ("pcm_s16le", "wav"), ("libopus", "ogg")]
)
def test_a_sound_is_sent_whole(tmp_path, codec, suffix):
    path = tmp_path / f"song.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), format="s16", layout="mono")
        frame.rate = 48000
        for packet in [
            *stream.encode(av.AudioResampler(stream.format, "mono", 48000).resample(frame)[0]),
            *stream.encode(None),
        ]:
            container.mux(packet)
    assert read(str(path), reads_paths=True).content == path.read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_path_that_would_never_end_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    paths = [pipe, "/proc/kmsg", "/proc/self/mem", "/dev/zero", "/dev/stdin", "/proc/self/environ", "/proc/kcore"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from alias import register; register(); "
        "from comfyui_guarded.agents.pictures import read_picture; from comfyui_guarded.agents.api import Refused\n"
        "for path in sys.argv[2:]:\n"
        "    try: read_picture('photo', path, reads_paths=True); print('sent', path)\n"
        "    except Refused as error: assert error.code == 'bad_image'"
    )
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code, root, *map(str, paths)], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
