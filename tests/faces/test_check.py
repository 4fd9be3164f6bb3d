"""The rules, the facts in the errors, and the memory."""

from pathlib import Path

import numpy as np
import pytest
from faces.conftest import RedIsAFace
from faces.photos import png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyui_guarded.guard.errors import (
    BadImageError,
    FaceTooSmallError,
    InvalidRequestError,
    NoFaceError,
    TooManyFacesError,
)
from comfyui_guarded.guard.faces import Box, Pixels
from comfyui_guarded.guard.faces.check import FaceChecker, FaceRules


def scene(*patches: Box, red: int = 255) -> Pixels:
    pixels = np.full((300, 400, 3), 40, np.uint8)
    for left, top, right, bottom in patches:
        pixels[int(top) : int(bottom), int(left) : int(right)] = (red, 0, 0)
    return pixels


ONE = scene((20, 30, 80, 110))
TWO = scene((20, 30, 80, 110), (200, 30, 260, 90))
TINY = scene((20, 30, 28, 40))


def test_a_picture_that_keeps_the_rules_gives_its_faces(red_checker: FaceChecker) -> None:
    faces = red_checker.check(TWO, FaceRules(min_faces=2, max_faces=2))
    assert (faces.width, faces.height, faces.detector) == (400, 300, "red")
    assert sorted(face.box[0] for face in faces.faces) == pytest.approx([20, 200], abs=1)
    assert faces.largest is not None
    assert faces.largest.box == pytest.approx((20, 30, 80, 110), abs=1)


def test_no_face_says_so_with_the_facts(red_checker: FaceChecker) -> None:
    with pytest.raises(NoFaceError, match=r"No face found in photo\.png\.") as caught:
        red_checker.check(scene(), name="photo.png")
    assert caught.value.extra_info == {
        "image": "photo.png",
        "faces": [],
        "small_faces": [],
        "width": 400,
        "height": 300,
        "detector": "red",
        "rules": {"min_faces": 1, "max_faces": 0, "min_confidence": 0.65, "min_face_fraction": 0.04},
    }


def test_a_face_below_the_confidence_is_none_and_the_details_say_how_likely_it_was(red_checker: FaceChecker) -> None:
    with pytest.raises(NoFaceError) as caught:
        red_checker.check(scene((100, 100, 200, 200), red=180), FaceRules(min_confidence=0.9))
    assert "0.71" in caught.value.details
    assert "0.90 is needed" in caught.value.details


def test_too_many_faces_are_counted_and_shown(red_checker: FaceChecker) -> None:
    with pytest.raises(TooManyFacesError, match=r"2 faces found in photo\.png; at most 1 are allowed") as caught:
        red_checker.check(TWO, FaceRules(max_faces=1), "photo.png")
    assert len(caught.value.extra_info["faces"]) == 2
    assert caught.value.extra_info["faces"][0]["confidence"] == 1.0
    assert len(caught.value.extra_info["faces"][0]["box"]) == 4


def test_fewer_faces_than_needed(red_checker: FaceChecker) -> None:
    with pytest.raises(NoFaceError, match="1 face found in the image; at least 2 are needed"):
        red_checker.check(ONE, FaceRules(min_faces=2))


def test_a_face_that_is_too_small_says_how_large_it_should_be(red_checker: FaceChecker) -> None:
    with pytest.raises(FaceTooSmallError, match="has 10 pixels; at least 30 are needed") as caught:
        red_checker.check(TINY, FaceRules(min_face_fraction=0.1))
    assert caught.value.extra_info["min_face_pixels"] == 30
    assert len(caught.value.extra_info["small_faces"]) == 1


def test_small_faces_in_the_background_do_not_count(red_checker: FaceChecker) -> None:
    both = scene((100, 100, 200, 200), (20, 30, 28, 40))
    faces = red_checker.check(both, FaceRules(max_faces=1))
    assert (len(faces.faces), len(faces.small)) == (1, 1)
    with pytest.raises(TooManyFacesError):
        red_checker.check(both, FaceRules(max_faces=1, min_face_fraction=0))


