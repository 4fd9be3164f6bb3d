"""Copies of results in another format: what they show, how long they may take, and where none can be made."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageOps, ImageStat, PngImagePlugin

from comfyui_guarded.guard.job import Artifact
from comfyui_guarded.guard.outgoing import Converted, ResultOptions
from comfyui_guarded.guard.results import convert, convert_films, convert_pictures
from comfyui_guarded.guard.results.convert import Converter
from comfyui_guarded.guard.settings import ResultsSettings

from . import corpus, pictures
from .checking import check, reported

SMALL = ResultsSettings(min_video_bytes=1, min_image_bytes=1)
PICTURES = sorted(convert_pictures.list_formats())


def converted(
    path: Path, options: ResultOptions, *, syncs: bool = False, **settings
) -> tuple[Converted | None, Path, Artifact]:
    """The copy of a file that has passed, where it lies, and its artifact."""
    before = check(path, SMALL)
    converter = Converter(ResultsSettings(**settings), path.parent / "own" / "converting", syncs=syncs)
    (after,) = converter.convert([reported(path)], [before], options)
    made = after.converted
    assert not list((path.parent / "own").glob("converting/*"))
    if made is not None and made.error is None:
        copy = path.parent / made.filename
        assert (copy.stat().st_size, opener_sha(copy)) == (made.bytes, made.sha256)
        assert after.warnings == before.warnings
        return made, copy, after
    return made, path, after


def opener_sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def load(path: Path) -> Image.Image:
    with Image.open(path) as shown:
        shown.load()
    return shown


def differ(one: Image.Image, other: Image.Image) -> float:
    """How far apart two pictures are, on average, of 255."""
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


@pytest.mark.parametrize("format", PICTURES)
def test_a_copy_shows_the_same_picture_beside_the_original(tmp_path, format):
    path = write(tmp_path, "a_00001_.png", corpus.image(pictures.landscape(), "PNG"))
    original = path.read_bytes()
    made, copy, _ = converted(path, ResultOptions(format))
    assert (made.width, made.height) == (512, 512)
    assert copy.suffix.lstrip(".").replace("jpg", "jpeg") == format
    with Image.open(copy) as shown, Image.open(path) as before:
        assert shown.format.lower() == format
        assert shown.size == (512, 512)
        assert differ(shown, before) < 5
    assert path.read_bytes() == original
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == sorted([path.name, copy.name])


@pytest.mark.parametrize("format", PICTURES)
def test_a_copy_is_as_small_as_was_asked_for_and_never_larger_than_the_original(tmp_path, format):
    wide = pictures.landscape()[:200]
    path = write(tmp_path, "a.png", corpus.image(wide, "PNG"))
    made, copy, _ = converted(path, ResultOptions(format, max_side=128))
    assert (made.width, made.height) == (128, 50)
    assert load(copy).size == (128, 50)
    made, copy, _ = converted(path, ResultOptions(format, max_side=16384))
    assert load(copy).size == (512, 200)


def test_quality_decides_the_size(tmp_path):
    path = write(tmp_path, "a.png", corpus.image(pictures.landscape(), "PNG"))
    for format in ("webp", "jpeg"):
        sizes = [converted(path, ResultOptions(format, quality))[0].bytes for quality in (1, 50, 100)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[2] / 4


@pytest.mark.parametrize("format", PICTURES)
def test_no_metadata_is_in_a_copy_and_colours_stay(tmp_path, format):
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "WHAT_I_TYPED")
    text.add_itxt("workflow", "WHAT_I_TYPED")
    exif = Image.Exif()
    exif[0x010E] = "WHAT_I_TYPED"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = corpus.image(pictures.landscape(), "PNG", pnginfo=text, exif=exif, icc_profile=profile)
    path = write(tmp_path, "a.png", content)
    assert b"WHAT_I_TYPED" in content
    _, copy, _ = converted(path, ResultOptions(format))
    assert b"WHAT_I_TYPED" not in copy.read_bytes()
    with Image.open(copy) as shown:
        assert shown.info.get("icc_profile") == profile
        assert not dict(shown.getexif())


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_picture_that_says_how_to_turn_it_is_turned(tmp_path, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    tall = pictures.landscape()[:, :256]
    path = write(tmp_path, "a.jpg", corpus.image(tall, "JPEG", exif=exif, quality=95))
    made, copy, _ = converted(path, ResultOptions("png"))
    with Image.open(path) as before, Image.open(copy) as shown:
        upright = ImageOps.exif_transpose(before)
        assert shown.size == upright.size == (made.width, made.height)
        assert differ(shown, upright) < 3
        assert 0x0112 not in shown.getexif()


def _hidden(mode: str) -> Image.Image:
    """A picture whose left half is transparent."""
    shown = Image.fromarray(corpus.bytes_of(pictures.landscape(256))).convert("RGBA")
    alpha = Image.new("L", shown.size, 255)
    alpha.paste(0, (0, 0, 128, 256))
    shown.putalpha(alpha)
    return shown.convert(mode) if mode != "P" else shown.quantize()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("format", PICTURES)
def test_transparency_stays_and_in_a_jpeg_becomes_white(tmp_path, format, mode):
    buffer = io.BytesIO()
    _hidden(mode).save(buffer, "PNG")
    path = write(tmp_path, "a.png", buffer.getvalue())
    _, copy, _ = converted(path, ResultOptions(format))
    with Image.open(copy) as shown:
        if format == "jpeg":
            assert min(shown.convert("RGB").getpixel((20, 100))) > 250
        else:
            assert shown.convert("RGBA").getpixel((20, 100))[3] == 0
            assert shown.convert("RGBA").getpixel((200, 100))[3] == 255


@pytest.mark.parametrize("format", PICTURES)
def test_sixteen_bits_and_printers_colours_come_out_as_they_look(tmp_path, format):
    grey = pictures.landscape().mean(-1)
    buffer = io.BytesIO()
    Image.fromarray((grey * 65535).astype(np.uint16)).save(buffer, "PNG")
    _, copy, _ = converted(write(tmp_path, "deep.png", buffer.getvalue()), ResultOptions(format))
    assert differ(load(copy), Image.fromarray((grey * 255).astype(np.uint8))) < 6
    cmyk = Image.fromarray(corpus.bytes_of(pictures.landscape())).convert("CMYK")
    buffer = io.BytesIO()
    cmyk.save(buffer, "JPEG", quality=95)
    _, copy, _ = converted(write(tmp_path, "press.jpg", buffer.getvalue()), ResultOptions(format))
    with Image.open(copy) as shown:
        assert shown.mode in ("RGB", "RGBA")
        assert differ(shown, cmyk.convert("RGB")) < 6


@pytest.mark.parametrize(("name", "as_what"), [("a.gif", "GIF"), ("a.png", "PNG"), ("a.webp", "WEBP")])
def test_a_picture_that_moves_moves_as_webp_and_becomes_nothing_else(tmp_path, name, as_what):
    frames = list(pictures.pan(pictures.landscape(128), 6))
    path = write(tmp_path, name, corpus.moving(frames, as_what, 80))
    made, copy, _ = converted(path, ResultOptions("webp", max_side=64))
    with Image.open(copy) as shown:
        assert (shown.n_frames, shown.size) == (6, (made.width, made.height))
        shown.seek(3)
        shown.load()
        assert shown.info["duration"] == 80
    for format in ("png", "jpeg"):
        made, _, after = converted(path, ResultOptions(format))
        assert (made.error, after.copy, after.warnings) == ("moving", None, ("not_converted",))


def _describe(path: Path) -> tuple[set[str], int, int, int, float, float]:
    """A film's codecs, its size, frames and length, and its loudest sample."""
    with av.open(str(path)) as film:
        codecs = {stream.codec_context.name for stream in film.streams}
        frames = list(film.decode(film.streams.video[0]))
    with av.open(str(path)) as film:
        sounds = list(film.decode(film.streams.audio[0])) if film.streams.audio else []
    peak = max((float(np.abs(frame.to_ndarray()).max()) for frame in sounds), default=0.0)
    rate = frames[1].time - frames[0].time
    return codecs, frames[0].width, frames[0].height, len(frames), frames[-1].time - frames[0].time + rate, peak


