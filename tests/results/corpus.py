# Over 400 lines: a line or two for each file, and what writes them.
"""The corpus: files as ComfyUI's nodes write them, good and bad, each with the verdict that it must get."""

from __future__ import annotations

import io
import itertools
import json
import math
import struct
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from . import pictures
from .pictures import Film, Picture

RATE = 44100


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        code: that it must be refused with; None where it must pass.
        warnings: exactly those that it must get, where it passes, besides `low_bitrate`: most of these films are calm.
    """

    name: str
    suffix: str
    content: Callable[[], bytes]
    code: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def filename(self) -> str:
        return self.name.replace(" ", "_") + self.suffix

    def write(self, folder: Path) -> Path:
        path = folder / self.filename
        path.write_bytes(self.content())
        return path


# Writing. ----------------------------------------------------------------------------------------------------


def bytes_of(picture: Picture) -> np.ndarray[Any, Any]:
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def image(picture: Picture, format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    shown = Image.fromarray(bytes_of(picture))
    (shown if mode == "RGB" else shown.convert(mode)).save(buffer, format=format, **options)
    return buffer.getvalue()


def with_alpha(picture: Picture, alpha: np.ndarray[Any, Any], format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([bytes_of(picture), (alpha * 255).astype(np.uint8)])).save(buffer, format=format)
    return buffer.getvalue()


def moving(film: Iterable[Picture], format: str, duration_ms: int = 40, **options: Any) -> bytes:
    first, *rest = [Image.fromarray(bytes_of(frame)) for frame in film]
    buffer = io.BytesIO()
    first.save(buffer, format=format, save_all=True, append_images=rest, duration=duration_ms, loop=0, **options)
    return buffer.getvalue()


def film(
    frames: Film,
    format: str = "mp4",
    codec: str = "libx264",
    *,
    fps: float = 25,
    pix_fmt: str = "yuv420p",
    sound: np.ndarray[Any, Any] | None = None,
    sound_codec: str = "aac",
    movflags: str = "",
    **options: str,
) -> bytes:
    """A film as ComfyUI's SaveVideo and SaveWEBM write it. `sound`: samples of one channel, float."""
    buffer = io.BytesIO()
    # libav rewrites a faststart file by its name.
    with tempfile.TemporaryDirectory() as folder:
        target: Any = str(Path(folder) / f"x.{format}") if movflags else buffer
        _write_film(target, frames, format, codec, fps, pix_fmt, sound, sound_codec, movflags, options)
        return Path(target).read_bytes() if movflags else buffer.getvalue()


def _write_film(
    target: Any,
    frames: Film,
    format: str,
    codec: str,
    fps: float,
    pix_fmt: str,
    sound: np.ndarray[Any, Any] | None,
    sound_codec: str,
    movflags: str,
    options: dict[str, str],
) -> None:
    with av.open(target, mode="w", format=format, options={"movflags": movflags} if movflags else {}) as output:
        stream: Any = output.add_stream(codec, rate=Fraction(round(fps * 1000), 1000), options=options)
        track: Any = output.add_stream(sound_codec, rate=_rate(sound_codec)) if sound is not None else None
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pix_fmt
            output.mux(stream.encode(av.VideoFrame.from_ndarray(bytes_of(picture), format="rgb24")))
        output.mux(stream.encode())
        if track is not None and sound is not None:
            _encode_sound(output, track, sound)


def _rate(codec: str) -> int:
    return 48000 if codec == "libopus" else RATE


def _encode_sound(output: Any, track: Any, samples: np.ndarray[Any, Any]) -> None:
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = RATE
    frame.pts = 0
    output.mux(track.encode(frame))
    output.mux(track.encode())


def sound(samples: np.ndarray[Any, Any], format: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=format) as output:
        _encode_sound(output, output.add_stream(codec, rate=_rate(codec)), samples)
    return buffer.getvalue()


def tone(seconds: float = 3, dbfs: float = -12) -> np.ndarray[Any, Any]:
    return 10 ** (dbfs / 20) * np.sin(np.arange(int(seconds * RATE)) * 2 * np.pi * 440 / RATE)


def silence(seconds: float = 3) -> np.ndarray[Any, Any]:
    return np.zeros(int(seconds * RATE))


