"""Every file that a loader will read is opened before there is a job."""

import bz2
import gzip
import io
import random
import wave
import zipfile

import av
import numpy as np
import pytest
from PIL import Image
from unit.fakes import FakeHost

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import BadAudioError, BadImageError, BadVideoError
from comfyui_guarded.guard.faces import loaded as loaded_files
from comfyui_guarded.guard.faces.loaded import LoadedFiles
from comfyui_guarded.guard.graph import Declared, Names
from comfyui_guarded.guard.host import Folders

CLASSES = {
    "LoadImage": ("image", (("IMAGE", "IMAGE"), ("MASK", "MASK"))),
    "LoadVideo": ("file", (("VIDEO", "VIDEO"),)),
    "VHS_LoadVideo": ("video", (("IMAGE", "IMAGE"), ("INT", "frame_count"))),
    "LoadAudio": ("audio", (("AUDIO", "AUDIO"),)),
    "VHS_LoadAudio": ("audio", (("AUDIO", "audio"),)),
    "GuardedLoadSound": ("video", (("AUDIO", "audio"),)),
    "Load3D": ("model_file", (("MESH", "MESH"),)),
    "Load3DOfNow": ("model_file", (("IMAGE", "image"), ("STRING", "mesh_path"), ("VIDEO", "recording_video"))),
    "Load3DView": ("image", (("IMAGE", "image"), ("VIDEO", "recording_video"))),
}
#: Earlier versions' LoadImage, and that of later ones.
CLASSES["LoadImageByPillow"] = CLASSES["LoadImageByLibav"] = CLASSES["LoadImage"]
OPENERS = {"LoadImageByPillow": "pillow", "LoadImageByLibav": "libav", "LoadVideo": "libav", "LoadAudio": "libav"}


class Host(FakeHost):
    def __init__(self, folder):
        super().__init__()
        self.places = Folders(folder / "output", folder / "temp", folder / "input")

    def declaration(self, class_type):
        name, outputs = CLASSES[class_type]
        return Declared({name: "COMBO"}, outputs, opens_with=OPENERS.get(class_type, ""))

    def file_inputs(self, class_type):
        return {CLASSES[class_type][0]: Names.FILE} if class_type in CLASSES else {}


def jpeg(width=640, height=480, **options):
    noise = np.random.default_rng(7).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def film(frames=12, form="mp4", sound=False):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        codec = {"mp4": "mpeg4", "avi": "mpeg4", "mpegts": "mpeg4", "flv": "flv"}.get(form, "libvpx")
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("aac", rate=44100) if sound else None
        for at in range(frames):
            picture = np.full((48, 64, 3), at * 10 % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
        if voice is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), "fltp", "stereo")
            samples.sample_rate = 44100
            container.mux(voice.encode(samples))
            container.mux(voice.encode())
    return buffer.getvalue()


def bitmap(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "BMP")
    return buffer.getvalue()


def eight_bits():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(8000)
        sound.writeframes(bytes(range(250)) * 32)
    return buffer.getvalue()


def tone(seconds=2):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\1\2" * 8000 * seconds)
    return buffer.getvalue()


