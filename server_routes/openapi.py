"""GET /guarded/openapi.json: the contract, made from the route table."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from ..guard.errors import FAMILY, ForbiddenError, GuardError, InvalidRequestError, UnauthorizedError
from ..guard.job import JobState
from ..guard.submit.request import GuardOptions
from .about import About, Schema
from .table import PREFIX, Call, Route, answered

#: Of this contract, not of the package: it changes when a client may have to.
VERSION = "1.0"

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE_COUNT = {"type": ["integer", "null"], "minimum": 0}
_MAYBE_NUMBER = {"type": ["number", "null"]}
_MAYBE_TEXT = {"type": ["string", "null"]}
_ANY_OBJECT = {"type": "object"}


def _object(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_NODE = _object({"class_type": _TEXT, "inputs": _ANY_OBJECT, "_meta": _ANY_OBJECT}, optional=["_meta"])
_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}

_UPLOAD_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "contentMediaType": "application/octet-stream"},
        "type": {"type": "string", "enum": ["input", "temp", "output"]},
        "subfolder": _TEXT,
        "overwrite": _TEXT,
    },
    "required": ["image"],
}

SCHEMAS: dict[str, Any] = {
    "Object": _ANY_OBJECT,
    "Error": {
        "description": "Every refusal: ComfyUI's shape, and the guard's part beside it.",
        **_object(
            {
                "error": _object({"type": _TEXT, "message": _TEXT, "details": _TEXT, "extra_info": _ANY_OBJECT}),
                "node_errors": _ANY_OBJECT,
                "guard": _object(
                    {
                        "code": {"type": "string", "enum": sorted(FAMILY)},
                        "user_message": _TEXT,
                        "refund": {"const": True},
                        "retryable": {"type": "boolean"},
                        "retry_after_s": _MAYBE_NUMBER,
                        "job_id": _MAYBE_TEXT,
                    }
                ),
            }
        ),
    },
    "Prompt": {
        "description": "What ComfyUI's POST /prompt takes, and `guard`.",
        **_object(
            {
                "prompt": {"type": "object", "minProperties": 1, "additionalProperties": _NODE},
                "client_id": {"type": "string", "maxLength": 255},
                "prompt_id": {"type": "string", "format": "uuid"},
                "extra_data": _ANY_OBJECT,
                "number": {"type": "number"},
                "front": {"type": "boolean"},
                "partial_execution_targets": _list(_TEXT),
                "guard": _ref("GuardOptions"),
            },
            optional=["client_id", "prompt_id", "extra_data", "number", "front", "partial_execution_targets", "guard"],
        ),
    },
    "PromptForm": {
        "description": "The same as fields of a form, and the files that the prompt's loaders name.",
        "type": "object",
        "properties": {"prompt": {"type": "string", "contentMediaType": "application/json"}},
        "additionalProperties": {"type": "string", "contentMediaType": "application/octet-stream"},
        "required": ["prompt"],
    },
    "Rendering": {
        "description": "Values for a template's parameters; beside them, what a prompt may have except the prompt.",
        "type": "object",
        "properties": {"parameters": _ANY_OBJECT, "guard": _ref("GuardOptions")},
    },
    "RenderingForm": {
        "description": "The same as fields of a form, and the files of its parameters.",
        "type": "object",
        "properties": {"parameters": {"type": "string", "contentMediaType": "application/json"}},
        "additionalProperties": {"type": "string", "contentMediaType": "application/octet-stream"},
    },
    "Workflows": _object(
        {"workflows": _list(_object({"name": _TEXT, "title": _TEXT, "parameters": _list(_ANY_OBJECT)}))}
    ),
    "Submitted": _object(
        {
            "prompt_id": _TEXT,
            "number": _COUNT,
            "node_errors": _ANY_OBJECT,
            "guard": _object(
                {
                    "state": _ref("JobState"),
                    "position": _MAYBE_COUNT,
                    "eta_s": _MAYBE_NUMBER,
                    "running": _MAYBE_COUNT,
                    "max_jobs": _COUNT,
                    "user_message": _MAYBE_TEXT,
                    "job": _ref("Job"),
                    "template": _TEXT,
                    "parameters": _ANY_OBJECT,
                },
                optional=["job", "template", "parameters"],
            ),
        }
    ),
    "JobState": {"type": "string", "enum": [state.value for state in JobState]},
    "Job": _object(
        {
            "job_id": _TEXT,
            "prompt_id": _TEXT,
            "state": _ref("JobState"),
            "position": _MAYBE_COUNT,
            "eta_s": _MAYBE_NUMBER,
            "owner": _TEXT,
            "template": _MAYBE_TEXT,
            "priority": {"type": "integer"},
            "attempts": _COUNT,
            "created_at_ms": _COUNT,
            "started_at_ms": _MAYBE_COUNT,
            "settled_at_ms": _MAYBE_COUNT,
            "timeout_s": {"type": "number"},
            "progress": {"type": ["object", "null"]},
            "outputs": _ANY_OBJECT,
            "artifacts": _list(_ref("Artifact")),
            "error": {
                "oneOf": [
                    {"type": "null"},
                    _object(
                        {
                            "code": {"type": "string", "enum": sorted(FAMILY)},
                            "message": _TEXT,
                            "user_message": _TEXT,
                            "retryable": {"type": "boolean"},
                            "details": _ANY_OBJECT,
                        }
                    ),
                ]
            },
            "refund": {"type": ["boolean", "null"]},
            "metadata": _ANY_OBJECT,
        }
    ),
    "Artifact": _object(
        {
            "index": _COUNT,
            "node_id": _TEXT,
            "kind": _TEXT,
            "filename": _TEXT,
            "subfolder": _TEXT,
            "type": {"type": "string", "enum": ["output", "temp", "input"]},
            "bytes": _COUNT,
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "width": _MAYBE_COUNT,
            "height": _MAYBE_COUNT,
            "duration_s": _MAYBE_NUMBER,
            "frames": _MAYBE_COUNT,
            "fps": _MAYBE_NUMBER,
            "warnings": _list(_TEXT),
            "url": _TEXT,
        }
    ),
    "Jobs": _object({"jobs": _list(_ref("Job")), "next": _MAYBE_COUNT}),
    "Webhooks": _object({"webhooks": _list(_ANY_OBJECT), "next": _MAYBE_COUNT}),
    "List": _list({}),
    "Remaining": _object({"exec_info": _object({"queue_remaining": _COUNT})}),
    "Command": {
        "description": "`clear` takes out all of the caller's own, `delete` those that are named.",
        **_object({"clear": {"type": "boolean"}, "delete": _list(_TEXT)}, optional=["clear", "delete"]),
    },
    "Interrupt": _object({"prompt_id": _TEXT}, optional=["prompt_id"]),
    "JobIds": _object({"job_ids": _list(_TEXT)}),
    "Cancelled": _object({"cancelled": {"type": "boolean"}}),
    "Kept": _object({"name": _TEXT, "subfolder": _TEXT, "type": _TEXT}),
    "UploadForm": _UPLOAD_FORM,
    "MaskForm": {
        **_UPLOAD_FORM,
        "properties": {
            **_UPLOAD_FORM["properties"],
            "original_ref": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["image", "original_ref"],
    },
    "Queue": _object({"queue_running": _list(_list({})), "queue_pending": _list(_list({}))}),
    "History": {
        "type": "object",
        "additionalProperties": _object(
            {"prompt": _list({}), "outputs": _ANY_OBJECT, "status": _ANY_OBJECT, "guard": _ref("Job")},
            optional=["guard"],
        ),
    },
    "StoredImage": _object(
        {
            "image": {"type": "string", "minLength": 1},
            "subfolder": _TEXT,
            "type": {"type": "string", "enum": ["input", "output", "temp"]},
            "min_faces": {"type": "integer", "minimum": 0, "maximum": 1000},
            "max_faces": {"type": "integer", "minimum": 0, "maximum": 1000},
            "min_confidence": {"type": "number", "minimum": 0.3, "maximum": 1},
            "min_face_fraction": {"type": "number", "minimum": 0, "maximum": 1},
        },
        optional=["subfolder", "type", "min_faces", "max_faces", "min_confidence", "min_face_fraction"],
    ),
    "PictureForm": {
        "description": "The picture, and the rules beside it.",
        "type": "object",
        "properties": {"image": {"type": "string", "contentMediaType": "application/octet-stream"}},
        "required": ["image"],
    },
    "Faces": _object(
        {
            "faces": _list(_object({"box": _BOX, "confidence": {"type": "number"}, "landmarks": {}})),
            "small_faces": _list(_ANY_OBJECT),
            "width": _COUNT,
            "height": _COUNT,
            "detector": _TEXT,
        }
    ),
    "Wanted": _object(
        {
            "path": {"type": "string", "minLength": 1, "maxLength": 2000, "pattern": "^/[!-~]*$"},
            "ttl_s": {"type": "number", "exclusiveMinimum": 0},
        },
        optional=["ttl_s"],
    ),
    "Token": _object({"token": _TEXT, "url": _TEXT, "expires_in_s": {"type": "number"}}),
    "Status": _object({"status": _TEXT}),
    "Draining": _object({"draining": {"type": "boolean"}}),
    "Janitor": _object(
        {
            "enabled": {"type": "boolean"},
            "sweeping": {"type": "boolean"},
            "first_start_ms": _COUNT,
            "adopted": {"type": "boolean"},
            "next_sweep_at_ms": _MAYBE_COUNT,
            "disks": _list(_ANY_OBJECT),
            "totals": _ANY_OBJECT,
            "sweeps": _list(_ANY_OBJECT),
        }
    ),
    "Stats": _object(
        {
            "now_ms": _COUNT,
            "windows": _ANY_OBJECT,
            "queue": _object({"queued": _COUNT, "running": _COUNT, "max_jobs": _COUNT}),
            "slowest": _list(_ANY_OBJECT),
            "chart": _list(_ANY_OBJECT),
            "gpu": {"type": ["object", "null"]},
            "disk": _ANY_OBJECT,
            "worker": _ANY_OBJECT,
            "alarms": _list(_ANY_OBJECT),
        },
        optional=["gpu", "disk", "worker", "alarms"],
    ),
    "Doctor": _object(
        {
            "lines": _list(
                _object(
                    {
                        "level": {"type": "string", "enum": ["ok", "warning", "error"]},
                        "check": _TEXT,
                        "message": _TEXT,
                        "mend": _TEXT,
                    }
                )
            )
        }
    ),
}

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The password is the key."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "token": {"type": "apiKey", "in": "query", "name": "token", "description": "GET only; POST /guarded/tokens."},
}


def route(table: Sequence[Route]) -> Route:
    """The route that answers with the contract of the table, itself included."""
    made: list[dict[str, Any]] = []

    async def get_openapi(call: Call) -> web.StreamResponse:
        """This contract, as OpenAPI 3.1."""
        if not made:
            made.append(document(table))
        return answered(made[0])

    return Route("GET", "/openapi.json", get_openapi, about=About({200: "Object"}))


def document(table: Sequence[Route]) -> dict[str, Any]:
    """The contract of a table in which every row says what it takes and answers."""
    paths: dict[str, Any] = {}
    for row in table:
        paths.setdefault(PREFIX + row.path, {})[row.method.lower()] = _operation(row)
    options = GuardOptions.model_json_schema(ref_template="#/components/schemas/{model}")
    defined = options.pop("$defs", {})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ComfyUI-Guarded",
            "version": VERSION,
            "description": "ComfyUI mirrors every path under /api, too.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {**SCHEMAS, **defined, "GuardOptions": options},
            "securitySchemes": _SECURITY,
        },
    }


def _operation(row: Route) -> dict[str, Any]:
    about = row.about
    if about is None:
        raise ValueError(f"{row.method} {row.path} says nothing about itself: Route(…, about=About(…))")
    summary, _, more = (inspect.getdoc(row.handler) or "").partition("\n\n")
    operation: dict[str, Any] = {
        # What ComfyUI has below /api as well, the facade has below /guarded/api.
        "operationId": row.handler.__name__ + ("_below_api" if row.path.startswith("/api/") else ""),
        "summary": " ".join(summary.split()),
        "responses": {str(status): answer for status, answer in _answers(row, about).items()},
        "security": [{}] if row.open else [{}, *({name: []} for name in _SECURITY)],
    }
    if row.operate:
        more = f"For operators. {more}"
    if more:
        operation["description"] = " ".join(more.split())
    if parameters := _parameters(row, about):
        operation["parameters"] = parameters
    if about.body:
        operation["requestBody"] = {
            "required": True,
            "content": {media: {"schema": _schema(schema)} for media, schema in about.body.items()},
        }
    return operation


def _parameters(row: Route, about: About) -> list[dict[str, Any]]:
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)", row.path)
    ]
    query = [{"name": name, "in": "query", "schema": dict(schema)} for name, schema in about.query.items()]
    headers = [
        {"name": name, "in": "header", "schema": _TEXT, "description": said} for name, said in about.headers.items()
    ]
    return [*path, *query, *headers]


def _answers(row: Route, about: About) -> dict[int, dict[str, Any]]:
    answers = {status: _answer(status, body) for status, body in about.answers.items()}
    refusals: dict[int, list[type[GuardError]]] = {}
    always = () if row.open else (UnauthorizedError, ForbiddenError)
    asked = (InvalidRequestError,) if about.query or about.body else ()
    for error in dict.fromkeys((*asked, *always, *about.refusals)):
        refusals.setdefault(error.status or 500, []).append(error)
    for status, errors in sorted(refusals.items()):
        said = "; ".join(f"`{error.code}`: {(error.__doc__ or '').strip().rstrip('.')}" for error in errors)
        answers.setdefault(status, {"description": said, "content": {"application/json": {"schema": _ref("Error")}}})
        if status in (429, 503, 507):
            answers[status].setdefault("headers", {})["Retry-After"] = {"schema": _COUNT}
    return answers


def _answer(status: int, body: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": web.Response(status=status).reason or ""}
    if body is not None:
        media, schema = (body, {}) if "/" in body else ("application/json", _ref(body))
        answer["content"] = {media: {"schema": schema} if schema else {}}
    return answer


def _schema(schema: str | Schema) -> dict[str, Any]:
    return _ref(schema) if isinstance(schema, str) else dict(schema)
