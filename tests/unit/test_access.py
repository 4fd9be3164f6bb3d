import argparse
import base64
import os
import stat

import pytest
from multidict import CIMultiDict

from comfyui_guarded.failure import is_reachable_from_elsewhere
from comfyui_guarded.guard.access import command
from comfyui_guarded.guard.access.access import Access, Request
from comfyui_guarded.guard.access.keys import Key, Keys, KeysError, create, read, revoke
from comfyui_guarded.guard.access.tokens import Tokens
from comfyui_guarded.guard.client import LOCAL, Client, KeyLimits
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import ForbiddenError, UnauthorizedError
from comfyui_guarded.guard.settings import AccessSettings, Settings, SettingsError, load


class Wall(Clock):
    """A clock that is moved by hand."""

    at_ms = 1_800_000_000_000

    def now_ms(self):
        return self.at_ms


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def own(tmp_path):
    return tmp_path / "__guarded"


@pytest.fixture
def enter(own, wall):
    """Asks a server that has just read its keys: `enter("8.8.8.8", X_API_Key="…")`."""

    def entered(peer="127.0.0.1", *, method="GET", path="/guarded/jobs", token=None, settings=None, **headers):
        access = Access(settings or AccessSettings(), Keys(own, wall), Tokens(own, wall))
        told = {"Host": "127.0.0.1:8188", **{name.replace("_", "-"): value for name, value in headers.items()}}
        present = CIMultiDict({name: value for name, value in told.items() if value is not None})
        return access.identify(Request(method, path, peer, present, token))

    return entered


def made(own, name="bot", *, same_owner=False, **facts):
    wanted = Key(
        key_id="", name=name, scope=facts.pop("scope", "submit"), sha256="", created_at_ms=0, webhook_secret=""
    )
    return create(own, Key(**{**vars(wanted), **facts}), same_owner=same_owner)


def basic(password, user="anybody"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"])
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8188", "127.0.0.1", "localhost", "localhost:8188", "LocalHost:8188", "[::1]:8188", "[::1]"],
)
def test_a_direct_loopback_connection_is_local_and_an_operator(enter, peer, host):
    assert enter(peer, Host=host) is LOCAL
    assert (LOCAL.owner, LOCAL.operator) == ("local", True)


@pytest.mark.parametrize(
    "peer",
    [
        *("10.0.0.5", "192.168.1.2", "8.8.8.8", "0.0.0.0", "2001:db8::1", "::ffff:10.0.0.5", "::"),
        *("", "unix", "127.0.0.1.", None),
    ],
)
def test_a_peer_elsewhere_is_not_let_in_whatever_its_host_header_says(enter, peer):
    with pytest.raises(UnauthorizedError) as caught:
        enter(peer)
    assert caught.value.status == 401


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "example.com",
        "example.com:8188",
        "gpu.tunnel.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:127.0.0.1",
        "192.168.1.2:8188",
        "0.0.0.0:8188",
        "[::",
        "[::ffff:10.0.0.1]",
        "[2001:db8::1]:8188",
        "\x00",
        "2130706433",
    ],
)
def test_a_host_header_that_does_not_name_loopback_is_not_let_in(enter, host):
    with pytest.raises(UnauthorizedError):
        enter(Host=host)


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Whatever",
        "X-Real-IP",
        "CF-Connecting-IP",
        "CF-Ray",
        "x-forwarded-for",
        "cf-visitor",
        "X-REAL-IP",
        "FORWARDED",
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", "", "for=127.0.0.1"])
def test_a_request_that_was_passed_on_is_not_local(enter, header, value):
    with pytest.raises(UnauthorizedError):
        enter(**{header.replace("-", "_"): value})


def test_without_trust_loopback_nobody_is_local(enter):
    with pytest.raises(UnauthorizedError):
        enter(settings=AccessSettings(trust_loopback=False))


# Keys. -------------------------------------------------------------------------------------------------------


