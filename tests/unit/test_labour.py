"""What a key's prompt would do that nothing can interrupt."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui_guarded.guard.client import Client
from comfyui_guarded.guard.cost.bits import bound_bits
from comfyui_guarded.guard.cost.patterns import bound_steps
from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.key_policies import KeyPolicies

TEXT = (("STRING", "STRING"),)
DECLARED = {
    "PrimitiveString": Declared({"value": "STRING"}, TEXT),
    "PrimitiveInt": Declared({"value": "INT"}, (("INT", "INT"),)),
    "PrimitiveFloat": Declared({"value": "FLOAT"}, (("FLOAT", "FLOAT"),)),
    "StringConcatenate": Declared({"string_a": "STRING", "string_b": "STRING", "delimiter": "STRING"}, TEXT),
    "StringReplace": Declared({"string": "STRING", "find": "STRING", "replace": "STRING"}, TEXT),
    "StringSubstring": Declared({"string": "STRING", "start": "INT", "end": "INT"}, TEXT),
    "StringFormat": Declared({"values": "COMFY_AUTOGROW_V3", "f_string": "STRING"}, TEXT, takes_more=True),
    "RegexMatch": Declared(
        {"string": "STRING", "regex_pattern": "STRING", "multiline": "BOOLEAN"}, (("BOOLEAN", "matches"),)
    ),
    "RegexExtract": Declared({"string": "STRING", "regex_pattern": "STRING", "mode": "COMBO"}, TEXT),
    "RegexReplace": Declared(
        {"string": "STRING", "regex_pattern": "STRING", "replace": "STRING", "count": "INT"}, TEXT
    ),
    "ComfyMathExpression": Declared(
        {"expression": "STRING", "values": "COMFY_AUTOGROW_V3"},
        (("FLOAT", "FLOAT"), ("INT", "INT"), ("BOOLEAN", "BOOL")),
        takes_more=True,
    ),
    "Joiner": Declared({"one": "STRING", "two": "STRING"}, TEXT),
    "TextRepeat": Declared({"text": "STRING", "count": "INT"}, TEXT),
    "CustomCombo": Declared({"choice": "COMBO"}, (("STRING", "STRING"), ("INT", "INDEX")), takes_more=True),
    "PreviewAny": Declared({"source": "*"}, TEXT),
    "ListJoin": Declared({"a": "*", "b": "*"}, (("*", "list"),), takes_lists=True, lists=frozenset({0})),
    "ComfySwitchNode": Declared({"switch": "BOOLEAN", "on_false": "*", "on_true": "*"}, (("*", "output"),)),
    "TextGenerate": Declared({"clip": "CLIP", "prompt": "STRING", "max_length": "INT"}, TEXT),
    "CLIPLoader": Declared({"clip_name": "COMBO"}, (("CLIP", "CLIP"),)),
    "CLIPTextEncode": Declared({"text": "STRING", "clip": "CLIP"}, (("CONDITIONING", "CONDITIONING"),)),
    "ConditioningCombine": Declared(
        {"conditioning_1": "CONDITIONING", "conditioning_2": "CONDITIONING"}, (("CONDITIONING", "CONDITIONING"),)
    ),
    "ControlNetApplyAdvanced": Declared(
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "strength": "FLOAT"},
        (("CONDITIONING", "positive"), ("CONDITIONING", "negative")),
    ),
    "PairConditioningCombine": Declared(
        {f"{which}_{at}": "CONDITIONING" for at in "AB" for which in ("positive", "negative")},
        (("CONDITIONING", "positive"), ("CONDITIONING", "negative")),
    ),
    "ToPipe": Declared({"clip": "CLIP", "positive": "CONDITIONING"}, (("PIPE", "pipe"),)),
    "FromPipe": Declared({"pipe": "PIPE"}, (("CLIP", "clip"), ("CONDITIONING", "positive"))),
    "ModelMergeSimple": Declared({"model1": "MODEL", "model2": "MODEL", "ratio": "FLOAT"}, (("MODEL", "MODEL"),)),
    "BuildJsonPrompt": Declared({"element": "ARRAY", "background": "STRING"}, (("DICT", "prompt"),)),
    "ConvertDictionaryToString": Declared({"dictionary": "DICT", "indent": "INT"}, TEXT),
    "EmptyImage": Declared({"width": "INT", "height": "INT", "batch_size": "INT"}, (("IMAGE", "IMAGE"),)),
    "Sigmas": Declared({"steps": "INT"}, (("SIGMAS", "SIGMAS"),)),
    "SplitSteps": Declared({"sigmas": "SIGMAS", "start_step": "INT", "end_step": "INT"}, (("SIGMAS", "SIGMAS"),)),
    "TextOverlay": Declared({"images": "IMAGE", "text": "STRING"}, (("IMAGE", "IMAGE"),)),
    "Weights": Declared({"text": "STRING"}, (("FLOAT", "FLOAT"),)),
    "ExtendWeights": Declared({"one": "FLOAT", "other": "FLOAT"}, (("FLOAT", "FLOAT"),)),
    "ImageBlur": Declared(
        {"image": "IMAGE", "blur_radius": "INT", "seed": "INT"},
        (("IMAGE", "IMAGE"),),
        most={"blur_radius": 31, "seed": 2**64 - 1},
    ),
    "LoadImage": Declared({"image": "COMBO"}, (("IMAGE", "IMAGE"),)),
    "GetImageSize": Declared({"image": "IMAGE"}, (("INT", "width"), ("INT", "height"))),
    "SomebodysDigits": Declared({"text": "STRING"}, (("INT", "INT"),)),
    "Tiles": Declared({"image": "IMAGE"}, (("IMAGE", "IMAGE"),), lists=frozenset({0})),
    "EmptyLatentImage": Declared({"width": "INT", "height": "INT", "batch_size": "INT"}, (("LATENT", "LATENT"),)),
}
BOT = Client("bot", operator=False, key_id="1")


def node(kind, /, **inputs):
    return {"class_type": kind, "inputs": {name.replace("__", "."): value for name, value in inputs.items()}}


def check(graph, client=BOT):
    KeyPolicies(PolicySettings(), lambda kind: DECLARED.get(kind, Declared())).check(graph, client)


def refused(graph):
    with pytest.raises(PolicyViolationError) as caught:
        check(graph)
    json.dumps(caught.value.body("ru"))
    check(graph, Client("boss", operator=True, key_id="2"))
    return caught.value


def chain(count, kind, one, other, **more):
    made = {"0": node("PrimitiveString", value="x" * 64)}
    for at in range(count):
        made[str(at + 1)] = node(kind, **{one: [str(at), 0], other: [str(at), 0]}, **more)
    return made


def quoted(count):
    """A text in JSON in JSON: each writes the signs before a quotation mark twice."""
    made = {"0": node("PrimitiveString", value='"' * 64)}
    for at in range(count):
        made[f"dict{at}"] = node("BuildJsonPrompt", background=[str(at), 0])
        made[str(at + 1)] = node("ConvertDictionaryToString", dictionary=[f"dict{at}", 0], indent=0)
    return made


def nested(depth, width):
    value = ["x"]
    for _ in range(depth):
        value = [*([1] * width), value]
    return value


A = "a" * 60 + "b"


@pytest.mark.parametrize(
    "graph",
    [
        chain(45, "StringConcatenate", "string_a", "string_b", delimiter=""),
        chain(45, "Joiner", "one", "two"),
        chain(45, "ClassNobodyKnows", "one", "two"),
        chain(45, "ListJoin", "a", "b"),
        chain(45, "StringFormat", "values__a", "values__b", f_string="{a}{b}"),
        {"1": node("StringReplace", string="x" * 100_000, find="x", replace="y" * 100_000)},
        {"1": node("StringReplace", string="x" * 100_000, find="", replace="y" * 100_000)},
        {"1": node("RegexReplace", string="x" * 3000, regex_pattern="", replace="y" * 3000)},
        {"1": node("RegexReplace", string="x" * 3000, regex_pattern="(?=(.*))", replace=r"\1\1\1\1")},
        {"1": node("StringFormat", f_string="{a:>99999999999}", values__a=1)},
        {"1": node("StringFormat", f_string="{a:.99999999f}", values__a=1.0)},
        {"1": node("StringFormat", f_string="{a:>{b}}", values__a=1, values__b=10**9)},
        {
            "1": node("StringFormat", f_string="{a.__class__.__init__.__globals__}", values__a=["2", 0]),
            "2": node("PrimitiveInt", value=1),
        },
        {"1": node("TextRepeat", text="x" * 10_000, count=10_000)},
        quoted(20),
        {"1": node("PreviewAny", source=nested(45, 3000))},
        {"1": node("StringFormat", f_string="{a:f}" * 30_000, values__a=1e308)},
        {"1": node("StringFormat", f_string="{a:f}" * 30_000, values__a=["2", 0]),
         "2": node("PrimitiveFloat", value=1e308)},
        {"1": node("StringFormat", f_string="{a}" * 3000, values__a=["\U000e0001" * 100])},
        {"1": node("JsonExtractString", json_string=json.dumps({"a": ["\U000e0001" * 110_000]}, ensure_ascii=False))},
        {"1": node("RegexReplace", string="x" * 1000, regex_pattern="|x", replace="y" * 600)},
        {"1": node("TextReplace", written="x" * 10_000, find="x", replace="y" * 10_000)},
        {"1": node("StringFormat", f_string="x" * 20_000, values__a=["2", 0]), "2": node("Tiles", image=["3", 0]),
         "3": node("EmptyImage", width=64, height=64, batch_size=100)},
        {"1": node("PreviewAny", source=["2", 0]), "2": node("ListJoin", a=["3", 0], b=["3", 0]),
         "3": node("ListJoin", a=["4", 0], b=["4", 0]), "4": node("ListJoin", a=["5", 0], b=["5", 0]),
         "5": node("EmptyLatentImage", width=512, height=512, batch_size=64)},
        {str(at): node("PrimitiveString", value="x" * 1_000_000) for at in range(40)},
        {"1": node("StringFormat", f_string=["2", 0], values__a=1), "2": node("TextGenerate", clip=["3", 0]),
         "3": node("CLIPLoader")},
    ],
)  # fmt: skip
def test_texts_that_outgrow_the_memory_are_refused(graph):
    refused(graph)


@pytest.mark.parametrize(
    "graph",
    [
        chain(10, "StringConcatenate", "string_a", "string_b", delimiter=", "),
        chain(60, "ComfySwitchNode", "on_false", "on_true", switch=True),
        {"1": node("StringReplace", string="a cat on a mat " * 200, find="cat", replace="dog" * 100)},
        {"1": node("StringReplace", string="a cat on a mat " * 200, find=["2", 0], replace="a dog"),
         "2": node("PrimitiveString", value="cat")},
        {"1": node("RegexReplace", string="a cat " * 500, regex_pattern=r"\bcat\b", replace="dog", count=0)},
        {"1": node("StringFormat", f_string="{a:05d}_{b:>20}", values__a=1, values__b="x")},
        {"1": node("StringFormat", f_string="{a} and {b}", values__a=["2", 0], values__b=["3", 0]),
         "2": node("PrimitiveInt", value=3), "3": node("PrimitiveString", value="b")},
        {"1": node("TextRepeat", text="very ", count=20)},
        {"1": node("StringConcatenate", string_a=["2", 0], string_b="b"), "2": node("TextGenerate", clip=["3", 0]),
         "3": node("CLIPLoader")},
        {"1": node("StringConcatenate", string_a=["2", 0], string_b="b"), "2": node("StringConcatenate",
         string_a=["1", 0], string_b="")},
        quoted(1),
        {"1": node("PreviewAny", source=["2", 0]), "2": node("EmptyLatentImage", width=512, height=512, batch_size=1)},
        {"1": node("ListJoin", a=["2", 0], b=["3", 0]), "2": node("ListJoin", a=["4", 0], b=["4", 0]),
         "3": node("ListJoin", a=["4", 0], b=["4", 0]), "4": node("EmptyLatentImage", width=512, height=512)},
        {"1": node("PreviewAny", source={"a": [1, 2, {"b": "c" * 5000}]})},
    ],
)  # fmt: skip
def test_texts_as_people_make_them_pass(graph):
    check(graph)


@pytest.mark.parametrize("kind", ["RegexMatch", "RegexExtract", "RegexReplace", "SomebodysRegexFinder"])
@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a*)*b", "(a|a)*$", "(a|ab|b)*c", "(?:a|aa)+$", "(.*a){20}$", "a?" * 40 + "a" * 40, "(a?){40}a{40}",
        "(?:\u0130x?|ix?)*$", "(?:\ufb05x?|\ufb06x?)*$", r"(?a)(?:\Wx?|éx?)*$", r"(?a)(?:[^\w]x?|éx?)*$",
        "a*a*a*a*a*a*a*a*b", r"(\w+\s?)*$", "(?:){999999999}", r"(x+x+)+y", r"(.+)\1+c\1", "([a-z]+|[a-f]+)*!",
        "(?i)(AB|ab)+$", r"(\d\w|\w\d)+$", "(?:a{1,30}){1,30}$", "(?=(a+)+$)x",
    ],
)  # fmt: skip
def test_patterns_that_try_too_many_ways_are_refused(kind, pattern):
    refused({"1": node(kind, string=A, regex_pattern=pattern, replace="")})
    refused({"1": node(kind, string=A, regex_pattern=["2", 0]), "2": node("PrimitiveString", value=pattern)})


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d+x\d+", "cat|dog", r"^\s+|\s+$", r"<lora:[^>]+>", r"\(([^():]+):(-?\d*\.?\d+)\)", r"(\w+)\s*=\s*(\w+)",
        r"(?i)masterpiece,?\s*", r"[^,]+", r".*seed:\s*(\d+)", "", "(", r"(?:\w+,\s*)+", r"\bcat\b", r"a{2,4}",
        r"<think>.*?</think>", r"(\d|\w)+$", "(?i)(A|a)+$",
    ],
)  # fmt: skip
def test_patterns_as_people_write_them_pass(pattern):
    check({"1": node("RegexMatch", string="a photo of a cat, " * 50, regex_pattern=pattern)})


def test_a_pattern_that_is_made_of_the_prompts_numbers_is_known():
    """As ComfyUI's own templates pick a line of a text."""
    graph = {
        "1": node("RegexExtract", string="a\nb\nc", regex_pattern=["2", 0], mode="First Group"),
        "2": node("StringReplace", string=r"^(?:[^\n]*\n){index}([^\n]*)(?:\n|$)", find="index", replace=["3", 0]),
        "3": node("PreviewAny", source=["4", 0]),
        "4": node("PrimitiveInt", value=2),
    }
    check(graph)
    for index in ({}, {"index": 3}):
        chosen = {"4": node("PrimitiveInt", value=["5", 1]), "5": node("CustomCombo", choice="x", **index)}
        check({**graph, **chosen})
    graph["2"] = node("StringReplace", string="(a+)+index$", find="index", replace=["3", 0])
    refused(graph)


