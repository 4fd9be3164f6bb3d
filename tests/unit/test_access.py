import pytest
from multidict import CIMultiDict

from comfyui_guarded.guard.access import LOCAL, identify
from comfyui_guarded.guard.errors import UnauthorizedError
from comfyui_guarded.guard.settings import AccessSettings

TRUSTING = AccessSettings()


def _identify(peer="127.0.0.1", settings=TRUSTING, **headers):
    told = {"Host": "127.0.0.1:8188", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return identify(settings, peer, CIMultiDict({name: value for name, value in told.items() if value is not None}))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"])
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8188", "127.0.0.1", "localhost", "localhost:8188", "LocalHost:8188", "[::1]:8188", "[::1]"],
)
def test_a_direct_loopback_connection_is_local_and_an_operator(peer, host):
    assert _identify(peer, Host=host) is LOCAL
    assert (LOCAL.owner, LOCAL.operator) == ("local", True)


@pytest.mark.parametrize(
    "peer",
    [
        *("10.0.0.5", "192.168.1.2", "8.8.8.8", "0.0.0.0", "2001:db8::1", "::ffff:10.0.0.5", "::"),
        *("", "unix", "127.0.0.1.", None),
    ],
)
def test_a_peer_elsewhere_is_not_let_in_whatever_its_host_header_says(peer):
    with pytest.raises(UnauthorizedError) as caught:
        _identify(peer)
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
def test_a_host_header_that_does_not_name_loopback_is_not_let_in(host):
    with pytest.raises(UnauthorizedError):
        _identify(Host=host)


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
def test_a_request_that_was_passed_on_is_not_local(header, value):
    with pytest.raises(UnauthorizedError):
        _identify(**{header.replace("-", "_"): value})


def test_without_trust_loopback_nobody_is_local():
    with pytest.raises(UnauthorizedError) as caught:
        _identify(settings=AccessSettings(trust_loopback=False))
    assert "trust_loopback" in caught.value.details
