"""What requests may hold, and the events of a stream, as types: the contract's schemas are made from them.

The types of answers stand beside the code that builds the answers.
"""

# Without `from __future__ import annotations`: compiling each annotation from its text would make a start slower.
from typing import Annotated, Any

from pydantic import ConfigDict, Field, WithJsonSchema, with_config
from pydantic.config import JsonDict
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from ..guard.callers.positions import PositionBody
from ..guard.events.event import AlarmEvent, PreviewEvent, ProgressEvent
from ..guard.faces.gate import AskedRules
from ..guard.job import JobBody, Root
from ..guard.submit.request import GuardOptions

_FILE: JsonDict = {"type": "string", "format": "binary"}

#: The bytes of a file.
Binary = Annotated[bytes, WithJsonSchema(_FILE)]
#: A field of a form that holds JSON.
JsonText = Annotated[str, WithJsonSchema({"type": "string", "contentMediaType": "application/json"})]

#: The data of one server-sent event: of a state, a position, a step, a picture, an alarm.
Event = TypeAliasType("Event", JobBody | PositionBody | ProgressEvent | PreviewEvent | AlarmEvent)


class PromptNode(TypedDict):
    """One node of a prompt in ComfyUI's API format."""

    class_type: str
    inputs: dict[str, Any]
    _meta: NotRequired[dict[str, Any]]


class _Beside(TypedDict):
    """What may stand beside a prompt, or beside a template's parameters."""

    client_id: NotRequired[Annotated[str, Field(max_length=255)]]
    prompt_id: NotRequired[Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]]
    extra_data: NotRequired[dict[str, Any]]
    number: NotRequired[float]
    front: NotRequired[bool]
    guard: NotRequired[GuardOptions]


class PromptRequest(_Beside):
    """What ComfyUI's POST /prompt takes, and `guard`."""

    prompt: Annotated[dict[str, PromptNode], Field(min_length=1)]
    partial_execution_targets: NotRequired[list[str]]


class WorkflowRequest(_Beside):
    """Values for a template's parameters; beside them, what a prompt may have except the prompt."""

    parameters: NotRequired[dict[str, Any]]


_FURTHER_PARTS_ARE_FILES = ConfigDict(json_schema_extra={"additionalProperties": _FILE})


class _BesideInForm(TypedDict):
    """The same as fields of a form."""

    client_id: NotRequired[str]
    prompt_id: NotRequired[str]
    extra_data: NotRequired[JsonText]
    number: NotRequired[JsonText]
    front: NotRequired[JsonText]
    guard: NotRequired[JsonText]


@with_config(_FURTHER_PARTS_ARE_FILES)
class PromptForm(_BesideInForm):
    """The fields of a prompt, those that are no text as JSON; each further part is a file that a loader names."""

    prompt: JsonText
    partial_execution_targets: NotRequired[JsonText]


@with_config(_FURTHER_PARTS_ARE_FILES)
class WorkflowForm(_BesideInForm):
    """The fields of a template's request; each further part is the file of the parameter that it is named after."""

    parameters: NotRequired[JsonText]


class StoredPicture(AskedRules):
    """A picture that the server has, and the rules for its faces."""

    model_config = ConfigDict(defer_build=True)

    image: Annotated[str, Field(min_length=1)]
    subfolder: str = ""
    type: Root = "input"


class PictureForm(AskedRules):
    """A picture, and the rules for its faces beside it."""

    model_config = ConfigDict(defer_build=True)

    image: Binary


class UploadForm(TypedDict):
    """ComfyUI's upload of a picture."""

    image: Binary
    type: NotRequired[Root]
    subfolder: NotRequired[str]
    overwrite: NotRequired[str]


class MaskForm(UploadForm):
    """ComfyUI's upload of a mask; `original_ref` names the picture that it is put on."""

    original_ref: JsonText


class QueueCommand(TypedDict):
    """`clear` takes all of the caller's own jobs out, `delete` those that it names."""

    clear: NotRequired[bool]
    delete: NotRequired[list[str]]


class DrainCommand(TypedDict):
    """Whether the server is to drain; without a body it is."""

    draining: NotRequired[bool]


class InterruptRequest(TypedDict):
    """The job to interrupt; without one, whatever of the caller's own runs."""

    prompt_id: NotRequired[str]


class CancelRequest(TypedDict):
    """The jobs to cancel."""

    job_ids: list[str]
