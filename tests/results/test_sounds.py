"""The sound of a film, or nothing: GuardedLoadSound and what it reads with."""

import io
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from results import corpus, pictures

from comfyui_guarded.guard import runtime
from comfyui_guarded.guard.errors import BadImageError
from comfyui_guarded.guard.results.sounds import read_sound
from comfyui_guarded.guard.settings import Settings
from comfyui_guarded.nodes.sound import GuardedLoadSound

FRAMES = [pictures.landscape(64, seed=number) for number in range(25)]


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def input_folder(tmp_path, monkeypatch):
    def find(kind, _subfolder, name):
        return tmp_path / name if kind == "input" and "/" not in name else None

    host = SimpleNamespace(file=find, input_folder=lambda: tmp_path)
    monkeypatch.setattr(runtime, "_current", runtime.Runtime(Settings(), host))
    return tmp_path


@pytest.mark.parametrize(
    ("format", "codec", "sound_codec"), [("mp4", "libx264", "aac"), ("webm", "libvpx-vp9", "libopus")]
)
def test_a_film_gives_its_sound_up_to_the_length_that_is_asked(tmp_path, format, codec, sound_codec):
    content = corpus.film(FRAMES, format, codec, sound=corpus.tone(3), sound_codec=sound_codec)
    path = write(tmp_path, f"x.{format}", content)
    samples, rate = read_sound(path, 60)
    assert samples.dtype == np.float32
    assert samples.shape[0] in (1, 2)
    assert 2.5 < samples.shape[1] / rate < 3.5
    assert 0.15 < np.abs(samples).max() < 0.3
    samples, rate = read_sound(path, 1.5)
    assert samples.shape[1] == int(1.5 * rate)


def test_a_silent_film_a_picture_and_what_is_neither_give_nothing(tmp_path):
    assert read_sound(write(tmp_path, "silent.mp4", corpus.film(FRAMES)), 60) is None
    assert read_sound(write(tmp_path, "a.gif", corpus.moving(FRAMES, "GIF")), 60) is None
    assert read_sound(write(tmp_path, "text.mp4", b"#EXTM3U\nhttp://127.0.0.1/x.ts"), 60) is None
    assert read_sound(write(tmp_path, "empty.mp4", b""), 60) is None


def test_more_than_two_channels_are_mixed_to_two(tmp_path):
    """Nodes that save sounds take more for noise."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=8000, layout="5.1")
        frame = av.AudioFrame.from_ndarray(np.full((1, 6 * 4000), 3000, np.int16), "s16", "5.1")
        frame.sample_rate, frame.pts = 8000, 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    samples, rate = read_sound(write(tmp_path, "x.flac", buffer.getvalue()), 60)
    assert (samples.shape, rate) == ((2, 4000), 8000)


def test_a_sound_that_breaks_off_ends_there(tmp_path):
    whole = corpus.sound(corpus.tone(3), "mp3", "mp3")
    samples, rate = read_sound(write(tmp_path, "cut.mp3", corpus.cut(whole, 0.5)), 60)
    assert 1 < samples.shape[1] / rate < 2


def test_the_node_gives_audio_as_comfyui_knows_it_or_none(input_folder):
    write(input_folder, "loud.mp4", corpus.film(FRAMES, sound=corpus.tone(1)))
    write(input_folder, "silent.mp4", corpus.film(FRAMES))
    (audio,) = GuardedLoadSound().load("loud.mp4", 10.0)
    assert len(audio["waveform"].shape) == 3
    assert audio["sample_rate"] == corpus.RATE
    assert GuardedLoadSound().load("silent.mp4", 10.0) == (None,)
    assert GuardedLoadSound.INPUT_TYPES()["required"]["video"][0] == ["loud.mp4", "silent.mp4"]


def test_a_film_that_is_not_there_is_refused_before_the_job_and_in_it(input_folder):
    for name in ("gone.mp4", "../gone.mp4", ""):
        assert "not there" in GuardedLoadSound.VALIDATE_INPUTS(name)
        with pytest.raises(BadImageError):
            GuardedLoadSound().load(name, 1.0)
