"""Workflows in the editor's own format become the prompts that the editor sends."""

import copy
import random
from datetime import datetime, timezone
from typing import Any

import pytest

from comfyui_guarded.guard.editor.resolve import convert
from comfyui_guarded.guard.editor.texts import choose, replace
from comfyui_guarded.guard.errors import GuardError, InvalidWorkflowError, MissingNodeError

CHOICES = [
    {"key": "small", "inputs": {"required": {}}},
    {
        "key": "custom",
        "inputs": {
            "required": {"width": ["INT", {"default": 64}], "mask": ["MASK", {}]},
            "optional": {"fit": [["pad", "crop"], {}]},
        },
    },
]
INFO: dict[str, dict[str, Any]] = {
    "Load": {
        "input": {"required": {"image": [["a.png", "b.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
    },
    "Sample": {
        "input": {
            "required": {
                "seed": ["INT", {"default": 0, "max": 2**64 - 1}],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 8.0, "step": 0.1, "round": 0.01, "max": 100.0}],
                "image": ["IMAGE", {}],
                "mode": ["COMBO", {"options": ["fast", "slow"]}],
            }
        },
        "output": ["IMAGE"],
    },
    "Text": {
        "input": {"required": {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}]}},
        "output": ["STRING"],
    },
    "Switch": {
        "input": {"required": {"one": ["IMAGE", {}], "mask": ["MASK", {}]}, "optional": {"two": ["IMAGE", {}]}},
        "output": ["IMAGE", "MASK"],
    },
    "Forced": {
        "input": {"required": {"text": ["STRING", {"forceInput": True}], "size": ["INT", {"default": 1}]}},
        "output": ["STRING"],
    },
    "Resize": {"input": {"required": {"size": ["COMFY_DYNAMICCOMBO_V3", {"options": CHOICES}], "last": ["INT", {}]}}},
    "Batch": {
        "input": {
            "required": {
                "images": [
                    "COMFY_AUTOGROW_V3",
                    {
                        "template": {
                            "input": {"required": {"image": ["IMAGE", {}]}},
                            "prefix": "image",
                            "min": 1,
                            "max": 9,
                        }
                    },
                ]
            }
        },
        "output": ["IMAGE"],
    },
    "Curve": {"input": {"required": {"curve": ["CURVE", {}], "points": ["COLORS", {}]}}},
    "SaveImage": {
        "display_name": "Save Image",
        "input": {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}},
        "output": [],
    },
}
NOON = datetime(2026, 3, 4, 12, 5, 6, tzinfo=timezone.utc)


def node(number: int | str, kind: str, *values: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "mode": 0, "inputs": [], "outputs": [], "widgets_values": list(values), **more}


def slot(name: str, link: int | None = None, kind: str = "*", widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link} | ({"widget": {"name": name}} if widget else {})


def out(*links: int, kind: str = "IMAGE") -> dict[str, Any]:
    return {"name": kind, "type": kind, "links": list(links)}


