"""The generated contract, held against every JSON answer and every event that a test sees."""

from __future__ import annotations

import functools
import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from comfyui_guarded.server_routes import ROUTES, openapi

#: The data of an event, by its name.
EVENTS = {
    "state": "Job",
    "position": "Position",
    "progress": "ProgressEvent",
    "preview": "PreviewEvent",
    "alarm": "AlarmEvent",
}
REFUSAL = {"$ref": "#/components/schemas/Refusal"}


@functools.cache
def contract() -> dict[str, Any]:
    """With objects closed: a field that is built but not described fails a test, too."""
    document: dict[str, Any] = json.loads(json.dumps(openapi.document(ROUTES)))
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return document


@functools.cache
def operations() -> list[tuple[re.Pattern[str], Mapping[str, Any]]]:
    """Paths without parameters first."""
    paths = sorted(contract()["paths"].items(), key=lambda item: "{" in item[0])
    return [(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), item) for path, item in paths]


@functools.cache
def validator(schema: str) -> Any:
    return jsonschema_rs.validator_for({**json.loads(schema), "components": contract()["components"]})


def find_operation(method: str, path: str) -> Mapping[str, Any] | None:
    path = re.sub("/+", "/", path.partition("?")[0]).removeprefix("/api")
    for wanted in (path, path.replace("/guarded/api/", "/guarded/", 1)):
        for pattern, item in operations():
            if pattern.fullmatch(wanted) and method.lower() in item:
                return dict(item[method.lower()])
    return None


def assert_answer_is_promised(method: str, path: str, status: int, headers: Mapping[str, str], content: bytes) -> None:
    """Answers under our prefix only, and of those the JSON."""
    is_ours = re.search(r"/guarded(?!\w)", posixpath.normpath(path.partition("?")[0]))
    if not is_ours or not headers.get("Content-Type", "").startswith("application/json") or not content:
        return
    operation = find_operation(method, path)
    if operation is None:
        schema = REFUSAL
    else:
        assert str(status) in operation["responses"], f"{method} {path}: {status} is not in the contract: {content!r}"
        promised = operation["responses"][str(status)]["content"]
        if "application/json" not in promised and "*/*" in promised:
            return  # a file that happens to be JSON
        schema = promised["application/json"]["schema"]
    body = json.loads(content)
    assert_valid(schema, body, f"{method} {path}: {status}")
    if status >= 400 and "guard" in body:
        told = body["guard"]
        expected = {"refund": told["job_id"] is None} if asks_for_a_job(method, path) else {}
        assert {name: told[name] for name in told if name == "refund"} == expected, f"{method} {path}: {body}"


def asks_for_a_job(method: str, path: str) -> bool:
    asked = re.sub("/+", "/", path.partition("?")[0]).removeprefix("/api").replace("/guarded/api/", "/guarded/", 1)
    return method == "POST" and re.fullmatch("/guarded/(prompt|fleet/prompt|workflows/[^/]+)", asked) is not None


def assert_event_is_promised(name: str, data: Any) -> None:
    assert_valid({"$ref": f"#/components/schemas/{EVENTS[name]}"}, data, f"event {name}")


def assert_valid(schema: Mapping[str, Any], value: Any, what: str) -> None:
    errors = [
        f"{'/'.join(map(str, error.instance_path))}: {error.message[:500]}"
        for error in validator(json.dumps(schema)).iter_errors(value)
    ]
    assert not errors, f"{what} breaks the contract: {'; '.join(errors)}"
