"""Make the texts that ComfyUI's own text nodes would make, as long as all that goes in is known.

What each class does was read in its source: `comfy_extras/nodes_string.py`, `nodes_dataset.py`, `nodes_logic.py` and
`nodes_color.py` of ComfyUI 0.33, and KJNodes' `nodes.py`. Patterns are not run, since one can take for ever: of a text
that one takes out of another, the largest number that may stand in it is told.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Mapping

from .ranges import Range, clip

#: What an input holds. An int is one, and no float that is whole: as a text they differ.
Plain = str | int | float | bool
Given = Mapping[str, Plain | None]

#: Longer texts are not made here; who counts on one is told that it may be of any length.
_LONGEST = 200_000


class Budget:
    """What may be read and made for one prompt: characters of formulas, which take microseconds each, and of texts."""

    __slots__ = ("chars", "formula_chars")

    def __init__(self) -> None:
        self.formula_chars = 20_000
        self.chars = 2_000_000

    def take(self, chars: int) -> bool:
        """Whether a text of so many may be made."""
        if chars > min(_LONGEST, self.chars):
            return False
        self.chars -= chars
        return True


class UnknownTextError(Exception):
    """It would be too long, or the node would fail."""


def knows(class_type: str) -> bool:
    return class_type in _RULES or class_type in PARTS


def make(class_type: str, given: Given, budget: Budget) -> Plain | None:
    """What the first output gives; None: what counts is not known, or it is too much. Of `given`, None is not known."""
    if class_type not in _RULES:
        return None
    try:
        made = _RULES[class_type](_Inputs(given, budget))
    except (UnknownTextError, KeyError, ValueError, TypeError, IndexError, RecursionError, AttributeError):
        return None
    return made if not isinstance(made, str) or budget.take(len(made)) else None


def find_largest(text: str, budget: Budget) -> Range | None:
    """The bounds of every number that is a part of a text; None where a part may be written in another way."""
    if not budget.take(len(text)):
        return None
    most = 0.0
    for run in re.findall(r"[\d._,eE+-]*\d[\d._,eE+-]*", text):
        if len(run) > 300 or re.search(r"\d[\d._]*[eE]", run):
            return None
        digits = "".join(str(unicodedata.decimal(sign)) for sign in run if sign.isdecimal())
        most = max(most, float(digits))
    return clip(-most), clip(most)


class _Inputs:
    """Raises KeyError for what is not known, which is None, and for what must be there and is not."""

    def __init__(self, given: Given, budget: Budget) -> None:
        self._given = given
        self._budget = budget

    def _find(self, name: str, default: Plain | None) -> Plain:
        value = self._given.get(name, default)
        if value is None:
            raise KeyError(name)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        text = str(self._find(name, default))
        if not self._budget.take(len(text)):
            raise UnknownTextError
        return text

    def whole(self, name: str) -> int:
        return int(self._find(name, None))

    def yes(self, name: str, default: bool) -> bool:
        return bool(self._find(name, default))

    def check(self, chars: int) -> None:
        """Raises UnknownTextError before anything that long is made."""
        if chars > min(_LONGEST, self._budget.chars):
            raise UnknownTextError


def _replace(of: _Inputs, name: str = "string") -> str:
    text, find, by = of.text(name), of.text("find"), of.text("replace")
    of.check(len(text) + text.count(find) * (len(by) - len(find)))
    return text.replace(find, by)


def _change_case(of: _Inputs) -> str:
    changes = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize, "Title Case": str.title}
    return changes.get(of.text("mode"), str)(of.text("string"))


def _trim(of: _Inputs) -> str:
    changes = {"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}
    return changes.get(of.text("mode"), str)(of.text("string"))


def _fold(of: _Inputs, one: str, other: str) -> tuple[str, str]:
    first, second = of.text(one), of.text(other)
    return (first, second) if of.yes("case_sensitive", True) else (first.lower(), second.lower())


def _contains(of: _Inputs) -> bool:
    text, part = _fold(of, "string", "substring")
    return part in text


def _compare(of: _Inputs) -> bool:
    one, other = _fold(of, "string_a", "string_b")
    mode = of.text("mode")
    return one == other if mode == "Equal" else one.startswith(other) if mode == "Starts With" else one.endswith(other)


def _extract(of: _Inputs) -> str:
    key = of.text("key")
    try:
        data = json.loads(of.text("json_string"))
    except json.JSONDecodeError:
        return ""
    if not isinstance(data, dict) or data.get(key) is None:
        return ""
    return str(data[key])


def _format(of: _Inputs) -> str:
    """Fields without a width, an attribute or a place in them: those can make anything of anything."""
    parts: list[str] = []
    chars = 0
    for literal, field, spec, conversion in string.Formatter().parse(of.text("f_string")):
        parts.append(literal)
        if field is None:
            continue
        if spec or conversion:
            raise UnknownTextError
        parts.append(of.text(f"values.{field}"))
        of.check(chars := chars + len(parts[-1]))
    return "".join(parts)


def _join_many(of: _Inputs) -> str:
    if of.yes("return_list", False):
        raise UnknownTextError
    delimiter, joined = of.text("delimiter"), of.text("string_1")
    for at in range(2, min(of.whole("inputcount"), 1000) + 1):
        # Who is not known makes it unknown; who is not there is passed over.
        if more := of.text(f"string_{at}", ""):
            of.check(len(joined) + len(delimiter) + len(more))
            joined += delimiter + more
    return joined


def _find_colour(of: _Inputs) -> int:
    colour = of.text("color")
    if len(colour) not in (7, 9):
        raise UnknownTextError
    return int(colour[1:7], 16)


def _strip_lines(of: _Inputs) -> str:
    text = of.text("string")
    return text.replace("\n", "").strip() if of.yes("strip_newlines", True) else text


_RULES: dict[str, Callable[[_Inputs], Plain]] = {
    "StringConcatenate": lambda of: of.text("delimiter", "").join((of.text("string_a"), of.text("string_b"))),
    "StringSubstring": lambda of: of.text("string")[of.whole("start") : of.whole("end")],
    "StringLength": lambda of: len(of.text("string")),
    "CaseConverter": _change_case,
    "StringTrim": _trim,
    "StringReplace": _replace,
    "StringContains": _contains,
    "StringCompare": _compare,
    "StringFormat": _format,
    "JsonExtractString": _extract,
    "CustomCombo": lambda of: of.text("choice"),
    "ColorToRGBInt": _find_colour,
    "TextToLowercase": lambda of: of.text("texts").lower(),
    "TextToUppercase": lambda of: of.text("texts").upper(),
    "StripWhitespace": lambda of: of.text("texts").strip(),
    "TruncateText": lambda of: of.text("texts")[: of.whole("max_length")],
    "AddTextPrefix": lambda of: of.text("prefix") + of.text("texts"),
    "AddTextSuffix": lambda of: of.text("texts") + of.text("suffix"),
    "ReplaceText": lambda of: _replace(of, "texts"),
    "JoinStrings": lambda of: of.text("string1", "") + of.text("delimiter") + of.text("string2", ""),
    "JoinStringMulti": _join_many,
    "StringConstantMultiline": _strip_lines,
    "StringToFloatList": lambda of: of.text("string"),
    "PreviewAny": lambda of: of.text("source"),
}

#: What these give is a part of a text, or several with line breaks between them.
PARTS: Mapping[str, str] = {"RegexExtract": "string", "StringSubstring": "string", "TruncateText": "texts"}
#: The bounds of what these give, whatever they are told.
BOUNDS: Mapping[str, Range] = {"ColorToRGBInt": (0, 0xFFFFFF)}
#: What these write down, if only its bounds are known.
SAME: Mapping[str, str] = {"PreviewAny": "source"}
#: How these make a number of their inputs.
FORMULAS: Mapping[str, str] = {
    "SimpleMathSlider+": "min + value * (max - min)",
    "SimpleMathSliderLowRes+": "min + 0.1 * value * (max - min)",
}
