"""Read a template's two files and check them against each other."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..bounds import read_complaint
from ..messages import FALLBACK
from ..urls import is_source
from .bodies import ParameterBody, ParameterType, PresetBody
from .lines import find_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The largest seed that ComfyUI's samplers take.
MAX_SEED = 2**64 - 1
#: The most characters of a text parameter without a `max_length` of its own.
TEXT_LENGTH = 4000
FILE_NAME_LENGTH = 255


class TemplateError(ValueError):
    """A template that cannot be used; the message names it and says why.

    Attributes:
        faults: (line of the manifest, 0 for none in particular; what is wrong) of each fault.
    """

    def __init__(self, name: str, faults: Sequence[tuple[int, str]]) -> None:
        told = "; ".join(f"line {line}: {text}" if line else text for line, text in faults)
        super().__init__(f"template {name}: {told}")
        self.faults = tuple(faults)


class WrongKindError(ValueError):
    """A value of another type than the parameter's; the message says what it must be."""


class OutOfRangeError(ValueError):
    """A value of the right type beyond the parameter's limits; the message says which."""


def _require_english(texts: dict[str, str]) -> dict[str, str]:
    if FALLBACK not in texts:
        raise ValueError(f"a text in {FALLBACK!r} is needed")
    return texts


#: Language → text.
Texts = Annotated[dict[str, str], AfterValidator(_require_english)]
Values = Mapping[str, Any]
#: Keys and numbers that lead to a value of the manifest.
Place = tuple[str | int, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Part):
    """One value that a caller may set.

    Attributes:
        into: the inputs that get it, as `node.input`; none where it only chooses presets or wiring.
        default: None where the caller must give a value; without one, a seed is drawn.
        step: between the values of an integer, from `min` on.
        max_length: of texts, in characters.
    """

    type: ParameterType
    into: tuple[str, ...] = ()
    default: bool | int | float | str | None = None
    min: int | float | None = None
    max: int | float | None = None
    step: int = Field(1, ge=1)
    max_length: int = Field(TEXT_LENGTH, ge=1)
    choices: tuple[str, ...] = ()
    help: Texts

    @model_validator(mode="after")
    def _check_limits(self) -> Parameter:
        if self.type in ("integer", "number") and (self.min is None or self.max is None or self.min > self.max):
            raise ValueError(f"{self.type} needs min and max")
        if self.type == "choice" and not self.choices:
            raise ValueError("choice needs choices")
        if self.default is not None:
            self.read(self.default)
        return self

    @property
    def required(self) -> bool:
        return self.default is None and self.type != "seed"

    def read(self, value: Any) -> Any:
        """Turn a caller's value into the graph's. Raises WrongKindError, OutOfRangeError."""
        if self.type in ("integer", "seed"):
            return self._read_integer(value)
        if self.type == "number":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise WrongKindError("must be a number")
            self._check_within(value, self.min, self.max)
            return float(value)
        if self.type == "boolean":
            if not isinstance(value, bool):
                raise WrongKindError("must be true or false")
            return value
        if not isinstance(value, str):
            raise WrongKindError("must be a string")
        if self.type == "choice":
            if value not in self.choices:
                raise WrongKindError(f"must be one of {', '.join(self.choices)}")
        elif self.type == "file":
            if not is_source(value) and not 1 <= len(value) <= FILE_NAME_LENGTH:
                raise OutOfRangeError(f"must be a file's name of 1 to {FILE_NAME_LENGTH} characters")
        elif len(value) > self.max_length:
            raise OutOfRangeError(f"must have {self.max_length} characters at most, not {len(value)}")
        return value

    def describe(self, name: str, locale: str) -> ParameterBody:
        """The parameter as JSON, with only the fields that its type has."""
        told: ParameterBody = {
            "name": name,
            "type": self.type,
            "required": self.required,
            "default": self.default,
            "help": choose_text(self.help, locale),
        }
        if self.type in ("integer", "number"):
            told["min"], told["max"] = self.min, self.max
        if self.type == "integer" and self.step > 1:
            told["step"] = self.step
        if self.type == "seed":
            told["min"], told["max"] = 0, MAX_SEED
        if self.type == "text":
            told["max_length"] = self.max_length
        if self.type == "choice":
            told["choices"] = list(self.choices)
        return told

    def _read_integer(self, value: Any) -> int:
        # Some clients send 20 as 20.0.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            raise WrongKindError("must be a whole number")
        whole = int(value)
        low, high = (0, MAX_SEED) if self.type == "seed" else (self.min, self.max)
        self._check_within(whole, low, high)
        if (whole - int(low or 0)) % self.step:
            raise OutOfRangeError(f"must be {low} plus a multiple of {self.step}")
        return whole

    @staticmethod
    def _check_within(value: float, low: float | None, high: float | None) -> None:
        if low is not None and high is not None and not low <= value <= high:
            raise OutOfRangeError(f"must be from {low} to {high}")


