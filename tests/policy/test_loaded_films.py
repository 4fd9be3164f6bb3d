"""A film is opened to its end: what is damaged in the middle, or what its loader cannot put together, is refused."""

import io
import struct
import sys
import wave
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from policy.test_loaded import CLASSES, OPENERS, film, opened  # noqa: F401

from comfyui_guarded.guard.errors import BadAudioError, BadVideoError

CLASSES["LoadVideoByOpenCV"] = CLASSES["LoadVideoByFFmpeg"] = ("video", (("IMAGE", "IMAGE"), ("INT", "frame_count")))
CLASSES["LoadAudioByFFmpeg"] = CLASSES["VHS_LoadAudio"]
OPENERS |= {"LoadVideoByOpenCV": "opencv", "LoadVideoByFFmpeg": "ffmpeg", "LoadAudioByFFmpeg": "ffmpeg"}
ALL = ("LoadVideo", "VHS_LoadVideo", "LoadVideoByOpenCV")


def make(sizes=((64, 48),), each=12, codec="mjpeg", form="matroska", times=1):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1)
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p" if codec == "mjpeg" else "yuv420p"
        at = 0
        for width, height in sizes:
            coder = av.CodecContext.create(codec, "w")
            coder.width, coder.height, coder.pix_fmt, coder.time_base = width, height, stream.pix_fmt, Fraction(1, 12)
            for _ in range(each):
                picture = av.VideoFrame.from_ndarray(noise.integers(0, 255, (height, width, 3), np.uint8))
                for packet in coder.encode(picture.reformat(format=stream.pix_fmt)):
                    packet.stream, packet.time_base = stream, Fraction(1, 1000)
                    packet.pts = packet.dts = at * times * 1000 // 12
                    container.mux(packet)
                    at += 1
    return buffer.getvalue()


@pytest.mark.parametrize("class_type", ALL)
@pytest.mark.parametrize("at", [0.4, 0.6])
def test_a_film_that_is_damaged_in_the_middle_is_refused(opened, class_type, at):  # noqa: F811
    data = film(frames=60)
    assert opened(class_type, data).frames == 60
    begin = data.find(b"mdat") + int((len(data) - data.find(b"mdat")) * at)
    count = len(data) // 5
    broken = data[:begin] + bytes(byte ^ 0xFF for byte in data[begin : begin + count]) + data[begin + count :]
    with pytest.raises(BadVideoError):
        opened(class_type, broken)


@pytest.mark.parametrize(
    ("class_type", "passes"), [("LoadVideo", False), ("LoadVideoByOpenCV", False), ("VHS_LoadVideo", True)]
)
def test_pictures_of_several_sizes_pass_where_the_loader_makes_them_one(opened, class_type, passes):  # noqa: F811
    data = make(sizes=((64, 48), (128, 96)))
    if passes:
        assert opened(class_type, data).frames >= 24
        return
    with pytest.raises(BadVideoError, match=r"film") as caught:
        opened(class_type, data)
    assert "several sizes" in caught.value.details


def test_a_film_counts_as_its_pictures_whatever_its_header_says(opened):  # noqa: F811
    data = bytearray(film(frames=60))
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        at = data.find(box) + 4 + offset
        data[at : at + 4] = (1).to_bytes(4, "big")
    assert opened("LoadVideo", bytes(data)).frames == 60


def test_what_fills_gaps_gets_a_picture_for_every_moment(opened):  # noqa: F811
    data = make(times=10)
    assert opened("LoadVideo", data).frames == 12
    assert opened("VHS_LoadVideo", data).frames == 12
    assert opened("LoadVideoByFFmpeg", data).frames >= 10 * 11


@pytest.mark.parametrize(
    ("turn", "passes"),
    [
        ((1, 0, 0, 1), True),
        ((-1, 0, 0, -1), True),
        ((0, 1, -1, 0), False),
        ((0, -1, 1, 0), False),
        ((0, 1, 1, 0), False),
    ],
)
def test_a_film_turned_by_a_quarter_is_refused_where_ffmpegs_pictures_are_taken_for_those_of_its_size(
    opened,  # noqa: F811
    turn,
    passes,
):
    data = bytearray(film())
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *(each << 16 for each in (*turn[:2], 0, *turn[2:], 0, 0, 0)), 1 << 30)
    for class_type in ("LoadVideo", "VHS_LoadVideo"):
        assert opened(class_type, bytes(data)).frames == 12
    if passes:
        assert opened("LoadVideoByFFmpeg", bytes(data)).frames == 12
        return
    with pytest.raises(BadVideoError) as caught:
        opened("LoadVideoByFFmpeg", bytes(data))
    assert "turned by a quarter" in caught.value.details


