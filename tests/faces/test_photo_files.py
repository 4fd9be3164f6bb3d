"""Pictures as users send them, hostile ones included."""

import io
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bounds.judges import MIB, read_peak
from faces.photos import UNDONE_BY_EXIF, jpeg, photo, png
from PIL import Image, ImageFile

from comfyui_guarded.guard.errors import BadImageError
from comfyui_guarded.guard.faces.check import FaceChecker
from comfyui_guarded.guard.faces.pages import count_frames
from comfyui_guarded.guard.faces.photos import PhotoLimits, decode, open_picture, read
from comfyui_guarded.guard.faces.scaling import shrink, shrink_to_rgb, to_rgb
from comfyui_guarded.guard.files import view

LIMITS = PhotoLimits()
ASTRONAUT = "skimage/data/astronaut.png"


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes) -> np.ndarray:
    return open_picture(data, LIMITS, 2_400_000).pixels


def quarters() -> Image.Image:
    """Red, green / blue, white, 40 × 24: every orientation looks different."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20], pixels[:12, 20:] = (255, 0, 0), (0, 255, 0)
    pixels[12:, :20], pixels[12:, 20:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(pixels)


def sixteen_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L"), np.uint16) * 257
    return Image.fromarray(grey)


def floats(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)


def palette_with_transparency(image: Image.Image) -> bytes:
    return saved(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=0)


def animated(image: Image.Image, kind: str) -> bytes:
    rest = Image.new("RGB", image.size, "black")
    return saved(image, kind, save_all=True, append_images=[rest, rest], duration=100)


def psd(image: Image.Image) -> bytes:
    """Without layers, as image programs write it for others."""
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, image.height, image.width, 8, 3)
    return head + bytes(14) + np.asarray(image).transpose(2, 0, 1).tobytes()


def icon(width: int, height: int, picture: bytes) -> bytes:
    """An icon that says what it likes of its picture."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, height, 0, 0, 1, 32, len(picture), 22) + picture


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": png,
    "progressive JPEG": lambda image: saved(image, "JPEG", progressive=True),
    "CMYK JPEG": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "greyscale JPEG": lambda image: saved(image.convert("L"), "JPEG"),
    "JPEG with a trailer": lambda image: jpeg(image) + b"MotionPhoto_Data" * 100,
    "MPO": lambda image: saved(image, "MPO", save_all=True, append_images=[image]),
    "WEBP": lambda image: saved(image, "WEBP"),
    "BMP": lambda image: saved(image, "BMP"),
    "TIFF": lambda image: saved(image, "TIFF"),
    "TIFF of 16 bits": lambda image: saved(sixteen_bits(image), "TIFF"),
    "TIFF of floats": lambda image: saved(floats(image), "TIFF"),
    "PNG of 16 bits": lambda image: saved(sixteen_bits(image), "PNG"),
    "PNG with a palette": lambda image: saved(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "PNG with a palette and transparency": palette_with_transparency,
    "PNG of grey and alpha": lambda image: saved(image.convert("LA"), "PNG"),
    "PNG with alpha": lambda image: saved(image.convert("RGBA"), "PNG"),
    **{kind: partial(saved, kind=kind) for kind in ("TGA", "PCX", "PPM", "JPEG2000", "SGI", "DDS", "DIB")},
    "packed TGA": lambda image: saved(image, "TGA", compression="tga_rle"),
    "PSD": lambda image: psd(image),
    "animated GIF": lambda image: animated(image, "GIF"),
    "animated WEBP": lambda image: animated(image, "WEBP"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_face_is_found_in_every_format(checker: FaceChecker, kind: str) -> None:
    faces = checker.check(FORMATS[kind](photo(ASTRONAUT)))
    assert len(faces.faces) == 1
    assert (faces.width, faces.height) == (512, 512)
    assert faces.faces[0].confidence > 0.8


def test_a_face_is_found_in_an_icon(checker: FaceChecker) -> None:
    faces = checker.check(saved(photo(ASTRONAUT), "ICO"))
    assert (len(faces.faces), faces.width, faces.height) == (1, 256, 256)


@pytest.mark.parametrize("sides", [(20_000, 20_000), (2**31 - 1, 2)])
@pytest.mark.parametrize("kind", ["PNG", "DIB"])
def test_an_icon_is_as_large_as_its_picture_says(kind: str, sides: tuple[int, int]) -> None:
    dib = struct.pack("<IiiHHIIiiII", 40, sides[0], sides[1], 1, 32, 0, 0, 0, 0, 0, 0) + bytes(100)
    picture = bomb(*sides) if kind == "PNG" else dib
    with pytest.raises(BadImageError) as caught:
        shown(icon(16, 16, picture))
    assert caught.value.extra_info["max_pixels"] == LIMITS.max_pixels


@pytest.mark.parametrize("kind", ["EPS", "ICNS"])
def test_what_another_program_would_draw_is_no_picture(kind: str) -> None:
    with pytest.raises(BadImageError):
        shown(saved(photo(ASTRONAUT).resize((128, 128)), kind))


def test_a_face_is_found_in_heic(checker: FaceChecker) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(photo(ASTRONAUT)).save(file, quality=80)
    assert len(checker.check(file.getvalue()).faces) == 1


def test_without_pillow_heif_a_heic_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImageError, match="pillow-heif"):
        shown(b"\0\0\0\x18ftypheic" + bytes(100))


@pytest.mark.parametrize("orientation", UNDONE_BY_EXIF)
def test_a_photo_is_turned_as_its_camera_says(orientation: int) -> None:
    sent = quarters().transpose(UNDONE_BY_EXIF[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for data in (saved(sent, "PNG", exif=exif), saved(sent, "WEBP", lossless=True, exif=exif)):
        upright = open_picture(data, LIMITS, 2_400_000)
        assert (upright.width, upright.height) == (40, 24)
        assert np.array_equal(upright.pixels, np.asarray(quarters()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_broken_exif_data_does_not_spoil_a_photo() -> None:
    data = saved(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert shown(data).shape == (24, 40, 3)


def test_what_is_transparent_is_white() -> None:
    layer = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert (shown(png(layer)) == 255).all()


def test_sixteen_bits_keep_their_brightness() -> None:
    grey = Image.new("L", (10, 10), 100)
    assert abs(int(shown(saved(sixteen_bits(grey), "PNG"))[0, 0, 0]) - 100) <= 1
    assert abs(int(shown(saved(floats(grey), "TIFF"))[0, 0, 0]) - 100) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (4, 4))).mode == "RGB"


def test_a_large_jpeg_is_decoded_small_and_keeps_its_size() -> None:
    data = jpeg(Image.new("RGB", (4000, 3000), "grey"), orientation=6)
    drafted = decode(data, LIMITS, at_least=1000)
    assert (drafted.width, drafted.height) == (3000, 4000)
    assert drafted.image.size == (1500, 2000)
    found = open_picture(data, LIMITS, 1_000_000)
    assert (found.width, found.height) == (3000, 4000)
    assert found.pixels.shape[0] * found.pixels.shape[1] == pytest.approx(1_000_000, rel=0.01)


# What is wrong with a picture.


@pytest.fixture(params=[False, True], ids=["Pillow strict", "Pillow made tolerant"])
def tolerance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Other packs, and ComfyUI for a moment, set this for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    return request.param


STRUCTURED = ["PNG", "progressive JPEG", "CMYK JPEG", "WEBP", "BMP", "TIFF", "animated GIF", "PNG of 16 bits"]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", STRUCTURED)
def test_a_file_that_was_cut_off_is_a_bad_image(tolerance: bool, kind: str, kept: float) -> None:
    data = FORMATS[kind](photo(ASTRONAUT))
    if kind == "animated GIF":
        data = saved(photo(ASTRONAUT), "GIF")
    with pytest.raises(BadImageError):
        shown(data[: int(len(data) * kept)])


def test_a_jpeg_with_a_thumbnail_is_not_taken_for_whole_by_the_thumbnails_end(tolerance: bool) -> None:
    thumbnail = jpeg(quarters())
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0" + bytes(6) + thumbnail
    data = saved(photo(ASTRONAUT), "JPEG", exif=exif)
    assert shown(data).shape == (512, 512, 3)
    with pytest.raises(BadImageError):
        shown(data[: len(exif) + 1000])


def test_a_whole_file_passes_when_pillow_is_tolerant(tolerance: bool) -> None:
    for kind in FORMATS:
        assert shown(FORMATS[kind](quarters())).shape == (24, 40, 3), kind


def test_an_upload_that_was_filled_up_with_zeros_is_a_bad_image(tolerance: bool) -> None:
    data = jpeg(photo(ASTRONAUT))
    with pytest.raises(BadImageError):
        shown(data[: len(data) // 2] + bytes(len(data) // 2))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (13_000, 13_000), (2**31 - 1, 1)])
@pytest.mark.parametrize("pillows_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_a_decompression_bomb_is_a_bad_image(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], pillows_limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    with pytest.raises(BadImageError):
        shown(bomb(*size))


def test_the_error_for_too_many_pixels_says_how_many() -> None:
    with pytest.raises(BadImageError, match="40 × 24 pixels; 100 are allowed") as caught:
        open_picture(png(quarters()), PhotoLimits(max_pixels=100), 1000, "photo.png")
    assert caught.value.extra_info == {"image": "photo.png", "width": 40, "height": 24, "max_pixels": 100}


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(bytes(2000))
    with pytest.raises(BadImageError, match=r"photo\.png has 2000 bytes; 1000 are allowed"):
        read(path, PhotoLimits(max_bytes=1000))
    with pytest.raises(BadImageError, match="1000 are allowed"):
        read(bytes(2000), PhotoLimits(max_bytes=1000))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"II*\0", b"<svg/>",
     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0\0\0\x18ftypheic" + bytes(40), bytes(1000)],
)  # fmt: skip
def test_what_is_no_picture_is_a_bad_image(data: bytes) -> None:
    with pytest.raises(BadImageError):
        shown(data)


def test_noise_behind_a_pictures_head_is_a_bad_image_or_a_picture_never_another_error() -> None:
    random = np.random.default_rng(7)
    whole = [FORMATS[kind](quarters()) for kind in FORMATS]
    for round_ in range(600):
        data = bytearray(whole[round_ % len(whole)])
        for place in random.integers(0, len(data), 1 + round_ % 7):
            data[place] = random.integers(256)
        try:
            shown(bytes(data))
        except BadImageError:
            continue


def test_a_missing_file_a_folder_and_a_nul_are_bad_images(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, Path("a\0b.png")):
        with pytest.raises(BadImageError):
            read(path, LIMITS)


# What a picture may take.


def make_noise(mode: str, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").resize(size)
    if mode == "I;16":
        return sixteen_bits(image)
    if mode == "F":
        return floats(image)
    if mode == "I":
        return Image.fromarray(np.asarray(image.convert("L"), np.int32) * 257)
    return image.convert(mode)


@pytest.mark.parametrize("size", [(300, 4200), (4321, 300), (700, 500), (9000, 3)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_a_picture_that_is_made_small_in_tiles_looks_as_if_it_were_whole(mode: str, size: tuple[int, int]) -> None:
    image = make_noise(mode, size)
    if mode == "P":
        image.info["transparency"] = 3
    whole = shrink(np.asarray(to_rgb(image)), 100_000).astype(int)
    tiled = np.asarray(shrink_to_rgb(image, 100_000)).astype(int)
    assert tiled.shape == whole.shape
    assert abs(tiled - whole).max() <= 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak afresh")
@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("F", "TIFF"), ("L", "PNG")]
)
def test_a_large_picture_takes_little_more_than_its_pixels(mode: str, kind: str) -> None:
    """A file of some KiB with tens of millions of them, of four bytes at most: they are there once, and once more where
    Pillow unpacks them, but never in all the ways in which they are converted."""
    image = Image.new(mode, (3000, 3000))
    options = {"transparency": 0} if mode == "P" else {"compression": "tiff_deflate"} if kind == "TIFF" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(image, kind, exif=exif, **options)
    del image
    before = read_peak(os.getpid(), afresh=True)
    assert open_picture(data, LIMITS, 1_000_000).pixels.shape[2] == 3
    assert read_peak(os.getpid()) - before < 2 * 4 * 3000**2 + 50 * MIB


@pytest.mark.parametrize(
    ("segment", "count", "says"),
    [
        (b"\xff\xe1\xff\xffExif\0\0" + bytes(0xFFFF - 8), 915, "more than 8388608 bytes"),
        (b"\xff\xfe\0\2", 1_000_000, "more than 2000 segments"),
    ],
)
def test_a_jpeg_of_very_much_beside_its_picture_is_a_bad_image_before_pillow_keeps_it(
    segment: bytes, count: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    data = buffer.getvalue()
    monkeypatch.setattr(Image, "open", pytest.fail)
    with pytest.raises(BadImageError) as caught:
        decode(data[:2] + segment * count + data[2:], LIMITS)
    assert says in caught.value.details


def test_a_jpeg_with_as_much_as_cameras_write_beside_its_picture_is_opened() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    data = buffer.getvalue()
    beside = (b"\xff\xe1\xff\xff" + b"http://ns.adobe.com/xmp/extension/\0").ljust(2 + 0xFFFF, b"x")
    assert shown(data[:2] + beside * 100 + data[2:]).shape == (64, 64, 3)


def test_a_png_of_very_many_chunks_is_a_bad_image() -> None:
    data = png(quarters())
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    assert shown(data[:33] + chunk * 50_000 + data[33:]).shape == (24, 40, 3)
    with pytest.raises(BadImageError) as caught:
        shown(data[:33] + chunk * 100_000 + data[33:])
    assert "more than 100000 chunks" in caught.value.details


def commented_gif(blocks: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (40, 24)).save(buffer, "GIF")
    data = buffer.getvalue()
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:at] + b"\x21\xfe" + b"\x01x" * blocks + b"\0" + data[at:]


def test_a_gif_whose_comment_is_in_very_many_pieces_is_a_bad_image(tmp_path: Path) -> None:
    """Pillow keeps each, and nothing else runs while it lets go of millions of them."""
    assert shown(commented_gif(50_000)).shape == (24, 40, 3)
    with pytest.raises(BadImageError) as caught:
        shown(commented_gif(100_001))
    assert "more than 100000 blocks" in caught.value.details
    assert view.encode_preview(io.BytesIO(commented_gif(50_000)), "webp", "")[1] == "image/webp"
    with pytest.raises(BadImageError):
        view.encode_preview(io.BytesIO(commented_gif(100_001)), "webp", "")
    (tmp_path / "mask.gif").write_bytes(commented_gif(100_001))
    with pytest.raises(BadImageError):
        view.apply_mask(tmp_path / "mask.gif", tmp_path / "mask.gif")


def gif_of(frames: int, side: int) -> bytes:
    """Each frame changes one pixel of a large canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    frame = b"\x21\xf9\x04\x08\x01\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def tiff_of(pages: int) -> bytes:
    """All pages are the first one."""
    data = bytearray(saved(Image.new("L", (8, 8)), "TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    page, size = bytes(data[at : at + 2 + 12 * entries]), 6 + 12 * entries
    begin = len(data)
    struct.pack_into("<I", data, at + 2 + 12 * entries, begin)
    ends = [begin + size * number for number in range(1, pages - 1)]
    return bytes(data) + b"".join(page + struct.pack("<I", end) for end in [*ends, 0])


@pytest.mark.parametrize("make", [partial(gif_of, side=4000), tiff_of], ids=["GIF", "TIFF"])
def test_the_pictures_in_a_file_are_counted_without_drawing_them_and_not_for_ever(make: Callable[..., bytes]) -> None:
    began_s = time.process_time()
    assert count_frames(make(9999), "a") == 9999
    with pytest.raises(BadImageError, match="more than 10000 pictures"):
        count_frames(make(200_000), "a")
    assert time.process_time() - began_s < 30  # to draw them takes an hour


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_picture_that_moves_has_as_many_as_it_shows(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), (90 * number, 0, 0)) for number in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert count_frames(data, "a") == 3
    assert count_frames(saved(frames[0], kind), "a") == 1


def test_a_header_that_says_more_pictures_than_there_are_is_not_believed() -> None:
    frames = [Image.new("RGB", (20, 20), (90 * number, 0, 0)) for number in range(3)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    at = data.index(b"acTL")
    told = b"acTL" + struct.pack(">II", 10**9, 0)
    lying = data[:at] + told + struct.pack(">I", zlib.crc32(told)) + data[at + len(told) + 4 :]
    assert count_frames(lying, "a") <= 4
