"""Films of a kilobyte whose index names millions of samples: refused before anything takes the memory to read it."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comfyui_guarded.guard.faces.films import HEAD_BYTES, look_at_film, sniff_more
from comfyui_guarded.guard.faces.sounds import UnfitError
from comfyui_guarded.guard.results.containers import BrokenFileError, sniff

HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
MANY = 40_000_000


def make_film(form: str = "mp4", **options: str) -> bytes:
    av = pytest.importorskip("av")
    target = io.BytesIO()
    with av.open(target, "w", format=form, options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for shade in range(3):
            picture = np.full((64, 64, 3), shade * 80, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    return target.getvalue()


def make_sound(seconds: int) -> bytes:
    av = pytest.importorskip("av")
    target = io.BytesIO()
    with av.open(target, "w", format="mov") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=48_000)
        stream.layout = "mono"
        for _ in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def edit_boxes(film: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    made, at = b"", 0
    while at + 8 <= len(film):
        length, name = int.from_bytes(film[at : at + 4], "big"), film[at + 4 : at + 8]
        body = film[at + 8 : at + length]
        made += make_box(name, edit(name, edit_boxes(body, edit) if name in HOLDERS else body))
        at += length
    return made


def make_box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def name_samples(count: int, edits: int = 1) -> Callable[[bytes, bytes], bytes]:
    def edit(name: bytes, body: bytes) -> bytes:
        made = {
            b"stsz": struct.pack(">III", 0, 1, count),
            b"stsc": struct.pack(">5I", 0, 1, 1, count, 1),
            b"stts": struct.pack(">4I", 0, 1, count, 1),
            b"stss": struct.pack(">II", 0, 0),
        }
        if edits > 1:
            elst = struct.pack(">II", 0, edits) + struct.pack(">IIHH", 1000, 0, 1, 0) * edits
            made[b"edts"] = make_box(b"elst", elst)
        return made.get(name, body)

    return edit


def add_fragment(film: bytes, count: int, *, within: bool = False) -> bytes:
    trex = make_box(b"trex", struct.pack(">6I", 0, 1, 1, 1, 1, 0))
    film = edit_boxes(film, lambda name, body: body + make_box(b"mvex", trex) if name == b"moov" else body)
    run = make_box(b"tfhd", struct.pack(">II", 0x020000, 1)) + make_box(b"trun", struct.pack(">II", 0, count))
    fragment = make_box(b"moof", make_box(b"mfhd", struct.pack(">II", 0, 1)) + make_box(b"traf", run))
    if within:  # where an index of fragments leads
        return film + make_box(b"mfra", b"") + make_box(b"mdat", bytes(1000) + fragment)
    return film + fragment + make_box(b"mdat", b"")


BOMBS = {
    "samples": lambda: edit_boxes(make_film(), name_samples(MANY)),
    "edits": lambda: edit_boxes(make_film(), name_samples(400_000, 100)),
    "a fragment": lambda: add_fragment(make_film(), MANY),
    "a fragment within the data": lambda: add_fragment(make_film(), MANY, within=True),
    "a compressed index": lambda: edit_boxes(
        make_film(), lambda name, body: body + make_box(b"cmov", bytes(100)) if name == b"moov" else body
    ),
    "a track in another's place": lambda: edit_boxes(
        make_film(), lambda name, body: body + make_box(b"udta", make_box(b"stsz", struct.pack(">III", 0, 1, MANY)))
        if name == b"moov" else body,
    ),
}  # fmt: skip
WHOLE = {
    "a film": make_film,
    "a film in fragments": lambda: make_film(movflags="frag_keyframe+empty_moov"),
    "a film of few frames with edits": lambda: edit_boxes(make_film(), name_samples(3, 2)),
    "a minute of PCM": lambda: make_sound(60),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_index_that_claims_too_much_is_refused_before_libav_reads_it(name: str, tmp_path: Path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(BOMBS[name]())
    monkeypatch.setattr("comfyui_guarded.guard.faces.films.open_container", None)  # nobody gets so far
    with open(path, "rb") as handle:
        kind = sniff_more(handle.read(HEAD_BYTES))
        assert kind is not None
        with pytest.raises(BrokenFileError, match="more samples than a film has"):
            look_at_film(handle, kind, "video", "libav")
        made = sniff(path.read_bytes()[:32])
        assert made is not None
        with pytest.raises(BrokenFileError):
            made.check_whole(handle, os.path.getsize(path))


@pytest.mark.parametrize("name", WHOLE)
def test_what_people_send_is_taken(name: str, tmp_path: Path):
    path = tmp_path / "a.mov"
    path.write_bytes(WHOLE[name]())
    with open(path, "rb") as handle:
        kind = sniff_more(handle.read(HEAD_BYTES))
        assert kind is not None
        if name != "a film of few frames with edits":  # whose frames are not there
            assert look_at_film(handle, kind, "media", "libav").seconds is not None
        kind.check_whole(handle, os.path.getsize(path))


def test_pictures_too_large_for_a_decoder_are_refused_before_one_is_decoded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("comfyui_guarded.guard.faces.films.MAX_FRAME_PIXELS", 64 * 64 - 1)
    path = tmp_path / "a.mov"
    path.write_bytes(make_film("mov"))
    with open(path, "rb") as handle:
        kind = sniff_more(handle.read(HEAD_BYTES))
        assert kind is not None
        with pytest.raises(UnfitError, match="64 × 64"):
            look_at_film(handle, kind, "video")


def add_cues(film: bytes, count: int, *, behind: bool = False, padding: int = 0) -> bytes:
    """A Matroska film with cues in the wrong order, before its pictures or behind all."""
    void = b"\xec" + bytes([0x80 | padding]) + bytes(padding) if padding else b""
    points = []
    for at in range(count, 0, -1):
        place = b"\xb3\x83" + at.to_bytes(3, "big") + void + b"\xb7\x86\xf7\x81\x01\xf1\x81\x00"
        points.append(b"\xbb" + bytes([0x80 | len(place)]) + place)
    body = b"".join(points)
    cues = b"\x1c\x53\xbb\x6b" + (1 << 56 | len(body)).to_bytes(8, "big") + body
    if behind:
        return film + cues
    segment, cluster = film.index(b"\x18\x53\x80\x67") + 4, film.index(b"\x1f\x43\xb6\x75")
    return film[:segment] + b"\x01" + b"\xff" * 7 + film[segment + 8 : cluster] + cues + film[cluster:]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("padding", [0, 60])
def test_cues_that_a_thread_would_sort_for_minutes_are_refused_before_libav_reads_them(
    behind: bool, padding: int, tmp_path: Path, monkeypatch
):
    path = tmp_path / "a.webm"
    path.write_bytes(add_cues(make_film("matroska"), 200_000, behind=behind, padding=padding))
    monkeypatch.setattr("comfyui_guarded.guard.faces.films.open_container", None)  # nobody gets so far
    with open(path, "rb") as handle:
        kind = sniff_more(handle.read(HEAD_BYTES))
        assert kind is not None
        with pytest.raises(BrokenFileError, match="more places than a film has"):
            look_at_film(handle, kind, "video", "libav")


@pytest.mark.parametrize("count", [0, 10_000])
def test_cues_as_films_have_them_are_taken(count: int, tmp_path: Path):
    path = tmp_path / "a.webm"
    path.write_bytes(add_cues(make_film("matroska"), count))
    with open(path, "rb") as handle:
        kind = sniff_more(handle.read(HEAD_BYTES))
        assert kind is not None
        assert look_at_film(handle, kind, "video", "libav").width == 64
