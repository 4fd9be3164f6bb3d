"""GET /guarded/openapi.json: the contract, made from the route table and from the types of the bodies."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from ..guard.errors import (
    ForbiddenError,
    GuardError,
    InternalError,
    InvalidRequestError,
    QuotaExceededError,
    Refusal,
    UnauthorizedError,
)
from . import shapes
from .about import FILE, STREAM, About, Body
from .table import PREFIX, Call, Route

#: Of this contract, not of the package: it changes when a client may have to.
VERSION = "1.0"

_BINARY = {"type": "string", "format": "binary"}
_SCHEMAS = "#/components/schemas/"

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The password is the key."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "token": {"type": "apiKey", "in": "query", "name": "token", "description": "GET only; POST /guarded/tokens."},
}

#: What each group of routes is for; a route's group is the module of its handler.
_TAGS = {
    "prompt": "Submit a prompt.",
    "workflows": "Submit the values of a template's parameters.",
    "jobs": "Read, wait for and cancel jobs.",
    "artifacts": "The files of jobs.",
    "events": "What happens to jobs, as it happens.",
    "faces": "Look for faces in a picture.",
    "keys": "Keys: make, limit, revoke.",
    "access": "Tokens for those who can send no header.",
    "webhooks": "Webhooks that were or were not delivered.",
    "comfyui": "ComfyUI's own routes, limited to the caller.",
    "health": "Whether the server can take a job.",
    "stats": "Figures.",
    "machine": "How busy the machine is.",
    "alarms": "What operators should look at.",
    "spending": "What jobs took of the GPU, for a bot that sets prices.",
    "janitor": "What the janitor deletes.",
    "models": "The models that templates lack, and their download.",
    "doctor": "What is set, missing or unsafe.",
    "page": "The operator's page, and this contract as a page.",
    "openapi": "This contract.",
}


def make_route(table: Sequence[Route]) -> Route:
    """The route that answers with the contract of the table, itself included."""
    made: list[bytes] = []

    def make() -> bytes:
        return json.dumps(document(table), ensure_ascii=False).encode()

    async def get_openapi(call: Call) -> web.StreamResponse:
        """This contract, as OpenAPI 3.1."""
        if not made:
            made.append(await asyncio.to_thread(make))
        return web.Response(body=made[0], content_type="application/json", charset="utf-8")

    return Route("GET", "/openapi.json", get_openapi, about=About({200: dict[str, Any]}))


def document(table: Sequence[Route]) -> dict[str, Any]:
    """The contract of a table in which every row says what it takes and answers. Takes tenths of a second."""
    rows = [row for row in table if not (row.is_mirror or row.own_protocol)]
    schemas = _Schemas([Refusal, shapes.Event, *(body for row in rows for body in _list_bodies(row))])
    paths: dict[str, Any] = {}
    for row in rows:
        paths.setdefault(PREFIX + row.path, {})[row.method.lower()] = _describe_operation(row, schemas)
    tags = {operation["tags"][0] for item in paths.values() for operation in item.values()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ComfyUI-Guarded",
            "version": VERSION,
            "description": (
                "ComfyUI mirrors every path under /api, too. ComfyUI's own routes are also under /guarded/api/."
            ),
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": meaning} for name, meaning in _TAGS.items() if name in tags],
        "paths": paths,
        "components": {"schemas": schemas.definitions, "securitySchemes": _SECURITY},
    }


class _Generator(GenerateJsonSchema):
    """Gives fields no titles, which repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Schemas:
    """The schemas of types. A named type stands once, in `definitions`, under its own name without `Body`."""

    def __init__(self, types: Sequence[Any]) -> None:
        self._types = list(types)
        adapters = [(number, "validation", TypeAdapter(kind)) for number, kind in enumerate(self._types)]
        schemas, definitions = TypeAdapter.json_schemas(
            adapters,  # type: ignore[arg-type]  # the mode is a literal
            ref_template=_SCHEMAS + "{model}",
            schema_generator=_Generator,
        )
        self._schemas = [_rename(schemas[number, "validation"]) for number in range(len(self._types))]
        self.definitions: dict[str, Any] = {}
        for name, schema in definitions["$defs"].items():
            schema.pop("title", None)
            self.definitions[name.removesuffix("Body")] = _rename(schema)

    def get(self, kind: Any) -> dict[str, Any]:
        """Its schema. Raises ValueError for a type that was not among the first ones."""
        schema: dict[str, Any] = self._schemas[self._types.index(kind)]
        return schema


