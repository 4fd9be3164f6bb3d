import contextlib
import hashlib
import io
import os
import threading
import wave
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from unit.fakes import LONG_S

from comfyui_guarded.guard.errors import (
    GuardError,
    PolicyViolationError,
    ResultCorruptError,
    ResultMissingError,
    ResultTooSmallError,
)
from comfyui_guarded.guard.host import Outcome, ReportedFile
from comfyui_guarded.guard.results import checks, judgement, opener, quarantine
from comfyui_guarded.guard.results.findings import Fault
from comfyui_guarded.guard.results.within import run_within
from comfyui_guarded.guard.settings import ResultsSettings

DEFAULTS = ResultsSettings()
#: So that what is cut off is judged by what is left of it.
NO_FLOORS = ResultsSettings(min_image_bytes=1, min_video_bytes=1)
IMAGES = ["png", "jpeg", "webp", "gif"]
TENTHS = range(1, 10)


def _noise(width=96, height=80, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def _encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    _noise().save(buffer, kind, **options)
    return buffer.getvalue()


def _animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    first, *rest = [_noise(seed=seed) for seed in range(5)]
    first.save(buffer, kind, save_all=True, append_images=rest, duration=100)
    return buffer.getvalue()


def _jpeg_with_thumbnail() -> bytes:
    """As cameras and editors write them: a whole JPEG, end mark and all, inside the EXIF block."""
    thumbnail = io.BytesIO()
    _noise(24, 16).save(thumbnail, "jpeg")
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00" + thumbnail.getvalue()
    whole = _encoded("jpeg")
    return whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]


def _video(path: Path, codec: str, seconds=2, **options) -> bytes:
    import av

    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        stream.bit_rate = 400_000
        for seed in range(12 * seconds):
            frame = av.VideoFrame.from_image(_noise(seed=seed))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def _sound(seconds=1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 8000 * seconds, dtype=np.int16).tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "mp4": _video(folder / "plain.mp4", "mpeg4"),
        "fast.mp4": _video(folder / "fast.mp4", "mpeg4", options={"movflags": "faststart"}),
        "webm": _video(folder / "a.webm", "libvpx"),
    }


@pytest.fixture
def checked(tmp_path):
    """Checks one file with these bytes, as reported by node 2."""

    def check(name, content, settings=DEFAULTS):
        path = tmp_path / name
        path.write_bytes(content)
        (artifact,) = checks.check(_outcome(path), settings)
        return artifact

    return check


