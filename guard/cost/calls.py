"""Tell how often a sampler calls its model: patches, samplers and conditions that make a step cost more than one call.

By ComfyUI 0.33's `comfy/context_windows.py`, `comfy/k_diffusion/sampling.py`, and those nodes of `comfy_extras` and of
ComfyUI-KJNodes that call a model once more, or enlarge what a part of it works on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from .classes import PICTURES, PLAIN, NodeClass
from .particular import Node
from .ranges import ENDLESS, LONGEST_LIST, Range, read_number
from .sizes import USUAL_FACTOR, read_factor
from .values import ONCE, Calls, Value, unite_calls

#: What is made with a model, and goes with it to its sampler: it has the same calls, which are not counted twice.
_LOST = PLAIN | PICTURES | {"SIGMAS", "NOISE", "VAE", "CLIP", "AUDIO"}
#: Patches that call the model, or one beside it, once more at each step, those of several nodes one after the other.
_GUIDES = re.compile(r"guidance|perp-?neg|referenceaudio|control-?net", re.I)
#: Conditions that bring as much again: pictures beside the one that is made.
_REFERS = re.compile(r"referencelatent", re.I)
#: Samplers that take as many steps as they need, whatever the schedule.
_ADAPTIVE = re.compile(r"adapt|^\s*[*!]", re.I)
#: Calls that such a sampler is taken for, with the tolerances that it has by default. Usual are 40 to 120.
TRIES = 200.0
_RTOL, _ATOL, _LEAST_START = 0.05, 0.0078, 1e-6
#: What its other numbers may be: with others its steps may never become longer, or never be good enough.
_STEADY: Mapping[str, tuple[float, float, float]] = {  # default, least, most
    "pcoeff": (0, 0, 0),
    "icoeff": (1, 0.5, 1.5),
    "dcoeff": (0, 0, 0),
    "accept_safety": (0.81, 0, 1),
    "eta": (0, 0, 1),
    "s_noise": (1, 0, 2),
}
#: Entries of a plan, each of which takes memory.
_LONGEST_PLAN = 100_000
_RANGE = re.compile(r"(.*\.)?start_step(\d{0,3})")
_DIGITS = re.compile(r"\d{1,6}")

Kind = Callable[[Any], str]


def find_calls(class_type: str, node_class: NodeClass, node: Node, kind_of: Kind) -> Calls:
    """Those of a node's model, sampler and conditions together, and what it adds itself."""
    before: dict[str, Calls] = {}
    for name, value in node.linked.items():
        if value.calls is not ONCE and value.calls != ONCE:
            kind = node_class.inputs.get(name) or kind_of(node.inputs[name])
            before[kind] = unite_calls([before[kind], value.calls]) if kind in before else value.calls
    calls = ONCE
    for each in before.values():
        calls = _multiply(calls, each) if calls is not ONCE else each
    return _add_own(class_type, node_class, node, calls)


def hands_calls(node_class: NodeClass) -> bool:
    """Whether a node gives something by which a sampler may come to have its calls."""
    return not node_class.known or not node_class.kinds <= _LOST


def find_factor(
    class_type: str,
    node_class: NodeClass,
    inputs: Mapping[str, Any],
    read: Callable[[Any], Range | None],
    linked: Mapping[str, Value],
) -> float:
    """By how much a model that the node loads, or a sampler that it gives, makes pictures larger; 0: it does not."""
    if "SAMPLER" in node_class.kinds:
        ratio = read(inputs.get("scale_ratio", 1))
        most = ratio[1] if ratio is not None else USUAL_FACTOR
        return max([*(value.factor for value in linked.values()), most if most > 1 else 0])
    if "upscale" in class_type[:100].lower():
        names = [value for value in inputs.values() if isinstance(value, str)]
        if names:
            return max(map(read_factor, names))
    return max((value.factor for value in linked.values()), default=0)


def _multiply(one: Calls, other: Calls) -> Calls:
    return Calls(
        min(one.times * other.times, ENDLESS),
        min(one.added + other.added, ENDLESS),
        min(one.larger * other.larger, ENDLESS),
        max(one.again, other.again),
        max(one.together, other.together),
        max(one.least, other.least),
    )


def _add_own(class_type: str, node_class: NodeClass, node: Node, calls: Calls) -> Calls:
    kinds, inputs = node_class.kinds, node.inputs
    short = class_type[:100]
    if "MODEL" in kinds or not node_class.known:
        if "context_length" in inputs and "context_overlap" in inputs:
            calls = calls._replace(times=min(calls.times * _count_windows(short.lower(), node), ENDLESS))
        if "downscale_factor" in inputs:
            calls = calls._replace(larger=min(calls.larger * _find_larger(node), ENDLESS))
        if "passes" in inputs:  # each calls what others have patched before
            calls = calls._replace(times=min(calls.times * _count_passes(node), ENDLESS))
    if "MODEL" in kinds and "MODEL" in node_class.inputs.values() and _GUIDES.search(short):
        calls = calls._replace(added=calls.added + 1)
    if "CONDITIONING" in kinds and (_REFERS.search(short) or "CONTROL_NET" in node_class.inputs.values()):
        calls = calls._replace(added=calls.added + 1)
    if "rtol" in inputs and "atol" in inputs:
        return calls._replace(least=max(calls.least, _count_tries(node)))
    if "sampler_name" in inputs and _ADAPTIVE.search((node.text("sampler_name") or "adaptive")[:LONGEST_LIST]):
        calls = calls._replace(least=max(calls.least, TRIES))
    if "SAMPLER" in kinds:
        again, together = _read_plan(node)
        if together:
            calls = calls._replace(again=again, together=together)
    return calls


