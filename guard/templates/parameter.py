"""One value that a caller may set, and the judgement of what callers send for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..messages import FALLBACK
from ..urls import is_source
from .bodies import ParameterBody, ParameterType

#: The largest seed that ComfyUI's samplers take.
MAX_SEED = 2**64 - 1
#: The most characters of a text parameter without a `max_length` of its own.
TEXT_LENGTH = 4000
FILE_NAME_LENGTH = 255


#: Fields that only some types have.
_FIELDS_OF: Mapping[str, tuple[ParameterType, ...]] = {
    "min": ("integer", "number"),
    "max": ("integer", "number"),
    "step": ("integer",),
    "max_length": ("text",),
    "choices": ("choice",),
}


class WrongKindError(ValueError):
    """A value of another type than the parameter's; the message says what it must be."""


class OutOfRangeError(ValueError):
    """A value of the right type beyond the parameter's limits; the message says which."""


def _require_english(texts: dict[str, str]) -> dict[str, str]:
    if FALLBACK not in texts:
        raise ValueError(f"a text in {FALLBACK!r} is needed")
    return texts


#: Language → text.
Texts = Annotated[dict[str, str], AfterValidator(_require_english)]
Values = Mapping[str, Any]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(Part):
    """One value that a caller may set.

    Attributes:
        into: the inputs that get it, as `node.input`; none where it only chooses presets or wiring.
        default: None where the caller must give a value; without one, a seed is drawn.
        required: false: a file that may be left out, with all nodes that are about it alone.
        step: between the values of an integer, from `min` on.
        max_length: of texts, in characters.
    """

    type: ParameterType
    into: tuple[str, ...] = ()
    default: bool | int | float | str | None = None
    min: int | float | None = None
    max: int | float | None = None
    step: int = Field(1, ge=1)
    max_length: int = Field(TEXT_LENGTH, ge=1, le=2**20)
    choices: tuple[str, ...] = ()
    required: bool = True
    help: Texts

    def list_faults(self, doubted: Collection[str | int] = ()) -> Iterator[tuple[str, str]]:
        """(field, what is wrong) of fields that do not go together.

        Args:
            doubted: fields that do not say what was meant, so that nothing may be concluded from them.
        """
        faults = [each for each in self._list_faults() if not {each[0], "type"} & set(doubted)]
        yield from faults
        odd = {*doubted, *(field for field, _ in faults)}
        if self.default is None or "type" in odd or (self.type == "choice" and "choices" in odd):
            return
        try:
            self.read(self.default)
        except WrongKindError as error:
            yield "default", str(error)
        except OutOfRangeError as error:
            if not odd & {"min", "max", "step", "max_length"}:
                yield "default", str(error)

    def _list_faults(self) -> Iterator[tuple[str, str]]:
        for name, types in _FIELDS_OF.items():
            if name in self.model_fields_set and self.type not in types:
                yield name, f"{self.type} has no {name}; {' and '.join(types)} has"
        if self.type in ("integer", "number"):
            for name, limit in (("min", self.min), ("max", self.max)):
                if limit is None:
                    yield name, f"{self.type} needs min and max"
                elif self.type == "integer" and limit != limit // 1:
                    yield name, "the limits of an integer are whole numbers"
            if self.min is not None and self.max is not None and self.min > self.max:
                yield "min", f"{self.min} is more than max, which is {self.max}"
        if self.type == "choice" and not self.choices:
            yield "choices", "choice needs choices"
        if not self.required and self.type != "file":
            yield "required", "only a file may be left out; others need a default"

    @property
    def is_needed(self) -> bool:
        """Whether a caller must give a value."""
        return self.default is None and self.type != "seed" and self.required

    def read(self, value: Any) -> Any:
        """Turn a caller's value into the graph's. Raises WrongKindError, OutOfRangeError."""
        if self.type in ("integer", "seed"):
            return self._read_integer(value)
        if self.type == "number":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise WrongKindError("must be a number")
            self._check_within(value, self.min, self.max)
            return float(value)
        if self.type == "boolean":
            if not isinstance(value, bool):
                raise WrongKindError("must be true or false")
            return value
        if not isinstance(value, str):
            raise WrongKindError("must be a string")
        if self.type == "choice":
            if value not in self.choices:
                raise WrongKindError(f"must be one of {', '.join(self.choices)}")
        elif self.type == "file":
            if not is_source(value) and not 1 <= len(value) <= FILE_NAME_LENGTH:
                raise OutOfRangeError(f"must be a file's name of 1 to {FILE_NAME_LENGTH} characters")
        elif len(value) > self.max_length:
            raise OutOfRangeError(f"must have {self.max_length} characters at most, not {len(value)}")
        return value

    def describe(self, name: str, locale: str) -> ParameterBody:
        """The parameter as JSON, with only the fields that its type has."""
        told: ParameterBody = {
            "name": name,
            "type": self.type,
            "required": self.is_needed,
            "default": self.default,
            "help": choose_text(self.help, locale),
        }
        if self.type in ("integer", "number"):
            told["min"], told["max"] = self.min, self.max
        if self.type == "integer" and self.step > 1:
            told["step"] = self.step
        if self.type == "seed":
            told["min"], told["max"] = 0, MAX_SEED
        if self.type == "text":
            told["max_length"] = self.max_length
        if self.type == "choice":
            told["choices"] = list(self.choices)
        return told

    def _read_integer(self, value: Any) -> int:
        # Some clients send 20 as 20.0.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            raise WrongKindError("must be a whole number")
        whole = int(value)
        low, high = (0, MAX_SEED) if self.type == "seed" else (self.min, self.max)
        self._check_within(whole, low, high)
        if (whole - int(low or 0)) % self.step:
            raise OutOfRangeError(f"must be {low} plus a multiple of {self.step}")
        return whole

    @staticmethod
    def _check_within(value: float, low: float | None, high: float | None) -> None:
        if low is not None and high is not None and not low <= value <= high:
            raise OutOfRangeError(f"must be from {low} to {high}")


def choose_text(texts: Mapping[str, str], locale: str) -> str:
    return texts.get(locale) or texts[FALLBACK]