def _rename(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            name: value.removesuffix("Body") if name == "$ref" and isinstance(value, str) else _rename(value)
            for name, value in schema.items()
        }
    return [_rename(item) for item in schema] if isinstance(schema, list) else schema


def _list_bodies(row: Route) -> Iterator[Any]:
    """The types of which the row needs schemas."""
    about = _get_about(row)
    answers = [one for body in about.answers.values() for one in (body if isinstance(body, tuple) else (body,))]
    for body in (*answers, *about.body.values()):
        if body is not None and not isinstance(body, str):
            yield body


def _get_about(row: Route) -> About:
    if row.about is None:
        raise ValueError(f"{row.method} {row.path} says nothing about itself: Route(…, about=About(…))")
    return row.about


def _describe_operation(row: Route, schemas: _Schemas) -> dict[str, Any]:
    about = _get_about(row)
    summary, _, more = (inspect.getdoc(row.handler) or "").partition("\n\n")
    module = row.handler.__module__.split(".")
    operation: dict[str, Any] = {
        "operationId": row.handler.__name__,
        "tags": ["comfyui" if "facade" in module else module[-1]],
        "summary": " ".join(summary.split()),
        "responses": {str(status): answer for status, answer in _describe_answers(row, about, schemas).items()},
        "security": [{}] if row.open else [{}, *({name: []} for name in _SECURITY)],
    }
    if row.operate:
        more = f"For operators. {more}"
    if more:
        operation["description"] = " ".join(more.split())
    if parameters := _describe_parameters(row, about):
        operation["parameters"] = parameters
    if about.body:
        operation["requestBody"] = {
            "required": True,
            "content": {media: {"schema": schemas.get(body)} for media, body in about.body.items()},
        }
    return operation


def _describe_parameters(row: Route, about: About) -> list[dict[str, Any]]:
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)", row.path)
    ]
    query = about.query if isinstance(about.query, Mapping) else dict(_read_fields(about.query))
    asked = [{"name": name, "in": "query", "schema": dict(schema)} for name, schema in query.items()]
    headers = [
        {"name": name, "in": "header", "schema": {"type": "string"}, "description": meaning}
        for name, meaning in about.headers.items()
    ]
    return [*path, *asked, *headers]


def _read_fields(model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields of a model as parameters of a query, where what is left out is no null."""
    for name, schema in TypeAdapter(model).json_schema(schema_generator=_Generator)["properties"].items():
        choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
        yield name, {key: value for key, value in choices[0].items() if key != "default"}


def _describe_answers(row: Route, about: About, schemas: _Schemas) -> dict[int, dict[str, Any]]:
    answers = {status: _describe_answer(status, body, schemas) for status, body in about.answers.items()}
    refusals: dict[int, list[type[GuardError]]] = {}
    always: tuple[type[GuardError], ...] = () if row.open else (UnauthorizedError, ForbiddenError)
    if not (row.open or row.operate):
        always = (*always, QuotaExceededError)
    asked = (InvalidRequestError,) if about.query or about.body else ()
    for error in dict.fromkeys((*asked, *always, *about.refusals, InternalError)):
        refusals.setdefault(error.status or 500, []).append(error)
    for status, errors in sorted(refusals.items()):
        meanings = "; ".join(f"`{error.code}`: {(error.__doc__ or '').strip().rstrip('.')}" for error in errors)
        content = {"application/json": {"schema": schemas.get(Refusal)}}
        answers.setdefault(status, {"description": meanings, "content": content})
        if status in (429, 503, 507):
            answers[status].setdefault("headers", {})["Retry-After"] = {"schema": {"type": "integer", "minimum": 0}}
    return answers


def _describe_answer(status: int, body: Body, schemas: _Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": web.Response(status=status).reason or ""}
    if isinstance(body, tuple):
        answer["content"] = {}
        for one in body:
            answer["content"] |= _describe_answer(status, one, schemas)["content"]
    elif body == FILE:
        # Generators take the first; the file comes under its own type.
        answer["content"] = {FILE: {"schema": _BINARY}, "*/*": {"schema": _BINARY}}
    elif body == STREAM:
        # OpenAPI 3.1 has no word for the items of a stream; the schema `Event` describes them.
        answer["content"] = {STREAM: {}}
    elif isinstance(body, str):
        answer["content"] = {body: {"schema": {"type": "string"}}}
    elif body is not None:
        answer["content"] = {"application/json": {"schema": schemas.get(body)}}
    return answer
