"""What callers see of a template, as types."""

# Without `from __future__ import annotations`: compiling each annotation from its text would make a start slower.
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

ParameterType = Literal["integer", "number", "boolean", "choice", "text", "file", "seed"]


class ParameterBody(TypedDict):
    """One value that a caller may set: beside `help`, what applies to its type."""

    name: str
    type: ParameterType
    required: bool
    default: bool | int | float | str | None
    min: NotRequired[int | float | None]
    max: NotRequired[int | float | None]
    step: NotRequired[int]
    max_length: NotRequired[int]
    choices: NotRequired[list[str]]
    help: str


class PresetBody(TypedDict):
    """Values for parameters that the caller left out, where other parameters have the values of `when`."""

    when: dict[str, bool | str]
    parameters: dict[str, Any]


class ModelFacts(TypedDict):
    """A model file: the folder below ComfyUI's models that it belongs into, and where it is to be had."""

    file: str
    folder: str
    size_mb: int
    source: str
    licence: str


class ModelBody(ModelFacts):
    """A model that a template needs where parameters have the values of `when`, and whether it is here."""

    when: dict[str, bool | str]
    present: bool


class NodePackBody(TypedDict):
    """A package of node classes that a template needs, and whether it is here."""

    name: str
    source: str
    licence: str
    present: bool


class MissingBody(TypedDict):
    """What this server lacks for a template at its defaults."""

    models: list[str]
    node_packs: list[str]
    classes: list[str]


class WorkflowBody(TypedDict):
    """A template: what it takes, and what this server lacks for it.

    `read_at`: repository and commit. `reasons`: why it is not ready, in sentences; empty where it is. `comfyui`: the
    first version of ComfyUI that it runs on; empty: any. `vram_gb`: what a job needs at the defaults, by which it is
    refused; with `vram_full_gb`, no weights lie in RAM during a step.
    """

    name: str
    title: str
    description: str
    parameters: list[ParameterBody]
    presets: list[PresetBody]
    vram_gb: float | None
    vram_full_gb: float | None
    comfyui: str
    models: list[ModelBody]
    node_packs: list[NodePackBody]
    read_at: dict[str, str]
    missing: MissingBody
    reasons: list[str]
    ready: bool