def test_with_no_minimum_a_picture_without_faces_passes(red_checker: FaceChecker) -> None:
    assert red_checker.check(scene(), FaceRules(min_faces=0)).faces == ()


@pytest.mark.parametrize(
    "values",
    [{"min_faces": -1}, {"min_faces": 2, "max_faces": 1}, {"min_confidence": 0.1}, {"min_confidence": 2.0},
     {"min_face_fraction": 1.5}, {"min_faces": 1.5}, {"max_faces": "2"}, {"min_faces": True},
     {"min_confidence": float("nan")}, {"max_faces": 10**9}],
)  # fmt: skip
def test_rules_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        FaceRules.of(values)


def test_rules_that_are_absent_or_come_over_a_link_have_their_defaults() -> None:
    assert FaceRules.of({"image": "a.png", "min_faces": ["4", 0], "max_faces": None}) == FaceRules()


@given(st.dictionaries(st.sampled_from([*FaceRules.__dataclass_fields__]), st.none() | st.integers() | st.floats()))
def test_rules_are_rules_or_an_invalid_request(values: dict[str, object]) -> None:
    try:
        rules = FaceRules.of(values)
    except InvalidRequestError:
        return
    assert FaceRules.of(rules.body()) == rules


# Memory.


def test_the_same_photo_asked_again_is_answered_from_memory(red: RedIsAFace, red_checker: FaceChecker) -> None:
    data = png(Image.fromarray(ONE))
    red_checker.check(data)
    looks = len(red.looks)
    red_checker.check(data, FaceRules(max_faces=5, min_face_fraction=0.1))
    assert len(red.looks) == looks


def test_a_file_and_its_bytes_are_the_same_photo(red: RedIsAFace, red_checker: FaceChecker, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(Image.fromarray(ONE)))
    red_checker.check(path)
    looks = len(red.looks)
    red_checker.check(path.read_bytes())
    assert len(red.looks) == looks


def test_a_photo_that_changed_under_its_name_is_looked_at_again(red_checker: FaceChecker, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(Image.fromarray(ONE)))
    red_checker.check(path)
    path.write_bytes(png(Image.fromarray(scene())))
    with pytest.raises(NoFaceError, match=r"photo\.png"):
        red_checker.check(path)


def test_pixels_of_another_shape_are_another_picture(red_checker: FaceChecker) -> None:
    tall = np.full((300, 200, 3), 40, np.uint8)
    with pytest.raises(NoFaceError) as first:
        red_checker.check(tall)
    with pytest.raises(NoFaceError) as second:
        red_checker.check(tall.reshape(200, 300, 3))
    assert (first.value.extra_info["width"], second.value.extra_info["width"]) == (200, 300)


def test_the_oldest_photo_is_forgotten_first(red: RedIsAFace, red_checker: FaceChecker) -> None:
    photos = [scene((20 + 10 * index, 30, 90 + 10 * index, 110)) for index in range(4)]
    for pixels in photos:
        red_checker.check(pixels)
    looks = len(red.looks)
    red_checker.check(photos[-1])
    assert len(red.looks) == looks
    red_checker.check(photos[0])
    assert len(red.looks) > looks


def test_more_wanted_faces_are_looked_for_anew(red: RedIsAFace, red_checker: FaceChecker) -> None:
    red_checker.check(ONE)
    looks = len(red.looks)
    with pytest.raises(NoFaceError):
        red_checker.check(ONE, FaceRules(min_faces=2))
    assert len(red.looks) > looks


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_pixels_of_the_wrong_kind_are_a_bad_image(red_checker: FaceChecker, pixels: np.ndarray) -> None:
    with pytest.raises(BadImageError):
        red_checker.check(pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 2)])
def test_the_smallest_pictures_are_refused_not_stumbled_over(checker: FaceChecker, size: tuple[int, int]) -> None:
    with pytest.raises(NoFaceError):
        checker.check(png(Image.new("RGB", size, "white")))
