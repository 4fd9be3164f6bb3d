"""The nodes by themselves, on numpy arrays and with a host of two methods."""

import json
import threading
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from results import corpus, pictures

from comfyui_guarded.guard import runtime
from comfyui_guarded.guard.errors import (
    BY_NAME,
    GuardError,
    InternalError,
    InvalidWorkflowError,
    ResultBlankError,
    ResultCorruptError,
    ResultIncompleteError,
)
from comfyui_guarded.guard.settings import Settings
from comfyui_guarded.nodes.save import GuardedSaveImage
from comfyui_guarded.nodes.validate import NODE_CLASS_MAPPINGS, GuardedValidateImage, GuardedValidateVideo

GOOD = pictures.landscape(64)[None]
BLACK = np.zeros((1, 64, 64, 3), np.float32)
JOB = "0ba5eba1-1111-4222-8333-444455556666"


class Host:
    def __init__(self, output: Path) -> None:
        self.output = output
        self.shown: list[tuple[str, dict[str, Any]]] = []

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        self.shown.append((node_id, facts))

    def file_to_save(self, subfolder: str, filename: str) -> Path | None:
        path = (self.output / subfolder / filename).resolve()
        return path if path.is_relative_to(self.output.resolve()) else None


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(Settings(), Host(tmp_path)))  # type: ignore[arg-type]
    return tmp_path


# GuardedValidateImage ----------------------------------------------------------------------------------------


def test_a_good_image_goes_through_untouched():
    image, warnings = GuardedValidateImage().validate(GOOD)
    assert image is GOOD
    assert warnings == ""


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        (BLACK, {}, ResultBlankError),
        (BLACK * np.nan, {}, ResultCorruptError),
        (pictures.with_decoded_nan(pictures.landscape(), 0.01)[None], {}, ResultCorruptError),
        (GOOD, {"width": 65}, ResultIncompleteError),
        (GOOD, {"height": 128}, ResultIncompleteError),
        (GOOD, {"frames": 2}, ResultIncompleteError),
        (np.repeat(GOOD, 3, 0), {"check_frozen": True}, ResultCorruptError),
    ],
)
def test_a_bad_one_raises_its_typed_error_or_warns(image: Any, options: dict[str, Any], error: type[GuardError]):
    with pytest.raises(error) as caught:
        GuardedValidateImage().validate(image, **options)
    # What ComfyUI will show as the exception's type is what settles the job.
    assert BY_NAME[f"{type(caught.value).__module__}.{type(caught.value).__name__}"] is error
    passed, warnings = GuardedValidateImage().validate(image, on_fail="warn", **options)
    assert passed is image
    assert caught.value.extra_info["check"] in warnings


def test_the_verdict_is_shown_in_the_editor_and_to_no_bot(monkeypatch: pytest.MonkeyPatch):
    host = Host(Path())
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(Settings(), host))  # type: ignore[arg-type]
    editor = {"unique_id": "7", "extra_pnginfo": {"workflow": {}}}
    GuardedValidateImage().validate(GOOD, **editor)
    GuardedValidateImage().validate(BLACK, on_fail="warn", **editor)
    with pytest.raises(GuardError):
        GuardedValidateImage().validate(BLACK, **editor)
    GuardedValidateImage().validate(GOOD, unique_id="8")
    shown = [(node_id, facts["code"], len(facts["lines"])) for node_id, facts in host.shown]
    assert shown == [("7", None, 0), ("7", None, 1), ("7", "result_blank", 1)]


def test_a_check_can_be_left_out():
    GuardedValidateImage().validate(BLACK, check_blank=False)
    GuardedValidateImage().validate(BLACK * np.nan, check_nan=False, check_blank=False)


def test_a_vector_is_no_image():
    with pytest.raises(ValueError, match="frames × height"):
        GuardedValidateImage().validate(np.zeros(3))


# GuardedValidateVideo ----------------------------------------------------------------------------------------


