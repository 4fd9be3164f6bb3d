"""In what form results go out: as converted copies, within answers, and to addresses that their owner names. And which
inputs of a job are elsewhere, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args
from urllib.parse import quote

from pydantic import Field
from typing_extensions import TypedDict

#: What pictures can be converted to, and films.
PictureFormat = Literal["webp", "jpeg", "png", "avif"]
FilmFormat = Literal["mp4", "webm"]
PICTURE_FORMATS: tuple[str, ...] = get_args(PictureFormat)
FILM_FORMATS: tuple[str, ...] = get_args(FilmFormat)
MIMES = {name: f"image/{name}" for name in PICTURE_FORMATS} | {name: f"video/{name}" for name in FILM_FORMATS}

#: The longer side of a copy may be asked for in these bounds.
SIDES = (16, 16384)
#: A job may have so many files put to addresses.
PUTS = 64

#: Why there is no converted copy.
NotConverted = Literal["too_large", "too_slow", "moving", "disk_full", "failed"]
#: Why a file is not in the answer.
NotInline = Literal["too_large", "gone"]
PutState = Literal["waiting", "stored", "given_up"]


class ResultsBody(TypedDict):
    """In what form the job's results were asked for; null: as it comes."""

    format: str | None
    quality: int | None
    max_side: int | None
    inline: bool


class ConvertedBody(TypedDict):
    """The converted copy of a file; `url` has it. Where it could not be made, `error` says why and the rest is null."""

    format: str
    mime: str
    error: NotConverted | None
    filename: str | None
    bytes: int | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    width: int | None
    height: int | None
    url: str | None


class InlineBody(TypedDict):
    """A file within the answer: its converted copy, where it has one. Without `base64`, `error` says why."""

    converted: bool
    mime: str
    bytes: int
    base64: str | None
    error: NotInline | None


class PutBody(TypedDict):
    """How far a file has come on its way to an address, which is not told. `status` and `error` are of the last
    attempt."""

    artifact: int
    state: PutState
    attempts: int
    next_at_ms: int | None
    ended_at_ms: int | None
    status: int | None
    error: str | None


@dataclass(frozen=True)
class ResultOptions:
    """In what form a job's results are wanted.

    Attributes:
        format: what to convert to, pictures or films; None: nothing is converted.
        quality: 1..100; None: the format's own.
        max_side: the most pixels of a copy's longer side.
        inline: answers and webhooks about the job have its files in Base64.
    """

    format: str | None = None
    quality: int | None = None
    max_side: int | None = None
    inline: bool = False

    def body(self) -> ResultsBody:
        return {"format": self.format, "quality": self.quality, "max_side": self.max_side, "inline": self.inline}


#: Nothing is asked for.
AS_IT_COMES = ResultOptions()


@dataclass(frozen=True)
class Converted:
    """The converted copy of a result file, beside it in the same folder; or why there is none (`error`)."""

    format: str
    error: NotConverted | None = None
    filename: str = ""
    bytes: int = 0
    sha256: str = ""
    width: int | None = None
    height: int | None = None

    @property
    def mime(self) -> str:
        return MIMES[self.format]

    def facts(self) -> dict[str, Any]:
        """What tells it from the original, by the names of an artifact's fields."""
        return {name: getattr(self, name) for name in ("filename", "bytes", "sha256", "width", "height")}

    def body(self, url: str) -> ConvertedBody:
        """As JSON; `url` is the file's own."""
        is_there = self.error is None
        return {
            "format": self.format,
            "mime": self.mime,
            "error": self.error,
            "filename": self.filename if is_there else None,
            "bytes": self.bytes if is_there else None,
            "sha256": self.sha256 if is_there else None,
            "width": self.width,
            "height": self.height,
            "url": f"{url}?as={quote(self.format)}" if is_there else None,
        }


@dataclass(frozen=True)
class NewPut:
    """A file to send to an address, which is a secret: whoever has it may write there.

    `headers` go with it, since the signature may cover them. After `expires_at_ms` the address takes nothing more.
    """

    artifact: int
    url: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    expires_at_ms: int | None = None


@dataclass(frozen=True)
class Put:
    """How far a file has come on its way to an address. `status` and `error` are of the last attempt."""

    artifact: int
    state: PutState = "waiting"
    attempts: int = 0
    next_at_ms: int | None = None
    ended_at_ms: int | None = None
    status: int | None = None
    error: str | None = None

    def body(self) -> PutBody:
        return {
            "artifact": self.artifact,
            "state": self.state,
            "attempts": self.attempts,
            "next_at_ms": self.next_at_ms,
            "ended_at_ms": self.ended_at_ms,
            "status": self.status,
            "error": self.error,
        }


class StoredFile(NamedTuple):
    """A file of an owner's in the depot: what its owner calls it below input, what it is called there, its bytes."""

    path: str
    key: str
    bytes: int


#: A result that the depot does not have yet: the artifact's index, whether it is its copy, and the box that has it.
Unstored = tuple[int, bool, str]