def test_a_simple_pattern_is_refused_on_a_text_that_is_too_long_for_it():
    refused({"1": node("RegexMatch", string="1" * 200_000, regex_pattern=r"\d+x")})
    check({"1": node("RegexMatch", string="1" * 5000, regex_pattern=r"\d+x")})


def test_what_never_fails_at_the_end_of_a_pattern_is_not_gone_through_anew():
    check({"1": node("RegexMatch", string="x" * 10_000, regex_pattern="(.*?),(.*)")})
    refused({"1": node("RegexMatch", string="x" * 10_000, regex_pattern="(.*?),(.*)b")})
    refused({"1": node("RegexMatch", string="x" * 30_000, regex_pattern="(.*?),(.*)")})


def test_a_pattern_that_begins_where_the_text_does_is_tried_once():
    pattern = r"^(.*?)\|(.*)$"
    check({"1": node("RegexMatch", string="|" * 10_000, regex_pattern=pattern, multiline=False)})
    for more in ({"multiline": True}, {}):
        refused({"1": node("RegexMatch", string="|" * 10_000, regex_pattern=pattern, **more)})
    refused({"1": node("RegexMatch", string="|" * 10_000, regex_pattern="(?m)" + pattern, multiline=False)})
    refused({"1": node("RegexMatch", string="|" * 30_000, regex_pattern=pattern, multiline=False)})


