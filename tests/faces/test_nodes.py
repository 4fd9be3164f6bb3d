"""The two nodes, on arrays of the sandbox and on something like a tensor."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faces.conftest import RedIsAFace
from faces.photos import UNDONE_BY_EXIF, png
from PIL import Image

from comfyui_guarded.guard import runtime
from comfyui_guarded.guard.errors import BadImageError, NoFaceError, ServerUnavailableError, TooManyFacesError
from comfyui_guarded.guard.faces import Box
from comfyui_guarded.guard.settings import Settings
from comfyui_guarded.nodes.face_check import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
    GuardedFaceCheck,
    GuardedLoadFaceImage,
)


def frame(*patches: Box, channels: int = 3) -> np.ndarray:
    values = np.full((300, 400, channels), 0.2, np.float32)
    for left, top, right, bottom in patches:
        values[int(top) : int(bottom), int(left) : int(right), :3] = (1, 0, 0)
    return values


ONE = frame((20, 30, 80, 110))[None]
TWO = frame((20, 30, 80, 110), (200, 30, 320, 190))[None]
NONE = frame()[None]


class Tensor:
    """What the node uses of torch.Tensor."""

    def __init__(self, values: Any, device: str = "cuda:0") -> None:
        self.values, self.device = np.asarray(values, np.float32), device

    def detach(self) -> "Tensor":
        return self

    float = cpu = detach

    def numpy(self) -> np.ndarray:
        return self.values

    def new_tensor(self, values: np.ndarray) -> "Tensor":
        return Tensor(values, self.device)


@pytest.mark.usefixtures("connected")
def test_a_picture_with_a_face_passes_as_it_is_with_the_facts() -> None:
    image, count, boxes, mask, crop = GuardedFaceCheck().check(TWO)
    assert image is TWO
    assert count == 2
    told = json.loads(boxes)
    assert [(entry["index"], entry["width"], entry["height"]) for entry in told] == [(0, 400, 300)]
    assert [len(face["box"]) for face in told[0]["faces"]] == [4, 4]
    assert mask.shape == (1, 300, 400)
    assert mask.dtype == np.float32
    assert (mask[0, 40:100, 30:70] == 1).all()
    assert (mask[0, 200:] == 0).all()
    assert crop.shape == (1, 240, 240, 3)
    assert crop[0, 120, 120].tolist() == [1, 0, 0]


class Watching:
    """A host whose editor watches."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, dict[str, Any]]] = []

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        self.shown.append((node_id, facts))


@pytest.mark.usefixtures("connected")
def test_the_faces_are_shown_in_the_editor_and_to_no_bot() -> None:
    host = Watching()
    runtime.install(runtime.Runtime(Settings(), host, runtime.current().faces))  # type: ignore[arg-type]
    editor = {"unique_id": "3", "extra_pnginfo": {"workflow": {}}}
    GuardedFaceCheck().check(np.concatenate([ONE] * 6), **editor)
    with pytest.raises(TooManyFacesError):
        GuardedFaceCheck().check(TWO, max_faces=1, **editor)
    GuardedFaceCheck().check(TWO, unique_id="4", extra_pnginfo={})
    (passed_by, passed), (refused_by, refused) = host.shown
    assert (passed_by, passed["code"], passed["lines"]) == ("3", None, [])
    assert len(passed["pictures"]) == 4
    picture = passed["pictures"][0]
    assert picture["image"].startswith("data:image/jpeg;base64,")
    assert (picture["width"], picture["height"], len(picture["faces"])) == (400, 300, 1)
    assert (refused_by, refused["code"]) == ("3", "too_many_faces")
    assert [len(one["faces"]) for one in refused["pictures"]] == [2]


