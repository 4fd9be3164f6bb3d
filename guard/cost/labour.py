# Over 400 lines: texts, patterns and formulas follow each other through one walk, and share what it knows of a node.
"""Find what a prompt's texts, patterns and formulas would make the process do that nothing can interrupt.

A text that is joined to itself doubles with each node, a pattern may try more ways than there are seconds, and a whole
number may have millions of digits. So lengths are followed as upper bounds, whatever the texts are: a join's parts
together, a replacement's product, a field's width. A class that nobody follows is known by its name and by the names of
its inputs; what it makes of texts is taken for all of them together.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from ..graph import is_link, list_in_order
from .bits import USUAL, Size, bound_bits
from .classes import PLAIN, NodeClass, NodeClasses
from .growth import Growth
from .names import Trait
from .patterns import bound_matches, bound_steps
from .ranges import ENDLESS
from .walk import Walk

#: Steps of a search, and of all searches of a prompt: some two seconds, and four.
MOST_STEPS, MOST_STEPS_TOGETHER = 200_000_000, 400_000_000
#: A text that is looked through for where a pattern can begin.
_MOST_SEARCHED = 200_000
#: Bits of a whole number.
MOST_BITS = 4096
#: Characters of a text that is drawn on a picture.
MOST_DRAWN = 10_000
#: How many times as much all texts of a prompt may have together as those of one node.
MOST_TOGETHER = 32
#: Characters that a node writes of its own accord that looks at something else than texts, as models do.
_WRITTEN = 8000
#: Characters of a token, as models write them.
_TOKEN = 4
#: What torch writes of tensors with so many dimensions, with six numbers of each end (PreviewAny).
_SHOWN: Mapping[str, float] = {"LATENT": 250_000, "IMAGE": 50_000, "MASK": 20_000}
#: A number in a format: a float's digits before the point, or a whole number's bits.
_NUMBER = 330
#: What becomes of a character in JSON, or as Python shows it: `\U000e0001`, or two of `\ud83d`.
_ESCAPED = 12
#: Spaces before each value of a list in a list, for each of those.
_INDENT = 8
#: A widget that has more has any number, as those of seeds do.
_NO_LIMIT = 2**31
#: What an unknown number repeats by.
_OFTEN = 1000

_NESTED = frozenset({"ARRAY", "DICT"})
_PRIMITIVES = frozenset({"PrimitiveString", "PrimitiveStringMultiline"})
_NUMBERS = frozenset({"INT", "FLOAT", "BOOLEAN", "NUMBER"})
_TEXTS = re.compile(r"STRING|COMBO|\*|COMFY_MATCHTYPE|COMFY_AUTOGROW|COMFY_DYNAMIC|COMFY_MULTITYPED|,|ARRAY|DICT")
_PATTERN = re.compile(r"(?:.*_)?(?:regexp?|regular_expression)(?:_.*)?", re.I)
_PATTERN_OF_REGEX = re.compile(r"(?:.*_)?(?:pattern|expression|find|search)(?:_.*)?", re.I)
_REGEX = re.compile(r"regexp?", re.I)
_FORMULA = re.compile(r"(?:.*_)?(?:expression|formula|equation)", re.I)
_REPLACES = re.compile(r"replac|substitut", re.I)
_REPEATS = re.compile(r"repeat|times|multipl|duplicat|(?<![a-z])pad|just(?:ify)?(?![a-z])", re.I)
_COUNT = re.compile(r"(?:.*_)?(?:count|times|number|repeats?|amount|n|width|length|multiplier)", re.I)
_FORMATS = re.compile(r"string_?format|format_?(?:string|text)|text_?format", re.I)
_TOKENS = re.compile(r"max_(?:new_)?(?:length|tokens)", re.I)
_DRAWN = re.compile(r"(?:.*_)?(?:text|caption|label|title|subtitle|words)s?(?:_.*)?", re.I)
_MODELS = frozenset({"CLIP", "MODEL"})
_JOINER = re.compile(r"(?:.*_)?(?:delimiter|separator|joiner|sep|glue)", re.I)
_CASES = re.compile(
    r"case(?![a-z])|casefold|(?:upper|lower|title)case|capital|swapcase|normali[sz]e(?:text|string)", re.I
)
_ESCAPES = re.compile(
    r"json|dict|builder|repr(?![a-z])|escape|quote|dump|seriali[sz]|stringify|encode(?:text|string|url)|hex|html|yaml",
    re.I,
)
_PARTS: Mapping[str, str] = {"StringSubstring": "string", "TruncateText": "texts", "StringTrim": "string"}


class Fault(NamedTuple):
    """What is too much, in words that follow the node's name; `value` None: nobody can tell."""

    node_id: str
    input: str
    value: float | None
    limit: float
    complaint: str