@pytest.mark.parametrize("pattern", ["[[a]", "[a--b]", "[a||b]"])
def test_a_pattern_that_python_warns_of_is_read_all_the_same(pattern):
    check({"1": node("RegexMatch", string="a" * 10_000, regex_pattern=pattern)})


@pytest.mark.parametrize("pattern", ["a*a*b", "(a*)(a+)b", "(.*)(.*)x", r"\w+\d*!", ".*a+b", r"(.*)\1b"])
def test_what_follows_is_gone_through_anew_for_each_way_of_what_is_before(pattern):
    """On 10,000 letters these take minutes, within which nothing else runs."""
    letter = "1" if "d" in pattern else "a"
    refused({"1": node("RegexMatch", string=letter * 10_000, regex_pattern=pattern)})
    check({"1": node("RegexMatch", string="a" * 400, regex_pattern=pattern)})


@pytest.mark.parametrize(
    ("number", "passes"), [(31, True), (3000, False), (["3", 0], False), (["4", 0], False), (["5", 0], True)]
)
def test_a_number_along_a_link_is_held_to_its_widgets_largest(number, passes):
    graph = {
        "1": node("ImageBlur", image=["2", 0], blur_radius=["6", 0], seed=["3", 0]),
        "2": node("EmptyImage", width=64, height=64, batch_size=1),
        "3": node("PrimitiveInt", value=2**40),
        "4": node("SomebodysDigits", text="9" * 9),
        "5": node("GetImageSize", image=["7", 0]),
        "7": node("LoadImage", image="a.png"),
        "6": node("PrimitiveInt", value=number),
    }
    if passes:
        return check(graph)
    error = refused(graph)
    assert (error.extra_info["input"], error.extra_info["limit"]) == ("blur_radius", 31)