class _Conditional(_Part):
    """Applies only where parameters have the values of `when`."""

    when: dict[str, bool | str] = {}


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


class NodePack(_Part):
    """A package of node classes that must be installed."""

    name: str
    source: str
    licence: str
    classes: tuple[str, ...]


class VramStep(_Part):
    """The video memory that one step of the work takes; the largest step counts.

    Attributes:
        pixels: the parameters whose product is the picture's size in pixels.
        frames: the parameter that says how many pictures of that size there are; none: one.
    """

    step: str
    gib: float
    gib_per_megapixel: float = 0
    pixels: tuple[str, ...] = ()
    frames: str = ""

    @property
    def sizes(self) -> tuple[str, ...]:
        return (*self.pixels, self.frames) if self.frames else self.pixels


class Manifest(_Part):
    """The contents of `name.toml`.

    Attributes:
        outputs: ids of the output nodes; nodes that none of them needs are left out of the prompt.
        read_at: repository → the commit where class names, inputs and paths were looked up.
    """

    title: Texts
    description: Texts
    outputs: tuple[str, ...]
    read_at: dict[str, str] = {}
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
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise TemplateError(name, [(0, f"{type(error).__name__}: {error}")]) from None
        faults: list[tuple[Place, str]] = []
        manifest, graph = None, None
        try:
            manifest = Manifest.model_validate(values)
        except ValidationError as error:
            complaints = [(item["loc"], *read_complaint(item)) for item in error.errors()]
            faults += [(place, f"{field}: {complaint}") for place, field, complaint in complaints]
        try:
            graph = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            check_graph(graph)
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
                    if name not in parameters or name in preset or parameters[name].default is None:
                        text = f"{name} cannot be a condition: it has no default of its own, or a preset"
                        yield (kind, number, "when"), text
                    elif fault := _find_fault(parameters[name], value):
                        yield (kind, number, "when"), f"{name} {fault}"
        for number, each in enumerate(manifest.presets):
            for name, value in each.parameters.items():
                fault = _find_fault(parameters[name], value) if name in parameters else "is no parameter"
                if fault:
                    yield ("presets", number, "parameters"), f"{name} {fault}"
        for number, step in enumerate(manifest.vram):
            if any(name not in parameters or parameters[name].type != "integer" for name in step.sizes):
                yield ("vram", number, "pixels"), f"the size in {step.step} must come from integers"

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


def _find_fault(parameter: Parameter, value: Any) -> str | None:
    try:
        parameter.read(value)
    except (WrongKindError, OutOfRangeError) as error:
        return str(error)
    return None


def choose_text(texts: Mapping[str, str], locale: str) -> str:
    return texts.get(locale) or texts[FALLBACK]


def applies(when: Mapping[str, Any], values: Values) -> bool:
    """Whether the parameters have the values of a condition."""
    return all(values[name] == value for name, value in when.items())
