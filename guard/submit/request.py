"""Read a request: strict JSON or a form, its options, and the shape of its graph."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .. import messages
from ..bounds import Bounds, holds_more, read_json, read_model, refuse_unknown
from ..client import Client
from ..errors import GuardError, InvalidRequestError, InvalidWorkflowError, clip
from ..faces.gate import AskedCheck
from ..files.uploads import UploadedFile
from ..graph import find_circle, find_fault, name_kind
from ..job import Job
from ..life.secrets import SECRET_NAMES
from ..store import IdempotencyKey
from .conversion import Convert, take_workflow
from .results import AskedResults

#: Kept small because every list, event and webhook that shows the job carries the metadata.
METADATA_BYTES = 2**16
#: Small values take far more than their text, and a list of a thousand jobs, or the end of all of them, reads each.
METADATA_VALUES = 500

#: A client's own name for its user.
USER = r"^[^\x00-\x1f\x7f]{1,64}$"

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def _read_face_check(value: object) -> object:
    """Read `true` as the check with every rule at its default."""
    return {} if value is True else None if value is False else value


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > METADATA_BYTES:
        raise ValueError(f"it is over {METADATA_BYTES} bytes as JSON")
    return metadata


_State = Literal["queued", "dispatched", "running", "validating", "succeeded", "failed", "cancelled"]


class AskedWebhook(BaseModel):
    """Where to tell the caller of the job; without `events`, only of its end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    events: Annotated[list[_State], Field(min_length=1)] | None = None


class GuardOptions(BaseModel):
    """The `guard` object of a request. A field that this version does not know is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    locale: Annotated[str, Field(max_length=35)] | None = None
    face_check: Annotated[AskedCheck | None, BeforeValidator(_read_face_check)] = None
    webhook: AskedWebhook | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(_check_metadata)] = {}
    user: Annotated[str, Field(pattern=USER)] | None = None
    results: AskedResults | None = None


_NO_OPTIONS = GuardOptions()

#: Turns the body of a request for a template into that of a prompt, in place, and returns the parameters with their
#: defaults filled in. It may wait for the disk.
Fill = Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Submission:
    """One POST to `/guarded/prompt` or `/guarded/workflows/{template}`, as it came.

    Attributes:
        raw: the body; for a form, what :func:`from_form` made of its fields.
        files, file_bytes: the files of a form, and their size together.
        template, fill: the template's name, and what makes a prompt of its parameters.
        repeats: the job that this is to repeat; `by_operator`: not its owner asks for that, who then pays nothing.
    """

    raw: bytes
    client: Client
    idempotency_key: str | None = None
    accept_language: str | None = None
    files: tuple[UploadedFile, ...] = ()
    file_bytes: int = 0
    template: str = ""
    fill: Fill | None = None
    repeats: Job | None = None
    by_operator: bool = False


@dataclass(frozen=True)
class Prompt:
    """A request whose shape is sound.

    Attributes:
        body: the parsed body without `guard`.
        graph: its `prompt`, in API format.
        order, front: ComfyUI's `number` and `front`.
        secrets: the API credentials of its `extra_data`.
        parameters: of a template, with the defaults filled in.
        converted: the prompt was made of a workflow in the editor's own format.
    """

    body: dict[str, Any]
    graph: dict[str, Any]
    options: GuardOptions
    job_id: str
    client_id: str | None
    order: float | None
    front: bool
    secrets: dict[str, Any]
    parameters: dict[str, Any]
    converted: bool = False


#: The fields of a form whose values are JSON.
_JSON_FIELDS = ("prompt", "parameters", "guard", "extra_data", "number", "front", "partial_execution_targets")

#: … and those whose values are plain text.
_TEXT_FIELDS = ("client_id", "prompt_id")

FORM_FIELDS = (*_JSON_FIELDS, *_TEXT_FIELDS)


def from_form(fields: Mapping[str, bytes], bounds: Bounds) -> bytes:
    """Make a JSON body, a `Submission.raw`, of a form's fields. Raises InvalidRequestError."""
    if unknown := sorted(fields.keys() - set(FORM_FIELDS)):
        raise InvalidRequestError(
            f"There is no field {unknown[0][:100]!r}; a part that is a file has a file name.",
            extra_info={"field": unknown[0][:100]},
        )
    body: dict[str, Any] = {}
    for name in FORM_FIELDS:  # always in this order, so that equal forms have equal digests
        if name in fields:
            value = fields[name]
            is_text = name in _TEXT_FIELDS
            body[name] = value.decode("utf-8", "replace") if is_text else read_json(value, bounds, f"The field {name}")
    return json.dumps(body, ensure_ascii=False).encode()


