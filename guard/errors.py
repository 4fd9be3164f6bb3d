"""The GuardError family and the one error body.

A code is stable for ever; the class is ``CamelCase(code) + "Error"``. ComfyUI prints an exception's type with the
module it was loaded as, which for a custom node is an install path: the family therefore names a fixed module, so
that a bot reads ``comfyui_guarded.NoFaceError`` on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from . import messages

MODULE = "comfyui_guarded"

#: Statuses that always say when to come back, and when that is where nothing better is known.
_ASK_AGAIN = frozenset({429, 503, 507})
RETRY_AFTER_S = 10.0


class GuardError(Exception):
    """A refusal, or the reason why a job failed.

    Attributes:
        code: what a program reads.
        status: the HTTP status of a refusal; None for codes that only ever settle a job (those are read with 200).
        retryable: whether the same request may succeed later.
        details: more for a human; may be empty.
        extra_info: facts for a program, JSON-ready.
        retry_after_s: when to come back, where that is known.
        node_errors: ComfyUI's own per-node errors, where it refused the prompt.
        host_type: ComfyUI's own ``error.type``, where it refused; the body then shows that one.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int | None] = 500
    retryable: ClassVar[bool] = False

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

    def body(self, locale: str, job_id: str | None = None) -> dict[str, Any]:
        """The one error body: ComfyUI's shape, and ours under ``guard``."""
        return {
            "error": {
                "type": self.host_type or self.code,
                "message": self.message,
                "details": self.details,
                "extra_info": self.extra_info,
            },
            "node_errors": self.node_errors,
            "guard": {
                "code": self.code,
                "user_message": messages.text(self.code, locale),
                "refund": True,
                "retryable": self.retryable,
                "retry_after_s": self.retry_after_s,
                "job_id": job_id,
            },
        }


def _declare(code: str, status: int | None, retryable: bool, doc: str) -> type[GuardError]:
    name = "".join(part.capitalize() for part in code.removesuffix("_error").split("_")) + "Error"
    facts = {"__doc__": doc, "__module__": MODULE, "code": code, "status": status, "retryable": retryable}
    return type(name, (GuardError,), facts)


# Refusals: answered over HTTP, no job exists.
InvalidRequestError = _declare("invalid_request", 400, False, "Not JSON, the wrong shape, or an unknown guard field.")
InvalidWorkflowError = _declare("invalid_workflow", 400, False, "A malformed graph, or one that ComfyUI refused.")
MissingNodeError = _declare("missing_node", 422, False, "A node class that this server lacks.")
MissingModelError = _declare("missing_model", 422, False, "A model file that this server lacks.")
PolicyViolationError = _declare("policy_violation", 422, False, "Over a limit that the operator has set.")
BadImageError = _declare("bad_image", 422, False, "An input image that is missing or cannot be read.")
NoFaceError = _declare("no_face", 422, False, "No face in a photo that needs one.")
TooManyFacesError = _declare("too_many_faces", 422, False, "More faces than the job allows.")
FaceTooSmallError = _declare("face_too_small", 422, False, "The face is too small to work with.")
UnauthorizedError = _declare("unauthorized", 401, False, "No key, or one that is not known.")
ForbiddenError = _declare("forbidden", 403, False, "The key does not reach this far.")
NotFoundError = _declare("not_found", 404, False, "No such route, job or file for this caller.")
MethodNotAllowedError = _declare("method_not_allowed", 405, False, "The route exists, but not for this method.")
ConflictError = _declare("conflict", 409, False, "The id or idempotency key was used for something else.")
ArtifactGoneError = _declare("artifact_gone", 410, False, "The file existed and is no longer what the job made.")
PayloadTooLargeError = _declare("payload_too_large", 413, False, "The body is over the limit.")
InternalError = _declare("internal_error", 500, True, "Ours; never expected.")
RateLimitedError = _declare("rate_limited", 429, True, "Too many requests in too short a time.")
QueueFullError = _declare("queue_full", 429, True, "No room left in the queue.")
ServerUnavailableError = _declare("server_unavailable", 503, True, "The server cannot take a job now.")
DiskFullError = _declare("disk_full", 507, True, "Below the floor of free disk space.")

# Verdicts: they settle a job.
QueueTimeoutError = _declare("queue_timeout", None, True, "The job waited longer than queue.timeout_s.")
GenerationTimeoutError = _declare("generation_timeout", None, True, "The job ran longer than its time limit.")
GenerationFailedError = _declare("generation_failed", None, False, "A node raised.")
OutOfMemoryError = _declare("out_of_memory", None, True, "The GPU ran out of memory.")
WorkerDiedError = _declare("worker_died", None, True, "ComfyUI's worker thread died under the job.")
ServerRestartedError = _declare("server_restarted", None, True, "The server process ended under the job.")
# Python has an InterruptedError of its own; the type's name is by the rule all the same.
JobInterruptedError = _declare("interrupted", None, True, "Someone pressed interrupt in ComfyUI.")
ResultMissingError = _declare("result_missing", None, True, "The job reported no file, or one that does not exist.")
ResultTooSmallError = _declare("result_too_small", None, True, "A result file is below the size floor.")
ResultCorruptError = _declare("result_corrupt", None, True, "A result file does not decode.")
ResultBlankError = _declare("result_blank", None, True, "A result picture shows nothing.")
ResultIncompleteError = _declare("result_incomplete", None, True, "A result is shorter or smaller than was asked for.")
CancelledError = _declare("cancelled", None, False, "Cancelled by its owner or an operator.")

FAMILY: dict[str, type[GuardError]] = {cls.code: cls for cls in GuardError.__subclasses__()}
BY_NAME: dict[str, type[GuardError]] = {f"{MODULE}.{cls.__name__}": cls for cls in FAMILY.values()}


def type_name(code: str) -> str:
    """What ComfyUI shows as ``exception_type`` for a code."""
    return f"{MODULE}.{FAMILY[code].__name__}"