def test_without_any_key_the_refusal_says_how_to_make_one(enter):
    with pytest.raises(UnauthorizedError) as caught:
        enter("8.8.8.8")
    assert "keys create" in caught.value.details


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {"Authorization": f"Bearer {key}"},
        lambda key: {"Authorization": f"bearer   {key} "},
        lambda key: {"Authorization": basic(key)},
        lambda key: {"Authorization": basic(key, user="")},
        lambda key: {"X_API_Key": key},
    ],
    ids=["bearer", "bearer with spaces", "basic", "basic without a user", "x-api-key"],
)
@pytest.mark.parametrize("peer", ["8.8.8.8", "127.0.0.1"])
def test_a_key_is_its_owner_from_everywhere(enter, own, headers, peer):
    key, secret = made(own, jobs_per_minute=6, max_queued=2, webhook="https://bot.example/hook")
    limits = KeyLimits(6, 2)
    assert enter(peer, **headers(secret)) == Client("bot", False, key.key_id, limits, "https://bot.example/hook")


def test_an_operate_key_is_an_operator(enter, own):
    _key, secret = made(own, "boss", scope="operate")
    assert enter("8.8.8.8", X_API_Key=secret).operator is True


@pytest.mark.parametrize(
    "wrong",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key[:3] + ("0" if key[3] != "0" else "1") + key[4:],
        lambda key: key[3:],
        lambda key: key + "A",
        lambda key: "",
        lambda key: "gk_",
        lambda key: "ключ",
        lambda key: "\udcff" * 55,
        lambda key: key * 10000,
    ],
)
@pytest.mark.parametrize("way", ["X_API_Key", "bearer", "basic"])
def test_a_wrong_key_is_refused_on_loopback_too(enter, own, wrong, way):
    key = wrong(made(own)[1])
    value = {"bearer": f"Bearer {key}", "basic": basic(key.encode(errors="replace").decode()), "X_API_Key": key}[way]
    with pytest.raises(UnauthorizedError):
        enter(**{way if way == "X_API_Key" else "Authorization": value})


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Basic",
        "Basic %%%",
        "Basic ключ",
        "Basic \udcff",
        "Bearer \udcff",
        "Basic /w==",
        "Digest x",
        "x" * 9000,
    ],
)
def test_an_authorization_that_holds_no_key_is_refused(enter, own, header):
    made(own)
    with pytest.raises(UnauthorizedError):
        enter(Authorization=header)


def test_a_revoked_key_is_out_without_a_restart(own, wall):
    key, secret = made(own)
    keys = Keys(own, wall)
    assert keys.find(secret) is not None
    revoke(own, key.key_id, wall.now_ms())
    keys.refresh()
    assert keys.find(secret) is None
    assert keys.find_by_id(key.key_id) is None


def test_a_key_made_later_counts_without_a_restart(own, wall):
    keys = Keys(own, wall)
    _key, secret = made(own)
    assert keys.find(secret) is None
    keys.refresh()
    assert keys.find(secret) is not None


def test_a_key_ends_when_it_expires(own, wall):
    _key, secret = made(own, expires_at_ms=wall.at_ms + 1)
    keys = Keys(own, wall)
    assert keys.find(secret) is not None
    wall.at_ms += 1
    assert keys.find(secret) is None
    assert not keys.has_active()


def test_a_key_file_that_cannot_be_read_changes_nothing(own, wall, caplog):
    _key, secret = made(own)
    keys = Keys(own, wall)
    (own / "keys.json").write_text('[{"key_id": 7')
    keys.refresh()
    keys.refresh()
    assert keys.find(secret) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (own / "keys.json").unlink()
    keys.refresh()
    assert keys.find(secret) is None


