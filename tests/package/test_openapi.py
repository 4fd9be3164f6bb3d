"""The contract says of every route of the table what it takes and answers."""

import json
import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from comfyui_guarded.guard.errors import FAMILY
from comfyui_guarded.guard.faces import CANDIDATE
from comfyui_guarded.server_routes import ROUTES, openapi
from comfyui_guarded.server_routes.about import About
from comfyui_guarded.server_routes.table import PREFIX, Route

ROWS = [pytest.param(row, id=f"{row.method} {row.path}") for row in ROUTES]


def document():
    return json.loads(json.dumps(openapi.document(ROUTES)))


@pytest.mark.parametrize("row", ROWS)
def test_a_route_says_what_it_takes_and_answers(row):
    assert row.about is not None, "Route(…, about=About(…)): see server_routes/about.py"
    assert row.about.answers
    assert (row.handler.__doc__ or "").strip(), "the first paragraph of its docstring is its summary"


def test_the_contract_has_every_route_and_nothing_else():
    written = {(method.upper(), path) for path, item in document()["paths"].items() for method in item}
    assert written == {(row.method, PREFIX + row.path) for row in ROUTES if not (row.is_mirror or row.own_protocol)}


def test_the_contract_is_valid_openapi():
    OpenAPIV31SpecValidator(document()).validate()


def test_no_two_routes_have_one_name():
    names = [operation["operationId"] for item in document()["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_a_mirror_of_a_route_is_left_out():
    mirrors = {row.path for row in ROUTES if row.is_mirror}
    assert "/api/prompt" in mirrors
    assert all(path.removeprefix("/api") in {row.path for row in ROUTES} for path in mirrors)
    assert not {PREFIX + path for path in mirrors} & document()["paths"].keys()


def test_the_names_of_schemas_are_good_names_in_any_language():
    schemas = document()["components"]["schemas"]
    assert {"ErrorCode", "Event", "Job", "JobState", "Progress", "Refusal"} <= schemas.keys()
    assert not {"Error", "Object", "List"} & schemas.keys()
    # Of two types with one name, pydantic makes names from their modules.
    assert [name for name in schemas if not re.fullmatch(r"[A-Z][A-Za-z]+", name)] == []
    assert schemas["ErrorCode"]["enum"] == sorted(FAMILY)


def walk(schema):
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from walk(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from walk(item)


def test_no_list_holds_any_object():
    """Lists of ComfyUI's own rows alone hold anything: their items differ."""
    lists = [schema for schema in walk(document()["components"]["schemas"]) if schema.get("type") == "array"]
    assert [schema for schema in lists if schema["items"].get("type") == "object"] == []


def test_files_are_binary_strings():
    artifact = document()["paths"]["/guarded/jobs/{job_id}/artifacts/{index}"]["get"]["responses"]["200"]
    binary = {"type": "string", "format": "binary"}
    assert artifact["content"]["application/octet-stream"]["schema"] == binary
    schemas = document()["components"]["schemas"]
    assert schemas["PromptForm"]["additionalProperties"] == schemas["UploadForm"]["properties"]["image"] == binary


def test_the_contract_asks_for_no_less_confidence_than_the_server():
    for name in ("StoredPicture", "AskedCheck", "PictureForm"):
        choices = document()["components"]["schemas"][name]["properties"]["min_confidence"]["anyOf"]
        assert choices[0] == {"type": "number", "minimum": CANDIDATE, "maximum": 1}, name
    query = document()["paths"]["/guarded/face-check"]["post"]["parameters"]
    confidence = next(parameter for parameter in query if parameter["name"] == "min_confidence")
    assert confidence["schema"] == {"type": "number", "minimum": CANDIDATE, "maximum": 1}


def test_every_operation_may_fail_and_says_how():
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            assert "500" in operation["responses"], f"{method} {path}"
            assert operation["tags"], f"{method} {path}"


def test_every_group_of_routes_says_what_it_is_for():
    contract = document()
    used = {tag for item in contract["paths"].values() for operation in item.values() for tag in operation["tags"]}
    assert used == {tag["name"] for tag in contract["tags"]}


def test_every_refusal_is_one_of_the_family_with_its_status():
    for item in document()["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                if answer.get("content", {}).get("application/json", {}).get("schema") == {
                    "$ref": "#/components/schemas/Refusal"
                }:
                    for code in re.findall(r"`(\w+)`:", answer["description"]):
                        assert str(FAMILY[code].status) == status


def test_a_route_that_says_nothing_has_no_place_in_the_contract():
    async def handler(call):
        """Does things."""

    with pytest.raises(ValueError, match="GET /new says nothing about itself"):
        openapi.document([*ROUTES, Route("GET", "/new", handler)])
    openapi.document([Route("GET", "/new", handler, about=About({200: dict[str, int]}))])