def test_a_camcorders_stream_of_packets_with_times_before_them_is_a_film(opened):  # noqa: F811
    stream = film(form="mpegts")
    packets = [stream[at : at + 188] for at in range(0, len(stream), 188)]
    data = b"".join((at * 3000).to_bytes(4, "big") + packet for at, packet in enumerate(packets))
    assert opened("LoadVideo", stream).frames == 12
    assert opened("LoadVideo", data).frames == 12
    with pytest.raises(BadVideoError):
        opened("LoadVideo", b"????G" + bytes(1000))


def test_what_libav_would_not_take_for_a_film_by_itself_is_refused(opened):  # noqa: F811
    data = film(form="flv")
    assert opened("LoadVideo", data).frames == 12
    with pytest.raises(BadVideoError):
        opened("LoadVideo", data[:5] + bytes(4) + data[9:])


def test_a_sound_of_more_channels_than_its_loader_takes_is_refused(opened):  # noqa: F811
    for channels in (1, 2, 4, 6):
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as sound:
            sound.setnchannels(channels)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(b"\1\2" * 8000 * channels)
        assert opened("LoadAudio", buffer.getvalue()).samples == 8000 * channels
        if channels <= 2:
            assert opened("LoadAudioByFFmpeg", buffer.getvalue()).seconds == 1
            continue
        with pytest.raises(BadAudioError):
            opened("LoadAudioByFFmpeg", buffer.getvalue())


class Capture:
    """OpenCV's, of a film with so many pictures."""

    def __init__(self, count, rate=12.0):
        self.left, self.rate = count, rate

    def isOpened(self):
        return self.left > 0

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def get(self, _what):
        return self.rate

    def retrieve(self):
        return True, np.zeros((48, 64, 3), np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize(
    ("count", "rate", "passes"),
    [(12, 12.0, True), (11, 12.0, True), (5, 12.0, False), (0, 12.0, False), (12, 0.0, False)],
)
def test_what_opencv_does_not_read_is_refused_to_loaders_that_use_it(opened, monkeypatch, count, rate, passes):  # noqa: F811
    module = SimpleNamespace(VideoCapture=lambda _path: Capture(count, rate), CAP_PROP_FPS=5)
    monkeypatch.setitem(sys.modules, "cv2", module)
    assert opened("LoadVideo", film()).frames == 12
    if passes:
        assert opened("LoadVideoByOpenCV", film()).frames == count
        return
    with pytest.raises(BadVideoError) as caught:
        opened("LoadVideoByOpenCV", film())
    assert "OpenCV" in caught.value.details


def test_titles_that_a_loader_of_comfyui_fails_on_are_refused_there(opened):  # noqa: F811
    buffer = io.BytesIO(film())
    written = io.BytesIO()
    with av.open(buffer) as source, av.open(written, "w", format="matroska") as container:
        container.metadata["title"] = "QQQQQQQQ"
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    data = written.getvalue().replace(b"QQQQQQQQ", b"\x89" * 8)
    assert opened("VHS_LoadVideo", data).frames == 12
    try:
        av.open(io.BytesIO(data)).close()
    except UnicodeDecodeError:
        with pytest.raises(BadVideoError) as caught:
            opened("LoadVideo", data)
        assert "titles" in caught.value.details


def test_pieces_behind_each_other_are_as_long_as_all_of_them_where_ffmpeg_reads_them(opened):  # noqa: F811
    one = make(codec="mpeg4", form="mpegts")
    alone, three = opened("LoadVideoByFFmpeg", one), opened("LoadVideoByFFmpeg", one * 3, "three")
    assert three.seconds == pytest.approx(3 * alone.seconds, rel=0.1)
    assert three.frames >= 3 * alone.frames - 2