def test_a_first_step_without_a_last_one_is_no_fault():
    links = {"start_step": ["2", 0], "end_step": ["3", 0]}
    graph = {
        "1": node("SplitSteps", sigmas=["4", 0], **links),
        "2": node("PrimitiveInt", value=1),
        "3": node("TextGenerate", clip=["5", 0]),
        "4": node("Sigmas", steps=8),
        "5": node("CLIPLoader"),
        "6": node("RegexMatch", string="a", regex_pattern=["7", 0]),
        "7": node("PrimitiveString", value="a"),
    }
    check(graph)


def test_a_text_that_is_drawn_may_be_a_page_long():
    overlay = {"1": node("TextOverlay", images=["2", 0], text="x" * 9000), "2": node("LoadImage", image="a.png")}
    check(overlay)
    refused({**overlay, "1": node("TextOverlay", images=["2", 0], text="x" * 900_000)})


def test_texts_where_other_things_belong_count_as_well():
    """Python puts two texts together where a node puts two lists together."""
    graph = {"0": node("ConditioningCombine", conditioning_1="x" * 200_000, conditioning_2="x" * 200_000)}
    check(graph)
    graph["1"] = node("ConditioningCombine", conditioning_1=["0", 0], conditioning_2=["0", 0])
    graph["2"] = node("ConditioningCombine", conditioning_1=["1", 0], conditioning_2=["1", 0])
    assert refused(graph).extra_info["limit"] == 2**20


