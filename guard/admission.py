"""The way in: everything that happens before a job exists.

In this order: body limits, idempotency replay, room in the queue, the client's rate, shape, policy, the files that it
names, the host's own validation, faces, and the commit, which looks at the room and the idempotency key once more.
(Who asks, the routes have settled before.)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import uuid
from asyncio import wrap_future
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from . import messages, uploads, webhooks
from .access import Client
from .clock import Clock
from .errors import (
    BadImageError,
    DiskFullError,
    GuardError,
    InternalError,
    InvalidRequestError,
    InvalidWorkflowError,
    MissingModelError,
    MissingNodeError,
    PayloadTooLargeError,
    QueueFullError,
    ServerUnavailableError,
)
from .estimate import shape
from .faces.gate import AskedCheck, FaceGate
from .faces.required import FACE_LOADER
from .files import show_as_seen
from .health import Health
from .host import Host, Refusal
from .janitor.in_use import Hold, InUse
from .job import NewJob, Webhook
from .journal import Seldom
from .limits import Limits
from .policy import Policy
from .references import References
from .secrets import SECRET_NAMES, Secrets
from .settings import Settings
from .store import IdempotencyKey, Store, Submitted
from .uploads import MEDIA_SUFFIXES, UploadedFile, Uploads

log = logging.getLogger("guarded.admission")

MODEL_SUFFIXES = frozenset(
    {".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".onnx", ".gguf", ".pkl", ".engine"}
)
#: Refusals that tell the operator that the server is too small.
_FULL = frozenset({QueueFullError.code, DiskFullError.code, ServerUnavailableError.code})

#: It is in every list, event and webhook that shows the job.
METADATA_BYTES = 2**16

#: Larger bodies are parsed on another thread: 16 MiB of small numbers take more than a second.
PARSED_AT_ONCE_BYTES = 2**18

#: Half of a surrogate pair: JSON may spell it, but neither SQLite nor a socket can carry it.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def _asked_check(value: object) -> object:
    """True is the check with every rule at its default."""
    return {} if value is True else None if value is False else value


def _bounded_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > METADATA_BYTES:
        raise ValueError(f"it is over {METADATA_BYTES} bytes as JSON")
    return metadata


_State = Literal["queued", "dispatched", "running", "validating", "succeeded", "failed", "cancelled"]


class AskedWebhook(BaseModel):
    """Where the caller wants to be told of the job; without `events`, of its end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    events: Annotated[list[_State], Field(min_length=1)] | None = None


