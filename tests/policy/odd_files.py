"""Make odd pictures, films and sounds: what cameras, recorders and converters write, and what damage makes of it.

A recipe is plain JSON; `draw` is hypothesis's, so that a file that is found becomes as plain as it can be.
"""

import io
import struct
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

Recipe = dict[str, Any]

PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "TGA", "PPM", "ICO", "MPO")
MODES = ("RGB", "RGBA", "L", "P", "1", "LA", "I;16", "CMYK", "F")
MOVING = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO")
SIDES = (1, 2, 3, 5, 16, 17, 31, 32, 33, 64, 90, 300, 1000)
#: (container, codec of its pictures).
FILMS = (
    ("mp4", "libx264"), ("mp4", "libx265"), ("mp4", "libsvtav1"), ("mp4", "mpeg4"), ("mp4", "mjpeg"),
    ("mov", "libx264"), ("mov", "prores_ks"), ("mov", "qtrle"), ("mov", "mjpeg"), ("mov", "png"),
    ("matroska", "libx264"), ("matroska", "libx265"), ("matroska", "ffv1"), ("matroska", "mpeg4"),
    ("webm", "libvpx"), ("webm", "libvpx-vp9"), ("webm", "libsvtav1"),
    ("avi", "mpeg4"), ("avi", "mjpeg"), ("avi", "libx264"), ("flv", "flv1"), ("flv", "libx264"),
    ("asf", "wmv2"), ("asf", "msmpeg4v3"), ("mpegts", "libx264"), ("mpegts", "mpeg2video"), ("mpeg", "mpeg2video"),
    ("mpegts", "libx265"), ("mov", "dnxhd"),
)  # fmt: skip
#: What each container takes for a sound.
VOICES = {
    "mp4": ("aac", "libmp3lame", "ac3", "libopus", "alac", "flac"),
    "mov": ("aac", "pcm_s16le", "alac"),
    "matroska": ("aac", "flac", "libopus", "vorbis", "pcm_f32le", "libmp3lame", "ac3"),
    "webm": ("libopus", "vorbis"),
    "avi": ("libmp3lame", "pcm_s16le", "mp2", "pcm_u8"),
    "flv": ("aac", "libmp3lame"),
    "asf": ("wmav2",),
    "mpegts": ("aac", "mp2", "ac3", "libopus"),
    "mpeg": ("mp2",),
}
SOUNDS = (
    ("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("wav", "pcm_u8"), ("wav", "pcm_s24le"), ("wav", "pcm_f64le"),
    ("wav", "adpcm_ms"), ("wav", "pcm_mulaw"), ("flac", "flac"), ("ogg", "vorbis"), ("ogg", "libopus"),
    ("ogg", "flac"), ("mp3", "libmp3lame"), ("mp2", "mp2"), ("ipod", "aac"), ("ipod", "alac"), ("adts", "aac"),
    ("aiff", "pcm_s16be"), ("aiff", "pcm_s8"), ("au", "pcm_s16be"), ("caf", "pcm_s16be"), ("caf", "alac"),
    ("matroska", "flac"), ("matroska", "libopus"), ("webm", "libopus"), ("ac3", "ac3"), ("asf", "wmav2"),
    ("wv", "wavpack"), ("amr", "libopencore_amrnb"), ("mp4", "libopus"), ("mpegts", "aac"),
)  # fmt: skip
RATES = (44_100, 48_000, 8000, 16_000, 22_050, 24_000, 96_000, 11_025, 192_000, 500)
LAYOUTS = ("stereo", "mono", "5.1", "quad", "6.1", "2.1", "3.0")
FRAME_RATES = ("10", "24", "24000/1001", "30", "60000/1001", "1", "1/5", "240", "1000")
DAMAGE = ("cut", "invert", "zero", "shuffle", "grow", "lie")
#: Fields of headers: (mark, bytes from it, width, big-endian, what it says).
FIELDS = (
    (b"mvhd", 20, 4, True, "length"), (b"mdhd", 20, 4, True, "length"), (b"mdhd", 16, 4, True, "time scale"),
    (b"tkhd", 24, 4, True, "length"), (b"tkhd", 80, 2, True, "width"), (b"tkhd", 84, 2, True, "height"),
    (b"stts", 8, 4, True, "runs"), (b"stts", 12, 4, True, "samples"), (b"stts", 16, 4, True, "duration of each"),
    (b"stsz", 8, 4, True, "size of each"), (b"stsz", 12, 4, True, "samples"), (b"stsc", 8, 4, True, "runs"),
    (b"stco", 12, 4, True, "place"), (b"avc1", 28, 2, True, "width"), (b"avc1", 30, 2, True, "height"),
    (b"mp4a", 20, 2, True, "channels"), (b"mp4a", 28, 2, True, "rate"), (b"elst", 12, 4, True, "length"),
    (b"\x44\x89\x88", 3, 8, True, "length"), (b"\xb0\x81", 2, 1, True, "width"), (b"\xba\x81", 2, 1, True, "height"),
    (b"\x2a\xd7\xb1", 4, 3, True, "time scale"), (b"\x9f\x81", 2, 1, True, "channels"),
    (b"avih", 8, 4, False, "frame's length"), (b"avih", 24, 4, False, "frames"), (b"avih", 40, 4, False, "width"),
    (b"strh", 28, 4, False, "scale"), (b"strh", 32, 4, False, "rate"), (b"strh", 40, 4, False, "length"),
    (b"strf", 12, 4, False, "width"), (b"strf", 16, 4, False, "height"),
    (b"fmt ", 8, 2, False, "form"), (b"fmt ", 10, 2, False, "channels"), (b"fmt ", 12, 4, False, "rate"),
    (b"fmt ", 20, 2, False, "block"), (b"fmt ", 22, 2, False, "bits"), (b"data", 4, 4, False, "bytes"),
    (b"fLaC", 8, 2, True, "block"), (b"fLaC", 18, 3, True, "rate"), (b"fLaC", 22, 4, True, "samples"),
    (b"OpusHead", 9, 1, False, "channels"), (b"\x01vorbis", 11, 1, False, "channels"),
    (b"\x01vorbis", 12, 4, False, "rate"), (b"COMM", 8, 2, True, "channels"), (b"COMM", 10, 4, True, "samples"),
    (b".snd", 8, 4, True, "bytes"), (b".snd", 16, 4, True, "rate"), (b".snd", 20, 4, True, "channels"),
    (b"IHDR", 4, 4, True, "width"), (b"IHDR", 8, 4, True, "height"), (b"IHDR", 12, 1, True, "bits"),
    (b"acTL", 4, 4, True, "frames"), (b"fcTL", 8, 4, True, "width"), (b"GIF8", 6, 2, False, "width"),
    (b"GIF8", 8, 2, False, "height"), (b"\xff\xc0", 5, 2, True, "height"), (b"\xff\xc0", 7, 2, True, "width"),
    (b"VP8X", 8, 3, False, "width"), (b"ispe", 8, 4, True, "width"), (b"ispe", 12, 4, True, "height"),
    (b"FLV\x01", 4, 1, True, "what it has"), (b"duration", 9, 8, True, "length"), (b"BM", 18, 4, False, "width"),
)  # fmt: skip
LIES = (0, 1, 2, 7, 254, 65_535, 10**6, 2**31 - 1, 2**32 - 1)


def draw(st: Any) -> Any:
    """The recipes, as a strategy of hypothesis; plain ones come first."""
    share = st.integers(0, 999).map(lambda number: number / 1000)
    damage = st.none() | st.fixed_dictionaries(
        {
            "how": st.sampled_from(DAMAGE),
            "at": share,
            "share": st.sampled_from((0.001, 0.01, 0.1, 0.5)),
            "field": st.integers(0, 99),
            "says": st.sampled_from(LIES),
        }
    )
    voice = {
        "voice": st.integers(0, 9),
        "hz": st.sampled_from(RATES),
        "layout": st.sampled_from(LAYOUTS),
        "sound": st.sampled_from(("noise", "silence", "nan", "loud")),
    }
    # Most have no damage, and of what is odd a few things each.
    harm = st.none() | damage
    picture = st.fixed_dictionaries(
        {
            "kind": st.just("picture"),
            "form": st.sampled_from(PICTURES),
            "mode": st.sampled_from(MODES),
            "width": st.sampled_from(SIDES),
            "height": st.sampled_from(SIDES),
            "frames": st.sampled_from((1, 1, 2, 5, 30)),
            "sizes": st.booleans(),
            "turned": st.sampled_from((1, 1, 6, 2)),
            "suffix": st.sampled_from(("own", "bin", "png")),
            "damage": harm,
        }
    )
    film = st.fixed_dictionaries(
        {
            "kind": st.just("film"),
            "form": st.integers(0, len(FILMS) - 1),
            "width": st.sampled_from((64, 66, 48, 130, 320, 63, 16, 2)),
            "height": st.sampled_from((48, 64, 50, 240, 47, 16, 2)),
            "rate": st.sampled_from(FRAME_RATES),
            "frames": st.sampled_from((12, 30, 1, 2, 3, 100)),
            "heard": st.sampled_from((0, 1, 1, 0.3, 3)),
            "order": st.sampled_from(("mixed", "sound behind", "sound before")),
            "times": st.sampled_from(("even", "even", "uneven", "late", "gap", "backward", "same")),
            "packets": st.sampled_from(("all", "all", "swapped", "one lost", "no first")),
            "sizes": st.sampled_from((False, False, False, True)),
            "web": st.booleans(),
            **voice,
            "damage": harm,
        }
    )
    sound = st.fixed_dictionaries(
        {
            "kind": st.just("sound"),
            "form": st.integers(0, len(SOUNDS) - 1),
            "seconds": st.sampled_from((1, 0.2, 5, 0.01, 30)),
            **voice,
            "damage": harm,
        }
    )
    return picture | film | sound | film | sound


class CannotMakeError(Exception):
    """No encoder makes that."""


def make(recipe: Recipe) -> tuple[str, bytes, dict[str, float]]:
    """(file's name, bytes, what was put in: frames, pixels, samples). Raises CannotMakeError."""
    from many_files import make_many  # beside this, in the judge's process

    makers: dict[str, Callable[[Recipe], tuple[str, bytes, dict[str, float]]]] = {
        "picture": _make_picture,
        "film": _make_film,
        "sound": _make_sound,
        "many": make_many,
    }
    try:
        name, data, held = makers[recipe["kind"]](recipe)
    except CannotMakeError:
        raise
    except Exception as error:  # encoders raise almost anything
        raise CannotMakeError(f"{type(error).__name__}: {error}") from None
    return name, harm(data, recipe.get("damage")), held


def harm(data: bytes, damage: Recipe | None) -> bytes:
    if damage is None or not data:
        return data
    at, count = int(len(data) * damage["at"]), max(int(len(data) * damage["share"]), 1)
    if damage["how"] == "cut":
        return data[:at]
    if damage["how"] == "invert":
        return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + count]) + data[at + count :]
    if damage["how"] == "zero":
        return data[:at] + bytes(len(data[at : at + count])) + data[at + count :]
    if damage["how"] == "shuffle":  # two ranges change places
        other = (at + count * 2) % len(data)
        first, second = sorted((at, other))
        if second - first < count:
            return data
        parts = data[:first], data[second : second + count], data[first + count : second]
        return b"".join(parts) + data[first : first + count] + data[second + count :]
    if damage["how"] == "grow":
        return data + data[:count]
    return _lie(data, damage)


