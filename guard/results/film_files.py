"""Check films and sounds through PyAV: do they open, decode, move and sound?

Only the demuxer that belongs to the file's first bytes may open it, so that a playlist in disguise cannot send libav
anywhere. Frames are looked at one by one and released, so memory does not grow with their number. Where the budget
ends, the rest of a film is sampled at its key frames instead of being decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..settings import ResultsSettings
from .budget import Budget, BudgetFile
from .containers import BrokenFileError, Kind
from .content import THUMB_SIDE, Footage, Levels, Range, Thumb, find_blank
from .findings import Facts, Fault, Finding
from .samples import read_samples

#: Compare at least about this many frames of a film, and at least one of every so many.
_SAMPLES = 32
_SAMPLE_EVERY = 64
#: Where the budget has ended, look at this many key frames, spread over the rest.
_JUMPS = 8
#: Let libav read this much at a time; its own 32 KB cause many small calls into Python.
_BUFFER = 1 << 18
#: libav looks at no more streams; no result has so many.
_MAX_STREAMS = 64
#: libav notes key frames as they come, and moves those that come out of order past all others: so many bytes of them.
_MOST_NOTED = 2**17
#: How far the mean of a sound's samples may lie from the middle, as a share of full scale: of what is heard, on it.
_MOST_ASIDE = 0.3
#: Which share of an Opus sound's power may be that of the means of its 20 ms: of a note of 20 Hz it is 0.57, of a
#: constant 0.98. Opus takes a constant out, and leaves a fading one.
_MOST_STILL = 0.95
#: Containers that do not count their frames, but say how long all lasts; headers and packets round that.
_COUNTS_TIME, _ROUNDED_S = "matroska", 0.25
#: Where an edit list cuts a film, so many pictures that are shown last may lie behind the cut: encoders write them in
#: another order than they are shown in, x264 by two.
_REORDERED = 4
#: FLAC counts its samples; so much may be missing.
_MISSED_S = 0.02
#: A decoder may allocate this much for one frame: 16k × 8k. libav's own limit is twice as much.
MAX_FRAME_PIXELS = 2**27


def describe_opening(kind: Kind | None) -> dict[str, Any]:
    """What `av.open` gets besides the source; it can be written as JSON."""
    return {
        "mode": "r",
        "format": kind.demuxer if kind else None,
        "buffer_size": _BUFFER,
        "options": {"max_streams": str(_MAX_STREAMS), "indexmem": str(_MOST_NOTED)},
    }


def open_container(source: Any, kind: Kind | None, *, strict: bool = False) -> Any:
    """Open the container. Titles in a broken encoding are no fault of the film: PyAV up to 18 must be told so.

    With `strict` it is not, as by ComfyUI's loaders: that raises UnicodeDecodeError.
    """
    import av  # heavy: only when there is a film or a sound to look at

    facts = describe_opening(kind)
    opens: Any = av.open  # its types name this argument up to 18 only
    if strict:
        return opens(source, **facts)
    try:
        return opens(source, metadata_errors="ignore", **facts)
    except TypeError:
        return opens(source, **facts)


def check(source: Any, kind: Kind | None, settings: ResultsSettings, budget: Budget) -> Facts:
    """Decode every frame of the first film and every sound of the first track, as far as the budget goes.

    Args:
        source: a :class:`BudgetFile`; from nodes also a path or a BytesIO.
        kind: which demuxer may open it; None leaves that to libav, for files that did not come from a prompt.

    Raises:
        BrokenFileError: it has neither pictures nor sound, or fewer frames than it says.
        Exception: whatever libav raises for a damaged file.
    """
    if isinstance(source, BudgetFile):
        source.seek(0)
    with open_container(source, kind) as container:
        # A stream without a codec context is one that this libav cannot decode; touching its packets crashes it.
        film = next((s for s in container.streams.video if s.codec_context is not None and not is_cover(s)), None)
        sound = next((s for s in container.streams.audio if s.codec_context is not None), None)
        if film is not None:
            return _check_film(container, film, sound, settings, budget)
        if sound is not None:
            return _check_sound(container, sound, settings, budget)
        if container.streams.video or container.streams.audio:
            raise BrokenFileError("it has no stream that this server can decode")
    raise BrokenFileError("it has neither pictures nor sound")


def is_cover(stream: Any) -> bool:
    """Whether it is a picture attached to a sound."""
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _check_film(container: Any, film: Any, sound: Any, settings: ResultsSettings, budget: Budget) -> Facts:
    import av

    if film.width * film.height > min(settings.max_image_pixels, MAX_FRAME_PIXELS):
        raise BrokenFileError(f"its frames have {film.width} × {film.height} pixels")
    film.thread_type = "AUTO"
    film.codec_context.options = {**film.codec_context.options, "max_pixels": str(MAX_FRAME_PIXELS)}
    rate = float(film.average_rate or film.guessed_rate or 0)
    announced_s = float(container.duration / av.time_base) if container.duration else None
    announced = int(film.frames or (rate * announced_s if announced_s else 0))
    step = min(max(announced // _SAMPLES, 1), _SAMPLE_EVERY)

    viewer = _Viewer(settings)
    loudness = Loudness(sound.codec_context.name) if sound is not None else None
    frames = 0
    damaged = 0
    last: Any = None
    first_s: float | None = None
    last_s = 0.0
    partly = False
    reach = _Reach()
    for frame in _decode(container, film, sound, reach):
        budget.check()
        if not isinstance(frame, av.VideoFrame):
            if loudness is not None:
                loudness.hear(frame)
            continue
        damaged += frame.is_corrupt
        if frame.time is not None:
            first_s = frame.time if first_s is None else first_s
            last_s = max(last_s, float(frame.time))
        budget.take(frame.width * frame.height)
        last = frame
        if frames % step == 0:
            viewer.see(frame)
            last = None
        frames += 1
        if budget.spent:
            partly = True
            break
    if not frames:
        raise BrokenFileError("it has no frames")
    if damaged:
        raise BrokenFileError(f"{damaged} of its {frames} frames are damaged")
    if last is not None:
        viewer.see(last)
    if partly:
        for frame in _sample_rest(container, film, last_s, announced_s, budget):
            viewer.see(frame)
        frames = max(announced, frames)
    elif frames < (shown := _count_shown(film, rate)) * (1 - settings.duration_tolerance):
        raise BrokenFileError(f"{frames} of {shown} frames are there")
    elif container.format.name.startswith(_COUNTS_TIME) and announced_s and reach.knows_all(container):
        missing_s = announced_s - reach.end_s
        if missing_s > max(announced_s * settings.duration_tolerance, _ROUNDED_S):
            raise BrokenFileError(f"{reach.end_s:.3g} of {announced_s:.3g} seconds are there")

    shown_s = last_s - (first_s or 0) + (1 / rate if rate else 0)
    duration_s = (announced_s or shown_s) if partly else max(shown_s, 0)
    warnings = ["partly_checked"] if partly else []
    if loudness is not None:
        loudness.check(settings)
    if sound is not None and loudness is not None and not partly and loudness.is_silent(settings):
        warnings.append("silent_audio")
    return Facts(
        kind="video",
        width=film.width,
        height=film.height,
        frames=frames,
        fps=round(rate, 3) or None,
        duration_s=round(duration_s, 3),
        findings=tuple(viewer.footage.findings()),
        warnings=tuple(warnings),
        audio=sound is not None,
    )


def _count_shown(film: Any, rate: float) -> int:
    """How many frames its container says that there are; where it shows a part of them, as editors cut, how many those
    are."""
    if not film.frames or not film.duration or not rate:
        return int(film.frames or 0)
    shown = round(float(film.duration * film.time_base) * rate)
    if shown < film.frames and film.codec_context.has_b_frames:
        shown -= _REORDERED
    return min(int(film.frames), shown)


class _Reach:
    """Where the last packet ends."""

    def __init__(self) -> None:
        self.end_s = 0.0
        self.streams = 0

    def take(self, packet: Any) -> None:
        if packet.size and packet.pts is not None and packet.time_base is not None:
            self.end_s = max(self.end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def knows_all(self, container: Any) -> bool:
        return self.streams == len(container.streams)


def _decode(container: Any, film: Any, sound: Any, reach: _Reach) -> Iterator[Any]:
    """Decode both streams, frame by frame. A sound of which nothing can be decoded does not make the film a bad one.

    Raises BrokenFileError where it breaks off.
    """
    import av

    streams = [film, sound] if sound is not None else [film]
    reach.streams = len(streams)
    deaf = heard = False
    for packet in container.demux(streams):
        reach.take(packet)
        if packet.stream is film:
            yield from packet.decode()
        elif not deaf:
            try:
                sounds = packet.decode()
            except av.error.FFmpegError:
                if heard:
                    raise BrokenFileError("its sound is damaged") from None
                deaf = True
                continue
            heard = heard or bool(sounds)
            yield from sounds


def _sample_rest(container: Any, film: Any, from_s: float, until_s: float | None, budget: Budget) -> Iterator[Any]:
    """Decode key frames spread over the rest, and pass over those that cannot be reached."""
    import av

    if until_s is None or until_s <= from_s:
        return
    for jump in range(1, _JUMPS + 1):
        budget.check()
        target_s = from_s + (until_s - from_s) * jump / (_JUMPS + 1)
        try:
            container.seek(int(target_s / film.time_base), stream=film)
            yield from itertools.islice(container.decode(film), 1)
        except (av.error.FFmpegError, StopIteration):
            continue


class _Viewer:
    """Looks at frames. All share one scaler: setting one up takes longer than decoding a calm frame."""

    def __init__(self, settings: ResultsSettings) -> None:
        from av.video.reformatter import VideoReformatter

        self._scaler: Any = VideoReformatter()
        self._settings = settings
        self.footage = Footage(settings)

    def see(self, frame: Any) -> None:
        self.footage.see(find_blank(_measure_levels(frame), self._settings), self._make_thumbnail(frame))

    def _make_thumbnail(self, frame: Any) -> Thumb:
        """Scale in 16 bits: rounding to whole levels would hide, or feign, a movement of one."""
        width, height = min(THUMB_SIDE, frame.width), min(THUMB_SIDE, frame.height)
        small = self._scaler.reformat(frame, width=width, height=height, format="gray16le", interpolation="AREA")
        lines: NDArray[Any] = np.frombuffer(small.planes[0], "<u2").reshape(-1, small.planes[0].line_size // 2)
        thumb: Thumb = lines[:height, :width].astype(np.float32)
        thumb /= 257
        return thumb


def _measure_levels(frame: Any) -> Levels:
    """Measure the planes themselves where they are Y, Cb and Cr, as nearly always, instead of converting the frame."""
    format = frame.format
    bits = format.components[0].bits if format.components else 0
    if format.is_planar and not format.is_rgb and 8 <= bits <= 16 and not format.name.endswith("be"):
        luma, *chroma = [_measure_plane(plane, bits) for plane in itertools.islice(frame.planes, 3)]
        full = format.name.startswith("yuvj") or int(frame.color_range) == 2
        if not full:  # black is 16 and white is 235
            luma = (_stretch(luma[0]), _stretch(luma[1]))
        return Levels([luma], chroma)
    pixels = frame.to_ndarray(format="rgb24")
    return Levels([(float(pixels[..., band].min()), float(pixels[..., band].max())) for band in range(3)])


def _stretch(level: float) -> float:
    return min(max((level - 16) * 255 / 219, 0.0), 255.0)


def _measure_plane(plane: Any, bits: int) -> Range:
    """The darkest and brightest level of a plane, scaled to 8 bits."""
    size = 1 if bits == 8 else 2
    lines: NDArray[Any] = np.frombuffer(plane, np.uint8 if size == 1 else np.dtype("<u2"))
    lines = lines.reshape(-1, plane.line_size // size)[: plane.height, : plane.width]
    scale = 2.0 ** (bits - 8)
    return float(lines.min()) / scale, float(lines.max()) / scale


class Loudness:
    """The loudest sample of a track, as a share of full scale, and their mean. Constant memory."""

    def __init__(self, codec: str) -> None:
        """`codec` is libav's name of the track's decoder."""
        self.peak = 0.0
        self.seconds = 0.0
        self._is_opus = codec in ("opus", "libopus")
        self._sum = 0.0
        self._samples = 0
        #: Of Opus: the power of all, and that of the frames' means.
        self._power = 0.0
        self._still = 0.0

    def hear(self, frame: Any) -> None:
        samples = read_samples(frame)
        self.seconds += frame.samples / frame.sample_rate if frame.sample_rate else 0.0
        if not samples.size:
            return
        low, high = float(samples.min()), float(samples.max())
        if not np.isfinite(low + high):
            raise BrokenFileError("it has samples that are NaN or infinite")
        if samples.dtype.kind == "f":
            middle, full = 0.0, 1.0
        elif samples.dtype.kind == "u":
            middle, full = 128.0, 128.0
        else:
            middle, full = 0.0, -float(np.iinfo(samples.dtype).min)
        self.peak = max(self.peak, (high - middle) / full, (middle - low) / full)
        mean = (float(samples.mean(dtype=np.float64)) - middle) / full
        self._sum += mean * samples.size
        self._samples += samples.size
        if self._is_opus:
            self._still += mean**2 * samples.size
            self._power += float(np.square(samples / full, dtype=np.float64).sum())

    def check(self, settings: ResultsSettings) -> None:
        """Raises BrokenFileError where it is no sound: encoders take what a model has made of no numbers for the end of
        the scale, or for the end and nothing by turns."""
        is_aside = self._samples and abs(self._sum / self._samples) > _MOST_ASIDE
        if is_aside or (self._still > self._power * _MOST_STILL and not self.is_silent(settings)):
            raise BrokenFileError("its samples lie at one end of the scale, as where a model has made no numbers")

    def is_silent(self, settings: ResultsSettings) -> bool:
        return self.peak <= 10 ** (settings.silent_dbfs / 20)


def _check_sound(container: Any, sound: Any, settings: ResultsSettings, budget: Budget) -> Facts:
    import av

    announced_s = float(container.duration / av.time_base) if container.duration else None
    loudness = Loudness(sound.codec_context.name)
    partly = False
    for frame in container.decode(sound):
        budget.check()
        loudness.hear(frame)
        if budget.spent:
            partly = True
            break
    if not loudness.seconds:
        raise BrokenFileError("it has no sound")
    if not partly and announced_s and loudness.seconds < announced_s * (1 - settings.duration_tolerance):
        raise BrokenFileError(f"{loudness.seconds:.3g} of {announced_s:.3g} seconds are there")
    counted_s = float(sound.duration * sound.time_base) if container.format.name == "flac" and sound.duration else 0.0
    if not partly and loudness.seconds < counted_s - _MISSED_S:
        raise BrokenFileError(f"{loudness.seconds:.3g} of {counted_s:.3g} seconds are there")
    loudness.check(settings)
    findings: tuple[Finding, ...] = ()
    if not partly and loudness.is_silent(settings):
        peak_dbfs = 20 * float(np.log10(max(loudness.peak, 1e-6)))
        text = f"its loudest sample is at {peak_dbfs:.0f} dBFS"
        findings = (Finding(Fault.SILENT, text, round(peak_dbfs, 1), settings.silent_dbfs),)
    duration_s = announced_s if partly and announced_s else loudness.seconds
    return Facts(
        kind="audio",
        duration_s=round(duration_s, 3),
        findings=findings,
        warnings=("partly_checked",) if partly else (),
        audio=True,
    )