class GuardOptions(BaseModel):
    """The `guard` object of a request. A field that this version does not know is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    locale: Annotated[str, Field(max_length=35)] | None = None
    face_check: Annotated[AskedCheck | None, BeforeValidator(_asked_check)] = None
    webhook: AskedWebhook | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(_bounded_metadata)] = {}


_NO_OPTIONS = GuardOptions()


#: Turns the body of a request for a template into that of a prompt, in place; gives the parameters in force. It may
#: wait for the disk.
Fill = Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Submission:
    """One POST to `/guarded/prompt`, as it came; of a form, `raw` is what :func:`from_form` made of its fields.

    Or one to `/guarded/workflows/{template}`; `fill` makes a prompt of it.
    """

    raw: bytes
    client: Client
    idempotency_key: str | None = None
    accept_language: str | None = None
    files: tuple[UploadedFile, ...] = ()
    file_bytes: int = 0
    template: str = ""
    fill: Fill | None = None


@dataclass(frozen=True)
class Prompt:
    """A request whose shape is sound."""

    body: dict[str, Any]
    graph: dict[str, Any]
    options: GuardOptions
    job_id: str
    client_id: str | None
    order: float | None
    front: bool
    secrets: dict[str, Any]
    parameters: dict[str, Any]


class Admission:
    """Lets jobs in. Event loop; the store's thread does the writing."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        host: Host,
        health: Health,
        faces: FaceGate,
        references: References,
        secrets: Secrets,
        clock: Clock,
        uploads: Uploads,
        limits: Limits,
        in_use: InUse | None = None,
    ) -> None:
        self._settings = settings
        self._policy = Policy(settings.policy)
        self._webhook_rules = webhooks.Rules(settings.webhooks)
        self._limits = limits
        self._store = store
        self._host = host
        self._health = health
        self._faces = faces
        self._references = references
        self._secrets = secrets
        self._clock = clock
        self._uploads = uploads
        #: Without a janitor, nothing is deleted.
        self._in_use = in_use or InUse(list)
        self._refused: Callable[[str], None] = lambda _code: None
        self._refusals = Seldom()

    def on_refusal(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the error code of each prompt that is not let in."""
        self._refused = listener

    async def admit(self, request: Submission) -> Submitted:
        """The job that the request made, or had made before under the same idempotency key.

        Raises:
            GuardError: why not; nothing has changed.
        """
        try:
            with self._in_use.admission() as hold:
                submitted = await self._admit(request, hold)
        except Exception as error:
            code = error.code if isinstance(error, GuardError) else InternalError.code
            self._refused(code)
            if (left_out := self._refusals.left_out(code)) is not None:
                more = f" ({left_out} more since the last line)" if left_out else ""
                level = logging.WARNING if code in _FULL else logging.INFO
                log.log(level, "a prompt of %s was refused: %s%s", request.client.owner, code, more)
            raise
        if not submitted.replayed:
            self._tell(submitted)
        return submitted

    def _tell(self, submitted: Submitted) -> None:
        job, waiting, slots = submitted.job, submitted.waiting, self._settings.queue.max_jobs
        about = {"job_id": job.job_id}
        if waiting is not None and waiting.position + waiting.running > slots:
            said = "job %s of %s admitted; it waits, %d of %d slots are taken, position %d"
            log.warning(said, job.job_id, job.owner, waiting.running, slots, waiting.position, extra=about)
        else:
            log.info("job %s of %s admitted", job.job_id, job.owner, extra=about)

    async def _admit(self, request: Submission, hold: Hold) -> Submitted:
        settings = self._settings
        if len(request.raw) > settings.policy.max_body_bytes:
            raise PayloadTooLargeError(
                f"The body is over {settings.policy.max_body_bytes} bytes.",
                extra_info={"max_body_bytes": settings.policy.max_body_bytes},
            )
        key = _idempotency(request, self._clock.now_ms() - int(settings.queue.idempotency_max_age_s * 1000))
        if key is not None:
            earlier = await wrap_future(self._store.replay(request.client.owner, key))
            if earlier is not None:
                return earlier
        if request.files:
            self._limits.take_upload(request.client, request.file_bytes)
        self._health.check_ready()
        if self._store.queued >= settings.queue.max_queued:
            raise QueueFullError.with_waiting(self._store.queued, settings.queue.max_queued)
        own, max_own = self._store.queued_of(request.client.owner), self._limits.max_queued(request.client)
        if max_own is not None and own >= max_own:
            raise QueueFullError.with_waiting(own, max_own, of_owner=True)
        # Given back where no job comes of it: a bot whose users send photos without a face is not to be shut out.
        self._limits.take_job(request.client)
        made = False
        try:
            submitted = await self._parsed(request, key, hold)
            made = not submitted.replayed
            return submitted
        finally:
            if not made:
                self._limits.give_job_back(request.client)

    async def _parsed(self, request: Submission, key: IdempotencyKey | None, hold: Hold) -> Submitted:
        settings = self._settings
        if request.fill is not None or len(request.raw) > PARSED_AT_ONCE_BYTES:
            prompt = await asyncio.to_thread(parse, request.raw, settings.policy.max_depth, request.fill)
        else:
            prompt = parse(request.raw, settings.policy.max_depth)
        locale = messages.choose(prompt.options.locale, request.accept_language, settings.messages.locale)
        try:
            if not request.files:
                return await self._admitted(request, prompt, key, locale, hold)
            request = self._renamed(request, prompt)
            await hold.keep(prompt.graph)  # before they come: the janitor may be about to delete one of the same name
            async with self._uploads.placed(request.client.owner, request.files):
                return await self._admitted(request, prompt, key, locale, hold)
        except GuardError as error:
            error.locale = locale
            owner = request.client.owner
            show_as_seen(error, owner, {file.stored_as(owner): file.filename or file.field for file in request.files})
            raise

    def _webhook(self, asked: AskedWebhook | None, client: Client) -> Webhook | None:
        """The job's own, else the one that the client's key names."""
        if asked is None:
            return Webhook(client.webhook) if client.webhook else None
        self._webhook_rules.check(asked.url)
        return Webhook(asked.url, tuple(asked.events)) if asked.events else Webhook(asked.url)

    def _renamed(self, request: Submission, prompt: Prompt) -> Submission:
        """The request with its files under their stored names, in the prompt too."""
        stored = uploads.names(request.files, request.client.owner)
        used = uploads.rename(prompt.graph, stored, self._host.file_inputs)
        for file in request.files:
            if file.stored_as(request.client.owner) not in used:
                raise InvalidRequestError(
                    f"No loader input of the prompt names the file {file.field[:100]!r}.",
                    details="Where the loader names its file, give the name of the form's field or the file's own.",
                    extra_info={"field": file.field, "filename": file.filename},
                )
        return replace(request, raw=json.dumps(prompt.body).encode())

    async def _admitted(
        self, request: Submission, prompt: Prompt, key: IdempotencyKey | None, locale: str, hold: Hold
    ) -> Submitted:
        settings = self._settings
        self._policy.check(prompt.graph)
        webhook = self._webhook(prompt.options.webhook, request.client)
        moved = await self._references.settle(prompt.graph, request.client)
        # Now, since validation changes the prompt as it goes.
        body = _kept(request, prompt, moved)
        # Before anything looks at the files that it names.
        await hold.keep(prompt.graph)
        rehearsal = await self._host.rehearse(host_body(prompt.body, prompt.job_id))
        if rehearsal.refusal is not None:
            if _by_face_loader(rehearsal.refusal, prompt.graph):
                await self._faces.check_prompt(prompt.graph, None, None)  # says it with the typed error
            raise refused(rehearsal.refusal, prompt.graph, self._host)
        # Once more: ComfyUI replaces node classes that have a new name, and packs may change a prompt on its way in.
        self._policy.check(prompt.graph)
        await self._faces.check_prompt(prompt.graph, rehearsal.outputs_to_execute, prompt.options.face_check)
        new = NewJob(
            job_id=prompt.job_id,
            owner=request.client.owner,
            body=body,
            created_at_ms=self._clock.now_ms(),
            timeout_s=min(prompt.options.timeout_s or math.inf, settings.watchdog.job_timeout_s),
            locale=locale,
            priority=prompt.options.priority,
            order=prompt.order,
            front=prompt.front,
            client_id=prompt.client_id,
            shape=shape(prompt.graph),
            template=request.template,
            parameters=prompt.parameters,
            outputs_to_execute=rehearsal.outputs_to_execute,
            metadata=prompt.options.metadata,
            has_secrets=bool(prompt.secrets),
            webhook=webhook,
        )
        # There before the commit, since the job may be dispatched right after it.
        kept = self._secrets.keep(new.job_id, prompt.secrets)
        made = False
        try:
            max_own = self._limits.max_queued(request.client)
            submitted = await wrap_future(
                self._store.submit(new, settings.queue.max_queued, key, max_queued_of_owner=max_own)
            )
            made = not submitted.replayed
            return submitted
        finally:
            if kept and not made:
                self._secrets.forget(new.job_id)


#: The fields of a body as a form has them: JSON, except those that are words.
_JSON_FIELDS = ("prompt", "parameters", "guard", "extra_data", "number", "front", "partial_execution_targets")
_WORD_FIELDS = ("client_id", "prompt_id")
FORM_FIELDS = (*_JSON_FIELDS, *_WORD_FIELDS)


def from_form(fields: Mapping[str, bytes]) -> bytes:
    """The body that a form's fields stand for, as `Submission.raw`. Raises InvalidRequestError."""
    if unknown := sorted(fields.keys() - set(FORM_FIELDS)):
        raise InvalidRequestError(
            f"There is no field {unknown[0][:100]!r}; a part that is a file has a file name.",
            extra_info={"field": unknown[0][:100]},
        )
    body: dict[str, Any] = {}
    for name in FORM_FIELDS:  # in one order, whatever the form's
        if name in fields:
            value = fields[name]
            words = name in _WORD_FIELDS
            body[name] = value.decode("utf-8", "replace") if words else _decoded(value, f"The field {name}")
    return json.dumps(body, ensure_ascii=False).encode()


def parse(raw: bytes, max_depth: int, fill: Fill | None = None) -> Prompt:
    """A request's body, its shape checked.

    What ComfyUI answers with a 500, dies of, or silently misreads is refused here: docs/comfyui.md has the list.

    Raises:
        InvalidRequestError, InvalidWorkflowError, and what `fill` raises.
    """
    body = _decoded(raw)
    if not isinstance(body, dict):
        raise InvalidRequestError(f"The body must be a JSON object, not {_kind(body)}.")
    if _depth(body) > max_depth:
        raise InvalidRequestError(
            f"The body is nested more than {max_depth} levels deep.", extra_info={"max_depth": max_depth}
        )
    options = _options(body.pop("guard", None))
    try:
        parameters = {} if fill is None else dict(fill(body))
    except GuardError as error:
        error.locale = messages.choose(options.locale, None, "") or None
        raise
    extra_data = _extra_data(body)
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
        graph=_graph(body),
        options=options,
        job_id=_job_id(body),
        client_id=client_id or None,
        order=None if order is None else float(order),
        front=front,
        secrets={name: extra_data[name] for name in SECRET_NAMES if extra_data.get(name) is not None},
        parameters=parameters,
    )


