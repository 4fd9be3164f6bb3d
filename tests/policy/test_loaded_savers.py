"""A film or sound is refused where the node that saves it fails on it, or makes noise of it."""

import io

import av
import numpy as np
import pytest
from policy.test_loaded import Host as FileHost
from policy.test_loaded import gif

from comfyui_guarded.guard.errors import BadAudioError, BadVideoError
from comfyui_guarded.guard.faces import films
from comfyui_guarded.guard.faces.loaded import LoadedFiles
from comfyui_guarded.guard.graph import Declared, Names

OUTPUTS = {
    "LoadVideo": (("VIDEO", "VIDEO"),),
    "LoadAudio": (("AUDIO", "AUDIO"),),
    "VHS_LoadAudioUpload": (("AUDIO", "audio"),),
}
FILES = {"LoadVideo": "file", "LoadAudio": "audio", "VHS_LoadAudioUpload": "audio"}
KNOWS_SURROUND = {"format": {"mp4": frozenset({"format.codec"})}}


class Host(FileHost):
    def __init__(self, folder):
        super().__init__(folder)
        self.parts = {}

    def declaration(self, class_type):
        opens_with = "ffmpeg" if class_type.startswith("VHS") else "libav" if class_type in FILES else ""
        parts = self.parts if class_type == "SaveVideo" else {}
        return Declared({}, OUTPUTS.get(class_type, ()), opens_with=opens_with, parts=parts)

    def file_inputs(self, class_type):
        return {FILES[class_type]: Names.FILE} if class_type in FILES else {}


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Have the file of node 1 of a graph opened."""
    # Which takes a second each, and has tests of its own.
    monkeypatch.setattr(films, "hear_apart", lambda handle, *_given: handle.seek(0))
    host = Host(tmp_path)
    loaded = LoadedFiles(host)
    host.folders().input.mkdir(parents=True, exist_ok=True)

    def open_file(data, graph, name="film.bin"):
        (host.folders().input / name).write_bytes(data)
        graph = {"1": {"class_type": "LoadVideo", "inputs": {"file": name}}} | graph
        return loaded.open_all(loaded.list_files(graph, None)).media.get("1")

    open_file.host = host
    return open_file


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": {name.replace("__", "."): value for name, value in inputs.items()}}


def save(*, video=("1", 0), **inputs):
    return node("SaveVideo", video=list(video), filename_prefix="x", **inputs)


def film(form, codec, sound="aac", *, size=(64, 48), rate=44_100, layout="stereo"):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height = size
        stream.pix_fmt = {"ffv1": "yuv420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
        voice = container.add_stream(sound, rate=rate, layout=layout) if sound else None
        for at in range(12):
            picture = np.full((size[1], size[0], 3), at * 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
        if voice is not None:
            for packet in encode_sound(voice, rate, layout):
                container.mux(packet)
    return buffer.getvalue()


def encode_sound(voice, rate, layout):
    count = av.AudioLayout(layout).nb_channels
    form = voice.format.name
    wave = np.sin(np.arange(rate // 2) / 20)[None].repeat(count, 0).astype(np.float32) * 0.5
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), "fltp", layout)
    frame.sample_rate, frame.pts = rate, 0
    resampler = av.AudioResampler(form, layout, rate, voice.codec_context.frame_size or None)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        yield from voice.encode(part)
    yield from voice.encode()


def sound(form, codec, *, rate=44_100, layout="stereo"):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        voice = container.add_stream(codec, rate=rate, layout=layout)
        for packet in encode_sound(voice, rate, layout):
            container.mux(packet)
    return buffer.getvalue()


EIGHT_BITS = ("mov", "h264", "pcm_u8")
GOOD = ("mp4", "h264", "aac")


@pytest.mark.parametrize("asked", [{}, {"format": "auto"}, {"format": "mp4", "codec": "h264"}])
def test_a_film_whose_sound_does_not_go_into_its_copy_is_refused(judge, asked):
    assert judge(film(*GOOD), {"2": save(**asked)}).frames == 12
    with pytest.raises(BadVideoError, match="film") as refused:
        judge(film(*EIGHT_BITS), {"2": save(**asked)})
    assert "copy its streams into MP4" in refused.value.details
    assert refused.value.extra_info["node_id"] == "1"


@pytest.mark.parametrize(
    "graph",
    [
        {},  # nothing saves it
        {"2": node("GetVideoComponents", video=["1", 0]), "3": node("SaveImage", images=["2", 0])},
        {"2": save(format="mp4", format__codec="av1")},
        {"2": save(format="auto", format__codec="h264", **{"format.codec.encoding": "re-encode"})},
        {"2": save(format="mkv", format__codec="auto")},  # a MOV is none, so it is encoded
        {"2": node("Video Slice", video=["1", 0], start_time=0.1, duration=0), "3": node("SaveVideo", video=["2", 0])},
        {"2": save(format=["4", 0])},
    ],
)
def test_a_film_that_is_not_copied_may_have_any_sound(judge, graph):
    assert judge(film(*EIGHT_BITS), graph).frames == 12


def test_a_film_is_copied_through_nodes_that_leave_it_as_it_is(judge):
    slice_ = node("Video Slice", video=["2", 0], start_time=0, duration=0.0)
    graph = {"2": save(format="mkv"), "3": slice_, "4": node("SaveVideo", video=["3", 0], format="auto")}
    with pytest.raises(BadVideoError):
        judge(film(*EIGHT_BITS), graph)


def test_pictures_that_go_into_no_copy_are_refused(judge):
    data = film("webm", "libvpx", "libopus", rate=48_000)
    assert judge(data, {"2": save(format="mkv")}).frames == 12
    assert judge(data, {"2": save(format="mp4")}).frames == 12  # anew
    with pytest.raises(BadVideoError):
        judge(data, {"2": save(format="auto")})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (film("matroska", "ffv1", None, size=(63, 48)), "must be even"),
        (film("matroska", "ffv1", "pcm_s16le", rate=192_000), "192000 samples a second"),
    ],
)
def test_a_film_that_cannot_be_encoded_anew_is_refused(judge, data, why):
    assert judge(data, {"2": save(format="mkv")}).frames == 12
    with pytest.raises(BadVideoError) as refused:
        judge(data, {"2": save(format="mp4", codec="h264")})
    assert why in refused.value.details


def test_a_gif_is_a_film_that_goes_into_no_copy(judge):
    data = gif(3)
    assert judge(data, {"2": save(format="mp4")}).frames == 3
    with pytest.raises(BadVideoError):
        judge(data, {"2": save()})


SURROUND = sound("flac", "flac", layout="5.1")
QUAD = sound("flac", "flac", layout="4.0")
SAVERS = ["SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "PreviewAudio", "SaveAudioAdvanced"]


def load_audio(*more, class_type="LoadAudio"):
    graph = {"1": node(class_type, audio="film.bin")}
    for at, each in enumerate(more, 2):
        graph[str(at)] = each
    return graph


@pytest.mark.parametrize("saver", SAVERS)
def test_a_sound_of_many_channels_that_is_saved_as_noise_is_refused(judge, saver):
    assert judge(SURROUND, load_audio()).seconds == pytest.approx(0.5, abs=0.1)
    assert judge(sound("flac", "flac"), load_audio(node(saver, audio=["1", 0]))).seconds
    for data in (SURROUND, QUAD):
        with pytest.raises(BadAudioError) as refused:
            judge(data, load_audio(node("AudioAdjustVolume", audio=["1", 0]), node(saver, audio=["2", 0])))
        assert "send it in stereo" in refused.value.details
    assert judge(SURROUND, load_audio(node("SomeMixer", audio=["1", 0]), node(saver, audio=["2", 0]))).seconds


def test_a_films_sound_of_many_channels_is_refused_where_it_is_saved_alone(judge):
    data = film("mp4", "h264", layout="5.1")
    assert judge(data, {"2": save()}).frames == 12
    parts = node("GetVideoComponents", video=["1", 0])
    with pytest.raises(BadVideoError):
        judge(data, {"2": parts, "3": node("SaveAudio", audio=["2", 1])})


def test_a_film_is_made_with_as_many_channels_as_its_encoder_gets(judge):
    made = (node("CreateVideo", images=["9", 0], fps=24, audio=["1", 0]), node("SaveVideo", video=["2", 0]))
    with pytest.raises(BadAudioError):
        judge(QUAD, load_audio(*made))
    with pytest.raises(BadAudioError):
        judge(SURROUND, load_audio(*made))  # 0.3.64
    judge.host.parts = KNOWS_SURROUND
    assert judge(SURROUND, load_audio(*made)).seconds


@pytest.mark.parametrize("loader", ["LoadAudio", "VHS_LoadAudioUpload"])
def test_a_rate_that_the_encoder_lacks_is_refused(judge, loader):
    data = sound("wav", "pcm_s16le", rate=96_000)
    for saver in ("SaveAudio", "SaveAudioOpus"):
        assert judge(data, load_audio(node(saver, audio=["1", 0]), class_type=loader)).seconds
    with pytest.raises(BadAudioError) as refused:
        judge(data, load_audio(node("SaveAudioMP3", audio=["1", 0]), class_type=loader))
    assert "96000 samples a second" in refused.value.details
