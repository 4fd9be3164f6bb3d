import argparse
import base64
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys

import pytest
from multidict import CIMultiDict

from comfyui_guarded.failure import is_reachable_from_elsewhere
from comfyui_guarded.guard.access import command, sign_in
from comfyui_guarded.guard.access.access import Access, Request
from comfyui_guarded.guard.access.keys import Key, Keys, KeysError, create, read, revoke
from comfyui_guarded.guard.access.peers import find_owner
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

    def entered(
        peer="127.0.0.1",
        *,
        method="GET",
        path="/guarded/jobs",
        token=None,
        settings=None,
        version=(1, 1),
        connection=None,
        **headers,
    ):
        access = Access(settings or AccessSettings(), Keys(own, wall), Tokens(own, wall))
        told = {"Host": "127.0.0.1:8188", **{name.replace("_", "-"): value for name, value in headers.items()}}
        present = CIMultiDict({name: value for name, value in told.items() if value is not None})
        return access.identify(Request(method, path, peer, present, token, version, connection))

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
        *("Via", "X-Client-IP", "True-Client-IP", "X-Original-Forwarded-For", "X-Envoy-External-Address"),
        *("Fastly-Client-IP", "X-Envoy-Expected-Rq-Timeout-Ms", "X-Forwarded", "CDN-Loop"),
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", "", "for=127.0.0.1"])
def test_a_request_that_was_passed_on_is_not_local(enter, header, value):
    with pytest.raises(UnauthorizedError):
        enter(**{header.replace("-", "_"): value})


def test_without_trust_loopback_nobody_is_local(enter):
    with pytest.raises(UnauthorizedError):
        enter(settings=AccessSettings(trust_loopback=False))


class Connection:
    """A real connection of loopback, made by this process or by one of another user's."""

    def __init__(self, uid=None):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            if uid is None:
                self.other = socket.create_connection(("127.0.0.1", port))
            else:
                code = "import os, socket, sys; os.setuid(int(sys.argv[1])); other = socket.socket(); "
                code += (
                    "other.connect(('127.0.0.1', int(sys.argv[2]))); sys.stdin.read(); other.close(); sys.stdin.read()"
                )
                self.other = subprocess.Popen([sys.executable, "-c", code, str(uid), str(port)], stdin=subprocess.PIPE)
            self.socket, _ = server.accept()

    def close(self):
        self.socket.close()
        if isinstance(self.other, socket.socket):
            self.other.close()
        else:
            self.other.kill()
            self.other.communicate()

    def get_extra_info(self, name):
        return {"peername": self.socket.getpeername, "sockname": self.socket.getsockname}[name]()


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:
        yield lambda uid=None: stack.enter_context(contextlib.closing(Connection(uid)))


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a connection is")
root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="takes root, to act as somebody else")


@linux
def test_once_there_are_keys_this_machine_is_trusted_only_as_the_servers_own_user(enter, own, connect):
    assert enter() is LOCAL
    key, _secret = made(own)
    mine = connect()
    assert enter(connection=mine) is LOCAL
    with pytest.raises(UnauthorizedError, match="A key is needed") as caught:
        enter()
    assert "trust_loopback" in caught.value.details
    for wrong in ({"version": (1, 0)}, {"Via": "1.1 proxy"}, {"Host": "gpu.example.org"}, {"peer": "10.0.0.5"}):
        with pytest.raises(UnauthorizedError):
            enter(connection=mine, **wrong)
    assert enter(settings=AccessSettings(trust_loopback=True)) is LOCAL
    with pytest.raises(UnauthorizedError):
        enter(settings=AccessSettings(trust_loopback=False), connection=mine)
    revoke(own, key.key_id, 1)
    with pytest.raises(UnauthorizedError):
        enter()


@linux
@root
def test_somebody_else_on_this_machine_is_not_trusted_however_its_socket_ends(enter, own, connect):
    """The kernel gives a socket that is closed to root, as whom this server runs."""
    made(own)
    theirs = connect(uid=65534)
    with pytest.raises(UnauthorizedError):
        enter(connection=theirs)
    ends = theirs.socket.getpeername(), theirs.socket.getsockname()
    assert find_owner(*ends) == 65534
    theirs.other.kill()
    theirs.other.wait()
    for _ in range(20):
        with pytest.raises(UnauthorizedError):
            enter(connection=theirs)
        assert find_owner(*ends) is None


