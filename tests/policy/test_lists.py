"""Lists, each item of which runs what follows: how long they are, and where nobody knows."""

from typing import Any

import pytest
from policy.escapes import Graph, latent, listed, node, sampler
from policy.known import describe

from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.policy import Policy

IMAGES = {"image": "IMAGE"}, (("IMAGE", "IMAGE"),)
PACK = {
    "Split a text": Declared({"text": "STRING", "by": "STRING"}, (("STRING", "texts"),), lists=frozenset({0})),
    "Encode": Declared({"text": "STRING"}, (("CONDITIONING", "CONDITIONING"),)),
    "Deal out": Declared(*IMAGES, lists=frozenset({0})),
    "Overlay": Declared({"image": "IMAGE", "other": "IMAGE"}, (("IMAGE", "IMAGE"),)),
    "Pick whole": Declared({"texts": "STRING"}, (("STRING", "text"),), takes_lists=True),
    "Eager switch": Declared({"on_true": "*", "on_false": "*", "switch": "BOOLEAN"}, (("*", "output"),)),
    "Lazy switch": Declared(
        {"on_true": "*", "on_false": "*", "switch": "BOOLEAN"},
        (("*", "output"),),
        lazy=frozenset({"on_true", "on_false"}),
    ),
    "Write": Declared({"images": "IMAGE", "fps": "FLOAT"}, (("VIDEO", "VIDEO"),)),
}


def judge(graph: Graph, **policy: Any) -> str:
    given = {"profile": "a5000", **policy}
    judged = Policy(PolicySettings.model_validate(given), describe=lambda kind: PACK.get(kind) or describe(kind))
    try:
        judged.check(graph)
    except PolicyViolationError as error:
        return str(error.details)
    return "passes"


def prompted(*between: str, text: str) -> Graph:
    graph: Graph = {"t": node("Split a text", text=text, by=","), "e": node("Encode", text=["t", 0])}
    for at, kind in enumerate(between):
        graph[f"b{at}"] = node(kind, texts=["t", 0])
        graph["e"] = node("Encode", text=[f"b{at}", 0])
    return {**graph, "0": latent(), "1": node("KSampler", positive=["e", 0], latent_image=["0", 0], steps=20)}


def test_of_a_list_that_only_the_run_counts_the_lines_count_and_strict_refuses_it() -> None:
    assert judge(prompted(text="a fox, a hare")) == "passes"
    assert judge(prompted(text="a fox\n" * 300)) == "policy.max_pixels"
    assert judge(prompted(text="a fox"), strict=True) == "policy.strict"


def test_who_takes_a_list_whole_ends_it() -> None:
    assert judge(prompted("Pick whole", text="a fox\n" * 300), strict=True) == "passes"


def overlay(of: list[Any], with_: list[Any]) -> Graph:
    return {
        "0": node("EmptyImage", width=64, height=64, batch_size=40, color=0),
        "d": node("Deal out", image=["0", 0]),
        "e": node("Deal out", image=["0", 0]),
        "2": node("Overlay", image=of, other=with_),
        "9": node("Write", images=["2", 0], fps=8.0),
    }


@pytest.mark.parametrize(
    ("of", "judged"), [(["d", 0], "passes"), (["0", 0], "policy.max_frames"), (["e", 0], "policy.max_frames")]
)
def test_lists_of_one_node_are_of_one_length_and_others_may_wait_for_each_other(of: list[Any], judged: str) -> None:
    """Of a list by another node the items may be fewer and larger, and its last one comes again and again."""
    assert judge(overlay(["d", 0], of)) == judged


@pytest.mark.parametrize(("kind", "judged"), [("Lazy switch", "passes"), ("Eager switch", "policy.max_pixels")])
def test_a_branch_that_is_not_taken_counts_where_it_is_made_all_the_same(kind: str, judged: str) -> None:
    branch = {**listed(8, 20), "s": node(kind, switch=False, on_true=["l", 0], on_false=20), "0": latent()}
    assert judge({**branch, "2": sampler(["0", 0], ["s", 0])}) == judged
