"""How much room a disk has: bytes, and places for files, which small files use up first."""

import os
from types import SimpleNamespace

import pytest

from comfyui_guarded.guard.janitor.disk import PLACE_BYTES, Disk

GIB = 2**30


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="Windows counts no places")
@pytest.mark.parametrize(
    ("places", "left", "free"),
    [(10**6, 10**5, 8 * GIB), (10**6, 300, 300 * PLACE_BYTES), (10**6, 0, 0), (0, 0, 8 * GIB)],
    ids=["many", "few", "none", "not_counted"],
)
def test_a_disk_without_places_for_files_has_no_room_however_many_bytes_are_free(
    places, left, free, tmp_path, monkeypatch
):
    held = SimpleNamespace(
        f_frsize=4096, f_blocks=16 * GIB // 4096, f_bfree=8 * GIB // 4096, f_bavail=8 * GIB // 4096,
        f_files=places, f_ffree=left, f_favail=left,
    )  # fmt: skip
    monkeypatch.setattr(os, "statvfs", lambda _path: held)
    assert Disk(tmp_path, 1).free() == free