@pytest.fixture
def tolerant_pillow(monkeypatch):
    """Many node packs set this for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


def _reported(path, kind="output", name=None):
    return ReportedFile("2", name or Path(path).name, "", kind, path)


def _outcome(*files, outputs=None):
    files = tuple(file if isinstance(file, ReportedFile) else _reported(file) for file in files)
    items = [{"filename": file.filename, "subfolder": "", "type": file.type} for file in files]
    return Outcome(success=True, outputs={"2": {"images": items}} if outputs is None else outputs, files=files)


def _refusal(error, checked, name, content, settings=DEFAULTS):
    with pytest.raises(GuardError) as caught:
        checked(name, content, settings)
    assert type(caught.value) is error, caught.value
    assert name in caught.value.message
    assert caught.value.extra_info["filename"] == name
    assert caught.value.extra_info["node_id"] == "2"


# Pictures. --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IMAGES)
def test_a_good_picture_passes_with_its_facts(checked, kind):
    content = _encoded(kind)
    found = checked(f"a.{kind}", content)
    assert (found.index, found.node_id, found.kind, found.filename) == (0, "2", "image", f"a.{kind}")
    assert (found.width, found.height, found.duration_s, found.warnings) == (96, 80, None, ())
    assert (found.bytes, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_a_good_animation_passes(checked, kind):
    assert checked(f"a.{kind}", _animated(kind)).kind == "image"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_a_picture_of_any_mode_passes(checked, mode):
    buffer = io.BytesIO()
    deep = Image.fromarray(np.tile(np.linspace(0, 65535, 300).astype(np.uint16), (300, 1)))
    (deep if mode == "I;16" else _noise(300, 300).convert(mode)).save(buffer, "png")
    assert checked("a.png", buffer.getvalue(), ResultsSettings(min_image_bytes=1)).width == 300


def test_a_dark_picture_passes(checked):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(_noise()) // 16).save(buffer, "png")
    assert checked("a.png", buffer.getvalue()).kind == "image"


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("tenth", TENTHS)
def test_a_picture_cut_off_is_corrupt(checked, kind, tenth):
    content = _encoded(kind)
    _refusal(ResultCorruptError, checked, f"a.{kind}", content[: len(content) * tenth // 10], NO_FLOORS)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("tenth", TENTHS)
def test_a_picture_cut_off_is_corrupt_although_another_pack_told_pillow_to_bear_it(
    checked, kind, tenth, tolerant_pillow
):
    content = _encoded(kind)
    _refusal(ResultCorruptError, checked, f"a.{kind}", content[: len(content) * tenth // 10], NO_FLOORS)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
@pytest.mark.parametrize("tenth", TENTHS)
@pytest.mark.parametrize("tolerant", [False, True])
def test_an_animation_cut_off_is_corrupt(checked, kind, tenth, tolerant, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    content = _animated(kind)
    _refusal(ResultCorruptError, checked, f"a.{kind}", content[: len(content) * tenth // 10], NO_FLOORS)


@pytest.mark.parametrize("tenth", TENTHS)
def test_a_jpeg_cut_off_behind_its_thumbnail_is_corrupt(checked, tenth, tolerant_pillow):
    content = _jpeg_with_thumbnail()
    assert checked("a.jpg", content).width == 96
    _refusal(ResultCorruptError, checked, "a.jpg", content[: len(content) * tenth // 10], NO_FLOORS)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_picture_without_its_last_bytes_is_corrupt(checked, kind, tolerant_pillow):
    _refusal(ResultCorruptError, checked, f"a.{kind}", _encoded(kind)[: -20 if kind == "png" else -2])


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif"])  # to WebP's decoder zeros are a picture like any other
def test_a_picture_whose_second_half_is_zeros_is_corrupt(checked, kind, tolerant_pillow):
    """What a full disk or a lost network share leaves behind."""
    content = _encoded(kind)
    half = len(content) // 2
    _refusal(ResultCorruptError, checked, f"a.{kind}", content[:half] + bytes(len(content) - half))


def test_a_png_with_a_broken_middle_is_corrupt(checked):
    content = bytearray(_encoded("png"))
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    _refusal(ResultCorruptError, checked, "a.png", bytes(content))


@pytest.mark.parametrize("kind", IMAGES)
def test_a_few_bytes_behind_the_end_of_a_picture_do_no_harm(checked, kind):
    assert checked(f"a.{kind}", _encoded(kind) + bytes(10)).width == 96


def test_tolerant_pillow_is_left_as_it_was(checked, tolerant_pillow):
    checked("a.png", _encoded("png"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("kind", IMAGES)
def test_a_picture_below_the_floor_is_too_small_and_at_the_floor_it_passes(checked, kind):
    content = _encoded(kind)
    assert checked(f"a.{kind}", content, ResultsSettings(min_image_bytes=len(content)))
    _refusal(ResultTooSmallError, checked, f"b.{kind}", content, ResultsSettings(min_image_bytes=len(content) + 1))


def test_the_pictures_of_one_node_count_together_against_a_keys_limit(checked):
    made = [replace(checked(f"{name}.png", _encoded("png")), node_id=node) for name, node in ("aA", "bA", "cB")]
    for limit in (0, 2 * 96 * 80):
        judgement.check_pixels(made, limit)
    with pytest.raises(PolicyViolationError) as caught:
        judgement.check_pixels(made, 2 * 96 * 80 - 1)
    assert caught.value.extra_info == {"node_id": "A", "value": 2 * 96 * 80, "limit": 2 * 96 * 80 - 1}


def test_an_empty_file_is_too_small(checked):
    _refusal(ResultTooSmallError, checked, "a.png", b"")
    _refusal(ResultTooSmallError, checked, "a.mp4", b"")
    _refusal(ResultTooSmallError, checked, "a.txt", b"")


def _png_header_for(width, height):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(bytes(100_000), 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 50_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_without_decoding_it(checked, side):
    _refusal(ResultCorruptError, checked, "a.png", _png_header_for(side, side))


def test_a_picture_over_max_image_pixels_is_refused_and_at_the_limit_it_passes(checked):
    content = _encoded("png")
    assert checked("a.png", content, ResultsSettings(max_image_pixels=96 * 80))
    _refusal(ResultCorruptError, checked, "b.png", content, ResultsSettings(max_image_pixels=96 * 80 - 1))


def test_the_pixels_of_a_frame_count_and_not_those_of_all_frames_together(checked):
    content = _animated("gif")
    _refusal(ResultCorruptError, checked, "a.gif", content, ResultsSettings(max_image_pixels=96 * 80 - 1))
    assert checked("a.gif", content, ResultsSettings(max_image_pixels=96 * 80)).width == 96


@pytest.mark.parametrize("pillows_limit", [1000, 3000, None])
def test_how_many_pixels_are_too_many_is_decided_by_the_setting_and_not_by_pillow(checked, monkeypatch, pillows_limit):
    """Pillow warns above 89 million pixels and refuses above 179 million; the setting allows 300 million."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    assert checked("a.png", _encoded("png")).width == 96
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