def test_numbers_that_may_be_lists_are_not_joined_to_themselves_without_end():
    made = {"0": node("Weights", text="1, 2, 3")}
    for at in range(30):
        made[str(at + 1)] = node("ExtendWeights", one=[str(at), 0], other=[str(at), 0])
    refused(made)


def test_the_patterns_of_a_prompt_count_together():
    one = node("RegexMatch", string="1" * 9000, regex_pattern=r"\d+x")
    check({str(at): one for at in range(2)})
    refused({str(at): one for at in range(20)})


def combined(count, kind="ConditioningCombine", one="conditioning_1", other="conditioning_2", first="CLIPTextEncode"):
    made = {"0": node(first, text="a")}
    for at in range(count):
        made[str(at + 1)] = node(kind, **{one: [str(at), 0], other: [str(at), 0]})
    return made


def piped(count):
    made = {"0": node("CLIPTextEncode", text="a")}
    for at in range(count):
        made[f"both{at}"] = node("ConditioningCombine", conditioning_1=[str(at), 0], conditioning_2=[str(at), 0])
        made[f"pipe{at}"] = node("ToPipe", positive=[f"both{at}", 0])
        made[str(at + 1)] = node("FromPipe", pipe=[f"pipe{at}", 0])
        if at:
            made[f"both{at}"]["inputs"] = {"conditioning_1": [str(at), 1], "conditioning_2": [str(at), 1]}
    return made


