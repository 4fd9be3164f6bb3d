"""Bodies as ComfyUI's clients send them: JSON, whatever their content type says."""

from __future__ import annotations

import json
from typing import Any

from ...guard.errors import InvalidRequestError
from ..table import Call, read_body

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