# Video and sound. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mp4", "fast.mp4", "webm"])
def test_a_good_video_passes_with_its_facts(checked, videos, name):
    found = checked(f"a.{name}", videos[name])
    assert (found.kind, found.width, found.height) == ("video", 96, 80)
    assert found.duration_s == pytest.approx(2, abs=0.2)
    assert found.sha256 == hashlib.sha256(videos[name]).hexdigest()


@pytest.mark.parametrize("name", ["mp4", "fast.mp4", "webm"])
@pytest.mark.parametrize("tenth", TENTHS)
def test_a_video_cut_off_is_corrupt(checked, videos, name, tenth):
    content = videos[name]
    _refusal(ResultCorruptError, checked, f"a.{name}", content[: len(content) * tenth // 10], NO_FLOORS)


def test_a_video_below_the_floor_is_too_small_and_at_the_floor_it_passes(checked, videos):
    content = videos["mp4"]
    assert checked("a.mp4", content, ResultsSettings(min_video_bytes=len(content)))
    _refusal(ResultTooSmallError, checked, "b.mp4", content, ResultsSettings(min_video_bytes=len(content) + 1))
    _refusal(ResultTooSmallError, checked, "c.webm", videos["webm"][:2000])


def test_a_good_sound_passes_with_its_duration(checked):
    found = checked("a.wav", _sound())
    assert (found.kind, found.width, found.duration_s) == ("audio", None, 1.0)


@pytest.mark.parametrize("tenth", TENTHS)
def test_a_sound_cut_off_is_corrupt(checked, tenth):
    content = _sound()
    _refusal(ResultCorruptError, checked, "a.wav", content[: len(content) * tenth // 10])


@pytest.mark.parametrize(
    "head", [b"\x00\x00\x00\x18ftypisom", b"\x1a\x45\xdf\xa3", b"OggS", b"fLaC", b"ID3", b"RIFF\0\0\0\0WAVE"]
)
def test_a_head_with_noise_behind_it_is_corrupt(checked, head):
    _refusal(ResultCorruptError, checked, "a.bin", head + np.random.default_rng(1).bytes(30_000))


# Names, and what lies there. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpeg", "a.webp", "a.gif", "a.mp4", "a.webm", "a.wav", "a.flac"])
def test_a_name_that_lies_about_unknown_content_is_corrupt(checked, name):
    _refusal(ResultCorruptError, checked, name, b"<html>502 Bad Gateway</html>" * 1000)


def test_a_known_kind_under_another_name_counts_by_its_content(checked):
    assert checked("a.png", _encoded("jpeg")).kind == "image"
    assert checked("a.bin", _encoded("png")).kind == "image"


def test_a_file_of_a_kind_that_nobody_knows_passes_with_a_warning(checked):
    found = checked("points.xyz", b"\x01\x02\x03")
    assert (found.kind, found.warnings, found.bytes) == ("other", ("unknown_kind",), 3)
    assert found.sha256 == hashlib.sha256(b"\x01\x02\x03").hexdigest()


def test_a_reported_file_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(ResultMissingError, match=r"gone\.png"):
        checks.check(_outcome(tmp_path / "gone.png"), DEFAULTS)


def test_a_reported_file_outside_its_folder_is_missing():
    with pytest.raises(ResultMissingError, match=r"passwd") as caught:
        checks.check(_outcome(_reported(None, name="../../etc/passwd")), DEFAULTS)
    assert caught.value.extra_info == {"node_id": "2", "filename": "../../etc/passwd"}


def test_a_folder_instead_of_a_file_is_missing(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ResultMissingError):
        checks.check(_outcome(tmp_path / "a.png"), DEFAULTS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_instead_of_a_file_is_missing_and_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    try:
        with pytest.raises(ResultMissingError):
            run_within(2, lambda: checks.check(_outcome(tmp_path / "a.png"), DEFAULTS))
    finally:
        with contextlib.suppress(OSError):  # lets a check that waits for a writer go
            os.close(os.open(tmp_path / "a.png", os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("outputs", [{}, {"2": {}}, {"2": {"images": []}}, {"2": None}, {"1": {}, "2": {"text": []}}])
def test_a_success_that_reports_nothing_is_missing(outputs):
    with pytest.raises(ResultMissingError):
        checks.check(_outcome(outputs=outputs), DEFAULTS)


@pytest.mark.parametrize("outputs", [{"2": {"text": ["hi"]}}, {"2": {"result": [0]}}, {"1": {}, "2": {"text": [""]}}])
def test_nodes_that_report_text_or_data_count_as_they_are(outputs):
    assert checks.check(_outcome(outputs=outputs), DEFAULTS) == ()


def test_input_files_are_not_results_and_results_are_numbered_without_them(tmp_path):
    (tmp_path / "a.png").write_bytes(_encoded("png"))
    (tmp_path / "b.png").write_bytes(_encoded("png"))
    found = checks.check(
        _outcome(_reported(tmp_path / "gone.png", "input"), _reported(tmp_path / "a.png", "temp"), tmp_path / "b.png"),
        DEFAULTS,
    )
    assert [(each.index, each.filename, each.type) for each in found] == [(0, "a.png", "temp"), (1, "b.png", "output")]


def test_one_bad_file_among_good_ones_refuses_the_job(tmp_path):
    for name, content in (("a.png", _encoded("png")), ("b.png", _encoded("png")[:-100]), ("c.png", _encoded("png"))):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultCorruptError, match=r"b\.png"):
        checks.check(_outcome(*(tmp_path / name for name in ("a.png", "b.png", "c.png"))), DEFAULTS)


# The time limit. --------------------------------------------------------------------------------------------------


def test_a_check_that_never_returns_is_given_up():
    forever = threading.Event()
    left = run_within(LONG_S, threading.current_thread)
    with pytest.raises(ResultCorruptError, match="could not be checked"):
        run_within(0.05, lambda: forever.wait(LONG_S))
    assert run_within(LONG_S, threading.current_thread) is not left
    forever.set()
    left.join(LONG_S)
    assert not left.is_alive()


def test_the_thread_on_which_checks_run_lasts_as_long_as_the_one_that_waits_for_them():
    kept = []
    waiting = threading.Thread(
        target=lambda: kept.extend(run_within(LONG_S, threading.current_thread) for _ in range(3))
    )
    waiting.start()
    waiting.join(LONG_S)
    assert len(kept) == 3
    assert len(set(kept)) == 1
    kept[0].join(LONG_S)
    assert not kept[0].is_alive()


def test_the_result_and_the_error_of_a_check_come_through():
    assert run_within(LONG_S, lambda: None) is None
    assert run_within(LONG_S, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        run_within(LONG_S, lambda: 1 / 0)
    with pytest.raises(SystemExit):
        run_within(LONG_S, lambda: exec("raise SystemExit"))


# Quarantine. ------------------------------------------------------------------------------------------------------


def test_refused_files_are_moved_out_of_the_reach_of_every_route(tmp_path):
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(folder.encode())
        files.append(_reported(tmp_path / folder / "a.png", "temp" if folder == "two" else "output"))
    aside = tmp_path / "quarantine" / "job"
    quarantine.set_aside(files, aside)
    assert sorted(file.read_bytes() for file in aside.iterdir()) == [b"one", b"two"]
    assert not any(file.path.exists() for file in files)


def test_quarantine_leaves_alone_what_is_not_the_jobs_own_file(tmp_path):
    (tmp_path / "real.png").write_bytes(b"someone else's")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "input.png").write_bytes(b"an upload")
    aside = tmp_path / "quarantine"
    quarantine.set_aside(
        [
            _reported(tmp_path / "link.png"),
            _reported(tmp_path / "dangling.png"),
            _reported(tmp_path / "folder.png"),
            _reported(tmp_path / "input.png", "input"),
            _reported(tmp_path / "gone.png"),
            _reported(None, name="../outside.png"),
        ],
        aside,
    )
    assert not aside.exists()
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "dangling.png").is_symlink()
    assert (tmp_path / "folder.png").is_dir()
    assert (tmp_path / "input.png").exists()


def test_a_file_named_twice_is_moved_once_and_no_other_is_lost(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    quarantine.set_aside([_reported(tmp_path / "a.png")] * 2, tmp_path / "aside")
    (tmp_path / "a.png").write_bytes(b"another")
    quarantine.set_aside([_reported(tmp_path / "a.png")], tmp_path / "aside")
    assert sorted(file.read_bytes() for file in (tmp_path / "aside").iterdir()) == [b"a", b"another"]


def test_a_quarantine_that_cannot_be_made_is_logged_and_no_more(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "aside").write_bytes(b"a file where the folder should be")
    quarantine.set_aside([_reported(tmp_path / "a.png")], tmp_path / "aside")
    assert "could not set a.png aside" in caplog.text


# Later. -----------------------------------------------------------------------------------------------------------


def test_a_file_is_opened_only_while_its_bytes_are_the_same(tmp_path, checked):
    path = tmp_path / "a.png"
    content = _encoded("png")
    artifact = checked("a.png", content)
    files = opener.ArtifactOpener()
    with files.open(artifact, path) as handle:
        assert handle.read() == content
    path.write_bytes(content[:-1] + b"x")
    assert files.open(artifact, path) is None
    path.write_bytes(content + b"x")
    assert files.open(artifact, path) is None
    path.unlink()
    assert files.open(artifact, path) is None
    path.mkdir()
    assert files.open(artifact, path) is None


def test_every_fault_ends_a_job_with_an_error():
    assert set(judgement._ERRORS) == set(Fault)