def test_the_file_holds_no_secret_and_is_for_its_user_alone(own):
    _key, secret = made(own)
    assert secret.split("_", 2)[2] not in (own / "keys.json").read_text()
    if os.name != "nt":
        assert stat.S_IMODE((own / "keys.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "local", "../x", "a b", "ключ", "a/b", ".hidden", "x" * 65, "a\n"])
def test_a_name_that_cannot_be_an_owner_is_refused(own, name):
    with pytest.raises(KeysError):
        made(own, name)
    assert read(own) == []


def test_a_name_that_had_a_key_before_is_taken_again_only_when_asked(own):
    key, _secret = made(own)
    revoke(own, key.key_id, 1)
    with pytest.raises(KeysError, match="--same-owner"):
        made(own)
    with pytest.raises(KeysError):
        made(own, "BOT", same_owner=True)
    made(own, same_owner=True)
    assert [key.name for key in read(own)] == ["bot", "bot"]


def test_revoking_a_name_revokes_all_its_keys_and_an_unknown_one_is_an_error(own):
    made(own)
    made(own, same_owner=True)
    other, _secret = made(own, "other")
    assert len(revoke(own, "bot", 1)) == 2
    with pytest.raises(KeysError):
        revoke(own, "bot", 2)
    assert [key for key in read(own) if key.revoked_at_ms is None] == [other]


def test_webhooks_are_signed_by_the_newest_key_that_counts(own, wall):
    old, _ = made(own, created_at_ms=1)
    new, _ = made(own, created_at_ms=2, same_owner=True)
    assert Keys(own, wall).webhook_secret("bot") == new.webhook_secret
    revoke(own, new.key_id, 3)
    assert Keys(own, wall).webhook_secret("bot") == old.webhook_secret
    assert Keys(own, wall).webhook_secret("nobody") is None


# Tokens. -----------------------------------------------------------------------------------------------------


@pytest.fixture
def token(own, wall):
    def signed(client, path="/guarded/jobs", ttl_s=60):
        return Access(AccessSettings(), Keys(own, wall), Tokens(own, wall)).sign(client, path, ttl_s)

    return signed


def test_a_token_opens_its_path_as_its_owner_also_after_a_restart(enter, own, token):
    _key, secret = made(own)
    client = enter(X_API_Key=secret)
    assert enter("8.8.8.8", token=token(client)) == client
    assert enter("8.8.8.8", method="HEAD", token=token(client)) == client


def test_a_token_of_this_machine_is_no_operator(enter, token):
    assert enter("8.8.8.8", token=token(LOCAL)) == Client("local", operator=False)


def test_a_token_opens_nothing_else(enter, own, wall, token):
    _key, secret = made(own)
    given = token(enter(X_API_Key=secret))
    for refused in (
        {"path": "/guarded/jobs/1"},
        {"path": "/guarded/job"},
        {"method": "POST"},
        {"method": "DELETE"},
    ):
        with pytest.raises(UnauthorizedError):
            enter("8.8.8.8", token=given, **refused)
    wall.at_ms += 60_000
    with pytest.raises(UnauthorizedError):
        enter("8.8.8.8", token=given)


def test_a_token_dies_with_the_key_that_made_it(enter, own, token):
    key, secret = made(own)
    given = token(enter(X_API_Key=secret))
    revoke(own, key.key_id, 1)
    with pytest.raises(UnauthorizedError):
        enter("8.8.8.8", token=given)


@pytest.mark.parametrize("bend", [
    lambda token: token[:-2], lambda token: "x" + token, lambda token: token.partition(".")[0],
    lambda token: token.partition(".")[0] + ".", lambda token: "." + token.partition(".")[2],
    lambda token: token.replace(".", ".."), lambda token: "", lambda token: ".", lambda token: "é.é",
    lambda token: "\udcff.\udcff", lambda token: "e30." + token.partition(".")[2],
])  # fmt: skip
def test_a_token_that_was_bent_is_refused(enter, token, bend):
    with pytest.raises(UnauthorizedError):
        enter("8.8.8.8", token=bend(token(LOCAL)))


def test_on_loopback_a_token_is_nothing_to_look_at(enter):
    assert enter(token="of another pack", method="POST") is LOCAL


def test_another_servers_token_is_refused(enter, tmp_path, wall):
    other = Access(AccessSettings(), Keys(tmp_path / "b", wall), Tokens(tmp_path / "b", wall))
    with pytest.raises(UnauthorizedError):
        enter("8.8.8.8", token=other.sign(LOCAL, "/guarded/jobs", 60))


# Browsers. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1:9999",
        "null",
        "",
        "file://",
        "http://127.0.0.1.evil.example:8188",
        "[::",
    ],
)
@pytest.mark.parametrize("with_key", [False, True])
def test_a_foreign_page_is_refused_with_or_without_a_key(enter, own, origin, with_key):
    headers = {"X_API_Key": made(own)[1]} if with_key else {}
    with pytest.raises(ForbiddenError):
        enter(Origin=origin, **headers)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8188", "127.0.0.1:8188"),
        ("http://LOCALHOST:8188", "localhost:8188"),
        ("https://localhost", "localhost"),
        ("https://localhost:443", "localhost"),
        ("http://[::1]:8188", "[::1]:8188"),
    ],
)
def test_the_servers_own_pages_are_let_in(enter, origin, host):
    assert enter(Origin=origin, Host=host) is LOCAL


