"""How a body comes in: in which pieces, in what encoding, how many behind each other and beside each other."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

from hypothesis import strategies as st

#: So many pieces are enough for a second of anybody's work, where each is work.
MOST_PIECES = 300_000


@dataclass(frozen=True)
class Framing:
    """How to send a body.

    Attributes:
        pieces: how large its pieces are, in turn, over and over; none: it comes whole.
        chunked: each piece is a chunk; otherwise its length is declared, and the pieces are only how it is written.
        extension: what is behind the length of each chunk.
        trailers: fields behind the last chunk.
        members: so many gzip members one behind the other make it up.
        pipelined: the request comes so many times on a connection.
        connections: all of it comes on so many connections at once.
        slow: a millisecond passes now and then.
    """

    pieces: tuple[int, ...] = ()
    chunked: bool = False
    extension: bytes = b""
    trailers: int = 0
    members: int = 1
    pipelined: int = 1
    connections: int = 1
    slow: bool = False

    def pack(self, body: bytes, encoding: str) -> bytes:
        """The body in its encoding."""
        if encoding not in ("gzip", "deflate"):
            return body
        step = max(len(body) // self.members, 1) if encoding == "gzip" else max(len(body), 1)
        packed = []
        for at in range(0, max(len(body), 1), step):
            packer = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
            packed.append(packer.compress(body[at : at + step]) + packer.flush())
        return b"".join(packed)

    def cut(self, body: bytes) -> list[bytes]:
        """The pieces of a body; it is shorter where they would be too many."""
        if not self.pieces:
            return [body]
        most = MOST_PIECES * sum(self.pieces) // len(self.pieces) // (self.pipelined * self.connections)
        body, parts, at = body[:most], [], 0
        for size in itertools.cycle(self.pieces):
            if at >= len(body):
                return parts
            parts.append(body[at : at + size])
            at += size
        raise AssertionError("the cycle never ends")

    def write(self, head: bytes, body: bytes) -> list[bytes]:
        """What goes to a connection, in the pieces in which it is written. The head ends with its last field."""
        parts = self.cut(body)
        if self.chunked:
            end = b"".join(b"X-%d: y\r\n" % number for number in range(self.trailers))
            whole = b"".join(b"%x%b\r\n%b\r\n" % (len(part), self.extension, part) for part in parts)
            request = b"%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (head, whole, end)
            return [request] * self.pipelined
        parts[:1] = [b"%bContent-Length: %d\r\n\r\n" % (head, sum(map(len, parts))), *parts[:1]]
        return (parts if self.slow else [b"".join(parts)]) * self.pipelined

    def write_frames(self, body: bytes) -> list[bytes]:
        """The same as one message of a websocket, each piece a frame."""
        parts = self.cut(body)
        frames = []
        for number, part in enumerate(parts):
            code = (0 if number else 1) | (0x80 if number == len(parts) - 1 else 0)
            size = len(part)
            length = b"%c" % (0x80 | size) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
            if size >= 2**16:
                length = b"\xff" + size.to_bytes(8, "big")
            frames.append(b"%c%b%b%b" % (code, length, bytes(4), part))
        return [b"".join(frames)] * self.pipelined


PIECES = st.one_of(
    st.just(()),
    st.sampled_from([(1,), (2,), (3,), (5,), (2**16, 1), (4096,), (2**16,)]),
    st.lists(st.sampled_from([1, 2, 3, 7, 60, 125, 126, 1000, 4095, 4097, 2**14, 2**16]), min_size=1, max_size=4).map(
        tuple
    ),
)


def framings() -> st.SearchStrategy[Framing]:
    return st.builds(
        Framing,
        pieces=PIECES,
        chunked=st.booleans(),
        extension=st.sampled_from([b"", b"", b"", b";a", b";a=" + b"b" * 1000]),
        trailers=st.sampled_from([0, 0, 0, 1, 100, 10_000]),
        members=st.sampled_from([1, 1, 1, 100, 10_000]),
        pipelined=st.sampled_from([1, 1, 1, 1, 2, 20]),
        connections=st.sampled_from([1, 1, 1, 1, 4, 12]),
        slow=st.sampled_from([False, False, False, True]),
    )
