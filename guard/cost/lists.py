"""Count a list's items: each of them runs the nodes that follow once, up to one that takes the list whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .classes import NodeClass
from .names import Role
from .ranges import ENDLESS, LONGEST_LIST, read_list, read_number
from .shapes import Asked
from .values import ONE, Items, Value

#: Samplers that a host has, or schedulers; 0.33 has 45 and 9.
_MOST_NAMES = 100


def count_runs(node_id: str, node_class: NodeClass, linked: Mapping[str, Value]) -> Items:
    """How often its lists run a node: once for each item of the longest."""
    lists = [value.items for value in linked.values() if value.items != ONE]
    if node_class.takes_lists or not lists:
        return ONE
    makers = {each.maker for each in lists}
    return Items(
        max(each.most for each in lists),
        max(each.least for each in lists),
        makers.pop() if len(makers) == 1 else node_id,
        all(each.counted for each in lists),
    )


def count_parts(node_class: NodeClass, inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """How often a node samples that takes its steps and the like as texts such as `20, 25`: each with each."""
    if node_class.inputs.get("steps") != "STRING":
        return 1
    parts = math.prod(value.conditions for value in linked.values())
    for name, kind in node_class.inputs.items():
        if kind != "STRING" or name == "steps" or name not in inputs:
            continue
        text = linked[name].text if name in linked else inputs[name]
        if isinstance(text, str):
            parts = min(parts * max(count_list(text), 1), ENDLESS)
        elif name in linked:
            parts = ENDLESS if linked[name].told else parts
    return parts


def count_list(text: str) -> float:
    """How many numbers such a text has, at most."""
    if len(text) > LONGEST_LIST:
        return ENDLESS
    return min(sum(_expand(part)[0] for part in _list_parts(text)), ENDLESS)


def sum_parts(text: str) -> float:
    """All numbers of such a text together, at most."""
    if len(text) > LONGEST_LIST:
        return ENDLESS
    return min(sum(count * most for count, most in map(_expand, _list_parts(text))), ENDLESS)


def _list_parts(text: str) -> list[str]:
    return text.replace("\n", ",").split(",")


def _expand(part: str) -> tuple[float, float]:
    """(how many, the largest) of one part: a number, a row of them (`10...20+5`), or all names that there are (`*`)."""
    if part.strip().startswith(("*", "!")):
        return _MOST_NAMES, 0
    if "..." not in part:
        return 1, read_number(part) or 0
    start, _, rest = part.partition("...")
    end, _, step = rest.partition("+")
    numbers = [abs(read_number(one) or 0) for one in (start, end, step)]
    return min((numbers[0] + numbers[1]) / numbers[2] + 1, ENDLESS) if numbers[2] else ENDLESS, max(numbers[:2])


def spread(linked: Mapping[str, Value]) -> dict[str, Value]:
    """What each link brings in all runs together. The last item of a list comes again while another one is longer."""
    return {name: _repeat(value, linked) for name, value in linked.items()}


def _repeat(value: Value, linked: Mapping[str, Value]) -> Value:
    longest = max((each.items.most for each in linked.values() if each.items.maker != value.items.maker), default=1)
    again = longest - value.items.least + 1
    if value.extent is None or again <= 1:
        return value
    return value._replace(extent=value.extent._replace(batch=min(value.extent.batch * again, ENDLESS)))


def mark_lists(
    node_id: str,
    node_class: NodeClass,
    values: Sequence[Value],
    inputs: Mapping[str, Any],
    linked: Mapping[str, Value],
    asked: Sequence[Asked],
) -> list[Value]:
    """The outputs' values, where those that are lists say how long they are."""
    # Each round of a loop is counted already.
    if any(one.role is Role.ROUNDS and one.number is not None for one in asked):
        return list(values)
    marked = list(values)
    for at in node_class.lists:
        if at < len(marked):
            items = _count(node_class, marked[at], inputs, linked, asked)
            marked[at] = marked[at]._replace(items=items._replace(maker=f"{node_id}/{at}"))
    return marked


def _count(
    node_class: NodeClass,
    value: Value,
    inputs: Mapping[str, Any],
    linked: Mapping[str, Value],
    asked: Sequence[Asked],
) -> Items:
    given = [linked[name].items if name in linked else ONE for name in inputs]
    gathered = min(sum(each.most for each in given), ENDLESS)
    counted = all(each.counted for each in given)
    if node_class.gathers:
        return Items(gathered, min(sum(each.least for each in given), ENDLESS), counted=counted)
    if value.extent is not None:
        # There is a picture in each item; or so many.
        most = value.extent.pictures
        sizes = [one.number[0] for one in asked if one.role is Role.BATCH and one.number is not None]
        if sizes and min(sizes) >= 1:
            most = min(math.ceil(most / min(sizes)) + gathered, most)
        return Items(most, counted=counted and any(each.extent is not None for each in linked.values()))
    if node_class.takes_lists:
        return Items(gathered, counted=counted)
    texts = [linked[name].text if name in linked else each for name, each in inputs.items()]
    parts = [max(len(read_list(text)), text.count("\n") + 1) for text in texts if isinstance(text, str)]
    return Items(min(value.items.most * max(parts, default=1), ENDLESS), counted=False)