def wav(samples: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(RATE)
        output.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def float_wav(samples: np.ndarray[Any, Any]) -> bytes:
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, RATE, RATE * 4, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Breaking. ---------------------------------------------------------------------------------------------------


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def emptied(content: bytes, share: float) -> bytes:
    """The rest is zeros, as after a crash on a file system that allocates ahead."""
    kept = cut(content, share)
    return kept + bytes(len(content) - len(kept))


def flipped(content: bytes) -> bytes:
    """One bit in the middle is wrong."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def bomb() -> bytes:
    """A PNG of 60,000 × 60,000 pixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(2_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# The cases. --------------------------------------------------------------------------------------------------


def _stills() -> Iterable[Case]:
    for name, make in pictures.GOOD.items():
        yield Case(f"{name} png", ".png", partial(lambda make: image(make(), "PNG"), make))
        yield Case(f"{name} jpeg", ".jpg", partial(lambda make: image(make(), "JPEG", quality=90), make))
    scene = pictures.landscape
    yield Case("landscape 1024 png", ".png", lambda: image(scene(1024), "PNG"))
    yield Case("progressive jpeg", ".jpg", lambda: image(scene(), "JPEG", progressive=True))
    yield Case("cmyk jpeg", ".jpg", lambda: image(scene(), "JPEG", mode="CMYK"))
    yield Case("greyscale png", ".png", lambda: image(scene(), "PNG", mode="L"))
    yield Case("palette png", ".png", lambda: image(scene(), "PNG", mode="P"))
    yield Case("one bit png", ".png", lambda: image(scene(), "PNG", mode="1"))
    yield Case("16 bit png", ".png", _sixteen_bits)
    yield Case("lossy webp", ".webp", lambda: image(scene(), "WEBP", quality=80))
    yield Case("lossless webp", ".webp", lambda: image(pictures.dither(), "WEBP", lossless=True))
    yield Case("night webp", ".webp", lambda: image(pictures.night(), "WEBP", quality=80))
    yield Case("fog webp", ".webp", lambda: image(pictures.fog(1024), "WEBP", quality=95))
    yield Case("silhouette png", ".png", lambda: with_alpha(pictures.flat((0, 0, 0)), _shape()))
    yield Case("silhouette webp", ".webp", lambda: with_alpha(scene(), _shape(), "WEBP"))
    yield Case("jpeg with a thumbnail", ".jpg", _jpeg_with_thumbnail)
    yield Case("png called jpg", ".jpg", lambda: image(scene(), "PNG"))
    yield Case("still gif", ".gif", lambda: image(scene(), "GIF", mode="P"))

    for name, level in (
        ("black", (0, 0, 0)),
        ("white", (1, 1, 1)),
        ("grey", (0.5, 0.5, 0.5)),
        ("red", (0.8, 0.1, 0.1)),
    ):
        blank = partial(pictures.flat, level, 1024)
        yield Case(f"{name} png", ".png", partial(lambda make: image(make(), "PNG"), blank), "result_blank")
        yield Case(f"{name} jpeg", ".jpg", partial(lambda make: image(make(), "JPEG"), blank), "result_blank")
    webp = partial(image, format="WEBP", quality=80)
    yield Case("nearly flat webp", ".webp", lambda: webp(pictures.nearly_flat(1024)), "result_blank")
    yield Case("nearly flat png", ".png", lambda: image(pictures.nearly_flat(), "PNG"), "result_blank")
    yield Case("nearly flat jpeg", ".jpg", lambda: image(pictures.nearly_flat(), "JPEG", quality=95), "result_blank")
    yield Case("nearly black png", ".png", lambda: image(pictures.nearly_black(), "PNG"), "result_blank")
    yield Case("nearly black jpeg", ".jpg", lambda: image(pictures.nearly_black(), "JPEG"), "result_blank")
    yield Case("saved nan png", ".png", lambda: image(pictures.flat((0, 0, 0), 1024), "PNG"), "result_blank")
    yield Case("transparent png", ".png", lambda: with_alpha(scene(), _shape() * 0), "result_blank")
    yield Case(
        "black palette png", ".png", lambda: image(pictures.flat((0, 0, 0), 2048), "PNG", mode="P"), "result_blank"
    )
    yield Case("half a png", ".png", lambda: cut(image(scene(), "PNG"), 0.5), "result_corrupt")
    yield Case("half a jpeg", ".jpg", lambda: cut(image(scene(), "JPEG"), 0.5), "result_corrupt")
    yield Case("most of a jpeg", ".jpg", lambda: image(scene(), "JPEG")[:-2], "result_corrupt")
    yield Case(
        "half a progressive jpeg", ".jpg", lambda: cut(image(scene(), "JPEG", progressive=True), 0.5), "result_corrupt"
    )
    yield Case("half a jpeg with a thumbnail", ".jpg", lambda: cut(_jpeg_with_thumbnail(), 0.5), "result_corrupt")
    yield Case("half a webp", ".webp", lambda: cut(image(scene(), "WEBP"), 0.5), "result_corrupt")
    yield Case("half a gif", ".gif", lambda: cut(image(scene(), "GIF", mode="P"), 0.5), "result_corrupt")
    yield Case("emptied png", ".png", lambda: emptied(image(scene(), "PNG"), 0.7), "result_corrupt")
    yield Case("emptied webp", ".webp", lambda: emptied(image(scene(), "WEBP"), 0.2), "result_corrupt")
    yield Case("png with a wrong bit", ".png", lambda: flipped(image(scene(), "PNG")), "result_corrupt")
    yield Case("png bomb", ".png", bomb, "result_corrupt")
    yield Case("text called png", ".png", lambda: b"<html>502 Bad Gateway</html>" * 100, "result_corrupt")
    yield Case("zeros called jpg", ".jpg", lambda: bytes(5000), "result_corrupt")
    yield Case("nothing called png", ".png", lambda: b"", "result_too_small")
    yield Case("ten bytes called png", ".png", lambda: b"\x89PNG\r\n\x1a\n\0\0", "result_too_small")


def _shape() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0 : pictures.SIDE, 0 : pictures.SIDE] / pictures.SIDE
    return np.clip(8 * (0.3 - np.hypot(y - 0.5, x - 0.5) + 0.05 * np.sin(x * 40)), 0, 1)


def _sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    grey = (pictures.landscape().mean(-1) * 65535).astype(np.uint16)
    Image.fromarray(grey).save(buffer, format="PNG")
    return buffer.getvalue()


def _jpeg_with_thumbnail() -> bytes:
    """The thumbnail in its header is a whole JPEG, end mark and all."""
    thumbnail = image(pictures.landscape(64), "JPEG")
    content = image(pictures.landscape(), "JPEG", quality=90)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    return content[:2] + segment + content[2:]


def _animations() -> Iterable[Case]:
    small = partial(pictures.small_motion, side=256)
    yield Case("gif of 3 frames", ".gif", lambda: moving(itertools.islice(small(), 0, 60, 20), "GIF", 200))
    yield Case("gif of 24 frames", ".gif", lambda: moving(pictures.pan(pictures.landscape(128), 24), "GIF"))
    yield Case(
        "webp of 12 frames", ".webp", lambda: moving(pictures.pan(pictures.landscape(256), 12), "WEBP", quality=80)
    )
    yield Case("calm webp", ".webp", lambda: moving(itertools.islice(small(), 0, 60, 10), "WEBP", quality=60))
    yield Case("apng of 8 frames", ".png", lambda: moving(pictures.pan(pictures.landscape(128), 8), "PNG"))
    yield Case("gif that blinks black", ".gif", lambda: moving(_blinking(), "GIF"))
    for form, suffix in (("GIF", ".gif"), ("WEBP", ".webp"), ("PNG", ".png")):  # their writers merge equal frames
        yield Case(f"{form} that ends black", suffix, partial(lambda form: moving(_ends_black(12, 4), form), form))
        breaks = partial(lambda form: moving(_ends_black(1, 15), form, lossless=True), form)
        yield Case(f"{form} that breaks off", suffix, breaks, "result_blank")
    yield Case("long gif with a pause", ".gif", lambda: moving(_pauses(), "GIF", 10), "result_blank")

    yield Case("black gif", ".gif", lambda: image(pictures.flat((0, 0, 0), 2048), "GIF", mode="P"), "result_blank")
    black = pictures.nearly_black(256)
    yield Case(
        "black webp film", ".webp", lambda: moving(pictures.pan(black, 8), "WEBP", lossless=True), "result_blank"
    )
    yield Case("frozen webp film", ".webp", lambda: moving(_shivering(), "WEBP", lossless=True), "result_corrupt")
    gif = moving(pictures.pan(pictures.landscape(64), 12), "GIF")
    yield Case("half a moving gif", ".gif", lambda: cut(gif, 0.5), "result_corrupt")
    yield Case("moving gif without its end", ".gif", lambda: gif[:-1], "result_corrupt")
    yield Case("half a moving webp", ".webp", lambda: cut(moving(small(12), "WEBP", quality=90), 0.5), "result_corrupt")
    yield Case(
        "half an apng",
        ".png",
        lambda: cut(moving(pictures.pan(pictures.landscape(128), 8), "PNG"), 0.5),
        "result_corrupt",
    )

    hidden = partial(moving, format="PNG", default_image=True)
    pan = partial(pictures.pan, pictures.landscape(128))
    nothing = np.zeros((128, 128, 3), np.float32)
    yield Case("apng with another picture first", ".png", lambda: hidden([pictures.landscape(128, 2), *pan(8)]))
    yield Case("apng with black first", ".png", lambda: hidden([nothing, *pan(3)]))
    shivering = [frame[:128, :128] for frame in _shivering()]
    yield Case(
        "apng that moves by its hidden picture alone",
        ".png",
        lambda: hidden([pictures.landscape(128, 2), *shivering]),
        "result_corrupt",
    )
    yield Case(
        "apng that is black behind its hidden picture",
        ".png",
        lambda: hidden([*pan(1), *[nothing + index / 255 for index in range(4)]]),
        "result_blank",
    )


def _blinking() -> Film:
    for index, frame in enumerate(pictures.pan(pictures.landscape(128), 12)):
        yield frame * (index % 3 != 0)


def _ends_black(frames: int, black: int) -> Film:
    yield from pictures.pan(pictures.landscape(128), frames)
    yield from pictures.still_of(np.zeros((128, 128, 3), np.float32), black)


def _pauses() -> Film:
    """Black for most of its time in one frame, which is none of those that are compared."""
    scene = [*pictures.pan(pictures.landscape(32), 67)]
    yield from scene[:33]
    yield from pictures.still_of(scene[0] * 0, 100)
    yield from scene[33:]


def _shivering() -> Film:
    """The same picture with a level of noise: an encoder that merges equal frames keeps these."""
    for seed in range(8):
        noise = np.random.default_rng(seed).integers(-1, 2, (256, 256, 3)) / np.float32(255)
        yield np.clip(pictures.landscape(256) + noise, 0, 1).astype(np.float32)


def _films() -> Iterable[Case]:
    def head(**options: Any) -> bytes:
        return film(pictures.talking_head(), **options)

    def scene(side: int = 256, frames: int = 50, seed: int = 1) -> Film:
        return pictures.pan(pictures.landscape(side, seed), frames)

    yield Case("talking head 15 s", ".mp4", head)
    yield Case("talking head 15 s with sound", ".mp4", lambda: head(sound=tone(15)))
    yield Case("talking head 15 s, small", ".mp4", lambda: head(crf="33"))
    yield Case("still camera, small motion", ".mp4", lambda: film(pictures.small_motion()))
    yield Case("still camera, small file", ".mp4", lambda: film(pictures.small_motion(), crf="33"))
    yield Case(
        "still camera, webm", ".webm", lambda: film(pictures.small_motion(50), "webm", "libvpx-vp9", crf="32", b="0")
    )
    yield Case("breathing light", ".mp4", lambda: film(pictures.breathing()))
    yield Case("one second", ".mp4", lambda: film(scene(frames=25)))
    yield Case("night film", ".mp4", lambda: film(pictures.pan(pictures.night(256), 75)))
    yield Case("fog film", ".mp4", lambda: film(pictures.pan(pictures.fog(512), 75), crf="5"))
    yield Case("fade in", ".mp4", lambda: film(pictures.fade_in()))
    yield Case("webm vp9", ".webm", lambda: film(scene(), "webm", "libvpx-vp9", crf="32", b="0"))
    yield Case(
        "webm vp9 with sound",
        ".webm",
        lambda: film(scene(), "webm", "libvpx-vp9", sound=tone(2), sound_codec="libopus", crf="32", b="0"),
    )
    yield Case(
        "webm av1, 10 bits",
        ".webm",
        lambda: film(scene(frames=24), "webm", "libsvtav1", pix_fmt="yuv420p10le", crf="32", preset="8"),
    )
    yield Case("mov mjpeg", ".mov", lambda: film(scene(), "mov", "mjpeg", pix_fmt="yuvj420p"))
    yield Case("mov prores", ".mov", lambda: film(scene(frames=12), "mov", "prores_ks", pix_fmt="yuv422p10le"))
    yield Case("mkv h264", ".mkv", lambda: film(scene(), "matroska"))
    yield Case("h265", ".mp4", lambda: film(scene(), codec="libx265"))
    yield Case("444", ".mp4", lambda: film(scene(), pix_fmt="yuv444p"))
    yield Case("10 bits", ".mp4", lambda: film(scene(), pix_fmt="yuv420p10le"))
    yield Case("faststart", ".mp4", lambda: film(scene(), movflags="faststart"))
    yield Case("fragmented", ".mp4", lambda: film(scene(), movflags="frag_keyframe+empty_moov"))
    yield Case("30 fps, NTSC", ".mp4", lambda: film(scene(), fps=29.97))
    yield Case("film with a silent track", ".mp4", lambda: film(scene(), sound=silence(2)), warnings=("silent_audio",))
    yield Case("tall film", ".mp4", lambda: film(iter(frame[:, :150] for frame in scene())))

    big = partial(pictures.flat, side=2048)
    yield Case("black mp4", ".mp4", lambda: film(pictures.still_of(big((0, 0, 0)), 60)), "result_blank")
    yield Case(
        "black webm",
        ".webm",
        lambda: film(pictures.still_of(pictures.nearly_black(512), 30), "webm", "libvpx-vp9", crf="1", b="0"),
        "result_blank",
    )
    yield Case("noisy black mp4", ".mp4", lambda: film(pictures.pan(pictures.nearly_black()), crf="10"), "result_blank")
    yield Case(
        "black av1, 10 bits",
        ".webm",
        lambda: film(
            pictures.pan(pictures.nearly_black(256), 12),
            "webm",
            "libsvtav1",
            pix_fmt="yuv420p10le",
            crf="1",
            preset="8",
        ),
        "result_blank",
    )
    yield Case("grey mp4", ".mp4", lambda: film(pictures.pan(pictures.nearly_flat()), crf="0"), "result_blank")
    yield Case("breaks off", ".mp4", lambda: film(pictures.breaks_off()), "result_blank")
    yield Case("frozen mp4", ".mp4", lambda: film(pictures.frozen()), "result_corrupt")
    yield Case("frozen mp4 over keyframes", ".mp4", lambda: film(pictures.frozen(), g="12"), "result_corrupt")
    yield Case("frozen mp4, coarse", ".mp4", lambda: film(pictures.frozen(150), crf="35", g="25"), "result_corrupt")
    yield Case("frozen mp4, fine", ".mp4", lambda: film(pictures.frozen(), crf="12"), "result_corrupt")
    yield Case(
        "frozen mp4 with keyframes, coarse",
        ".mp4",
        lambda: film(pictures.frozen(200), crf="30", g="12"),
        "result_corrupt",
    )
    yield Case(
        "frozen night mp4", ".mp4", lambda: film(pictures.still_of(pictures.night(), 250), g="12"), "result_corrupt"
    )
    yield Case(
        "frozen webm",
        ".webm",
        lambda: film(pictures.frozen(50), "webm", "libvpx-vp9", crf="32", b="0"),
        "result_corrupt",
    )
    yield Case(
        "frozen av1",
        ".webm",
        lambda: film(pictures.frozen(30, 256), "webm", "libsvtav1", pix_fmt="yuv420p10le", crf="32", preset="8"),
        "result_corrupt",
    )
    yield Case("frozen h265", ".mp4", lambda: film(pictures.frozen(30), codec="libx265"), "result_corrupt")
    yield Case(
        "frozen mjpeg",
        ".mov",
        lambda: film(pictures.frozen(20, 256), "mov", "mjpeg", pix_fmt="yuvj420p", b="20000000"),
        "result_corrupt",
    )
    yield Case("frozen with sound", ".mp4", lambda: film(pictures.frozen(), sound=tone(4)), "result_corrupt")
    yield Case("half an mp4", ".mp4", lambda: cut(film(scene()), 0.5), "result_corrupt")
    yield Case("half a faststart mp4", ".mp4", lambda: cut(film(scene(), movflags="faststart"), 0.5), "result_corrupt")
    yield Case(
        "half a fragmented mp4",
        ".mp4",
        lambda: cut(film(scene(), movflags="frag_keyframe+empty_moov"), 0.5),
        "result_corrupt",
    )
    yield Case(
        "half a webm", ".webm", lambda: cut(film(scene(), "webm", "libvpx-vp9", crf="20", b="0"), 0.5), "result_corrupt"
    )
    yield Case(
        "half a mov", ".mov", lambda: cut(film(scene(), "mov", "mjpeg", pix_fmt="yuvj420p"), 0.5), "result_corrupt"
    )
    yield Case(
        "emptied faststart mp4", ".mp4", lambda: emptied(film(scene(), movflags="faststart"), 0.5), "result_corrupt"
    )
    yield Case("text called mp4", ".mp4", lambda: b"ffmpeg version 6.0\n" * 2000, "result_corrupt")
    yield Case(
        "small mp4", ".mp4", lambda: film(pictures.still_of(pictures.flat((0, 0, 0), 64), 10)), "result_too_small"
    )
    yield Case("sound called mp4", ".mp4", lambda: sound(tone(3), "mp4", "aac"), "result_corrupt")


def _sounds() -> Iterable[Case]:
    formats = {
        "wav": (".wav", wav),
        "mp3": (".mp3", partial(sound, format="mp3", codec="libmp3lame")),
        "flac": (".flac", partial(sound, format="flac", codec="flac")),
        "opus": (".ogg", partial(sound, format="ogg", codec="libopus")),
    }
    for name, (suffix, write) in formats.items():
        yield Case(f"tone {name}", suffix, partial(write, tone()))
        yield Case(f"quiet {name}", suffix, partial(write, tone(dbfs=-50)))
        yield Case(f"silent {name}", suffix, partial(write, silence()), "result_blank")
        yield Case(f"half a {name}", suffix, partial(lambda write: cut(write(tone()), 0.5), write), "result_corrupt")
    yield Case("float wav", ".wav", lambda: float_wav(tone()))
    yield Case(
        "nan wav", ".wav", lambda: float_wav(np.where(np.arange(3 * RATE) == RATE, np.nan, tone())), "result_corrupt"
    )
    nothing = np.full(3 * RATE, np.nan)  # what a model gives that overflows; encoders take it for the end of the scale
    for form, codec in (("flac", "flac"), ("mp3", "libmp3lame")):
        write = partial(sound, nothing, form, codec)
        yield Case(f"nan {form}", f".{form}", write, "result_corrupt")
    yield Case("nan opus", ".ogg", lambda: sound(nothing, "ogg", "libopus"), "result_corrupt")
    yield Case("a constant in opus", ".ogg", lambda: sound(np.full(3 * RATE, 0.3), "ogg", "libopus"), "result_corrupt")
    deep = np.sin(np.arange(3 * RATE) * 2 * np.pi * 25 / RATE) / 2
    yield Case("a deep note in opus", ".ogg", lambda: sound(deep, "ogg", "libopus"))
    aside = tone(dbfs=-40) + 0.05  # a cheap microphone's
    yield Case("a tone aside in opus", ".ogg", lambda: sound(aside, "ogg", "libopus"))
    yield Case("a tone aside in wav", ".wav", lambda: wav(aside))
    yield Case("m4a", ".m4a", lambda: sound(tone(), "ipod", "aac"))
    yield Case("text called wav", ".wav", lambda: b"not a sound" * 1000, "result_corrupt")


def glb(points: int = 400, data: bytes | None = None, scene: str = "", **said: Any) -> bytes:
    """A scene as ComfyUI's SaveGLB writes it."""
    corners = np.random.default_rng(4).random((points, 3), np.float32)
    data = corners.tobytes() if data is None else data
    shape: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": points * 12}],
        "bufferViews": [{"buffer": 0, "byteOffset": 0, "byteLength": points * 12}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": points, "type": "VEC3"} | said],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
    }
    text = (scene or json.dumps(shape)).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def tensors(shape: tuple[int, ...] = (1, 4, 8, 8), **said: Any) -> bytes:
    """A latent as ComfyUI's SaveLatent writes it."""
    size = 4 * int(np.prod(shape))
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} | said
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}
    header = json.dumps({"__metadata__": {"prompt": "{}"}, "latent_tensor": entry, "latent_format_version_0": empty})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(size)


