"""Read a template's two files and check them against each other."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from ...own_files import FileError, MalformedFileError
from ..graph import find_circle, is_link, list_faults
from .bodies import PresetBody
from .lines import Place, find_line, find_node_line
from .mending import Unsure, mend
from .parameter import OutOfRangeError, Parameter, Part, Texts, Values, WrongKindError
from .pruning import drop_absent
from .reading import read_graph_file, read_manifest

#: `policy.max_nodes`, where nobody has set it.
MOST_NODES = 1000
#: No reader goes through more, and each takes a search for its line.
_TOLD_FAULTS = 50


class Fault(NamedTuple):
    """What is wrong with a template: the file's name, the line in it from 1 on, and a sentence's end."""

    file: str
    line: int
    text: str


class TemplateError(ValueError):
    """A template that cannot be used; the message names it and says why.

    Attributes:
        faults: each thing that is wrong.
    """

    def __init__(self, name: str, faults: Sequence[Fault]) -> None:
        told = "; ".join(
            f"{'' if fault.file == f'{name}.toml' else f'{fault.file}, '}line {fault.line}: {fault.text}"
            for fault in faults
        )
        super().__init__(f"template {name}: {told}")
        self.faults = tuple(faults)


class GraphError(MalformedFileError):
    """A graph of which nodes are of no shape that a prompt may have. The message is the first fault.

    Attributes:
        faults: (line, what is wrong there) of each.
    """

    def __init__(self, path: Path, faults: Sequence[tuple[int, str]]) -> None:
        super().__init__(path, faults[0][1], faults[0][0])
        self.faults = tuple(faults)


def list_told(error: FileError) -> Sequence[tuple[int, str]]:
    """(line, what is wrong there) of a file that cannot be used."""
    return error.faults if isinstance(error, GraphError) else [(error.line or 1, error.reason)]


def _check_place(text: str) -> str:
    parts = text.replace("\\", "/").split("/")
    if not text.isprintable() or any(part in ("", ".", "..") for part in parts) or len(text) > 1000:
        raise ValueError("must be a path below the folder of models")
    return text


def _check_source(text: str) -> str:
    """A link on the operator's page, or words."""
    read = re.sub(r"[\0-\x1f]", "", text).strip()  # as browsers do
    if not re.match(r"https?:|(?![a-z][a-z0-9+.-]*:)", read, re.IGNORECASE):
        raise ValueError("must be an address of the web (https://…), or words")
    return text


def _check_url(text: str) -> str:
    if not re.match(r"https?://[^/]|$", text, re.IGNORECASE):
        raise ValueError("must be an address of the web (https://…)")
    return text


_Source = Annotated[str, AfterValidator(_check_source)]
#: A file or folder below ComfyUI's models.
_Below = Annotated[str, AfterValidator(_check_place)]
_Gib = Annotated[float, Field(ge=0, le=1e9)]
_Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]


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

    file: _Below
    folder: _Below
    size_mb: int = Field(ge=1, le=10**7)
    source: _Source
    licence: str
    into: tuple[str, ...] = ()
    url: Annotated[str, AfterValidator(_check_url)] = ""
    sha256: Annotated[str, Field(pattern="^(?:[0-9a-f]{64})?$")] = ""


class NodePack(Part):
    """A package of node classes that must be installed."""

    name: str
    source: _Source
    licence: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]


class VramStep(Part):
    """The video memory that one step of the work takes; the largest step counts.

    Attributes:
        gib: what must be on the card, whatever the size.
        weights_gib: weights beside it, of which ComfyUI keeps a part in RAM where the card has no room for all.
        pixels: the parameters whose product is the picture's size in pixels.
        frames: the parameter that says how many pictures of that size there are; none: one.
    """

    step: str
    gib: _Gib
    weights_gib: _Gib = 0
    gib_per_megapixel: _Gib = 0
    pixels: Annotated[tuple[str, ...], Field(max_length=8)] = ()
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
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    comfyui: Annotated[str, Field(pattern=r"^(?:\d{1,9}(?:\.\d{1,9})*)?$")] = ""
    read_at: dict[str, str] = Field(default_factory=dict)
    parameters: dict[_Name, Parameter]
    presets: tuple[Preset, ...] = ()
    wiring: tuple[Wiring, ...] = ()
    models: tuple[Model, ...] = ()
    node_packs: tuple[NodePack, ...] = ()
    vram: tuple[VramStep, ...] = ()


