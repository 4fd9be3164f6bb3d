"""Whether a server whose guard could not start must answer nobody: in doubt it must."""

import json
import os

import pytest

from comfyui_guarded import door, failure
from comfyui_guarded.guard import messages
from comfyui_guarded.guard.settings import SettingsError, load

HERE, EVERYWHERE = ["127.0.0.1"], ["0.0.0.0"]


def judged(own, environment=None, listen=HERE, *, settings_fail=True):
    return failure.find_reason_to_shut(own, environment or {}, listen, settings_fail=settings_fail)


@pytest.mark.parametrize(
    "text",
    [
        '[native]\nmode = "closed"\n',
        "native.mode = 'guarded'\n",
        'native = { mode = "closed" }\n',
        'native = "closed"\n',
        '[native]\nmode = "Closed"\n',
        '[native]\nmode = ""\n',
        "[native]\nmode = 7\n",
        "[native]\nmode closed\n",
        "[native]\nmode = closed\n",
        '[native]\nmode: "guarded"\n',
        '[natives]\nmode = "guarded"\n',
        '[native]\nmodus = "guarded"\n',
        'mode = "closed"\n[queue\n',
    ],
)
def test_a_file_that_seems_to_want_it_shut_keeps_it_shut(tmp_path, text):
    (tmp_path / "guarded.toml").write_text(text)
    assert judged(tmp_path) is not None


@pytest.mark.parametrize("text", ["", "[queue]\nx = 1\n", "x = = 1", '[native]\nmode = "open" # or "closed"\n',
    '[store]\nurl = "sqlite:///guarded.db"\n[queue]\nx = 1', "[queue] # the guarded queue\nx = 1"])  # fmt: skip
def test_a_file_that_does_not_leaves_comfyui_open_to_this_machine(tmp_path, text):
    (tmp_path / "guarded.toml").write_text(text)
    assert judged(tmp_path) is None
    asked = "open" in text
    assert (judged(tmp_path, listen=EVERYWHERE) is None) is asked
    assert (judged(tmp_path, listen=[]) is None) is asked
    assert judged(tmp_path, listen=EVERYWHERE, settings_fail=False) is None


@pytest.mark.parametrize("listen", [["127.0.0.1", "::1"], ["localhost"]])
def test_an_installation_without_settings_goes_on(tmp_path, listen):
    assert judged(tmp_path / "not" / "there", listen=listen) is None


def test_the_environment_decides(tmp_path):
    assert judged(tmp_path, {"GUARDED_NATIVE__MODE": "closed"}) is not None
    assert judged(tmp_path, {"guarded_native__mode": "guarded"}) is not None
    assert judged(tmp_path, {"GUARDED_NATIVE_MODE": "closed"}) is not None
    assert judged(tmp_path, {"GUARDED_NATIV__MODE": '"closed"'}) is not None
    (tmp_path / "guarded.toml").mkdir()
    assert judged(tmp_path) is not None
    assert judged(tmp_path, {"GUARDED_NATIVE__MODE": "open"}, EVERYWHERE) is None


def test_where_our_folder_is_not_known_or_is_none_nothing_is_open(tmp_path):
    assert judged(None) is not None
    assert judged(None, {"GUARDED_NATIVE__MODE": "open"}) is not None
    (tmp_path / "file").write_text("")
    assert judged(tmp_path / "file") is not None


def test_keys_that_cannot_be_read_are_keys(tmp_path):
    (tmp_path / "keys.json").symlink_to(tmp_path / "not-mounted")
    assert judged(tmp_path, {"GUARDED_NATIVE__MODE": "open"}) is not None


@pytest.mark.skipif(os.name == "nt", reason="rights are other things there")
def test_a_folder_that_may_not_be_looked_into_hides_keys(tmp_path):
    own = tmp_path / "own"
    own.mkdir(0o000)
    who = os.geteuid()
    if who == 0:  # who may look into every folder
        os.seteuid(65534)
    try:
        seen = [judged(own, {"GUARDED_NATIVE__MODE": "open"}), judged(own)]
    finally:
        os.seteuid(who)
    assert None not in seen


def test_settings_that_may_not_be_read_are_not_taken_for_none(tmp_path):
    """Defaults would open what they were to shut."""
    (tmp_path / "guarded.toml").symlink_to(tmp_path / "not-mounted")
    with pytest.raises(SettingsError, match=r"guarded\.toml cannot be read"):
        load(tmp_path / "guarded.toml", {})
    assert judged(tmp_path) is not None


def test_who_asks_learns_neither_values_nor_folders(tmp_path):
    with pytest.raises(SettingsError) as caught:
        load(None, {"GUARDED_WEBHOOKS__SECRET": "whsec_hidden"})
    why = failure.describe(caught.value, tmp_path, {}, HERE)
    assert "whsec_hidden" in why.reason
    assert "hidden" not in why.told
    assert "webhooks.secret" in why.told
    why = failure.describe(
        PermissionError(13, "Permission denied", "/home/comfy/user/__guarded/token.key"), tmp_path, {}, HERE
    )
    assert "…/token.key" in why.told
    assert "comfy" not in why.told


def test_the_door_tells_users_what_every_refusal_would():
    for language, text in door.USER_MESSAGE.items():
        assert text == messages.text("server_unavailable", language)


def test_every_cause_has_a_mend_in_every_language(tmp_path):
    for error in (ImportError("x"), OSError("x"), MemoryError(), ValueError("x"), SettingsError("x")):
        assert set(failure.describe(error, tmp_path, {}, HERE).mend) == set(door.USER_MESSAGE)


def test_a_note_is_left_where_it_can_be(tmp_path):
    why = failure.describe(ValueError("x"), tmp_path, {}, HERE)
    failure.note(tmp_path / "own", why, {"host": {}})
    assert json.loads((tmp_path / "own" / failure.NOTE).read_text())["off"]["reason"] == "ValueError: x"
    failure.note(tmp_path / "own" / failure.NOTE, why, {})  # a file in the way
