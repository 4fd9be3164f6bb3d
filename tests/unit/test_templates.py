"""A template of two nodes: what may be said to it, and what comes out."""

import json
from types import SimpleNamespace

import pytest
from unit.fakes import FakeHost

from comfyui_guarded.guard.errors import (
    InvalidRequestError,
    MissingModelError,
    MissingNodeError,
    NotFoundError,
    PolicyViolationError,
)
from comfyui_guarded.guard.life.fleet import make_find_card
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.store.members import Box
from comfyui_guarded.guard.templates.catalogue import Templates
from comfyui_guarded.guard.templates.manifest import Template, TemplateError
from comfyui_guarded.guard.templates.render import choose_values, estimate_vram_gib, render

GRAPH = {
    "1": {"class_type": "Load", "inputs": {"name": "m.safetensors"}},
    "2": {"class_type": "Make", "inputs": {"model": ["1", 0], "text": "", "size": 8, "seed": 0, "warm": 0.5}},
    "3": {"class_type": "Polish", "inputs": {"image": ["2", 0]}},
    "4": {"class_type": "Save", "inputs": {"image": ["2", 0]}},
}
MANIFEST = """
outputs = ["4"]
title = { en = "A thing", ru = "Вещь" }
description.en = "Makes a thing."

[parameters.text]
type = "text"
max_length = 10
into = ["2.text"]
help = { en = "What.", ru = "Что." }
[parameters.quality]
type = "choice"
choices = ["low", "high"]
default = "low"
help.en = "How good."
[parameters.size]
type = "integer"
default = 16
min = 8
max = 64
step = 8
into = ["2.size"]
help.en = "How large."
[parameters.warmth]
type = "number"
default = 0.5
min = 0.0
max = 1.0
into = ["2.warm"]
help.en = "How warm."
[parameters.polish]
type = "boolean"
default = false
help.en = "Polish it."
[parameters.seed]
type = "seed"
into = ["2.seed"]
help.en = "Chance."

[[presets]]
when = { quality = "high" }
parameters = { size = 32 }
[[wiring]]
when = { polish = true }
inputs = { "4.image" = ["3", 0] }
[[models]]
file = "m.safetensors"
folder = "checkpoints"
size_mb = 7
source = "https://example.org/m"
licence = "MIT"
into = ["1.name"]
[[models]]
file = "wax.safetensors"
folder = "polish"
size_mb = 1
source = "https://example.org/wax"
licence = "MIT"
when = { polish = true }
[[node_packs]]
name = "Makers"
source = "https://example.org/makers"
licence = "MIT"
classes = ["Make"]
[[vram]]
step = "making"
gib = 2
gib_per_megapixel = 1e6
pixels = ["size"]
"""


@pytest.fixture
def folder(tmp_path):
    written(tmp_path, MANIFEST)
    return tmp_path


def written(folder, manifest, graph=GRAPH, name="thing"):
    (folder / f"{name}.toml").write_text(manifest)
    (folder / f"{name}.json").write_text(json.dumps(graph))


@pytest.fixture
def template(folder):
    return Template.read(folder / "thing.toml")


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def templates(host, folder):
    return Templates(host, PolicySettings(), [folder])


def test_what_is_left_out_has_its_default_and_the_seed_is_drawn(template):
    values = choose_values(template, {"text": "cat"}, draw=lambda below: below - 1)
    assert values == {
        "text": "cat", "quality": "low", "size": 16, "warmth": 0.5, "polish": False, "seed": 2**53 - 1,
    }  # fmt: skip


def test_seeds_are_drawn_anew_each_time_and_a_given_one_is_kept(template):
    drawn = {choose_values(template, {"text": ""})["seed"] for _ in range(20)}
    assert len(drawn) == 20
    assert choose_values(template, {"text": "", "seed": 2**64 - 1})["seed"] == 2**64 - 1


def test_a_preset_sets_what_was_left_out_and_nothing_else(template):
    assert choose_values(template, {"text": "", "quality": "high"})["size"] == 32
    assert choose_values(template, {"text": "", "quality": "high", "size": 8})["size"] == 8
    assert choose_values(template, {"text": "", "quality": "high", "size": None})["size"] == 32


@pytest.mark.parametrize(
    "text", ['"}], "', "{", "\\", "'; --", "\n\t\x00", "🎈" * 10, "кот"], ids=["quotes", *map(str, range(6))]
)
def test_a_prompt_may_hold_anything(template, text):
    graph = render(template, choose_values(template, {"text": text}))
    assert json.loads(json.dumps(graph))["2"]["inputs"]["text"] == text
    assert graph["4"] == GRAPH["4"]


def test_what_the_outputs_do_not_need_is_left_out_and_wiring_brings_it_in(template):
    assert set(render(template, choose_values(template, {"text": ""}))) == {"1", "2", "4"}
    polished = render(template, choose_values(template, {"text": "", "polish": True}))
    assert set(polished) == {"1", "2", "3", "4"}
    assert polished["4"]["inputs"]["image"] == ["3", 0]
    assert template.graph == GRAPH


