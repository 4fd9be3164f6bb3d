"""What is the same on every box of a fleet, since it comes from `fleet.secret`."""

import base64
import json
from pathlib import Path

import pytest

from comfyui_guarded.failure import find_reason_to_shut
from comfyui_guarded.guard import owners
from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.access.tokens import Tokens
from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.events.outbox import choose_secret, make_headers
from comfyui_guarded.guard.fleet import make_keys
from comfyui_guarded.guard.fleet.secret import _expand, derive
from comfyui_guarded.guard.settings import FleetSettings, Settings, SettingsError, load, rows

SECRET = "d1f6a3c2" * 8
FLEET = {"GUARDED_FLEET__ENABLED": "true"}


@pytest.fixture
def restored(monkeypatch):
    for name in ("_key", "_former"):
        monkeypatch.setattr(owners, name, getattr(owners, name))
    monkeypatch.setattr(owners, "_taken_over", {})


def test_keys_are_drawn_as_rfc_5869_says():
    drawn = _expand(bytes.fromhex("0b" * 22), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), bytes(range(13)))
    assert drawn.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    no_salt = _expand(bytes.fromhex("0b" * 22), b"")
    assert no_salt.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_each_name_and_each_secret_has_a_key_of_its_own():
    keys = {derive(secret, name) for secret in (SECRET, SECRET[1:]) for name in ("tokens", "folders", "webhooks")}
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}
    assert make_keys(FleetSettings(enabled=True, secret=SECRET))("tokens") == derive(SECRET, "tokens")
    assert make_keys(FleetSettings(secret=SECRET))("tokens") is None


@pytest.mark.parametrize("secret", [None, "", "a" * 31, f" {'a' * 31} "])
def test_a_fleet_without_a_secret_or_with_a_short_one_does_not_start_and_nobody_is_told_it(tmp_path, secret):
    environment = FLEET if secret is None else {**FLEET, "GUARDED_FLEET__SECRET": secret}
    with pytest.raises(SettingsError) as caught:
        load(None, environment)
    assert str(caught.value).startswith("fleet.secret")
    assert "openssl rand -hex 32" in caught.value.told
    if secret and secret.strip():
        assert secret.strip() not in str(caught.value)
    assert find_reason_to_shut(tmp_path, environment, ["127.0.0.1"], settings_fail=True) is not None


@pytest.mark.parametrize(
    ("text", "is_shut"),
    [("[fleet]\nenabled = true\n", True), ("fleet.enabled = true\n", True), ("# [fleet]\n[queue]\n", False)],
)
def test_a_box_that_cannot_start_answers_nobody_since_the_keys_are_elsewhere(tmp_path, text, is_shut):
    (tmp_path / "guarded.toml").write_text(text)
    assert (find_reason_to_shut(tmp_path, {}, ["127.0.0.1"], settings_fail=False) is not None) is is_shut


def test_no_list_of_the_settings_has_a_secret():
    webhooks = f"whsec_{base64.b64encode(b'x' * 32).decode()}"
    settings = load(None, {**FLEET, "GUARDED_FLEET__SECRET": SECRET, "GUARDED_WEBHOOKS__SECRET": webhooks})
    shown = json.dumps(rows(settings)) + repr(settings.fleet)
    assert SECRET not in shown
    assert webhooks not in shown
    told = {name: value for name, value, _help in rows(Settings())}
    assert told["fleet.secret"] == told["webhooks.secret"] == ""


def test_a_token_and_a_sign_in_of_one_box_hold_on_another(tmp_path):
    key, clock = derive(SECRET, "tokens"), Clock()
    here, there = Tokens(tmp_path / "a", clock, key), Tokens(tmp_path / "b", clock, key)
    client = Client("bot", operator=False, key_id="12345678")
    grant = there.verify(here.sign(client, "/guarded/ws", 60), "/guarded/ws")
    assert (grant.owner, grant.key_id) == ("bot", "12345678")
    assert there.verify(here.sign(LOCAL, "guarded_session", 60), "guarded_session").owner == "local"
    assert Tokens(tmp_path / "c", clock).verify(here.sign(client, "/guarded/ws", 60), "/guarded/ws") is None
    assert not (tmp_path / "a" / "token.key").exists()


def test_client_ids_are_the_same_on_all_boxes(tmp_path):
    key = derive(SECRET, "client ids")
    here, there = ClientIds.load(tmp_path / "a", key), ClientIds.load(tmp_path / "b", key)
    assert here.of("bot", "tab") == there.of("bot", "tab") != ClientIds.load(tmp_path / "c").of("bot", "tab")


def test_folders_are_the_same_on_all_boxes_and_uploads_from_before_go_along(tmp_path, restored):
    own, root, key = tmp_path / "own", tmp_path / "input", derive(SECRET, "folders")
    owners.use_key(own)
    before = owners.folder_of("bot")
    (root / before).mkdir(parents=True)
    (root / before / "a.png").write_bytes(b"mine")
    owners.use_key(own, key)
    now = owners.folder_of("bot")
    assert now != before
    owners.take_over_inputs(root, ["bot"])
    assert (root / now / "a.png").read_bytes() == b"mine"
    waiting = json.dumps({"image": f"{before}/a.png"}).encode()
    assert json.loads(owners.renew(waiting))["image"] == f"{now}/a.png"
    owners.use_key(tmp_path / "other", key)
    assert owners.folder_of("bot") == now
    assert not (tmp_path / "other").exists()


def test_webhooks_of_local_are_signed_alike_and_the_secret_of_before_is_kept_beside(tmp_path, caplog):
    key = derive(SECRET, "webhooks")
    made = choose_secret(tmp_path, None)
    secret = choose_secret(tmp_path, key)
    assert secret == choose_secret(tmp_path / "other", key) != made
    assert make_headers(secret, "msg", "{}", 0)
    assert (tmp_path / "webhook.secret").read_text().strip() == secret
    assert (tmp_path / "webhook.secret.before").read_text().strip() == made
    assert secret not in caplog.text
    caplog.clear()
    assert choose_secret(tmp_path, key) == secret
    assert not caplog.text
    Path(tmp_path / "webhook.secret").unlink()
    Path(tmp_path / "webhook.secret").mkdir()
    assert choose_secret(tmp_path, key) == secret