def host_body(body: dict[str, Any], job_id: str) -> dict[str, Any]:
    """The body for ComfyUI's own handler: ordering is the guard's business, everything else passes through."""
    passed = {name: value for name, value in body.items() if name not in ("guard", "number", "front")}
    passed["prompt_id"] = job_id
    return passed


def refused(refusal: Refusal, graph: Mapping[str, Any], host: Host) -> GuardError:
    """Our error for the host's refusal, by what is really missing."""
    told: dict[str, Any] = {"node_errors": refusal.node_errors, "host_type": refusal.type}
    if missing := host.missing_classes(graph):
        nodes = [node_id for node_id, node in graph.items() if node["class_type"] in missing]
        return MissingNodeError(
            f"This server lacks the node class {', '.join(missing)}.",
            details=refusal.details,
            extra_info={**refusal.extra_info, "classes": missing, "nodes": nodes},
            **told,
        )
    wanting = list(_wanting(refusal.node_errors))
    for suffixes, error, text in (
        (MODEL_SUFFIXES, MissingModelError, "This server lacks the model {value}."),
        (MEDIA_SUFFIXES, BadImageError, "The input file {value} cannot be used."),
    ):
        for node_id, name, value in wanting:
            if PurePosixPath(value.split(" [")[0].replace("\\", "/")).suffix.lower() in suffixes:
                return error(
                    text.format(value=PurePosixPath(value.replace("\\", "/")).name),
                    details=refusal.details,
                    extra_info={**refusal.extra_info, "node_id": node_id, "input": name, "value": value},
                    **told,
                )
    return InvalidWorkflowError(refusal.message, details=refusal.details, extra_info=dict(refusal.extra_info), **told)


