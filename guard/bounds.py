"""Read JSON of strangers: what it may hold is counted before it is parsed, and nothing is parsed that is over a bound.

A parser in C keeps all other threads waiting, whichever thread it runs on. So what it gets is bounded first, by scans
that let go of Python's lock between two windows; and a body that takes longer to read than a request may hold up
others is read on a thread of its own.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import InvalidRequestError, PayloadTooLargeError, clip

#: Larger bodies are read on another thread. Smaller ones are every bot's, and a thread would take longer than they do.
INLINE_BYTES = 2**16

#: Of still larger ones few are in memory at once, and nothing is copied that need not be.
LARGE_BYTES = 2**20

#: One step of a quick look: a tenth of a millisecond.
_WINDOW = 2**18
#: One step of an exact count: a millisecond at most, and then others have Python's lock for a moment. Who only lets go
#: of it has it back before anybody else has woken up.
_COUNTED = 2**15
_PAUSE_S = 0.00005
#: What is counted: where lists and objects begin and end, and commas. All else is a value's, or a key.
_MARKS = bytes({0x5B: 0x5B, 0x7B: 0x5B, 0x5D: 0x5D, 0x7D: 0x5D, 0x2C: 0x2C}.get(byte, 0x22) for byte in range(256))
_BLANKS = b" \t\r\n"
#: One level down, or up, as signed bytes.
_LEVELS = bytes.maketrans(b"[]", b"\x01\xff")
_INSIDE = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
#: A step within a text that is full of escapes: the pattern keeps a place for each of them.
_ESCAPES = 2**14

#: Half of a surrogate pair. JSON can spell it, but neither SQLite nor a socket can carry it.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: A picture within JSON.
_PICTURE = re.compile(r"data:(?:image|video|audio)/[\w.+-]+;base64,")


@dataclass(frozen=True)
class Bounds:
    """What a JSON body may hold.

    Attributes:
        values: of any kind, objects and lists themselves among them.
        depth: levels of nesting.
        text: characters of a text or a key.
        picture: characters of a picture as a `data:` URL.
    """

    values: int = 200_000
    depth: int = 50
    text: int = 2**20
    picture: int = 2**24


#: What pydantic may have to look at: it complains of every single value that is wrong.
MODEL_VALUES = 2000

#: A command, with the ids of ten thousand jobs.
COMMAND = Bounds(values=10_100, depth=10, text=2**16)


def read_json(raw: bytes, bounds: Bounds, what: str = "The body") -> Any:
    """Parse strict JSON. For the event loop only up to `INLINE_BYTES`.

    Raises:
        InvalidRequestError: it is no strict JSON, or nested too deeply.
        PayloadTooLargeError: it holds more values, or longer texts, than the bounds let it.
    """
    count_values(raw, bounds, what)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} is not UTF-8.", details=f"at byte {error.start}") from None
    try:
        body = _DECODER.decode(text)
        if _SURROGATE.search(raw):
            json.dumps(body, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidRequestError(f"{what} is nested too deeply.") from None
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} holds half of a surrogate pair.") from None
    except ValueError as error:
        raise InvalidRequestError(f"{what} is not JSON.", details=str(error)) from None
    _measure(body, bounds, what, texts=len(raw) > bounds.text)
    return body


def read_shortened(raw: bytes, most: int) -> Any:
    """Parse JSON of somebody else's without what is behind the first `most` bytes of each text."""
    shortened = raw if len(raw) <= most else shorten(raw, most)
    return json.loads(shortened.decode("utf-8", "replace"))


def shorten(raw: bytes, most: int) -> bytes:
    """JSON without what is behind the first `most` bytes of each text: a long one is never there twice."""
    parts: list[bytes] = []
    at, size = 0, len(raw)
    while (quote := raw.find(b'"', at)) >= 0:
        end = _skip_text(raw, quote + 1)
        if end - quote - 2 > most:
            head = raw[quote + 1 : quote + 1 + most]
            if (escape := head.find(b"\\", most - 12)) >= 0:  # it may be cut in the middle, as may half of a pair
                head = head[:escape].rstrip(b"\\")
            parts += raw[at : quote + 1], head, b'"'
        else:
            parts.append(raw[at:end])
        at = end
    return b"".join([*parts, raw[at:size]])


