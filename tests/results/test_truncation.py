"""A file that was not written to its end is refused, wherever it ends, whatever Pillow was told by another pack."""

import io
import itertools
from functools import cache
from pathlib import Path

import av
import pytest
from PIL import ImageFile
from results import corpus, pictures
from results.checking import check, refusal


@cache
def whole(suffix: str) -> bytes:
    scene = pictures.landscape(256)
    film = pictures.pan(scene, 50)
    makers = {
        ".png": lambda: corpus.image(pictures.landscape(), "PNG"),
        ".jpg": lambda: corpus.image(pictures.landscape(), "JPEG", quality=95),
        ".progressive.jpg": lambda: corpus.image(pictures.landscape(), "JPEG", quality=95, progressive=True),
        ".webp": lambda: corpus.image(pictures.landscape(), "WEBP", quality=95),
        ".gif": lambda: corpus.moving(pictures.pan(scene, 5), "GIF"),
        ".mp4": lambda: corpus.film(film, g="10", crf="18"),
        ".faststart.mp4": lambda: corpus.film(film, movflags="faststart", crf="18"),
        ".fragmented.mp4": lambda: corpus.film(film, movflags="frag_keyframe+empty_moov", g="10", crf="18"),
        ".webm": lambda: corpus.film(film, "webm", "libvpx-vp9", crf="15", b="0"),
        ".sound.webm": lambda: corpus.film(
            film, "webm", "libvpx-vp9", sound=corpus.tone(2), sound_codec="libopus", crf="15", b="0"
        ),
        ".mov": lambda: corpus.film(film, "mov", "mjpeg", pix_fmt="yuvj420p"),
        ".wav": lambda: corpus.wav(corpus.tone()),
        ".flac": lambda: corpus.sound(corpus.tone(), "flac", "flac"),
        ".ogg": lambda: corpus.sound(corpus.tone(), "ogg", "libopus"),
        ".mp3": lambda: corpus.sound(corpus.tone(), "mp3", "libmp3lame"),
    }
    return makers[suffix]()


SUFFIXES = [
    ".png", ".jpg", ".progressive.jpg", ".webp", ".gif", ".mp4", ".faststart.mp4", ".fragmented.mp4", ".webm",
    ".sound.webm", ".mov", ".wav", ".flac", ".ogg",
]  # fmt: skip


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_at_every_tenth_it_is_refused(suffix: str, lenient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    content = whole(suffix)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    check(path)
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        assert refusal(path).code in ("result_corrupt", "result_too_small"), f"{tenth} tenths"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".mp4", ".webm"])
def test_a_few_bytes_less_are_enough(suffix: str, tmp_path: Path):
    content = whole(suffix)
    for missing in (1, 2, 5, 100):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content[:-missing])
        assert refusal(path).code == "result_corrupt", missing


def test_an_mp3_that_ends_early_is_refused_unless_too_little_is_missing_to_tell(tmp_path: Path):
    """Its header says how long it is; within the tolerance for durations nobody can tell."""
    content = whole(".mp3")
    path = tmp_path / "x.mp3"
    for tenth in range(9):
        path.write_bytes(content[: len(content) * tenth // 10])
        assert refusal(path).code in ("result_corrupt", "result_too_small"), tenth


def test_what_follows_the_end_does_no_harm(tmp_path: Path):
    for suffix, tail in itertools.product((".png", ".jpg", ".gif"), (b"\0", b"more" * 100)):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(whole(suffix) + tail)
        check(path)


@pytest.mark.parametrize("suffix", [".webm", ".sound.webm"])
def test_a_film_whose_middle_is_lost_with_all_that_follows_is_refused(suffix: str, tmp_path: Path):
    """Its container says how long it is, and is whole; of its frames it says nothing."""
    content = whole(suffix)
    path = tmp_path / "x.webm"
    begin = len(content) // 2
    left = len(content) - begin - 9
    void = b"\xec\x01" + left.to_bytes(7, "big") + bytes(left)
    path.write_bytes(content[:begin] + void)
    assert refusal(path).code == "result_corrupt"


def test_a_flac_that_lacks_a_frame_is_refused(tmp_path: Path):
    content = whole(".flac")
    path = tmp_path / "x.flac"
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 3000]) + content[at + 3000 :])
    assert refusal(path).code == "result_corrupt"


def test_a_film_that_an_editor_has_cut_is_as_long_as_it_is_shown(tmp_path: Path):
    content = whole(".mp4")
    at = content.find(b"elst") + 12
    path = tmp_path / "x.mp4"
    path.write_bytes(content[:at] + (1000).to_bytes(4, "big") + content[at + 4 :])  # a second of two
    assert check(path).frames == 25


def test_of_a_film_that_was_cut_the_last_pictures_may_lie_behind_the_cut(tmp_path: Path):
    """A cut without encoding anew ends by the order of writing: pictures that are shown last may be missing."""
    content = whole(".mp4")
    at = content.find(b"elst") + 12
    path = tmp_path / "x.mp4"
    shown, begin = (1000).to_bytes(4, "big"), int.from_bytes(content[at + 4 : at + 8], "big")
    for missing, is_taken in ((3, True), (12, False)):
        with av.open(io.BytesIO(content)) as container:
            film = container.streams.video[0]
            ticks = round((1 + missing / 25) / film.time_base)
        path.write_bytes(content[:at] + shown + (begin + ticks).to_bytes(4, "big") + content[at + 8 :])
        if is_taken:
            assert check(path).frames == 25 - missing
        else:
            assert refusal(path).code == "result_corrupt"


def test_a_film_whose_sound_breaks_off_is_refused(tmp_path: Path):
    made = corpus.film(pictures.pan(pictures.landscape(256), 50), sound=corpus.tone(2), sound_codec="aac", crf="18")
    path = tmp_path / "x.mp4"
    path.write_bytes(made)
    check(path)
    with av.open(io.BytesIO(made)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size and packet.pos]
        places = [(packet.pos, packet.size) for packet in packets[len(packets) // 2 :]]
    broken = bytearray(made)
    for at, size in places:
        broken[at : at + size] = b"\xff" * size
    path.write_bytes(broken)
    assert refusal(path).code == "result_corrupt"
