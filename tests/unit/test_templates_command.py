"""`templates check`: every fault at once, by line, and a first manifest for a graph without one."""

import argparse
import json

import pytest
from unit.fakes import FakeHost
from unit.test_templates import GRAPH, MANIFEST, written

from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.templates import command
from comfyui_guarded.guard.templates.catalogue import Templates
from comfyui_guarded.guard.templates.manifest import Template
from comfyui_guarded.guard.templates.render import estimate_vram_gib

EXPORT = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "cfg": 7.0, "model": ["4", 0], "p": ["6", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "xl/base.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": 'a "cat"', "clip": ["4", 1]}},
    "7": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}  # fmt: skip


def check(path):
    told = []
    return command.run(argparse.Namespace(action="check", file=path), told.append), told


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_a_sound_template_says_what_callers_must_give(tmp_path):
    written(tmp_path, MANIFEST)
    for name in ("thing.toml", "thing.json"):
        assert check(tmp_path / name) == (0, [f"{tmp_path / 'thing.toml'}: nothing is wrong. Needed of callers: text."])


def test_every_fault_is_told_at_once_with_its_line(tmp_path):
    broken = MANIFEST.replace("2.text", "2.words").replace("size = 32", "size = 96").replace("1.name", "1.nom")
    written(tmp_path, broken)
    status, told = check(tmp_path / "thing.toml")
    assert status == 1
    for part, said in (
        ("2.words", "no input 2.words"),
        ("size = 96", "size must be from 8 to 64"),
        ("1.nom", "no input 1.nom"),
    ):
        assert any(
            line.startswith(f"{tmp_path / 'thing.toml'}:{line_of(broken, part)}: ") and said in line for line in told
        ), told
    assert len(told) == 3
    shapes = MANIFEST.replace("max = 64\n", "max = 2\n").replace('licence = "MIT"\ninto', "into")
    written(tmp_path, shapes)
    assert len(check(tmp_path / "thing.toml")[1]) >= 2


#: (what in the manifest, what instead, what must be said): faults of every kind, each in a place of its own.
FAULTS = [
    ('outputs = ["4"]', 'outputs = ["4", "99", 5]', "the graph has no node 99"),
    ('title = { en = "A thing", ru = "Вещь" }', 'title = { ru = "Вещь" }', "title: a text in 'en'"),
    ('description.en = "Makes a thing."', "bogus = 1", "bogus: there is no such field"),
    ('into = ["2.text"]', 'into = ["2.words"]', "the graph has no input 2.words"),
    ("max_length = 10", f"max_length = {10**40}", "text.max_length: is too large"),
    ('default = "low"', 'default = "lower"', "quality.default: must be one of low, high"),
    ("step = 8", "step = 0", "size.step: Input should be greater"),
    ("min = 8", "min = 80", "size.min: 80 is more than max, which is 64"),
    ("max = 1.0", "max = nan", "warmth.max: must be a finite number"),
    ('into = ["2.warm"]', 'into = "2.warm"', "warmth.into: Input should be a valid array"),
    ("default = false", 'default = "no"', "polish.default: must be true or false"),
    ('into = ["2.seed"]', 'into = ["2.sead"]', "the graph has no input 2.sead"),
    ('help.en = "Chance."', 'help.fr = "Hasard."', "seed.help: a text in 'en'"),
    ('when = { quality = "high" }', "when = { quality = 1, nobody = true }", "when.quality: Input should be a"),
    ("parameters = { size = 32 }", "parameters = { sise = 32 }", "sise is no parameter"),
    ("when = { polish = true }", "when = { polishes = true }", "polishes is no parameter"),
    ('inputs = { "4.image" = ["3", 0] }', 'inputs = { "4.picture" = ["33", 0] }', "the graph has no node 33"),
    ('licence = "MIT"\ninto = ["1.name"]', 'into = ["1.nom"]', "models.0.licence: Field required"),
    ("size_mb = 7", "size_mb = 1979-05-27", "models.0.size_mb: must be a text"),
    ('classes = ["Make"]', "classes = []", "node_packs.0.classes: "),
    ("gib = 2\n", "gib = -inf\n", "vram.0.gib: must be a finite number"),
    ('pixels = ["size"]', 'pixels = ["warmth"]', "must come from integers"),
]  # fmt: skip