class VideoFromFile:
    """As ComfyUI's class of that name: a path or bytes, and perhaps a part of them."""

    def __init__(self, source: Any, window: tuple[float, float] = (0, 0)) -> None:
        self.source = source
        self._window = window

    def get_stream_source(self) -> Any:
        return self.source

    def get_active_trim_window(self) -> tuple[float, float]:
        return self._window

    def get_components(self) -> Any:
        raise AssertionError("every frame at once")


class VideoFromComponents:
    def __init__(self, images: Any, fps: float = 25, audio: Any = None) -> None:
        self._components = SimpleNamespace(images=images, frame_rate=Fraction(fps), audio=audio)

    def get_components(self) -> Any:
        return self._components


def frames(film: pictures.Film) -> np.ndarray:
    return np.stack(list(film))


MOVING = frames(pictures.pan(pictures.landscape(64), 25))


def test_a_good_film_goes_through_in_every_form(tmp_path: Path):
    content = corpus.film(pictures.pan(pictures.landscape(128), 25))
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    for video in (VideoFromFile(str(path)), VideoFromFile(BytesIO(content)), VideoFromComponents(MOVING)):
        assert GuardedValidateVideo().validate(video, duration_s=1) == (video, None, "")
    video, images, warnings = GuardedValidateVideo().validate(images=MOVING, fps=25, frames=25, duration_s=1)
    assert (video, warnings) == (None, "")
    assert images is MOVING


@pytest.mark.parametrize(
    ("video", "options", "error"),
    [
        (VideoFromComponents(MOVING * 0), {}, ResultBlankError),
        (VideoFromComponents(MOVING * np.nan), {}, ResultCorruptError),
        (VideoFromComponents(np.repeat(GOOD, 25, 0)), {}, ResultCorruptError),
        (VideoFromComponents(MOVING), {"duration_s": 2}, ResultIncompleteError),
        (VideoFromComponents(MOVING), {"frames": 26}, ResultIncompleteError),
        (VideoFromComponents(MOVING), {"width": 65}, ResultIncompleteError),
        (VideoFromComponents(MOVING), {"needs_audio": True}, ResultIncompleteError),
    ],
)
def test_a_bad_film_of_tensors_raises(video: Any, options: dict[str, Any], error: type[GuardError]):
    with pytest.raises(error):
        GuardedValidateVideo().validate(video, **options)
    passed, _, warnings = GuardedValidateVideo().validate(video, on_fail="warn", **options)
    assert passed is video
    assert warnings


@pytest.mark.parametrize(
    ("film", "options", "error"),
    [
        (pictures.frozen(25, 128), {}, ResultCorruptError),
        (pictures.still_of(pictures.flat((0, 0, 0), 128), 25), {}, ResultBlankError),
        (pictures.pan(pictures.landscape(128), 25), {"duration_s": 2}, ResultIncompleteError),
        (pictures.pan(pictures.landscape(128), 25), {"height": 64}, ResultIncompleteError),
        (pictures.pan(pictures.landscape(128), 25), {"frames": 30}, ResultIncompleteError),
        (pictures.pan(pictures.landscape(128), 25), {"needs_audio": True}, ResultIncompleteError),
    ],
)
def test_a_bad_film_of_a_file_raises(film: pictures.Film, options: dict[str, Any], error: type[GuardError]):
    video = VideoFromFile(BytesIO(corpus.film(film)))
    with pytest.raises(error):
        GuardedValidateVideo().validate(video, **options)


def test_of_a_trimmed_file_only_the_part_counts():
    class Trimmed(VideoFromFile):
        def get_components(self) -> Any:
            return SimpleNamespace(images=MOVING[:5], frame_rate=Fraction(25), audio=None)

    with pytest.raises(ResultIncompleteError):
        GuardedValidateVideo().validate(Trimmed("never opened", (1.0, 0.2)), duration_s=1)


def test_without_an_input_it_says_so():
    with pytest.raises(ValueError, match="needs a video or images"):
        GuardedValidateVideo().validate()


# GuardedSaveImage --------------------------------------------------------------------------------------------


def save(**options: Any) -> list[dict[str, str]]:
    prompt = {"7": {"class_type": "GuardedSaveImage", "inputs": {"_guarded": JOB}}}
    saved = GuardedSaveImage().save(**{"images": GOOD, "prompt": prompt, "unique_id": "7", **options})
    return saved["ui"]["images"]


