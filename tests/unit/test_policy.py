"""What a prompt may ask for."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from unit.fakes import settings

from comfyui_guarded.guard.client import LOCAL, Client, KeyLimits
from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.settings import PROFILES, PolicySettings, SettingsError, load
from comfyui_guarded.guard.submit import policy
from comfyui_guarded.guard.submit.key_policies import KeyPolicies
from comfyui_guarded.guard.submit.policy import Policy


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def checking(graph, **limits):
    return Policy(PolicySettings.model_validate(limits)).check(graph)


def violation(graph, **limits):
    with pytest.raises(PolicyViolationError) as caught:
        checking(graph, **limits)
    error = caught.value
    json.dumps(error.body("ru"))
    assert error.status == 422
    return error


def sampler(steps):
    return node("KSampler", steps=steps, cfg=8.0, seed=2**63)


# Steps, frames, seconds. -----------------------------------------------------------------------------------------


def test_a_violation_names_node_input_value_and_limit():
    error = violation({"3": sampler(500)}, max_steps=100)
    assert error.message == "KSampler (node 3) asks for 500 steps (input steps); at most 100 are allowed."
    assert error.details == "policy.max_steps"
    assert error.extra_info == {
        "node_id": "3",
        "class_type": "KSampler",
        "input": "steps",
        "value": 500,
        "limit": 100,
    }


@pytest.mark.parametrize(
    "value",
    [
        101,
        1e9,
        "101",
        " 101 ",
        "1_01",
        "１０１",
        "1e5",
        "inf",
        10**400,
        {"__value__": 101},
        {"__value__": {"__value__": "101"}},
    ],
    ids=repr,
)
def test_a_number_counts_however_comfyui_would_come_by_it(value):
    violation({"3": sampler(value)}, max_steps=100)


@pytest.mark.parametrize("value", [100, 1, 0, -5, "100", "many", None, [], {}, True, "nan", ["no such", 0]], ids=repr)
def test_what_is_within_the_limit_or_no_number_passes(value):
    checking({"3": sampler(value)}, max_steps=100)


@pytest.mark.parametrize(
    ("inputs", "limits"),
    [
        ({"num_inference_steps": 101}, {"max_steps": 100}),
        ({"length": 121}, {"max_frames": 120}),
        ({"video_frames": 121}, {"max_frames": 120}),
        ({"frame_load_cap": 121}, {"max_frames": 120}),
        ({"seconds": 30.1}, {"max_seconds": 30}),
        ({"duration": 31}, {"max_seconds": 30}),
        ({"options.duration": 31}, {"max_seconds": 30}),
        ({"num_frames": 241, "fps": 8}, {"max_seconds": 30}),
        ({"num_frames": 240, "frame_rate": 7.9}, {"max_seconds": 30}),
    ],
    ids=str,
)
def test_steps_frames_and_seconds_are_known_by_the_names_of_inputs(inputs, limits):
    violation({"1": node("Some Pack's Node", **inputs)}, **limits)
    checking({"1": node("Some Pack's Node", **inputs)}, **{name: limit * 2 for name, limit in limits.items()})


FILM = {
    "1": node("WanImageToVideo", width=832, height=480, length=["9", 0], batch_size=1),
    "2": node("KSampler", latent_image=["1", 2], steps=20),
    "3": node("VAEDecode", samples=["2", 0], vae=["4", 0]),
    "4": node("VAELoader", vae_name="wan.safetensors"),
    "5": node("VHS_VideoCombine", images=["3", 0], frame_rate=["8", 0]),
    "8": node("PrimitiveFloat", value=16.0),
    "9": node("PrimitiveInt", value=481),
}


def test_the_seconds_of_a_film_are_its_frames_over_its_rate():
    checking(FILM, max_seconds=30.1)
    error = violation(FILM, max_seconds=30)
    assert (error.extra_info["node_id"], error.extra_info["input"]) == ("5", "frame_rate")
    assert error.extra_info["value"] == pytest.approx(481 / 16)


def test_frames_made_between_frames_count():
    graph = {**FILM, "6": node("RIFE VFI", frames=["3", 0], multiplier=4)}
    graph["5"] = node("VHS_VideoCombine", images=["6", 0], frame_rate=64)
    checking(FILM, max_frames=500)
    assert violation(graph, max_frames=500).extra_info["value"] == 481 * 4


# Pixels. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        {"width": 1025, "height": 1024},
        {"width": 512, "height": 512, "batch_size": 5},
        {"custom_width": 2048, "custom_height": 513},
        {"empty_latent_width": 1024, "empty_latent_height": 1025},
        {"resize_type": "scale dimensions", "resize_type.width": 2048, "resize_type.height": 2048},
        {"resize_type.longer_size": 1025},
        {"largest_size": 1025},
        {"megapixels": 1.01},
        {"width": 2**21, "height": ["unknown", 0]},
        {"width": 0, "height": 2**21},
        {"height": 2**21},
    ],
    ids=str,
)
def test_width_times_height_times_batch_is_limited(inputs):
    error = violation({"1": node("Some Node", **inputs)}, max_pixels=2**20)
    assert error.extra_info["limit"] == 2**20
    checking(
        {"1": node("Some Node", **inputs)}, max_pixels=2**24 if len(inputs) > 1 and 0 not in inputs.values() else 2**43
    )


def test_a_picture_scaled_up_again_and_again_is_counted_as_large_as_it_gets():
    graph = {"0": node("EmptyLatentImage", width=512, height=512, batch_size=1)}
    for step in range(1, 4):
        graph[str(step)] = node("LatentUpscaleBy", samples=[str(step - 1), 0], scale_by=8.0)
    error = violation(graph, max_pixels=4096 * 4096)
    assert (error.extra_info["node_id"], error.extra_info["input"]) == ("2", "scale_by")


@pytest.mark.parametrize(
    "grows",
    [
        {"1": node("RepeatLatentBatch", samples=["0", 0], amount=64)},
        {"1": node("RepeatImageBatch", image=["0", 0], amount=64)},
        {"1": node("VHS_DuplicateImages", images=["0", 0], multiply_by=64)},
        {str(step): node("ImageBatch", image1=[str(step - 1), 0], image2=[str(step - 1), 0]) for step in range(1, 900)},
    ],
    ids=["latents", "images", "vhs", "joined"],
)
def test_a_batch_that_grows_on_the_way_is_counted(grows):
    graph = {"0": node("EmptyLatentImage", width=512, height=512, batch_size=1), **grows}
    checking({"0": graph["0"]}, max_pixels=2**20)
    violation(graph, max_pixels=2**20)


def test_a_picture_taken_out_of_a_batch_is_one():
    graph = {
        "0": node("EmptyLatentImage", width=512, height=512, batch_size=4),
        "1": node("LatentFromBatch", samples=["0", 0], batch_index=0, length=1),
        "2": node("LatentUpscale", samples=["1", 0], width=1024, height=1024),
    }
    checking(graph, max_pixels=2**20)


def test_the_canvas_of_a_text_is_no_picture():
    def describe(_class_type):
        return Declared({"clip": "CLIP", "width": "INT", "height": "INT"}, (("CONDITIONING", "CONDITIONING"),))

    policy = Policy(PolicySettings(max_pixels=2**20), describe=describe)
    policy.check({"1": node("CLIPTextEncodeSDXL", width=4096, height=4096)})


# Links. ----------------------------------------------------------------------------------------------------------

CONSTANTS = [
    lambda value: node("PrimitiveInt", value=value),
    lambda value: node("INTConstant", value=value),
    lambda value: node("Int", Value=value),
    lambda value: node("easy int", value=value),
    lambda value: node("ImpactInt", value=value),
    lambda value: node("Primitive integer [Crystools]", int=value),
    lambda value: node("SimpleMathInt+", value=value),
    lambda value: node("CR Value", value=value),
    lambda value: node("Constant Number", number_type="integer", number=value),
    lambda value: node("Constant Number", number_type="integer", number=1, number_as_text=str(value)),
    lambda value: node("ComfySwitchNode", switch=False, on_false=value, on_true=1),
    lambda value: node("easy ifElse", boolean=True, on_false=1, on_true=value),
    lambda value: node("ImpactConditionalBranch", cond=True, tt_value=value, ff_value=1),
]


@pytest.mark.parametrize("constant", CONSTANTS, ids=lambda make: make(0)["class_type"])
def test_a_constant_is_seen_through_a_link(constant):
    graph = {"1": sampler(["2", 0]), "2": constant(101)}
    assert violation(graph, max_steps=100).extra_info["value"] == 101
    checking({**graph, "2": constant(100)}, max_steps=100)


def test_a_value_that_cannot_be_known_is_allowed_unless_the_policy_is_strict():
    graph = {
        "1": sampler(["2", 0]),
        "2": node("ComfyMathExpression", expression="a * random()", **{"values.a": ["3", 0]}),
        "3": node("PrimitiveInt", value=100),
    }
    checking(graph, max_steps=100)
    error = violation(graph, max_steps=100, strict=True)
    assert (error.details, error.extra_info["input"]) == ("policy.strict", "steps")
    checking({"1": sampler(["3", 0]), "3": graph["3"]}, max_steps=100, strict=True)
    checking(graph, max_frames=100, strict=True)


def test_of_a_switch_only_the_branch_counts_that_is_taken():
    switch = {"switch": False, "on_true": 500, "on_false": 20}
    graph = {"1": sampler(["2", 0]), "2": node("ComfySwitchNode", **switch)}
    checking(graph, max_steps=100, strict=True)
    violation({**graph, "2": node("ComfySwitchNode", **{**switch, "switch": ["3", 0]})}, max_steps=100)
    violation(
        {**graph, "2": node("ComfySwitchNode", **{**switch, "switch": ["3", 0], "on_false": ["4", 0]})}, max_steps=100
    )


def test_a_switch_between_the_known_and_the_unknown_is_unknown():
    graph = {
        "1": node("EmptyLatentImage", width=["2", 0], height=64, batch_size=1),
        "2": node("ComfySwitchNode", switch=["3", 0], on_true=64, on_false=["3", 0]),
        "3": node("GetImageSize", image=["4", 0]),
        "4": node("LoadImage", image="photo.png"),
    }
    checking(graph, max_pixels=2**20)
    assert violation(graph, max_pixels=2**20, strict=True).extra_info["node_id"] == "1"


LIMIT = 100
_ids = st.sampled_from([str(number) for number in range(12)])
_values = st.one_of(
    st.integers(-200, 200),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.booleans(),
    st.none(),
    st.tuples(_ids, st.sampled_from([0, 1, True, 0.0])).map(list),
    st.lists(st.integers(), max_size=3),
    st.integers(0, 200).map(lambda value: {"__value__": value}),
)
_names = st.one_of(
    st.sampled_from(["steps", "width", "height", "batch_size", "value", "on_true", "on_false", "fps", "length"]),
    st.sampled_from(["seconds", "amount", "megapixels", "scale_by", "images", "multiplier", "resize_type.multiplier"]),
    st.sampled_from(["width_height", "heightwidth"]),
)
_classes = st.sampled_from(
    [
        "KSampler",
        "PrimitiveInt",
        "ComfySwitchNode",
        "ImageBatch",
        "RepeatImageBatch",
        "LatentFromBatch",
        "RIFE VFI",
        "x*?[",
    ]
)
_graphs = st.dictionaries(
    _ids, st.builds(lambda kind, inputs: node(kind, **inputs), _classes, st.dictionaries(_names, _values, max_size=4))
)


@given(_graphs, st.booleans())
def test_whatever_the_graph_the_policy_answers(graph, strict):
    """Circles, links to nowhere and to itself, NaN and infinity included."""
    try:
        checking(graph, max_pixels=10**6, max_steps=LIMIT, max_frames=LIMIT, max_seconds=LIMIT, strict=strict)
    except PolicyViolationError as error:
        json.dumps(error.body("en"), allow_nan=False)


@st.composite
def chains(draw):
    """A number behind any chain of nodes that hand it on, among others that end there too."""
    value = draw(st.integers(LIMIT + 1, sys.maxsize))
    graph = {"0": draw(st.sampled_from(CONSTANTS))(value)}
    for step in range(1, draw(st.integers(1, 40))):
        before = [str(step - 1), draw(st.sampled_from([0, 1]))]
        match draw(st.sampled_from(["constant", "switch", "crossing"])):
            case "constant":
                graph[str(step)] = node(draw(st.sampled_from(["PrimitiveInt", "INTConstant", "Reroute"])), value=before)
            case "switch":
                other = draw(st.integers(-LIMIT, LIMIT))
                switch = draw(st.sampled_from([True, ["unknown", 0]]))
                graph[str(step)] = node("ComfySwitchNode", switch=switch, on_true=before, on_false=other)
            case "crossing":
                graph[f"c{step}"] = node("INTConstant", value=draw(st.integers(0, LIMIT)))
                graph[str(step)] = node("easy ifElse", boolean=False, on_true=[f"c{step}", 0], on_false=before)
    last = str(len([node_id for node_id in graph if node_id.isdigit()]) - 1)
    graph["end"] = sampler([last, 0])
    order = draw(st.permutations(sorted(graph)))
    return {node_id: graph[node_id] for node_id in order}


@given(chains())
def test_no_chain_of_constants_hides_a_number_above_the_limit(graph):
    error = violation(graph, max_steps=LIMIT)
    assert error.extra_info["node_id"] == "end"
    assert error.extra_info["value"] is None or error.extra_info["value"] > LIMIT


@given(chains())
def test_a_number_within_the_limit_passes_any_chain(graph):
    checking(graph, max_steps=sys.maxsize + 1, strict=True)


COST = str(Path(policy.__file__).parents[1] / "cost")


def _steps_of_work(graph):
    """How many lines the policy runs for a graph: unlike seconds, the same on every machine."""
    checked = Policy(settings(policy={"max_steps": 10**9, "max_pixels": 10**24}).policy)
    count = 0

    def trace(frame, event, _argument):
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename.startswith((policy.__file__, COST)) else None

    sys.settrace(trace)
    try:
        checked.check(graph)
    finally:
        sys.settrace(None)
    return count


def _chain(length):
    graph = {"0": node("PrimitiveInt", value=5)}
    for step in range(1, length):
        graph[str(step)] = node("INTConstant", value=[str(step - 1), 0])
    return graph


def _star(length):
    """Each node looks through the same chain."""
    return {**_chain(length), **{f"s{step}": sampler([str(length - 1), 0]) for step in range(length)}}


def _doubled(length):
    graph = {"0": node("EmptyImage", width=8, height=8, batch_size=1)}
    for step in range(1, length):
        graph[str(step)] = node("ImageBatch", image1=[str(step - 1), 0], image2=[str(step - 1), 0])
    return graph


def _ring(length):
    return {str(step): node("INTConstant", value=[str((step + 1) % length), 0]) for step in range(length)}


@pytest.mark.parametrize("made", [_chain, _star, _doubled, _ring])
def test_the_work_grows_with_the_graph_and_no_faster(made):
    small, large = _steps_of_work(made(60)), _steps_of_work(made(240))
    assert large < 4.4 * small


# Classes. --------------------------------------------------------------------------------------------------------

GRAPH = {"1": node("LoadImage", image="a.png"), "2": node("SaveImage", images=["1", 0])}


@pytest.mark.parametrize("pattern", ["LoadImage", "Load*", "*", "?oadImage", "*Image"])
def test_a_denied_class_is_refused_by_name(pattern):
    error = violation(GRAPH, deny_nodes=["Nothing", pattern])
    assert error.message == "LoadImage (node 1) is denied on this server."
    assert error.extra_info == {
        "node_id": "1",
        "class_type": "LoadImage",
        "input": "class_type",
        "value": "LoadImage",
        "limit": pattern,
    }


@pytest.mark.parametrize("pattern", ["loadimage", "Load", "LoadImages?", "[LS]*", "Load.*"])
def test_a_pattern_means_what_it_says(pattern):
    checking(GRAPH, deny_nodes=[pattern])


def test_brackets_in_a_class_name_are_brackets():
    graph = {"1": node("Primitive integer [Crystools]", int=1)}
    violation(graph, deny_nodes=["* [Crystools]"])
    checking({"1": node("Primitive integer C", int=1)}, deny_nodes=["* [Crystools]"])


def test_only_allowed_classes_pass_where_some_are_named():
    checking(GRAPH, allow_nodes=["LoadImage", "Save*"])
    assert violation(GRAPH, allow_nodes=["LoadImage"]).extra_info["value"] == "SaveImage"
    violation(GRAPH, allow_nodes=["*"], deny_nodes=["SaveImage"])


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_pattern_can_be_set(pattern, kind):
    assume(pattern)
    try:
        checking({"1": node(kind)}, deny_nodes=[pattern])
    except PolicyViolationError:
        assert "*" in pattern or "?" in pattern or pattern == kind


# Profiles. -------------------------------------------------------------------------------------------------------


def test_a_profile_stands_in_for_the_defaults(tmp_path):
    found = load(None, {"GUARDED_POLICY__PROFILE": "a5000"}).policy
    assert found.vram_budget_gb == 20
    assert found.max_pixels == 4096 * 4096
    assert found.max_nodes == PolicySettings().max_nodes


def test_what_is_set_explicitly_wins_over_the_profile(tmp_path):
    (tmp_path / "guarded.toml").write_text('[policy]\nprofile = "a5000"\nmax_steps = 30\n')
    found = load(tmp_path / "guarded.toml", {"GUARDED_POLICY__MAX_FRAMES": "0"}).policy
    assert (found.max_steps, found.max_frames) == (30, 0)
    assert found.max_pixels == 4096 * 4096


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match=r"policy\.profile.*a5000"):
        load(None, {"GUARDED_POLICY__PROFILE": "a9000"})


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_lets_a_usual_picture_and_film_pass(name):
    picture = {
        "1": node("EmptyLatentImage", width=1024, height=1024, batch_size=4),
        "2": node("KSampler", latent_image=["1", 0], steps=30),
        "3": node("VAEDecode", samples=["2", 0]),
    }
    film = {**FILM, "9": node("PrimitiveInt", value=81)}
    for graph in (picture, film):
        checking(graph, profile=name)
    violation({"1": sampler(10_000)}, profile=name)


# The limits of a key. ---------------------------------------------------------------------------------------------


def keyed(graph, server=None, **limits):
    policies = KeyPolicies(PolicySettings.model_validate(server or {}))
    policies.check(graph, Client("bot", operator=False, key_id="1", limits=KeyLimits(**limits)))


def one(kind="KSampler", /, **inputs):
    return {"1": {"class_type": kind, "inputs": inputs}}


@pytest.mark.parametrize(
    ("graph", "limits", "setting"),
    [
        (one("LoadImage"), {"allow_nodes": ("KSampler", "Save*")}, "key.allow_nodes"),
        (one("SaveImage"), {"deny_nodes": ("Save*",)}, "key.deny_nodes"),
        (one(steps=31), {"max_steps": 30}, "key.max_steps"),
        (one("EmptyImage", width=1025, height=1024, batch_size=1), {"max_pixels": 1024 * 1024}, "key.max_pixels"),
        (one(steps=101), {"profile": "a5000"}, "key.max_steps"),
    ],
)
def test_a_keys_own_limits_hold_beside_the_servers(graph, limits, setting):
    with pytest.raises(PolicyViolationError) as caught:
        keyed(graph, **limits)
    assert caught.value.details == setting
    keyed(graph)


def test_a_key_can_only_be_tighter():
    many = {str(number): one()["1"] for number in range(1500)}
    keyed(many, {"max_nodes": 2000, "keyed_max_nodes": 2000}, max_steps=30)  # its own limits bring no other along
    with pytest.raises(PolicyViolationError, match="whose value only the run can tell"):
        keyed(one(steps=["2", 0]), {"strict": True}, max_steps=30)
    keyed(one(steps=60), profile="a5000", max_steps=60)
    with pytest.raises(PolicyViolationError):
        keyed(one(steps=61), profile="a5000", max_steps=60)


def follow(count: int) -> dict:
    """Nodes of which each feeds the next."""
    first = {"0": {"class_type": "EmptyImage", "inputs": {}}}
    links = {str(n): {"class_type": "ImageInvert", "inputs": {"image": [str(n - 1), 0]}} for n in range(1, count)}
    return {**first, **links}


def test_a_key_that_is_no_operators_sends_fewer_nodes_and_shorter_chains():
    policies = KeyPolicies(PolicySettings(keyed_max_nodes=40, keyed_max_chain=20))
    bot, operator = Client("bot", operator=False, key_id="1"), Client("boss", operator=True, key_id="2")
    policies.check(follow(20), bot)
    with pytest.raises(PolicyViolationError) as caught:
        policies.check(follow(21), bot)
    assert caught.value.extra_info == {"nodes": 21, "max_chain": 20}
    policies.check(follow(21), operator)
    beside = {str(number): {"class_type": "EmptyImage", "inputs": {}} for number in range(41)}
    with pytest.raises(PolicyViolationError) as caught:
        policies.check(beside, bot)
    assert caught.value.extra_info == {"nodes": 41, "max_nodes": 40}
    policies.check(beside, operator)
    policies.check(beside, LOCAL)
    del beside["40"]
    policies.check(beside, bot)
