"""Checks of arrays: what a node holds in its hands."""

import tracemalloc

import numpy as np
import pytest
from results import pictures
from results.checking import DEFAULTS

from comfyui_guarded.guard.results.content import Checks, Footage, as_array, check_frames, check_images, make_thumbnail
from comfyui_guarded.guard.results.findings import Fault, Finding

ALL = Checks(frozen=True)


def faults(findings: list[Finding]) -> list[Fault]:
    return [finding.fault for finding in findings]


def batch(*images: pictures.Picture) -> np.ndarray:
    return np.stack(images)


@pytest.mark.parametrize("name", [*pictures.GOOD, "sprite"])
def test_good_pictures_have_no_findings(name: str):
    picture = getattr(pictures, name)()
    assert check_images(picture[None], Checks(), DEFAULTS) == []


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (pictures.flat((0, 0, 0)), Fault.BLACK),
        (pictures.flat((1, 1, 1)), Fault.WHITE),
        (pictures.flat((0.2, 0.4, 0.6)), Fault.FLAT),
        (pictures.nearly_flat(), Fault.FLAT),
        (pictures.nearly_black(), Fault.BLACK),
        (pictures.flat((-1, -1, -1)), Fault.BLACK),
        (pictures.flat((3, 3, 3)), Fault.WHITE),
        (np.dstack([pictures.landscape(), np.zeros((512, 512), np.float32)]), Fault.TRANSPARENT),
    ],
)
def test_blank_pictures_are_named(picture: np.ndarray, fault: Fault):
    (finding,) = check_images(picture[None], Checks(), DEFAULTS)
    assert finding.fault is fault
    assert finding.measured is not None
    assert finding.limit is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_in_a_batch_is_found_and_placed(value: float):
    images = batch(pictures.landscape(64), pictures.landscape(64))
    images[1, 40, 3, 2] = value
    (finding,) = check_images(images, Checks(), DEFAULTS)
    assert (finding.fault, finding.frame, finding.measured) == (Fault.NAN, 1, 1)


def test_values_too_large_to_add_up_are_not_taken_for_infinite():
    images = np.full((1, 64, 64, 3), 3e38, np.float32)
    assert Fault.NAN not in faults(check_images(images, Checks(), DEFAULTS))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("scene", [pictures.landscape, pictures.snow, pictures.fog])
def test_decoded_nan_is_found_as_speckle(share: float, scene):
    (finding,) = check_images(pictures.with_decoded_nan(scene(), share)[None], Checks(), DEFAULTS)
    assert finding.fault is Fault.SPECKLE
    assert 0.0002 < finding.measured <= share * 1.1


def test_speckle_of_bytes_is_found_too():
    picture = (pictures.with_decoded_nan(pictures.landscape(), 0.01) * 255).astype(np.uint8)
    assert faults(check_images(picture[None], Checks(), DEFAULTS)) == [Fault.SPECKLE]


@pytest.mark.parametrize("levels", [15, 30, 45, 60])
@pytest.mark.parametrize("of_colour", [True, False])
def test_film_grain_is_no_speckle(levels: int, of_colour: bool):
    grain = np.random.default_rng(levels).normal(0, levels / 255, (512, 512, 3 if of_colour else 1))
    scenes = [
        pictures.landscape(),
        pictures.snow(),
        *(np.full((512, 512, 3), grey, np.float32) for grey in (0.15, 0.3, 0.5)),
    ]
    for scene in scenes:
        grainy = np.clip(scene + grain, 0, 1).astype(np.float32)
        assert check_images(grainy[None], Checks(), DEFAULTS) == []
        assert check_images((grainy * 255).astype(np.uint8)[None], Checks(), DEFAULTS) == []


def test_nan_is_found_in_grain_too():
    grain = np.random.default_rng(1).normal(0, 20 / 255, (512, 512, 3))
    grainy = np.clip(pictures.landscape() + grain, 0, 1).astype(np.float32)
    assert faults(check_images(pictures.with_decoded_nan(grainy, 0.01)[None], Checks(), DEFAULTS)) == [Fault.SPECKLE]


def test_one_blank_picture_spoils_a_batch_but_not_a_film():
    images = batch(pictures.landscape(64), np.zeros((64, 64, 3), np.float32), pictures.landscape(64, 2))
    (finding,) = check_images(images, Checks(), DEFAULTS)
    assert (finding.fault, finding.frame) == (Fault.BLACK, 1)
    assert check_frames(images, ALL, DEFAULTS) == []


def test_frozen_frames_are_found_and_small_motion_passes():
    assert faults(check_frames(batch(*pictures.frozen(20, 128)), ALL, DEFAULTS)) == [Fault.FROZEN]
    assert check_frames(batch(*pictures.small_motion(60, 256)), ALL, DEFAULTS) == []
    assert check_frames(batch(*pictures.talking_head(100, 128)), ALL, DEFAULTS) == []


def test_a_film_that_breaks_off_is_blank():
    (finding,) = check_frames(batch(*pictures.breaks_off(40, 64)), ALL, DEFAULTS)
    assert finding.fault is Fault.BLANK_FRAMES
    assert finding.measured == pytest.approx(0.75)


def test_checks_can_be_left_out():
    nothing = Checks(nan=False, blank=False, speckle=False, frozen=False)
    assert check_images(np.zeros((2, 64, 64, 3), np.float32), nothing, DEFAULTS) == []
    broken = np.full((2, 64, 64, 3), np.nan, np.float32)
    assert check_frames(broken, nothing, DEFAULTS) == []


def test_size_and_count_are_compared():
    images = batch(pictures.landscape(64), pictures.landscape(64))
    wrong = Checks(width=65, height=66, frames=3)
    assert faults(check_images(images, wrong, DEFAULTS)) == [
        Fault.WRONG_SIZE,
        Fault.WRONG_SIZE,
        Fault.TOO_FEW_FRAMES,
    ]
    assert check_images(images, Checks(width=64, height=64, frames=2), DEFAULTS) == []


class Tensor:
    """As much of torch.Tensor as is needed."""

    dtype = "torch.float32"

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def detach(self) -> "Tensor":
        return self

    def cpu(self) -> "Tensor":
        return self

    def numpy(self) -> np.ndarray:
        return self._array


def test_a_tensor_is_taken_as_a_view():
    array = pictures.landscape(64)[None]
    assert np.shares_memory(as_array(Tensor(array)), array)
    assert as_array(array[0]).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="frames × height"):
        as_array(np.zeros((4, 4)))


def test_no_batch_is_copied():
    """A batch of 48 MB is checked with less than a frame's worth of memory."""
    images = np.broadcast_to(pictures.landscape(256), (64, 256, 256, 3)).copy()
    tracemalloc.start()
    check_frames(images, Checks(frozen=True, speckle=True), DEFAULTS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images[0].nbytes * 1.5


def test_memory_does_not_grow_with_the_number_of_frames():
    footage = Footage(DEFAULTS)
    thumb = make_thumbnail(pictures.landscape(256).mean(-1) * 255)
    tracemalloc.start()
    for _ in range(100):
        footage.see(None, thumb + 0)
    first = tracemalloc.get_traced_memory()[0]
    for _ in range(2000):
        footage.see(None, thumb + 0)
    assert tracemalloc.get_traced_memory()[0] < first + 100_000
    tracemalloc.stop()


def test_odd_sizes_have_thumbnails():
    for height, width in ((1, 1), (3, 200), (65, 63), (1080, 1920)):
        thumb = make_thumbnail(np.full((height, width), 7, np.float32))
        assert np.allclose(thumb, 7)