@pytest.mark.parametrize("target", sorted(convert_films.list_formats()))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"sound": corpus.tone(2)}),
        ("a.mp4", {}),
        ("a.webm", {"format": "webm", "codec": "libvpx-vp9", "sound": corpus.tone(2), "sound_codec": "libopus"}),
        ("a.mkv", {"format": "matroska", "codec": "ffv1", "pix_fmt": "yuv444p10le"}),
    ],
)
def test_a_film_keeps_its_frames_its_length_and_its_sound(tmp_path, target, name, options):
    frames = itertools.islice(pictures.small_motion(side=256), 50)
    path = write(tmp_path, name, corpus.film(frames, **options))
    before = _describe(path)
    made, copy, _ = converted(path, ResultOptions(target, max_side=130))
    codecs, width, height, count, length_s, peak = _describe(copy)
    assert codecs <= {"h264", "aac", "vp9", "opus", "libdav1d", "libopus", "libvpx-vp9"}
    assert (width, height) == (130, 130) == (made.width, made.height)
    assert (count, length_s) == (before[3], pytest.approx(before[4], abs=0.05))
    assert peak == pytest.approx(before[5], abs=0.1)
    assert (peak > 0.1) is ("sound" in options)


def test_a_film_becomes_no_picture_and_a_picture_no_film(tmp_path):
    film = write(tmp_path, "a.mp4", corpus.film(itertools.islice(pictures.small_motion(side=128), 25)))
    still = write(tmp_path, "a.png", corpus.image(pictures.landscape(), "PNG"))
    sound = write(tmp_path, "a.wav", corpus.wav(corpus.tone()))
    for path, format in ((film, "webp"), (still, "mp4"), (sound, "mp4"), (sound, "webp")):
        made, _, after = converted(path, ResultOptions(format))
        assert (made, after.warnings) == (None, check(path, SMALL).warnings)