def read_model(
    model: type[BaseModel], given: Any, prefix: str = "", apart: str = "", *, strict: bool | None = None
) -> Any:
    """Let pydantic read a part of a body, after what would make it complain at length has been refused.

    `apart` is the field that may be larger. Raises InvalidRequestError.
    """
    refuse_unknown(model, given, prefix)
    if isinstance(given, dict) and holds_more({**given, apart: None}, MODEL_VALUES):
        raise InvalidRequestError(f"{prefix.rstrip('.') or 'The body'} holds more than {MODEL_VALUES} values.")
    try:
        return model.model_validate(given, strict=strict)
    except ValidationError as error:
        raise refuse_field(error, prefix) from None


def refuse_unknown(model: type[BaseModel], given: Any, prefix: str = "") -> None:
    """Refuse a field that the model does not have. Raises InvalidRequestError."""
    if isinstance(given, dict) and model.model_config.get("extra") == "forbid":
        for name in given:
            if name not in model.model_fields:
                raise InvalidRequestError(
                    f"{clip(prefix + name)}: there is no such field.", extra_info={"field": prefix + name}
                )


def holds_more(value: Any, most: int) -> bool:
    """Whether a JSON value holds more than so many values. Looks at hardly more of them."""
    waiting, seen = [value], 0
    while waiting:
        item = waiting.pop()
        held = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        seen += len(held)
        if seen > most:
            return True
        waiting += held
    return False


def read_complaint(item: ErrorDetails, what: str = "field") -> tuple[str, str]:
    """The field that pydantic complains of, dotted, and what is wrong with it.

    Args:
        item: of ``ValidationError.errors()``.
        what: the word for a field, where there is none of that name.
    """
    field = clip(".".join(map(str, item["loc"])))
    if item["type"] == "extra_forbidden":
        return field, f"there is no such {what}"
    return field, item["msg"].removeprefix("Value error, ")


def refuse_field(error: ValidationError, prefix: str = "") -> InvalidRequestError:
    """The refusal of a request by pydantic: it names the first wrong field, with `prefix` before it."""
    field, complaint = read_complaint(error.errors()[0])
    return InvalidRequestError(f"{prefix}{field}: {complaint}.", extra_info={"field": f"{prefix}{field}"})


def count_values(raw: bytes, bounds: Bounds, what: str) -> None:
    """Refuse JSON with too many values. Mostly one quick look at each window is enough.

    Raises PayloadTooLargeError, InvalidRequestError where it is nested too deeply.
    """
    most = bounds.values
    if len(raw) // 2 + 1 <= most:  # each takes two bytes
        return
    marks = 0
    for start in range(0, len(raw), _WINDOW):
        end = start + _WINDOW
        marks += raw.count(b",", start, end) + raw.count(b"[", start, end) + raw.count(b"{", start, end)
        if marks >= most:
            _count_exactly(raw, bounds, what)
            return


def _count_exactly(raw: bytes, bounds: Bounds, what: str) -> None:
    """Count the values, without the commas and brackets in texts. Ends with the window that has too many."""
    values, depth, quotes, at, size = 1, 0, 0, 0, len(raw)
    is_inside, last = False, b""
    while at < size:
        window = _cut_window(raw, at)
        at += len(window)
        parts = window.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        marks = b'"'.join(parts[is_inside::2]).translate(_MARKS, _BLANKS)
        quotes += len(parts) - 1
        is_inside ^= len(parts) % 2 == 0
        opened = marks.count(b"[")
        values += marks.count(b",") + opened - (last + marks).count(b"[]")
        last = b'"' if is_inside else marks[-1:] or last
        if depth + opened > bounds.depth:
            levels = memoryview(marks.translate(_LEVELS, b',"')).cast("b")
            if max(accumulate(levels, initial=depth)) > bounds.depth:
                raise _refuse_depth(bounds, what)
        depth += opened - marks.count(b"]")
        # The last one may be empty. Each value may have a key and a text.
        if values - (last == b"[") > bounds.values or quotes > 4 * bounds.values:
            raise PayloadTooLargeError(
                f"{what} holds more than {bounds.values} values.", extra_info={"max_values": bounds.values}
            )
        if size > INLINE_BYTES:
            time.sleep(_PAUSE_S)


