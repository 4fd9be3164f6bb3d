"""Search for faces in several ways before saying no.

One look finds faces of about 10 pixels and more, upright or nearly so, with something around them. So the search also
looks at a large picture in tiles, at a tight crop with a frame around it, and at a sideways photo turned; each only
while faces are missing, because a photo of a cat costs all of them. It looks at a doubtful face once more, in close-up:
on the photos of the tests every face passed that and nothing else did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from PIL import Image

from . import Box, Detector, Face, Pixels
from .photos import Picture
from .scaling import shrink

#: Larger pictures are scaled down to this many pixels: a face of 22 pixels in a 12-megapixel group photo has 10 here.
MAX_PIXELS = 2_400_000
#: The first look finds faces of 1.7 % of a square picture's side and more.
_FIRST_PIXELS = 576 * 576
#: Larger pictures are also searched in tiles, which overlap by more than the size of the faces that they are for.
_TILES_FROM_PIXELS = 1_500_000
_TILE, _OVERLAP = 640, 128
#: Where the largest face is under this part of the shorter side, it is a crowd, and the first look has missed some.
_CROWD_FRACTION = 0.1
#: A tight crop is scaled down to this, and gets a frame of half its size on each side.
_FRAMED_PIXELS, _FRAME = 160 * 160, 0.5
#: In the turned picture the search finds faces of 4 % of the side and more, as FaceRules demands.
_TURNED_PIXELS = 256 * 256
#: A face of less confidence is looked at in close-up: 2.2 times its size, as 144 × 144 pixels. There CenterFace gave
#: upright faces 0.67 to 0.93, and what it had taken for faces (at 0.35 to 0.57) 0.00 to 0.39.
_SURE = 0.75
_CLOSE_UP, _CLOSE_UP_SIDE = 2.2, 144


def search(
    detector: Detector,
    picture: Picture,
    wanted: int = 1,
    min_confidence: float = 0.65,
    try_rotations: bool = True,
) -> list[Face]:
    """The faces in a picture, most confident first, in pixels of the upright picture at its full size.

    Args:
        wanted: the number of faces that ends the search.
        min_confidence: from which on a face counts towards it. The answer has the others as well.
        try_rotations: also look at the picture turned by 90, 180 and 270 degrees.
    """
    pixels = shrink(picture.pixels, MAX_PIXELS)
    first = shrink(pixels, _FIRST_PIXELS)
    height, width = pixels.shape[:2]
    rows, columns = first.shape[:2]
    grown = (width / columns, height / rows)
    faces = look(detector, pixels, first)

    def wanting(confidence: float) -> bool:
        return sum(face.confidence >= confidence for face in faces) < wanted

    crowd = bool(faces) and max(face.size for face in faces) < _CROWD_FRACTION * min(width, height)
    if width * height > _TILES_FROM_PIXELS and (crowd or wanting(min_confidence)):
        faces = merge([*faces, *_search_tiles(detector, pixels)])
    if wanting(min_confidence):
        framed = look(detector, first, shrink(first, _FRAMED_PIXELS), _FRAME)
        faces = merge([*faces, *(_scale(face, *grown) for face in framed)])
    # Some faces are found though they lie on their side; then the upright picture gets a look in full. A face that is
    # doubtful here may be upright, and sure, in a turned picture.
    lean = _find_lean(face for face in faces if face.confidence >= min_confidence)
    for quarters in sorted((1, 3, 2), key=lambda quarters: quarters != lean) if try_rotations else ():
        if quarters != lean and not wanting(max(min_confidence, _SURE)):
            break
        view = np.ascontiguousarray(np.rot90(first, quarters))
        turned = look(detector, view, view if quarters == lean else shrink(view, _TURNED_PIXELS))
        turned = [_scale(_turn_back(face, quarters, columns, rows), *grown) for face in turned]
        if any(face.confidence >= _SURE for face in turned):
            faces = [face for face in faces if face.confidence >= _SURE]
        faces = merge([*faces, *turned])
    return [_scale(face, picture.width / width, picture.height / height) for face in faces]


def look(detector: Detector, pixels: Pixels, small: Pixels, frame: float = 0.0) -> list[Face]:
    """Look once at `small`, a scaled-down `pixels`, with a black frame of `frame` times its sides around it.

    The faces are in pixels of `pixels`, where doubtful ones get a close-up.
    """
    height, width = pixels.shape[:2]
    rows, columns = small.shape[:2]
    left, top = round(columns * frame), round(rows * frame)
    framed = np.pad(small, ((top, top), (left, left), (0, 0))) if frame else small
    seen = []
    for face in detector.find(framed):
        back = _scale(_move(face, -left, -top), width / columns, height / rows)
        box = _clip(back.box, width, height)
        if box is not None:
            seen.append(_look_closer(detector, pixels, replace(back, box=box)))
    return sorted(seen, key=lambda face: -face.confidence)


def _find_lean(faces: Iterable[Face]) -> int:
    """By how many quarters np.rot90 must turn the picture so that most of the faces stand upright.

    Their landmarks tell, CenterFace's even for faces on their head: within 30 degrees on the photos of the tests.
    """
    votes = [0.0] * 4
    for face in faces:
        if len(face.landmarks) == 5:
            left_eye, right_eye, _nose, left_mouth, right_mouth = face.landmarks
            across = left_mouth[0] + right_mouth[0] - left_eye[0] - right_eye[0]
            down = left_mouth[1] + right_mouth[1] - left_eye[1] - right_eye[1]
            votes[round(-math.atan2(across, down) / (math.pi / 2)) % 4] += face.confidence
    return votes.index(max(votes))


def merge(faces: Iterable[Face]) -> list[Face]:
    """Keep the most confident of faces that overlap by 40 % of both, or 70 % of the smaller; most confident first."""
    distinct: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.confidence):
        if not any(_is_same(face, other) for other in distinct):
            distinct.append(face)
    return distinct


def _is_same(face: Face, other: Face) -> bool:
    common = _area(_intersect(face.box, other.box))
    areas = _area(face.box), _area(other.box)
    return common > 0.4 * (sum(areas) - common) or common > 0.7 * min(areas)


def _intersect(box: Box, other: Box) -> Box:
    return max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _look_closer(detector: Detector, pixels: Pixels, face: Face) -> Face:
    """Give a doubtful face the mean of its own confidence and the close-up's."""
    if face.confidence >= _SURE:
        return face
    middle_x, middle_y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    reach = face.size * _CLOSE_UP / 2
    cut = (round(middle_x - reach), round(middle_y - reach), round(middle_x + reach), round(middle_y + reach))
    side = (_CLOSE_UP_SIDE, _CLOSE_UP_SIDE)
    # Black outside the picture.
    close = np.asarray(_crop(pixels, cut).resize(side, Image.Resampling.BILINEAR))
    expected = _CLOSE_UP_SIDE / _CLOSE_UP
    seen = 0.0
    for other in detector.find(close):
        off = max(abs(other.box[0] + other.box[2] - _CLOSE_UP_SIDE), abs(other.box[1] + other.box[3] - _CLOSE_UP_SIDE))
        if off / 2 < expected / 2 and expected / 2 < other.size < expected * 2:
            seen = max(seen, other.confidence)
    return replace(face, confidence=(face.confidence + seen) / 2)


