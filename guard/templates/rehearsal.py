"""Fill a template in as callers will, before any of them does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import GuardError
from ..graph import find_circle, find_fault
from .manifest import MOST_NODES, Fault, Manifest, Template, TemplateError
from .parameter import Parameter
from .render import choose_values, estimate_vram_gib, render

#: So many conditions are tried, each for itself.
_MOST_CASES = 64


def read_template(path: Path, most_nodes: int = MOST_NODES) -> Template:
    """Read the template whose manifest is `path`. Raises TemplateError, and nothing else.

    What passes makes a prompt that the host can be asked to take, with the defaults and under each condition.
    """
    try:
        template = Template.read(path, most_nodes)
        told = [each for given in _list_cases(template.manifest) if (each := _try(template, given))]
        if not told:
            return template
        # Each fault with the first case that shows it.
        faults = [case + fault for fault, case in dict(reversed([(fault, case) for case, fault in told])).items()]
    except TemplateError:
        raise
    except Exception as error:  # nobody else's template may suffer, whatever was overlooked here
        faults = [f"{type(error).__name__}: {error}"[:500]]
    raise TemplateError(path.stem, [Fault(path.name, 1, fault) for fault in reversed(faults)])


def _list_cases(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """What callers may give: no more than they must, and beside it what each condition asks for."""
    needed = {name: _make_up(each) for name, each in manifest.parameters.items() if each.is_needed}
    yield needed
    conditions = [part.when for part in (*manifest.presets, *manifest.wiring, *manifest.models) if part.when]
    for when in conditions[:_MOST_CASES]:
        asked = {
            name: _make_up(manifest.parameters[name]) if manifest.parameters[name].type == "file" else value
            for name, value in when.items()
            if value is not False or manifest.parameters[name].type != "file"
        }
        yield {**needed, **asked}
    if largest := {name: each.max for name, each in manifest.parameters.items() if each.type == "integer"}:
        yield {
            **needed,
            **{name: (each if _fits(manifest.parameters[name], each) else None) for name, each in largest.items()},
        }


def _fits(parameter: Parameter, value: Any) -> bool:
    try:
        parameter.read(value)
    except ValueError:
        return False
    return True


def _make_up(parameter: Parameter) -> Any:
    if parameter.type == "choice":
        return parameter.choices[0]
    if parameter.type == "boolean":
        return False
    if parameter.type in ("integer", "number"):
        return parameter.min
    return "x.png" if parameter.type == "file" else "x"


def _try(template: Template, given: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with the prompt that is made of these parameters, after the words that say of which."""
    told = ", ".join(f"{name} = {value!r}" for name, value in given.items())[:200]
    case = f"with {told}" if told else "with its defaults"
    try:
        values = choose_values(template, given)
    except GuardError as error:
        return case, f": {error.message}"
    graph = render(template, values)
    if lost := [node_id for node_id in template.manifest.outputs if node_id not in graph]:
        return case, f", nothing is left of the output {lost[0]}"
    if fault := find_fault(graph):
        return case, f": node {fault[0]} {fault[1]}"
    if circle := find_circle(graph):
        return case, f", its nodes feed each other in a circle: {' -> '.join(circle[:10])}"
    json.dumps([graph, values], allow_nan=False).encode()
    if not math.isfinite(estimate_vram_gib(template, values)):
        return case, ", its video memory cannot be told"
    return None
