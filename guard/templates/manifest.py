"""Read a template's two files and check them against each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ...own_files import FileError, read_json, read_toml
from ..bounds import read_complaint
from .bodies import PresetBody
from .lines import find_line
from .parameter import OutOfRangeError, Parameter, Part, Texts, Values, WrongKindError
from .pruning import drop_absent


class TemplateError(ValueError):
    """A template that cannot be used; the message names it and says why.

    Attributes:
        faults: (line of the manifest, 0 for none in particular; what is wrong) of each fault.
    """

    def __init__(self, name: str, faults: Sequence[tuple[int, str]]) -> None:
        told = "; ".join(f"line {line}: {text}" if line else text for line, text in faults)
        super().__init__(f"template {name}: {told}")
        self.faults = tuple(faults)


#: Keys and numbers that lead to a value of the manifest.
Place = tuple[str | int, ...]


class _Conditional(Part):
    """Applies only where parameters have the values of `when`; true, for a file that may be left out: it was given."""

    when: dict[str, bool | str] = Field(default_factory=dict)


class Preset(_Conditional):
    """Values for parameters that the caller left out. The first of several presets for one parameter counts."""

    parameters: dict[str, Any]

    def body(self) -> PresetBody:
        """As JSON."""
        return {"when": self.when, "parameters": self.parameters}


class Wiring(_Conditional):
    """Values that replace those of the graph's inputs (`node.input`)."""

    inputs: dict[str, Any]


class Model(_Conditional):
    """A model file, in a folder below ComfyUI's models or wherever that kind is registered.

    Attributes:
        into: the inputs that name it; they get the name by which this server lists it.
        url, sha256: where the file itself is to be had, and what it hashes to; "": as the Hugging Face repository at
            `source` has it.
    """

    file: str
    folder: str
    size_mb: int
    source: str
    licence: str
    into: tuple[str, ...] = ()
    url: str = ""
    sha256: Annotated[str, Field(pattern="^(?:[0-9a-f]{64})?$")] = ""


class NodePack(Part):
    """A package of node classes that must be installed."""

    name: str
    source: str
    licence: str
    classes: tuple[str, ...]


class VramStep(Part):
    """The video memory that one step of the work takes; the largest step counts.

    Attributes:
        gib: what must be on the card, whatever the size.
        weights_gib: weights beside it, of which ComfyUI keeps a part in RAM where the card has no room for all.
        pixels: the parameters whose product is the picture's size in pixels.
        frames: the parameter that says how many pictures of that size there are; none: one.
    """

    step: str
    gib: float
    weights_gib: float = 0
    gib_per_megapixel: float = 0
    pixels: tuple[str, ...] = ()
    frames: str = ""

    @property
    def sizes(self) -> tuple[str, ...]:
        return (*self.pixels, self.frames) if self.frames else self.pixels


class Manifest(Part):
    """The contents of `name.toml`.

    Attributes:
        outputs: ids of the output nodes; nodes that none of them needs are left out of the prompt.
        comfyui: the first version of ComfyUI that has the nodes and knows the models; "": any.
        read_at: repository → the commit where class names, inputs and paths were looked up.
    """

    title: Texts
    description: Texts
    outputs: tuple[str, ...]
    comfyui: Annotated[str, Field(pattern=r"^(?:\d+(?:\.\d+)*)?$")] = ""
    read_at: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Parameter]
    presets: tuple[Preset, ...] = ()
    wiring: tuple[Wiring, ...] = ()
    models: tuple[Model, ...] = ()
    node_packs: tuple[NodePack, ...] = ()
    vram: tuple[VramStep, ...] = ()