def test_every_wrong_parameter_is_named_at_once(template):
    with pytest.raises(InvalidRequestError) as refused:
        choose_values(
            template, {"txt": "cat", "size": "big", "polish": 1, "warmth": True, "seed": 1.5, "quality": "best"}
        )
    assert set(refused.value.extra_info["parameters"]) == {"txt", "text", "size", "polish", "warmth", "seed", "quality"}


def test_every_value_beyond_its_limits_is_named_at_once(template):
    given = {"text": "x" * 11, "size": 12, "warmth": 1.01, "seed": -1}
    with pytest.raises(PolicyViolationError) as refused:
        choose_values(template, given)
    assert set(refused.value.extra_info["parameters"]) == set(given)


def test_numbers_may_come_as_other_clients_write_them(template):
    values = choose_values(template, {"text": "", "size": 24.0, "warmth": 1})
    assert (values["size"], values["warmth"]) == (24, 1.0)
    assert type(values["size"]) is int


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('outputs = ["4"]', "title"),
        (MANIFEST.replace("2.text", "2.words"), "2.words"),
        (MANIFEST.replace('outputs = ["4"]', 'outputs = ["9"]'), "9"),
        (MANIFEST.replace("default = 16", "default = 17"), "multiple of 8"),
        (MANIFEST.replace("size = 32", "size = 96"), "from 8 to 64"),
        (MANIFEST.replace('{ quality = "high" }', '{ quality = "best" }'), "low, high"),
        (MANIFEST.replace('when = { polish = true }\ninputs', "when = { seed = true }\ninputs"), "seed"),
        (MANIFEST.replace('help.en = "Chance."', 'help.ru = "Случай."'), "'en'"),
        (MANIFEST + "\nwhat = 1", "what"),
        ("=", "TOML"),
    ],
)  # fmt: skip
def test_a_template_that_contradicts_itself_is_not_taken(tmp_path, wrong, said):
    written(tmp_path, wrong)
    with pytest.raises(TemplateError, match="thing") as refused:
        Template.read(tmp_path / "thing.toml")
    assert said in str(refused.value)


def test_one_bad_template_does_not_hide_the_others(folder, host, caplog):
    written(folder, "outputs = 5", name="broken")
    templates = Templates(host, PolicySettings(), [folder])
    assert [each["name"] for each in templates.describe("en")] == ["thing"]
    assert "broken" in caplog.text


def test_an_operators_template_takes_the_place_of_ours(folder, host, tmp_path_factory):
    own = tmp_path_factory.mktemp("own")
    written(own, MANIFEST.replace("A thing", "Their thing"))
    templates = Templates(host, PolicySettings(), [folder, own, own / "none"])
    assert [each["title"] for each in templates.describe("en")] == ["Their thing"]


def test_a_request_for_a_template_becomes_one_for_a_prompt(templates):
    body = {"parameters": {"text": "cat", "seed": 3}, "client_id": "c"}
    values = templates.fill("thing", body)
    assert values["seed"] == 3
    assert body["client_id"] == "c"
    assert body["prompt"]["2"]["inputs"]["text"] == "cat"
    assert "parameters" not in body


def test_a_file_that_is_called_like_a_parameter_is_its_value(templates):
    for given in ({}, {"text": None}):
        assert templates.fill("thing", {"parameters": given}, ["text", "other"])["text"] == "text"
    assert templates.fill("thing", {"parameters": {"text": "said"}}, ["text"])["text"] == "said"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"parameters": []}, InvalidRequestError),
        ({"text": "cat"}, InvalidRequestError),
        ({"parameters": {"text": ""}, "prompt": {}}, InvalidRequestError),
        ({}, InvalidRequestError),
    ],
)
def test_a_body_of_another_shape_is_refused(templates, body, error):
    with pytest.raises(error):
        templates.fill("thing", body)


def test_a_template_that_is_not_there_is_404_and_names_those_that_are(templates):
    with pytest.raises(NotFoundError) as refused:
        templates.fill("else", {})
    assert refused.value.extra_info == {"templates": ["thing"]}


def test_a_missing_node_names_its_pack_and_where_to_get_it(templates, host):
    host.missing = ["Make"]
    with pytest.raises(MissingNodeError, match=r"https://example\.org/makers") as refused:
        templates.fill("thing", {"parameters": {"text": ""}})
    assert refused.value.extra_info == {
        "classes": ["Make"],
        "node_packs": [{"name": "Makers", "source": "https://example.org/makers"}],
    }
    shown = templates.describe("en")[0]
    assert (shown["missing"]["node_packs"], shown["missing"]["classes"]) == (["Makers"], ["Make"])
    assert any("Makers is not installed" in reason for reason in shown["reasons"])
    assert not shown["ready"]