def test_no_fault_hides_another(tmp_path):
    broken = MANIFEST
    for have, instead, _said in FAULTS:
        assert have in broken
        broken = broken.replace(have, instead, 1)
    written(tmp_path, broken)
    status, told = check(tmp_path / "thing.toml")
    assert status == 1
    numbers = [int(line.split(":")[1]) for line in told]
    assert numbers == sorted(numbers)
    for _have, instead, said in [*FAULTS, ("", "nobody = true", "nobody is no parameter"),
                                 ("", '"4.picture"', "no input 4.picture"), ("", "1.nom", "no input 1.nom"),
                                 ("", '"99", 5]', "outputs.2: ")]:  # fmt: skip
        (line,) = [line for line in told if said in line]
        if instead in broken and "licence" not in said:
            assert int(line.split(":")[1]) == line_of(broken, instead.strip()), line
    assert len(told) == len(FAULTS) + 5, told  # and the description


@pytest.mark.parametrize("alone", FAULTS, ids=lambda fault: fault[2])
def test_one_fault_is_told_without_others_that_follow_from_it(tmp_path, alone):
    have, instead, said = alone
    written(tmp_path, MANIFEST.replace(have, instead, 1))
    _status, told = check(tmp_path / "thing.toml")
    assert any(said in line for line in told), told
    assert len(told) == {'"99", 5]': 2, "bogus": 2, "nobody": 2, "4.picture": 2, "1.nom": 2}.get(
        next((part for part in ('"99", 5]', "bogus", "nobody", "4.picture", "1.nom") if part in instead), ""), 1
    ), told


def test_faults_of_the_manifest_are_told_beside_those_of_the_graphs_file(tmp_path):
    written(tmp_path, MANIFEST.replace("max = 64", "max = 4").replace("size = 32", "sise = 32"), {"nodes": []})
    told = check(tmp_path / "thing.toml")[1]
    assert len(told) == 3, told
    assert "Export (API)" in told[2]


def test_every_fault_of_the_graphs_file_is_told_with_its_line(tmp_path):
    more = {"90": {"inputs": {}}, "91": {"class_type": 5, "inputs": {}}}
    lost = {"92": {"class_type": "Make", "inputs": {"a": ["98", 0], "b": ["99", 0]}}}
    written(tmp_path, MANIFEST)
    graph = tmp_path / "thing.json"
    graph.write_text(json.dumps({**GRAPH, **more, **lost}, indent=1))
    for name in ("thing.toml", "thing.json"):
        status, told = check(tmp_path / name)
        assert status == 1
        lines = [f"{graph}:{line_of(graph.read_text(), json.dumps(node))}: " for node in ("90", "91", "92", "92")]
        assert [line.startswith(begin) for line, begin in zip(told, lines, strict=True)] == [True] * 4, told
    (tmp_path / "thing.toml").unlink()
    assert check(graph) == (1, told)


@pytest.mark.parametrize("end", ["x = ", 'x = """a\n\n', "x = [1,\n\n2,"])
def test_a_manifest_that_is_cut_off_is_told_at_its_end(tmp_path, end):
    written(tmp_path, MANIFEST + end)
    ((_, [told]), last) = check(tmp_path / "thing.toml"), (MANIFEST + end).rstrip().count("\n") + 1
    assert told.startswith(f"{tmp_path / 'thing.toml'}:{last}: it is not TOML"), told


@pytest.mark.parametrize("value", ['["1", -1]', '["1", "x"]', "[]", '["1"]', '["1", 0.5]', '["1", true]', "[1, 2]"])
def test_a_wiring_that_is_no_link_and_no_value_is_a_fault(tmp_path, value):
    """ComfyUI takes any list for a link, and fails at one of another shape."""
    manifest = MANIFEST + f'\n[[wiring]]\ninputs = {{ "2.text" = {value} }}\n'
    written(tmp_path, manifest)
    status, (told,) = check(tmp_path / "thing.toml")
    assert status == 1
    assert told.startswith(f"{tmp_path / 'thing.toml'}:{line_of(manifest, value)}: ")
    assert "must be a value, or [node id, slot]" in told


