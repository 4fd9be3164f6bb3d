"""The templates that come with the package: both formats, their recorded nodes, and every value they allow."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from policy.known import describe
from workflows import editor, specs

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import GuardError
from comfyui_guarded.guard.models.sources import find_source
from comfyui_guarded.guard.settings import PROFILES, PolicySettings
from comfyui_guarded.guard.submit.policy import Policy
from comfyui_guarded.guard.templates.manifest import (
    Manifest,
    Model,
    NodePack,
    Preset,
    Template,
    VramStep,
    Wiring,
    applies,
)
from comfyui_guarded.guard.templates.parameter import MAX_SEED, Parameter
from comfyui_guarded.guard.templates.render import choose_values, complete, estimate_vram_gib, render

KNOWN = specs.all_nodes()
TEMPLATES = {path.stem: Template.read(path) for path in sorted(editor.API.glob("*.toml"))}
NAMES = sorted(TEMPLATES)

#: Profiles of cards that are too small for a template, as docs/workflows.md says.
TOO_SMALL = {
    ("qwen_edit", "rtx3060"), ("qwen_edit", "a4000"), ("wan_i2v", "rtx3060"),
    ("ltx2_i2v", "rtx3060"), ("ltx2_i2v", "a4000"),
}  # fmt: skip

every_template = pytest.mark.parametrize("name", NAMES)


def values_of(parameter):
    """Any value inside the limits."""
    if parameter.type == "integer":
        steps = (int(parameter.max) - int(parameter.min)) // parameter.step
        return st.integers(0, steps).map(lambda n: int(parameter.min) + n * parameter.step)
    return {
        "number": lambda: st.floats(parameter.min, parameter.max),
        "boolean": st.booleans,
        "choice": lambda: st.sampled_from(parameter.choices),
        "text": lambda: st.text(max_size=200) | st.just("🎈" * parameter.max_length),
        "file": lambda: st.text(min_size=1, max_size=255),
        "seed": lambda: st.integers(0, MAX_SEED),
    }[parameter.type]()


def values_beyond(parameter):
    """Any value outside them, or of another type."""
    other = st.sampled_from([[], {}, float("nan"), float("inf")])
    if parameter.type in ("integer", "number", "seed"):
        low, high = (0, MAX_SEED) if parameter.type == "seed" else (parameter.min, parameter.max)
        beyond = st.integers(max_value=int(low) - 1) | st.integers(min_value=int(high) + 1)
        if parameter.type == "integer" and parameter.step > 1:
            beyond |= st.just(int(low) + 1)
        return beyond | other | st.just("7") | st.booleans()
    if parameter.type == "boolean":
        return other | st.integers() | st.text()
    if parameter.type == "choice":
        return other | st.integers() | st.text().filter(lambda text: text not in parameter.choices)
    longest = 255 if parameter.type == "file" else parameter.max_length
    return other | st.integers() | st.booleans() | st.just("x" * (longest + 1))


def test_the_templates_of_the_mission_are_there():
    assert {"liveportrait", "photo_check", "sdxl", "sdxl_face"} <= set(NAMES)
    assert {"klein_edit", "qwen_edit", "z_image", "wan_i2v", "ltx2_i2v"} <= set(NAMES)


@every_template
def test_both_formats_describe_the_same_graph(name):
    workflow = json.loads((editor.WORKFLOWS / f"{name}.json").read_text())
    assert editor.api(workflow, KNOWN) == TEMPLATES[name].graph


@every_template
def test_the_graph_is_what_its_nodes_take(name):
    assert specs.faults(TEMPLATES[name].graph, KNOWN) == []


@every_template
def test_the_workflow_has_a_small_preview(name):
    path = editor.WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        picture.load()


@every_template
def test_sources_that_were_read_are_those_that_were_recorded(name):
    recorded = {source["source"]: source["commit"] for source in specs.recorded().values()}
    manifest = TEMPLATES[name].manifest
    assert manifest.read_at.items() <= recorded.items()
    assert {pack.source for pack in manifest.node_packs} <= set(manifest.read_at)
    used = {node["class_type"] for node in TEMPLATES[name].graph.values()}
    packed = [name for pack in manifest.node_packs for name in pack.classes]
    core = set(specs.recorded()["comfyui"]["nodes"])
    assert sorted(packed) == sorted(each for each in used - core if not each.startswith("Guarded"))


@every_template
def test_every_text_is_there_in_both_languages_and_russian_is_russian(name):
    manifest = TEMPLATES[name].manifest
    for texts in (manifest.title, manifest.description, *(each.help for each in manifest.parameters.values())):
        assert set(texts) == {"en", "ru"}
        assert re.search("[а-я]", texts["ru"])
        assert "ё" not in texts["ru"].lower()


@every_template
@given(data=st.data())
def test_any_parameters_inside_the_limits_make_a_graph_that_its_nodes_take(name, data):
    template = TEMPLATES[name]
    asked = {
        each: data.draw(values_of(parameter), label=each)
        for each, parameter in template.manifest.parameters.items()
        if parameter.is_needed or data.draw(st.booleans(), label=f"{each}?")
    }
    values = choose_values(template, asked)
    assert asked.items() <= values.items()
    graph = render(template, values)
    assert specs.faults(graph, KNOWN) == []
    assert set(template.manifest.outputs) <= set(graph) <= set(template.graph)
    assert 0 <= estimate_vram_gib(template, values) < 20
    # The same parameters again, as the answer gave them, are the same graph.
    assert render(template, choose_values(template, json.loads(json.dumps(values)))) == graph


@every_template
@given(data=st.data())
def test_any_parameter_outside_its_limits_is_refused_by_name(name, data):
    parameters = TEMPLATES[name].manifest.parameters
    asked = {each: data.draw(values_of(parameter)) for each, parameter in parameters.items() if parameter.is_needed}
    wrong = data.draw(st.sampled_from(sorted(parameters)))
    asked[wrong] = data.draw(values_beyond(parameters[wrong]), label=wrong)
    with pytest.raises(GuardError) as refused:
        choose_values(TEMPLATES[name], asked)
    assert refused.value.code in ("invalid_request", "policy_violation")
    assert list(refused.value.extra_info["parameters"]) == [wrong]


@every_template
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_lets_a_template_pass_as_it_stands_or_the_card_is_too_small(name, profile):
    template, settings = TEMPLATES[name], PolicySettings(profile=profile)
    given = {each: "x" for each, parameter in template.manifest.parameters.items() if parameter.is_needed}
    values = choose_values(template, given)
    Policy(settings).check(render(template, values))
    assert (estimate_vram_gib(template, values) <= settings.vram_budget_gb) is ((name, profile) not in TOO_SMALL)


@every_template
def test_a_strict_policy_lets_a_template_pass_whatever_is_asked_for(name):
    """As on a server, where classes are declared and the sizes of photos are known."""
    template = TEMPLATES[name]
    policy = Policy(PolicySettings(profile="a5000", strict=True), describe=describe)
    media = {
        node_id: Media(1536, 2048) if node["class_type"] == "LoadImage" else Media(640, 480, 750, 30.0, 25.0)
        for node_id, node in template.graph.items()
        if node["class_type"] in ("LoadImage", "VHS_LoadVideo")
    }
    parameters = template.manifest.parameters
    plain = {each: "x" for each, parameter in parameters.items() if parameter.is_needed}
    files = {each: "x" for each, parameter in parameters.items() if parameter.type == "file"}
    for more in ({}, files, *(each.when for each in template.manifest.wiring)):
        asked = {
            each: "x" if value is True and parameters[each].type == "file" else value for each, value in more.items()
        }
        graph = render(template, choose_values(template, {**plain, **asked}))
        policy.check(graph, {node_id: of for node_id, of in media.items() if node_id in graph})


@pytest.mark.parametrize("name", ["sdxl", "sdxl_face"])
def test_quality_and_aspect_choose_size_and_steps(name):
    template = TEMPLATES[name]
    given = {each: "x" for each, parameter in template.manifest.parameters.items() if parameter.is_needed}
    for aspect in template.manifest.parameters["aspect"].choices:
        wide, high = map(int, aspect.split(":"))
        for quality, steps, pixels in (("fast", 15, 768**2), ("balanced", 20, 1024**2), ("high", 35, 1024**2)):
            values = choose_values(template, {**given, "quality": quality, "aspect": aspect})
            assert values["steps"] == steps
            assert values["width"] / values["height"] == pytest.approx(wide / high, rel=0.07)
            assert values["width"] * values["height"] == pytest.approx(pixels, rel=0.08)


def test_the_mission_s_numbers_are_the_defaults():
    sdxl = choose_values(TEMPLATES["sdxl"], {"prompt": "a cat"})
    assert (sdxl["width"], sdxl["height"], sdxl["steps"], sdxl["sampler"]) == (1024, 1024, 20, "euler_ancestral")
    assert choose_values(TEMPLATES["sdxl"], {"prompt": "", "aspect": "16:9"})["width"] == 1344
    film = render(TEMPLATES["liveportrait"], choose_values(TEMPLATES["liveportrait"], {"photo": "p", "motion": "m"}))
    assert (film["8"]["inputs"]["force_rate"], film["8"]["inputs"]["frame_load_cap"]) == (25, 375)
    assert "9" not in render(TEMPLATES["sdxl"], sdxl)


def own_templates():
    return (editor.ROOT / "docs" / "own-templates.md").read_text()


def examples():
    return re.findall(r"```toml\n(.*?)```", own_templates(), re.DOTALL)


def test_the_manual_s_ten_lines_are_a_template_as_they_stand(tmp_path):
    short = examples()[0]
    assert len(short.splitlines()) <= 10
    # As ComfyUI exports its default graph.
    graph = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], "latent_image": ["5", 0]}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    }
    (tmp_path / "stickers.toml").write_text(short)
    (tmp_path / "stickers.json").write_text(json.dumps(graph))
    template = Template.read(tmp_path / "stickers.toml")
    filled = render(template, choose_values(template, {"prompt": "a cat", "seed": 7}))
    assert (filled["6"]["inputs"]["text"], filled["3"]["inputs"]["seed"]) == ("a cat", 7)
    assert set(filled) == set(graph)


def test_the_manual_says_of_every_field_whether_it_is_needed():
    rows = [row.split("|") for row in own_templates().splitlines() if row.startswith("|")]
    told: dict[str, dict[str, bool]] = {}
    table = ""
    for row in rows[2:]:
        table = row[1].strip() or table
        for field in re.findall(r"`(\w+)`", row[2]):
            told.setdefault(table, {})[field] = row[3].strip().startswith("**yes**")
    conditional = told.pop("presets, wiring, models")
    models = {
        "–": Manifest, "`[parameters.NAME]`": Parameter, "`[[presets]]`": Preset, "`[[wiring]]`": Wiring,
        "`[[models]]`": Model, "`[[node_packs]]`": NodePack, "`[[vram]]`": VramStep,
    }  # fmt: skip
    assert set(told) == set(models)
    for table, model in models.items():
        fields = dict(model.model_fields)
        if "when" in fields:
            assert fields.pop("when").is_required() is conditional["when"]
        assert set(told[table]) == set(fields), table
        for name, field in fields.items():
            # What only some types need is needed by a rule of its own.
            assert told[table][name] is (field.is_required() or name in ("min", "max", "choices")), (table, name)


def test_the_manual_s_example_of_an_optional_file_works(tmp_path):
    optional = examples()[1]
    graph = {
        "3": {"class_type": "Sample", "inputs": {"positive": ["5", 0]}},
        "5": {"class_type": "Encode", "inputs": {"text": ""}},
        "9": {"class_type": "Save", "inputs": {"images": ["3", 0]}},
        "12": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "14": {"class_type": "Style", "inputs": {"positive": ["5", 0], "image": ["12", 0]}},
    }
    (tmp_path / "styled.toml").write_text('outputs = ["9"]\ntitle.en = "x"\ndescription.en = "x"\n' + optional)
    (tmp_path / "styled.json").write_text(json.dumps(graph))
    template = Template.read(tmp_path / "styled.toml")
    assert set(render(template, choose_values(template, {}))) == {"3", "5", "9"}
    assert set(render(template, choose_values(template, {"style": "s.png"}))) == set(graph)


def test_the_manual_s_figures_of_video_memory_are_what_the_templates_say():
    manual = (editor.ROOT / "docs" / "workflows.md").read_text()
    told = {
        name: tuple(map(float, figures))
        for name, *figures in re.findall(r"^\| `(\w+)` \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", manual, re.M)
    }
    assert set(told) == {name for name in NAMES if TEMPLATES[name].manifest.vram}
    for name, (least, full, stays) in told.items():
        template = TEMPLATES[name]
        values = complete(template, {})
        assert (least, full) == (estimate_vram_gib(template, values), estimate_vram_gib(template, values, 1)), name
        assert stays >= full
        manifest = template.manifest
        if any(step.weights_gib for step in manifest.vram):
            files = sum(each.size_mb for each in manifest.models if applies(each.when, values)) * 1e6 / 2**30
            assert stays == pytest.approx(files + estimate_vram_gib(template, values, 0), abs=0.1), name
    # ComfyUI's own template for Wan 2.2 says 84 % of 24 GB at this size.
    wan = {**complete(TEMPLATES["wan_i2v"], {}), "width": 640, "height": 640, "frames": 81}
    assert estimate_vram_gib(TEMPLATES["wan_i2v"], wan, 1) == pytest.approx(0.84 * 24, rel=0.02)


@every_template
def test_a_licence_that_forbids_selling_says_so_where_it_is_read_first(name):
    manifest = TEMPLATES[name].manifest
    if any("non-commercial" in model.licence.split("(")[0] for model in manifest.models):
        assert "not for commercial use" in manifest.description["en"]
        assert "не для коммерции" in manifest.description["ru"]
    for model in manifest.models:
        assert find_source(model, {}) is not None or model.source.endswith(".zip"), model.file


def test_the_manual_s_example_with_all_tables_is_a_template(tmp_path):
    (tmp_path / "stickers.toml").write_text(examples()[-1])
    inputs = dict.fromkeys(("text", "steps", "samples", "ckpt_name", "width", "height"), 0)
    (tmp_path / "stickers.json").write_text(
        json.dumps({node: {"class_type": "X", "inputs": inputs} for node in ("3", "4", "5", "6", "8", "9", "12")})
    )
    values = choose_values(Template.read(tmp_path / "stickers.toml"), {"prompt": "a cat", "style": "shaded"})
    assert values == {"prompt": "a cat", "style": "shaded", "steps": 24, "size": 512}
