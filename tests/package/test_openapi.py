"""The contract says of every route of the table what it takes and answers."""

import json
import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from comfyui_guarded.guard.errors import FAMILY
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
    assert written == {(row.method, PREFIX + row.path) for row in ROUTES}


def test_the_contract_is_valid_openapi():
    OpenAPIV31SpecValidator(document()).validate()


def test_no_two_routes_have_one_name():
    names = [operation["operationId"] for item in document()["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_every_refusal_is_one_of_the_family_with_its_status():
    for item in document()["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                if answer.get("content", {}).get("application/json", {}).get("schema") == {
                    "$ref": "#/components/schemas/Error"
                }:
                    for code in re.findall(r"`(\w+)`:", answer["description"]):
                        assert str(FAMILY[code].status) == status


def test_a_route_that_says_nothing_has_no_place_in_the_contract():
    async def handler(call):
        """Does things."""

    with pytest.raises(ValueError, match="GET /new says nothing about itself"):
        openapi.document([*ROUTES, Route("GET", "/new", handler)])
    openapi.document([Route("GET", "/new", handler, about=About({200: "Object"}))])
