"""What a route's row says of itself, for the contract at /guarded/openapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ..guard.errors import (
    BadAudioError,
    BadImageError,
    BadVideoError,
    ConflictError,
    DiskFullError,
    FaceTooSmallError,
    FetchFailedError,
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

#: A type whose JSON the body is (a TypedDict, a pydantic model, `dict[str, Any]`), or the media type of another body; a
#: tuple where the caller may choose.
Body = Any

#: Why the store may not be read.
READ: tuple[type[GuardError], ...] = (ServerUnavailableError,)
#: Why the store may not be written.
WRITE: tuple[type[GuardError], ...] = (*READ, DiskFullError)
#: Why a picture is refused.
FACES: tuple[type[GuardError], ...] = (
    BadImageError,
    FetchFailedError,
    NoFaceError,
    TooManyFacesError,
    FaceTooSmallError,
)
#: Why a job is not let in.
ADMISSION: tuple[type[GuardError], ...] = (
    InvalidRequestError,
    InvalidWorkflowError,
    MissingNodeError,
    MissingModelError,
    PolicyViolationError,
    *FACES,
    BadVideoError,
    BadAudioError,
    ConflictError,
    PayloadTooLargeError,
    QueueFullError,
    RateLimitedError,
    *WRITE,
)
#: Why a short body with a command is refused.
COMMAND: tuple[type[GuardError], ...] = (PayloadTooLargeError, *WRITE)
#: Why a file is not taken.
UPLOAD: tuple[type[GuardError], ...] = (*COMMAND, RateLimitedError)

#: The media type of a file whose own type is known only when it is sent.
FILE = "application/octet-stream"
#: The media type of server-sent events.
STREAM = "text/event-stream"
#: The answers of a route that sends files.
FILES: Mapping[int, Body] = {200: FILE, 206: FILE, 304: None, 412: None, 416: None}

SUBMIT_HEADERS: Mapping[str, str] = {
    "Idempotency-Key": "The same key with the same body returns the first job.",
    "Accept-Language": "Language of the texts for users.",
}
#: `?wait=S`.
WAIT: Schema = {"type": "number", "minimum": 0, "maximum": 86400}
#: A flag in a query.
FLAG: Schema = {"type": "string"}


def describe_page(largest: int) -> dict[str, Schema]:
    """The query of a list that comes in pages."""
    return {
        "state": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": largest},
        "before": {"type": "integer", "minimum": 1, "maximum": 2**53},
    }


@dataclass(frozen=True)
class About:
    """What a route takes and answers.

    Attributes:
        answers: by status, the body; None where there is none.
        query: parameters, by name, or a model whose fields they are.
        headers: those that the route reads, by name, with what they mean.
        body: by media type, what may be sent. Whether the handler reads the media type is its own business.
        refusals: beyond 400 for a query or body, 401 and 403 (not of open routes), 429
            for a quota, and 500.
    """

    answers: Mapping[int, Body]
    query: Mapping[str, Schema] | type[BaseModel] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Body] = field(default_factory=dict)
    refusals: tuple[type[GuardError], ...] = ()
