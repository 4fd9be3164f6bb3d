"""Whatever a template's files hold, it harms no other, and the fault says the file and the line."""

import copy
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.fakes import FakeHost
from unit.test_templates import GRAPH, MANIFEST, written
from unit.test_templates_command import check

from comfyui_guarded.guard.bounds import Bounds
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.request import parse
from comfyui_guarded.guard.templates.catalogue import Templates
from comfyui_guarded.guard.templates.manifest import Template
from comfyui_guarded.guard.templates.pruning import drop_absent
from comfyui_guarded.guard.templates.rehearsal import read_template

SHIPPED = Path(__file__).parents[2] / "workflows" / "api"
FAULT = re.compile(r"template .*: (?:.*\.json, )?line [1-9]\d*: ", re.DOTALL)


class Host(FakeHost):
    """Has every model."""

    def find_model(self, folder, file):
        return file, None

    def describe(self):
        return {**super().describe(), "version": "99.0"}


def served(folder, *more):
    return Templates(Host(), PolicySettings(), [folder, *more])


def chain(count):
    nodes = {str(at): {"class_type": "Make", "inputs": {"image": [str(at - 1), 0]}} for at in range(6, count)}
    first = {"5": {"class_type": "Make", "inputs": {"image": ["2", 0]}}}
    return {**GRAPH, **first, **nodes, "4": {"class_type": "Save", "inputs": {"image": [str(count - 1), 0]}}}


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


#: (name, the manifest, the graph as text or bytes): what was seen to break the list, and what resembles it.
BROKEN = {
    "deep toml": (MANIFEST + "x = " + "[" * 5000 + "]" * 5000, json.dumps(GRAPH)),
    "deep keys": (MANIFEST + ".".join("x" * 5000) + " = 1", json.dumps(GRAPH)),
    "deep table": (MANIFEST + "[" + ".".join("x" * 300) + "]\ny = 1", json.dumps(GRAPH)),
    "many keys": (MANIFEST + "".join(f"x{at} = 1\n" for at in range(9000)), json.dumps(GRAPH)),
    "deep json": (MANIFEST, "[" * 100_000),
    "deep json in a node": (MANIFEST, json.dumps(GRAPH).replace('"text": ""', '"text": ' + "[" * 60 + "]" * 60)),
    "long chain": (MANIFEST, json.dumps(chain(60_000))),
    "circle": (MANIFEST, json.dumps(GRAPH | {"1": {"class_type": "Load", "inputs": {"name": "x", "a": ["4", 0]}}})),
    "huge integer": (MANIFEST.replace("max = 64", "max = " + "9" * 5000), json.dumps(GRAPH)),
    "huge integer in json": (MANIFEST, json.dumps(GRAPH).replace('"size": 8', '"size": ' + "9" * 5000)),
    "nan in json": (MANIFEST, json.dumps(GRAPH).replace('"size": 8', '"size": NaN')),
    "twice in json": (MANIFEST, json.dumps(GRAPH).replace('"size": 8', '"size": 8, "size": 9')),
    "utf-16": (MANIFEST, json.dumps(GRAPH).encode("utf-16")),
    "bytes": (b"\xff\xfe\0\0" + os.urandom(64), json.dumps(GRAPH)),
    "nothing": ("", ""),
    "list": (MANIFEST, "[]"),
    "null": (MANIFEST, "null"),
    "no nodes": (MANIFEST, "{}"),
    "large": (MANIFEST + "# " + "x" * 10**6, json.dumps(GRAPH)),
    "request": (MANIFEST, json.dumps({"prompt": GRAPH})),
    "surrogate": (MANIFEST, json.dumps(GRAPH).replace('"Make"', r'"\ud800"')),
    "date": (MANIFEST + '[[wiring]]\ninputs = { "4.image" = 1979-05-27 }\n', json.dumps(GRAPH)),
    "lost link": (MANIFEST + '[[wiring]]\ninputs = { "4.image" = ["9", 0] }\n', json.dumps(GRAPH)),
    "circle by wiring": (MANIFEST + '[[wiring]]\ninputs = { "1.name" = ["4", 0] }\n', json.dumps(GRAPH)),
}  # fmt: skip
#: Values that were seen to pass.
REFUSED = [
    ('outputs = ["4"]', "outputs = []"),
    ("max = 64", "max = inf"),
    ("max = 1.0", "max = nan"),
    ("gib = 2", "gib = true"),
    ("gib = 2", "gib = -1"),
    ("gib = 2", 'gib = "2"'),
    ("size_mb = 7", "size_mb = true"),
    ("size_mb = 7", "size_mb = 0"),
    ("size_mb = 7", 'size_mb = "7"'),
    ("size_mb = 7", "size_mb = 7.5"),
    ("max = 64", "max = 64.5"),
    ("step = 8", "step = true"),
    ("default = 16", "default = 16.5"),
    ("default = 0.5", "default = true"),
    ("default = false", "default = 0"),
    ("gib_per_megapixel = 1e6", "gib_per_megapixel = inf"),
    ('folder = "checkpoints"', 'folder = ""'),
    ('folder = "checkpoints"', 'folder = "../.."'),
    ('file = "m.safetensors"', r'file = "a\u0000b"'),
    ("max_length = 10", "max_length = 1e2"),
    ("max_length = 10", "max_length = 10\nchoices = []"),
    ("[parameters.warmth]", '[parameters.""]'),
    ('classes = ["Make"]', "classes = []"),
    ("polish = true }", "polish = 1 }"),
]


