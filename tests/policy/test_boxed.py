"""Pictures in a film's container (HEIC, AVIF), as phones send them: libav's loader takes the first that lies there.

What it makes of each was seen with ComfyUI 0.33.0. Real phones write a grid of tiles of 512 pixels.
"""

import io

import pillow_heif
import pytest
from PIL import Image
from policy.test_loaded import opened  # noqa: F401

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import BadImageError

TURNED, MIRRORED = 6, (2, 4, 5, 7)


def heic(monkeypatch, *, form="HEIF", tile=0, orientation=1, first=None):
    """`first`: which of two pictures is the photo."""
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", tile)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    buffer = io.BytesIO()
    if form == "AVIF":
        photo.save(buffer, form, exif=exif.tobytes())
        return buffer.getvalue()
    file = pillow_heif.from_pillow(photo)
    if first is not None:
        file.add_from_pillow(Image.new("RGB", (640, 480), "blue"))
    file.save(buffer, exif=exif.tobytes(), primary_index=first or 0)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (640, 480)), ({"orientation": 3}, (640, 480)), ({"orientation": TURNED}, (480, 640))],
    ids=["upright", "on-its-head", "on-its-side"],
)
def test_one_that_the_loader_reads_whole_and_upright_is_taken(opened, monkeypatch, form, options, size):  # noqa: F811
    assert opened("LoadImageByLibav", heic(monkeypatch, form=form, **options)) == Media(*size)


def test_the_first_of_several_is_taken(opened, monkeypatch):  # noqa: F811
    data = heic(monkeypatch, first=0)
    assert opened("LoadImageByLibav", data) == Media(640, 480)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 320},
        {"tile": 512},
        {"tile": 320, "orientation": TURNED},
        {"first": 1},
        *({"orientation": each} for each in MIRRORED),
        *({"orientation": each, "form": "AVIF"} for each in MIRRORED),
    ],
)
def test_one_of_which_the_loader_would_take_a_part_or_the_wrong_side_is_refused(opened, monkeypatch, options):  # noqa: F811
    with pytest.raises(BadImageError) as caught:
        opened("LoadImageByLibav", heic(monkeypatch, **options))
    assert caught.value.details.endswith("Send it as JPEG.")


def test_pillows_loader_takes_no_heic(opened, monkeypatch):  # noqa: F811
    with pytest.raises(BadImageError) as caught:
        opened("LoadImageByPillow", heic(monkeypatch))
    assert caught.value.details.endswith("Send it as JPEG.")
