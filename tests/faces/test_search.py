"""Small faces in large pictures, tight crops, sideways photos; and where the boxes come out."""

import numpy as np
import pytest
from faces.conftest import RedIsAFace
from faces.photos import jpeg, photo, png, sized
from PIL import Image

from comfyui_guarded.guard.errors import NoFaceError
from comfyui_guarded.guard.faces import Box, Detector, Face
from comfyui_guarded.guard.faces.check import FaceChecker, FaceRules
from comfyui_guarded.guard.faces.chooser import Chooser
from comfyui_guarded.guard.faces.photos import Picture
from comfyui_guarded.guard.faces.search import merge, search

ASTRONAUT = "skimage/data/astronaut.png"
CAMERA = "skimage/data/camera.png"
HANKS = "insightface/data/images/Tom_Hanks_54745.png"
SIX = "insightface/data/images/t1.jpg"
QUARTERS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return common / (sum(areas) - common)


def head(size: int) -> Image.Image:
    """The astronaut's head with a little around it, `size` pixels high; the face takes about half of that."""
    return photo(ASTRONAUT).crop((130, 0, 330, 240)).resize((round(size * 200 / 240), size), Image.Resampling.LANCZOS)


def landscape(width: int, height: int) -> Image.Image:
    return photo("skimage/data/rocket.jpg").resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("degrees", QUARTERS)
@pytest.mark.parametrize("name", [ASTRONAUT, CAMERA, HANKS, SIX])
def test_a_sideways_photo_shows_its_faces_where_they_are(checker: FaceChecker, name: str, degrees: int) -> None:
    upright = photo(name)
    expected = checker.check(png(upright)).faces
    faces = checker.check(png(upright.transpose(QUARTERS[degrees]))).faces
    assert len(faces) == len(expected)
    width, height = upright.size
    for face in expected:
        x1, y1, x2, y2 = face.box
        box = {
            90: (y1, width - x2, y2, width - x1),
            180: (width - x2, height - y2, width - x1, height - y1),
            270: (height - y2, x1, height - y1, x2),
        }[degrees]
        assert max(overlap(box, other.box) for other in faces) > 0.5


def test_without_rotations_a_sideways_crop_is_refused(centerface: Detector) -> None:
    checker = FaceChecker(Chooser(detector="centerface"), try_rotations=False)
    with pytest.raises(NoFaceError):
        checker.check(png(photo(HANKS).transpose(Image.Transpose.ROTATE_180)))


@pytest.mark.parametrize("height", [64, 128, 512, 1600])
def test_a_crop_that_the_face_fills_is_found(checker: FaceChecker, height: int) -> None:
    face = checker.check(png(photo(ASTRONAUT))).faces[0]
    left, top, right, bottom = face.box
    inset_x, inset_y = face.width * 0.1, face.height * 0.1
    tight = photo(ASTRONAUT).crop(
        (int(left + inset_x), int(top + inset_y), int(right - inset_x), int(bottom - inset_y))
    )
    found = checker.check(png(sized(tight, height)))
    assert len(found.faces) == 1
    assert found.faces[0].size > 0.6 * height


def test_every_face_of_a_crowd_in_a_large_photo_is_found_once(checker: FaceChecker) -> None:
    crowd = landscape(4800, 3600)
    for row in range(5):
        for column in range(8):
            crowd.paste(head(190), (200 + column * 560, 300 + row * 640))
    faces = checker.check(jpeg(crowd), FaceRules(min_face_fraction=0.02))
    assert len(faces.faces) == 40
    assert len({(round(face.box[0] / 560), round(face.box[1] / 640)) for face in faces.faces}) == 40


def test_one_small_face_in_a_large_photo_is_found(checker: FaceChecker) -> None:
    scene = landscape(4000, 3000)
    scene.paste(head(120), (2700, 1900))
    faces = checker.check(jpeg(scene), FaceRules(min_face_fraction=0)).faces
    assert len(faces) == 1
    assert overlap(faces[0].box, (2725, 1925, 2775, 1990)) > 0.3


def test_a_panorama_of_12000_pixels_shows_its_faces(checker: FaceChecker) -> None:
    panorama = landscape(12000, 1800)
    for left in (500, 6100, 11300):
        panorama.paste(head(300), (left, 900))
    faces = checker.check(jpeg(panorama))
    assert (faces.width, faces.height) == (12000, 1800)
    assert sorted(round(face.box[0], -2) for face in faces.faces) == pytest.approx([600, 6200, 11400], abs=100)