@pytest.mark.parametrize(
    "graph",
    [
        combined(30),
        combined(30, "ListJoin", "a", "b"),
        combined(30, "ModelMergeSimple", "model1", "model2"),
        combined(30, "ModelMergeSimple", "model1", "model2", "SomebodysLoader"),
        piped(30),
    ],
)  # fmt: skip
def test_what_holds_itself_twice_at_each_of_many_nodes_is_refused(graph):
    error = refused(graph)
    assert error.extra_info["limit"] == 256


def test_the_same_of_a_class_that_nobody_knows():
    refused(combined(30, "SomebodysJoin", "a", "b"))


def one_after_the_other(count):
    made = {"0": node("CLIPTextEncode", text="a"), "x": node("CLIPTextEncode", text="b")}
    for at in range(count):
        made[str(at + 1)] = node("ConditioningCombine", conditioning_1=[str(at), 0], conditioning_2=["x", 0])
    return made


def guided(count):
    made = {"0": node("ControlNetApplyAdvanced")}
    for at in range(count):
        made[str(at + 1)] = node("ControlNetApplyAdvanced", positive=[str(at), 0], negative=[str(at), 1])
    return made


def paired(count):
    made = {"0": node("ControlNetApplyAdvanced")}
    for at in range(count):
        links = {"positive_A": [str(at), 0], "negative_A": [str(at), 1], "positive_B": ["0", 0], "negative_B": ["0", 1]}
        made[str(at + 1)] = node("PairConditioningCombine", **links)
    return made


@pytest.mark.parametrize(
    "graph",
    [
        one_after_the_other(150), guided(150), paired(7), combined(7), piped(7),
        combined(150, "ComfySwitchNode", "on_false", "on_true"),
    ],
)  # fmt: skip
def test_conditions_as_people_put_them_together_pass(graph):
    check(graph)


@pytest.mark.parametrize("length", [512, 2048, ["4", 0]])
def test_the_text_of_a_model_is_as_long_as_it_is_told_to_write(length):
    graph = {
        "1": node("RegexExtract", string=["2", 0], regex_pattern=r"<think>.*?</think>", mode="First Match"),
        "2": node("TextGenerate", clip=["3", 0], prompt="a cat", max_length=length),
        "3": node("CLIPLoader"),
        "4": node("PrimitiveInt", value=1024),
    }
    check(graph)
    graph["2"] = node("TextGenerate", clip=["3", 0], prompt="a cat", max_length=32768)
    refused(graph)


PROSE = "a photo of a (cat:1.2), (very   detailed:1.15)  with\n\tlong hair, 4k.\n" * 300 + '```json\n{"a": [1, 2]}\n```'
FENCE = r"```json\s*(.*?)\s*```"
WEIGHT = r"\((.+?):(\d+\.?\d*)\)"


@pytest.mark.parametrize("kind", ["RegexMatch", "RegexExtract", "RegexReplace"])
@pytest.mark.parametrize(("pattern", "hurts"), [(FENCE, "```json" + " " * 20_000), (WEIGHT, "(:" * 10_000)])
def test_a_pattern_is_judged_by_the_text_where_that_is_known(kind, pattern, hurts):
    assert len(PROSE) > 20_000
    search = {"string": ["2", 0], "regex_pattern": pattern, "replace": ""}
    graph = {"1": node(kind, **search), "2": node("PrimitiveString", value=PROSE)}
    check(graph)
    refused({**graph, "2": node("PrimitiveString", value=hurts)})
    refused({"1": node(kind, **search | {"string": hurts, "replace": PROSE})})
    refused({**graph, "2": node("SomebodysTexts", text=PROSE)})


def test_a_pattern_that_only_the_run_can_tell_is_refused():
    graph = {"1": node("RegexMatch", string="a", regex_pattern=["2", 0]), "2": node("TextGenerate", clip=["3", 0])}
    error = refused({**graph, "3": node("CLIPLoader")})
    assert (
        error.message
        == "RegexMatch (node 1) takes the pattern regex_pattern from a node whose text only the run can tell."
    )
    assert error.extra_info["input"] == "regex_pattern"


