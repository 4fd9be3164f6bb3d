"""What a route's row says of itself, for the contract at /guarded/openapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..guard.errors import (
    BadImageError,
    ConflictError,
    DiskFullError,
    FaceTooSmallError,
    GuardError,
    InvalidRequestError,
    InvalidWorkflowError,
    MissingModelError,
    MissingNodeError,
    NoFaceError,
    PayloadTooLargeError,
    PolicyViolationError,
    QueueFullError,
    RateLimitedError,
    ServerUnavailableError,
    TooManyFacesError,
)

Schema = Mapping[str, Any]

#: Why a picture is refused.
FACES: tuple[type[GuardError], ...] = (BadImageError, NoFaceError, TooManyFacesError, FaceTooSmallError)
#: Why a job is not let in.
ADMISSION: tuple[type[GuardError], ...] = (
    InvalidRequestError,
    InvalidWorkflowError,
    MissingNodeError,
    MissingModelError,
    PolicyViolationError,
    *FACES,
    ConflictError,
    PayloadTooLargeError,
    QueueFullError,
    RateLimitedError,
    ServerUnavailableError,
    DiskFullError,
)

#: Why something that is to be written may not be.
STORE: tuple[type[GuardError], ...] = (ServerUnavailableError, DiskFullError)
#: A short body that tells what to do.
COMMAND: tuple[type[GuardError], ...] = (PayloadTooLargeError, *STORE)
#: Why a file is not taken.
UPLOAD: tuple[type[GuardError], ...] = (*COMMAND, RateLimitedError)

SUBMIT_HEADERS: Mapping[str, str] = {
    "Idempotency-Key": "The same key and body get the first job again.",
    "Accept-Language": "Of the texts for users.",
}
#: `?wait=S`.
WAIT: Schema = {"type": "number", "minimum": 0, "maximum": 86400}
#: A flag in a query.
FLAG: Schema = {"type": "string"}


@dataclass(frozen=True)
class About:
    """What a route takes and answers.

    Attributes:
        answers: by status, the name of a schema (JSON), a media type (other bodies), or None (no body).
        query: parameters, by name.
        headers: those that the route looks at, by name, with what they mean.
        body: by media type, what may be sent. Whether ours looks at the media type is the route's business.
        refusals: beyond 401 and 403, which every route may answer that is not open.
    """

    answers: Mapping[int, str | None]
    query: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str | Schema] = field(default_factory=dict)
    refusals: tuple[type[GuardError], ...] = ()