def test_a_face_at_the_very_edge_is_found(checker: FaceChecker) -> None:
    scene = landscape(900, 600)
    scene.paste(head(240), (0, 0))
    assert len(checker.check(png(scene)).faces) == 1


def test_a_face_gets_the_same_box_at_every_size(checker: FaceChecker) -> None:
    boxes = []
    for side in (256, 512, 1024, 4096):
        faces = checker.check(
            png(sized(photo(ASTRONAUT), side)) if side < 4096 else jpeg(sized(photo(ASTRONAUT), side))
        )
        boxes.append(tuple(value / side for value in faces.faces[0].box))
    assert min(overlap(boxes[0], box) for box in boxes) > 0.75


# The same, with a detector that sees red: where it looks, and how coordinates come back.


def scene(width: int, height: int, *patches: Box, red: int = 255) -> Picture:
    pixels = np.full((height, width, 3), 40, np.uint8)
    for left, top, right, bottom in patches:
        pixels[int(top) : int(bottom), int(left) : int(right)] = (red, 0, 0)
    return Picture(pixels, width, height)


def test_the_first_look_is_enough_when_it_finds_what_is_wanted(red: RedIsAFace) -> None:
    faces = search(red, scene(800, 600, (100, 200, 180, 300)))
    assert [face.box for face in faces] == [pytest.approx((100, 200, 180, 300), abs=2)]
    assert len(red.looks) == 1


def test_a_picture_without_a_face_is_looked_at_framed_and_turned_before_it_is_refused(red: RedIsAFace) -> None:
    assert search(red, scene(800, 600)) == []
    assert len(red.looks) == 5
    first, framed, *turned = red.looks
    assert first[0] * first[1] <= 576 * 576 * 1.01
    assert framed[0] * framed[1] <= 320 * 320 * 1.05
    assert [look[0] > look[1] for look in turned] == [True, True, False]


def test_without_rotations_it_is_not_turned(red: RedIsAFace) -> None:
    search(red, scene(800, 600), try_rotations=False)
    assert len(red.looks) == 2


def test_a_large_picture_is_looked_at_in_tiles_no_larger_than_the_first_look(red: RedIsAFace) -> None:
    search(red, scene(1800, 1300), try_rotations=False)
    assert len(red.looks) == 2 + 4 * 3
    assert max(height * width for height, width in red.looks) <= 640 * 640 * 1.01


@pytest.mark.parametrize("left", [0, 500, 620, 1000, 1780])
@pytest.mark.parametrize("top", [0, 330, 640, 1280])
def test_a_patch_that_tiles_cut_comes_out_whole_and_once(red: RedIsAFace, left: int, top: int) -> None:
    faces = search(red, scene(1800, 1300, (left, top, left + 20, top + 20)))
    assert [face.box for face in faces] == [pytest.approx((left, top, left + 20, top + 20), abs=3)]


def test_boxes_are_in_pixels_of_the_picture_itself(red: RedIsAFace) -> None:
    small = scene(400, 300, (40, 60, 80, 120))
    face = search(red, Picture(small.pixels, 4000, 3000))[0]
    assert face.box == pytest.approx((400, 600, 800, 1200), abs=1)
    assert face.landmarks[0] == pytest.approx((400, 600), abs=1)


def test_a_doubtful_face_is_looked_at_in_close_up(red: RedIsAFace) -> None:
    faces = search(red, scene(400, 300, (100, 100, 160, 160), red=150), try_rotations=False)
    assert (144, 144) in red.looks
    assert faces[0].confidence == pytest.approx(150 / 255, abs=0.02)


def test_a_doubtful_face_that_its_close_up_does_not_show_loses_half_its_confidence() -> None:
    class Fickle(RedIsAFace):
        def find(self, pixels: np.ndarray) -> list[Face]:
            return [] if pixels.shape[:2] == (144, 144) else super().find(pixels)

    faces = search(Fickle(), scene(400, 300, (100, 100, 160, 160), red=150), try_rotations=False)
    assert faces[0].confidence == pytest.approx(75 / 255, abs=0.02)


def test_of_faces_on_top_of_each_other_the_most_confident_remains() -> None:
    def face(box: Box, confidence: float) -> Face:
        return Face(box, (), confidence)

    whole, part, beside = face((0, 0, 100, 100), 0.9), face((10, 10, 60, 60), 0.8), face((90, 0, 190, 100), 0.7)
    assert merge([beside, part, whole]) == [whole, beside]