def test_no_metadata_of_a_film_is_in_its_copy(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as film:
        film.metadata.update(prompt="WHAT_I_TYPED", comment="WHAT_I_TYPED")
        stream = film.add_stream("libx264", rate=25)
        stream.width = stream.height = 128
        for frame in itertools.islice(pictures.small_motion(side=128), 25):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(corpus.bytes_of(frame), format="rgb24")))
        film.mux(stream.encode())
    assert b"WHAT_I_TYPED" in path.read_bytes()
    for format in convert_films.list_formats():
        _, copy, _ = converted(path, ResultOptions(format))
        assert b"WHAT_I_TYPED" not in copy.read_bytes()


# What cannot be converted. ------------------------------------------------------------------------------------


def test_what_is_too_large_or_takes_too_long_stays_as_it_is_and_says_so(tmp_path):
    path = write(tmp_path, "a.png", corpus.image(pictures.landscape(), "PNG"))
    film = write(tmp_path, "a.mp4", corpus.film(itertools.islice(pictures.small_motion(side=256), 50)))
    for file, options, settings, reason in (
        (path, ResultOptions("webp"), {"convert_max_pixels": 512 * 512 - 1}, "too_large"),
        (path, ResultOptions("png"), {"convert_max_bytes": 1000}, "too_large"),
        (film, ResultOptions("mp4"), {"convert_max_bytes": 1000}, "too_large"),
        (film, ResultOptions("mp4"), {"convert_timeout_s": 0.001}, "too_slow"),
        (film, ResultOptions("webm"), {"convert_timeout_s": 0.02}, "too_slow"),
    ):
        made, _, after = converted(file, options, **settings)
        assert (made.error, after.copy) == (reason, None), (file.name, options)
        assert after.warnings[-1] == "not_converted"
        assert after.body("j")["converted"] == {
            **dict.fromkeys(["filename", "bytes", "sha256", "width", "height", "url"]),
            "format": options.format,
            "mime": made.mime,
            "error": reason,
        }
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["a.mp4", "a.png"]


