"""Tell how many steps a schedule or a sampler takes, and how many conditions each step works on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .classes import NodeClass
from .lists import count_list, sum_parts
from .names import Role, Trait
from .ranges import ANYTHING, ENDLESS, LONGEST_LIST
from .shapes import Asked
from .values import Value

SIGMAS = "SIGMAS"
LORAS = "LORA_PARAMS"
#: What separates texts.
_NEXT = re.compile(r"[-*=~]{3,}\n")
#: Nodes take the numbers out of a text of sigmas whatever is between them.
_DIGITS = re.compile(r"\d+(?:\.\d+)?|\.\d+")


def find_steps(
    node_class: NodeClass, inputs: Mapping[str, Any], asked: Sequence[Asked], linked: Mapping[str, Value]
) -> float:
    """The steps that a node takes, or that its schedule has."""
    steps = [one.number[1] for one in asked if one.role is Role.STEPS and one.number is not None]
    steps += [value.steps for value in linked.values() if value.steps]
    for name in ("sigmas", "steps", "timesteps"):
        value = linked.get(name)
        text = value.text if value is not None else inputs.get(name)
        if isinstance(text, str):
            steps.append(sum_parts(text) if name != "sigmas" else _count_digits(text) - 1)
        elif value is not None and value.number == ANYTHING:
            steps.append(ENDLESS)
    if SIGMAS in node_class.kinds:
        before = max((value.steps for value in linked.values()), default=0)
        between = max((one.number[1] for one in asked if one.role is Role.STEPS and one.number is not None), default=0)
        steps.append(min(before * between, ENDLESS))
        steps = [most for most in steps if most]
        if not steps:
            steps.append(_count_numbers(inputs, linked))
    if not steps:
        return 0
    most = max(max(steps), 0)
    last = [one.number[1] for one in asked if one.role is Role.LAST_STEP and one.number is not None]
    first = [one.number[0] for one in asked if one.role is Role.FIRST_STEP and one.number is not None]
    return max(min([most, *last]) - max([0.0, *first]), 0)


def _count_digits(text: str) -> float:
    return len(_DIGITS.findall(text)) if len(text) <= LONGEST_LIST else ENDLESS


def _count_numbers(inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """The steps of a schedule that is a list of numbers, by the text that they come from."""
    texts = [linked[name].text if name in linked else value for name, value in inputs.items()]
    counts = [_count_digits(text) - 1 for text in texts if isinstance(text, str)]
    if any(value.text is None and value.told for value in linked.values()):
        return ENDLESS
    return max(counts, default=0)


def count_conditions(node_class: NodeClass, inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> float:
    """Conditions are put together, those that are wanted and those that are not each with their like.

    ComfyUI_essentials makes several of one text, and several strengths of a LoRA: each with each.
    """
    if Trait.SEVERAL in node_class.traits:
        parts = 1.0
        for name, kind in node_class.inputs.items():
            text = linked[name].text if name in linked else inputs.get(name)
            if kind == "STRING" and isinstance(text, str):
                texts = len(_NEXT.findall(text)) + 1 if len(text) <= LONGEST_LIST else ENDLESS
                parts = max(parts, texts, count_list(text) if LORAS in node_class.kinds else 1)
            elif name in linked and linked[name].told:
                parts = ENDLESS
        return parts
    if Trait.JOINS not in node_class.traits:
        return max((value.conditions for value in linked.values()), default=1)
    groups: dict[str, float] = {}
    for name, value in linked.items():
        if node_class.inputs.get(name, "CONDITIONING") == "CONDITIONING":
            group = name.partition("_")[0]
            groups[group] = min(groups.get(group, 0) + value.conditions, ENDLESS)
    return max(groups.values(), default=1)
