"""Bodies that make a bare ComfyUI answer 500, stall or die. Here each is a typed 4xx, and the worker lives on."""

import copy
import json
import math
from typing import Any

import pytest
from contract.client import PlainClient, assert_ended_badly, assert_refusal, assert_succeeded, assert_typed_4xx, node
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfyui_guarded.tests.hosts.launch import HostProcess

GOOD = {"1": node("FaultText", text="x", seed=0)}
PICTURE = {
    "1": node("LoadImage", image="photo.png"),
    "2": node("ImageInvert", image=["1", 0]),
    "3": node("SaveImage", images=["2", 0], filename_prefix="fuzz"),
    "4": node("FaultText", text="x", seed=0),
}


@pytest.fixture(scope="module")
def plain(host: HostProcess):
    client = PlainClient(host)
    yield client
    client.close()


def raw(body: Any) -> bytes:
    return json.dumps(body).encode()


def prompt(graph: Any, **body: Any) -> bytes:
    return raw({"prompt": graph, **body})


def beside(loose: dict[str, Any], **body: Any) -> bytes:
    """A good prompt, with nodes in it that no output needs: ComfyUI does not look at those."""
    return prompt({**GOOD, **loose}, **body)


def deep(levels: int, inner: Any = 1) -> Any:
    for level in range(levels):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


def deep_text(levels: int) -> bytes:
    """json.dumps would itself run out of stack."""
    return b"[" * levels + b"]" * levels


