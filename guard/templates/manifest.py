"""Read a template's two files and check them against each other."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..bounds import read_complaint
from ..messages import FALLBACK
from ..urls import is_source
from .bodies import ParameterBody, ParameterType, PresetBody

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
    """A template that cannot be used; the message names it and says why."""


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
    """

    step: str
    gib: float
    gib_per_megapixel: float = 0
    pixels: tuple[str, ...] = ()


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
            manifest = Manifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
            graph = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            template = cls(name, manifest, graph)
            template._check()
        except ValidationError as error:
            field, complaint = read_complaint(error.errors()[0])
            raise TemplateError(f"template {name}: {field}: {complaint}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TemplateError(f"template {name}: {type(error).__name__}: {error}") from None
        return template

    def _check(self) -> None:
        """Check that everything that the manifest names exists. Raises ValueError."""
        known = {f"{node_id}.{name}" for node_id, node in self.graph.items() for name in node["inputs"]}
        if unknown := sorted({target for target in self._list_targets() if target not in known}):
            raise ValueError(f"the graph has no input {', '.join(unknown)}")
        if unknown := sorted(set(self.manifest.outputs) - set(self.graph)):
            raise ValueError(f"the graph has no node {', '.join(unknown)}")
        manifest, parameters = self.manifest, self.manifest.parameters
        preset = {name for each in manifest.presets for name in each.parameters}
        parts: list[_Conditional] = [*manifest.presets, *manifest.wiring, *manifest.models]
        for part in parts:
            for name, value in part.when.items():
                if name in preset or parameters[name].default is None:
                    raise ValueError(f"{name} cannot be a condition: it has no default of its own, or a preset")
                parameters[name].read(value)
        for each in manifest.presets:
            for name, value in each.parameters.items():
                parameters[name].read(value)
        for step in manifest.vram:
            if any(parameters[name].type != "integer" for name in step.pixels):
                raise ValueError(f"the size in {step.step} must come from integers")

    def _list_targets(self) -> Iterator[str]:
        for parameter in self.manifest.parameters.values():
            yield from parameter.into
        for model in self.manifest.models:
            yield from model.into
        for wiring in self.manifest.wiring:
            yield from wiring.inputs


def choose_text(texts: Mapping[str, str], locale: str) -> str:
    return texts.get(locale) or texts[FALLBACK]


def applies(when: Mapping[str, Any], values: Values) -> bool:
    """Whether the parameters have the values of a condition."""
    return all(values[name] == value for name, value in when.items())