@pytest.mark.usefixtures("connected")
def test_tensors_come_back_as_tensors_on_the_same_device() -> None:
    given = Tensor(TWO)
    image, count, _boxes, mask, crop = GuardedFaceCheck().check(given)
    assert image is given
    assert count == 2
    assert (mask.device, crop.device) == ("cuda:0", "cuda:0")
    assert crop.values.shape[0] == 1


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("channels", [3, 4])
def test_pictures_with_alpha_are_checked_by_their_colours(channels: int) -> None:
    crop = GuardedFaceCheck().check(frame((20, 30, 80, 110), channels=channels)[None])[4]
    assert crop.shape[-1] == channels


@pytest.mark.usefixtures("connected")
def test_nan_and_wild_values_do_no_harm() -> None:
    wild = ONE.copy()
    wild[0, 200:, :, 0], wild[0, 250:, :, 1] = np.nan, 1e30
    assert GuardedFaceCheck().check(wild)[1] == 1


@pytest.mark.usefixtures("connected")
def test_a_batch_is_checked_picture_by_picture_and_the_error_says_which() -> None:
    assert GuardedFaceCheck().check(np.concatenate([ONE, TWO]))[1] == 3
    with pytest.raises(NoFaceError, match="No face found in image 2 of 3"):
        GuardedFaceCheck().check(np.concatenate([ONE, NONE, TWO]))


@pytest.mark.usefixtures("connected")
def test_crops_of_a_batch_have_one_size() -> None:
    crops = GuardedFaceCheck().check(np.concatenate([ONE, TWO]))[4]
    assert crops.shape == (2, 120, 120, 3)


@pytest.mark.usefixtures("connected")
def test_without_a_minimum_a_picture_without_faces_passes_whole() -> None:
    _image, count, _boxes, mask, crop = GuardedFaceCheck().check(NONE, min_faces=0)
    assert (count, mask.max()) == (0, 0)
    assert crop.shape == NONE.shape


@pytest.mark.usefixtures("connected")
def test_the_rules_of_the_node_are_kept() -> None:
    with pytest.raises(TooManyFacesError):
        GuardedFaceCheck().check(TWO, max_faces=1)


def test_without_a_machine_the_nodes_are_there_and_say_why_they_fail() -> None:
    assert GuardedLoadFaceImage.INPUT_TYPES()["required"]["image"][0] == []
    with pytest.raises(ServerUnavailableError, match="ComfyUI-Guarded is off"):
        GuardedFaceCheck().check(ONE)


def save(folder: Path, name: str, values: np.ndarray, **options: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((values * 255).astype(np.uint8)).save(path, **options)


async def test_a_photo_with_a_face_is_valid_and_loads(connected: Path) -> None:
    save(connected, "photo.png", ONE[0])
    choices, options = GuardedLoadFaceImage.INPUT_TYPES()["required"]["image"]
    assert choices == ["photo.png"]
    assert options["image_upload"] is True
    assert await GuardedLoadFaceImage.VALIDATE_INPUTS(image="photo.png") is True
    image, mask = GuardedLoadFaceImage().load("photo.png")
    assert image.shape == (1, 300, 400, 3)
    assert np.allclose(image, ONE, atol=1 / 255)
    assert mask.shape == (1, 64, 64)


async def test_a_photo_without_a_face_is_refused_while_the_prompt_is_validated(connected: Path) -> None:
    save(connected, "cat.png", NONE[0])
    assert await GuardedLoadFaceImage.VALIDATE_INPUTS(image="cat.png") == "no_face: No face found in cat.png."
    with pytest.raises(NoFaceError):
        GuardedLoadFaceImage().load("cat.png")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_faces": 1}, "too_many_faces"),
        ({"min_face_fraction": 0.9}, "face_too_small"),
        ({"min_faces": -1}, "invalid"),
    ],
)
async def test_the_rules_hold_while_the_prompt_is_validated(
    connected: Path, options: dict[str, Any], code: str
) -> None:
    save(connected, "photo.png", TWO[0])
    answer = await GuardedLoadFaceImage.VALIDATE_INPUTS(image="photo.png", **options)
    assert isinstance(answer, str)
    assert answer.startswith(code)


async def test_a_name_over_a_link_is_left_to_the_run() -> None:
    assert await GuardedLoadFaceImage.VALIDATE_INPUTS() is True