_SVG = (
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
    '<metadata><![CDATA[{"1": "<&"}]]></metadata><path d=\'M0 0L9 9\'/></svg>'
)
#: An entity within entities: four kilobytes that would be gigabytes.
_GROWING = "".join(f'<!ENTITY e{each} "{f"&e{each - 1};" * 10}">' for each in range(1, 10))


def _others() -> Iterable[Case]:
    odd = ("unknown_kind",)
    broken = "result_corrupt"
    yield Case("a 3d model", ".glb", glb, warnings=odd)
    yield Case("a 3d model with more behind", ".glb", lambda: glb() + b"more", warnings=odd)
    yield Case("half a 3d model", ".glb", lambda: cut(glb(), 0.5), broken)
    yield Case("a 3d model without its last byte", ".glb", lambda: glb()[:-1], broken)
    yield Case("a 3d model with half its data", ".glb", lambda: glb(data=bytes(2400)), broken)
    yield Case("a 3d model that reads beyond", ".glb", lambda: glb(count=401), broken)
    yield Case("a 3d model of half a scene", ".glb", lambda: glb(scene='{"asset": {"version": "2'), broken)
    yield Case("a 3d model of another thing", ".glb", lambda: glb(scene='{"assets": 1}'), broken)
    yield Case("a 3d model as deep as can be", ".glb", lambda: glb(scene="[" * 100_000), broken)
    yield Case("a 3d model that is nowhere", ".glb", lambda: glb(data=bytes(4796) + b"\0\0\xc0\x7f"), broken)
    yield Case("a 3d model of NaN", ".glb", lambda: glb(max=[math.nan] * 3), broken)
    yield Case("a page called glb", ".glb", lambda: b"<html>busy</html>" * 100, broken)
    yield Case("a scene", ".gltf", lambda: b'{"asset": {"version": "2.0"}}', warnings=odd)
    yield Case("half a scene", ".gltf", lambda: b'{"asset": {"version": ', broken)

    yield Case("a drawing", ".svg", _SVG.encode, warnings=odd)
    yield Case("a drawing in utf-16", ".svg", lambda: _SVG.encode("utf-16"), warnings=odd)
    yield Case(
        "a drawing with a prefix", ".svg", lambda: b'<s:svg xmlns:s="http://www.w3.org/2000/svg"/>', warnings=odd
    )
    yield Case("a drawing that would grow", ".svg", lambda: _grow().encode(), warnings=odd)
    yield Case("half a drawing", ".svg", lambda: cut(_SVG.encode(), 0.5), broken)
    yield Case("a drawing without its end", ".svg", lambda: _SVG[:-6].encode(), broken)
    yield Case("a drawing with an open text", ".svg", lambda: _SVG.replace("]]>", "").encode(), broken)
    yield Case("a page called svg", ".svg", lambda: b"<html>busy</html>", broken)
    yield Case("noise called svg", ".svg", lambda: bytes(range(256)) * 9, broken)

    yield Case("a latent", ".latent", tensors, warnings=odd)
    yield Case("weights", ".safetensors", tensors, warnings=odd)
    yield Case("half a latent", ".latent", lambda: cut(tensors(), 0.5), broken)
    yield Case("a latent without its last byte", ".latent", lambda: tensors()[:-1], broken)
    yield Case("a latent with more behind", ".latent", lambda: tensors() + b"x", broken)
    yield Case("a latent with half a header", ".latent", lambda: tensors()[:60], broken)
    yield Case("a latent that is larger than it is", ".latent", lambda: tensors(dtype="F64"), broken)
    yield Case("a page called latent", ".latent", lambda: b"<html>busy</html>" * 9, broken)

    yield Case("a caption", ".txt", lambda: b"a cat", warnings=odd)
    yield Case("an empty caption", ".txt", lambda: b"", "result_too_small")


def _grow() -> str:
    return f'<!DOCTYPE svg [<!ENTITY e0 "ha">{_GROWING}]><svg><text>&e9;</text></svg>'


CASES: list[Case] = [*_stills(), *_animations(), *_films(), *_sounds(), *_others()]