def gif(frames):
    buffer = io.BytesIO()
    pictures = [Image.new("L", (32, 16), at * 20) for at in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def pages(count):
    buffer = io.BytesIO()
    first, *others = (Image.new("L", (32, 16), at * 20) for at in range(count))
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def picture(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "green").save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def opened(tmp_path):
    """Open one file as the loader of a class would."""
    host = Host(tmp_path)
    loaded = LoadedFiles(host)

    def open_file(class_type, data, name="file.bin"):
        folder = host.folders().input
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        graph = {"7": {"class_type": class_type, "inputs": {CLASSES[class_type][0]: name}}}
        return loaded.open_all(loaded.list_files(graph, None)).media.get("7")

    return open_file


def line(width, height):
    """Of one bit a pixel: a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


ON_ITS_SIDE = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
FAKE_HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 500


@pytest.mark.parametrize(
    ("class_type", "data", "error"),
    [
        ("LoadImage", FAKE_HEIC, BadImageError),
        ("LoadImage", b"These are words, and no picture.", BadImageError),
        ("LoadImage", jpeg(quality=95)[:3000], BadImageError),
        ("LoadImage", b"", BadImageError),
        ("LoadImage", tone(), BadImageError),
        ("LoadVideo", b"no film", BadVideoError),
        ("LoadVideo", b"", BadVideoError),
        ("LoadVideo", film()[:300], BadVideoError),
        ("LoadVideo", tone(), BadVideoError),
        ("VHS_LoadVideo", jpeg()[:3000], BadImageError),
        ("LoadAudio", b"no sound", BadAudioError),
        ("LoadAudio", film(), BadAudioError),
        ("LoadAudio", tone()[:30], BadAudioError),
        ("LoadAudio", eight_bits(), BadAudioError),
        ("LoadImageByLibav", bitmap(3, 5), BadImageError),
        ("LoadImageByLibav", bitmap(40, 15), BadImageError),
        ("LoadImageByLibav", line(6_000_000, 1), BadImageError),
        ("GuardedLoadSound", b"no film", BadVideoError),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_loader_cannot_read_is_refused_by_kind(opened, class_type, data, error):
    with pytest.raises(error) as caught:
        opened(class_type, data)
    assert caught.value.extra_info["node_id"] == "7"
    assert caught.value.extra_info["input"] == CLASSES[class_type][0]


@pytest.mark.parametrize(
    ("class_type", "data", "media"),
    [
        ("LoadImage", jpeg(640, 480), Media(640, 480)),
        ("LoadImage", jpeg(640, 480, exif=ON_ITS_SIDE), Media(480, 640)),
        ("LoadImage", gif(5), Media(32, 16, 5)),
        ("LoadImage", pages(5), Media(32, 16, 5)),
        ("LoadImage", picture("TGA"), Media(32, 32)),
        ("LoadImage", picture("ICO"), Media(32, 32)),
        ("LoadImage", picture("PCX"), Media(32, 32)),
        ("LoadImage", film(), Media(64, 48, 12, 1.0, 12.0)),
        ("LoadVideo", film(), Media(64, 48, 12, 1.0, 12.0)),
        ("VHS_LoadVideo", film(form="avi"), Media(64, 48, 12, 1.0, 12.0)),
        ("VHS_LoadVideo", gif(5), Media(32, 16, 5)),
        ("LoadAudio", tone(2), Media(seconds=2.0, samples=16_000)),
        ("VHS_LoadAudio", eight_bits(), Media(seconds=1.0, samples=8_000)),
        ("LoadImageByPillow", bitmap(3, 5), Media(3, 5)),
        ("LoadImageByPillow", line(6_000_000, 1), Media(6_000_000, 1)),
        ("LoadImageByLibav", bitmap(17, 16), Media(17, 16)),
        ("LoadImageByLibav", bitmap(32, 3), Media(32, 3)),
        ("Load3D", b"no model", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_it_can_read_says_how_large_it_is(opened, class_type, data, media):
    assert opened(class_type, data) == media


def test_a_film_with_sound_is_a_sound_too(opened):
    assert opened("LoadAudio", film(sound=True)).seconds == pytest.approx(1.0, abs=0.1)


def test_what_has_changed_is_looked_at_again(opened):
    assert opened("LoadImage", jpeg(640, 480)) == Media(640, 480)
    assert opened("LoadImage", jpeg(320, 240)) == Media(320, 240)


def test_a_folder_counts_as_its_pictures(opened, tmp_path):
    host = Host(tmp_path)
    folder = host.folders().input / "frames"
    folder.mkdir(parents=True)
    for at in range(3):
        (folder / f"{at}.jpg").write_bytes(jpeg(64, 32))
    loaded = LoadedFiles(host)
    graph = {"7": {"class_type": "LoadImage", "inputs": {"image": "frames"}}}
    assert loaded.open_all(loaded.list_files(graph, None)).media == {"7": Media(64, 32, 3)}


def test_what_no_output_needs_is_not_opened(tmp_path):
    loaded = LoadedFiles(Host(tmp_path))
    graph = {
        "7": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
        "8": {"class_type": "Load3D", "inputs": {}},
    }
    assert [one.node_id for one in loaded.list_files(graph, ["7"])] == ["7"]
    assert loaded.list_files(graph, ["8"]) == []


def with_exif(exif, form="PNG", many=False):
    more = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "blue")]} if many else {}
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, form, exif=exif, **more)
    return buffer.getvalue()


TURNED = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"


@pytest.mark.parametrize("class_type", ["LoadImage", "LoadImageByPillow"])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("many", [False, True])
def test_a_picture_whose_exif_its_loader_cannot_read_is_refused(opened, class_type, form, many):
    for good in (TURNED, b""):
        opened(class_type, with_exif(good, form, many))
    for broken in (b"junkjunk", b"II*\0"):
        with pytest.raises(BadImageError):
            opened(class_type, with_exif(broken, form, many))


@pytest.mark.parametrize("broken", [b"junkjunk", b"II*\0"])
def test_a_picture_whose_exif_libav_cannot_read_goes_to_pillow_which_cannot_either(opened, broken):
    opened("LoadImageByLibav", with_exif(TURNED))
    with pytest.raises(BadImageError):
        opened("LoadImageByLibav", with_exif(broken))
    opened("LoadImageByLibav", with_exif(broken, "JPEG"))  # both of which take it without


def test_a_scene_is_no_film_though_its_loader_gives_one(opened):
    assert opened("Load3DOfNow", b"glTF" + bytes(100)) is None


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("one.npy", "two.npy"):
            archive.writestr(name, data)
    return buffer.getvalue()


def in_members(data):
    """As Python's gzip reads it: one behind the other."""
    return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zipped, in_members])
