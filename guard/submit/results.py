"""Read how a request wants its results: converted, within answers, put to addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..client import Client, KeyLimits
from ..errors import InvalidRequestError
from ..events.puts import LONGEST
from ..events.webhook_rules import Rules
from ..outgoing import (
    AS_IT_COMES,
    FILM_FORMATS,
    PICTURE_FORMATS,
    PUTS,
    SIDES,
    FilmFormat,
    NewPut,
    PictureFormat,
    ResultOptions,
)
from ..quotas.threads import run_beside
from ..results.convert import list_formats
from .presigned import read_expiry_ms

_HEADERS = 16
#: What the signature of an address may cover, besides what every request has.
_NAME = re.compile(r"(?:content-(?:type|disposition|language)|cache-control|x-(?:amz|goog|ms)-[a-z0-9-]{1,64})", re.I)
_VALUE = re.compile(r"[\x20-\x7e]{0,1000}")


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if _NAME.fullmatch(name) is None:
            raise ValueError("only content-type, -disposition, -language, cache-control, x-amz-*, x-goog-* and x-ms-*")
        if _VALUE.fullmatch(value) is None:
            raise ValueError("a value is printable ASCII of at most 1000 characters")
    return {name.lower(): value for name, value in headers.items()}


class AskedPut(BaseModel):
    """A file to put to a presigned address, which nobody is told again. `headers`: what its signature covers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    artifact: Annotated[int, Field(ge=0, lt=10_000)] = 0
    url: Annotated[str, Field(max_length=LONGEST)]
    headers: Annotated[dict[str, str], Field(max_length=_HEADERS), AfterValidator(_check_headers)] = {}


class AskedResults(BaseModel):
    """In what form the results are wanted; what is left out is as the key says. `original` converts nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[PictureFormat, FilmFormat, "original"] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    max_side: Annotated[int, Field(ge=SIDES[0], le=SIDES[1])] | None = None
    inline: bool | None = None
    put: Annotated[list[AskedPut], Field(max_length=PUTS)] = []


_NOTHING = AskedResults()


@dataclass(frozen=True)
class Chosen:
    """What a job gets of that: the fields of :class:`guard.job.NewJob`."""

    results: ResultOptions = AS_IT_COMES
    puts: tuple[NewPut, ...] = ()


async def choose_results(asked: AskedResults | None, client: Client, rules: Rules, now_ms: int) -> Chosen:
    """What the request asks for, and for the rest what the key says. Raises InvalidRequestError."""
    limits = client.limits
    if asked is None and not limits.results_format and not limits.results_inline:
        return Chosen()
    puts = _read_puts(asked, rules, now_ms)
    # On another thread, as the codecs that are there are looked up.
    return Chosen(await run_beside(_choose_options, asked, client), puts)


def _choose_options(asked: AskedResults | None, client: Client) -> ResultOptions:
    """Raises InvalidRequestError where the server cannot write the format, or nothing is to be converted."""
    asked, limits = asked or _NOTHING, client.limits
    format = asked.format or limits.results_format or "original"
    if format == "original":
        if asked.quality is not None or asked.max_side is not None:
            field = f"guard.results.{'max_side' if asked.quality is None else 'quality'}"
            raise InvalidRequestError(f"{field} needs a format.", extra_info={"field": field})
        return ResultOptions(inline=_choose_inline(asked, limits))
    if format not in (formats := list_formats()):
        there = [name for name in (*PICTURE_FORMATS, *FILM_FORMATS) if name in formats]
        raise InvalidRequestError(
            f"This server cannot write {format}.",
            details=f"It can write {', '.join(there)}.",
            extra_info={"field": "guard.results.format", "available": there},
        )
    # What a key says of quality and size is meant for its own format.
    is_own = format == limits.results_format
    return ResultOptions(
        format,
        asked.quality or (limits.results_quality if is_own else None),
        asked.max_side or (limits.results_max_side if is_own else None),
        _choose_inline(asked, limits),
    )


def _choose_inline(asked: AskedResults, limits: KeyLimits) -> bool:
    return limits.results_inline if asked.inline is None else asked.inline


def _read_puts(asked: AskedResults | None, rules: Rules, now_ms: int) -> tuple[NewPut, ...]:
    """Where results are to be put. Raises InvalidRequestError where an address may not be reached, or has expired."""
    puts = []
    for place, put in enumerate(asked.put if asked is not None else ()):
        field = f"guard.results.put.{place}.url"
        rules.check(put.url, field, LONGEST)
        expires_at_ms = read_expiry_ms(put.url)
        if expires_at_ms is not None and expires_at_ms <= now_ms:
            raise InvalidRequestError(f"{field} has expired.", extra_info={"field": field})
        puts.append(NewPut(put.artifact, put.url, dict(put.headers), expires_at_ms))
    return tuple(puts)