@pytest.mark.parametrize(("format", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_a_picture_is_saved_in_each_format(output: Path, format: str, suffix: str):
    (item,) = save(format=format, filename_prefix="bots/a/photo")
    assert item["type"] == "output"
    assert item["subfolder"] == str(Path("bots/a"))
    assert item["filename"].startswith("photo_g0ba5eba1")
    assert item["filename"].endswith(f"_00001{suffix}")
    with Image.open(output / "bots" / "a" / item["filename"]) as image:
        assert image.format == format.upper()
        assert image.size == (64, 64)
        difference = np.abs(np.asarray(image.convert("RGB"), np.float32) / 255 - GOOD[0]).mean()
    assert difference < 0.03
    assert [path.name for path in (output / "bots" / "a").iterdir()] == [item["filename"]]


def test_names_are_never_used_twice(output: Path):
    names = [item["filename"] for _ in range(5) for item in save(images=np.repeat(GOOD, 2, 0))]
    for path in output.iterdir():
        path.unlink()
    names += [item["filename"] for item in save()]
    assert len(set(names)) == 11


def test_comfyuis_counter_does_not_follow_these_names(output: Path):
    """Its SaveImage reads the number behind `prefix_`."""
    for _ in range(20):
        (item,) = save(filename_prefix="x")
        with pytest.raises(ValueError, match="invalid literal"):
            int(item["filename"].removeprefix("x_").split("_")[0])


def test_two_at_once_do_not_meet(output: Path):
    threads = [threading.Thread(target=save) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(output.iterdir())) == 8


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_the_workflow_is_in_the_file_only_when_asked(output: Path, format: str):
    extra = {"workflow": {"secret": "layout"}}
    (plain,) = save(format=format, extra_pnginfo=extra)
    (full,) = save(format=format, extra_pnginfo=extra, embed_workflow=True)
    assert b"layout" not in (output / plain["filename"]).read_bytes()
    assert b"GuardedSaveImage" not in (output / plain["filename"]).read_bytes()
    content = (output / full["filename"]).read_bytes()
    assert b"layout" in content
    assert b"GuardedSaveImage" in content
    if format == "png":
        with Image.open(output / full["filename"]) as image:
            assert json.loads(image.info["workflow"]) == extra["workflow"]


def test_placeholders_are_filled_in(output: Path):
    (item,) = save(filename_prefix="%width%x%height%")
    assert item["filename"].startswith("64x64_g")


@pytest.mark.parametrize("prefix", ["../../x", "/tmp/x", "a/../../x", "..\\..\\x"])
def test_a_prefix_does_not_lead_outside(output: Path, prefix: str):
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(InvalidWorkflowError):
        save(filename_prefix=prefix)
    assert sorted(output.parent.rglob("*")) == before


def test_nan_is_not_saved(output: Path):
    with pytest.raises(ResultCorruptError):
        save(images=BLACK * np.nan)
    assert list(output.iterdir()) == []


def test_what_does_not_read_back_is_not_left_there(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image.Image, "save", lambda self, handle, **options: handle.write(b"\x89PNG\r\n\x1a\nno more"))
    with pytest.raises(ResultCorruptError, match="read back"):
        save()
    assert list(output.iterdir()) == []


def test_other_channels_are_saved_too(output: Path):
    grey, transparent = GOOD[..., :1], np.concatenate([GOOD, GOOD[..., :1]], -1)
    for images, format, mode in ((grey, "png", "L"), (transparent, "png", "RGBA"), (transparent, "jpeg", "RGB")):
        (item,) = save(images=images, format=format)
        with Image.open(output / item["filename"]) as image:
            assert image.mode == mode


def test_without_the_machine_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(Settings()))
    with pytest.raises(InternalError, match="only while"):
        save()


def test_node_classes_have_what_comfyui_looks_for():
    for node in (*NODE_CLASS_MAPPINGS.values(), GuardedSaveImage):
        types = node.INPUT_TYPES()
        assert set(types) <= {"required", "optional", "hidden"}
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert json.dumps(types)