#: Stands for a manifest of which nothing can be read.
_NOTHING = Manifest(title={"en": ""}, description={"en": ""}, outputs=("",), parameters={})


@dataclass(frozen=True)
class Template:
    """A graph, and the manifest that says what may change in it."""

    name: str
    manifest: Manifest
    graph: dict[str, Any]

    @classmethod
    def read(cls, path: Path, most_nodes: int = MOST_NODES) -> Template:
        """Read the template whose manifest is `path`, with its graph beside it. Raises TemplateError."""
        name, beside, graph, beyond = path.stem, path.with_suffix(".json"), {}, []
        try:
            text, values = read_manifest(path)
        except FileError as error:
            raise TemplateError(name, [Fault(path.name, error.line or 1, error.reason)]) from None
        # As JSON, since in that pydantic takes true for no number, and yet lists for tuples.
        manifest, places, unsure = mend(values, lambda told: Manifest.model_validate_json(told, strict=True))
        try:
            graph = read_graph(beside, most_nodes)
        except FileError as error:
            beyond = [Fault(beside.name, line, told) for line, told in list_told(error)]
        template = cls(name, manifest or _NOTHING, graph)
        faults = [*places, *(template._list_faults(unsure) if manifest is not None else ())]
        if faults or beyond:
            raise TemplateError(name, [*_point(path, text, faults), *beyond])
        return template

    def _list_faults(self, unsure: Unsure) -> Iterator[tuple[Place, str]]:
        """(place in the manifest, what is wrong) of what does not go together, or names what does not exist.

        Nothing is said about the graph where there is none.
        """
        parameters = self.manifest.parameters
        for name, parameter in parameters.items():
            for field, told in parameter.list_faults(unsure.list_fields("parameters", name)):
                yield ("parameters", name, field), f"parameters.{name}.{field}: {told}"
        if self.graph:
            yield from self._list_lost(unsure)
        yield from self._list_odd_conditions(unsure)
        for number, each in enumerate(self.manifest.presets):
            for name, value in each.parameters.items():
                place = ("presets", number, "parameters", name)
                if name not in parameters:
                    if not unsure.holds("parameters", name):
                        yield place, f"{name} is no parameter"
                elif not unsure.holds(*place) and (fault := _find_fault(name, parameters[name], value, unsure)):
                    yield place, f"{name} {fault}"
        if self.graph and not unsure:
            yield from self._list_lost_outputs()
        for number, step in enumerate(self.manifest.vram):
            sure = [name for name in step.sizes if "type" not in unsure.list_fields("parameters", name)]
            sure = [name for name in sure if name and not unsure.holds("parameters", name)]
            if any(name not in parameters or parameters[name].type != "integer" for name in sure):
                yield ("vram", number, "pixels"), f"the size in {step.step} must come from integers"

    def _list_lost(self, unsure: Unsure) -> Iterator[tuple[Place, str]]:
        """What the manifest names and the graph does not have."""
        known = {
            f"{node_id}.{name}" for node_id, node in self.graph.items() for name in node["inputs"] if "." not in node_id
        }
        for place, target in self._list_targets():
            if target not in known and not unsure.holds(*place):
                yield place, f"the graph has no input {target}"
        for number, node_id in enumerate(self.manifest.outputs):
            if node_id not in self.graph and not unsure.holds("outputs", number):
                yield ("outputs", number), f"the graph has no node {node_id}"
        filled: dict[str, str] = {}
        for name, parameter in self.manifest.parameters.items():
            if parameter.required or parameter.default is not None:  # else it may make way for another
                for at, target in enumerate(parameter.into):
                    if filled.setdefault(target, name) != name and not unsure.holds("parameters", name):
                        yield (
                            ("parameters", name, "into", at),
                            f"parameters.{name}: {filled[target]} fills {target}, too",
                        )
        for number, wiring in enumerate(self.manifest.wiring):
            for target, value in wiring.inputs.items():
                place = ("wiring", number, "inputs", target)
                if isinstance(value, list) and not _is_sound_link(value):
                    yield place, f"{target} must be a value, or [node id, slot]"
                elif is_link(value) and value[0] not in self.graph:
                    yield place, f"the graph has no node {value[0]}"

    def _list_odd_conditions(self, unsure: Unsure) -> Iterator[tuple[Place, str]]:
        manifest, parameters = self.manifest, self.manifest.parameters
        preset = {name for each in manifest.presets for name in each.parameters}
        for kind in ("presets", "wiring", "models"):
            for number, part in enumerate(getattr(manifest, kind)):
                for name, value in part.when.items():
                    place = (kind, number, "when", name)
                    if name not in parameters:
                        if not unsure.holds("parameters", name):
                            yield place, f"{name} is no parameter"
                        continue
                    doubted = unsure.list_fields("parameters", name)
                    if not parameters[name].required and not doubted & {"type", "required"}:
                        if not isinstance(value, bool):
                            yield place, f"{name} is a file: true where it was given, or false"
                    elif name in preset or (parameters[name].default is None and not doubted & {"default", "required"}):
                        text = f"{name} cannot be a condition: it has no default of its own, or a preset"
                        yield place, text
                    elif not unsure.holds(*place) and (fault := _find_fault(name, parameters[name], value, unsure)):
                        yield place, f"{name} {fault}"

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
            yield from ((("parameters", name, "into", at), target) for at, target in enumerate(parameter.into))
        for number, model in enumerate(self.manifest.models):
            yield from ((("models", number, "into", at), target) for at, target in enumerate(model.into))
        for number, wiring in enumerate(self.manifest.wiring):
            yield from ((("wiring", number, "inputs", target), target) for target in wiring.inputs)


