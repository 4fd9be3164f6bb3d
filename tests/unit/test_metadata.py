"""What is sold holds no prompt: metadata goes, and not one pixel or sample changes."""

import contextlib
import io
import json
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from comfyui_guarded.guard.errors import ResultCorruptError
from comfyui_guarded.guard.host import ReportedFile
from comfyui_guarded.guard.job import Artifact
from comfyui_guarded.guard.results.containers import BrokenFileError, sniff
from comfyui_guarded.guard.results.metadata import strip, strip_byproducts, strip_results

SECRET = "a secret prompt of alice"
NOISE = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def png() -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", json.dumps({"1": SECRET}))
    texts.add_text("workflow", SECRET, zip=True)
    texts.add_itxt("parameters", SECRET)
    texts.add(b"coMf", SECRET.encode())
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "PNG", pnginfo=texts, exif=exif(), dpi=(72, 72))
    return file.getvalue() + SECRET.encode()


def exif(turned: int = 1) -> Image.Exif:
    made = Image.Exif()
    made[0x010E], made[0x0112] = SECRET, turned
    return made


def picture(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, **options)
    return file.getvalue()


def film(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    options = {"movflags": "use_metadata_tags"} if container in ("mp4", "mov") else {}
    with av.open(file, "w", format=container, options=options) as target:
        for name in ("comment", "title", "prompt", "workflow", "artist"):
            target.metadata[name] = SECRET
        stream = target.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["title"] = SECRET
        for index in range(8):
            target.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(NOISE, index, 1), format="rgb24")))
        target.mux(stream.encode())
    return file.getvalue()