def _lie(data: bytes, damage: Recipe) -> bytes:
    there = [(data.find(mark), field) for mark, *field in FIELDS for _ in (0,) if mark in data]
    if not there:
        raise CannotMakeError("it has no header that could lie")
    begin, (offset, width, big, _says) = there[damage["field"] % len(there)]
    if begin + offset + width > len(data):
        raise CannotMakeError("the header is cut")
    says = struct.pack(">d", float(damage["says"])) if width == 8 else None
    value = says or (damage["says"] % 2 ** (8 * width)).to_bytes(width, "big" if big else "little")
    return data[: begin + offset] + value + data[begin + offset + width :]


def _make_picture(recipe: Recipe) -> tuple[str, bytes, dict[str, float]]:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(1)
    width, height = recipe["width"], recipe["height"]
    mode = recipe["mode"]
    frames = recipe["frames"] if recipe["form"] in MOVING else 1
    pictures = []
    for at in range(frames):
        smaller = recipe["sizes"] and at % 2
        shape = (max(height // 2, 1), max(width // 2, 1), 3) if smaller else (height, width, 3)
        plain = Image.fromarray(noise.integers(0, 255, shape, np.uint8))
        pictures.append(plain.convert("I" if mode == "I;16" else mode).convert(mode))
    if not _takes(recipe["form"], pictures[0]):
        pictures = [each.convert("RGB") for each in pictures]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    if recipe["turned"] != 1 and recipe["form"] in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = recipe["turned"]
        options["exif"] = exif
    buffer = io.BytesIO()
    pictures[0].save(buffer, recipe["form"], **options)
    suffix = recipe["form"].lower() if recipe["suffix"] == "own" else recipe["suffix"]
    shown = 1 if recipe["form"] == "MPO" else frames  # the others are a phone's, for depth
    held = {"frames": shown, "pixels": width * height * shown, "samples": 0}
    return f"picture.{suffix}", buffer.getvalue(), held


def _takes(form: str, picture: Any) -> bool:
    try:
        picture.save(io.BytesIO(), form)
    except Exception:  # Pillow's writers raise almost anything
        return False
    return True


def _make_film(recipe: Recipe) -> tuple[str, bytes, dict[str, float]]:
    import av

    form, codec = FILMS[recipe["form"]]
    rate = Fraction(recipe["rate"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film"
        options = {"movflags": "faststart"} if recipe["web"] and form in ("mp4", "mov") else {}
        with av.open(str(path), "w", format=form, options=options) as container:
            packets, frames = _encode_film(container, recipe, codec, rate)
            seconds = float(recipe["frames"] / rate) * recipe["heard"]
            voice: list[Any] = []
            samples = 0.0
            if recipe["heard"] and seconds < 60:
                names = VOICES[form]
                name = names[recipe["voice"] % len(names)]
                voice, samples = _encode_sound(container, recipe, name, max(seconds, 0.05))
            for packet in _put_in_order(packets, voice, recipe["order"]):
                container.mux(packet)
        data = path.read_bytes()
    suffix = {"matroska": "mkv", "mpegts": "ts", "mpeg": "mpg", "asf": "wmv"}.get(form, form)
    held = {"frames": frames, "pixels": frames * recipe["width"] * recipe["height"], "samples": samples}
    return f"film.{suffix}", data, held


def _encode_film(container: Any, recipe: Recipe, codec: str, rate: Fraction) -> tuple[list[Any], int]:
    import av
    import numpy as np

    stream = container.add_stream(codec, rate=rate)
    if codec == "libsvtav1" and min(recipe["width"], recipe["height"]) < 64:
        raise CannotMakeError("its encoder never ends with so few pixels")
    stream.width, stream.height = recipe["width"], recipe["height"]
    odd = recipe["width"] % 2 or recipe["height"] % 2
    stream.pix_fmt = {
        "prores_ks": "yuv422p10le", "qtrle": "rgb24", "png": "rgb24", "mjpeg": "yuvj420p", "dnxhd": "yuv422p"
    }.get(codec, "yuv444p" if odd and codec in ("libx264", "libx265", "ffv1") else "yuv420p")  # fmt: skip
    if codec == "libsvtav1":
        stream.options = {"preset": "12"}
    if codec == "libx265":
        stream.options = {"x265-params": "log-level=none:pools=none", "preset": "ultrafast"}
    noise = np.random.default_rng(2)
    packets = []
    still = noise.integers(0, 255, (recipe["height"], recipe["width"], 3), np.uint8)
    for at in range(recipe["frames"]):
        frame = av.VideoFrame.from_ndarray(np.roll(still, at, 1))
        if recipe["sizes"] and at >= recipe["frames"] // 2 and codec in ("mjpeg", "png", "libx264", "libvpx"):
            frame = frame.reformat(width=recipe["width"] * 2, height=recipe["height"] * 2)
        packets += stream.encode(frame)
    packets += stream.encode()
    count = len(packets)
    if recipe["packets"] == "swapped" and count > 6:
        packets[2], packets[5] = packets[5], packets[2]
    elif recipe["packets"] == "one lost" and count > 6:
        del packets[count // 2]
    elif recipe["packets"] == "no first" and count > 1:
        del packets[0]
    step = max(int(1 / rate / stream.time_base), 1) if stream.time_base else 1
    for at, packet in enumerate(packets):
        _move(packet, at, step, count, recipe["times"])
    return packets, recipe["frames"]


def _move(packet: Any, at: int, step: int, count: int, times: str) -> None:
    """What recorders write who drop frames, begin late, or have no clock."""
    if packet.pts is None or packet.dts is None:
        return
    more = {
        "uneven": step * (at // 3) * 2,
        "late": step * 1000,
        "gap": step * 500 if at > count // 2 else 0,
        "backward": -step * 5 if at > count // 2 else 0,
        "same": -packet.dts + at,
    }.get(times, 0)
    packet.pts += more
    packet.dts += more


def _put_in_order(pictures: list[Any], voice: list[Any], order: str) -> list[Any]:
    if order == "sound before":
        return voice + pictures
    if order == "sound behind":
        return pictures + voice
    return sorted([*pictures, *voice], key=lambda each: float((each.dts or 0) * each.time_base))


#: PyAV's vorbis wants to be told.
_STRICT = {"strict": "experimental"}


def _fit(recipe: Recipe, codec: str) -> tuple[int, str]:
    """The recipe's rate and layout, or what the encoder takes in their place."""
    import av

    for rate, layout in (
        (recipe["hz"], recipe["layout"]),
        (recipe["hz"], "stereo"),
        (48_000, "stereo"),
        (8000, "mono"),
    ):
        coder = av.CodecContext.create(codec, "w")
        coder.sample_rate, coder.layout, coder.options = rate, layout, _STRICT
        coder.format = coder.codec.audio_formats[0]
        try:
            coder.open()
        except av.error.FFmpegError:
            continue
        return rate, layout
    raise CannotMakeError(f"{codec} takes neither rate nor layout")


def _encode_sound(container: Any, recipe: Recipe, codec: str, seconds: float) -> tuple[list[Any], float]:
    import av
    import numpy as np

    rate, layout = _fit(recipe, codec)
    stream = container.add_stream(codec, rate=rate, layout=layout, options=_STRICT)
    channels = stream.codec_context.layout.nb_channels
    resampler = av.AudioResampler(stream.codec_context.format or "s16", layout, rate)
    noise = np.random.default_rng(3)
    left, at, packets = int(seconds * rate), 0, []
    while left > 0:
        count = min(left, 4096)
        samples = noise.normal(0, 0.1, (channels, count)).astype(np.float32)
        if recipe["sound"] != "noise":
            samples[:] = {"silence": 0, "nan": np.nan, "loud": 40}[recipe["sound"]]
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
        frame.sample_rate, frame.pts = rate, at
        at, left = at + count, left - count
        for part in resampler.resample(frame):
            packets += stream.encode(part)
    packets += stream.encode()
    return packets, at * channels


def _make_sound(recipe: Recipe) -> tuple[str, bytes, dict[str, float]]:
    import av

    form, codec = SOUNDS[recipe["form"]]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        packets, samples = _encode_sound(container, recipe, codec, recipe["seconds"])
        for packet in packets:
            container.mux(packet)
    suffix = {"ipod": "m4a", "adts": "aac", "matroska": "mka", "asf": "wma", "mpegts": "ts"}.get(form, form)
    return f"sound.{suffix}", buffer.getvalue(), {"frames": 0, "pixels": 0, "samples": samples}
