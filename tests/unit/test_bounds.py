"""What JSON may hold is counted before it is parsed: exactly, and wherever a scan may cut it."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from comfyui_guarded.guard import bounds
from comfyui_guarded.guard.bounds import Bounds, read_json, read_model, read_shortened
from comfyui_guarded.guard.errors import QUOTED, InvalidRequestError, NotFoundError, PayloadTooLargeError

TEXTS = st.text(alphabet=st.sampled_from('a"\\[]{},: \nя'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=40,
)


def count(value: object) -> int:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, held))


@settings(max_examples=200)
@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.sampled_from([2**18, 7, 2]))
def test_values_are_counted_exactly_wherever_the_scan_cuts(value, indent, is_ascii, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "_WINDOW", window)
        patch.setattr(bounds, "_COUNTED", window)
        check_count(value, indent, is_ascii)


def check_count(value, indent, is_ascii):
    raw = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode()
    held = count(value)
    assert read_json(raw, Bounds(values=held, depth=400)) == value
    if held > 1:
        with pytest.raises(PayloadTooLargeError) as caught:
            read_json(raw, Bounds(values=held - 1, depth=400))
        assert caught.value.extra_info == {"max_values": held - 1}


MIB = 2**20
HOSTILE = {
    "empty lists": b"[" + b",".join([b"[]"] * (4 * MIB)) + b"]",
    "numbers": b"[" + b",".join([b"1"] * (4 * MIB)) + b"]",
    "objects": b"[" + b",".join([b'{"a":1}'] * MIB) + b"]",
    "nested": b"[" * (8 * MIB),
    "texts without commas": b"[" + b"," * 300_000 + b'""' * (4 * MIB),
    "commas in texts": b"[" + b'",,,,,,,,"' * MIB,
    "nothing but spaces": b"[" + b"," * 300_000 + b" " * (8 * MIB),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=list(HOSTILE))
def test_what_is_over_a_bound_is_refused_without_parsing_it(raw, monkeypatch):
    monkeypatch.setattr(bounds, "_DECODER", None)
    before_s = time.process_time()
    with pytest.raises((PayloadTooLargeError, InvalidRequestError)):
        read_json(raw, Bounds())
    assert time.process_time() - before_s < 5


def test_a_long_text_is_refused_and_a_picture_has_a_bound_of_its_own():
    narrow = Bounds(text=100, picture=1000)
    long = "a" * 101
    for value in ({"a": long}, {long: 1}, [[long]], long):
        with pytest.raises(PayloadTooLargeError) as caught:
            read_json(json.dumps(value).encode(), narrow)
        assert caught.value.extra_info == {"characters": 101, "max_characters": 100}
    picture = f"data:image/png;base64,{'A' * 900}"
    assert read_json(json.dumps([picture]).encode(), narrow) == [picture]
    with pytest.raises(PayloadTooLargeError) as caught:
        read_json(json.dumps([picture + "A" * 100]).encode(), narrow)
    assert caught.value.extra_info["max_characters"] == 1000


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    a: int = 0
    b: list[int] = []


def test_pydantic_sees_no_more_than_it_can_complain_of(monkeypatch):
    assert read_model(Asked, {"a": 3}).a == 3
    with pytest.raises(InvalidRequestError, match=r"^guard.zz: there is no such field"):
        read_model(Asked, {"zz": 1, **{f"k{number}": 1 for number in range(100_000)}}, "guard.")
    with pytest.raises(InvalidRequestError, match=r"a: "):
        read_model(Asked, {"a": "x"})
    monkeypatch.setattr(Asked, "model_validate", None)
    with pytest.raises(InvalidRequestError, match="more than 2000 values"):
        read_model(Asked, {"b": ["x"] * 2001})


def test_an_answer_quotes_the_beginning_of_what_came():
    long = "ж" * 100_000
    error = NotFoundError(
        f"There is no {long}.", details=long, extra_info={"a": long, long: [long]}, node_errors={long: {"b": [long]}}
    )
    body = error.body("en")
    assert body["error"]["extra_info"] == {
        "a": "ж" * (QUOTED - 1) + "…",
        "ж" * (QUOTED - 1) + "…": ["ж" * (QUOTED - 1) + "…"],
    }
    assert len(json.dumps(body, ensure_ascii=False)) < 6000


LONG = st.text(alphabet=st.sampled_from('a"\\\n я😀'), max_size=80)


@settings(max_examples=200)
@given(st.recursive(LONG | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(LONG, inner)), st.booleans())
def test_of_what_somebody_else_wrote_the_beginning_of_each_text_is_read(value, is_ascii):
    raw = json.dumps(value, ensure_ascii=is_ascii).encode()
    assert read_shortened(raw, 10**6) == value
    compare_beginnings(read_shortened(raw, 24), value)


def compare_beginnings(read, value):
    if isinstance(value, str):
        whole = read.rstrip("\ufffd").encode("utf-16", "replace").decode("utf-16", "replace").rstrip("\ufffd?")
        assert value.startswith(whole)
        assert read == value or len(json.dumps(value)) > 24
    elif isinstance(value, list):
        assert len(read) == len(value)
        for one, other in zip(read, value, strict=True):
            compare_beginnings(one, other)
    elif isinstance(value, dict):
        assert isinstance(read, dict)
    else:
        assert read == value