def _by_face_loader(refusal: Refusal, graph: Mapping[str, Any]) -> bool:
    """Whether the host refused a node of ours that looks for a face in its own validation."""
    return any(graph[node_id]["class_type"] == FACE_LOADER for node_id in refusal.node_errors if node_id in graph)


def _wanting(node_errors: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(node id, input, value) of every value that the host did not find."""
    for node_id, entry in node_errors.items():
        for error in entry.get("errors", ()):
            info = error.get("extra_info") or {}
            name = str(info.get("input_name", ""))
            if error.get("type") == "value_not_in_list":
                yield node_id, name, str(info.get("received_value", ""))
            elif error.get("type") == "custom_validation_failed":
                # ComfyUI's loaders say `image - Invalid image file: name.png`.
                yield node_id, name, str(error.get("details", "")).rpartition(": ")[2]


def _decoded(raw: bytes, what: str = "The body") -> Any:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} is not UTF-8.", details=str(error)) from None
    try:
        body = _DECODER.decode(text)
        if _SURROGATE.search(raw):
            json.dumps(body, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidRequestError(f"{what} is nested too deeply.") from None
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} holds half of a surrogate pair.") from None
    except ValueError as error:
        raise InvalidRequestError(f"{what} is not JSON.", details=str(error)) from None
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _count = Counter(name for name, _value in pairs).most_common(1)[0]
        raise InvalidRequestError(f"The key {twice[:100]!r} stands twice in one object.")
    return found


def _no_constant(name: str) -> Any:
    raise InvalidRequestError(f"{name} is not a number in JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidRequestError(f"The number {text[:40]} is too large.")
    return number


def _bounded(text: str) -> int:
    # ComfyUI's seeds are 64 bits; Python refuses more than 4,300 digits by itself, slowly.
    if len(text) > 40:
        raise InvalidRequestError(f"The number {text[:40]}… is too large.")
    return int(text)


def _depth(value: Any) -> int:
    """How deeply a JSON value nests; level by level, so that no input exhausts the stack."""
    depth, level = 0, [value]
    while level := [item for item in level if type(item) is dict or type(item) is list]:
        depth += 1
        level = [item for holder in level for item in (holder.values() if type(holder) is dict else holder)]
    return depth


#: Made once: `json.loads` with hooks would make one for each request.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
)


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")


def _options(given: Any) -> GuardOptions:
    if given is None:
        return _NO_OPTIONS
    if not isinstance(given, dict):
        raise InvalidRequestError(f"guard must be an object, not {_kind(given)}.")
    try:
        return GuardOptions.model_validate(given)
    except ValidationError as error:
        item = error.errors()[0]
        field = ".".join(str(part) for part in item["loc"])
        said = "there is no such field" if item["type"] == "extra_forbidden" else item["msg"]
        raise InvalidRequestError(f"guard.{field}: {said}.", extra_info={"field": f"guard.{field}"}) from None


def _extra_data(body: dict[str, Any]) -> dict[str, Any]:
    extra_data = body.get("extra_data", {})
    if not isinstance(extra_data, dict):
        raise InvalidRequestError(f"extra_data must be an object, not {_kind(extra_data)}.")
    pnginfo = extra_data.get("extra_pnginfo", {})
    if not isinstance(pnginfo, dict) or not isinstance(pnginfo.get("workflow", {}), dict):
        raise InvalidRequestError("extra_data.extra_pnginfo must be an object, and its workflow too.")
    return extra_data


def _job_id(body: dict[str, Any]) -> str:
    given = body.get("prompt_id")
    if given is None:
        return str(uuid.uuid4())
    try:
        if isinstance(given, str) and str(uuid.UUID(given)) == given:
            return given
    except ValueError:
        pass
    raise InvalidRequestError(
        "prompt_id must be a UUID in its canonical lower-case form; without one the server makes one.",
        extra_info={"field": "prompt_id"},
    )


def _graph(body: dict[str, Any]) -> dict[str, Any]:
    if "prompt" not in body:
        if "nodes" in body and "links" in body:
            raise _ui_format()
        raise InvalidRequestError("The body has no prompt.", extra_info={"field": "prompt"}, host_type="no_prompt")
    graph = body["prompt"]
    if not isinstance(graph, dict):
        raise InvalidWorkflowError(f"prompt must be an object of nodes, not {_kind(graph)}.")
    if isinstance(graph.get("nodes"), list):
        raise _ui_format()
    if not graph:
        raise InvalidWorkflowError("The prompt has no nodes.", host_type="prompt_no_outputs")
    for node_id, node in graph.items():
        if not isinstance(node, dict):
            raise _bad_node(node_id, f"must be an object, not {_kind(node)}")
        if not isinstance(node.get("class_type"), str) or not node["class_type"]:
            raise _bad_node(node_id, "has no class_type")
        if not isinstance(node.get("inputs"), dict):
            raise _bad_node(node_id, "has no inputs (an empty object will do)")
        if not isinstance(node.get("_meta", {}), dict):
            raise _bad_node(node_id, "has a _meta that is no object")
        for name, value in node["inputs"].items():
            if _is_link(value) and value[0] not in graph:
                raise _bad_node(node_id, f"takes {name} from node {value[0]!r}, which the prompt does not have")
    if circle := _circle(graph):
        raise InvalidWorkflowError(
            "The prompt goes round in a circle.", details=" -> ".join(circle), extra_info={"nodes": circle}
        )
    return graph


def _is_link(value: Any) -> bool:
    """As ComfyUI sees it, to which true is the number 1."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], (int, float))


def _circle(graph: Mapping[str, Any]) -> list[str] | None:
    """Node ids that feed each other in a circle, also where no output hangs on them."""
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            node_id, leaving = stack.pop()
            if leaving:
                on_path.discard(path.pop())
                done.add(node_id)
            elif node_id in on_path:
                return [*path[path.index(node_id) :], node_id]
            elif node_id not in done:
                path.append(node_id)
                on_path.add(node_id)
                stack.append((node_id, True))
                stack += [(value[0], False) for value in graph[node_id]["inputs"].values() if _is_link(value)]
    return None


def _bad_node(node_id: str, said: str) -> GuardError:
    return InvalidWorkflowError(f"Node {node_id[:100]!r} {said}.", extra_info={"node_id": node_id})


def _ui_format() -> GuardError:
    return InvalidWorkflowError(
        "This is a workflow in the editor's own format, not a prompt.",
        details="In ComfyUI, export it with Workflow > Export (API) and send that.",
    )


def _idempotency(request: Submission, since_ms: int) -> IdempotencyKey | None:
    if request.idempotency_key is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(request.idempotency_key):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    digest = hashlib.sha256(request.raw)
    # Of a form, what it says and not how: its boundary and the order of its parts may be others next time.
    for file in sorted(request.files, key=lambda file: (file.field, file.filename, file.sha256)):
        digest.update(json.dumps([file.field, file.filename, file.sha256]).encode())
    if request.template:  # the same body, sent to another template, is another request
        digest.update(b"\0" + request.template.encode())
    return IdempotencyKey(request.idempotency_key, digest.hexdigest(), since_ms)


def _kept(request: Submission, prompt: Prompt, moved: bool) -> bytes:
    """What goes to disk: the body as it came, unless a template made the prompt, or it holds secrets or names files
    of the sender's own (`moved`)."""
    if not prompt.secrets and not moved and request.fill is None:
        return request.raw
    body = prompt.body
    if prompt.secrets:
        body = {**body, "extra_data": {k: v for k, v in body["extra_data"].items() if k not in SECRET_NAMES}}
    return json.dumps(body).encode()
