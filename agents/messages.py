"""Messages of the protocol, judged before the `mcp` package sees them: it leaves unanswered what it cannot read.

JSON-RPC has an error for those, with the request's own id where that can be read, else with the id null.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from ..guard.bounds import Bounds, read_json
from ..guard.errors import GuardError

PARSE_ERROR = -32700
INVALID_REQUEST = -32600

#: A message over stdio, and what it may hold: some pictures. The package itself reads no deeper than 200 levels.
LINE_BYTES = 2**27
_BOUNDS = Bounds(depth=100, text=2**26, picture=2**26)
_READ_BYTES = 2**16

Answer = dict[str, Any]


def find_fault(message: Any) -> Answer | None:
    """The answer to what is no request, notification or response; None where it is one."""
    if not isinstance(message, dict):
        return _make_error(None, INVALID_REQUEST, "A message is one JSON object; batches are not taken.")
    answers = "error" in message or ("result" in message and _read_id(message) is not None)
    if message.get("jsonrpc") != "2.0":
        why = 'jsonrpc must be "2.0".'
    elif "method" not in message and answers:
        return None
    elif not isinstance(message.get("method"), str):
        why = "There must be a method, a text."
    elif not isinstance(message.get("params"), (dict, type(None))):
        why = "params must be an object."
    elif "id" in message and _read_id(message) is None:
        why = "id must be a text or a whole number."
    else:
        return None
    return _make_error(_read_id(message), INVALID_REQUEST, why)


class Lines:
    """The messages of a stream, one a line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self) -> tuple[str, Answer | None] | None:
        """The next line, and its answer where it is no message; None at the end. Blocks."""
        while line := self._stream.readline(LINE_BYTES):
            if len(line) >= LINE_BYTES and not line.endswith(b"\n"):
                while (rest := self._stream.readline(_READ_BYTES)) and not rest.endswith(b"\n"):
                    pass
                return "", _make_error(None, INVALID_REQUEST, f"A message has {LINE_BYTES} bytes at most.")
            if line.strip():
                return _judge(line)
        return None


def _judge(line: bytes) -> tuple[str, Answer | None]:
    try:
        return line.decode("utf-8-sig", "replace"), find_fault(read_json(line, _BOUNDS, "The message"))
    except GuardError as error:
        why = " ".join(filter(None, (error.message, error.details)))
        return "", _make_error(_guess_id(line), PARSE_ERROR, why)


def _guess_id(line: bytes) -> str | int | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _read_id(message) if isinstance(message, dict) else None


def _read_id(message: dict[str, Any]) -> str | int | None:
    """The id, where it is one."""
    given = message.get("id")
    if isinstance(given, str):
        return given if given.isascii() else given.encode("utf-8", "replace").decode()
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _make_error(message_id: str | int | None, code: int, why: str) -> Answer:
    return {"jsonrpc": "2.0", "id": message_id, "error": {"code": code, "message": why}}