def test_an_encoder_that_hangs_is_left_behind_and_writes_nothing_later(tmp_path, monkeypatch):
    path = write(tmp_path, "a.png", corpus.image(pictures.landscape(), "PNG"))
    goes_on, ended = threading.Event(), []

    def hang(_handle, _kind, sink, _options, _max_pixels):
        goes_on.wait(30)
        try:
            sink.write(b"late")
        except Exception as error:
            ended.append(error)
            raise
        return 1, 1

    monkeypatch.setattr(convert.convert_pictures, "convert", hang)
    made, _, _ = converted(path, ResultOptions("webp"), convert_timeout_s=0.2)
    assert made.error == "too_slow"
    goes_on.set()
    ends_s = time.monotonic() + 30
    while not ended and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert ended
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a.png"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions stop")
def test_a_folder_that_takes_no_file_leaves_the_original(tmp_path):
    folder = tmp_path / "shut"
    folder.mkdir()
    path = write(folder, "a.png", corpus.image(pictures.landscape(), "PNG"))
    (tmp_path / "own").mkdir()
    folder.chmod(0o500)
    try:
        (after,) = Converter(ResultsSettings(), tmp_path / "own" / "converting", syncs=False).convert(
            [reported(path)], [check(path)], ResultOptions("webp")
        )
    finally:
        folder.chmod(0o700)
    assert after.converted.error == "failed"


def test_what_a_killed_process_left_is_gone_at_the_next_start(tmp_path):
    folder = tmp_path / "converting"
    folder.mkdir()
    (folder / "1-2").write_bytes(b"half")
    Converter(ResultsSettings(), folder, syncs=False)
    assert not folder.exists()


def test_a_file_that_was_overwritten_meanwhile_gets_no_copy(tmp_path):
    path = write(tmp_path, "a.png", corpus.image(pictures.landscape(), "PNG"))
    before = check(path)
    path.write_bytes(corpus.image(pictures.night(), "PNG"))
    (after,) = Converter(ResultsSettings(), tmp_path / "c", syncs=False).convert(
        [reported(path)], [before], ResultOptions("webp")
    )
    assert after.converted.error == "failed"
    assert after.copy is None


@pytest.mark.parametrize("name", ["ä" * 120 + ".png", "x" * 250 + ".png", "a%03d.png", "a~b.png", "- .png"])
def test_any_name_of_an_original_gives_one_for_the_copy(tmp_path, name):
    try:
        path = write(tmp_path, name, corpus.image(pictures.landscape(), "PNG"))
    except OSError:
        pytest.skip("this disk has no such names")
    made, copy, _ = converted(path, ResultOptions("webp"))
    assert made.error is None
    assert copy.exists()
    again, _, _ = converted(path, ResultOptions("webp"))
    assert again == made


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (17, 3), (16500, 40)])
def test_odd_sizes_are_converted_or_say_why_not(tmp_path, size):
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    path = write(tmp_path, "a.png", buffer.getvalue() + bytes(2048))
    for format, side in itertools.product(PICTURES, (None, 16)):
        made, copy, _ = converted(path, ResultOptions(format, max_side=side))
        if made.error is None:
            assert load(copy).size == (made.width, made.height)


@given(data=st.data())
@hypothesis_settings(max_examples=15)
def test_whatever_passes_the_checks_is_converted_or_says_why_not_and_stays(tmp_path_factory, data):
    """Any mode, size, format and option: the original is never touched, and a copy is what it says."""
    tmp_path = tmp_path_factory.mktemp("any")
    mode = data.draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"]))
    as_what = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
    side = data.draw(st.integers(2, 80)), data.draw(st.integers(2, 80))
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 255, (*side, 4), dtype=np.uint8), "RGBA")
    shown = noise.convert("L").convert("I;16") if mode == "I;16" else noise.convert(mode)
    buffer = io.BytesIO()
    try:
        shown.save(buffer, as_what)
    except (OSError, ValueError):
        return  # no such picture
    path = write(tmp_path, "a", buffer.getvalue())
    options = ResultOptions(
        data.draw(st.sampled_from(PICTURES)),
        data.draw(st.none() | st.integers(1, 100)),
        data.draw(st.none() | st.integers(16, 64)),
    )
    before = Artifact(0, "9", "image", "a", "", "output", path.stat().st_size, opener_sha(path))
    (after,) = Converter(ResultsSettings(), tmp_path / "c", syncs=False).convert([reported(path)], [before], options)
    assert opener_sha(path) == before.sha256
    assert after.converted.error is None, after.converted
    with Image.open(tmp_path / after.copy.filename) as copy:
        copy.load()
        assert copy.size == (after.converted.width, after.converted.height)
        assert copy.format.lower() == options.format