def test_a_site_that_the_operator_names_is_let_in(enter):
    settings = AccessSettings(allowed_origins=("https://bot.example",))
    assert enter(Origin="https://bot.example", settings=settings) is LOCAL
    with pytest.raises(ForbiddenError):
        enter(Origin="https://bot.example:444", settings=settings)


def test_what_a_foreign_page_embeds_does_not_act_for_who_sits_here(enter, own):
    cross = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}
    with pytest.raises(ForbiddenError):
        enter(**cross)
    with pytest.raises(ForbiddenError):
        enter(Authorization=basic(made(own)[1]), **cross)
    # A link that somebody follows.
    assert enter(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") is LOCAL


def test_a_picture_with_a_token_may_stand_in_any_page(enter, own, token):
    client = enter(X_API_Key=made(own)[1])
    assert enter("8.8.8.8", token=token(client), Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == client


# Proxies. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "address"),
    [
        ((), "8.8.8.8", "1.2.3.4", "8.8.8.8"),
        (("10.0.0.0/8",), "10.1.1.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (("10.0.0.0/8",), "10.1.1.1", "6.6.6.6, 1.2.3.4, 10.2.2.2", "1.2.3.4"),
        (("10.0.0.0/8",), "9.1.1.1", "1.2.3.4", "9.1.1.1"),
        (("127.0.0.1",), "::ffff:127.0.0.1", "1.2.3.4", "1.2.3.4"),
        (("10.0.0.0/8",), "10.1.1.1", "", "10.1.1.1"),
        (("10.0.0.0/8",), "10.1.1.1", "10.3.3.3", "10.3.3.3"),
        (("10.0.0.0/8",), None, "1.2.3.4", "unknown"),
    ],
)
def test_a_forwarded_address_counts_only_from_a_trusted_proxy(own, wall, proxies, peer, forwarded, address):
    access = Access(AccessSettings(trusted_proxies=proxies), Keys(own, wall), Tokens(own, wall))
    assert access.find_address(peer, CIMultiDict({"X-Forwarded-For": forwarded})) == address


def test_a_proxy_that_is_no_network_is_named():
    with pytest.raises(SettingsError, match=r"access\.trusted_proxies"):
        load(None, {"GUARDED_ACCESS__TRUSTED_PROXIES": "10.0.0.0/8,nonsense"})
    assert Settings.model_validate({"access": {"trusted_proxies": ["10.0.0.1"]}}).access.trusted_proxies == (
        "10.0.0.1/32",
    )


@pytest.mark.parametrize(
    ("listen", "elsewhere"),
    [(["127.0.0.1"], False), (["localhost", "::1"], False), (["0.0.0.0"], True), (["127.0.0.1", "10.0.0.5"], True)],
)
def test_a_server_is_reached_from_elsewhere_by_any_address_that_is_not_loopback(listen, elsewhere):
    assert is_reachable_from_elsewhere(listen) is elsewhere


def _commanded(tmp_path, *words):
    """The exit status and what was said."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    said = []
    status = command.run(parser.parse_args([*words, "--user", str(tmp_path)]), tmp_path, said.append)
    return status, " ".join(said)


@pytest.mark.parametrize("url", ["bot.example/hook", "ftp://bot.example", "http://bot.example", "https://127.0.0.1/x"])
def test_a_key_with_a_webhook_that_would_never_be_delivered_is_not_made(tmp_path, url):
    status, said = _commanded(tmp_path, "create", "bot", "--webhook", url)
    assert status == 2
    assert f"--webhook {url}" in said
    assert _commanded(tmp_path, "list") == (0, "")


def test_a_key_may_have_the_webhooks_that_the_settings_allow(tmp_path):
    own = tmp_path / "__guarded"
    own.mkdir()
    (own / "guarded.toml").write_text('[webhooks]\nallow_http = true\nallowed_networks = ["127.0.0.0/8"]\n')
    assert _commanded(tmp_path, "create", "bot", "--webhook", "http://127.0.0.1/x")[0] == 0


def test_when_a_key_expires_is_told_with_a_unit(tmp_path, capsys):
    with pytest.raises(SystemExit):
        _commanded(tmp_path, "create", "bot", "--expires", "30")
    assert "30 needs a unit, as in 24h or 30d" in capsys.readouterr().err
