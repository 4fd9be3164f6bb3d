"""Make files of many pictures: moving ones, whole ones one behind the other, films whose pictures change their size.

A recipe is plain JSON; `draw` is hypothesis's. `runs`: so many pictures of each size follow each other.
"""

import io
import struct
import zlib
from fractions import Fraction
from typing import Any

Recipe = dict[str, Any]

MOVING = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO")
ROWS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "TGA", "QOI", "JPEG2000")
#: (container, codec): those whose pieces make a film when they are put one behind the other, and those with one header.
PIECES = (("mpegts", "mpeg2video"), ("mpegts", "libx264"), ("mpeg", "mpeg2video"), ("mpegts", "libx265"))
STREAMS = (
    ("matroska", "mjpeg"), ("matroska", "libvpx"), ("webm", "libvpx-vp9"), ("avi", "mjpeg"), ("mov", "png"),
    ("matroska", "ffv1"), ("avi", "mpeg4"), ("flv", "flv1"), ("mp4", "mpeg4"), ("matroska", "mpeg2video"),
)  # fmt: skip
SIDES = (64, 16, 32, 96, 130, 320)
#: So many pixels are decoded at the door, where the real figure would take gigabytes of the loader; None: that one.
BOUNDS = (None, 5_000, 50_000, 500_000)


def draw(st: Any) -> Any:
    run = st.tuples(st.sampled_from(SIDES), st.sampled_from(SIDES), st.sampled_from((1, 2, 3, 12, 40)))
    shared = {
        "kind": st.just("many"),
        "runs": st.lists(run, min_size=1, max_size=3),
        "bound": st.sampled_from(BOUNDS),
        "tail": st.sampled_from(("", "", "", "junk", "half")),
    }
    says = st.sampled_from((None, None, 1, 2, 9999))
    moving = {"how": st.just("moving"), "form": st.sampled_from(MOVING), "says": says}
    row = {"how": st.just("row"), "form": st.sampled_from(ROWS)}
    pieces = {"how": st.just("pieces"), "form": st.integers(0, len(PIECES) - 1)}
    stream = {"how": st.just("stream"), "form": st.integers(0, len(STREAMS) - 1)}
    return st.one_of(*(st.fixed_dictionaries({**shared, **each}) for each in (row, moving, pieces, stream)))


def make_many(recipe: Recipe) -> tuple[str, bytes, dict[str, float]]:
    """(file's name, bytes, what was put in). Raises whatever encoders raise."""
    makers = {"moving": _move, "row": _put_behind, "pieces": _put_pieces, "stream": _change}
    data, piece = makers[recipe["how"]](recipe)
    if recipe["tail"]:
        data += b"what follows" * 9 if recipe["tail"] == "junk" else piece[: len(piece) // 2]
    name = "film" if recipe["how"] in ("pieces", "stream") else f"picture.{recipe['form'].lower()}"
    held = {
        "frames": sum(count for _, _, count in recipe["runs"]),
        "pixels": sum(width * height * count for width, height, count in recipe["runs"]),
        "samples": 0,
    }
    return name, data, held


def _draw(width: int, height: int, at: int) -> Any:
    import numpy as np

    pixels = np.full((height, width, 3), at * 37 % 200, np.uint8)
    pixels[:, at % width] = 255 - at % 50
    return pixels


def _list_pictures(recipe: Recipe) -> list[Any]:
    from PIL import Image

    sizes = [(width, height) for width, height, count in recipe["runs"] for _ in range(count)]
    return [Image.fromarray(_draw(width, height, at)) for at, (width, height) in enumerate(sizes)]


def _save(picture: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _move(recipe: Recipe) -> tuple[bytes, bytes]:
    first, *others = _list_pictures(recipe)
    data = _save(first, recipe["form"], **({"save_all": True, "append_images": others} if others else {}))
    at = data.find(b"acTL")
    if recipe["says"] is not None and at > 0:
        told = b"acTL" + struct.pack(">II", recipe["says"], 0)
        data = data[:at] + told + struct.pack(">I", zlib.crc32(told)) + data[at + len(told) + 4 :]
    return data, _save(first, recipe["form"])


def _put_behind(recipe: Recipe) -> tuple[bytes, bytes]:
    pieces = [_save(each, recipe["form"]) for each in _list_pictures(recipe)]
    return b"".join(pieces), pieces[-1]


def _encode(coder: Any, stream: Any, width: int, height: int, count: int) -> list[Any]:
    import av

    packets = []
    for at in range(count):
        frame = av.VideoFrame.from_ndarray(_draw(width, height, at)).reformat(format=coder.pix_fmt)
        frame.pts, frame.time_base = at, Fraction(1, 12)
        packets += coder.encode(frame)
    return packets + coder.encode()


def _choose(codec: str) -> str:
    return {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")


def _put_pieces(recipe: Recipe) -> tuple[bytes, bytes]:
    import av

    form, codec = PIECES[recipe["form"]]
    pieces = []
    for width, height, count in recipe["runs"]:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=form) as container:
            stream = container.add_stream(codec, rate=24)
            stream.width, stream.height, stream.pix_fmt = width, height, _choose(codec)
            if codec == "libx265":
                stream.options = {"x265-params": "log-level=none:pools=none", "preset": "ultrafast"}
            for packet in _encode(stream.codec_context, stream, width, height, count):
                packet.stream = stream
                container.mux(packet)
        pieces.append(buffer.getvalue())
    return b"".join(pieces), pieces[-1]


def _change(recipe: Recipe) -> tuple[bytes, bytes]:
    import av

    form, codec = STREAMS[recipe["form"]]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = *recipe["runs"][0][:2], _choose(codec)
        at = 0
        for width, height, count in recipe["runs"]:
            coder = av.CodecContext.create(codec, "w")
            coder.width, coder.height, coder.pix_fmt = width, height, stream.pix_fmt
            coder.time_base, coder.framerate = Fraction(1, 12), Fraction(12)
            if codec.startswith("libvpx"):
                coder.options = {"deadline": "realtime", "cpu-used": "8"}
            for packet in _encode(coder, stream, width, height, count):
                packet.stream, packet.time_base = stream, Fraction(1, 12)
                packet.pts = packet.dts = at
                at += 1
                container.mux(packet)
    return buffer.getvalue(), buffer.getvalue()[-500:]
