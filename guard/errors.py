# Over 400 lines: one class for each code, and their family.
"""The GuardError family and the one error body.

A code is stable for ever; the class is ``CamelCase(code) + "Error"``. ComfyUI prints an exception's type with the
module it was loaded as, which for a custom node is an install path. The family therefore names a fixed module, and a
bot reads ``comfyui_guarded.NoFaceError`` on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import WithJsonSchema
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from . import messages

MODULE = "comfyui_guarded"

#: Statuses that always say when to come back, and the time to say where nothing better is known.
_ASK_AGAIN = frozenset({429, 503, 507})
RETRY_AFTER_S = 10.0

#: Characters that an answer quotes of what came, and those of a message and of details, with such quotes.
QUOTED, _MESSAGE, _DETAILS = 200, 500, 2000
#: Those of each text that says why a job ended badly: nodes choose the names of files and the words of errors.
LONGEST_REASON = 2000


class RefusalError(TypedDict):
    """The error as ComfyUI tells it; `type` and `message` are ComfyUI's own where ComfyUI refused."""

    type: str
    message: str
    details: str
    extra_info: dict[str, Any]


class RefusalGuard(TypedDict):
    """The guard's part. `refund` is there where a job was asked for: true if none came of it, false if there is one,
    `job_id`.
    """

    code: ErrorCode
    user_message: str
    refund: NotRequired[bool]
    retryable: bool
    retry_after_s: float | None
    job_id: str | None


class Refusal(TypedDict):
    """Every refusal: ComfyUI's shape, and the guard's part beside it."""

    error: RefusalError
    node_errors: dict[str, Any]
    guard: RefusalGuard


def clip(text: str, length: int = QUOTED) -> str:
    """The text, or its beginning with a mark that there was more."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def clip_all(value: Any, length: int = QUOTED) -> Any:
    """The same for all texts and keys of a JSON value."""
    if isinstance(value, str):
        return clip(value, length)
    if isinstance(value, Mapping):
        return {clip(str(key), length): clip_all(item, length) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clip_all(item, length) for item in value]
    return value


def _class_name(code: str) -> str:
    return "".join(part.capitalize() for part in code.removesuffix("_error").split("_")) + "Error"


class GuardError(Exception):
    """A refusal, or the reason why a job failed.

    Attributes:
        code, retryable: for programs; whether the same request may succeed later.
        status: the HTTP status of a refusal; None for codes that only ever settle a job (those are read with 200).
        details: more for a person; may be empty.
        extra_info: facts for a program, JSON-ready.
        retry_after_s: when to come back, where that is known.
        node_errors: ComfyUI's own per-node errors, where it refused the prompt.
        host_type: ComfyUI's own ``error.type``, where it refused; the body then shows that one.
    """

    __module__ = MODULE
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int | None] = 500
    retryable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.__module__ = MODULE
        cls.__name__ = cls.__qualname__ = _class_name(cls.code)

    def __init__(
        self,
        message: str,
        *,
        details: str = "",
        extra_info: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
        node_errors: Mapping[str, Any] | None = None,
        host_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.extra_info = dict(extra_info or {})
        if retry_after_s is None and self.status in _ASK_AGAIN:
            retry_after_s = RETRY_AFTER_S
        self.retry_after_s = retry_after_s
        self.node_errors = dict(node_errors or {})
        self.host_type = host_type
        #: The language that the request itself asked for; None: take it from its headers.
        self.locale: str | None = None

    @property
    def job_id(self) -> str | None:
        """The job that there is all the same."""
        return None

    def body(self, locale: str, *, of_submit: bool = False) -> Refusal:
        """The one error body: ComfyUI's shape, and ours under ``guard``."""
        guard: RefusalGuard = {
            "code": self.code,
            "user_message": messages.text(self.code, locale),
            "retryable": self.retryable,
            "retry_after_s": self.retry_after_s,
            "job_id": self.job_id,
        }
        if of_submit:
            guard["refund"] = self.job_id is None
        return {
            "error": {
                "type": self.host_type or self.code,
                "message": clip(self.message, _MESSAGE),
                "details": clip(self.details, _DETAILS),
                "extra_info": clip_all(self.extra_info),
            },
            "node_errors": clip_all(self.node_errors),
            "guard": guard,
        }


# Refusals: answered over HTTP, no job exists.
class InvalidRequestError(GuardError):
    """Not JSON, the wrong shape, or an unknown guard field."""

    code, status, retryable = "invalid_request", 400, False


class InvalidWorkflowError(GuardError):
    """A malformed graph, or one that ComfyUI refused."""

    code, status, retryable = "invalid_workflow", 400, False


class MissingNodeError(GuardError):
    """A node class that this server lacks."""

    code, status, retryable = "missing_node", 422, False


class MissingModelError(GuardError):
    """A model file that this server lacks."""

    code, status, retryable = "missing_model", 422, False


class PolicyViolationError(GuardError):
    """The prompt exceeds a limit that the operator has set."""

    code, status, retryable = "policy_violation", 422, False


class BadImageError(GuardError):
    """An input image is missing or cannot be read."""

    code, status, retryable = "bad_image", 422, False


class BadVideoError(GuardError):
    """An input film cannot be read."""

    code, status, retryable = "bad_video", 422, False


class BadAudioError(GuardError):
    """An input sound cannot be read, or a film has none."""

    code, status, retryable = "bad_audio", 422, False


class FetchFailedError(GuardError):
    """A file that the request names by address cannot be had."""

    code, status, retryable = "fetch_failed", 422, True