PIECES = st.sampled_from(["a", "b", "ab", ".", "[ab]", "[^a]", r"\w", "(a|b)", "(?:a|ab)", "(a)", "^", "$"])
PATTERNS = st.lists(st.tuples(PIECES, st.sampled_from(["", "", "*", "+", "?", "{2,5}", "*?"])), max_size=4).map(
    lambda parts: "".join(piece + (sign if piece not in "^$" else "") for piece, sign in parts)
)


@given(PATTERNS, st.sampled_from(["", "*", "+", "{1,9}"]), PATTERNS)
def test_no_pattern_that_passes_takes_long(pattern, sign, rest):
    """Of those that were let through, the slowest text found takes no time that anybody would notice."""
    whole = f"(?:{pattern}){sign}{rest}c"
    if bound_steps(whole, 60) > 200_000_000:
        return
    before = time.process_time()
    for text in ("a" * 60, "ab" * 30, "a" * 30 + "b" * 30):
        re.search(whole, text)
    assert time.process_time() - before < 30


@given(PATTERNS, st.sampled_from(["", "*", "+", "{1,9}"]), PATTERNS)
def test_no_pattern_that_passes_on_a_known_text_takes_long(pattern, sign, rest):
    whole = f"ab(?:{pattern}){sign}{rest}c"
    for text in ("a" * 60, "ab" * 30, "a" * 30 + "b" * 30, "ab" + "a" * 58):
        if bound_steps(whole, len(text), text=text) <= 200_000_000:
            before = time.process_time()
            re.search(whole, text)
            assert time.process_time() - before < 30


@pytest.mark.parametrize(
    "formula",
    [
        "9**3999999*9**3999999*9**3999999 > a", "9**9**9", "pow(pow(9, 4000), 4000)", "round(5, -10**9)",
        "1 << 9999 << 9999", "'%99999999999d' % 5", "'x' * 10**9", "f'{a:>999999999}'", "values * 10**9", "[0] * 10**9",
        "2**b", "a.real", "-" * 5000 + "1",
        "(2**200)**200", "factorial(10**6)", "sum(values) ** 99999", "a * t",
    ],
)  # fmt: skip
def test_formulas_with_numbers_of_thousands_of_digits_are_refused(formula):
    graph = {
        "1": node("ComfyMathExpression", expression=formula, values__a=["2", 0], values__b=["2", 0], values__t=["3", 0])
    }
    refused({**graph, "2": node("PrimitiveInt", value=9), "3": node("ListJoin", a="x", b=1)})


@pytest.mark.parametrize(
    "formula",
    ["a*b/64", "2**10", "a**2 + b**2", "min(a, b) * 2", "a if a > b else b", "round(a / 3, 2)", "ceil(a/8)*8",
     "sum(values)/2", "c**0.5 * 2", "2**c", "values[0] * 2",
     "a // 16 * 16", "int(a * 1.5)", "(", "max(a, 10**6)", "a % 8 == 0 and b < 3"],
)  # fmt: skip
def test_formulas_as_people_write_them_pass(formula):
    graph = {
        "1": node("ComfyMathExpression", expression=formula, values__a=["2", 0], values__b=["2", 0], values__c=["3", 0])
    }
    check({**graph, "2": node("PrimitiveInt", value=1024), "3": node("PrimitiveFloat", value=1.5)})


def test_numbers_do_not_grow_from_node_to_node():
    graph = {"0": node("PrimitiveInt", value=2**60)}
    for at in range(20):
        graph[str(at + 1)] = node("SomebodysMath", expression="a*a", a=[str(at), 0])
    refused(graph)


FORMULAS = st.recursive(
    st.integers(0, 40).map(str),
    lambda parts: st.builds("({}{}{})".format, parts, st.sampled_from(["+", "*", "-", "**", "<<", "//", "%"]), parts),
    max_leaves=6,
)


@given(FORMULAS)
def test_the_bits_are_no_fewer_than_they_are(formula):
    bits = bound_bits(formula, {})
    if bits > 4096:
        return
    try:
        made = eval(formula)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        return
    if isinstance(made, int):
        assert made.bit_length() <= bits + 1