BAD_BODIES: dict[str, bytes] = {
    # Not an object, or not JSON.
    "nothing": b"",
    "a space": b" ",
    "half a body": b'{"prompt": {"1"',
    "two bodies": raw({"prompt": GOOD}) * 2,
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": json.dumps({"prompt": GOOD}).encode("utf-16"),
    "a NUL": b"\0",
    "a form": b"prompt=%7B%7D&client_id=x",
    **{f"the body {text}": text.encode() for text in ("[]", "null", "1", "NaN", '"x"', "true", "[{}]", "-Infinity")},
    # The prompt is no graph.
    **{
        f"the prompt {value!r}": prompt(value)
        for value in (None, [], [GOOD], "x", "", 1, 1.5, True, {}, {"prompt": GOOD}, {"": None})
    },
    "no prompt": raw({}),
    "another key": raw({"promt": GOOD}),
    # Nodes.
    **{
        f"the node {value!r}": prompt({"1": value})
        for value in (None, [], "x", 1, True, {}, {"class_type": "FaultText"})
    },
    **{f"a loose node {value!r}": beside({"9": value}) for value in (None, [], "x", 1, {})},
    "a node without inputs": beside({"9": {"class_type": "EmptyImage"}}),
    "inputs null": beside({"9": {"class_type": "EmptyImage", "inputs": None}}),
    "inputs a list": beside({"9": {"class_type": "EmptyImage", "inputs": []}}),
    "no class": beside({"9": {"inputs": {}}}),
    **{f"the class {value!r}": beside({"9": {"class_type": value, "inputs": {}}}) for value in (None, 1, [], {}, "")},
    "an unknown class": beside({"9": {"class_type": "NoSuchNode", "inputs": {}}}),
    "a class of Python's": beside({"9": {"class_type": "__class__", "inputs": {}}}),
    "_meta a string": beside({"9": {**GOOD["1"], "_meta": "x"}}),
    "_meta null": beside({"9": {**GOOD["1"], "_meta": None}}),
    "a required input is missing": prompt({"1": node("SaveImage", filename_prefix="x")}),
    "nothing to put out": prompt({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}),
    "duplicate node ids": b'{"prompt": {"1": %s, "1": %s}}' % (raw(GOOD["1"]), raw(GOOD["1"])),
    "duplicate prompts": b'{"prompt": %s, "prompt": %s}' % (raw(GOOD), raw(GOOD)),
    "duplicate inputs": b'{"prompt": {"1": {"class_type": "FaultText", "inputs": {"text": "a", "text": "b"}}}}',
    # Links.
    "a link to nowhere": prompt({"1": node("SaveImage", images=["9", 0], filename_prefix="x")}),
    "a loose link to nowhere": beside({"8": node("ImageInvert", image=["9", 0])}),
    "a link to itself": prompt({"1": node("SaveImage", images=["1", 0], filename_prefix="x")}),
    "a loose link to itself": beside({"8": node("ImageInvert", image=["8", 0])}),
    "a loose circle": beside({"8": node("ImageInvert", image=["9", 0]), "9": node("ImageInvert", image=["8", 0])}),
    "a circle above an output": prompt(
        {
            "1": node("ImageInvert", image=["2", 0]),
            "2": node("ImageInvert", image=["1", 0]),
            "3": node("SaveImage", images=["1", 0], filename_prefix="x"),
        }
    ),
    "a circle of 900": prompt(
        {str(n): node("ImageInvert", image=[str((n + 1) % 900), 0]) for n in range(900)} | {"x": GOOD["1"]}
    ),
    "a link to no slot": prompt({"1": PICTURE["1"], "3": node("SaveImage", images=["1", 7], filename_prefix="x")}),
    "a link to slot -1": prompt({"1": PICTURE["1"], "3": node("SaveImage", images=["1", -99], filename_prefix="x")}),
    "a link of three": prompt({"1": PICTURE["1"], "3": node("SaveImage", images=["1", 0, 0], filename_prefix="x")}),
    "a link with a number for an id": prompt(
        {"1": PICTURE["1"], "3": node("SaveImage", images=[1, 0], filename_prefix="x")}
    ),
    "a link to a dict": prompt({"3": node("SaveImage", images=[{}, 0], filename_prefix="x")}),
    # Numbers.
    "NaN": b'{"prompt": {"1": {"class_type": "FaultSleep", "inputs": {"seconds": NaN}}}}',
    "Infinity": b'{"prompt": %s, "x": Infinity}' % raw(GOOD),
    "1e999": b'{"prompt": %s, "x": 1e999}' % raw(GOOD),
    "a huge whole number": b'{"prompt": %s, "x": %s}' % (raw(GOOD), b"9" * 5000),
    "a huge seed": prompt({"1": node("FaultText", text="x", seed=10**30)}),
    "a negative seed": prompt({"1": node("FaultText", text="x", seed=-1)}),
    # How deep.
    "60 levels": prompt(GOOD, x=deep(60)),
    "60 levels in an input": prompt({"1": node("FaultText", text=deep(60), seed=0)}),
    "900 levels of extra_data": prompt(GOOD, extra_data=deep(900)),
    "900 levels of _meta": beside({"9": {**GOOD["1"], "_meta": deep(900)}}),
    "100,000 levels": deep_text(100_000),
    "100,000 levels in the prompt": b'{"prompt": %s}' % deep_text(100_000),
    "100,000 levels of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    # What stands beside the prompt.
    **{f"extra_data {value!r}": prompt(GOOD, extra_data=value) for value in (None, [], "x", 1, False)},
    **{f"extra_pnginfo {value!r}": prompt(GOOD, extra_data={"extra_pnginfo": value}) for value in ("x", [], 1)},
    "a workflow that is a list": prompt(GOOD, extra_data={"extra_pnginfo": {"workflow": []}}),
    **{
        f"client_id {value!r}": prompt(GOOD, client_id=value) for value in ([], {}, ["x"], {"a": 1}, 1, True, "x" * 300)
    },
    "client_id a list in extra_data": prompt(GOOD, extra_data={"client_id": ["x"]}),
    "client_id a dict in extra_data": prompt(GOOD, extra_data={"client_id": {"a": 1}}),
    **{f"number {value!r}": prompt(GOOD, number=value) for value in ("x", "1", [], {}, True, 10**30)},
    **{f"front {value!r}": prompt(GOOD, front=value) for value in ("x", 1, [], None)},
    **{
        f"prompt_id {value!r}": prompt(GOOD, prompt_id=value)
        for value in (
            *(1, [], {}, True, "", "x", "../../x", "4B2F7C1E-0000-4000-8000-000000000000", "x" * 100_000),
            *("{4b2f7c1e-0000-4000-8000-000000000000}", "4b2f7c1e000040008000000000000000", " ", "\0"),
        )
    },
    **{
        f"partial_execution_targets {value!r}": prompt(GOOD, partial_execution_targets=value)
        for value in (1, "1", {}, [1])
    },
    **{
        f"guard {value!r}": prompt(GOOD, guard=value)
        for value in ([], "x", 1, {"x": 1}, {"timeout_s": "5"}, {"timeout_s": 0})
    },
    **{
        f"guard with {name} {value!r}": prompt(GOOD, guard={name: value})
        for name, value in (
            *(("timeout_s", -1), ("timeout_s", []), ("priority", 1.5), ("priority", 101), ("priority", "1")),
            *(("locale", 1), ("locale", "x" * 50), ("metadata", []), ("metadata", "x"), ("metadata", None)),
        )
    },
    "a timeout that is NaN": b'{"prompt": %s, "guard": {"timeout_s": NaN}}' % raw(GOOD),
    # Half of a surrogate pair, which no database or socket can carry.
    **{
        f"a lone surrogate in {where}": raw(body)
        for where, body in {
            "the text": {"prompt": {"1": node("FaultText", text="\ud800", seed=0)}},
            "a node id": {"prompt": {"\udc00": GOOD["1"]}},
            "client_id": {"prompt": GOOD, "client_id": "\ud800x"},
            "metadata": {"prompt": GOOD, "guard": {"metadata": {"\ud800": 1}}},
            "a key": {"prompt": GOOD, "\ud800": 1},
            "prompt_id": {"prompt": GOOD, "prompt_id": "\ud800"},
        }.items()
    },
    "an editor workflow": raw({"nodes": [], "links": [], "version": 0.4}),
    "an editor workflow as prompt": prompt({"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "groups": []}),
    "20,000 nodes": prompt({str(n): GOOD["1"] for n in range(20_000)}),
}


@pytest.mark.parametrize("name", BAD_BODIES, ids=lambda name: name[:60])
def test_a_bad_body_is_a_typed_4xx_and_the_worker_lives(plain, name):
    answer = plain.post(BAD_BODIES[name])
    assert_typed_4xx(answer)
    assert_succeeded(plain.run(GOOD))


GOOD_BODIES: dict[str, bytes] = {
    "unknown top-level fields": prompt(GOOD, anything={"goes": [1, None]}),
    "nulls where nothing need be": prompt(GOOD, client_id=None, number=None, prompt_id=None),
    "a whole surrogate pair": prompt({"1": node("FaultText", text="\U0001f600", seed=0)}),
    "odd node ids": prompt({"": GOOD["1"], "a b": GOOD["1"], "ё": GOOD["1"], "1:2": GOOD["1"]}),
    "30 levels": prompt(GOOD, x=deep(30)),
    "a title": prompt({"1": {**GOOD["1"], "_meta": {"title": "T"}}}),
    "an unneeded input": prompt({"1": node("FaultText", text="x", seed=0, unknown=[1, 2, 3])}),
    "a loose node that is sound": beside({"9": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}),
    "a priority and a timeout": prompt(GOOD, guard={"priority": -100, "timeout_s": 5}),
    "a null guard": prompt(GOOD, guard=None),
    "an empty client_id": prompt(GOOD, client_id=""),
    "extra_data with an unknown key": prompt(GOOD, extra_data={"a": [1], "extra_pnginfo": {"x": 1}}),
}


@pytest.mark.parametrize("name", GOOD_BODIES)
def test_an_odd_but_sound_body_is_let_in_and_succeeds(plain, name):
    answer = plain.post(GOOD_BODIES[name], "/guarded/prompt?wait=60")
    assert answer.status == 200, answer
    assert_succeeded(answer.json["guard"]["job"])


# Mutations of a good prompt. ----------------------------------------------------------------------------------

#: Small enough that no node makes a huge picture of them, or huge enough to be refused.
_numbers = st.sampled_from([0, 1, -1, 7, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, -1.5, 1e308, math.nan, math.inf])
_texts = st.sampled_from(
    [
        *("", "x", "1", "7", "photo.png", "../../x", "a/b", "C:\\x", "%date%", "\0", "\ud800", "ё" * 300, "x" * 5000),
        *("FaultText", "SaveImage", "ImageInvert", "LoadImage", "prompt", "inputs", "None", "__class__"),
    ]
)
_scalars = st.none() | st.booleans() | _numbers | _texts
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_links = st.tuples(st.sampled_from(["1", "2", "3", "4", "9", 1, None]), st.sampled_from([0, 1, -1, 0.5, "0"])).map(list)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good body with up to four changes, each at some place of it: put, dropped, renamed or copied elsewhere."""
    body: dict[str, Any] = {"prompt": copy.deepcopy(PICTURE), "extra_data": {"extra_pnginfo": {}}}
    for _ in range(draw(st.integers(1, 4))):
        holder = draw(st.sampled_from(_holders(body)))
        if isinstance(holder, list):
            if holder:
                holder[draw(st.integers(0, len(holder) - 1))] = draw(_values)
            continue
        known = sorted(key for key in holder if isinstance(key, str))
        key = draw(st.sampled_from(known)) if known and draw(st.booleans()) else draw(_keys)
        match draw(st.sampled_from(["put", "link", "drop", "rename", "copy"])):
            case "put":
                holder[key] = draw(_values)
            case "link":
                holder[key] = draw(_links)
            case "drop":
                holder.pop(key, None)
            case "rename":
                holder[draw(_texts)] = holder.pop(key, None)
            case "copy":
                holder[key] = copy.deepcopy(draw(st.sampled_from(_holders(body))))
    return raw(body)


_keys = _texts | st.sampled_from(["client_id", "number", "front", "prompt_id", "guard", "extra_data", "_meta", "5"])


def _holders(value: Any) -> list[Any]:
    """Every dict and list in there, the outermost first."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for item in inner for found in _holders(item))]


def check_mutation(plain: PlainClient, body: bytes) -> None:
    answer = plain.post(body, "/guarded/prompt?wait=60")
    if answer.status != 200:
        assert_typed_4xx(answer)
        return
    job = answer.json["guard"]["job"]
    if job["state"] == "succeeded":
        assert_succeeded(job)
    else:
        assert_ended_badly(job, job["error"]["code"])
        assert job["error"]["code"] not in ("internal_error", "worker_died", "generation_timeout"), job


#: One server for all examples is the point.
_shared = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@given(mutated())
@settings(**_shared)
@example(prompt(PICTURE))
def test_a_mutated_prompt_is_refused_by_type_or_settles(plain, body):
    check_mutation(plain, body)


@given(
    st.binary(max_size=60)
    | _values.map(raw)
    | _values.map(prompt)
    | st.text(max_size=30).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
@settings(**_shared)
def test_junk_is_refused_by_type(plain, body):
    assert_refusal(plain.post(body))


def test_the_worker_lives_after_all_that(plain):
    assert_succeeded(plain.run(GOOD))
    assert plain.get("/guarded/ready").json == {"status": "ready"}