class NoFaceError(GuardError):
    """No face in a photo that needs one."""

    code, status, retryable = "no_face", 422, False


class TooManyFacesError(GuardError):
    """More faces than the job allows."""

    code, status, retryable = "too_many_faces", 422, False


class FaceTooSmallError(GuardError):
    """The face is too small to work with."""

    code, status, retryable = "face_too_small", 422, False


class UnauthorizedError(GuardError):
    """There is no key, or it is not known."""

    code, status, retryable = "unauthorized", 401, False


class ForbiddenError(GuardError):
    """The key's scope does not allow this."""

    code, status, retryable = "forbidden", 403, False


class NotFoundError(GuardError):
    """No such route, job or file for this caller."""

    code, status, retryable = "not_found", 404, False


class MethodNotAllowedError(GuardError):
    """The route exists, but not for this method."""

    code, status, retryable = "method_not_allowed", 405, False


class ConflictError(GuardError):
    """The id or idempotency key was used for something else."""

    code, status, retryable = "conflict", 409, False

    @property
    def job_id(self) -> str | None:
        return self.extra_info.get("job_id")


class FileInUseError(GuardError):
    """A job that is running reads the file that an upload would replace."""

    code, status, retryable = "file_in_use", 409, True


class ArtifactGoneError(GuardError):
    """The file existed and is no longer what the job made."""

    code, status, retryable = "artifact_gone", 410, False


class PromptGoneError(GuardError):
    """What the job was submitted with is no longer kept."""

    code, status, retryable = "prompt_gone", 410, False


class PayloadTooLargeError(GuardError):
    """The body is over the limit."""

    code, status, retryable = "payload_too_large", 413, False


class InternalError(GuardError):
    """A fault of the guard itself; never expected."""

    code, status, retryable = "internal_error", 500, True


class RateLimitedError(GuardError):
    """Too many requests in too short a time."""

    code, status, retryable = "rate_limited", 429, True


class QueueFullError(GuardError):
    """The queue has no room, or none for more jobs of this client."""

    code, status, retryable = "queue_full", 429, True

    @classmethod
    def with_waiting(cls, queued: int, max_queued: int, *, of: str = "server") -> QueueFullError:
        """`of`: whose jobs they are, the `client`'s, those of one `user` of its, or everybody's."""
        message = {
            "server": f"The queue is full ({queued} jobs are waiting).",
            "client": f"{queued} of your jobs are waiting; no more may wait.",
            "user": f"{queued} jobs of this user are waiting; no more may wait.",
        }[of]
        facts = {"queued": queued, "max_queued": max_queued, **({"scope": of} if of != "server" else {})}
        return cls(message, extra_info=facts)


class QuotaExceededError(GuardError):
    """The client holds as much at once as it may."""

    code, status, retryable = "quota_exceeded", 429, True


class ServerUnavailableError(GuardError):
    """The server cannot take a job now."""

    code, status, retryable = "server_unavailable", 503, True


class DiskFullError(GuardError):
    """Free disk space is below its floor."""

    code, status, retryable = "disk_full", 507, True


# Verdicts: they settle a job.
class QueueTimeoutError(GuardError):
    """The job waited longer than queue.timeout_s."""

    code, status, retryable = "queue_timeout", None, True


class GenerationTimeoutError(GuardError):
    """The job ran longer than its time limit."""

    code, status, retryable = "generation_timeout", None, True


class GenerationFailedError(GuardError):
    """A node raised."""

    code, status, retryable = "generation_failed", None, False


class OutOfMemoryError(GuardError):
    """The GPU, or the machine, ran out of memory."""

    code, status, retryable = "out_of_memory", None, True


class WorkerDiedError(GuardError):
    """ComfyUI's worker thread died under the job."""

    code, status, retryable = "worker_died", None, True


class ServerRestartedError(GuardError):
    """The server process ended under the job."""

    code, status, retryable = "server_restarted", None, True


class JobInterruptedError(GuardError):
    """Someone pressed interrupt in ComfyUI. (Its type is `InterruptedError`, a name that Python itself uses.)"""

    code, status, retryable = "interrupted", None, True


class ResultMissingError(GuardError):
    """The job reported no file, or one that does not exist."""

    code, status, retryable = "result_missing", None, True


class ResultTooSmallError(GuardError):
    """A result file is below the size floor."""

    code, status, retryable = "result_too_small", None, True


class ResultCorruptError(GuardError):
    """A result file does not decode."""

    code, status, retryable = "result_corrupt", None, True


class ResultBlankError(GuardError):
    """A result picture shows nothing."""

    code, status, retryable = "result_blank", None, True


class ResultIncompleteError(GuardError):
    """A result is shorter or smaller than was asked for."""

    code, status, retryable = "result_incomplete", None, True


class CancelledError(GuardError):
    """Cancelled by its owner or an operator."""

    code, status, retryable = "cancelled", None, False


FAMILY: dict[str, type[GuardError]] = {cls.code: cls for cls in GuardError.__subclasses__()}
#: A code of the family.
ErrorCode = TypeAliasType("ErrorCode", Annotated[str, WithJsonSchema({"type": "string", "enum": sorted(FAMILY)})])
BY_NAME: dict[str, type[GuardError]] = {f"{MODULE}.{cls.__name__}": cls for cls in FAMILY.values()}


def type_name(code: str) -> str:
    """The name that ComfyUI shows as ``exception_type`` for a code."""
    return f"{MODULE}.{FAMILY[code].__name__}"
