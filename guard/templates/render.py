"""Turn parameters into a prompt.

Values go into the parsed graph and never into its text, so that they may hold anything.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidRequestError, PolicyViolationError
from .manifest import Template, applies
from .parameter import OutOfRangeError, Parameter, Values, WrongKindError
from .pruning import drop_absent, drop_unneeded

#: Seeds are drawn below this, because JavaScript reads larger numbers wrong.
SEEDS = 2**53
#: The least share of a step's weights that is on the card. ComfyUI could do with none; but what is read from RAM is
#: read anew in each sampling step, and a job that takes several times as long as others is nothing to sell.
RESIDENT = 0.5


def choose_values(
    template: Template, given: Mapping[str, Any], draw: Callable[[int], int] = secrets.randbelow
) -> Values:
    """Choose every parameter's value: the given one, else a preset's, else the default, else a drawn seed.

    Raises:
        InvalidRequestError: parameters do not exist, are missing, or have a value of the wrong type.
        PolicyViolationError: values are beyond their limits. Both errors name all of them, in
            `extra_info.parameters`.
    """
    manifest = template.manifest
    wrong = {name: "there is no such parameter" for name in given if name not in manifest.parameters}
    beyond: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, parameter in manifest.parameters.items():
        if given.get(name) is None:
            if parameter.is_needed:
                wrong[name] = "must be given"
            continue
        try:
            values[name] = parameter.read(given[name])
        except WrongKindError as error:
            wrong[name] = str(error)
        except OutOfRangeError as error:
            beyond[name] = str(error)
    for faults, error_class in ((wrong, InvalidRequestError), (beyond, PolicyViolationError)):
        if faults:
            listed = "; ".join(f"{name[:100]}: {fault}" for name, fault in faults.items())
            raise error_class(f"Template {template.name}: {listed}.", extra_info={"parameters": faults})
    return {
        name: manifest.parameters[name].read(value) if value is not None else _choose(manifest.parameters[name], draw)
        for name, value in complete(template, values).items()
    }


def _choose(parameter: Parameter, draw: Callable[[int], int]) -> int | None:
    """What stands for a value that nobody gave: a seed; None for a file that may be left out."""
    return draw(SEEDS) if parameter.type == "seed" else None


def complete(template: Template, given: Values) -> dict[str, Any]:
    """Add presets and defaults for what is not `given`, and None for what has neither."""
    manifest = template.manifest
    values = {name: given.get(name, parameter.default) for name, parameter in manifest.parameters.items()}
    chosen = set(given)
    for preset in manifest.presets:
        if applies(preset.when, values):
            for name in preset.parameters.keys() - chosen:
                values[name] = preset.parameters[name]
                chosen.add(name)
    return values


def render(template: Template, values: Values, model_names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Put `values` into a copy of the graph, and leave out the nodes that its outputs do not need, or that are about
    files that were not given.

    Args:
        values: every parameter's, from :func:`choose_values`.
        model_names: model file → the name by which the host lists it, where that differs.
    """
    graph: dict[str, Any] = copy.deepcopy(template.graph)
    manifest = template.manifest
    absent = set()
    for name, parameter in manifest.parameters.items():
        for target in parameter.into:
            if values[name] is None:
                absent.add(target.partition(".")[0])
            else:
                _put(graph, target, values[name])
    for model in manifest.models:
        for target in model.into:
            _put(graph, target, (model_names or {}).get(model.file, model.file))
    for wiring in manifest.wiring:
        if applies(wiring.when, values):
            for target, value in wiring.inputs.items():
                _put(graph, target, copy.deepcopy(value))
    return drop_unneeded(drop_absent(graph, absent), manifest.outputs)


def estimate_vram_gib(template: Template, values: Values, resident: float = RESIDENT) -> float:
    """Estimate the video memory of the largest step, in GiB; 0 where the template says nothing.

    Args:
        resident: the share of the weights that lies on the card; ComfyUI reads the rest from RAM in each step.
    """
    largest = 0.0
    for step in template.manifest.vram:
        pixels = 1.0 if step.sizes else 0.0
        for name in step.sizes:
            pixels *= values[name]
        largest = max(largest, step.gib + step.weights_gib * resident + step.gib_per_megapixel * pixels / 1e6)
    return round(largest, 1)


def _put(graph: dict[str, Any], target: str, value: Any) -> None:
    node_id, _, name = target.partition(".")
    graph[node_id]["inputs"][name] = value
