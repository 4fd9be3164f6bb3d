"""A film or a sound that was cut is refused before there is a job, as far as its format tells; a whole one passes."""

import io
import itertools
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from policy.test_loaded import CLASSES, Host, gif, tone

from comfyui_guarded.guard.errors import BadAudioError, BadImageError, BadVideoError, GuardError
from comfyui_guarded.guard.faces.loaded import LoadedFiles

_names = itertools.count()


def make_film(form, codec, sound="", seconds=3, **options):
    path = Path(tempfile.mkdtemp()) / "film"  # libav goes back in no other to move the index to the front
    noise = np.random.default_rng(1)
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream(sound, rate=44100) if sound else None
        for at in range(10 * seconds):
            picture = av.VideoFrame.from_ndarray(noise.integers(0, 255, (48, 64, 3), np.uint8))
            container.mux(stream.encode(picture))
            if voice is not None:
                container.mux(voice.encode(samples(noise, 4410, at)))
        container.mux(stream.encode())
        if voice is not None:
            container.mux(voice.encode())
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data


def samples(noise, count, at):
    frame = av.AudioFrame.from_ndarray(noise.normal(0, 0.1, (2, count)).astype(np.float32), "fltp", "stereo")
    frame.sample_rate, frame.pts = 44100, at * count
    return frame


def make_sound(form, codec, rate=44100, seconds=3):
    buffer = io.BytesIO()
    noise = np.random.default_rng(2)
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        resampler = av.AudioResampler(stream.format, stream.layout, rate)
        for at in range(10 * seconds):
            for part in resampler.resample(samples(noise, 4410, at)):
                container.mux(stream.encode(part))
        container.mux(stream.encode())
    return buffer.getvalue()


FILMS = {
    "mp4": lambda: make_film("mp4", "mpeg4", "aac"),
    "mp4 for the web": lambda: make_film("mp4", "libx264", movflags="faststart"),
    "mov": lambda: make_film("mov", "mpeg4", "aac"),
    "mkv": lambda: make_film("matroska", "libx264", "aac"),
    "webm": lambda: make_film("webm", "libvpx"),
    "avi": lambda: make_film("avi", "mpeg4"),
    "flv": lambda: make_film("flv", "flv1"),
    "asf": lambda: make_film("asf", "msmpeg4v3"),
}
SOUNDS = {
    "wav": tone,
    "flac": lambda: make_sound("flac", "flac"),
    "ogg": lambda: make_sound("ogg", "libopus", 48000),
    "mp3": lambda: make_sound("mp3", "libmp3lame"),
    "m4a": lambda: make_sound("ipod", "aac"),
    "aiff": lambda: make_sound("aiff", "pcm_s16be"),
    "mka": lambda: make_sound("matroska", "flac"),
}
#: Of these nobody can tell how long they were.
ENDLESS = {
    "ts": lambda: make_film("mpegts", "mpeg2video"),
    "aac": lambda: make_sound("adts", "aac"),
    "piped mkv": lambda: make_film("matroska", "mpeg4", live="1"),
}
_MADE: dict[str, bytes] = {}


def made(kind):
    if kind not in _MADE:
        _MADE[kind] = {**FILMS, **SOUNDS, **ENDLESS}[kind]()
    return _MADE[kind]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The error that a file ends with at a loader's door, or what it holds."""
    host = Host(tmp_path_factory.mktemp("door"))
    loaded = LoadedFiles(host)
    folder = host.folders().input
    folder.mkdir(parents=True, exist_ok=True)

    def judge(class_type, data):
        name = f"{next(_names)}.bin"
        (folder / name).write_bytes(data)
        graph = {"7": {"class_type": class_type, "inputs": {CLASSES[class_type][0]: name}}}
        try:
            return loaded.open_all(loaded.list_files(graph, None)).media.get("7")
        except GuardError as error:
            return error
        finally:
            (folder / name).unlink()

    return judge


def loader(kind):
    return "LoadAudio" if kind in SOUNDS or kind == "aac" else "LoadVideo"