@pytest.mark.parametrize("name", ["none.png", "../secret.png", "", " [input]", "sub", "a\0b"])
async def test_what_is_no_file_of_the_folder_is_a_bad_image(connected: Path, name: str) -> None:
    (connected / "sub").mkdir()
    save(connected.parent, "secret.png", ONE[0])
    answer = await GuardedLoadFaceImage.VALIDATE_INPUTS(image=name)
    assert isinstance(answer, str)
    assert answer.startswith("bad_image")
    with pytest.raises(BadImageError):
        GuardedLoadFaceImage().load(name)


async def test_names_may_say_the_folder(connected: Path) -> None:
    save(connected.parent / "output", "made.png", ONE[0])
    assert await GuardedLoadFaceImage.VALIDATE_INPUTS(image="made.png [output]") is True


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_photo_is_loaded_as_its_camera_held_it(connected: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray((ONE[0] * 255).astype(np.uint8))
    upright.transpose(UNDONE_BY_EXIF[orientation]).save(connected / "photo.png", exif=exif)
    assert np.allclose(GuardedLoadFaceImage().load("photo.png")[0], ONE, atol=1 / 255)


def test_what_is_transparent_goes_into_the_mask(connected: Path) -> None:
    layer = Image.fromarray((ONE[0] * 255).astype(np.uint8))
    layer.putalpha(Image.new("L", layer.size, 255))
    layer.paste((0, 0, 0, 0), (300, 200, 400, 300))
    (connected / "photo.png").write_bytes(png(layer))
    image, mask = GuardedLoadFaceImage().load("photo.png")
    assert mask.shape == (1, 300, 400)
    assert mask[0, 250, 350] == 1
    assert mask[0, 10, 10] == 0
    assert image[0, 250, 350].tolist() == [0, 0, 0]


def test_where_the_host_has_torch_the_photo_is_a_tensor(connected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        from_numpy = Tensor

    monkeypatch.setitem(sys.modules, "torch", Torch)  # type: ignore[arg-type]
    save(connected, "photo.png", ONE[0])
    image, mask = GuardedLoadFaceImage().load("photo.png")
    assert isinstance(image, Tensor)
    assert isinstance(mask, Tensor)


def test_a_changed_file_is_loaded_again(connected: Path) -> None:
    save(connected, "photo.png", ONE[0])
    before = GuardedLoadFaceImage.IS_CHANGED("photo.png", max_faces=1)
    save(connected, "photo.png", TWO[0])
    assert GuardedLoadFaceImage.IS_CHANGED("photo.png", max_faces=1) != before


def test_the_photo_that_was_validated_is_not_looked_at_again_when_it_runs(connected: Path, red: RedIsAFace) -> None:
    save(connected, "photo.png", ONE[0])
    GuardedLoadFaceImage().load("photo.png")
    looks = len(red.looks)
    GuardedLoadFaceImage().load("photo.png")
    assert len(red.looks) == looks


def test_the_nodes_have_what_comfyui_wants() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for kind in NODE_CLASS_MAPPINGS.values():
        declared = kind.INPUT_TYPES()
        assert callable(getattr(kind, kind.FUNCTION))
        assert kind.CATEGORY
        assert kind.DESCRIPTION
        assert set(declared) <= {"required", "optional", "hidden"}
    assert len(GuardedFaceCheck.RETURN_TYPES) == len(GuardedFaceCheck.RETURN_NAMES) == 5
    rules = set(GuardedLoadFaceImage.INPUT_TYPES()["optional"])
    assert rules | {"image"} == set(inspect.signature(GuardedLoadFaceImage.VALIDATE_INPUTS).parameters)


def test_the_machine_lists_only_pictures(connected: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "clip.mp4"):
        (connected / name).write_bytes(b"")
    (connected / "folder.png").mkdir()
    faces = runtime.current().faces
    assert faces is not None
    assert faces.list_images() == ["a.jpg", "b.PNG"]
