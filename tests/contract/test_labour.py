"""A key's prompt does nothing that takes the server down, over HTTP."""

import pytest
from contract.client import assert_refusal, assert_succeeded, node, picture, save


def doubled(times):
    graph = {"0": node("PrimitiveString", value="x" * 64)}
    for at in range(times):
        graph[str(at + 1)] = node("StringConcatenate", string_a=[str(at), 0], string_b=[str(at), 0], delimiter="")
    return {**graph, "shown": node("PreviewAny", source=[str(times), 0])}


def shown(kind, **inputs):
    return {"1": node(kind, **inputs), "2": node("PreviewAny", source=["1", 0])}


ATTACKS = {
    "doubled": doubled(45),
    "replaced": shown("StringReplace", string="x" * 100_000, find="x", replace="y" * 100_000),
    "widened": shown("StringFormat", **{"f_string": "{a:>99999999999}", "values.a": 1}),
    "tried": shown("RegexMatch", string="a" * 60 + "b", regex_pattern="(a+)+$"),
    "emptied": shown("RegexReplace", string="x" * 100_000, regex_pattern="", replace="y" * 100_000),
    "raised": shown("ComfyMathExpression", **{"expression": "9**3999999*9**3999999*9**3999999 > a", "values.a": 1}),
}


@pytest.mark.parametrize("graph", ATTACKS.values(), ids=ATTACKS)
async def test_a_key_takes_no_server_down_with_texts_patterns_and_numbers(client, keys, graph):
    bot = keys.of(client, "mine")
    body = assert_refusal(await bot.submit(graph), "policy_violation", 422)
    assert body["guard"]["refund"] is True
    assert_succeeded(await bot.run({**picture(), "2": save("1")}))