def _count_windows(class_type: str, node: Node) -> float:
    """How many pixels all windows have together, by those of the latent, at most, whichever length that has."""
    length, overlap = (node.read(node.inputs[name]) for name in ("context_length", "context_overlap"))
    if length is None or overlap is None:
        return ENDLESS
    moment = 4.0 if "wan" in class_type else 8.0 if "ltx" in class_type else 1.0
    if "temporal_downscale" in node.inputs and node.text("frame_units") != "latent":
        moment = max(node.most("temporal_downscale"), 1)
    longest, shortest = (max(math.ceil(min(each, ENDLESS) / moment), 1) for each in (length[1], max(length[0], 1)))
    ratio = longest / max(shortest - math.ceil(max(overlap[1], 0) / moment), 1)
    schedule = node.text("context_schedule") or ""
    if schedule.startswith("batched"):
        return 1
    if schedule.startswith("standard_static"):
        return max(ratio, 2)
    # Windows begin anywhere, those at the end come twice, and each stride has its own.
    return (2 * ratio + 1) * min(max(node.most("context_stride", 1), 1), 16)


def _find_larger(node: Node) -> float:
    known = node.read(node.inputs["downscale_factor"])
    if known is None or known[0] <= 0:
        return ENDLESS
    return max(1 / known[0] ** 2, 1)


def _count_passes(node: Node) -> float:
    text = node.text("passes")
    numbers = [float(each) for each in _DIGITS.findall(text[:100])] if text is not None else [node.most("passes", 8)]
    return max([*numbers, 1]) + 1


def _count_tries(node: Node) -> float:
    """Calls of a sampler that goes by tolerances. Each half as large is taken for twice as many."""
    for name, (default, least, most) in _STEADY.items():
        known = node.read(node.inputs[name]) if name in node.inputs else (default, default)
        if known is None or not least <= known[0] <= known[1] <= most:
            return ENDLESS
    start = node.read(node.inputs["h_init"]) if "h_init" in node.inputs else (_RTOL, _RTOL)
    if start is None or start[0] < _LEAST_START:
        return ENDLESS
    tight = 1.0
    for name, usual in (("rtol", _RTOL), ("atol", _ATOL)):
        known = node.read(node.inputs[name])
        if known is None or known[0] <= 0:
            return ENDLESS
        tight = max(tight, usual / known[0])
    return min(TRIES * tight, ENDLESS)


def _read_plan(node: Node) -> tuple[float, float]:
    """(calls more at one step, at all steps) of a sampler that refines what it has made, by ranges of steps."""
    ranges: list[tuple[float, float, float]] = []
    for name in node.inputs:
        short = name[:100]
        if short.endswith("stochastic_plan"):
            text = node.text(name)
            if text is None or len(text) > LONGEST_LIST:
                return ENDLESS, ENDLESS
            ranges += _split_plan(text)
        elif (found := _RANGE.fullmatch(short)) is not None:
            before, at = found[1] or "", found[2]
            names = (name, f"{before}end_step{at}", f"{before}steps_{at}")
            if all(each in node.inputs for each in names):
                known = [node.read(node.inputs[each]) for each in names]
                if None in known:
                    return ENDLESS, ENDLESS
                first, last, steps = (each or (0.0, 0.0) for each in known)
                ranges.append((first[0], last[1], steps[1]))
    counts = [(max(last - first + 1, 0), max(steps, 0)) for first, last, steps in ranges]
    if sum(length for length, _steps in counts) > _LONGEST_PLAN:
        return ENDLESS, ENDLESS
    return (
        max((steps for length, steps in counts if length), default=0.0),
        min(sum(length * steps for length, steps in counts), ENDLESS),
    )


def _split_plan(text: str) -> list[tuple[float, float, float]]:
    """The ranges of such a text as `2-5:3, 6-14:1`: up to the first that is none, where the node gives up."""
    found: list[tuple[float, float, float]] = []
    for part in text.split(","):
        if not part.strip():
            continue
        ranged, _, steps = part.partition(":")
        first, _, last = ranged.partition("-")
        numbers = [read_number(each.strip()) for each in (first, last, steps)]
        if None in numbers:
            break
        found.append(tuple(each or 0.0 for each in numbers))  # type: ignore[arg-type]
    return found
