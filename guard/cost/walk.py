"""Go through a prompt's graph, and tell what each node asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..graph import is_link
from .classes import PLAIN, NodeClass, NodeClasses, find_short_role
from .lists import count_runs, mark_lists, spread
from .names import Role, Trait
from .ranges import ENDLESS, Range, apply_word, count_chars, evaluate, read_list, read_number
from .sizes import Asked, combine, read_factor
from .values import Amount, Extent, Items, Media, Value, unite_values

_SIDE = re.compile(r"(?:.*_)?(?:width|w)", re.I)
_UP = re.compile(r"(?:.*_)?(?:height|h)", re.I)
_BATCH = re.compile(
    r"batch|batch_size|batch_count|count|image_count|(?:.*_)?frame_count|frames|num_frames|length", re.I
)
_RATE = re.compile(r"(?:.*_)?(?:fps|frame_rate)", re.I)
_SECONDS = re.compile(r"(?:.*_)?(?:duration|seconds)", re.I)
_FORMULA = re.compile(r"expression|formula|equation|value|code", re.I)
_WORD = re.compile(r"operation|operator|op|mode|method|function", re.I)
_SELECTOR = re.compile(r"switch|boolean|cond|condition|select(?:ed)?|index|input|number_type|sel_mode", re.I)
_YES = frozenset({"on_true", "tt_value", "if_true", "true_value", "true"})
_NO = frozenset({"on_false", "ff_value", "if_false", "false_value", "false"})
_MATH = ((Trait.PLUS, "+"), (Trait.MINUS, "-"), (Trait.TIMES, "*"), (Trait.OVER, "/"))
_OWN_PICTURES = frozenset(
    {Role.WIDTH, Role.HEIGHT, Role.MOST_WIDTH, Role.MOST_HEIGHT, Role.MEGAPIXELS, Role.SIDE, Role.SHORT_SIDE}
    | {Role.FRAMES, Role.CAP, Role.BATCH}
)

#: The texts of formulas that one prompt may have read: they take microseconds a character.
_FORMULA_CHARS = 20_000

_UNKNOWN = Value()
_NO_CLASSES = NodeClasses()


class Walk:
    """One graph. Its nodes must be objects with a `class_type` and `inputs`; looks at each node and each link once.

    Args:
        media: what the loaders' files hold, by node id.

    Attributes:
        amounts: what each node asks for that makes pictures, or more of them, or works on them.
    """

    def __init__(
        self,
        graph: Mapping[str, Any],
        classes: NodeClasses = _NO_CLASSES,
        media: Mapping[str, Media] | None = None,
    ) -> None:
        self._graph = graph
        self._classes = classes
        self._media = media or {}
        self._values: dict[str, Sequence[Value] | Value] = {}
        self._asked: dict[str, list[Asked]] = {}
        self._formula_chars = _FORMULA_CHARS
        self.amounts: list[Amount] = []
        for node_id in self._order():
            self._visit(node_id)

    def kind(self, node_id: str) -> str:
        return str(self._graph[node_id]["class_type"])

    def numbers(self) -> Iterator[tuple[str, Asked]]:
        """(node id, what it asks for) of every input that counts by itself."""
        for node_id, node in self._graph.items():
            asked = self._asked.get(node_id)
            if asked is None:  # in a circle
                asked = self._list_asked(node["inputs"])
            for one in asked:
                if one.role is Role.FRAMES:
                    node_class = self._classes.find(str(node["class_type"]))
                    if Trait.CUTS in node_class.traits or node_class.only_plain:
                        continue
                yield node_id, one

    def read(self, value: Any) -> Range | None:
        """What an input's number may be; None: only the run can tell."""
        if is_link(value):
            found = self._find(value)
            return found.number if found.number is not None or found.text is None else _read_text(found.text)
        return _read_text(value)

    # One node after the other. -------------------------------------------------------------------------------

    def _order(self) -> Iterator[str]:
        """Each node after those that it takes from. Nodes in a circle never come; ComfyUI cannot run them either."""
        graph = self._graph
        needs: dict[str, int] = {}
        feeds: dict[str, list[str]] = {}
        ready: list[str] = []
        for node_id, node in graph.items():
            count = 0
            for value in node["inputs"].values():
                if is_link(value) and value[0] in graph:
                    count += 1
                    feeds.setdefault(value[0], []).append(node_id)
            needs[node_id] = count
            if not count:
                ready.append(node_id)
        while ready:
            node_id = ready.pop()
            yield node_id
            for fed in feeds.get(node_id, ()):
                needs[fed] -= 1
                if not needs[fed]:
                    ready.append(fed)

    def _find(self, link: Any) -> Value:
        """What a link brings; of an output that is not there, the node's first."""
        values = self._values.get(link[0], _UNKNOWN)
        if isinstance(values, Value):
            return values
        at = int(link[1]) if math.isfinite(link[1]) else 0
        return values[at] if 0 <= at < len(values) else values[0] if values else _UNKNOWN

    def _list_asked(self, inputs: Mapping[str, Any]) -> list[Asked]:
        return [
            Asked(name, role, self.read(value))
            for name, value in inputs.items()
            if (role := find_short_role(name)) is not None
        ]

    def _visit(self, node_id: str) -> None:
        node = self._graph[node_id]
        inputs = node["inputs"]
        node_class = self._classes.find(str(node["class_type"]))
        traits = node_class.traits
        linked = {name: self._find(value) for name, value in inputs.items() if is_link(value)}
        asked = self._asked[node_id] = self._list_asked(inputs)
        times = _count_rounds(asked, traits, linked)
        branches = self._list_branches(inputs) if Trait.SWITCH in traits else {}
        if branches and node_class.lazy:
            linked = {name: value for name, value in linked.items() if name in branches or name not in node_class.lazy}
        runs = count_runs(node_id, node_class, linked)
        if runs.most > 1:
            linked = spread(linked)
        extents = _list_extents(node_class, linked) if linked else []
        media = self._media.get(node_id)
        handed = [value for value in _list_values(branches, linked) if value is not None]
        if handed:
            whole = unite_values(handed, each=runs.most > 1)
        elif _handles_pictures(node_class, extents, asked, media):
            whole = self._make_pictures(node_id, node_class, linked, asked, media, (times, runs), extents)
        elif node_class.gathers:
            whole = unite_values([value for value in _list_values(inputs, linked) if value is not None])
        else:
            whole = Value(
                number=self._find_number(node_class, inputs, linked) if node_class.numbers else None,
                text=_find_text(node_class, inputs, linked) if node_class.numbers else None,
                steps=_find_steps(inputs, asked, linked),
                factor=_find_factor(node, linked),
            )
        if (times, runs) != (whole.times, whole.items):
            whole = whole._replace(times=max(times, whole.times), items=runs)
        outputs = node_class.outputs
        if node_class.only_plain or (outputs and whole.extent is not None) or len(outputs) > 1 or node_class.lists:
            values = self._deal(node_class, whole, inputs, linked)
            if node_class.lists:
                values = mark_lists(node_id, node_class, values, inputs, linked, asked)
            self._values[node_id] = values
        else:
            self._values[node_id] = whole

    def _make_pictures(
        self,
        node_id: str,
        node_class: NodeClass,
        linked: Mapping[str, Value],
        asked: Sequence[Asked],
        media: Media | None,
        often: tuple[float, Items],
        extents: Sequence[Extent],
    ) -> Value:
        times, runs = often
        inputs = self._graph[node_id]["inputs"]
        texts = {name: value for name, value in inputs.items() if isinstance(value, str)}
        factor = rate = 0.0
        for name, value in linked.items():
            factor, rate = max(factor, value.factor), max(rate, value.rate)
            if value.text is not None:
                texts[name] = value.text
        names, extent = combine(
            extents, asked, texts, node_class.traits, factor=factor, media=media, times=times, runs=runs.most
        )
        if not runs.counted:
            extent = extent._replace(known=False)
        writes = next((one for one in asked if one.role is Role.RATE), None)
        if writes is not None and writes.number is not None:
            rate = writes.number[0]
        elif media is not None:
            rate = media.rate
        steps = _find_steps(inputs, asked, linked)
        works = steps if node_class.makes else 0
        if names or writes is not None or works or (node_class.takes_films and extent.frames):
            name = names[0] if names and names[0] else writes.name if writes is not None else _first_link(inputs)
            rated = rate if writes is not None else None
            self.amounts.append(Amount(node_id, name, extent, rated, works, times, node_class.pictures, runs.most))
        return Value(extent=extent, steps=0 if node_class.makes else steps, rate=rate)

    # Numbers. ------------------------------------------------------------------------------------------------

    def _list_branches(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a switch may hand on: of a selector that is known, its branch; else any of them."""
        branches = {name: value for name, value in inputs.items() if not _SELECTOR.fullmatch(name)}
        selector = next((value for name, value in inputs.items() if name in ("switch", "boolean", "cond")), None)
        chosen = self.read(selector) if is_link(selector) or isinstance(selector, (bool, int)) else None
        if chosen is not None and chosen[0] == chosen[1]:
            wanted = _YES if chosen[0] else _NO
            branches = {name: value for name, value in branches.items() if name in wanted} or branches
        return branches

    def _find_number(
        self, node_class: NodeClass, inputs: Mapping[str, Any], linked: Mapping[str, Value]
    ) -> Range | None:
        if len(inputs) == 1:
            if Trait.COUNTS in node_class.traits and "STRING" in node_class.inputs.values():
                return count_chars(_find_text(node_class, inputs, linked))
            return self.read(next(iter(inputs.values())))
        operands = {
            name.rpartition(".")[2]: self.read(value)
            for name, value in inputs.items()
            if is_link(value) or isinstance(value, (int, float))
        }
        for name, value in inputs.items():
            text = linked[name].text if name in linked else value
            if not isinstance(text, str):
                continue
            if _FORMULA.fullmatch(name) and self._formula_chars >= len(text):
                self._formula_chars -= len(text)
                return evaluate(text, operands)
            if _WORD.fullmatch(name):
                return apply_word(text, list(operands.values()))
        for trait, sign in _MATH:
            if trait in node_class.traits and len(operands) == 2:
                return apply_word(sign, list(operands.values()))
        return None

    def _deal(
        self, node_class: NodeClass, whole: Value, inputs: Mapping[str, Any], linked: Mapping[str, Value]
    ) -> list[Value]:
        """What each output gives."""
        values: list[Value] = []
        bare = Value(times=whole.times, items=whole.items)
        several = len(node_class.outputs) > 1
        for kind, name in node_class.outputs:
            if kind not in PLAIN:
                one = whole
                if "audio" in name.lower():
                    one = bare
                elif kind == "MASK" and Trait.ONE_MASK in node_class.traits and whole.extent is not None:
                    one = whole._replace(extent=whole.extent._replace(batch=whole.items.most, frames=0))
                values.append(one)
                continue
            number = whole.number
            if whole.extent is not None:
                number = self._measure(name, whole, inputs)
            elif several and (named := _find_named(name, inputs)) is not None:
                found = linked[named] if named in linked else _of_constant(inputs[named])
                if found is not None:
                    values.append(found._replace(times=max(found.times, whole.times), items=whole.items))
                    continue
            if kind == "INT" and number is not None:
                number = _truncate(number[0]), _truncate(number[1])
            values.append(bare._replace(number=number, text=whole.text if kind != "INT" else None))
        return values

    def _measure(self, word: str, whole: Value, inputs: Mapping[str, Any]) -> Range | None:
        """What a node that has pictures says of them in a number."""
        extent = whole.extent
        assert extent is not None
        number = 0.0
        if _SIDE.fullmatch(word):
            number = extent.width
        elif _UP.fullmatch(word):
            number = extent.height
        elif _BATCH.fullmatch(word):
            number = extent.pictures if extent.known else 0
        elif _RATE.fullmatch(word):
            number = whole.rate
        elif _SECONDS.fullmatch(word):
            number = extent.frames / whole.rate if whole.rate else 0
        if number <= 0:
            named = _find_named(word, inputs) if find_short_role(word) is not None else None
            return self.read(inputs[named]) if named is not None else None
        return number, number


def _truncate(number: float) -> float:
    return float(math.trunc(number)) if math.isfinite(number) else number


def _count_rounds(asked: Sequence[Asked], traits: frozenset[Trait], linked: Mapping[str, Value]) -> float:
    """How often a node runs, and all that follows it."""
    times = 1.0
    for value in linked.values():
        times = max(times, value.times)
    for one in asked:
        if one.role is Role.ROUNDS and one.number is not None and (Trait.LOOPS in traits or "_" in one.name):
            times = min(times * max(one.number[1], 1), ENDLESS)
    return times


def _list_extents(node_class: NodeClass, linked: Mapping[str, Value]) -> list[Extent]:
    """The pictures that come in: those of the kind that goes out, where there are such."""
    found: list[tuple[str, Extent]] = []
    for name, value in linked.items():
        if value.extent is not None and "audio" not in name and (kind := node_class.takes_pictures(name)) is not None:
            found.append((kind, value.extent))
    if len(found) > 1 and node_class.given is not None:
        same = [extent for kind, extent in found if kind in (node_class.given, "*")]
        if same:
            # Of masks it may take as many as there are, each with the picture.
            masks = max((extent.pictures for kind, extent in found if kind == "MASK"), default=0)
            if node_class.given == "IMAGE" and masks > max(extent.pictures for extent in same):
                same.append(same[0]._replace(batch=masks, frames=0))
            return same
    return [extent for _kind, extent in found]


def _handles_pictures(
    node_class: NodeClass, extents: Sequence[Extent], asked: Sequence[Asked], media: Media | None
) -> bool:
    """Whether a node gets pictures, loads some, makes some of a size that it is told, or says how large they are."""
    if extents or media is not None:
        return True
    if node_class.known:
        return node_class.given is not None or node_class.sizes
    return any(one.role in _OWN_PICTURES for one in asked)


def _find_factor(node: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """By how much a model that the node loads makes pictures larger; 0: it loads none."""
    if "upscale" in str(node["class_type"])[:100].lower():
        names = [value for value in node["inputs"].values() if isinstance(value, str)]
        if names:
            return max(map(read_factor, names))
    return max((value.factor for value in linked.values()), default=0)


def _find_steps(inputs: Mapping[str, Any], asked: Sequence[Asked], linked: Mapping[str, Value]) -> float:
    """The steps that a node takes, or that its schedule has."""
    steps = [one.number[1] for one in asked if one.role is Role.STEPS and one.number is not None]
    steps += [value.steps for value in linked.values() if value.steps]
    for name in ("sigmas", "steps", "timesteps"):
        if name in inputs and (numbers := read_list(linked[name].text if name in linked else inputs[name])):
            steps.append(len(numbers) - 1 if name == "sigmas" else sum(numbers))
    if not steps:
        return 0
    most = max(max(steps), 0)
    last = [one.number[1] for one in asked if one.role is Role.LAST_STEP and one.number is not None]
    first = [one.number[0] for one in asked if one.role is Role.FIRST_STEP and one.number is not None]
    return max(min(most, *last) - max(0.0, *first) if last or first else most, 0)


def _find_text(node_class: NodeClass, inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> str | None:
    """The text that a node hands on: that of its only input, or of the only one that it declares."""
    name = next(iter(node_class.inputs if len(node_class.inputs) == 1 else inputs), "")
    if name not in inputs or (len(inputs) > 1 and len(node_class.inputs) != 1):
        return None
    value = inputs[name]
    return linked[name].text if name in linked else value if isinstance(value, str) and len(value) < 10_000 else None


def _find_named(name: str, inputs: Mapping[str, Any]) -> str | None:
    """The input that an output is named after."""
    return next((each for each in inputs if each.rpartition(".")[2].lower() == name.lower()), None)


def _first_link(inputs: Mapping[str, Any]) -> str:
    return next((name for name, value in inputs.items() if is_link(value)), "")


def _read_text(text: Any) -> Range | None:
    if (number := read_number(text)) is not None:
        return number, number
    numbers = read_list(text)
    return (min(numbers), max(numbers)) if numbers else None


def _list_values(inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> list[Value | None]:
    return [linked[name] if name in linked else _of_constant(value) for name, value in inputs.items()]


def _of_constant(value: Any) -> Value | None:
    number = read_number(value)
    if isinstance(value, str):
        return Value(number=(number, number) if number is not None else None, text=value[:10_000])
    return Value(number=(number, number)) if number is not None else None