def test_a_missing_model_names_its_folder_and_where_to_get_it(templates, host):
    host.models = {"m.safetensors": "sub/m.safetensors"}
    body = {"parameters": {"text": ""}}
    templates.fill("thing", body)  # the other one is for polish alone
    assert body["prompt"]["1"]["inputs"]["name"] == "sub/m.safetensors"
    with pytest.raises(MissingModelError, match=r"models/polish, from https://example.org/wax") as refused:
        templates.fill("thing", {"parameters": {"text": "", "polish": True}})
    assert [model["file"] for model in refused.value.extra_info["models"]] == ["wax.safetensors"]
    assert templates.describe("en")[0]["ready"]
    host.models = {}
    assert templates.describe("en")[0]["missing"]["models"] == ["m.safetensors"]


def write_safetensors(path, size=64, missing=0):
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size - missing))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.safetensors", b"", "is empty"),
        ("m.safetensors", b"<!DOCTYPE html><html>Access to this model is restricted", "is a text; a web page"),
        ("m.safetensors", (5).to_bytes(8, "little") + b"{nonsense", "has a header that cannot be read"),
        ("m.safetensors", None, "the download has broken off"),
        ("m.task", bytes(1000), "has 0 of about 7 MB"),
    ],
)
def test_a_model_that_is_not_whole_is_not_ready_and_the_reason_is_said(folder, host, tmp_path, name, content, said):
    path = tmp_path / name
    if content is None:
        write_safetensors(path, size=4_000_000, missing=1)
    else:
        path.write_bytes(content)
    written(folder, MANIFEST.replace("m.safetensors", name))
    host.model_files = {name: path}
    templates = Templates(host, PolicySettings(), [folder])
    shown = templates.describe("en")[0]
    assert (shown["ready"], shown["missing"]["models"], shown["models"][0]["present"]) == (False, [name], False)
    (reason,) = shown["reasons"]
    assert reason.startswith(f"models/checkpoints/{name} ")
    assert said in reason
    with pytest.raises(MissingModelError, match=r"\(it "):
        templates.fill("thing", {"parameters": {"text": ""}})
    # A download that is repeated makes it ready, without a restart.
    write_safetensors(path) if name.endswith("safetensors") else path.write_bytes(bytes(6_500_000))
    shown = templates.describe("en")[0]
    assert (shown["ready"], shown["reasons"]) == (True, [])


def test_more_memory_than_the_card_has_or_the_operator_allows_is_refused(folder, host, template):
    templates = Templates(host, PolicySettings(vram_budget_gb=20), [folder])
    assert estimate_vram_gib(template, {**choose_values(template, {"text": ""})}) == 18.0
    templates.fill("thing", {"parameters": {"text": ""}})
    with pytest.raises(PolicyViolationError) as refused:
        templates.fill("thing", {"parameters": {"text": "", "size": 24}})
    assert refused.value.extra_info == {"vram_gb": 26.0, "vram_budget_gb": 20.0, "vram_total_gb": None}
    host.vram_bytes = 16 * 2**30
    with pytest.raises(PolicyViolationError, match="16 GB may be used"):
        templates.fill("thing", {"parameters": {"text": ""}})
    assert not templates.describe("en")[0]["ready"]


def test_in_a_fleet_the_largest_card_that_may_run_a_job_counts(folder, host):
    """A box that only takes jobs, or a small one, refuses nothing that another one can run."""
    cards = {"small": (8 * 1024, 1), "large": (48 * 1024, 1), "dead": (96 * 1024, 1), "front": (80 * 1024, 0)}
    boxes = [Box(name, max_jobs, 0, name != "dead", vram_mb=vram) for name, (vram, max_jobs) in cards.items()]
    fleet = SimpleNamespace(boxes=())
    host.vram_bytes = 8 * 2**30
    templates = Templates(host, PolicySettings(), [folder], make_find_card(fleet, host))
    with pytest.raises(PolicyViolationError, match="8 GB may be used"):  # nobody has looked yet
        templates.fill("thing", {"parameters": {"text": ""}})
    fleet.boxes = tuple(boxes)
    templates.fill("thing", {"parameters": {"text": "", "size": 24}})
    assert templates.describe("en")[0]["ready"]
    with pytest.raises(PolicyViolationError, match="48 GB may be used"):
        templates.fill("thing", {"parameters": {"text": "", "size": 64}})
    fleet.boxes = (*boxes, Box("unknown", 1, 0, True))
    templates.fill("thing", {"parameters": {"text": "", "size": 64}})


def test_the_list_speaks_the_language_that_was_asked_for(templates):
    shown = templates.describe("ru")[0]
    assert (shown["title"], shown["description"]) == ("Вещь", "Makes a thing.")
    assert shown["parameters"][0] == {
        "name": "text", "type": "text", "required": True, "default": None, "max_length": 10, "help": "Что.",
    }  # fmt: skip
    size = next(each for each in shown["parameters"] if each["name"] == "size")
    assert size == {
        "name": "size", "type": "integer", "required": False, "default": 16, "min": 8, "max": 64, "step": 8,
        "help": "How large.",
    }  # fmt: skip