@linux
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_the_owner_is_found_whatever_the_sockets_call_loopback(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        with socket.socket(family) as other:
            other.connect((address, server.getsockname()[1]))
            here, _ = server.accept()
            assert find_owner(here.getpeername(), here.getsockname()) == os.geteuid()
            other.shutdown(socket.SHUT_WR)  # it waits for the answer still
            assert find_owner(here.getpeername(), here.getsockname()) == os.geteuid()
        assert find_owner(here.getpeername(), here.getsockname()) is None
        here.close()


@pytest.mark.parametrize("name", [None, (), ("127.0.0.1",), ("nowhere", 1), ("127.0.0.1", 70000), "/run/socket", ""])
def test_what_is_no_connection_has_no_owner(name):
    assert find_owner(name, ("127.0.0.1", 8188)) is None


def test_keys_that_are_gone_or_cannot_be_read_are_keys_still(own, wall):
    keys = Keys(own, wall)
    assert not keys.were_made
    made(own)
    keys.refresh()
    (own / "keys.json").unlink()
    keys.refresh()
    assert keys.were_made
    assert not Keys(own, wall).were_made
    (own / "keys.json").write_text("[{")
    assert Keys(own, wall).were_made
    (own / "keys.json").unlink()
    (own / "keys.json").symlink_to(own / "not-mounted")
    assert Keys(own, wall).were_made


# A browser that a link has signed in. ------------------------------------------------------------------------


@pytest.fixture
def session(own, wall):
    """What a browser's cookie is, by a link that was just made."""
    access = Access(AccessSettings(), Keys(own, wall), Tokens(own, wall))
    return access.sign_in(sign_in.make(own, wall.at_ms))[0]


@pytest.mark.parametrize("settings", [AccessSettings(trust_loopback=False), AccessSettings()])
def test_a_browser_that_is_signed_in_is_local_from_everywhere(enter, own, session, settings):
    made(own)
    for peer, host in (("8.8.8.8", "gpu.example.org"), ("127.0.0.1", "127.0.0.1:8188")):
        cookie = f"a=b; guarded_session={session}; c"
        assert enter(peer, Cookie=cookie, Host=host, X_Forwarded_For="1.2.3.4", settings=settings) is LOCAL
        assert (
            enter(peer, Cookie=cookie, Host=host, method="POST", Origin=f"https://{host}", settings=settings) is LOCAL
        )


def test_a_session_counts_for_none_of_what_another_page_sends(enter, session):
    cookie = {"Cookie": f"guarded_session={session}", "Host": "gpu.example.org"}
    for headers in (
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
        {"Origin": "https://evil.example"},
        {"Origin": "https://gpu.example.org:8443"},
    ):
        with pytest.raises(ForbiddenError):
            enter("8.8.8.8", **cookie, **headers)


def test_a_session_ends_and_cannot_be_made_of_anything_else(enter, own, wall, session, token):
    _key, secret = made(own)
    forged = [
        *("", "x", session[:-1], session.split(".")[0], token(LOCAL), token(LOCAL, "guarded_session ")),
        *(token(enter(X_API_Key=secret)), token(enter(X_API_Key=secret), "guarded_session")),
    ]
    for cookie in forged:
        with pytest.raises(UnauthorizedError):
            enter("8.8.8.8", Cookie=f"guarded_session={cookie}")
    with pytest.raises(UnauthorizedError):
        enter("8.8.8.8", token=session)
    with pytest.raises(UnauthorizedError):  # a key that is sent decides
        enter("8.8.8.8", Cookie=f"guarded_session={session}", X_API_Key="gk_wrong")
    wall.at_ms += 86_400_000
    with pytest.raises(UnauthorizedError):
        enter("8.8.8.8", Cookie=f"guarded_session={session}")


def test_a_link_signs_in_once_and_for_ten_minutes(own, wall):
    def used(once, at_ms=wall.at_ms):
        return sign_in.use(own, once, at_ms)

    once = sign_in.make(own, wall.at_ms)
    assert [used(once), used(once)] == [True, False]
    assert not used(sign_in.make(own, wall.at_ms), wall.at_ms + 600_000)
    assert not used(sign_in.make(own, wall.at_ms + 10**9)), "dated far in the future"
    for wrong in ("", "x" * 43, "../keys.json", "x" * 10**6, "é" * 43, "\udcff" * 43):
        assert not used(wrong)
    file = own / "sign_in"
    assert list(file.iterdir()) == []
    if os.name != "nt":
        sign_in.make(own, wall.at_ms)
        assert [stat.S_IMODE(link.stat().st_mode) for link in file.iterdir()] == [0o600]


def test_a_link_that_cannot_be_used_up_lets_nobody_in(own, wall, monkeypatch, caplog):
    once = sign_in.make(own, wall.at_ms)
    file = next((own / "sign_in").iterdir())
    kept = file.read_bytes()

    def refuses(path, missing_ok=False):
        raise PermissionError(30, "Read-only file system", str(path))

    monkeypatch.setattr(type(file), "unlink", refuses)
    assert not sign_in.use(own, once, wall.at_ms)
    assert file.read_bytes() == kept
    assert "cannot be used up" in caplog.text


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
    limits = KeyLimits(jobs_per_minute=6, max_queued=2)
    assert enter(peer, **headers(secret)) == Client("bot", False, key.key_id, limits, "https://bot.example/hook")


def test_a_key_may_be_tighter_than_the_server(enter, own):
    own_limits = {
        "allow_nodes": ("SaveImage", "Empty*"),
        "deny_nodes": ("Load*",),
        "profile": "a5000",
        "max_pixels": 1024,
        "max_steps": 8,
        "templates_only": True,
    }
    _key, secret = made(own, **own_limits)
    assert enter("8.8.8.8", X_API_Key=secret).limits == KeyLimits(**own_limits)


def test_an_owner_with_several_keys_may_have_what_one_of_them_may(own):
    def limit(owner="bot"):
        return Keys(own, Clock()).max_pixels_of(owner)

    assert limit() == 0
    for limits, most in (
        ({"max_pixels": 1000}, 1000),
        ({"max_pixels": 2000}, 2000),
        ({"profile": "rtx3060"}, 2048 * 2048),
        ({"profile": "rtx3060", "max_pixels": 10}, 2048 * 2048),
    ):
        made(own, same_owner=True, **limits)
        assert limit() == most
    revoke(own, "bot", 1)
    assert limit() == 2048 * 2048  # of jobs that still run
    made(own, same_owner=True, max_steps=8)
    assert limit() == 0
    assert limit("other") == 0


def test_a_key_of_an_earlier_version_is_read_on_and_keeps_its_limits(enter, own):
    _key, secret = made(own, jobs_per_minute=6)
    path = own / "keys.json"
    stored = json.loads(path.read_bytes())
    earlier = {name: value for name, value in stored[0].items() if not name.endswith(("_nodes", "_pixels", "_steps"))}
    del earlier["profile"], earlier["templates_only"]
    path.write_text(json.dumps([earlier]))
    assert enter("8.8.8.8", X_API_Key=secret).limits == KeyLimits(jobs_per_minute=6)


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


@pytest.mark.parametrize("other", [
    "of another pack", "", ".", "eyJvIjoi", "eyJhbGciOiJIUzI1NiJ9.eyJvIjoieCJ9." + "a" * 43, "a" * 40, "é.é", "\udcff",
])  # fmt: skip
def test_on_loopback_another_packs_token_is_nothing_to_look_at(enter, other):
    assert enter(token=other, method="POST") is LOCAL


def test_on_loopback_a_token_of_ours_is_good_or_refused(enter, own, token, wall):
    key, secret = made(own)
    given = token(enter(X_API_Key=secret))
    trusting = AccessSettings(trust_loopback=True)
    assert enter(token=given, settings=trusting) is LOCAL
    for bad in ({"path": "/guarded/jobs/1"}, {"method": "POST"}, {"token": given[:-1] + "-"}):
        with pytest.raises(UnauthorizedError):
            enter(**{"token": given, "settings": trusting, **bad})
    revoke(own, key.key_id, 1)
    with pytest.raises(UnauthorizedError):
        enter(token=given, settings=trusting)
    given = token(LOCAL)
    assert enter(token=given, settings=trusting) is LOCAL
    wall.at_ms += 60_000
    with pytest.raises(UnauthorizedError):
        enter(token=given, settings=trusting)


def test_another_servers_token_is_refused_on_loopback_too(enter, tmp_path, wall):
    other = Access(AccessSettings(), Keys(tmp_path / "b", wall), Tokens(tmp_path / "b", wall))
    with pytest.raises(UnauthorizedError):
        enter(token=other.sign(LOCAL, "/guarded/jobs", 60))


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


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_on_loopback_only_a_link_that_somebody_follows_comes_from_another_page(enter, site):
    """Another port of this machine is somebody else's server: the browser calls it `same-site`."""
    assert enter(Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate") is LOCAL
    for mode in ("no-cors", "cors", "same-origin", "websocket"):
        with pytest.raises(ForbiddenError):
            enter(Sec_Fetch_Site=site, Sec_Fetch_Mode=mode)
    with pytest.raises(ForbiddenError):
        enter(Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", method="POST")


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
