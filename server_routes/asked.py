"""Read what a request asks: bodies and query parameters, each refused with a clear error."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Collection
from enum import Enum
from typing import Any, TypeVar

from ..guard.bounds import COMMAND, LARGE_BYTES, Bounds, read_json
from ..guard.errors import InvalidRequestError
from ..guard.quotas import Kind
from ..guard.quotas.threads import work
from .table import Call, refuse_size

E = TypeVar("E", bound=Enum)

#: A command with the ids of ten thousand jobs.
_COMMAND_BYTES = 2**20
#: Let others have their turn after so much of a body.
YIELD_BYTES = 2**18


async def read_body(call: Call, max_bytes: int, kind: Kind = Kind.LARGE) -> bytes:
    """The whole body; a large one takes a turn of that kind.

    Raises PayloadTooLargeError without having read much more than that, QuotaExceededError.
    """
    request = call.request
    if (declared := request.content_length or 0) > max_bytes:
        raise refuse_size(max_bytes)
    if declared > LARGE_BYTES:
        await call.turn.take(kind)
    elif request.content.is_eof() and request.content.total_bytes <= min(max_bytes, LARGE_BYTES):
        return request.content.read_nowait()  # as of most: it has come in with the head
    body, size, shown = io.BytesIO(), 0, 0  # which gives what it holds away without a copy
    async for chunk in request.content.iter_any():
        size += body.write(chunk)
        if size > max_bytes:
            raise refuse_size(max_bytes)
        if size > LARGE_BYTES:
            await call.turn.take(kind)
        if size - shown >= YIELD_BYTES:  # what unpacks is there at once, and nobody else would have a turn
            shown = size
            await asyncio.sleep(0)
    return body.getvalue()


async def read_given(call: Call, max_bytes: int, bounds: Bounds) -> Any:
    """What a JSON body says, whatever its content type. Raises InvalidRequestError, PayloadTooLargeError."""
    raw = await read_body(call, max_bytes)
    return await work(len(raw), read_json, raw, bounds)


async def read_fields(call: Call, *names: str) -> dict[str, Any]:
    """As :func:`read_command`, for a body that has no other fields. Raises InvalidRequestError for one that has."""
    asked = await read_command(call)
    if unknown := sorted(asked.keys() - set(names)):
        raise InvalidRequestError(f"There is no field {unknown[0][:64]}.", extra_info={"field": unknown[0][:64]})
    return asked


async def read_command(call: Call) -> dict[str, Any]:
    """What a short JSON body says, whatever its content type; an empty one says nothing.

    Raises:
        InvalidRequestError: it is no JSON object. ComfyUI takes that for a wish to stop whatever runs.
    """
    raw = await read_body(call, _COMMAND_BYTES)
    body = await work(len(raw), read_json, raw, COMMAND) if raw.strip() else {}
    if not isinstance(body, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return body


def read_ids(body: dict[str, Any], name: str) -> list[str] | None:
    """A list of job ids; None where the body has none. Raises InvalidRequestError."""
    ids = body.get(name)
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise InvalidRequestError(f"{name} must be a list of ids.", extra_info={"field": name})
    return ids


def check_query(call: Call, known: Collection[str], prefix: str) -> None:
    """Refuse a field of the query that is not `known` and does not begin with `prefix`, and one that stands twice.

    A filter that is ignored answers with what was not asked for. Raises InvalidRequestError.
    """
    query = call.request.query
    for name in query:
        if name not in known and name != "token" and not (name.startswith(prefix) and name != prefix):
            raise InvalidRequestError(f"There is no filter {name[:100]!r}.", extra_info={"field": name[:100]})
        if name != "state" and len(query.getall(name)) > 1:
            raise InvalidRequestError(f"{name[:100]} stands twice in the query.", extra_info={"field": name[:100]})


def read_number(call: Call, name: str, default: float, low: float, high: float) -> float:
    """A number from the query. Raises InvalidRequestError."""
    raw = call.request.query.get(name)
    if raw is None:
        return default
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be a number from {low:g} to {high:g}.", extra_info={"field": name})
    return value


def read_whole_number(call: Call, name: str) -> int | None:
    """A whole number from the query; None where it has none. Raises InvalidRequestError."""
    raw = call.request.query.get(name)
    if raw is None:
        return None
    value: int | None
    try:
        value = int(raw)
    except ValueError:
        value = None
    if value is None or abs(value) > 2**53:
        raise InvalidRequestError(f"{name} must be a whole number.", extra_info={"field": name})
    return value


def read_choice(call: Call, name: str, usual: str, other: str) -> str:
    """One of two words from the query. Raises InvalidRequestError."""
    value = call.request.query.get(name, usual).lower()
    if value not in (usual, other):
        raise InvalidRequestError(f"{name} must be {usual} or {other}.", extra_info={"field": name})
    return value


def read_flag(call: Call, name: str) -> bool:
    """Whether the query sets a flag."""
    return call.request.query.get(name) in ("1", "true")


def read_states(call: Call, known: type[E], usual: tuple[str, ...] = ()) -> frozenset[E]:
    """The states that `state` names, repeated or comma-separated. Raises InvalidRequestError."""
    names = [name for value in call.request.query.getall("state", usual) for name in value.split(",") if name]
    return frozenset(read_state(name, known) for name in names)


def read_state(name: str, known: type[E]) -> E:
    """The state of that name. Raises InvalidRequestError."""
    try:
        return known(name)
    except ValueError:
        names = ", ".join(str(state.value) for state in known)
        raise InvalidRequestError(f"state must be one of {names}.", extra_info={"field": "state"}) from None


def read_page(call: Call, usual: int, largest: int) -> tuple[int, int | None]:
    """How many a page of a list may have, and the number that all on it must be below. Raises InvalidRequestError."""
    limit = int(read_number(call, "limit", usual, 1, largest))
    before = int(read_number(call, "before", 2**53, 1, 2**53)) if "before" in call.request.query else None
    return limit, before
