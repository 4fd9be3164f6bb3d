"""A file of many pictures counts as all of them, though not all are decoded; what nobody can count is refused."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from policy.many_files import make_many
from policy.test_loaded import Host, film, opened, picture  # noqa: F401
from policy.test_loaded_films import make

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import BadImageError, BadVideoError
from comfyui_guarded.guard.faces import films, frames, loaded, pages
from comfyui_guarded.guard.faces.loaded import LoadedFiles
from comfyui_guarded.guard.faces.photos import PhotoLimits

BOTH = ("LoadImageByLibav", "LoadImageByPillow")


@pytest.fixture
def few(monkeypatch):
    """Let some pictures of 64 × 64 be as much as is decoded."""
    for module in (frames, pages):
        monkeypatch.setattr(module, "MOST_PIXELS", 50_000)
    monkeypatch.setattr(frames, "MOST_OF_FILM", 50_000)
    monkeypatch.setattr(frames, "LEAST_PIXELS", 1)


def many(how, form, runs=((64, 64, 40),), says=None):
    return make_many({"how": how, "form": form, "runs": runs, "tail": "", "says": says})[1]


@pytest.mark.parametrize("class_type", BOTH)
@pytest.mark.parametrize("form", ["GIF", "PNG"])
def test_pictures_on_one_canvas_count_though_they_are_not_decoded(opened, few, class_type, form):  # noqa: F811
    assert opened(class_type, many("moving", form)) == Media(64, 64, 40)


def test_a_header_does_not_tell_how_many_there_are(opened, few):  # noqa: F811
    for says in (1, 2, 9999):
        assert opened("LoadImageByLibav", many("moving", "PNG", says=says)) == Media(64, 64, 40)


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM"])
def test_pictures_that_follow_each_other_are_decoded_or_refused(opened, few, form):  # noqa: F811
    assert opened("LoadImageByLibav", many("row", form, ((64, 64, 9),))) == Media(64, 64, 9)
    with pytest.raises(BadImageError) as caught:
        opened("LoadImageByLibav", many("row", form))
    assert "40 pictures" in caught.value.details
    with pytest.raises(BadImageError):  # small ones, and a large one behind them
        opened("LoadImageByLibav", many("row", form, ((8, 8, 9), (512, 512, 2))))


def test_pages_are_decoded_or_refused(opened, few):  # noqa: F811
    assert opened("LoadImageByPillow", many("moving", "TIFF", ((64, 64, 9),))) == Media(64, 64, 9)
    for runs in (((64, 64, 40),), ((8, 8, 9), (320, 320, 9))):
        with pytest.raises(BadImageError):
            opened("LoadImageByPillow", many("moving", "TIFF", runs))


def test_a_phones_photo_is_one_picture_and_a_row_of_photos_is_many(opened, monkeypatch):  # noqa: F811
    data = many("moving", "MPO", ((64, 64, 1), (32, 32, 2)))
    assert opened("LoadImageByPillow", data) == Media(64, 64)
    monkeypatch.setattr(pages, "_BESIDE", 2)
    assert opened("LoadImageByPillow", data, "other.bin") == Media(64, 64, 3)


@pytest.mark.parametrize("class_type", BOTH)
def test_more_pictures_than_any_film_has_are_refused(opened, monkeypatch, class_type):  # noqa: F811
    for module in (frames, loaded, pages):
        monkeypatch.setattr(module, "MOST_PICTURES", 20)
    assert opened(class_type, many("moving", "GIF", ((16, 16, 20),))).frames == 20
    with pytest.raises(BadImageError):
        opened(class_type, many("moving", "GIF", ((16, 16, 21),)))


def test_a_picture_behind_the_first_is_not_larger_than_one_may_be(tmp_path):
    host = Host(tmp_path)
    host.folders().input.mkdir(parents=True)
    judge = LoadedFiles(host, PhotoLimits(max_pixels=5_000))
    for class_type, data in (
        ("LoadImageByPillow", many("moving", "TIFF", ((64, 64, 1), (96, 96, 1)))),
        ("LoadImageByLibav", many("row", "PNG", ((64, 64, 1), (96, 96, 1)))),
        ("LoadImageByPillow", grown_gif(96)),
    ):
        (host.folders().input / "file").write_bytes(data)
        graph = {"7": {"class_type": class_type, "inputs": {"image": "file"}}}
        with pytest.raises(BadImageError):
            judge.open_all(judge.list_files(graph, None))


def grown_gif(side):
    """Its second picture goes beyond the canvas, which Pillow makes larger for it."""
    data = b"GIF89a" + struct.pack("<HH", 64, 64) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    for at in (0, side - 1):
        data += b"\x2c" + struct.pack("<HHHH", at, at, 1, 1) + b"\0" + b"\x02\x02\x4c\x01\0"
    return data + b"\x3b"


def test_a_canvas_that_grows_counts_as_it_is_at_last(opened):  # noqa: F811
    assert opened("LoadImageByPillow", grown_gif(200)) == Media(200, 200, 2)


@pytest.mark.parametrize("class_type", ["LoadVideo", "VHS_LoadVideo"])
def test_a_long_film_counts_as_its_packets_whatever_its_header_says(opened, few, class_type):  # noqa: F811
    data = bytearray(film(frames=60))
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        at = data.find(box) + 4 + offset
        data[at : at + 4] = (1).to_bytes(4, "big")
    assert opened(class_type, bytes(data)).frames == 60


def test_a_film_that_grows_behind_what_is_decoded_is_refused(opened, few):  # noqa: F811
    data = many("pieces", 0, ((64, 64, 24), (320, 320, 24)))
    with pytest.raises(BadVideoError) as caught:
        opened("LoadVideo", data)
    assert "several sizes" in caught.value.details


def test_what_goes_on_behind_all_that_is_looked_at_is_refused(opened, few, monkeypatch):  # noqa: F811
    data = make(sizes=((64, 48),), each=60)  # each picture stands alone
    assert opened("LoadVideo", data).frames == 60
    monkeypatch.setattr(frames, "MOST_BEHIND", 50_000)
    with pytest.raises(BadVideoError) as caught:
        opened("LoadVideo", data, "other.bin")
    assert "not" in caught.value.details or "no more" in caught.value.details


def test_a_film_of_too_many_packets_is_refused(opened, monkeypatch):  # noqa: F811
    monkeypatch.setattr(films, "_MOST_PACKETS", 30)
    assert opened("LoadVideo", film(frames=20)).frames == 20
    with pytest.raises(BadVideoError) as caught:
        opened("LoadVideo", film(frames=60))
    assert "packets" in caught.value.details


def test_a_folder_counts_as_its_largest_picture(tmp_path):
    host = Host(tmp_path)
    folder = host.folders().input / "frames"
    folder.mkdir(parents=True)
    for at, side in enumerate((8, 200, 8)):
        (folder / f"{at}.png").write_bytes(png(side))
    judge = LoadedFiles(host)
    graph = {"7": {"class_type": "LoadImage", "inputs": {"image": "frames"}}}
    assert judge.open_all(judge.list_files(graph, None)).media == {"7": Media(200, 200, 3)}


def png(side):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_with_a_broken_one_behind_it_is_no_film(opened):  # noqa: F811
    """LoadVideo of earlier versions fails on it; LoadImage passes over it."""
    data = picture("PNG")
    broken = data + data[: len(data) // 2]
    assert opened("LoadVideo", data).width == opened("LoadImageByLibav", broken).width == 32
    with pytest.raises(BadVideoError):
        opened("LoadVideo", broken)