def test_two_parameters_cannot_fill_one_input(tmp_path):
    second = '\n[parameters.other]\ntype = "text"\ninto = ["2.text"]\nhelp.en = "x"\n'
    before, header, after = MANIFEST.partition("\n[[")
    manifest = before + second + header + after
    written(tmp_path, manifest)
    status, (told,) = check(tmp_path / "thing.toml")
    assert status == 1
    assert told.endswith("other: text fills 2.text, too")
    optional = second.replace('"text"\ninto', '"file"\nrequired = false\ninto')
    written(tmp_path, before + optional + header + after)
    assert "fills" not in str(check(tmp_path / "thing.toml"))


@pytest.mark.parametrize(
    ("field", "address", "is_sound"),
    [
        ("source", "javascript:alert(1)", False),
        ("source", " Java\nScript:alert(1)", False),
        ("source", "http://example.org/x", True),
        ("source", "trained by us", True),
        ("url", "file:///etc/passwd", False),
        ("url", "example.org/x", False),
        ("url", "https://example.org/x", True),
    ],
)
def test_an_address_is_one_of_the_web(tmp_path, field, address, is_sound):
    model = {"file": "m.bin", "folder": "checkpoints", "licence": "MIT", "source": "https://example.org"}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {**model, field: address}.items())
    written(tmp_path, f"{MANIFEST}\n[[models]]\nsize_mb = 1\n{text}")
    status, told = check(tmp_path / "thing.toml")
    assert (status == 0) is is_sound, told
    assert is_sound or "must be an address of the web" in told[0]


def test_the_editors_own_format_is_recognised_and_explained(tmp_path):
    written(tmp_path, MANIFEST, {"nodes": [{"id": 1}], "links": []})
    status, told = check(tmp_path / "thing.toml")
    assert status == 1
    assert "Export (API)" in told[0]
    (tmp_path / "alone.json").write_text(json.dumps({"nodes": []}))
    status, told = check(tmp_path / "alone.json")
    assert status == 1
    assert "Export (API)" in told[0]


def test_a_first_manifest_of_an_export_is_sound_once_it_is_gone_over(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(EXPORT))
    status, (text,) = check(tmp_path / "mine.json")
    assert status == 0
    (tmp_path / "mine.toml").write_text(text)
    template = Template.read(tmp_path / "mine.toml")
    assert template.manifest.outputs == ("9",)
    kinds = {name: each.type for name, each in template.manifest.parameters.items()}
    assert kinds == {"seed": "seed", "steps": "integer", "cfg": "number", "text": "text", "image": "file"}
    (model,) = template.manifest.models
    assert (model.file, model.into) == ("base.safetensors", ("4.ckpt_name",))


def test_a_template_is_read_again_when_its_files_change(tmp_path):
    templates = Templates(FakeHost(), PolicySettings(), [tmp_path])
    assert templates.describe("en") == []
    written(tmp_path, MANIFEST)
    assert [each["title"] for each in templates.describe("en")] == ["A thing"]
    written(tmp_path, MANIFEST.replace("A thing", "Another thing"))
    assert [each["title"] for each in templates.describe("en")] == ["Another thing"]
    written(tmp_path, MANIFEST.replace("2.text", "2.words.of.it"))
    assert templates.describe("en") == []
    (fault,) = templates.list_faults()
    assert "2.words.of.it" in fault
    assert str(tmp_path / "thing.toml") in fault
    (tmp_path / "thing.toml").unlink()
    assert templates.list_faults() == []


@pytest.mark.parametrize(("size", "steps", "gib"), [(16, 10, 2.2), (64, 10, 2.6), (16, 20, 2.3)])
def test_frames_count_in_the_estimate_of_memory(tmp_path, size, steps, gib):
    text = MANIFEST.replace("gib_per_megapixel = 1e6", 'gib_per_megapixel = 1e3\nframes = "steps"')
    text = text.replace(
        "[[presets]]",
        '[parameters.steps]\ntype = "integer"\ndefault = 10\nmin = 1\nmax = 20\nhelp.en = "x"\n[[presets]]',
    )
    written(tmp_path, text, GRAPH)
    assert estimate_vram_gib(Template.read(tmp_path / "thing.toml"), {"size": size, "steps": steps}) == gib