def put(folder, manifest, graph, name="bad"):
    for suffix, content in ((".toml", manifest), (".json", graph)):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}{suffix}").write_bytes(data)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_template_is_a_fault_with_file_and_line_and_the_others_stay(tmp_path, case):
    written(tmp_path, MANIFEST)
    put(tmp_path, *BROKEN[case])
    began = time.process_time()
    templates = served(tmp_path)
    assert [each["name"] for each in templates.describe("en")] == ["thing"]
    assert templates.fill("thing", {"parameters": {"text": "x"}})
    (fault,) = templates.list_faults()
    assert FAULT.match(fault), fault
    assert "bad" in fault
    assert time.process_time() - began < 20, "one of these took minutes"
    status, told = check(tmp_path / "bad.toml")
    assert status == 1
    assert all(re.search(r"bad\.(toml|json):[1-9]\d*: ", line) for line in told), told


@pytest.mark.parametrize(("have", "instead"), REFUSED)
def test_what_is_no_sensible_value_is_refused_at_its_line(tmp_path, have, instead):
    assert have in MANIFEST
    written(tmp_path, MANIFEST.replace(have, instead, 1))
    status, told = check(tmp_path / "thing.toml")
    assert status == 1, instead
    lines = MANIFEST.replace(have, instead, 1).splitlines()
    about = int(re.search(r":(\d+): ", told[0])[1])
    place = next(number for number, line in enumerate(lines, 1) if line.endswith(instead.splitlines()[-1]))
    table = max((number for number in range(1, place + 1) if lines[number - 1].startswith("[")), default=1)
    assert about in (place, table), told


def test_faults_of_the_text_itself_have_their_own_line(tmp_path):
    lines = MANIFEST.splitlines()
    for at in (5, 20, 40):
        broken = [*lines[:at], "this is no TOML", *lines[at:]]
        put(tmp_path, "\n".join(broken), json.dumps(GRAPH), "thing")
        assert check(tmp_path / "thing.toml")[1][0].startswith(f"{tmp_path / 'thing.toml'}:{at + 1}: ")
        put(tmp_path, "\n".join([*lines[:at], "x = " + "9" * 5000, *lines[at:]]), json.dumps(GRAPH), "thing")
        assert f"thing.toml:{at + 1}: " in check(tmp_path / "thing.toml")[1][0]
        put(tmp_path, "\n".join([*lines[:at], "x = " + "[" * 5000, *lines[at:]]), json.dumps(GRAPH), "thing")
        assert f"thing.toml:{at + 1}: " in check(tmp_path / "thing.toml")[1][0]
    graph = json.dumps(GRAPH, indent=1).splitlines()
    at = next(number for number, line in enumerate(graph) if '"size"' in line)
    for odd in ('"size": NaN,', '"size": [[,', '"size": ' + "[" * 60 + "]" * 60 + ","):
        put(tmp_path, MANIFEST, "\n".join([*graph[:at], odd, *graph[at + 1 :]]), "thing")
        assert f"thing.json:{at + 1}: " in check(tmp_path / "thing.toml")[1][0], odd
    nodes = copy.deepcopy(GRAPH)
    del nodes["3"]["class_type"]
    put(tmp_path, MANIFEST, json.dumps(nodes, indent=1), "thing")
    line = next(n for n, text in enumerate(json.dumps(nodes, indent=1).splitlines(), 1) if '"3": {' in text)
    assert f"thing.json:{line}: " in check(tmp_path / "thing.toml")[1][0]


