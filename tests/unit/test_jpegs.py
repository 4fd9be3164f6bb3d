"""Of a phone's photo the picture stays, byte for byte, and what is behind it goes."""

import hashlib
import io
from pathlib import Path

import numpy as np
import phones
import pytest
from PIL import Image, ImageOps

from comfyui_guarded.guard.files.jpegs import keep_one_picture

PICTURE = phones.jpeg(phones.scene(), exif=phones.held())
PLAIN = phones.jpeg(phones.scene())


def kept(folder: Path, data: bytes) -> bytes:
    """What is left of the file; checks that the answer is its hash, and that nothing else is left behind."""
    path = folder / "photo"
    path.write_bytes(data)
    told = keep_one_picture(path)
    left = path.read_bytes()
    assert told == ("" if left == data else hashlib.sha256(left).hexdigest())
    assert [each.name for each in folder.iterdir()] == ["photo"]
    return left


@pytest.mark.parametrize("name", phones.PHOTOS)
def test_a_phones_photo_is_one_picture_afterwards(tmp_path, name):
    whole = phones.PHOTOS[name]()
    left = kept(tmp_path, whole)
    with Image.open(io.BytesIO(left)) as image, Image.open(io.BytesIO(whole)) as before:
        assert (image.format, getattr(image, "n_frames", 1)) == ("JPEG", 1)
        assert image.getexif() == before.getexif()
        upright, expected = ImageOps.exif_transpose(image), ImageOps.exif_transpose(before)
        np.testing.assert_array_equal(np.asarray(upright), np.asarray(expected))
    assert left.endswith(b"\xff\xd9")
    assert left.count(b"\xff\xd8\xff") == 1


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("Ultra HDR", PICTURE),
        ("Apple's HDR", PICTURE),
        ("without a list", PICTURE),
        ("motion photo", PICTURE),
        ("motion photo in HDR", PICTURE),
        ("zeros behind", PICTURE),
    ],
)
def test_what_is_left_is_the_picture_byte_for_byte(tmp_path, name, picture):
    assert kept(tmp_path, phones.PHOTOS[name]()) == picture


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        PICTURE,
        phones.jpeg(phones.scene(), progressive=True),
        phones.jpeg(phones.scene().convert("CMYK")),
        phones.jpeg(phones.scene().convert("L")),
        phones.jpeg(phones.scene(), restart_marker_rows=1),
        phones.jpeg(phones.scene(), icc_profile=b"\xff\xd9 any profile \xff\xd8\xff" * 9000),
        phones.jpeg(phones.scene(), comment=b"\xff\xd9\xff\xd8"),
        phones.put_in(PLAIN, phones.xmp('<rdf:Description dc:creator="somebody"/>')),
        phones.put_in(PLAIN, phones.segment(0xE1, b"Exif\0\0" + PLAIN)),  # a thumbnail
    ],
)
def test_a_picture_that_is_alone_stays_as_it_is(tmp_path, data):
    assert kept(tmp_path, data) == data


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_what_breaks_off_within_its_picture_stays_as_it_is(tmp_path, share):
    data = phones.ultra_hdr()
    cut = data[: 3 + int(data.index(b"\xff\xd9\xff\xd8") * share)]
    assert kept(tmp_path, cut) == cut


def test_other_words_about_the_picture_stay(tmp_path):
    about = phones.xmp('<rdf:Description dc:creator="somebody"/>')
    profile = phones.segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(200))
    whole = phones.put_in(phones.ultra_hdr(), profile, about)
    assert kept(tmp_path, whole) == phones.put_in(PICTURE, profile, about)


def test_more_segments_than_anybody_writes_are_left_to_the_door(tmp_path):
    data = phones.put_in(PLAIN, *[phones.segment(0xFE, b"") for _ in range(2500)]) + PLAIN
    assert kept(tmp_path, data) == data
