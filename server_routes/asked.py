"""Read what a request asks: short JSON bodies and query parameters, each refused with a clear error."""

from __future__ import annotations

import json
from typing import Any

from ..guard.errors import InvalidRequestError
from .table import Call, read_body

#: A command with the ids of ten thousand jobs.
_AT_MOST_BYTES = 2**20


async def command(call: Call) -> dict[str, Any]:
    """What a short body says; an empty one says nothing.

    Raises:
        InvalidRequestError: it is no JSON object. ComfyUI takes that for a wish to stop whatever runs.
    """
    raw = await read_body(call.request, _AT_MOST_BYTES)
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is the name of nothing
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return body


def ids(body: dict[str, Any], name: str) -> list[str] | None:
    """A list of job ids; None where the body has none. Raises InvalidRequestError."""
    found = body.get(name)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InvalidRequestError(f"{name} must be a list of ids.", extra_info={"field": name})
    return found


def whole(call: Call, name: str) -> int | None:
    raw = call.request.query.get(name)
    if raw is None:
        return None
    try:
        value = int(raw)
    except ValueError:
        value = None
    if value is None or abs(value) > 2**53:
        raise InvalidRequestError(f"{name} must be a whole number.", extra_info={"field": name})
    return value


def one_of(call: Call, name: str, usual: str, other: str) -> str:
    value = call.request.query.get(name, usual).lower()
    if value not in (usual, other):
        raise InvalidRequestError(f"{name} must be {usual} or {other}.", extra_info={"field": name})
    return value


def number(call: Call, name: str, default: float, low: float, high: float) -> float:
    """A number from the query string. Raises InvalidRequestError."""
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