def _point(path: Path, text: str, faults: Sequence[tuple[Place, str]]) -> list[Fault]:
    """Faults with their lines, from top to bottom, as many as somebody reads."""
    told = [Fault(path.name, find_line(text, place) or 1, fault) for place, fault in faults[:_TOLD_FAULTS]]
    told.sort(key=lambda fault: fault.line)
    if len(faults) > _TOLD_FAULTS:
        told.append(Fault(path.name, 1, f"and {len(faults) - _TOLD_FAULTS} more faults"))
    return told


def read_graph(path: Path, most_nodes: int = MOST_NODES) -> dict[str, Any]:
    """Read a graph in API format, of a shape that a prompt may have.

    Raises FileError; for one in the editor's own format it says how to make one of it.
    """
    text, graph = read_graph_file(path)
    if not isinstance(graph, dict) or not graph:
        raise MalformedFileError(
            path, "this is no graph in API format: an object of nodes with class_type and inputs", 1
        )
    if isinstance(graph.get("nodes"), list):
        raise MalformedFileError(
            path,
            "this is the editor's own format; export the graph with Export (API), or turn it into a prompt with the "
            "command convert",
            find_node_line(text, "nodes"),
        )
    if "prompt" in graph and isinstance(graph["prompt"], dict) and "class_type" not in graph["prompt"]:
        line = find_node_line(text, "prompt")
        raise MalformedFileError(path, "this is a request; only its prompt belongs here", line)
    if len(graph) > most_nodes:
        raise MalformedFileError(path, f"it has {len(graph)} nodes; {most_nodes} are allowed (policy.max_nodes)", 1)
    if faults := list(itertools.islice(list_faults(graph), _TOLD_FAULTS)):
        told = "this is no graph in API format: node"
        raise GraphError(path, [(find_node_line(text, each), f"{told} {each} {fault}") for each, fault in faults])
    if circle := find_circle(graph):
        told = f"its nodes feed each other in a circle: {' -> '.join(circle[:10])}"
        raise MalformedFileError(path, told, find_node_line(text, circle[0]))
    return graph


def _is_sound_link(value: list[Any]) -> bool:
    return is_link(value) and not isinstance(value[1], bool) and value[1] >= 0 and value[1] == int(value[1])


def _can_apply(when: Mapping[str, Any], values: Values) -> bool:
    return all(name in values for name in when) and applies(when, values)


def _find_fault(name: str, parameter: Parameter, value: Any, unsure: Unsure) -> str | None:
    """Why the parameter does not take that value, as far as it says what it takes."""
    doubted = unsure.list_fields("parameters", name)
    if doubted - {"help", "into", "default"} or any(field != "default" for field, _ in parameter.list_faults(doubted)):
        return None
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
