"""What a key's limits take, read off `KeyLimits`: the command line, the routes and the page are made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, Field

from ..client import KeyLimits
from ..outgoing import SIDES, FilmFormat, PictureFormat
from ..settings import PROFILES

#: What a limit takes: a number above 0, a whole one, patterns of node classes, the name of a profile, yes and no; of
#: results, a format, a quality, the pixels of a side.
Kind = Literal["number", "count", "patterns", "profile", "flag", "format", "quality", "side"]

_KINDS: dict[Any, Kind] = {
    float | None: "number",
    int | None: "count",
    tuple[str, ...]: "patterns",
    str: "profile",
    bool: "flag",
}


@dataclass(frozen=True)
class LimitField:
    """One limit: what it takes, its word in the list of the keys, and its meaning."""

    name: str
    kind: Kind
    says: str
    meaning: str


def list_limits() -> list[LimitField]:
    """Every limit that a key may have."""
    hints = get_type_hints(KeyLimits)
    return [
        LimitField(
            one.name, one.metadata["kind"] or _KINDS[hints[one.name]], one.metadata["says"], one.metadata["meaning"]
        )
        for one in fields(KeyLimits)
    ]


def describe(limits: KeyLimits) -> list[str]:
    """The limits that are set, each in a few words."""
    described = []
    for one in list_limits():
        value = getattr(limits, one.name)
        if value is None or value in ("", (), False):
            continue
        written = ",".join(value) if one.kind == "patterns" else value if isinstance(value, str) else f"{value:.10g}"
        described.append(one.says.format(written))
    return described


def _check_profile(name: str) -> str:
    if name and name not in PROFILES:
        raise ValueError(f"there is no profile {name[:64]!r}; there are {', '.join(sorted(PROFILES))}")
    return name


_Count = Annotated[int, Field(ge=1, le=2**53)]
_Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Patterns = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=500)]

#: By its kind, the type of a limit in a request, what stands where it is not named, and its type in an answer.
TYPES: dict[Kind, tuple[Any, Any, Any]] = {
    "number": (_Number | None, None, float | None),
    "count": (_Count | None, None, int | None),
    "patterns": (_Patterns, [], list[str]),
    "profile": (Annotated[str, AfterValidator(_check_profile)], "", str),
    "flag": (bool, False, bool),
    "format": (Literal[PictureFormat, FilmFormat, ""], "", str),
    "quality": (Annotated[int, Field(ge=1, le=100)] | None, None, int | None),
    "side": (Annotated[int, Field(ge=SIDES[0], le=SIDES[1])] | None, None, int | None),
}