@pytest.mark.parametrize("kind", [*FILMS, *SOUNDS, *ENDLESS])
def test_a_whole_one_passes_with_its_length(judged, kind):
    media = judged(loader(kind), made(kind))
    assert not isinstance(media, GuardError), f"{media} {getattr(media, 'details', '')}"
    if kind not in ("ts", "piped mkv", "aac"):
        assert media.seconds == pytest.approx(2.0 if kind == "wav" else 3.0, abs=0.3)


@pytest.mark.parametrize("kind", [*FILMS, *SOUNDS])
def test_what_follows_on_the_end_is_nobodys_matter(judged, kind):
    if kind == "flv":
        return  # a tag that is cut off, as far as anyone can tell
    if kind == "mp3":  # ComfyUI's own LoadAudio ends with what it takes for a frame, as other readers do not
        CLASSES["LoadAudioKindly"] = CLASSES["LoadAudio"]
        assert not isinstance(judged("LoadAudioKindly", made(kind) + bytes(2000)), GuardError)
        return
    assert not isinstance(judged(loader(kind), made(kind) + b"\0\1junk of some sort" * 3), GuardError)


@pytest.mark.parametrize("kind", [*FILMS, *SOUNDS])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_half_of_one_is_refused_by_what_its_loader_reads(judged, kind, share):
    error = judged(loader(kind), made(kind)[: int(len(made(kind)) * share)])
    assert isinstance(error, BadAudioError if kind in SOUNDS else BadVideoError), error


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*FILMS, *SOUNDS]), st.floats(0, 0.7))
def test_wherever_it_was_cut(judged, kind, share):
    error = judged(loader(kind), made(kind)[: int(len(made(kind)) * share)])
    assert isinstance(error, BadAudioError if kind in SOUNDS else BadVideoError), error


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*FILMS, *SOUNDS, *ENDLESS]), st.data())
def test_no_damage_ends_with_another_error(judged, kind, data):
    broken = bytearray(made(kind))
    for _ in range(data.draw(st.integers(1, 20))):
        broken[data.draw(st.integers(0, min(len(broken) - 1, 4000)))] = data.draw(st.integers(0, 255))
    for class_type in ("LoadVideo", "LoadAudio", "LoadImageByLibav", "LoadImageByPillow"):
        judged(class_type, bytes(broken))


@pytest.mark.parametrize(
    ("class_type", "error"),
    [("LoadImageByPillow", BadImageError), ("LoadVideo", BadVideoError), ("LoadAudio", BadAudioError)],
)
def test_an_empty_file_is_told_by_what_its_loader_reads(judged, class_type, error):
    assert isinstance(judged(class_type, b""), error)


def test_a_film_is_no_picture_to_a_loader_that_has_only_pillow(judged):
    assert isinstance(judged("LoadImageByPillow", made("mp4")), BadImageError)
    assert judged("LoadImageByLibav", made("mp4")).frames == 30


@pytest.mark.parametrize("form", ["adts", "mpegts"])
def test_a_sound_whose_end_cannot_be_decoded_fails_at_the_door_and_not_in_its_loader(judged, form):
    data = make_sound(form, "aac")
    assert not isinstance(judged("LoadAudio", data), GuardError)
    cut = next(
        at
        for at in range(len(data) // 2, len(data) // 2 + 400)
        if isinstance(judged("LoadAudio", data[:at]), BadAudioError)
    )
    assert cut, "an AAC frame that is half there ends ComfyUI's LoadAudio"


def test_a_moving_picture_that_breaks_off_within_a_frame_is_refused(judged):
    data = gif(6)
    for class_type in ("LoadImageByPillow", "LoadImageByLibav", "LoadVideo"):
        assert judged(class_type, data).frames == 6
        assert judged(class_type, data[:-1]).frames == 6, "many lack the trailer"
        assert judged(class_type, data + b"junk").frames == 6
        error = judged(class_type, data[: len(data) * 2 // 3])
        assert isinstance(error, BadVideoError if class_type == "LoadVideo" else BadImageError)


def test_what_libav_finds_no_pictures_in_is_no_film_to_it(judged):
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (32, 32), (at * 20, 0, 0)) for at in range(5)]
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:])
    error = judged("LoadVideo", buffer.getvalue())
    assert isinstance(error, BadVideoError) or error.frames == 5, "later versions of libav may read it"
    assert judged("LoadImageByPillow", buffer.getvalue()).frames == 5