class _Text(NamedTuple):
    """Texts of one output: the longest, how many, and all together."""

    each: float = 0
    items: float = 1
    total: float = 0


class _FoundError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault


def find_labour(graph: Mapping[str, Any], classes: NodeClasses, most_chars: int) -> Fault | None:
    """The first node that would do too much; None: none. Nodes must be objects with a `class_type` and `inputs`."""
    try:
        _Labour(graph, classes, most_chars).run()
    except _FoundError as found:
        return found.fault
    return None


class _Labour:
    def __init__(self, graph: Mapping[str, Any], classes: NodeClasses, most_chars: int) -> None:
        self._graph = graph
        self._classes = classes
        self._most_chars = most_chars
        self._texts: dict[str, _Text] = {}
        self._bits: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._strange: set[str] = set()
        self._has_lists = any(classes.find(node["class_type"]).lists for node in graph.values())
        self._growth = Growth(graph, classes)
        self._chars = 0.0
        self._steps = 0.0
        self._made: Walk | None = None

    def run(self) -> None:
        for node_id in list_in_order(self._graph):
            parts, most = self._growth.visit(node_id)
            if parts > most:
                complaint = f"puts together {_say(parts)} parts, of which many are the same; {most} are allowed"
                raise _FoundError(Fault(node_id, "", parts, most, complaint))
            self._check_numbers(node_id)
            if not self._is_idle(node_id):
                _Node(self, node_id).judge()

    def _check_numbers(self, node_id: str) -> None:
        """A number that comes along a link is held to what its widget has, as ComfyUI holds constants to it."""
        inputs = self.find(node_id)["inputs"]
        for name, most in self.classify(node_id).most.items():
            value = inputs.get(name)
            if value is None or most > _NO_LIMIT or not is_link(value):
                continue
            number = self.walk.read(value)
            if number is not None and number[1] > most:
                complaint = (
                    f"gets a number for {name[:100]} along a link that may be more than the {most} of its widget"
                )
                raise _FoundError(Fault(node_id, name, number[1] if number[1] < ENDLESS else None, most, complaint))

    def hand_on(self, node_id: str, shown: float) -> None:
        """Note what one would write of what a node hands on."""
        if shown:
            self._shown[node_id] = shown

    def shown_of(self, link: Any) -> float:
        return self._shown.get(link[0], 0)

    def parts_of(self, link: Any) -> float:
        return self._growth.parts_of(link)

    def add_chars(self, chars: float) -> float:
        """The characters of all nodes' texts up to here."""
        self._chars += chars
        return self._chars

    def add_steps(self, steps: float) -> float:
        """The steps of all nodes' searches up to here."""
        self._steps += steps
        return self._steps

    def _is_idle(self, node_id: str) -> bool:
        """Whether it neither makes texts or numbers nor looks for patterns, as most do."""
        node_class = self.classify(node_id)
        if (
            not node_class.known
            or node_class.numbers
            or "STRING" in node_class.inputs.values()
            or not _NESTED.isdisjoint(node_class.kinds)
        ):
            return False
        node = self.find(node_id)
        if any(self.brings_text(node_class, name, value) for name, value in node["inputs"].items()):
            self._strange.add(node_id)
            return False
        return "reg" not in node["class_type"][:100].lower() and not any(
            "reg" in name.lower() for name in node["inputs"]
        )

    def brings_text(self, node_class: NodeClass, name: str, value: Any) -> bool:
        """Whether there is a text where something else belongs: Python puts two of those together as well."""
        if is_link(value):
            return value[0] in self._strange
        kind = node_class.inputs.get(name, "*")
        return isinstance(value, (str, list, dict)) and kind not in PLAIN and _TEXTS.search(kind) is None

    @property
    def walk(self) -> Walk:
        if self._made is None:
            self._made = Walk(self._graph, self._classes)
        return self._made

    def find(self, node_id: str) -> Mapping[str, Any]:
        node: Mapping[str, Any] = self._graph.get(node_id, {"class_type": "", "inputs": {}})
        return node

    def classify(self, node_id: str) -> NodeClass:
        return self._classes.find(self.find(node_id)["class_type"])

    def kind_of(self, link: Any) -> str:
        outputs = self.classify(link[0]).outputs
        at = int(link[1]) if math.isfinite(link[1]) else len(outputs)
        return outputs[at][0] if -len(outputs) <= at < len(outputs) else ""

    def text_of(self, link: Any) -> _Text:
        text = self._texts.get(link[0], _Text())
        if text.items == 1 and self._has_lists and self.kind_of(link) not in PLAIN:
            return text._replace(items=max(self.walk.items(link), 1))
        return text

    def bits_of(self, link: Any) -> float:
        return self._bits.get(link[0], USUAL)

    def keep(self, node_id: str, text: _Text, bits: float) -> None:
        self._texts[node_id] = text
        self._bits[node_id] = bits

    @property
    def most_chars(self) -> int:
        return self._most_chars


