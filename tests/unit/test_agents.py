"""What agents are told, and what a picture in an argument is."""

import base64

import pytest

from comfyui_guarded.agents import words
from comfyui_guarded.agents.api import AWAY, Refused
from comfyui_guarded.agents.pictures import read_picture
from comfyui_guarded.agents.tools import make_tools
from comfyui_guarded.guard.errors import FAMILY

PNG = b"\x89PNG\r\n\x1a\n" + bytes(400)


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
    photo.write_bytes(PNG)
    secret = tmp_path / "id_rsa"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert read(str(photo)) is None
    assert read(str(photo), reads_paths=True).content == PNG
    assert read(photo.as_uri(), reads_paths=True).content == PNG
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