@dataclass(frozen=True)
class Template:
    """A graph, and the manifest that says what may change in it."""

    name: str
    manifest: Manifest
    graph: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Template:
        """Read the template whose manifest is `path`, with its graph beside it. Raises TemplateError."""
        name = path.stem
        try:
            values, text = read_toml(path)
        except FileError as error:
            raise TemplateError(name, [(error.line, error.reason)]) from None
        except OSError as error:
            raise TemplateError(name, [(0, f"it cannot be read: {error.strerror}")]) from None
        faults: list[tuple[Place, str]] = []
        manifest, graph = None, None
        try:
            manifest = Manifest.model_validate(values)
        except ValidationError as error:
            complaints = [(item["loc"], *read_complaint(item)) for item in error.errors()]
            faults += [(place, f"{field}: {complaint}") for place, field, complaint in complaints]
        try:
            graph = read_json(path.with_suffix(".json"))
            check_graph(graph)
        except FileError as error:
            faults.append(((), str(error)))
        except (OSError, ValueError) as error:
            faults.append(((), f"{name}.json: {error}"))
        if manifest is not None and graph is not None and not faults:
            template = cls(name, manifest, graph)
            if not (faults := list(template._list_faults())):
                return template
        raise TemplateError(name, [(find_line(text, place), fault) for place, fault in faults])

    def _list_faults(self) -> Iterator[tuple[Place, str]]:
        """(place in the manifest, what is wrong) of each thing that it names and that does not exist."""
        manifest, parameters = self.manifest, self.manifest.parameters
        known = {f"{node_id}.{name}" for node_id, node in self.graph.items() for name in node["inputs"]}
        for place, target in self._list_targets():
            if target not in known:
                yield place, f"the graph has no input {target}"
        for node_id in manifest.outputs:
            if node_id not in self.graph:
                yield ("outputs",), f"the graph has no node {node_id}"
        preset = {name for each in manifest.presets for name in each.parameters}
        for kind in ("presets", "wiring", "models"):
            for number, part in enumerate(getattr(manifest, kind)):
                for name, value in part.when.items():
                    if name in parameters and not parameters[name].required:
                        if not isinstance(value, bool):
                            yield (kind, number, "when"), f"{name} is a file: true where it was given, or false"
                    elif name not in parameters or name in preset or parameters[name].default is None:
                        text = f"{name} cannot be a condition: it has no default of its own, or a preset"
                        yield (kind, number, "when"), text
                    elif fault := _find_fault(parameters[name], value):
                        yield (kind, number, "when"), f"{name} {fault}"
        for number, each in enumerate(manifest.presets):
            for name, value in each.parameters.items():
                fault = _find_fault(parameters[name], value) if name in parameters else "is no parameter"
                if fault:
                    yield ("presets", number, "parameters"), f"{name} {fault}"
        yield from self._list_lost_outputs()
        for number, step in enumerate(manifest.vram):
            if any(name not in parameters or parameters[name].type != "integer" for name in step.sizes):
                yield ("vram", number, "pixels"), f"the size in {step.step} must come from integers"

    def _list_lost_outputs(self) -> Iterator[tuple[Place, str]]:
        """The outputs that go with the files that may be left out, though a wiring should have led around those."""
        parameters = self.manifest.parameters
        usual = {name: parameter.default for name, parameter in parameters.items()}
        graph = copy.deepcopy(self.graph)
        for wiring in self.manifest.wiring:
            for target, value in wiring.inputs.items() if _can_apply(wiring.when, usual) else ():
                node_id, _, name = target.partition(".")
                if node_id in graph:
                    graph[node_id]["inputs"][name] = value
        left_out = {
            target.partition(".")[0]: name
            for name, parameter in parameters.items()
            if not parameter.required and parameter.default is None
            for target in parameter.into
        }
        kept = drop_absent(graph, left_out)
        for node_id in self.manifest.outputs:
            if node_id in graph and node_id not in kept:
                yield ("outputs",), f"without {', '.join(sorted(set(left_out.values())))}, nothing is left of {node_id}"

    def _list_targets(self) -> Iterator[tuple[Place, str]]:
        for name, parameter in self.manifest.parameters.items():
            yield from ((("parameters", name, "into"), target) for target in parameter.into)
        for number, model in enumerate(self.manifest.models):
            yield from ((("models", number, "into"), target) for target in model.into)
        for number, wiring in enumerate(self.manifest.wiring):
            yield from ((("wiring", number, "inputs"), target) for target in wiring.inputs)


def check_graph(graph: Any) -> None:
    """Raises ValueError where that is no graph in API format; says how to make one of the editor's own."""
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise ValueError(
            "this is the editor's own format; export the graph with Export (API), or turn it into a prompt with the "
            "command convert"
        )
    nodes = graph.values() if isinstance(graph, dict) else ()
    if not nodes or not all(
        isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str)
        for node in nodes
    ):
        raise ValueError("this is no graph in API format: an object of nodes with class_type and inputs")


def _can_apply(when: Mapping[str, Any], values: Values) -> bool:
    return all(name in values for name in when) and applies(when, values)


def _find_fault(parameter: Parameter, value: Any) -> str | None:
    try:
        parameter.read(value)
    except (WrongKindError, OutOfRangeError) as error:
        return str(error)
    return None


def applies(when: Mapping[str, Any], values: Values) -> bool:
    """Whether the parameters have the values of a condition."""
    return all(_fits(values[name], value) for name, value in when.items())


def _fits(have: Any, wanted: Any) -> bool:
    """Of a file, a condition only says whether it was given."""
    is_flag = isinstance(wanted, bool) and not isinstance(have, bool)
    return (have is not None) is wanted if is_flag else bool(have == wanted)