def test_a_byte_order_mark_is_no_fault(tmp_path):
    put(tmp_path, b"\xef\xbb\xbf" + MANIFEST.encode(), b"\xef\xbb\xbf" + json.dumps(GRAPH).encode(), "thing")
    assert check(tmp_path / "thing.toml")[0] == 0
    assert [each["name"] for each in served(tmp_path).describe("en")] == ["thing"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_is_a_fault_and_is_waited_for_by_nobody(tmp_path):
    written(tmp_path, MANIFEST)
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    (tmp_path / "secret.toml").write_text(MANIFEST)
    (tmp_path / "secret.json").symlink_to(tmp_path / "nowhere.json")
    (tmp_path / "._thing.toml").write_bytes(b"\0\5\x16\7")  # macOS leaves these
    templates = served(tmp_path)
    assert [each["name"] for each in templates.describe("en")] == ["thing"]
    faults = templates.list_faults()
    assert len(faults) == 5
    assert all(FAULT.match(fault) for fault in faults), faults
    written(tmp_path, MANIFEST.replace("A thing", "Another"))
    assert [each["title"] for each in templates.describe("en")] == ["Another"], "a change beside them is seen"


@pytest.mark.parametrize(
    "name", ["", "/", ".", "x.py", "x" * 300 + ".json", "x" * 300 + ".toml", "none.toml", "none.json"]
)
def test_a_path_that_leads_nowhere_is_told(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, told = check(Path(name))
    assert status == 1
    assert told


class Odd(FakeHost):
    """Cannot be asked about one model."""

    def find_model(self, folder, file):
        if file == "odd.safetensors":
            raise RuntimeError("a pack's own folder")
        return file, None


def test_a_host_that_fails_for_one_template_serves_the_others(tmp_path):
    written(tmp_path, MANIFEST)
    written(tmp_path, MANIFEST.replace("m.safetensors", "odd.safetensors"), name="odd")
    templates = Templates(Odd(), PolicySettings(), [tmp_path])
    assert templates.list_lacking() == []
    assert [each["name"] for each in templates.describe("en")] == ["thing"]
    assert "odd" in templates.list_faults()[0]


# A search. ---------------------------------------------------------------------------------------------------

_VALUES = st.sampled_from(
    [
        *("true", "false", "0", "1", "-1", "2.5", "1e400", "inf", "-inf", "nan", '""', '"x"', '"4"', "[]", "[[]]"),
        *("{}", "{ a = 1 }", "1979-05-27", "07:32:00", "9" * 30, "-9223372036854775808", r'"\u0000"', "'''", '"'),
    ]
)
NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))


@st.composite
def mutated(draw):
    """(name, manifest, graph) of a shipped template, a little changed."""
    name = draw(st.sampled_from(NAMES))
    text, graph = (SHIPPED / f"{name}.toml").read_text(), (SHIPPED / f"{name}.json").read_text()
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["value", "key", "line", "bytes", "node", "json", "cut"]))
        lines = text.splitlines()
        at = draw(st.integers(0, len(lines) - 1))
        if kind == "value" and "=" in lines[at]:
            lines[at] = f"{lines[at].partition('=')[0]}= {draw(_VALUES)}"
        elif kind == "key" and "=" in lines[at]:
            lines[at] = (
                f"{draw(st.sampled_from(['x', 'min', 'into', 'when', 'type', '']))} = {lines[at].partition('=')[2]}"
            )
        elif kind == "line":
            lines[at : at + 1] = draw(st.sampled_from([[], [lines[at]] * 2, ["[[models]]"], ["[parameters.x]"], ["]"]]))
        elif kind == "cut":
            lines = lines[: at + 1]
        if kind in ("value", "key", "line", "cut"):
            text = "\n".join(lines)
        elif kind == "bytes":
            where = draw(st.integers(0, len(graph)))
            graph = graph[:where] + draw(st.text(max_size=3)) + graph[where + draw(st.integers(0, 3)) :]
        else:
            try:
                nodes = json.loads(graph)
                key = draw(st.sampled_from(sorted(nodes)))
                odd = draw(
                    st.sampled_from([None, 1, [], {}, "x", True, [key, 0], ["1"], ["nothing", 0], 1e308, deep(40)])
                )
                if kind == "node":
                    nodes[key] = odd
                else:
                    inputs = nodes[key]["inputs"]
                    inputs[draw(st.sampled_from([*sorted(inputs), "new"]))] = odd
                graph = json.dumps(nodes)
            except (ValueError, TypeError, KeyError, AttributeError):
                graph = graph[:-1]
    return name, text, graph