def sound(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        for name in ("comment", "title", "prompt", "workflow"):
            target.metadata[name] = SECRET * (500 if container == "ogg" and name == "prompt" else 1)
        stream = target.add_stream(codec, rate=48000)
        stream.metadata["comment"] = SECRET
        wave = np.sin(np.arange(9600, dtype=np.float32) / 10)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = 48000
        for piece in av.AudioResampler(stream.format.name, "mono", 48000, stream.frame_size or None).resample(frame):
            target.mux(stream.encode(piece))
        target.mux(stream.encode())
    return file.getvalue()


FILES = {
    "png": png,
    "jpeg": lambda: picture("JPEG", exif=exif(), comment=SECRET.encode(), xmp=SECRET.encode(), quality=90),
    "webp": lambda: picture("WEBP", exif=exif().tobytes(), xmp=SECRET.encode()),
    "webp, lossless": lambda: picture("WEBP", exif=exif().tobytes(), lossless=True),
    "gif": lambda: picture("GIF", comment=SECRET.encode()),
    "mp4": lambda: film("mp4", "mpeg4"),
    "mov": lambda: film("mov", "mpeg4"),
    "mkv": lambda: film("matroska", "mpeg4"),
    "webm": lambda: film("webm", "libvpx"),
    "wav": lambda: sound("wav", "pcm_s16le"),
    "flac": lambda: sound("flac", "flac"),
    "mp3": lambda: sound("mp3", "libmp3lame"),
    "opus": lambda: sound("ogg", "libopus"),
}  # fmt: skip


def content(data: bytes) -> list[bytes]:
    """Every pixel and sample."""
    if sniff(data[:64]).name == "image":
        with Image.open(io.BytesIO(data)) as image:
            return [image.convert("RGB").tobytes()]
    with av.open(io.BytesIO(data)) as opened:
        return [frame.to_ndarray().tobytes() for frame in opened.decode(opened.streams[0])]


def stripped(path: Path, data: bytes) -> bytes:
    path.write_bytes(data)
    strip(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", FILES)
def test_nothing_of_the_prompt_is_left_and_nothing_else_is_lost(tmp_path, kind):
    whole = FILES[kind]()
    if kind != "webp, lossless":
        assert SECRET.encode() in whole
    left = stripped(tmp_path / "file", whole)
    for secret in (SECRET.encode(), SECRET[:12].encode(), SECRET.encode("utf-16-le")):
        assert secret not in left
    assert kind == "mp3" or b"Lavf" not in left  # there it says by how much the decoder is late
    assert content(left) == content(whole)
    sniff(left[:64]).check_whole(io.BytesIO(left), len(left))
    assert len(left) <= len(whole)
    assert stripped(tmp_path / "file", left) == left
    if sniff(left[:64]).name == "image":
        with Image.open(io.BytesIO(left)) as image:
            assert not {"prompt", "workflow", "parameters", "exif", "xmp", "comment"} & image.info.keys()
    else:
        with av.open(io.BytesIO(left)) as opened:
            told = {**opened.metadata, **opened.streams[0].metadata}
            assert not [text for text in told.values() if "secret" in text or (kind != "mp3" and "Lav" in text)]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_a_picture_that_is_to_be_turned_still_is(tmp_path, kind):
    data = picture(kind, exif=exif(6).tobytes())
    left = stripped(tmp_path / "file", data)
    assert SECRET.encode() not in left
    with Image.open(io.BytesIO(left)) as image:
        assert dict(image.getexif()) == {0x0112: 6}


def test_moving_pictures_keep_their_frames(tmp_path):
    frames = [Image.fromarray(np.roll(NOISE, index, 0)) for index in range(4)]
    for kind, options in (("GIF", {"comment": SECRET.encode()}), ("WEBP", {"xmp": SECRET.encode()}), ("PNG", {})):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100, loop=0, **options)
        left = stripped(tmp_path / "file", file.getvalue())
        with Image.open(io.BytesIO(left)) as image, Image.open(file) as before:
            assert (image.n_frames, image.info.get("loop")) == (4, before.info.get("loop"))
            for index in range(4):
                image.seek(index)
                before.seek(index)
                assert image.convert("RGB").tobytes() == before.convert("RGB").tobytes()


def test_scenes_tensors_and_drawings_lose_theirs(tmp_path):
    scene = json.dumps(
        {"asset": {"version": "2.0", "extras": {"prompt": SECRET}, "generator": "x"}, "nodes": []}
    ).encode()
    scene += b" " * (-len(scene) % 4)
    body = struct.pack("<I4s", len(scene), b"JSON") + scene + struct.pack("<I4s", 4, b"BIN\0") + b"1234"
    left = stripped(tmp_path / "a.glb", struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
    assert SECRET.encode() not in left
    assert json.loads(left[20 : 20 + len(scene)]) == {"asset": {"version": "2.0"}, "nodes": []}
    assert left.endswith(b"1234")
    assert len(left) == 12 + len(body)
    header = {
        "__metadata__": {"prompt": SECRET, "format": "pt"},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    left = stripped(tmp_path / "a.latent", struct.pack("<Q", len(text)) + text + b"1234")
    assert json.loads(left[8:-4]) == {**header, "__metadata__": {"format": "pt"}}
    drawing = f"<svg><metadata><![CDATA[{SECRET}]]></metadata><!-- {SECRET} --><rect/></svg>"
    assert stripped(tmp_path / "a.svg", drawing.encode()) == b"<svg><rect/></svg>"


@pytest.mark.parametrize(
    "words", ["]]></metadata>SECRET<text>", "<metadata>", "-->", '\\"}]]></metadata >', "<svg>\udcff"]
)
def test_a_text_in_a_drawings_prompt_does_not_end_its_metadata(tmp_path, words):
    told = json.dumps({"prompt": {"1": {"inputs": {"text": f"{words} {SECRET}"}}}}, indent=2, ensure_ascii=False)
    each = f"  <metadata>\n  <![CDATA[\n  {told}\n  ]]>\n  </metadata>\n"
    drawing = f"<svg>\n{each}<rect/><svg>\n{each}</svg><metadata><x/></metadata></svg>"
    left = stripped(tmp_path / "a.svg", drawing.encode(errors="surrogateescape"))
    assert left.split() == [b"<svg>", b"<rect/><svg>", b"</svg></svg>"]


def exr(*headers, flags=0):
    """Attributes of each part, and pixels behind them."""
    parts = [
        b"".join(name + b"\0" + kind + b"\0" + struct.pack("<I", len(value)) + value for name, kind, value in each)
        for each in headers
    ]
    end = b"\0" if flags else b""
    return b"\x76\x2f\x31\x01" + struct.pack("<I", 2 | flags) + b"\0".join(parts) + b"\0" + end + b"PIXELS" * 99


def test_an_exr_loses_its_texts_and_keeps_its_places(tmp_path):
    secret, box = (b"prompt", b"string", SECRET.encode() * 9), (b"dataWindow", b"box2i", bytes(16))
    named = (b"name", b"string", b"left")
    for data in (exr([secret, box]), exr([named, box, secret], [named, secret], flags=0x1000)):
        path = tmp_path / "a.exr"
        path.write_bytes(data)
        strip(path)
        left = path.read_bytes()
        assert SECRET.encode() not in left
        assert left == data.replace(SECRET.encode() * 9, b" " * len(secret[2]))
    for cut in (9, 20, 40, len(exr([secret, box])) - 600):
        path.write_bytes(exr([secret, box])[:cut])
        strip_byproducts([ReportedFile("5", "a.exr", "", "output", path)])


def test_the_titles_that_were_written_for_ffmpeg_go(tmp_path):
    path = tmp_path / "metadata.txt"
    path.write_text(f";FFMETADATA1\nprompt={SECRET}\n")
    strip(path)
    assert path.read_text() == ";FFMETADATA1\n"


def test_what_is_not_known_or_makes_no_sense_stays_as_it_is(tmp_path):
    for data in (b"", b"text", b"\x89PNG\r\n\x1a\n", png()[:200], FILES["mp4"]()[:100]):
        path = tmp_path / "file"
        path.write_bytes(data)
        with contextlib.suppress(BrokenFileError, struct.error, ValueError, LookupError):
            strip(path)
        assert path.read_bytes() == data or data[:4] != b"text"


def test_the_artifact_is_what_is_sold(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    artifact = Artifact(0, "5", "image", "a.png", "", "output", 1, "old")
    (sold,) = strip_results([ReportedFile("5", "a.png", "", "output", path)], [artifact])
    assert (sold.bytes, len(sold.sha256)) == (path.stat().st_size, 64)
    assert SECRET.encode() not in path.read_bytes()


def test_what_a_run_left_beside_its_files_is_stripped_too(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(b"no picture")
    names = ("a.png", "b.png", "gone.png")
    strip_byproducts([ReportedFile("5", name, "", "output", tmp_path / name) for name in names])
    assert SECRET.encode() not in (tmp_path / "a.png").read_bytes()


@given(st.sampled_from(["png", "jpeg", "webp", "gif", "mp4", "mkv", "wav", "flac", "mp3", "opus"]), st.data())
def test_no_damage_breaks_the_strip(tmp_path_factory, kind, draw):
    data = bytearray(_KEPT.setdefault(kind, FILES[kind]()))
    for _ in range(3):
        data[draw.draw(st.integers(0, min(len(data) - 1, 600)))] = draw.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(data)
    artifact = Artifact(0, "5", kind, "a", "", "output", 1, "old")
    with contextlib.suppress(ResultCorruptError):
        strip_results([ReportedFile("5", "a", "", "output", path)], [artifact])


_KEPT: dict[str, bytes] = {}