def test_what_unpacks_to_gigabytes_is_refused_whatever_it_holds(monkeypatch, opened, pack):
    monkeypatch.setattr(loaded_files, "_MOST_UNPACKED", 1 << 20)
    assert opened("Load3D", pack(bytes(1 << 18))) is None
    assert opened("Load3D", pack(random.Random(1).randbytes(1 << 18))[:-9]) is None
    with pytest.raises(BadImageError) as refused:
        opened("Load3D", pack(bytes((1 << 20) + 1)))
    assert refused.value.extra_info["node_id"] == "7"
    assert "unpacks" in refused.value.details


def test_a_picture_of_a_scene_that_is_not_there_is_refused(tmp_path):
    loaded = LoadedFiles(Host(tmp_path))
    graph = {"7": {"class_type": "Load3DView", "inputs": {"image": {"image": "gone.png", "mask": ""}}}}
    with pytest.raises(BadImageError) as refused:
        loaded.open_all(loaded.list_files(graph, None))
    assert refused.value.extra_info["input"] == "image.image"


DRAWN = {"image": "shown.png", "mask": "mask.png", "normal": "normal.png", "recording": "turn.mp4", "camera_info": {}}


@pytest.mark.parametrize(
    ("broken", "error"),
    [("", None), ("shown.png", BadImageError), ("normal.png", BadImageError), ("turn.mp4", BadVideoError)],
)
def test_what_the_editor_has_drawn_of_a_scene_is_opened(tmp_path, broken, error):
    host = Host(tmp_path)
    host.folders().input.mkdir(parents=True)
    for name in ("shown.png", "mask.png", "normal.png", "turn.mp4"):
        data = film() if name == "turn.mp4" else picture("PNG")
        (host.folders().input / name).write_bytes(data[:40] if name == broken else data)
    loaded = LoadedFiles(host)
    graph = {"7": {"class_type": "Load3DView", "inputs": {"image": DRAWN}}}
    files = loaded.list_files(graph, None)
    assert len(files) == 4
    if error is None:
        assert loaded.open_all(files).media["7"].frames == 12, "the larger of what it loads counts"
    else:
        with pytest.raises(error):
            loaded.open_all(files)


@pytest.mark.parametrize("name", ['film.mp4"', "film.mp4 ", '"film.mp4', "film.mp4\t"])
def test_a_name_that_a_loader_takes_for_another_is_refused(opened, name):
    with pytest.raises(BadVideoError) as caught:
        opened("VHS_LoadVideo", film(), name)
    assert "a blank or a quote" in caught.value.details
