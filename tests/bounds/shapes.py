"""Bodies that are cheap to send and dear to read: each row was seen to stall a server."""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20
JSON = {"Content-Type": "application/json"}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def text(words: str = "hello") -> dict[str, Any]:
    return {"1": node("FaultText", text=words, seed=0)}


def repeat(item: bytes, size: int) -> bytes:
    """As many of it as fit into that size, as the inside of a JSON list."""
    count = size // (len(item) + 1)
    return b",".join([item] * count)


def fill(body: dict[str, Any], inside: bytes) -> bytes:
    """The body with `inside` in the place of the text `@`."""
    head, tail = json.dumps(body).encode().split(b'"@"')
    return head + inside + tail


def in_input(inside: bytes) -> Callable[[], bytes]:
    return lambda: fill({"prompt": {"1": node("FaultText", text="@", seed=0)}}, inside)


def bomb(encoding: str, letters: int = 400 * MIB) -> bytes:
    pack = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    block = b"a" * MIB
    return b"".join(pack.compress(block) for _ in range(letters // MIB)) + pack.flush()


def unknown_keys(size: int) -> bytes:
    return b"{" + b",".join(b'"k%d":1' % number for number in range(size // 11)) + b"}"


def form(parts: int, name: str = "image") -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    return b"".join(part % (f"{name}{number}".encode()) for number in range(parts)) + b"--b--\r\n"


def upload(content: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.txt"\r\n\r\n'
    return head + content + b"\r\n--b--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@dataclass(frozen=True)
class Row:
    """One request, with a key (`keyed`) or nobody's."""

    name: str
    path: str
    make: Callable[[], bytes]
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    keyed: bool = True

    @property
    def is_native(self) -> bool:
        """Whether native ComfyUI takes the same; what it does not have must not stall the loop at all."""
        return self.keyed and self.path == "/guarded/prompt" and "Content-Encoding" not in self.headers


def _nodes(count: int, *, chain: bool = False) -> bytes:
    """So many small nodes, in a chain or beside each other."""
    prompt: dict[str, Any] = {"0": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    for number in range(1, count - 1):
        source = str(number - 1) if chain else "0"
        prompt[str(number)] = node("ImageInvert", image=[source, 0])
    prompt["s"] = node("SaveImage", images=[str(count - 2), 0], filename_prefix="bounds")
    return json.dumps({"prompt": prompt}).encode()


def chain(count: int) -> bytes:
    return _nodes(count, chain=True)


def _guard(inside: bytes) -> Callable[[], bytes]:
    return lambda: fill({"prompt": text(), "guard": "@"}, inside)


ROWS = [
    Row("gzip bomb, no key", "/guarded/prompt", lambda: bomb("gzip"), {**JSON, "Content-Encoding": "gzip"}, False),
    Row("deflate bomb, no key", "/guarded/prompt",
        lambda: bomb("deflate"), {**JSON, "Content-Encoding": "deflate"}, False),
    Row("gzip bomb", "/guarded/prompt", lambda: bomb("gzip"), {**JSON, "Content-Encoding": "gzip"}),
    Row("gzip bomb to a route without a body", "/guarded/nothing", lambda: bomb("gzip"), {"Content-Encoding": "gzip"}),
    Row("face-check, empty lists", "/guarded/face-check", lambda: b'{"image":[' + repeat(b"[]", 8 * MIB) + b"]}"),
    Row("face-check, unknown keys", "/guarded/face-check", lambda: b'{"image":"a.png",' + unknown_keys(8 * MIB)[1:]),
    Row("face-check, form of 30,000 parts", "/guarded/face-check", lambda: form(30_000), dict(FORM)),
    Row("face-check, form of 4 million lines", "/guarded/face-check", lambda: b"\r\n" * (4 * MIB), dict(FORM)),
    Row("upload, blanks in a scene", "/guarded/upload/image",
        lambda: upload(b"<COLLADA> url" + b" " * 2**16), dict(FORM)),
    Row("upload, blanks in a drawing", "/guarded/upload/image",
        lambda: upload(b"<svg a='url(" + b" " * 2**17 + b"#'/>"), dict(FORM)),
    Row("upload, a scene of empty lists", "/guarded/upload/image",
        lambda: upload(b'{"asset":[' + repeat(b"[]", 15 * MIB) + b"]}"), dict(FORM)),
    Row("prompt, form of 30,000 files", "/guarded/prompt",
        lambda: form(30_000).replace(b'name="', b'filename="a.png"; name="'), dict(FORM)),
    Row("tokens, empty lists", "/guarded/tokens", lambda: b'{"path":[' + repeat(b"[]", 60_000) + b"]}"),
    Row("queue, empty lists", "/guarded/queue", lambda: b'{"delete":[' + repeat(b"[]", MIB - 100) + b"]}"),
    Row("prompt, 15 MiB of letters", "/guarded/prompt", in_input(b'"' + b"a" * (15 * MIB) + b'"')),
    Row("prompt, 15 texts of 1 MiB", "/guarded/prompt",
        in_input(b"[" + repeat(b'"' + b"a" * (MIB - 16) + b'"', 15 * MIB) + b"]")),
    Row("prompt, a text of escapes", "/guarded/prompt", in_input(b'"' + b"\\n" * (7 * MIB) + b'"')),
    Row("prompt, small dicts", "/guarded/prompt", in_input(b"[" + repeat(b'{"a":1}', 15 * MIB) + b"]")),
    Row("prompt, floats", "/guarded/prompt", in_input(b"[" + repeat(b"1.5", 15 * MIB) + b"]")),
    Row("prompt, nested lists", "/guarded/prompt", in_input(b"[" * (4 * MIB) + b"]" * (4 * MIB))),
    Row("prompt, quotes without commas", "/guarded/prompt", in_input(b'""' * (7 * MIB))),
    Row("prompt, 190,000 values", "/guarded/prompt", in_input(b"[" + b",".join([b"[]"] * 190_000) + b"]")),
    Row("prompt, extra_data of empty lists", "/guarded/prompt",
        lambda: fill({"prompt": text(), "extra_data": {"a": "@"}}, b"[" + repeat(b"[]", 15 * MIB) + b"]")),
    Row("prompt, metadata of empty lists", "/guarded/prompt",
        _guard(b'{"metadata":{"a":[' + repeat(b"[]", 15 * MIB) + b"]}}")),
    Row("prompt, guard with unknown keys", "/guarded/prompt", _guard(unknown_keys(15 * MIB))),
    Row("prompt, guard with 150,000 unknown keys", "/guarded/prompt", _guard(unknown_keys(150_000 * 11))),
    Row("prompt, 1,000 nodes", "/guarded/prompt", lambda: _nodes(1000)),
    Row("prompt, a chain of 1,000 nodes", "/guarded/prompt", lambda: _nodes(1000, chain=True)),
    Row("prompt, gzip of 15 MiB", "/guarded/prompt",
        lambda: gzip.compress(in_input(b"[" + repeat(b"[]", 15 * MIB) + b"]")()), {**JSON, "Content-Encoding": "gzip"}),
]  # fmt: skip