def _crop(pixels: Pixels, cut: tuple[int, int, int, int]) -> Image.Image:
    height, width = pixels.shape[:2]
    left, top, right, bottom = cut
    inside = pixels[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    canvas = np.zeros((max(bottom - top, 1), max(right - left, 1), 3), np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return Image.fromarray(canvas)


def _search_tiles(detector: Detector, pixels: Pixels) -> list[Face]:
    height, width = pixels.shape[:2]
    seen = []
    for top in _list_starts(height):
        for left in _list_starts(width):
            tile = pixels[top : top + _TILE, left : left + _TILE]
            for face in detector.find(np.ascontiguousarray(tile)):
                if not _is_halved(face.box, left, top, width, height):
                    seen.append(_look_closer(detector, pixels, _move(face, left, top)))
    return seen


def _list_starts(length: int) -> list[int]:
    """Where tiles begin along a side, evenly spread, so that neighbours overlap by `_OVERLAP` at least."""
    if length <= _TILE:
        return [0]
    count = -(-(length - _OVERLAP) // (_TILE - _OVERLAP))
    return [round(index * (length - _TILE) / (count - 1)) for index in range(count)]


def _is_halved(box: Box, left: int, top: int, width: int, height: int) -> bool:
    """Whether the tile's own edge may cut the face, which its neighbour or the first look then has whole."""
    right, bottom = min(_TILE, width - left), min(_TILE, height - top)
    return (
        (left > 0 and box[0] < 2)
        or (top > 0 and box[1] < 2)
        or (left + right < width and box[2] > right - 2)
        or (top + bottom < height and box[3] > bottom - 2)
    )


def _clip(box: Box, width: float, height: float) -> Box | None:
    cut = _intersect(box, (0.0, 0.0, float(width), float(height)))
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None


def _move(face: Face, x: float, y: float) -> Face:
    left, top, right, bottom = face.box
    box = (left + x, top + y, right + x, bottom + y)
    return replace(face, box=box, landmarks=tuple((a + x, b + y) for a, b in face.landmarks))


def _scale(face: Face, x: float, y: float) -> Face:
    left, top, right, bottom = face.box
    box = (left * x, top * y, right * x, bottom * y)
    return replace(face, box=box, landmarks=tuple((a * x, b * y) for a, b in face.landmarks))


def _turn_back(face: Face, quarters: int, width: int, height: int) -> Face:
    """Turn a face back that was found in a picture of `width` × `height` after np.rot90 by `quarters`."""

    def back(x: float, y: float) -> tuple[float, float]:
        return {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters]

    (x1, y1), (x2, y2) = back(*face.box[:2]), back(*face.box[2:])
    box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    return replace(face, box=box, landmarks=tuple(back(x, y) for x, y in face.landmarks))