def file(*nodes: dict[str, Any], links: Any = (), **more: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": [list(link) for link in links], "version": 0.4, **more}


def converted(workflow: dict[str, Any], max_nodes: int = 1000) -> dict[str, Any]:
    before = copy.deepcopy(workflow)
    prompt = convert(workflow, INFO.get, max_nodes, NOON)
    assert workflow == before
    return prompt


def inputs(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node_id: one["inputs"] for node_id, one in converted(workflow).items()}


def refusal(workflow: dict[str, Any], max_nodes: int = 1000) -> GuardError:
    with pytest.raises(GuardError) as caught:
        convert(workflow, INFO.get, max_nodes, NOON)
    return caught.value


LOAD = node(1, "Load", "b.png", "image", outputs=[out(1), out(kind="MASK")])
SAVE = node(9, "SaveImage", "pic", inputs=[slot("images", 9)])


def test_a_link_may_be_a_list_or_an_object():
    save = node(9, "SaveImage", "pic", inputs=[slot("images", 1)])
    listed = file(LOAD, save, links=[(1, 1, 0, 9, 0, "IMAGE")])
    wanted = {
        "1": {"inputs": {"image": "b.png"}, "class_type": "Load", "_meta": {"title": "Load"}},
        "9": {
            "inputs": {"filename_prefix": "pic", "images": ["1", 0]},
            "class_type": "SaveImage",
            "_meta": {"title": "Save Image"},
        },
    }
    assert converted(listed) == wanted
    link = {"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 9, "target_slot": 0, "type": "IMAGE"}
    assert converted({**listed, "links": [link], "version": 1, "groups": [{"title": "all"}]}) == wanted


def test_values_go_to_widgets_in_the_editors_order_and_a_seed_keeps_all_its_digits():
    seed = 2**64 - 3
    workflow = file(node(1, "Sample", seed, "randomize", 30, 7.5, "slow"))
    assert inputs(workflow)["1"] == {"seed": seed, "steps": 30, "cfg": 7.5, "mode": "slow"}


def test_values_that_the_file_lacks_are_the_defaults_and_null_is_the_first_choice():
    assert inputs(file(node(1, "Sample", 5)))["1"] == {"seed": 5, "steps": 20, "cfg": 8.0, "mode": "fast"}
    assert inputs(file(node(1, "Sample", 5, "fixed", 1, 1.0, None)))["1"]["mode"] == "fast"


def test_values_may_be_a_dict():
    one = {**node(1, "Sample"), "widgets_values": {"cfg": 3, "seed": 1, "videopreview": {}}}
    assert inputs(file(one))["1"] == {"seed": 1, "steps": 20, "cfg": 3, "mode": "fast"}


def test_a_widget_that_was_converted_to_an_input_takes_its_link():
    sample = node(
        2, "Sample", 7, "fixed", 9, 1.0, "slow", inputs=[slot("image", 1), slot("mode", 2, "COMBO", widget=True)]
    )
    workflow = file(LOAD, node(3, "Text", "x", outputs=[out(2, kind="STRING")]), sample,
                    links=[(1, 1, 0, 2, 0, "IMAGE"), (2, 3, 0, 2, 1, "STRING")])  # fmt: skip
    assert inputs(workflow)["2"] == {"seed": 7, "steps": 9, "cfg": 1.0, "image": ["1", 0], "mode": ["3", 0]}


def test_old_files_hold_values_for_inputs_that_have_no_widget_any_more():
    assert inputs(file(node(1, "Forced", "was a widget", 5)))["1"] == {"size": 5}
    assert inputs(file(node(1, "Forced", 5)))["1"] == {"size": 5}


def test_a_list_is_wrapped_so_that_it_is_no_link():
    values = inputs(file(node(1, "Curve", [[0, 0], [1, 1]], ["red", "blue"])))["1"]
    assert values == {
        "curve": {"__type__": "CURVE", "__value__": [[0, 0], [1, 1]]},
        "points": {"__value__": ["red", "blue"]},
    }


def test_muted_nodes_and_what_comes_from_them_are_left_out():
    workflow = file({**LOAD, "mode": 2}, node(9, "SaveImage", "pic", inputs=[slot("images", 1)]),
                    links=[(1, 1, 0, 9, 0, "IMAGE")])  # fmt: skip
    assert inputs(workflow) == {"9": {"filename_prefix": "pic"}}


@pytest.mark.parametrize(("wanted", "kind"), [(1, "MASK"), (0, "IMAGE")])
def test_a_bypassed_node_passes_on_the_input_of_the_right_type(wanted: int, kind: str):
    switch = node(
        2, "Switch", mode=4,
        inputs=[slot("one", 1, "IMAGE"), slot("mask", 2, "MASK")], outputs=[out(3), out(3, kind="MASK")],
    )  # fmt: skip
    target = node(3, "Switch", inputs=[slot("one" if kind == "IMAGE" else "mask", 3, kind)])
    links = [(1, 1, 0, 2, 0, "IMAGE"), (2, 1, 1, 2, 1, "MASK"), (3, 2, wanted, 3, 0, kind)]
    assert list(inputs(file(LOAD, switch, target, links=links))["3"].values()) == [["1", wanted]]


def test_reroutes_of_both_kinds_are_no_nodes():
    reroute = node(2, "Reroute", inputs=[slot("", 1)], outputs=[out(9)])
    extra = {"reroutes": [{"id": 1, "linkIds": [9]}], "linkExtensions": [{"id": 9, "parentId": 1}]}
    links = [(1, 1, 0, 2, 0, "*"), (9, 2, 0, 9, 0, "IMAGE")]
    assert inputs(file(LOAD, reroute, SAVE, links=links, extra=extra))["9"]["images"] == ["1", 0]


def test_notes_are_left_out():
    assert set(converted(file(LOAD, node(2, "Note", "text"), node(3, "MarkdownNote", "# text")))) == {"1"}


def test_a_primitive_sets_the_widgets_that_it_leads_to_as_the_first_would_hold_its_value():
    def found(value: Any, *names: str) -> list[Any]:
        primitive = node(2, "PrimitiveNode", value, "fixed", outputs=[out(*range(1, len(names) + 1), kind="INT")])
        slots = [slot(name, at, "INT", widget=True) for at, name in enumerate(names, start=1)]
        links = [(at, 2, 0, 3, at - 1, "INT") for at in range(1, len(names) + 1)]
        sent = inputs(file(primitive, node(3, "Sample", inputs=slots), links=links))
        assert set(sent) == {"3"}
        return [sent["3"][name] for name in names]

    assert found(41.6, "steps", "cfg") == [42, 42]
    assert found(41.678, "cfg") == [41.7]
    assert found(-5, "cfg") == [0]
    assert found(5000, "steps", "seed") == [5000, 5000]
    assert found(2**64 + 1, "seed", "steps") == [2**64 - 1, 2**64 - 1]
    assert found(2**64 - 9, "seed") == [2**64 - 9]
    assert found("slow", "mode") == ["slow"]


def test_a_dynamic_choice_brings_the_inputs_of_what_is_chosen():
    one = node(2, "Resize", "custom", 99, "crop", 7, inputs=[slot("size.mask", 1, "MASK")])
    links = [(1, 1, 1, 2, 0, "MASK")]
    assert inputs(file(LOAD, one, links=links))["2"] == {
        "size": "custom", "size.width": 99, "size.mask": ["1", 1], "size.fit": "crop", "last": 7,
    }  # fmt: skip
    other = {**one, "widgets_values": ["small", 7]}
    assert inputs(file(LOAD, other, links=links))["2"] == {"size": "small", "last": 7}


def test_a_list_that_grows_takes_all_its_links():
    batch = node(2, "Batch", inputs=[slot(f"images.image{at}", at + 1) for at in range(5)])
    links = [(at + 1, 1, 0, 2, at, "IMAGE") for at in range(5)]
    assert inputs(file(LOAD, batch, links=links))["2"] == {f"images.image{at}": ["1", 0] for at in range(5)}


def test_an_input_of_a_packs_own_kind_is_a_widget_where_the_file_shows_it_as_one():
    info = {"Own": {"input": {"required": {"paint": ["OWN_CANVAS", {"default": "-"}], "model": ["MODEL", {}]}}}}
    shown = file(node(1, "Own", "data", inputs=[slot("paint", None, "OWN_CANVAS", widget=True)]))
    assert convert(shown, info.get, 10)["1"]["inputs"] == {"paint": "data"}
    assert convert(file(node(1, "Own", "data")), info.get, 10)["1"]["inputs"] == {}


def subgraph(number: str, *nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": number, "name": number, "nodes": list(nodes), "links": [], "inputs": [], "outputs": [], **more}


def inside(link: int, origin: int, at: int, target: int, to: int = 0) -> dict[str, Any]:
    return {"id": link, "origin_id": origin, "origin_slot": at, "target_id": target, "target_slot": to, "type": "*"}


SAMPLER = subgraph(
    "inner",
    node(5, "Sample", 1, "fixed", 20, 8.0, "slow",
         inputs=[slot("image", 1, "IMAGE"), slot("steps", 2, "INT", widget=True)], outputs=[out(3)]),
    links=[inside(1, -10, 0, 5), inside(2, -10, 1, 5, 1), inside(3, 5, 0, -20)],
    inputs=[{"name": "image", "type": "IMAGE", "linkIds": [1]}, {"name": "steps", "type": "INT", "linkIds": [2]}],
    outputs=[{"name": "IMAGE", "type": "IMAGE", "linkIds": [3]}],
)  # fmt: skip


def test_a_subgraph_stands_where_its_node_is_with_the_values_of_that_node():
    first = node(2, "inner", 31, inputs=[slot("image", 1), slot("steps", None, "INT", widget=True)], outputs=[out(2)])
    second = node(3, "inner", 32, inputs=[slot("image", 2), slot("steps", None, "INT", widget=True)], outputs=[out(9)])
    links = [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE"), (9, 3, 0, 9, 0, "IMAGE")]
    found = inputs(file(LOAD, first, second, SAVE, links=links, definitions={"subgraphs": [SAMPLER]}))
    assert set(found) == {"1", "2:5", "3:5", "9"}
    assert (found["2:5"]["steps"], found["3:5"]["steps"]) == (31, 32)
    assert (found["2:5"]["image"], found["3:5"]["image"], found["9"]["images"]) == (["1", 0], ["2:5", 0], ["3:5", 0])


def test_a_widget_of_a_subgraph_in_a_subgraph_is_set_from_outside_of_both():
    outer = subgraph(
        "outer",
        node(6, "inner", 40, inputs=[slot("image", 1), slot("steps", 2, "INT", widget=True)], outputs=[out(3)]),
        links=[inside(1, -10, 0, 6), inside(2, -10, 1, 6, 1), inside(3, 6, 0, -20)],
        inputs=[{"name": "image", "type": "IMAGE", "linkIds": [1]}, {"name": "steps", "type": "INT", "linkIds": [2]}],
        outputs=[{"name": "IMAGE", "type": "IMAGE", "linkIds": [3]}],
    )
    one = node(2, "outer", 77, inputs=[slot("image", 1)], outputs=[out(9)])
    workflow = file(LOAD, one, SAVE, links=[(1, 1, 0, 2, 0, "IMAGE"), (9, 2, 0, 9, 0, "IMAGE")],
                    definitions={"subgraphs": [outer, SAMPLER]})  # fmt: skip
    found = inputs(workflow)
    assert (found["2:6:5"]["steps"], found["2:6:5"]["image"]) == (77, ["1", 0])
    assert found["9"]["images"] == ["2:6:5", 0]
    one["widgets_values"] = []
    assert inputs(workflow)["2:6:5"]["steps"] == 40


def test_widgets_that_a_file_names_get_the_values_of_their_own_node():
    plain = {**SAMPLER, "inputs": SAMPLER["inputs"][:1], "links": [SAMPLER["links"][0], SAMPLER["links"][2]]}
    plain["nodes"] = [{**SAMPLER["nodes"][0], "inputs": [slot("image", 1, "IMAGE")]}]
    proxies = {"proxyWidgets": [["5", "steps"], ["5", "cfg"], ["8", "gone"]]}
    first = node(2, "inner", 31, 1.5, inputs=[slot("image")], properties=proxies)
    second = node(3, "inner", 32, 2.5, inputs=[slot("image")], properties=proxies)
    found = inputs(file(first, second, definitions={"subgraphs": [plain]}))
    assert [(found[at]["steps"], found[at]["cfg"]) for at in ("2:5", "3:5")] == [(31, 1.5), (32, 2.5)]


def test_ids_that_two_graphs_share_are_made_unique():
    again = {**copy.deepcopy(SAMPLER), "id": "again"}
    workflow = file(node(5, "inner"), node(6, "again"), definitions={"subgraphs": [SAMPLER, again]}, last_node_id=20)
    assert set(converted(workflow)) == {"5:21", "6:22"}


def test_texts_are_sent_without_comments_and_with_one_of_their_choices():
    text = inputs(file(node(1, "Text", "a {red|blue} /* not */ \\{x\\} // never")))["1"]["text"]
    assert text in {"a red  {x} ", "a blue  {x} "}
    drawn = {choose("{a|b{c|d}|}{", random.Random(seed)) for seed in range(40)}
    assert drawn == {"a", "bc", "bd", ""}


def test_a_file_name_is_filled_in():
    save = node(9, "SaveImage", "%date:yyyy-MM-dd%/%S.seed%_%Sample.cfg%_%none.x%_%width%")
    sample = node(1, "Sample", 12, "fixed", properties={"Node name for S&R": "S"})
    found = inputs(file(sample, node(2, "Sample", 13, "fixed", 1, 2.5), save))["9"]["filename_prefix"]
    assert found == "2026-03-04/12_2.5_%none.x%_%width%"
    assert replace("%date:hhmmss yy%", {}.__getitem__, NOON) == "120506 26"


def test_a_class_that_the_server_lacks_is_named_unless_its_node_does_not_run():
    error = refusal(file(LOAD, node(4, "FancyPackNode")))
    assert isinstance(error, MissingNodeError)
    assert (error.extra_info["node_id"], error.extra_info["class_type"]) == ("4", "FancyPackNode")
    assert set(converted(file(LOAD, node(4, "FancyPackNode", mode=2)))) == {"1"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Fast Groups Bypasser (rgthree)", "frontend_only"), ("SetNode", "frontend_only"), ("workflow>old", "group_node")],
)
def test_a_node_that_only_an_editor_knows_is_said_to_be_one(kind: str, reason: str):
    error = refusal(file(LOAD, node(4, kind)))
    assert isinstance(error, InvalidWorkflowError)
    assert (error.extra_info["reason"], error.extra_info["node_id"]) == (reason, "4")
    assert error.extra_info["class_type"] == kind
    assert kind in error.message


def test_links_to_nowhere_and_circles_are_refused_by_their_node():
    gone = refusal(file(SAVE))
    assert (gone.extra_info["reason"], gone.extra_info["node_id"]) == ("link", "9")
    assert refusal(file(SAVE, links=[(9, 4, 0, 9, 0, "IMAGE")])).extra_info["reason"] == "link"
    loop = [node(1, "Reroute", inputs=[slot("", 1)]), node(2, "Reroute", inputs=[slot("", 2)])]
    links = [(1, 2, 0, 1, 0, "*"), (2, 1, 0, 2, 0, "*"), (9, 1, 0, 9, 0, "*")]
    assert refusal(file(*loop, SAVE, links=links)).extra_info["reason"] == "circle"


def test_subgraphs_in_a_circle_are_refused():
    circle = [subgraph("a", node(1, "b")), subgraph("b", node(2, "a"))]
    assert refusal(file(node(9, "a"), definitions={"subgraphs": circle})).extra_info["reason"] == "circle"


def test_subgraphs_that_double_at_each_level_are_refused_before_they_are_made():
    levels = [subgraph(f"s{at}", node(1, f"s{at + 1}"), node(2, f"s{at + 1}")) for at in range(40)]
    bomb = file(node(1, "s0"), definitions={"subgraphs": [*levels, subgraph("s40", LOAD)]})
    assert refusal(bomb).extra_info["reason"] == "too_large"
    deep = [subgraph(f"s{at}", node(1, f"s{at + 1}")) for at in range(400)]
    assert refusal(file(node(1, "s0"), definitions={"subgraphs": deep})).extra_info["reason"] == "too_deep"


def test_ten_thousand_nodes_are_refused_by_their_number():
    many = file(*(node(at, "Load") for at in range(10_000)))
    assert refusal(many).extra_info == {"reason": "too_large", "max_nodes": 1000}
    assert len(converted(many, 10_000)) == 10_000


def test_a_chain_of_ten_thousand_reroutes_costs_each_only_once():
    chain = [node(1, "Reroute", inputs=[slot("", None)])]
    chain += [node(at, "Reroute", inputs=[slot("", at)]) for at in range(2, 5001)]
    ends = [node(at, "SaveImage", inputs=[slot("images", at, "IMAGE")]) for at in range(5001, 10_001)]
    links = [(at, min(at - 1, 5000), 0, at, 0, "IMAGE") for at in range(2, 10_001)]
    assert len(converted(file(*chain, *ends, links=links), 10_000)) == 5000


def test_nothing_to_run_is_said():
    assert refusal(file(node(1, "Note"))).extra_info["reason"] == "empty"