@settings(max_examples=60, deadline=None)
@given(mutated())
def test_a_search_over_the_shipped_templates_finds_no_exception_and_what_passes_can_be_submitted(
    tmp_path_factory, case
):
    name, text, graph = case
    folder = tmp_path_factory.mktemp("t")
    try:
        put(folder, text, graph, f"mutated_{name}")
        written(folder, MANIFEST)
        templates = served(folder)
        shown = {each["name"]: each for each in templates.describe("ru")}
        assert "thing" in shown
        told = check(folder / f"mutated_{name}.toml")
        if f"mutated_{name}" not in shown:
            (fault,) = templates.list_faults()
            assert FAULT.match(fault), fault
            assert told[0] == 1
            return
        assert told[0] == 0
        submit(templates, f"mutated_{name}", shown[f"mutated_{name}"])
    finally:
        shutil.rmtree(folder)


def submit(templates, name, body):
    """Send what the list says that callers must give."""
    json.dumps(body, allow_nan=False)
    made_up = {"text": "x", "file": "x.png", "boolean": True}
    parameters = {
        each["name"]: each["choices"][0] if each["type"] == "choice" else made_up.get(each["type"], each.get("min"))
        for each in body["parameters"]
        if each["required"]
    }
    raw = json.dumps({"parameters": parameters}).encode()
    prompt = parse(raw, Bounds(), lambda asked: templates.fill(name, asked))
    json.dumps(prompt.body, allow_nan=False).encode()
    assert prompt.graph


def test_every_shipped_template_passes_and_can_be_submitted():
    templates = served(SHIPPED)
    shown = templates.describe("en")
    assert templates.list_faults() == []
    assert sorted(each["name"] for each in shown) == NAMES
    for each in shown:
        submit(templates, each["name"], each)


# A graph of any size is gone through once. -------------------------------------------------------------------


def test_a_long_chain_falls_in_one_go():
    count = 50_000
    graph = {"0": {"class_type": "X", "inputs": {}}}
    graph |= {str(at): {"class_type": "X", "inputs": {"a": [str(at - 1), 0]}} for at in range(1, count)}
    backwards = dict(reversed(graph.items()))
    began = time.process_time()
    assert drop_absent(backwards, ["0"]) == {}
    assert time.process_time() - began < 20, "by rounds this takes hours"


def slow_drop(graph, absent):
    """Round after round, as it says."""
    kept = {node_id: node for node_id, node in graph.items() if node_id not in absent}
    while True:
        changed = False
        for node_id, node in list(kept.items()):
            lost = [name for name, value in node["inputs"].items() if isinstance(value, list) and value[0] not in kept]
            if lost:
                changed = True
                inputs = {name: value for name, value in node["inputs"].items() if name not in lost}
                if any(isinstance(value, list) for value in inputs.values()):
                    kept[node_id] = {**node, "inputs": inputs}
                else:
                    del kept[node_id]
        if not changed:
            return kept


@settings(max_examples=100)
@given(st.data())
def test_what_falls_with_a_file_is_what_falls_round_by_round(data):
    count = data.draw(st.integers(1, 8))
    graph = {
        str(at): {
            "class_type": "X",
            "inputs": {
                f"i{place}": [str(source), 0]
                for place, source in enumerate(data.draw(st.lists(st.integers(0, 9), max_size=3)))
            },
        }
        for at in range(count)
    }
    absent = data.draw(st.sets(st.sampled_from(sorted(graph))))
    assert drop_absent(graph, absent) == slow_drop(graph, absent)


# First manifests. --------------------------------------------------------------------------------------------

_INPUTS = st.dictionaries(
    st.sampled_from(["seed", "steps", "cfg", "text", "image", "width", "denoise", "ckpt_name", "prompt", "other"]),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False),
              st.text(max_size=8), st.just("a\\b.safetensors"), st.just("é😀\x7f.ckpt"), st.none()),
    max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("1a😀\"'\\ \x7f:", min_size=1, max_size=4), _INPUTS, min_size=1, max_size=4))
@example({"1": {"steps": 2**63, "width": -(2**63), "cfg": 1.7e308}})
def test_the_first_manifest_of_any_graph_passes(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("d")
    try:
        graph = {key: {"class_type": "LoadSave", "inputs": inputs} for key, inputs in drawn.items()}
        (folder / "mine.json").write_text(json.dumps(graph))
        status, (text,) = check(folder / "mine.json")
        if status:
            assert "mine.json:" in text
            return
        (folder / "mine.toml").write_text(text)
        read_template(folder / "mine.toml")
        assert Template.read(folder / "mine.toml").manifest.outputs
    finally:
        shutil.rmtree(folder)


def test_the_command_takes_no_more_than_one_word_for_each_fault(tmp_path):
    put(tmp_path, 'outputs = ["4"]\n' + "".join(f"x{at} = {at}\n" for at in range(5000)), json.dumps(GRAPH))
    status, told = check(tmp_path / "bad.toml")
    assert status == 1
    assert len(told) <= 60
