"""A picture whose data end before its last row is damaged, whatever its file's end mark says."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from comfyui_guarded.guard.errors import BadImageError
from comfyui_guarded.guard.faces.photos import PhotoLimits, decode
from comfyui_guarded.guard.results import image_files
from comfyui_guarded.guard.results.budget import Budget, BudgetFile
from comfyui_guarded.guard.results.containers import BrokenFileError, sniff
from comfyui_guarded.guard.settings import ResultsSettings

MODES = ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"]
#: Colours over which pictures are drawn, and others.
PLAIN = [0, 163, 60, 255]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def admit(data):
    return decode(data, PhotoLimits(), at_least=1)


def sell(data):
    settings = ResultsSettings()
    budget = Budget(settings)
    return image_files.check(BudgetFile(io.BytesIO(data), budget), sniff(data[:32]), settings, budget)


def noise(mode, size=(40, 32)):
    levels = np.random.default_rng(3).integers(0, 255, (size[1], size[0]), np.uint8)
    image = Image.fromarray(levels)
    return Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)


def write(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def grey_png(levels, rows=None, interlaced=False):
    """A PNG of eight bits that has so many rows less than it says; of an interlaced one the last passes' rows."""
    parts = [levels[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [levels]
    lines = [b"\0" + line.tobytes() for part in parts for line in part if line.size]
    height, width = levels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, int(interlaced))
    data = zlib.compress(b"".join(lines[: len(lines) - rows] if rows else lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def taller(data, form, by=8):
    """The same file, whose header says that it has so many rows more."""
    data = bytearray(data)
    if form == "PNG":
        data[20:24] = struct.pack(">I", int.from_bytes(data[20:24], "big") + by)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif form == "GIF":
        at = data.index(b",", 13 + 3 * 256) + 7
        for place in (8, at):
            data[place : place + 2] = struct.pack("<H", int.from_bytes(data[place : place + 2], "little") + by)
    else:
        at = next(at for mark in (b"\xff\xc0", b"\xff\xc2") if (at := data.find(mark)) > 0) + 5
        data[at : at + 2] = struct.pack(">H", int.from_bytes(data[at : at + 2], "big") + by)
    return bytes(data)


CUT = {
    **{f"PNG {mode}": taller(write(noise(mode), "PNG"), "PNG") for mode in MODES},
    "PNG without a transparent colour": taller(write(noise("P"), "PNG", transparency=7), "PNG"),
    "PNG whose last row is missing": grey_png(np.asarray(noise("L")), 1),
    "interlaced": grey_png(np.asarray(noise("L")), 5, interlaced=True),
    "interlaced, the last row of the last pass": grey_png(np.asarray(noise("L")), 1, interlaced=True),
    "GIF": taller(write(noise("P"), "GIF"), "GIF"),
    "transparent GIF": taller(write(noise("P"), "GIF", transparency=7), "GIF"),
    "JPEG": taller(write(noise("RGB", (256, 256)), "JPEG"), "JPEG", 128),
    "grey JPEG": taller(write(noise("L", (256, 256)), "JPEG"), "JPEG", 128),
}


@pytest.mark.parametrize("name", CUT)
def test_a_picture_with_fewer_rows_than_it_says_is_refused_and_not_sold(name):
    with pytest.raises(BadImageError) as refused:
        admit(CUT[name])
    assert ("before its last row" in refused.value.details) == ("GIF" not in name)
    with pytest.raises((BrokenFileError, OSError)):
        sell(CUT[name])


@pytest.mark.parametrize("mode", MODES)
def test_whole_pictures_of_each_kind_pass(mode):
    for image in (noise(mode), noise(mode, (1, 1)), noise(mode, (7, 1)), noise(mode, (1, 9))):
        data = write(image, "PNG")
        assert (admit(data).width, sell(data).height) == image.size
        assert admit(data).image.tobytes() == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("level", PLAIN)
def test_whole_pictures_of_any_one_colour_pass(level):
    plain = Image.new("L", (64, 48), level)
    color = Image.new("RGBA", (64, 48), (level, 91, 201, 117))
    for data in (
        *(write(plain, form) for form in ("PNG", "GIF", "JPEG")),
        *(write(color, form) for form in ("PNG", "GIF")),
        write(color.convert("RGB"), "JPEG", progressive=True),
        write(plain.convert("P"), "GIF", transparency=level),
        grey_png(np.asarray(plain), interlaced=True),
        grey_png(np.asarray(noise("L", (3, 2))), interlaced=True),
    ):
        assert admit(data).width == sell(data).width


def test_a_photo_with_a_white_frame_passes():
    framed = Image.new("RGB", (300, 300), "white")
    framed.paste(noise("RGB", (200, 200)), (50, 50))
    for options in ({}, {"progressive": True}, {"quality": 20, "subsampling": 0}, {"restart_marker_rows": 1}):
        assert admit(write(framed, "JPEG", **options)).height == 300
    assert admit(write(framed.convert("CMYK"), "JPEG")).height == 300
