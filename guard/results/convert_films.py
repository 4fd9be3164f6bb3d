"""Convert films through PyAV, frame by frame, with their sound and without their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import IO, Any, NamedTuple

from ..outgoing import FILM_FORMATS, ResultOptions
from .containers import BrokenFileError, Kind
from .film_files import is_cover, open_container
from .sink import NotConvertedError, Sink

_QUALITY = 75
#: Threads of an encoder that could have all: ComfyUI needs the processor as well.
_THREADS = 2
#: A decoder may allocate this much for one frame.
_MAX_FRAME_PIXELS = 2**26
_SOUND_RATE = 48000


class _Codecs(NamedTuple):
    """libav's names, and what the encoder of pictures is told besides the quality."""

    pictures: str
    sound: str
    options: dict[str, str]

    def crf(self, quality: int) -> str:
        """The encoder's own scale of quality, on which less is better."""
        return str(round(51 - 0.4 * quality if self.pictures == "libx264" else 63 - 0.45 * quality))


_CODECS = {
    "mp4": _Codecs("libx264", "aac", {"preset": "veryfast"}),
    "webm": _Codecs("libvpx-vp9", "libopus", {"b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
}


def list_formats() -> set[str]:
    """The formats that this PyAV can write."""
    import av  # heavy: only when there is a film to look at

    def can_write(name: str) -> bool:
        try:
            av.Codec(name, "w")
        except Exception:
            return False
        return True

    return {name for name in FILM_FORMATS if can_write(_CODECS[name].pictures) and can_write(_CODECS[name].sound)}


def convert(handle: IO[bytes], kind: Kind, sink: Sink, options: ResultOptions) -> tuple[int, int]:
    """Write the copy; return its width and height. Raises NotConvertedError, BrokenFileError, and what libav raises."""
    import av

    codecs = _CODECS[options.format or ""]
    with open_container(handle, kind) as source:
        film = next((s for s in source.streams.video if s.codec_context is not None and not is_cover(s)), None)
        sound = next((s for s in source.streams.audio if s.codec_context is not None), None)
        if film is None:
            raise BrokenFileError("it has no pictures")
        if film.width * film.height > _MAX_FRAME_PIXELS:
            raise NotConvertedError("too_large")
        film.thread_count = _THREADS
        film.codec_context.options = {**film.codec_context.options, "max_pixels": str(_MAX_FRAME_PIXELS)}
        width, height = _fit(film.width, film.height, options.max_side)
        # Its own names and times are metadata as well.
        muxed = {"movflags": "+faststart"} if options.format == "mp4" else {}
        with av.open(sink.path, "w", format=options.format, options={**muxed, "fflags": "+bitexact"}) as target:
            pictures = _Pictures(target, film, codecs, width, height, options.quality or _QUALITY)
            voice = _Sound(target, codecs) if sound is not None else None
            for frame in _decode(source, film, sound):
                sink.check()
                if isinstance(frame, av.VideoFrame):
                    target.mux(pictures.encode(frame))
                elif voice is not None:
                    target.mux(voice.encode(frame))
            target.mux(pictures.encode(None))
            if voice is not None:
                target.mux(voice.encode(None))
        sink.check()
    return width, height


def _fit(width: int, height: int, side: int | None) -> tuple[int, int]:
    """The size of the copy: even, as encoders want it."""
    scale = min(side / max(width, height), 1) if side is not None else 1
    return max(round(width * scale) // 2 * 2, 2), max(round(height * scale) // 2 * 2, 2)


def _decode(source: Any, film: Any, sound: Any) -> Iterator[Any]:
    """Both streams, frame by frame, as they lie in the file."""
    for packet in source.demux([film, sound] if sound is not None else [film]):
        yield from packet.decode()


class _Pictures:
    """The film's pictures on their way into the copy."""

    def __init__(self, target: Any, film: Any, codecs: _Codecs, width: int, height: int, quality: int) -> None:
        from av.video.reformatter import VideoReformatter

        rate = film.average_rate or film.guessed_rate or Fraction(25)
        self._stream = target.add_stream(codecs.pictures, rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.thread_count = _THREADS
        self._stream.options = {"crf": codecs.crf(quality), **codecs.options}
        self._base = film.time_base
        self._stream.codec_context.time_base = self._base
        self._scaler: Any = VideoReformatter()
        self._first: int | None = None
        self._last = -1

    def encode(self, frame: Any | None) -> Any:
        """The packets that the next frame makes; None ends the film."""
        if frame is None:
            return self._stream.encode(None)
        own = self._scaler.reformat(frame, width=self._stream.width, height=self._stream.height, format="yuv420p")
        at = frame.pts if frame.pts is not None else self._last + 1
        self._first = at if self._first is None else self._first
        self._last = max(at - self._first, self._last + 1)
        own.pts, own.time_base = self._last, self._base
        own.pict_type = 0  # the encoder chooses
        return self._stream.encode(own)


class _Sound:
    """The film's sound on its way into the copy."""

    def __init__(self, target: Any, codecs: _Codecs) -> None:
        import av

        self._stream = target.add_stream(codecs.sound, rate=_SOUND_RATE, layout="stereo")
        self._stream.codec_context.open()
        wanted = self._stream.codec_context
        self._resampler = av.AudioResampler(
            format=wanted.format, layout=wanted.layout, rate=wanted.sample_rate, frame_size=wanted.frame_size or None
        )

    def encode(self, frame: Any | None) -> list[Any]:
        """The packets that the next frame makes; None ends the sound."""
        packets: list[Any] = []
        for part in self._resampler.resample(frame):
            packets += self._stream.encode(part)
        if frame is None:
            packets += self._stream.encode(None)
        return packets
