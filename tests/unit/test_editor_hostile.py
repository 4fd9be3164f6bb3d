"""Whatever is in a file: it becomes a prompt, or one typed refusal, in steps that its size bounds."""

import copy
import json
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_editor_convert import INFO, LOAD, SAMPLER, SAVE, file, inside, node, out, slot, subgraph

from comfyui_guarded.guard.editor.resolve import convert
from comfyui_guarded.guard.errors import InvalidWorkflowError, MissingNodeError

PROXIES = {"proxyWidgets": [["5", "steps"], ["-1", "image"], ["7", "steps"]]}
SEEDS = [
    file(LOAD, SAVE, links=[(9, 1, 0, 9, 0, "IMAGE")]),
    file(
        LOAD,
        node(2, "inner", 31, 4, inputs=[slot("image", 1), slot("steps")], outputs=[out(2)], properties=PROXIES),
        node(3, "Reroute", inputs=[slot("", 2)], outputs=[out(3)]),
        node(4, "Switch", inputs=[slot("one", 3, "IMAGE"), slot("two")], outputs=[out(9)], mode=4),
        node(5, "PrimitiveNode", 3, "fixed", outputs=[out(7)]),
        node(6, "Sample", 1, "fixed", 2, inputs=[slot("steps", 7, "INT", widget=True)]),
        node(7, "Resize", "custom", 99, "crop", 7),
        node(8, "Text", "{a|{b|c}} // d"),
        SAVE,
        links=[(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE"), (3, 3, 0, 4, 0, "IMAGE"), (9, 4, 0, 9, 0, "IMAGE"),
               (7, 5, 0, 6, 0, "INT")],
        definitions={"subgraphs": [SAMPLER, subgraph("more", node(7, "inner"), node(8, "PrimitiveNode", 1))]},
    ),
]  # fmt: skip

#: What stands in files, and what should not.
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-20, 20), st.floats(allow_nan=False), st.just(10**30), st.just(-10),
    st.sampled_from(["", "inner", "more", "Reroute", "Load", "PrimitiveNode", "1", "-10", "steps", "%a.b%", "{" * 50]),
    st.builds(list), st.builds(dict), st.just([[[[]]]]), st.just({"nodes": [], "links": {}}),
)  # fmt: skip


def list_places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in a JSON value."""
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    workflow = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        if not (places := list_places(workflow)):
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        other, other_key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(["odd", "delete", "copy", "twice"]))
        if change == "odd":
            holder[key] = copy.deepcopy(draw(ODD))
        elif change == "delete":
            del holder[key]
        elif change == "copy":
            holder[key] = copy.deepcopy(other[other_key])
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
    return workflow


def count_calls(workflow: dict[str, Any]) -> int:
    """Convert it, and count the calls that it takes."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        prompt = convert(workflow, INFO.get, 1000)
    except (InvalidWorkflowError, MissingNodeError) as error:
        prompt, refusal = {}, error
    else:
        refusal = None
    finally:
        sys.setprofile(None)
    assert refusal is None or (refusal.extra_info["reason"] and len(refusal.message) < 500)
    for one in prompt.values():
        assert set(one) == {"inputs", "class_type", "_meta"}
        for value in one["inputs"].values():
            assert not isinstance(value, list) or value[0] in prompt
    json.dumps(prompt)
    return calls


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_a_changed_file_is_converted_or_refused(workflow: dict[str, Any]):
    assert count_calls(workflow) < 20_000 + 20 * len(json.dumps(workflow))


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        ODD,
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["nodes", "links", "definitions", "subgraphs", "inputs", "outputs", "id", "type", "widgets_values",
                 "properties", "link", "linkIds", "mode", "version", "extra", "name", "widget"]
            ),
            inner,
            max_size=6,
        ),
        max_leaves=30,
    )
)  # fmt: skip
def test_any_json_is_converted_or_refused(value: Any):
    count_calls(value if isinstance(value, dict) else {"nodes": value, "links": []})


def test_files_made_to_cost_much_cost_no_more_than_their_size():
    def hosts(count: int) -> dict[str, Any]:
        """Many nodes of a subgraph with many inputs, each of which leads to the same wide node."""
        wide = node(5, "Text", inputs=[slot(f"i{at}", at) for at in range(count)])
        inner = subgraph(
            "inner", wide, inputs=[{"name": f"i{at}", "type": "*", "linkIds": [at] * 3} for at in range(count)],
            links=[inside(at, -10, at, 5) for at in range(count)],
        )  # fmt: skip
        return file(*(node(10 + at, "inner") for at in range(count)), definitions={"subgraphs": [inner]})

    def primitives(count: int) -> dict[str, Any]:
        target = node(2, "Text", inputs=[slot(f"i{at}", 7) for at in range(count)] + [slot("last", 8)])
        return file(node(1, "PrimitiveNode", 1, outputs=[out(*[8] * count)]), target, links=[(8, 1, 0, 2, 0, "INT")])

    def proxies(count: int) -> dict[str, Any]:
        inner = subgraph("inner", *(node(at, "Text", inputs=[]) for at in range(count)))
        named = [[str(at), "text"] for at in range(count)]
        return file(node(9000, "inner", properties={"proxyWidgets": named}), definitions={"subgraphs": [inner]})

    def patterns(count: int) -> dict[str, Any]:
        return file(*(node(at, "Text") for at in range(count)), node(9000, "SaveImage", "%No.x%" * count))

    def braces(count: int) -> dict[str, Any]:
        return file(node(1, "Text", "{" * count + "x|" * count + "}" * count), node(2, "Text", "/*" * count))

    for make in (hosts, primitives, proxies, patterns, braces):
        workflow = make(900)
        assert count_calls(workflow) < 1_500_000 + 20 * len(json.dumps(workflow)), make.__name__
