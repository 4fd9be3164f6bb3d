"""Search photos for faces: is there one, how many, how large?

`chooser` picks a detector, `photos` opens what users send, `scaling` makes that small, `loaded` opens all that loaders
will read, `films` and `sounds` too, to their last picture (`frames`, `opencv`) and byte (`whole`), and as what saves
or cuts them will (`savers`, `cuts`), `again` looks at them once more as a job's nodes read them, `search` looks in
several ways before it says no, `check` compares a picture with the rules, `required` finds the pictures in a prompt
that need a face, `gate` checks those before a job exists, `machine` lets nodes use all that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import TypedDict

#: uint8, height × width × 3, RGB.
Pixels = npt.NDArray[np.uint8]
#: (x1, y1, x2, y2) in pixels; the upper left corner of the picture is (0, 0).
Box = tuple[float, float, float, float]

#: Faces of less confidence than this are ignored. On the photos of the tests CenterFace gives every upright face 0.70
#: or more at its first look; 0.35 leaves room for worse photos, and the close-up sorts out what is no face.
CANDIDATE = 0.35


class FaceBody(TypedDict):
    """A face. `box` is [x1, y1, x2, y2] in pixels; `landmarks` may be empty."""

    box: Annotated[list[float], Field(min_length=4, max_length=4)]
    confidence: float
    landmarks: list[Annotated[list[float], Field(min_length=2, max_length=2)]]


@dataclass(frozen=True)
class Face:
    """A face, in pixels of the picture that was searched.

    Attributes:
        box: (x1, y1, x2, y2), inside the picture.
        landmarks: eyes, nose and corners of the mouth as (x, y), the viewer's left first; empty where the detector
            knows none.
        confidence: 0 to 1, in the detector's own measure.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    confidence: float

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def size(self) -> float:
        """The longer side in pixels: the height of a face, upright or sideways."""
        return max(self.width, self.height)

    def body(self) -> FaceBody:
        """The face as JSON."""
        return {
            "box": [round(value, 1) for value in self.box],
            "confidence": round(self.confidence, 3),
            "landmarks": [[round(x, 1), round(y, 1)] for x, y in self.landmarks],
        }


class Detector(Protocol):
    """A face detector that is loaded and ready. Several threads may use it at once."""

    @property
    def name(self) -> str:
        """`centerface`, or `insightface/<pack>`."""

    def find(self, pixels: Pixels) -> list[Face]:
        """The faces of at least CANDIDATE confidence, most confident first, in pixels of `pixels`.

        Looks once, without more scaling than the network demands, so the picture should have about a megapixel at
        most and faces of 10 pixels or more.
        """