class NeedsConversionError(Exception):
    """The prompt is a workflow in the editor's own format, and no `convert` was given."""


def parse(raw: bytes, bounds: Bounds, fill: Fill | None = None, convert: Convert | None = None) -> Prompt:
    """Parse a request's body and check its shape.

    This refuses what ComfyUI would answer with a 500, die of, or silently misread; docs/comfyui.md has the list.

    Raises:
        InvalidRequestError, InvalidWorkflowError, PayloadTooLargeError, NeedsConversionError, and what `fill` or
            `convert` raises.
    """
    body = read_json(raw, bounds)
    if not isinstance(body, dict):
        raise InvalidRequestError(f"The body must be a JSON object, not {name_kind(body)}.")
    options = _read_options(body.pop("guard", None))
    workflow = None if fill is not None else take_workflow(body)
    if workflow is not None and convert is None:
        raise NeedsConversionError
    try:
        parameters = {} if fill is None else dict(fill(body))
        if workflow is not None and convert is not None:
            body["prompt"] = convert(workflow)
    except GuardError as error:
        error.locale = messages.choose(options.locale, None, "") or None
        raise
    extra_data = _read_extra_data(body)
    if workflow is not None:
        # As the editor does, so that the workflow is in the files that are made of it.
        extra_data.setdefault("extra_pnginfo", {}).setdefault("workflow", workflow)
        body["extra_data"] = extra_data
    client_id = body.get("client_id", extra_data.get("client_id"))
    if client_id is not None and (not isinstance(client_id, str) or len(client_id) > 255):
        raise InvalidRequestError("client_id must be a string of at most 255 characters.")
    targets = body.get("partial_execution_targets")
    if targets is not None and not (isinstance(targets, list) and all(isinstance(item, str) for item in targets)):
        raise InvalidRequestError("partial_execution_targets must be a list of node ids.")
    order = body.get("number")
    if order is not None and (isinstance(order, bool) or not isinstance(order, (int, float)) or abs(order) > 2**53):
        raise InvalidRequestError("number must be a number.")
    front = body.get("front", False)
    if not isinstance(front, bool):
        raise InvalidRequestError("front must be true or false.")
    return Prompt(
        body=body,
        graph=_read_graph(body),
        options=options,
        job_id=_read_job_id(body),
        client_id=client_id or None,
        order=None if order is None else float(order),
        front=front,
        converted=workflow is not None,
        secrets={name: extra_data[name] for name in SECRET_NAMES if extra_data.get(name) is not None},
        parameters=parameters,
    )


def _read_options(given: Any) -> GuardOptions:
    if given is None:
        return _NO_OPTIONS
    if not isinstance(given, dict):
        raise InvalidRequestError(f"guard must be an object, not {name_kind(given)}.")
    metadata = given.get("metadata")
    if holds_more(metadata, METADATA_VALUES):
        raise InvalidRequestError(
            f"guard.metadata: it holds more than {METADATA_VALUES} values.", extra_info={"field": "guard.metadata"}
        )
    for name, model in (("webhook", AskedWebhook), ("face_check", AskedCheck), ("results", AskedResults)):
        refuse_unknown(model, given.get(name), f"guard.{name}.")
    options: GuardOptions = read_model(GuardOptions, given, "guard.", apart="metadata")
    return options


