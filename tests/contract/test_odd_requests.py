"""Requests that are hardly HTTP: on each of our routes that takes a body, an answer in our words, and a quiet log."""

import contextlib
import json
import os
import select
import socket

import pytest
from contract.conftest import hosts
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfyui_guarded.server_routes import ROUTES

SEARCHES = int(os.environ.get("GUARDED_ODD_REQUESTS", "80"))
WITH_BODY = sorted({(route.method, route.path) for route in ROUTES if route.method not in ("GET", "HEAD")})
ENCODINGS = ("br", "zstd", "gzip", "deflate", "x-unknown", "gzip, br", "", "\x7f")
TYPES = (
    "text/plain", "application/json; charset=none", "multipart/form-data", "multipart/form-data; boundary=",
    'multipart/form-data; boundary="', "multipart/form-data; boundary=b", "multipart/mixed; boundary=b", "/", "x", "",
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "b" * 200,
)  # fmt: skip


def ask(host, method: str, path: str, headers: list[tuple[str, str]], body: bytes, *, whole: bool = True) -> bytes:
    """What a raw connection gets to read. Where the request may not be `whole`, it ends without an answer too."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if whole:
        lines.append(f"Content-Length: {len(body)}")
    answer = b""
    with socket.create_connection(("127.0.0.1", host.port), timeout=60) as raw, contextlib.suppress(ConnectionError):
        raw.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        if not whole and not select.select([raw], [], [], 0.3)[0]:
            raw.shutdown(socket.SHUT_WR)
        while chunk := raw.recv(2**16):
            answer += chunk
    return answer


def judge(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1."), answer[:300]
    status = int(head.split()[1])
    assert status < 500, answer
    if status >= 400:
        assert b"content-type: application/json" in head.lower(), answer
        told = json.loads(body)
        assert told["guard"]["code"], told
        assert told["error"]["message"]
    return status


@pytest.mark.parametrize(
    "path", ["/guarded/prompt", "/guarded/mcp", "/guarded/workflows/photo_check", "/guarded/jobs/cancel"]
)
def test_a_body_in_an_encoding_that_nobody_reads_is_refused_in_our_words(host, keys, path):
    before = len(host.log.read_text(errors="replace"))
    auth = ("Authorization", f"Bearer {keys.made['mine']}")
    body = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
    for encoding in ("br", "gzip", "deflate"):
        assert judge(ask(host, "POST", path, [auth, ("Content-Encoding", encoding)], body)) == 400
    for kind in TYPES:
        assert 400 <= judge(ask(host, "POST", path, [auth, ("Content-Type", kind)], b"{")) < 500
    since = host.log.read_text(errors="replace")[before:]
    assert "Traceback" not in since, since


HEADERS = st.lists(
    st.tuples(st.just("Content-Encoding"), st.sampled_from(ENCODINGS))
    | st.tuples(st.just("Content-Type"), st.sampled_from(TYPES))
    | st.tuples(st.just("Transfer-Encoding"), st.sampled_from(["chunked", "gzip", "gzip, chunked", "identity", "x"]))
    | st.tuples(st.just("Content-Length"), st.sampled_from(["0", "-1", "1e3", "99999999999999999999", " ", "1, 1"]))
    | st.tuples(
        st.sampled_from(["Idempotency-Key", "Accept-Language", "Cookie", "Range", "If-Match", "X-API-Key", "Accept"]),
        st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=12),
    )
    | st.tuples(st.sampled_from(["Bad Name", "X:Y", "", "X\x01", "Upgrade"]), st.just("websocket")),
    max_size=4,
)
QUERIES = st.sampled_from(["", "?wait=0", "?wait=x", "?wait=%00", "?%ff=%ff", "?token=x", "?state=%F0%9F", "?a=b&a=b"])


@hosts(lambda kind: not kind.real)
def test_whatever_the_headers_say_the_answer_is_in_our_words(host, keys):
    before = len(host.log.read_text(errors="replace"))
    auth = ("Authorization", f"Bearer {keys.made['mine']}")

    @settings(max_examples=SEARCHES, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @example(("POST", "/prompt"), "", [("Content-Encoding", "br")], b"x", True)
    @example(("POST", "/prompt"), "", [("Bad Name", "x")], b"x", True)
    @given(st.sampled_from(WITH_BODY), QUERIES, HEADERS, st.binary(max_size=40), st.booleans())
    def search(route, query, headers, body, length):
        method, path = route
        path = "/guarded" + path.replace("{", "").replace("}", "") + query
        whole = not any(name in ("Content-Length", "Transfer-Encoding") for name, _ in headers) and length
        answer = ask(host, method, path, [auth, *headers], body, whole=whole)
        if answer or whole:
            judge(answer)

    search()
    since = host.log.read_text(errors="replace")[before:]
    assert "Traceback" not in since, since[-3000:]
