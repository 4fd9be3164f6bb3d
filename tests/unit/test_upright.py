"""A picture that says that it is mirrored is kept as it is meant to be seen; all others stay byte for byte."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from comfyui_guarded.guard.files.upright import is_mirrored, turn_upright

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tiff"}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scene(mode="RGB"):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:30, :45], pixels[:30, 45:], pixels[30:, :45] = (220, 30, 30), (30, 200, 30), (30, 30, 220)
    return Image.fromarray(pixels).convert(mode)


def picture(form, orientation, mode="RGB", **options):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    buffer = io.BytesIO()
    scene(mode).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def turned(folder, data, form):
    """What is left of the file; checks that the answer is its hash, and that nothing else is left behind."""
    path = folder / "photo"
    path.write_bytes(data)
    told = turn_upright(path, SUFFIXES[form]) if is_mirrored(path, SUFFIXES[form]) else ""
    left = path.read_bytes()
    assert told == ("" if left == data else hashlib.sha256(left).hexdigest())
    assert [each.name for each in folder.iterdir()] == ["photo"]
    return left


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_mirrored_picture_is_kept_upright(tmp_path, form, orientation, mode):
    data = picture(form, orientation, mode, icc_profile=PROFILE if mode == "RGB" else None)
    left = turned(tmp_path, data, form)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(left)) as image:
        assert image.format == form
        assert image.getexif().get(0x0112, 1) == 1
        assert form == "TIFF" or image.getexif()[0x010F] == "Maker"
        assert image.info.get("icc_profile") == before.info.get("icc_profile")
        expected, found = (np.asarray(each.convert("RGB"), float) for each in (ImageOps.exif_transpose(before), image))
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 4


def test_texts_and_transparency_stay(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "a fox")
    left = turned(tmp_path, picture("PNG", 2, "RGBA", pnginfo=texts), "PNG")
    with Image.open(io.BytesIO(left)) as image:
        assert (image.mode, image.text) == ("RGBA", {"prompt": "a fox"})


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9])
def test_all_others_stay_as_they_are(tmp_path, form, orientation):
    data = picture(form, orientation)
    assert turned(tmp_path, data, form) == data


@pytest.mark.parametrize("form", ["GIF", *SUFFIXES])
def test_what_is_broken_stays_as_it_is(tmp_path, form):
    data = picture(form, 2)
    for part in (data[: len(data) // 2], data[:12], data[:2], b"", data[:40] + b"\xff" * 200):
        assert turned(tmp_path, part, form if form in SUFFIXES else "PNG") == part
    if form in ("PNG", "WEBP"):
        frames = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 2
        scene().save(frames, form, save_all=True, append_images=[scene().rotate(180)], exif=exif)
        assert turned(tmp_path, frames.getvalue(), form) == frames.getvalue()