def _read_extra_data(body: dict[str, Any]) -> dict[str, Any]:
    extra_data = body.get("extra_data", {})
    if not isinstance(extra_data, dict):
        raise InvalidRequestError(f"extra_data must be an object, not {name_kind(extra_data)}.")
    pnginfo = extra_data.get("extra_pnginfo", {})
    if not isinstance(pnginfo, dict) or not isinstance(pnginfo.get("workflow", {}), dict):
        raise InvalidRequestError("extra_data.extra_pnginfo must be an object, and its workflow too.")
    workflow = pnginfo.get("workflow", {})
    if not isinstance(workflow.get("id", ""), str):
        del workflow["id"]  # a frontend would reject the list of all jobs for it
    return extra_data


def _read_job_id(body: dict[str, Any]) -> str:
    given = body.get("prompt_id")
    if given is None:
        return str(uuid.uuid4())
    try:
        if isinstance(given, str) and str(uuid.UUID(given)) == given:
            return given
    except ValueError:
        pass
    raise InvalidRequestError(
        "prompt_id must be a UUID in its canonical lower-case form; leave it out and the server makes one.",
        extra_info={"field": "prompt_id"},
    )


def _read_graph(body: dict[str, Any]) -> dict[str, Any]:
    if "prompt" not in body:
        raise InvalidRequestError("The body has no prompt.", extra_info={"field": "prompt"}, host_type="no_prompt")
    graph = body["prompt"]
    if not isinstance(graph, dict):
        raise InvalidWorkflowError(f"prompt must be an object of nodes, not {name_kind(graph)}.")
    if not graph:
        raise InvalidWorkflowError("The prompt has no nodes.", host_type="prompt_no_outputs")
    if fault := find_fault(graph):
        node_id, text = fault
        raise InvalidWorkflowError(f"Node {node_id[:100]!r} {text}.", extra_info={"node_id": node_id})
    if circle := find_circle(graph):
        raise InvalidWorkflowError(
            "The prompt's nodes feed each other in a circle.",
            details=" -> ".join(map(clip, circle)),
            extra_info={"nodes": circle},
        )
    return graph


def read_idempotency_key(request: Submission, since_ms: int) -> IdempotencyKey | None:
    """The key with the digest of what it stands for; jobs older than `since_ms` no longer answer to it.

    Raises InvalidRequestError.
    """
    if request.idempotency_key is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(request.idempotency_key):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    digest = hashlib.sha256(request.raw)
    # For a form, its content counts: the boundary and the order of the parts may differ when it is sent again.
    for file in sorted(request.files, key=lambda file: (file.field, file.filename, file.sha256)):
        digest.update(json.dumps([file.field, file.filename, file.sha256]).encode())
    if request.template:  # the same body sent to another template is another request
        digest.update(b"\0" + request.template.encode())
    return IdempotencyKey(request.idempotency_key, digest.hexdigest(), since_ms)


def write_body(request: Submission, prompt: Prompt, moved: bool) -> bytes:
    """What goes to disk: the body as it came, unless a template or a conversion made the prompt, it holds secrets
    (addresses to put results to are some), or the names of the sender's own files in it were changed (`moved`)."""
    results, check = prompt.options.results, prompt.options.face_check
    has_secrets = bool(prompt.secrets) or (results is not None and bool(results.put))
    if not has_secrets and not moved and not prompt.converted and request.fill is None:
        return request.raw
    body = prompt.body
    if check is not None:
        body = {**body, "guard": {"face_check": check.model_dump(exclude_unset=True)}}
    if prompt.secrets:
        body = {**body, "extra_data": {k: v for k, v in body["extra_data"].items() if k not in SECRET_NAMES}}
    return json.dumps(body).encode()
