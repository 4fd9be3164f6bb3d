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
