"""Compare a picture with the rules, and raise a typed error that carries the facts."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from ..errors import (
    BadImageError,
    FaceTooSmallError,
    GuardError,
    InternalError,
    InvalidRequestError,
    NoFaceError,
    TooManyFacesError,
)
from . import CANDIDATE, Face, FaceBody, Pixels
from .chooser import Chooser
from .photos import PhotoLimits, Picture, open_picture, read
from .search import MAX_PIXELS, search


@dataclass(frozen=True)
class FaceRules:
    """What a picture must show.

    Attributes:
        min_faces: the fewest large enough faces; 0: a picture without any passes.
        max_faces: the most large enough faces; 0: any number.
        min_confidence: from which on something counts as a face, in the detector's own measure. Between what CenterFace
            and the close-up give faces and what they give animals, dolls and things: see the table in docs/faces.md.
        min_face_fraction: from which on a face is large enough: its longer side as a part of the picture's shorter
            one. 0.04 is 26 pixels where a face model scales the picture to 640 (InsightFace's usual size), about the
            least that it recognises; people passing in the background are smaller.
    """

    min_faces: int = 1
    max_faces: int = 0
    min_confidence: float = 0.65
    min_face_fraction: float = 0.04

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (self.min_faces, self.max_faces))
        if not (whole and 0 <= self.min_faces <= 1000 and 0 <= self.max_faces <= 1000):
            raise ValueError("min_faces and max_faces must be whole numbers from 0 to 1000")
        if self.max_faces and self.max_faces < self.min_faces:
            raise ValueError("max_faces must not be less than min_faces (0: any number)")
        if not CANDIDATE <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must lie between {CANDIDATE} and 1")
        if not 0 <= self.min_face_fraction <= 1:
            raise ValueError("min_face_fraction must lie between 0 and 1")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FaceRules:
        """Read the rules among a node's inputs or a request's fields. What is absent, or a link, has its default.

        Raises:
            InvalidRequestError: a value is out of range or of the wrong type.
        """
        given = {name: values[name] for name in cls.__dataclass_fields__ if _is_number(values.get(name))}
        wrong = [name for name in cls.__dataclass_fields__ if isinstance(values.get(name), (str, bool, dict))]
        try:
            if wrong:
                raise ValueError(f"{', '.join(wrong)} must be a number")
            return cls(**given)
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"The face check's rules: {error}.", extra_info={"rules": given}) from None

    def body(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class FacesBody(TypedDict):
    """The faces that count under the rules, those that are too small, and the size of the upright picture."""

    faces: list[FaceBody]
    small_faces: list[FaceBody]
    width: int
    height: int
    detector: str


@dataclass(frozen=True)
class Faces:
    """The faces in a picture.

    Attributes:
        faces: those that count under the rules, most confident first, in pixels of the upright picture.
        small: those that are confident enough but too small.
        width, height: of the upright picture, in pixels.
        detector: the name of the one that found them.
    """

    faces: tuple[Face, ...]
    small: tuple[Face, ...]
    width: int
    height: int
    detector: str

    @property
    def largest(self) -> Face | None:
        return max(self.faces, key=lambda face: face.size, default=None)

    def body(self) -> FacesBody:
        """As JSON, for the endpoint and for an error's extra_info."""
        return {
            "faces": [face.body() for face in self.faces],
            "small_faces": [face.body() for face in self.small],
            "width": self.width,
            "height": self.height,
            "detector": self.detector,
        }


#: The search's result before any rule: the faces, width, height, detector.
_Sighting = tuple[tuple[Face, ...], int, int, str]


class FaceChecker:
    """Checks pictures, and remembers their faces. Any thread; takes tenths of a second, so not the event loop.

    Args:
        chooser: gives the detector, which it loads at the first check.
        try_rotations: also look at the picture turned before saying no.
        limits: how large a picture may be.
        remembered: the number of pictures, known by their content, whose faces are remembered.
        on_check: called after each check with `passed` or the error code, and the seconds that it took.
    """

    def __init__(
        self,
        chooser: Chooser,
        *,
        try_rotations: bool = True,
        limits: PhotoLimits | None = None,
        remembered: int = 256,
        on_check: Callable[[str, float], None] = lambda _outcome, _took_s: None,
    ) -> None:
        self._chooser = chooser
        self._try_rotations = try_rotations
        self._limits = limits or PhotoLimits()
        self._remembered = remembered
        self._known: OrderedDict[tuple[Any, ...], _Sighting] = OrderedDict()
        self._lock = threading.Lock()
        self._on_check = on_check

    @property
    def chooser(self) -> Chooser:
        return self._chooser

    @property
    def limits(self) -> PhotoLimits:
        return self._limits

    def check(
        self, image: Path | bytes | Pixels, rules: FaceRules | None = None, name: str = "", detector: str | None = None
    ) -> Faces:
        """Find the faces in a picture and compare them with the rules.

        Args:
            image: a file, its bytes, or uint8 pixels (height × width × 3, RGB, upright).
            name: what the user calls the picture, for messages.
            detector: one to use instead of the setting's (see Chooser).

        Raises:
            NoFaceError, TooManyFacesError, FaceTooSmallError: it breaks a rule; the facts are in extra_info.
            BadImageError: the picture cannot be read.
            ServerUnavailableError: the detector cannot be loaded.
        """
        rules = rules or FaceRules()
        name = name or (image.name if isinstance(image, Path) else "")
        began_s = time.monotonic()
        outcome = InternalError.code
        try:
            faces = judge(self._find(image, rules, name, detector), rules, name)
            outcome = "passed"
            return faces
        except GuardError as error:
            outcome = error.code
            raise
        finally:
            self._on_check(outcome, time.monotonic() - began_s)

    def _find(self, image: Path | bytes | Pixels, rules: FaceRules, name: str, detector: str | None) -> _Sighting:
        pixels = image if isinstance(image, np.ndarray) else None
        data = read(image, self._limits, name) if isinstance(image, (Path, bytes)) else b""
        digest = hashlib.sha256(np.ascontiguousarray(pixels).data if pixels is not None else data).digest()
        shape = None if pixels is None else pixels.shape
        # These rules decide how long the search goes on; the others only judge its result.
        key = (digest, shape, detector, rules.min_faces, rules.min_confidence)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        ready = self._chooser.get(detector)
        view = _wrap_pixels(pixels, name) if pixels is not None else open_picture(data, self._limits, MAX_PIXELS, name)
        faces = search(ready, view, max(rules.min_faces, 1), rules.min_confidence, self._try_rotations)
        sighting = (tuple(faces), view.width, view.height, ready.name)
        with self._lock:
            self._known[key] = sighting
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
        return sighting


def judge(sighting: _Sighting, rules: FaceRules, name: str = "") -> Faces:
    """Compare a search's result with the rules. Pure. Raises as FaceChecker.check does."""
    candidates, width, height, detector = sighting
    floor = rules.min_face_fraction * min(width, height)
    sure = [face for face in candidates if face.confidence >= rules.min_confidence]
    faces = Faces(
        faces=tuple(face for face in sure if face.size >= floor),
        small=tuple(face for face in sure if face.size < floor),
        width=width,
        height=height,
        detector=detector,
    )
    count = len(faces.faces)
    facts = {"image": name, **faces.body(), "rules": rules.body()}
    where = f"in {name}" if name else "in the image"
    if len(sure) < rules.min_faces:
        best = max((face.confidence for face in candidates), default=0.0)
        message = (
            f"No face found {where}."
            if not sure
            else f"{_count_faces(len(sure))} found {where}; at least {rules.min_faces} are needed."
        )
        doubtful = f"The likeliest spot has a confidence of {best:.2f}; " if not sure and best else ""
        needed = f"{rules.min_confidence:.2f} is needed. " if doubtful else ""
        raise NoFaceError(message, details=f"{doubtful}{needed}Detector: {detector}.", extra_info=facts)
    if count < rules.min_faces:
        size = max(face.size for face in faces.small)
        raise FaceTooSmallError(
            f"The largest face {where} has {size:.0f} pixels; at least {floor:.0f} are needed."
            if not count
            else f"{count} of {len(sure)} faces {where} are large enough; at least {rules.min_faces} are needed.",
            details=f"A face must have {rules.min_face_fraction:.1%} of the shorter side. Detector: {detector}.",
            extra_info={**facts, "min_face_pixels": round(floor, 1)},
        )
    if rules.max_faces and count > rules.max_faces:
        raise TooManyFacesError(
            f"{_count_faces(count)} found {where}; at most {rules.max_faces} are allowed.",
            details=f"Detector: {detector}.",
            extra_info=facts,
        )
    return faces


def _count_faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"


def _wrap_pixels(pixels: Pixels, name: str) -> Picture:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise BadImageError("A picture must be uint8, height × width × 3.", extra_info={"image": name})
    return Picture(pixels, width=pixels.shape[1], height=pixels.shape[0])
