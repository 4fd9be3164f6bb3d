"""See whether OpenCV reads a film, where that is what its loader reads with: it has decoders of its own, and fewer.

It says no more than that it does not, and ends without a word where something is damaged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..cost.values import Media
from .sounds import UnfitError

#: So many pixels are decoded.
_MOST_PIXELS = 3 * 10**8
#: What of the pictures it may leave out, beside one.
_LEFT_OUT = 0.05


def look_with_opencv(path: Path, media: Media) -> Media:
    """What OpenCV makes of a film, or a picture, of which libav says what it holds.

    As VideoHelperSuite's `cv_frame_generator` does. Where OpenCV is not loaded, `media` as it is.

    Raises:
        UnfitError: it cannot read it, or not all of it.
    """
    cv2: Any = sys.modules.get("cv2")  # its loader has loaded it
    if cv2 is None:
        return media
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened() or not capture.grab():
            raise UnfitError("OpenCV, with which this loader reads films, cannot read it; send it as MP4 with H.264")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        found, picture = capture.retrieve()
        if rate <= 0 or not found or picture is None or picture.ndim != 3:
            raise UnfitError("OpenCV, with which this loader reads films, makes nothing of its pictures")
        height, width, _ = picture.shape
        count, most = 1, _MOST_PIXELS // max(width * height, 1)
        while count < most and capture.grab():
            count += 1
    finally:
        capture.release()
    known = max(media.frames, 1)
    if count >= most:
        return media._replace(width=width, height=height, frames=max(count, known))
    if count < known * (1 - _LEFT_OUT) - 1:
        raise UnfitError(f"OpenCV, with which this loader reads films, finds {count} of its {known} pictures")
    return media._replace(width=width, height=height, frames=count if media.frames or count > 1 else 0)
