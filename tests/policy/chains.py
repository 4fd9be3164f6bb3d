"""Grow chains of a host's own nodes that make texts, lists and numbers of each other, with what hurts in their fields.

Nobody steers which nodes follow each other; each takes the latest more often, and often the same one several times.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from policy.grown import CannotError, Graph, Grown, Kind, Link, keep_needed, read_declared

#: What goes along the links of a chain.
CARRIED = ("STRING", "INT", "FLOAT", "BOOLEAN", "ARRAY", "DICT", "CONDITIONING", "BOUNDING_BOX", "HOOKS", "SIGMAS")
_PLAIN = ("STRING", "INT", "FLOAT", "BOOLEAN")
_GROWS = ("COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3")
_OPEN = ("*", "COMFY_MATCHTYPE_V3")
_LEFT_OUT = re.compile(
    r"^Load|^Save(?!Text)|Record|Webcam|Train|Folder|Upload|Download|Path|Guarded|^Test|API|Debug|Sleep|Stop|Prune|"
    r"BatchManager|Screencap|Select(?:Filename|Latest)|PlaySound|Widget"
)
#: Letters that become longer: in capitals, in JSON, as Python shows them, as bytes.
_LETTERS = (
    "a",
    "b",
    " ",
    "\n",
    '"',
    "\\",
    "'",
    "{",
    "}",
    "ß",
    "ΐ",
    "İ",
    "\x01",
    "\ue000",
    "\U000e0001",
    "😀",
    "0",
    "1e15,",
)
_SHORT = ("a", "x", "", "\\", '"', "aa", "\n", "ß", "\\g<0>", r"\1\1", "0", "9")
_PIECES = (
    "a", "b", ".", r"\w", r"\d", "[ab]", "[^a]", r"\s", "(a)", "(ab|a)", "(?:a|b)", "(?=a)", "(?=(.*))", "(?<=a)",
    "^", "$", r"\b", "", "a|", "|a", "(.)", "(.*)", "ſt", "ſ", "(?i:ß)", r"\1", "(?!b)", "(?>a)", "x??",
)  # fmt: skip
_SIGNS = ("", "", "", "*", "+", "?", "*?", "+?", "{2}", "{0,3}", "{3,}")
_FIELDS = (
    "{a}", "{a}{a}", "{b}", "{a!r}", "{a!a}", "{a:f}", "{a:>900}", "{a:b}", "{a:,}", "{a:.300f}",
    "{b!r:>99}", "{{", "{a!s:<50}", "{a:%}", "{b:e}", "{c}",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, -1, 5, 8, 50, 100, 1000, 10_000, 2**31, 2**62)
_FLOATS = (0.0, 1.0, 0.5, 1e15, 1e308, -3.25)


def find_carriers(known: Mapping[str, Any]) -> list[Kind]:
    """The classes that take nothing but what such a chain carries, and give some of it."""
    found = []
    for name, info in sorted(known.items()):
        if _LEFT_OUT.search(name) or info.get("api_node"):
            continue
        inputs = {
            each: (section == "required", declared)
            for section in ("required", "optional")
            for each, declared in (info["input"].get(section) or {}).items()
        }
        outputs = [kind if isinstance(kind, str) else "COMBO" for kind in info["output"]]
        if not {*CARRIED, *_OPEN, "COMBO"}.intersection(outputs):
            continue
        if all(_can_feed(declared) for required, declared in inputs.values() if required):
            found.append(Kind(name, inputs, outputs))
    return found


def _can_feed(declared: Any) -> bool:
    kind, options = read_declared(declared)
    if kind == "COMBO":
        return bool(options.get("options"))
    if kind == "COMFY_AUTOGROW_V3":
        return all(_can_feed(each) for part in options["template"]["input"].values() for each in part.values())
    return kind in (*_GROWS, *_OPEN, "COLOR", "COLORS") or bool({*kind.split(",")}.intersection(CARRIED))


def grow_chain(draw: Random, kinds: list[Kind], most: int = 30) -> tuple[Graph, Link]:
    """(graph, link to its last node) of a chain of up to so many nodes."""
    grown = Grown()
    long = draw.random() < 0.5
    for _ in range(draw.randint(1, 3)):
        grown.add("PrimitiveString", {"value": draw_text(draw, long=long)}, ["STRING"])
    grown.add("PrimitiveInt", {"value": draw.choice(_NUMBERS)}, ["INT"])
    if draw.random() < 0.2:
        grown.add("TestConditioning", {}, ["CONDITIONING"])
    few = draw.random() < 0.6
    chosen = draw.sample(kinds, min(len(kinds), draw.choice((1, 2, 3, 5)))) if few else kinds
    eager = draw.choice((0.5, 0.8, 0.95))
    for _ in range(draw.randint(1, most)):
        _add(draw, grown, draw.choice(chosen), eager)
    last = [str(len(grown.graph)), 0]
    return keep_needed(grown.graph, last), last


def draw_text(draw: Random, *, long: bool = False) -> str:
    most = draw.choice((0, 1, 3, 30, 300, 3000, 30_000, 300_000)) if long else draw.choice((0, 1, 2, 5, 20, 60))
    if draw.random() < 0.2:
        return draw_json(draw, most)
    letters = draw.sample(_LETTERS, draw.choice((1, 1, 2, 4)))
    count = draw.randint(0, most)
    return (letters[0] * count if len(letters) == 1 else "".join(draw.choices(letters, k=count)))[: max(most, 1)]


def draw_json(draw: Random, most: int) -> str:
    parts = ("[]", "{}", "1e15", '""', "null", "true", '"\\u0001"', '"\ue000"', '"\U000e0001"', '"\\\\"', "-0.1", "1")
    one = draw.choice(parts)
    many = "[" + ",".join([one] * max(most // (len(one) + 1), 1)) + "]"
    return json.dumps({"a": draw_text(draw)}) if draw.random() < 0.3 else f'{{"a": {many}}}'


def draw_pattern(draw: Random) -> str:
    parts = [
        draw.choice(_PIECES) + draw.choice(_SIGNS if draw.random() < 0.7 else ("",)) for _ in range(draw.randint(0, 4))
    ]
    whole = "".join(parts)
    return f"({whole}){draw.choice(_SIGNS)}{draw.choice(_PIECES)}" if draw.random() < 0.3 else whole


def _draw_format(draw: Random) -> str:
    fields = "".join(draw.choice(_FIELDS) for _ in range(draw.randint(0, 5)))
    return fields * draw.choice((1, 1, 1, 50, 2000))


def _draw_formula(draw: Random) -> str:
    return draw.choice(
        ("a", "a*a", "a**2", "a + b", "2**a", "a*a*a*a", "a << 9", "-a", "round(a, -3)", "a / 3", "sum(values)")
    )


_BY_NAME: tuple[tuple[re.Pattern[str], Callable[[Random], str]], ...] = (
    (re.compile(r"pattern|regex"), draw_pattern),
    (re.compile(r"f_string|format"), _draw_format),
    (re.compile(r"express|formula"), _draw_formula),
    (re.compile(r"^key|^find|substring"), lambda draw: draw.choice(("a", "", "b", '"', "aa", "\\"))),
    (re.compile(r"replace|fix|delim"), lambda draw: draw.choice((*_SHORT, "y" * 500, "y" * 20_000))),
)


def _add(draw: Random, grown: Grown, chosen: Kind, eager: float) -> None:
    inputs: dict[str, Any] = {}
    matched: dict[str, str] = {}
    for name, (required, declared) in chosen.inputs.items():
        if not required and not (_can_feed(declared) and draw.random() < 0.7):
            continue
        try:
            inputs.update(_feed(draw, grown, name, declared, matched, eager))
        except CannotError:
            if required:
                return
    first = next((kind for value in inputs.values() for kind, links in grown.links.items() if value in links), "STRING")
    outputs = [first if kind in _OPEN else kind for kind in chosen.outputs]
    grown.add(chosen.name, inputs, outputs)


def _feed(
    draw: Random, grown: Grown, name: str, declared: Any, matched: dict[str, str], eager: float
) -> Iterator[tuple[str, Any]]:
    kind, options = read_declared(declared)
    if kind == "COMFY_DYNAMICCOMBO_V3":
        option = draw.choice(options["options"])
        yield name, option["key"]
        for section in ("required", "optional"):
            for each, inner in (option["inputs"].get(section) or {}).items():
                yield from _feed(draw, grown, f"{name}.{each}", inner, matched, eager)
    elif kind == "COMFY_AUTOGROW_V3":
        template = options["template"]
        names = template.get("names") or [f"{template['prefix']}{at}" for at in range(template["max"])]
        inner = next(each for part in template["input"].values() for each in part.values())
        for each in names[: draw.choice((2, 3, 3, 9))]:
            yield from _feed(draw, grown, f"{name}.{each}", inner, matched, eager)
    elif kind == "COMFY_MATCHTYPE_V3":
        wanted = matched.get(options["template"]["template_id"])
        link, found = _link(draw, grown, [wanted] if wanted else list(CARRIED))
        matched[options["template"]["template_id"]] = found
        yield name, link
    elif kind == "COMBO":
        yield name, draw.choice(list(options["options"]))
    elif kind == "COLOR":
        yield name, "#000280"
    elif kind == "COLORS":
        yield name, ["#000280"]
    else:
        wanted_kinds = list(CARRIED) if kind == "*" else [each for each in kind.split(",") if each in CARRIED]
        if draw.random() < eager or not {*wanted_kinds, "ARRAY"}.intersection((*_PLAIN, "ARRAY")):
            try:
                yield name, _link(draw, grown, wanted_kinds)[0]
                return
            except CannotError:
                if not {*wanted_kinds}.intersection((*_PLAIN, "ARRAY", "DICT")):
                    raise
        yield name, _draw_constant(draw, name, wanted_kinds, options)


def _draw_constant(draw: Random, name: str, kinds: list[str], options: Mapping[str, Any]) -> Any:
    kind = draw.choice([each for each in kinds if each in (*_PLAIN, "ARRAY", "DICT")] or ["STRING"])
    if kind == "STRING":
        special = next((make for names, make in _BY_NAME if names.search(name)), None)
        return special(draw) if special is not None and draw.random() < 0.8 else draw_text(draw)
    if kind == "BOOLEAN":
        return draw.random() < 0.5
    if kind in ("ARRAY", "DICT"):
        value: Any = draw_text(draw)
        for _ in range(draw.choice((1, 2, 8, 30))):
            value = [value, *([1] * draw.choice((0, 1, 20)))] if kind == "ARRAY" else {"a": value}
        return {"__value__": value}
    low, high = options.get("min", -(2**62)), options.get("max", 2**62)
    fitting = [number for number in (_NUMBERS if kind == "INT" else _FLOATS) if low <= number <= high]
    return draw.choice((*fitting, low, high) if low >= -(2**53) and high <= 2**53 else fitting or [low])


def _link(draw: Random, grown: Grown, kinds: list[str]) -> tuple[Link, str]:
    """A link of one of these kinds; the latest one most often."""
    there = [(link, kind) for kind in kinds for link in grown.links.get(kind, ())]
    if not there:
        raise CannotError(kinds)
    there.sort(key=lambda each: -int(each[0][0]))
    return there[0] if draw.random() < 0.7 else there[draw.randrange(min(len(there), 5))]
