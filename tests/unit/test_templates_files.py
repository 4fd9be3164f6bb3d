"""Templates with files that may be left out, of later versions of ComfyUI, and with weights that may lie in RAM."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import FakeHost
from unit.test_templates import GRAPH, MANIFEST, written

from comfyui_guarded.guard.errors import InvalidRequestError, MissingNodeError
from comfyui_guarded.guard.graph import is_link
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.templates.catalogue import Templates
from comfyui_guarded.guard.templates.manifest import Template, TemplateError
from comfyui_guarded.guard.templates.pruning import drop_absent
from comfyui_guarded.guard.templates.render import choose_values, estimate_vram_gib, render

#: A picture is made after a prompt; on request after a style, which is scaled first, and with a mask, which a node of
#: its own puts in.
STYLED = {
    **GRAPH,
    "2": {"class_type": "Make", "inputs": {**GRAPH["2"]["inputs"], "style": ["6", 0]}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "style.png"}},
    "6": {"class_type": "Scale", "inputs": {"image": ["5", 0], "side": 512}},
    "7": {"class_type": "LoadImage", "inputs": {"image": "mask.png"}},
    "8": {"class_type": "PutIn", "inputs": {"image": ["2", 0], "mask": ["7", 0]}},
}
OPTIONAL = """
[parameters.{name}]
type = "file"
required = false
into = ["{into}"]
help.en = "On request."
"""
FILES = OPTIONAL.format(name="style", into="5.image") + OPTIONAL.format(name="mask", into="7.image")
WIRED = """
[[wiring]]
when = { mask = true }
inputs = { "4.image" = ["8", 0] }
"""


@pytest.fixture
def template(tmp_path):
    return make(tmp_path, MANIFEST.replace("[[presets]]", f"{FILES}\n[[presets]]", 1) + WIRED)


def make(folder, manifest, graph=STYLED):
    written(folder, manifest, graph)
    return Template.read(folder / "thing.toml")


def fill(template, **given):
    return render(template, choose_values(template, {"text": "a cat", **given}))


def test_a_file_that_was_not_given_takes_its_branch_with_it(template):
    plain = fill(template)
    assert set(plain) == {"1", "2", "4"}
    assert "style" not in plain["2"]["inputs"]
    styled = fill(template, style="s.png")
    assert styled["2"]["inputs"]["style"] == ["6", 0]
    assert styled["5"]["inputs"]["image"] == "s.png"


def test_wiring_may_ask_whether_a_file_was_given(template):
    assert fill(template)["4"]["inputs"]["image"] == ["2", 0]
    masked = fill(template, mask="m.png")
    assert masked["4"]["inputs"]["image"] == ["8", 0]
    assert masked["7"]["inputs"]["image"] == "m.png"


def test_what_the_answer_says_of_an_absent_file_may_be_sent_again(template):
    values = choose_values(template, {"text": "a cat"})
    assert values["style"] is None
    assert render(template, choose_values(template, json.loads(json.dumps(values)))) == render(template, values)
    assert not template.manifest.parameters["style"].describe("style", "en")["required"]


@pytest.mark.parametrize("given", [5, "", True])
def test_a_given_file_is_judged_as_any_other(template, given):
    with pytest.raises(Exception, match="style"):
        choose_values(template, {"text": "", "style": given})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("type = \"file\"\nrequired", "type = \"text\"\nrequired"), "only a file may be left out"),
        (("mask = true", 'mask = "yes"'), "mask is a file"),
        (('outputs = ["4"]', 'outputs = ["4", "6"]'), "nothing is left of 6"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_do_without_its_file_is_told_so(tmp_path, change, said):
    manifest = MANIFEST.replace("[[presets]]", f"{FILES}\n[[presets]]", 1) + WIRED
    assert change[0] in manifest
    with pytest.raises(TemplateError, match=said):
        make(tmp_path, manifest.replace(*change, 1))


def test_a_file_without_the_word_is_still_needed(tmp_path):
    manifest = MANIFEST.replace("[[presets]]", f"{FILES}\n[[presets]]", 1).replace("required = false\n", "", 1)
    template = make(tmp_path, manifest)
    with pytest.raises(InvalidRequestError, match="style: must be given"):
        choose_values(template, {"text": ""})


@st.composite
def graphs(draw):
    """Graphs whose nodes are linked to earlier ones, and some of their nodes."""
    graph = {}
    for number in range(draw(st.integers(1, 9))):
        links = draw(st.lists(st.integers(0, number - 1), max_size=3)) if number else []
        inputs = {f"i{place}": [str(source), 0] for place, source in enumerate(links)}
        graph[str(number)] = {"class_type": "X", "inputs": {**inputs, "widget": 1}}
    return graph, draw(st.sets(st.sampled_from(sorted(graph)), max_size=3))


@settings(max_examples=60)
@given(graphs())
def test_no_link_leads_to_a_node_that_is_gone_and_nothing_else_goes(drawn):
    graph, absent = drawn
    before = copy.deepcopy(graph)
    kept = drop_absent(graph, absent)
    assert graph == before
    for node in kept.values():
        assert all(value[0] in kept for value in node["inputs"].values() if is_link(value))
    for node_id in set(graph) - set(kept) - absent:
        links = [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]
        assert links, "a node that nothing was linked into stays"
        assert not set(links) & set(kept)


@pytest.mark.parametrize(
    ("needed", "here", "ready"),
    [
        ("", "0.3.64", True),
        ("0.3.75", "0.3.64", False),
        ("0.3.75", "0.3.75", True),
        ("0.3.75", "0.33.0", True),
        ("0.9.2", "0.10.0+abc", True),
        ("0.9.2", "0.9.1", False),
        ("0.9.2", "unknown", True),
    ],
)
def test_a_server_before_a_templates_first_version_is_not_ready_and_says_why(
    tmp_path, monkeypatch, needed, here, ready
):
    written(tmp_path, MANIFEST.replace('outputs = ["4"]', f'outputs = ["4"]\ncomfyui = "{needed}"'))
    host = FakeHost()
    host.models = {"m.safetensors": "m.safetensors"}
    monkeypatch.setattr(host, "describe", lambda: {"name": "fake", "version": here})
    templates = Templates(host, PolicySettings(), [tmp_path])
    (shown,) = templates.describe("en")
    assert (shown["ready"], shown["comfyui"]) == (ready, needed)
    body = {"parameters": {"text": ""}}
    if ready:
        assert shown["reasons"] == []
        templates.fill("thing", body)
        return
    assert shown["reasons"] == [f"It needs ComfyUI {needed} or later; this is {here}."]
    with pytest.raises(MissingNodeError, match="Update ComfyUI") as refused:
        templates.fill("thing", body)
    assert refused.value.extra_info["comfyui"] == needed


def test_half_of_the_weights_may_lie_in_ram_and_both_figures_are_told(tmp_path):
    before, _, vram = MANIFEST.partition("[[vram]]")
    written(tmp_path, before + '[[vram]]\nstep = "s"\ngib = 1.0\nweights_gib = 6.0\n')
    host = FakeHost()
    host.models = {"m.safetensors": "m.safetensors"}
    (shown,) = Templates(host, PolicySettings(vram_budget_gb=5), [tmp_path]).describe("en")
    assert (shown["vram_gb"], shown["vram_full_gb"], shown["ready"]) == (4.0, 7.0, True)
    (shown,) = Templates(host, PolicySettings(vram_budget_gb=3), [tmp_path]).describe("en")
    assert not shown["ready"]
    template = Template.read(tmp_path / "thing.toml")
    assert estimate_vram_gib(template, choose_values(template, {"text": ""})) == 4.0
    assert vram, "the manifest of the other tests has its own"