class _Node:
    def __init__(self, labour: _Labour, node_id: str) -> None:
        node = labour.find(node_id)
        self._labour = labour
        self._id = node_id
        self._type: str = node["class_type"]
        self._short = self._type[:100]
        self._inputs = {name: _unwrap(value) for name, value in node["inputs"].items()}
        self._class = labour.classify(node_id)
        self._links = {name: value for name, value in self._inputs.items() if is_link(value)}
        self._given = {name: self._measure(value) for name, value in self._inputs.items()}
        kinds = self._class.kinds
        self._gives_texts = (
            not self._class.known
            or any(_TEXTS.search(kind) for kind in kinds)
            or any(labour.brings_text(self._class, name, value) for name, value in self._inputs.items())
        )

    def judge(self) -> None:
        self._judge_drawn()
        bits = self._judge_formulas()
        self._judge_patterns()
        text = self._find_text() if self._gives_texts else _Text()
        most = self._labour.most_chars
        if text.total > most or text.items > most:
            value = max(text.total, text.items)
            self._refuse("", value, most, f"makes texts of up to {_say(value)} characters; {most} are allowed")
        if (together := self._labour.add_chars(text.total)) > most * MOST_TOGETHER:
            complaint = (
                f"and those before it make texts of up to {_say(together)} characters; {most * MOST_TOGETHER} may be"
            )
            self._refuse("", together, most * MOST_TOGETHER, complaint)
        self._labour.keep(self._id, text, bits)

    def _judge_drawn(self) -> None:
        """A text that is drawn is measured again and again, for each line the rest of it."""
        kinds = self._class.inputs.values()
        if not self._class.pictures or not _MODELS.isdisjoint(kinds):
            return
        for name, text in self._given.items():
            is_text = self._class.inputs.get(name) == "STRING" and _DRAWN.fullmatch(name[:100]) is not None
            if is_text and text.each > MOST_DRAWN:
                complaint = (
                    f"draws a text of up to {_say(text.each)} characters (input {name[:100]}); {MOST_DRAWN} are allowed"
                )
                self._refuse(name, text.each, MOST_DRAWN, complaint)

    # Lengths. ------------------------------------------------------------------------------------------------

    def _measure(self, value: Any) -> _Text:
        if is_link(value):
            return self._labour.text_of(value)
        chars = _count_chars(value)
        return _Text(chars, 1, chars)

    def _count_written(self) -> float:
        """What it may write of things that are no texts."""
        each = {name: self._count_shown(link) for name, link in self._links.items()}
        if self._class.known and "STRING" not in self._class.kinds:
            # It hands them on, and who writes them comes later.
            self._labour.hand_on(self._id, max(each.values(), default=0))
            return 0
        # What takes a certain kind looks at it; what takes any writes down whatever comes.
        seen = [
            name for name, chars in each.items() if chars and _TEXTS.search(self._class.inputs.get(name, "*")) is None
        ]
        written = sum(chars for name, chars in each.items() if name not in seen)
        if seen:
            tokens = max((self._number(name, 0) for name in self._inputs if _TOKENS.fullmatch(name[:100])), default=0)
            written += max(_WRITTEN, tokens * _TOKEN)
        return written

    def _count_shown(self, link: Any) -> float:
        kind = self._labour.kind_of(link)
        if kind in PLAIN or _TEXTS.search(kind or "*"):
            return self._labour.shown_of(link)
        return _SHOWN.get(kind, _WRITTEN) * self._labour.parts_of(link)

    def _find_text(self) -> _Text:
        given = [self._given[name] for name in self._inputs]
        lists = [each for each in given if each.items > 1]
        own = self._count_written()
        if self._class.takes_lists:
            total = sum(each.total for each in given)
            items = sum(self._given[name].items for name in self._links)
            if self._class.gathers or self._class.lists:
                longest = max((each.each for each in given), default=0)
                return _Text(longest + own, max(items, 1), total + own)
            total += self._joiner() * (items + 1) + own
            return _Text(total, 1, total)
        runs = max((each.items for each in lists), default=1)
        each = self._find_each() + own
        if Trait.SWITCH not in self._class.traits and runs > 1 and len(lists) == 1 and self._sums():
            total = lists[0].total + runs * max(each - lists[0].each, 0)
        else:
            total = runs * each
        if self._class.lists and runs == 1:
            # A text that is taken apart is no longer than it was, in so many parts at most.
            return _Text(each, max(each, 1), each)
        return _Text(each, runs, total)

    def _sums(self) -> bool:
        return not (self._type in _PARTS or self._is_regex() or self._replaces() or self._repeats() or self._formats())

    def _find_each(self) -> float:
        lengths = {name: text.each for name, text in self._given.items()}
        if (whole := _PARTS.get(self._type)) is not None:
            return self._cut(lengths.get(whole, 0))
        if self._is_regex():
            return self._find_regex(lengths)
        if self._formats():
            return self._find_format(lengths)
        if self._replaces():
            return self._find_replaced(lengths)
        if Trait.SWITCH in self._class.traits:
            return max(lengths.values(), default=0)
        # Some write the names of what is on.
        total = (
            sum(lengths.values())
            + sum(len(name) + 2 for name in self._inputs if self._class.inputs.get(name) == "BOOLEAN")
            + self._joiner() * (len(lengths) + self._number("inputcount", 0))
        )
        if self._repeats():
            total *= max(self._find_count(), 1)
        return total * self._find_widening()

    def _find_widening(self) -> float:
        """How much longer texts become that are only written in another way."""
        kinds = {*map(self._labour.kind_of, self._links.values()), *self._class.inputs.values()}
        if not _NESTED.isdisjoint(kinds) or _ESCAPES.search(self._short) is not None:
            return _ESCAPED
        return 3 if _CASES.search(self._short) is not None else 1

    def _joiner(self) -> float:
        return sum(text.each for name, text in self._given.items() if _JOINER.fullmatch(name[:100]))

    def _cut(self, whole: float) -> float:
        end = self._number("max_length" if self._type == "TruncateText" else "end", -1)
        return min(whole, end) if end >= 0 else whole

    def _number(self, name: str, default: float) -> float:
        if name not in self._inputs:
            return default
        value = self._inputs[name]
        if isinstance(value, (int, float)) and math.isfinite(value):
            return min(float(value), 1e18)
        known = self._labour.walk.read(value) if isinstance(value, (str, list)) else None
        return known[1] if known is not None and known[0] == known[1] else _OFTEN if default >= 0 else default

    def _is_regex(self) -> bool:
        return _REGEX.search(self._short) is not None or any(_PATTERN.fullmatch(name[:100]) for name in self._inputs)

    def _replaces(self) -> bool:
        return _REPLACES.search(self._short) is not None

    def _repeats(self) -> bool:
        return _REPEATS.search(self._short) is not None

    def _formats(self) -> bool:
        return "f_string" in self._inputs or _FORMATS.search(self._short) is not None

    def _find_count(self) -> float:
        counts = [self._number(name, 1) for name in self._inputs if _COUNT.fullmatch(name[:100])]
        return math.prod(max(each, 1) for each in counts)

    def _find_replaced(self, lengths: Mapping[str, float]) -> float:
        find = self._text("find")
        others = [length for name, length in lengths.items() if name not in ("find", "replace")]
        text = next((lengths[name] for name in ("string", "texts", "text") if name in lengths), max(others, default=0))
        if "find" not in lengths or "replace" not in lengths:
            two = sorted(lengths.values())[-2:]
            return math.prod(each + 1 for each in two)
        by = lengths["replace"]
        if find is None or find == "":
            return text + (text + 1) * by
        whole = self._text("string") if "string" in self._inputs else self._text("texts")
        places = whole.count(find) if whole is not None else text // len(find)
        return text + places * by

    def _find_regex(self, lengths: Mapping[str, float]) -> float:
        text = next((lengths[name] for name in ("string", "text", "texts") if name in lengths), max(lengths.values()))
        known = [self._text(name) for name in self._list_patterns()]
        pattern = next((each for each in known if each is not None), "")
        matches, overlap = bound_matches(pattern, text)
        count = self._number("count", 0)
        if count > 0:
            matches = min(matches, count)
        most = text * (matches if overlap else 1)
        if "replace" not in lengths:
            return most + matches
        # Each group that the replacement names comes again with each match.
        return text + matches * lengths["replace"] + most * lengths["replace"] / 2

    def _find_format(self, lengths: Mapping[str, float]) -> float:
        total = 0.0
        found = False
        for name in self._inputs:
            if name.startswith("values.") or (is_link(self._inputs[name]) and name != "f_string"):
                continue
            if name != "f_string" and "format" not in name and "template" not in name:
                continue
            found = True
            total += self._bound_fields(name, lengths)
        return total if found else sum(lengths.values())

    def _bound_fields(self, name: str, lengths: Mapping[str, float]) -> float:
        pattern = self._text(name)
        if pattern is None:
            self._refuse(
                name, None, self._labour.most_chars, f"takes {name} from a node whose text only the run can tell"
            )
        total = 0.0
        try:
            for literal, field, spec, conversion in string.Formatter().parse(pattern):
                total += len(literal)
                if field is None:
                    continue
                if "." in field or "[" in field:
                    self._refuse(name, None, 0, f"has an input {name} with a field that reaches into its value")
                if spec and "{" in spec:
                    self._refuse(name, None, 0, f"has an input {name} whose widths only the run can tell")
                width = sum(float(number) for number in re.findall(r"\d{1,300}", spec or ""))
                value = self._inputs.get(f"values.{field}", self._inputs.get(field))
                length = lengths.get(f"values.{field}", lengths.get(field, 0))
                if is_link(value):
                    length += self._count_shown(value)
                if not isinstance(value, str):
                    length = max(length, _NUMBER) if not isinstance(value, int) else _NUMBER + value.bit_length()
                is_shown = conversion or (isinstance(value, (list, dict)) and not is_link(value))
                total += length * (_ESCAPED if is_shown else 1) + width
        except ValueError:
            return total  # nor can the node read it
        return total

    # Patterns. -----------------------------------------------------------------------------------------------

    def _list_patterns(self) -> list[str]:
        regex = _REGEX.search(self._short) is not None
        names = [name for name in self._inputs if _PATTERN.fullmatch(name[:100])]
        if not names and regex:
            names = [name for name in self._inputs if _PATTERN_OF_REGEX.fullmatch(name[:100])]
        return [name for name in names if is_link(self._inputs[name]) or isinstance(self._inputs[name], str)]

    def _judge_patterns(self) -> None:
        for name in self._list_patterns():
            pattern = self._text(name)
            if pattern is None:
                complaint = f"takes the pattern {name[:100]} from a node whose text only the run can tell"
                self._refuse(name, None, MOST_STEPS, complaint)
            others = [text for other, text in self._given.items() if other != name]
            # What a node reads elsewhere, nobody measures.
            chars = max((text.each for text in others), default=0)
            runs = max((text.items for text in others), default=1)
            steps = self._bound_steps(name, pattern, chars, runs)
            together = self._labour.add_steps(steps)
            if steps <= MOST_STEPS and together > MOST_STEPS_TOGETHER:
                complaint = (
                    f"and those before it have patterns that may be tried in {_say(together)} ways; "
                    f"{MOST_STEPS_TOGETHER} are allowed in one prompt"
                )
                self._refuse(name, together, MOST_STEPS_TOGETHER, complaint)
            if steps > MOST_STEPS:
                complaint = (
                    f"has a pattern in {name[:100]} that may be tried in too many ways on a text of {_say(chars)} "
                    "characters; parts next to each other must not match the same, and repeats must not hold repeats"
                )
                self._refuse(name, steps if steps < math.inf else None, MOST_STEPS, complaint)

    def _bound_steps(self, name: str, pattern: str, chars: float, runs: float) -> float:
        """Where the longest text is known, by its letters; whichever text the node looks through."""
        lines = self._inputs.get("multiline") is not False
        others = [other for other in self._inputs if other != name]
        longest = next((other for other in others if self._given[other].each == chars), None)
        text = self._find_own(longest) if longest is not None and runs == 1 and chars <= _MOST_SEARCHED else None
        if text is None or len(text) != chars:
            return bound_steps(pattern, chars, lines=lines) * runs
        rest = max((self._given[other].each for other in others if other != longest), default=0)
        return max(bound_steps(pattern, chars, lines=lines, text=text), bound_steps(pattern, rest, lines=lines))

    def _find_own(self, name: str) -> str | None:
        """The text of an input, where it stands in the prompt as it is: what other nodes make of one, may differ."""
        value = self._inputs[name]
        if is_link(value):
            node = self._labour.find(value[0])
            value = node["inputs"].get("value") if node["class_type"] in _PRIMITIVES else None
        return value if isinstance(value, str) else None

    # Numbers. ------------------------------------------------------------------------------------------------

    def _judge_formulas(self) -> float:
        sizes = {name.rpartition(".")[2]: self._size(value) for name, value in self._inputs.items()}
        sizes["values"] = Size(max((size.bits for size in sizes.values()), default=USUAL))
        names = [name for name in self._inputs if self._is_formula(name)]
        most = 0.0
        for name in names:
            formula = self._text(name)
            if formula is None:
                self._refuse(
                    name,
                    None,
                    MOST_BITS,
                    f"takes the formula {name[:100]} from a node whose text only the run can tell",
                )
            most = max(most, bound_bits(formula, sizes))
        if not names and self._class.computes and "INT" in self._class.kinds:
            linked = [self._labour.bits_of(link) for link in self._links.values()]
            most = sum(linked) if any(bits > USUAL for bits in linked) else USUAL
        if most > MOST_BITS:
            name = names[0] if names else ""
            complaint = f"may make whole numbers of {_say(most)} bits on its way; {MOST_BITS} are allowed"
            self._refuse(name, most if most < math.inf else None, MOST_BITS, complaint)
        return max(most, USUAL)

    def _is_formula(self, name: str) -> bool:
        short = name[:100]
        if not isinstance(self._inputs[name], str) and not is_link(self._inputs[name]):
            return False
        if self._class.known and not self._class.computes:
            return False
        if _FORMULA.fullmatch(short) is not None:
            return self._is_regex() is False
        traits, kind = self._class.traits, self._class.inputs.get(name)
        return Trait.CALCULATES in traits and kind == "STRING" and not self._gives_only_texts()

    def _gives_only_texts(self) -> bool:
        return self._class.kinds <= {"STRING", "COMBO"}

    def _size(self, value: Any) -> Size:
        if is_link(value):
            kind = self._labour.kind_of(value)
            is_text = kind not in _NUMBERS and self._labour.text_of(value).each > 0
            known = self._labour.bits_of(value)
            return Size(known, kind == "FLOAT", is_text)
        if isinstance(value, float):
            return Size(1024, real=True)
        return Size(float(max(abs(value).bit_length(), 1))) if isinstance(value, int) else Size(is_text=True)

    # -----------------------------------------------------------------------------------------------------------

    def _text(self, name: str) -> str | None:
        if name not in self._inputs:
            return None
        value = self._inputs[name]
        return self._labour.walk.text(value) if is_link(value) else str(value)

    def _refuse(self, name: str, value: float | None, limit: float, complaint: str) -> NoReturn:
        raise _FoundError(Fault(self._id, name, value, limit, complaint))


def _unwrap(value: Any) -> Any:
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    return value


def _count_chars(value: Any, depth: int = 0) -> float:
    """Characters of the texts in a constant, and of the numbers; within lists, as JSON writes them."""
    if isinstance(value, str):
        return len(value) * _ESCAPED + _INDENT * depth + 4 if depth else len(value)
    if isinstance(value, dict):
        names = sum(_count_chars(key, depth + 1) for key in value)
        return names + sum(_count_chars(each, depth + 1) for each in value.values()) + 2 * _INDENT * depth + 4
    if isinstance(value, list):
        return sum(_count_chars(each, depth + 1) for each in value) + 2 * _INDENT * depth + 4
    size = value.bit_length() / 3 + 2 if isinstance(value, int) else 25
    return size + _INDENT * depth + 4


def _say(number: float) -> str:
    return "any number of" if number == math.inf else f"{number:.0f}" if number < 1e15 else f"{number:.0e}"
