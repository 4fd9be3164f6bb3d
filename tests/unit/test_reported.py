"""What nodes report, made such that everybody can read it."""

import copy
import enum
import json
import pathlib
from collections import OrderedDict, deque
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfyui_guarded.guard.results.reported import DEEPEST, MOST_CHARS, Plain, fit, fit_all

FRONTENDS = pathlib.Path(__file__).parents[1] / "contract" / "frontends"
SCHEMAS = [schemas for path in sorted(FRONTENDS.glob("*.json")) if "job" in (schemas := json.loads(path.read_text()))]
JOB, JOBS = (
    [jsonschema.validators.validator_for(schemas[kind])(schemas[kind]) for schemas in SCHEMAS]
    for kind in ("job", "jobs")
)


class Kind(str, enum.Enum):
    OUTPUT = "output"


class Hostile(list[Any]):
    def _fail(self, *_args: Any) -> Any:
        raise RuntimeError("a node's code runs")

    __iter__ = __len__ = __bool__ = __str__ = _fail  # type: ignore[assignment]


def nested(depth: int) -> Any:
    nest: Any = "bottom"
    for _ in range(depth):
        nest = [nest]
    return nest


def circle() -> Any:
    round_: dict[Any, Any] = {"a": []}
    round_["a"].append(round_)
    round_["b"] = round_
    return round_


def grown() -> Any:
    grown_: Any = "x" * 1000
    for _ in range(30):
        grown_ = [grown_] * 30
    return grown_


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([5000, 400, 308]).map(lambda digits: -(10**digits))
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
)
odd = (
    scalars
    | st.binary()
    | st.complex_numbers()
    | st.sampled_from([object(), print, np.float32(0.5), np.int64(7), np.zeros(2), Kind.OUTPUT, deque([1]), ...])
    | st.builds(Hostile, st.just([1]))
    | st.builds(circle)
    | st.builds(nested, st.sampled_from([DEEPEST - 1, DEEPEST + 1, 20_000]))
    | st.builds(bytearray, st.binary())
    | st.dates()
    | st.uuids()
)
keys = st.text(max_size=8) | st.integers() | st.none() | st.floats() | st.tuples(st.integers(), st.text(max_size=3))
things = st.recursive(
    odd,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=15,
)
NAMES = [
    "filename",
    "subfolder",
    "type",
    "format",
    "id",
    "preview_id",
    "display_name",
    "mediaType",
    "content",
    "nodeId",
]
files = st.dictionaries(st.sampled_from(NAMES), things | st.sampled_from(["a.png", "output", "temp"]), max_size=5)
outputs = st.dictionaries(
    st.sampled_from(["images", "audio", "video", "animated", "text", "3d", "gifs", "rows"]) | keys,
    st.lists(files | things, max_size=4) | things,
    max_size=4,
)


def read(value: Any) -> Any:
    """As whoever is strictest does."""
    return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode(), parse_constant=pytest.fail)


@settings(max_examples=60)
@given(things)
@example({"a": circle(), 1: nested(20_000)})
@example([Hostile([1]), {Hostile: Hostile}])
@example({"\ud800": "\udfff"})
def test_whatever_is_reported_becomes_json_that_can_be_copied_and_told_again(thing):
    plain = Plain()
    told = plain.copy(thing)
    assert read(told) == told
    assert copy.deepcopy(told) == told
    assert Plain().copy(told) == told, "what is plain stays as it is"
    assert all(isinstance(each, str) and len(each) <= 200 for each in plain.odd)


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    )
)  # fmt: skip
def test_json_is_told_as_it_is(thing):
    plain = Plain()
    assert plain.copy(thing) == thing
    assert not plain.odd


def test_what_cannot_be_told_is_named_once():
    plain = Plain()
    told = plain.copy({"a": [float("nan"), float("inf"), b"\xff", circle(), 10**5000], ("k", 1): np.float32(0.5)})
    assert told["a"][:3] == [None, None, "(1 bytes)"]
    assert told["a"][3]["b"] == "(contains itself)"
    assert told['["k", 1]'] == 0.5
    assert len(plain.odd) == len(set(plain.odd)) == 5


def test_few_things_that_are_endlessly_many_when_they_are_told_end_soon():
    plain = Plain()
    told = plain.copy({"rows": [grown()], "text": "y" * 2 * MOST_CHARS})
    assert len(json.dumps(told)) < 2 * MOST_CHARS
    assert "more than can be kept" in plain.odd


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=4), outputs, max_size=3))
@example({"1": {"images": ["x", None, {"filename": 5, "type": []}], "animated": "yes", "text": 5, "video": {"id": 1}}})
def test_whatever_is_reported_fits_what_the_frontends_take(report):
    fitting = fit_all(Plain().copy(report))
    assert len(JOB) == 2
    for frontend in JOB:
        frontend.validate({"id": "", "status": "completed", "create_time": 0, "outputs": fitting})
    for output in fitting.values():
        for kind, items in output.items():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, dict) and (kind in ("images", "audio", "video", "3d") or "filename" in item):
                    # ComfyUI's `/api/jobs` looks at these, and its preview is the item with two texts more.
                    assert isinstance(item.get("format", ""), str)
                    preview = {"nodeId": "1", "mediaType": kind, **item}
                    jobs = [{"id": "", "status": "completed", "create_time": 0, "preview_output": preview}]
                    page = {"offset": 0, "limit": 1, "total": 1, "has_more": False}
                    for frontend in JOBS:
                        frontend.validate({"jobs": jobs, "pagination": page})
    assert fit_all(fitting) == fitting, "what fits stays as it is"


def test_what_comfyui_itself_reports_stays_as_it_is():
    for output in (
        {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}], "animated": [True]},
        {"text": ["a", "b"], "files": [{"filename": "a.txt", "subfolder": "", "type": "output"}]},
        {"result": ["a.glb", {"position": {"x": 1.5}}, None]},
        {"boxes": [{"id": 3, "content": {"x": 1}}], "ratio": [0.5]},
    ):
        assert fit(output) == output


def test_of_texts_that_are_too_long_the_beginning_is_told():
    plain = Plain(longest=10_000)
    told = plain.copy({"exception_message": "x" * 50_000_000, "traceback": ["y" * 10_000, "z" * 10_001]})
    assert told["traceback"][0] == "y" * 10_000
    assert told["exception_message"].startswith("x" * 1000)
    assert told["exception_message"].endswith("(50000000 characters)")
    assert len(json.dumps(told, ensure_ascii=False)) < 13_000
    assert plain.odd == ["more than can be kept"]