def _cut_window(raw: bytes, at: int) -> bytes:
    """The next bytes to count: they end with no half of an escape."""
    window = raw[at : at + _COUNTED]
    if (len(window) - len(window.rstrip(b"\\"))) % 2:
        window = raw[at : at + len(window) + 1]
    return window


def _skip_text(raw: bytes, at: int) -> int:
    """Where the text that begins at `at` has ended."""
    quote = raw.find(b'"', at, at + _WINDOW)
    if quote >= 0 and raw.find(b"\\", at, quote) < 0:
        return quote + 1
    size = len(raw)
    while at < size:
        end = min(at + _ESCAPES, size)
        found = _INSIDE.match(raw, at, end)
        stopped = found.end() if found is not None else at
        if stopped < size and raw[stopped] == 0x22:
            return stopped + 1
        # A backslash was the window's last byte; the next window begins with it.
        at = stopped if stopped > at else stopped + 2
    return size


def _measure(body: Any, bounds: Bounds, what: str, *, texts: bool) -> None:
    """Refuse what nests too deeply, and texts that are too long. Level by level, so that nothing exhausts the stack."""
    depth, level = 0, [body]
    while True:
        if texts:
            for item in level:
                if type(item) is str:
                    _check_text(item, bounds, what)
                elif type(item) is dict:
                    for key in item:
                        _check_text(key, bounds, what)
        level = [item for item in level if type(item) is dict or type(item) is list]
        if not level:
            return
        depth += 1
        if depth > bounds.depth:
            raise _refuse_depth(bounds, what)
        level = [item for holder in level for item in (holder.values() if type(holder) is dict else holder)]


def _check_text(text: str, bounds: Bounds, what: str) -> None:
    if len(text) > bounds.text and not (len(text) <= bounds.picture and _PICTURE.match(text)):
        limit = bounds.picture if _PICTURE.match(text) else bounds.text
        raise PayloadTooLargeError(
            f"{what} holds a text of {len(text)} characters; {limit} are allowed.",
            details=f"It begins with {text[:60]!r}.",
            extra_info={"characters": len(text), "max_characters": limit},
        )


def _refuse_depth(bounds: Bounds, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} is nested more than {bounds.depth} levels deep.", extra_info={"max_depth": bounds.depth}
    )


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where a key stands twice in it: readers would differ on which value counts."""
    members = dict(pairs)
    if len(members) != len(pairs):
        twice, _count = Counter(name for name, _value in pairs).most_common(1)[0]
        raise InvalidRequestError(f"The key {twice[:100]!r} stands twice in one object.")
    return members


def _refuse_constant(name: str) -> Any:
    raise InvalidRequestError(f"{name} is not a number in JSON.")


def _read_float(text: str) -> float:
    if len(text) > 400:  # no double has more digits that count
        raise InvalidRequestError(f"The number {text[:40]}… is too long.")
    number = float(text)
    if math.isinf(number):
        raise InvalidRequestError(f"The number {text[:40]} is too large.")
    return number


def _read_int(text: str) -> int:
    # ComfyUI's seeds have 64 bits. Python itself refuses more than 4,300 digits, but slowly.
    if len(text) > 40:
        raise InvalidRequestError(f"The number {text[:40]}… is too large.")
    return int(text)


#: Made once, because `json.loads` with hooks would make a decoder for each request.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_make_object, parse_constant=_refuse_constant, parse_float=_read_float, parse_int=_read_int
)
