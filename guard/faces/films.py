"""Open films and sounds as their loaders will: to the first frame, and on to the end.

A loader makes something of the half that is there. So what a container says of its own length is held against what has
come (`whole`); formats that say nothing of it (MPEG streams, MP3 and AAC without a header of their own) pass with any
length. A film is decoded, some seconds of work, since loaders pass over what is damaged, or end there. Behind that its
packets are counted, and of those pictures that stand alone the size is looked at, as far as that is some seconds, too.
What goes on behind that is refused: nobody knows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, Any

from ..cost.ranges import ENDLESS
from ..cost.values import Media
from ..results.apart import hear_apart
from ..results.containers import BrokenFileError, Kind, sniff
from ..results.film_files import MAX_FRAME_PIXELS, is_cover, open_container
from ..results.samples import MOST_PLANES
from .frames import Reel, bound
from .sounds import Counter, UnfitError, check_rate
from .whole import check_whole

#: So much of a file says what it is.
HEAD_BYTES = 400
#: What films and sounds begin with that no job makes, but people send: ((mark, where), …), holds, format, libav's
#: demuxer. What a demuxer would read that is told to, libav must know by itself, too, since loaders tell it nothing.
_MORE_KINDS: tuple[tuple[tuple[tuple[bytes, int], ...], str, str, str], ...] = (
    (((b"\x47", 4), (b"\x47", 4 + 192), (b"\x47", 4 + 2 * 192)), "video", "mpegts", "mpegts"),  # of camcorders
    (((b"AVI ", 8),), "video", "avi", "avi"),
    (((b"FLV\x01", 0), (b"\x00\x00\x00\x09", 5)), "video", "flv", "flv"),
    (((b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0),), "video", "asf", "asf"),
    (((b"\x00\x00\x01\xba", 0),), "video", "mpeg", "mpeg"),
    (((b"\x00\x00\x01\xb3", 0),), "video", "mpegvideo", "mpegvideo"),
    (((b"\x47", 0),), "video", "mpegts", "mpegts"),
    (((b"moov", 4),), "video", "mov", "mov"),
    (((b"mdat", 4),), "video", "mov", "mov"),
    (((b"wide", 4),), "video", "mov", "mov"),
    (((b"free", 4),), "video", "mov", "mov"),
    (((b"skip", 4),), "video", "mov", "mov"),
    (((b"FORM", 0),), "audio", "aiff", "aiff"),
    (((b"\xff\xf0", 0),), "audio", "aac", "aac"),
    (((b"\xff\xf1", 0),), "audio", "aac", "aac"),
    (((b"\xff\xf8", 0),), "audio", "aac", "aac"),
    (((b"\xff\xf9", 0),), "audio", "aac", "aac"),
    (((b"\xff\xfc", 0),), "audio", "mp2", "mp3"),
    (((b"\xff\xfd", 0),), "audio", "mp2", "mp3"),
    (((b"#!AMR", 0),), "audio", "amr", "amr"),
    (((b"caff", 0),), "audio", "caf", "caf"),
    (((b".snd", 0),), "audio", "au", "au"),
    (((b"wvpk", 0),), "audio", "wavpack", "wv"),
    (((b"\x0b\x77", 0),), "audio", "ac3", "ac3"),
)
#: A film of more than this is taken to be of unknown length: its header lies.
_MOST_FRAMES = 10**8
#: So much of a film is read, and so many of its packets: five hours. What is longer is refused.
_MOST_BYTES, _MOST_PACKETS = 2**33, 1_000_000
#: Samples that ComfyUI's LoadAudio decodes and then fails on (`f32_pcm` in `comfy_extras/nodes_audio.py`).
_UNREAD = frozenset({"u8", "u8p", "s64", "s64p"})
#: Larger pictures are decoded one after the other.
_MOST_AT_ONCE = 2**24
#: What VideoHelperSuite makes of others is an error, or noise of another rate (`get_audio` in its `utils.py`).
_MOST_CHANNELS = 2
#: Where a header says how long all lasts: what may be missing of that, in seconds and as a share.
_TIMED = {"flac": (0.25, 0.0), "matroska": (1.0, 0.05), "flv": (0.5, 0.05)}


def sniff_more(head: bytes) -> Kind | None:
    """As `sniff`, and what only people send, by a file's first HEAD_BYTES."""
    if (kind := sniff(head[:32])) is not None:
        return kind
    for marks, name, form, demuxer in _MORE_KINDS:
        if all(head[at : at + len(mark)] == mark for mark, at in marks):
            return Kind(name, form, "", demuxer, lambda _handle, _size: None)
    return None


def look_at_film(handle: IO[bytes], kind: Kind, holds: str, opens_with: str = "") -> Media:
    """What a film or sound holds. Blocks on the disk; decodes what a loader sees and hears, within bounds.

    Args:
        holds: `image`, `video`, `audio`, or `media`: a film or a sound.
        opens_with: as the loader's class declares.

    Raises:
        UnfitError: it has no such thing, or no frame that can be read, or what its loader fails on.
        BrokenFileError: it ends before its end, or is damaged on the way.
        ServerUnavailableError: it cannot be looked at now.
        Exception: whatever libav raises for a damaged file.
    """
    check_whole(handle, kind)
    hear_apart(handle, kind, "" if opens_with != "libav" else "arrays" if holds == "audio" else "planes")
    with open_container(handle, kind, strict=opens_with == "libav") as container:
        films = [each for each in container.streams.video if each.codec_context is not None]
        film: Any = next((each for each in films if holds != "media" or not is_cover(each)), None)
        sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        sound = sounds[0 if holds in ("audio", "media") else -1] if sounds else None  # as ComfyUI's loaders choose
        wanted = sound if holds == "audio" else film
        if wanted is None and holds == "media":
            wanted = sound
        if wanted is None:
            raise UnfitError("it has no sound" if holds == "audio" else "it has no pictures")
        if wanted is film:
            width, height = film.codec_context.width, film.codec_context.height
            if width * height > MAX_FRAME_PIXELS:
                raise UnfitError(f"its pictures have {width} × {height} pixels")
            bound(film, MAX_FRAME_PIXELS)
        # Those of ComfyUI end with the first packet of sound that cannot be decoded, with which a cut one mostly ends.
        hears = opens_with == "libav"
        if sound is not None and (hears or wanted is sound):
            check_rate(sound)
        if sound is not None and hears:
            _check_planes(sound, wanted is sound)
        if wanted is sound and opens_with == "ffmpeg" and sound.codec_context.layout.nb_channels > _MOST_CHANNELS:
            count = sound.codec_context.layout.nb_channels
            raise UnfitError(f"it has {count} channels, of which this loader makes noise; send it in stereo")
        first = next(container.decode(wanted), None)
        if first is None:
            raise UnfitError("it has no frame that can be read")
        if holds == "audio" and opens_with == "libav" and first.format.name in _UNREAD:
            raise UnfitError("its samples have 8 or 64 bits, of which ComfyUI's loader makes nothing; send it with 16")
        media = _measure(container, film, wanted, holds)
        chosen = [each and each.index for each in (film, sound)]
    sees = wanted is film and holds != "media"
    if sound is None and kind.demuxer not in _TIMED and not sees:
        return media
    handle.seek(0)
    with open_container(handle, kind) as container:  # anew: on the way to the first picture sounds are passed over
        walk = _Walk(container, kind, chosen, opens_with, sees=sees)
        walk.go_to_end(hears=hears)
    return walk.measure(media, of_sound=wanted is sound)


def _check_planes(sound: Any, alone: bool) -> None:
    """Raises UnfitError where ComfyUI's loaders, which give frames to PyAV as they are, would end the whole server.

    Args:
        alone: its loader reads the sound as its decoder gives it; that of a film gets each channel a plane of its own.
    """
    context = sound.codec_context
    count = context.layout.nb_channels
    if count > MOST_PLANES and (not alone or context.format is None or context.format.is_planar):
        raise UnfitError(
            f"it has {count} channels, with which this server's loader would end the server; send it in stereo"
        )


class _Walk:
    """Reads on to a film's or sound's last packet, and counts what is there.

    `chosen`: the places of film and sound. `sees`: the film's pictures count, and not its sound alone.
    """

    def __init__(
        self, container: Any, kind: Kind, chosen: Sequence[int | None], opens_with: str, *, sees: bool
    ) -> None:
        self._container = container
        self._kind = kind
        streams: list[Any] = [container.streams[at] if at is not None else None for at in chosen]
        self._film, self._sound = streams
        self._opens_with = opens_with
        self._is_timed = kind.demuxer in _TIMED and bool(container.duration)
        self._reel = Reel(self._film, opens_with) if sees else None
        self._count = Counter(self._sound, fails=opens_with == "libav") if self._sound is not None else None
        self._end_s = self._shown_until_s = 0.0
        self._pieces = _Pieces()
        self._guessed_rate = 0.0  # once the container is closed, libav has nothing to look at
        if sees:
            self._guessed_rate = float(self._film.guessed_rate or 0)
            bound(self._film, MAX_FRAME_PIXELS)
            if self._film.codec_context.width * self._film.codec_context.height <= _MOST_AT_ONCE:
                self._film.thread_type = "AUTO"  # several pictures at a time, each of which takes memory

    def go_to_end(self, *, hears: bool) -> None:
        """Decode within bounds, and hold the last packet's time against the header's. Raises as `look_at_film` does."""
        streams = [
            each for each in (self._film, self._sound)
            if each is not None and (self._is_timed or self._reel is not None or each is self._sound)
        ]  # fmt: skip
        begin_s = float(self._container.start_time or 0) / 1_000_000
        left_bytes, left, is_cut = _MOST_BYTES, _MOST_PACKETS, False
        for packet in self._container.demux(streams):
            at = packet.pts if packet.pts is not None else packet.dts
            until_s = 0.0
            if at is not None and packet.time_base is not None:
                until_s = float((at + (packet.duration or 0)) * packet.time_base) - begin_s
                self._end_s = max(self._end_s, until_s)
            # Not by its number: of the packets that end a stream PyAV gives that of the first.
            if self._film is not None and packet.stream is self._film:
                self._shown_until_s = max(self._shown_until_s, until_s)
                self._pieces.take(packet)
                if self._reel is not None:
                    self._reel.decode(packet)
            elif self._count is not None and packet.stream is self._sound:
                self._count.take(packet)
            if packet.size:
                is_cut = bool(packet.is_corrupt)
            left_bytes -= packet.size
            left -= 1
            if left <= 0 or left_bytes <= 0:
                if self._reel is not None:
                    raise UnfitError(f"it has more than {_MOST_PACKETS} packets or {_MOST_BYTES >> 30} GiB; cut it")
                if self._count is not None:
                    self._count.samples = self._count.seconds = ENDLESS
                return
        if is_cut and (hears or self._is_timed):
            raise BrokenFileError("its last packet is cut off")
        if self._is_timed:
            whole_s = float(self._container.duration) / 1_000_000
            missing_s, share = _TIMED[self._kind.demuxer]
            end_s = self._end_s + max(begin_s, 0.0)  # writers count from the file's beginning
            if whole_s - end_s > max(missing_s, share * whole_s):
                raise BrokenFileError(f"{end_s:.3g} of {whole_s:.3g} seconds are there")

    def measure(self, media: Media, *, of_sound: bool) -> Media:
        """What there is, by `media`, which its header says. Raises UnfitError where no picture is shown."""
        if self._count is not None:
            media = media._replace(samples=self._count.samples)
            # A header that says less than there is, or nothing, is not believed.
            if of_sound and self._count.seconds > media.seconds * 1.05 + 1:
                media = media._replace(seconds=self._count.seconds)
        if self._reel is None:
            return media
        if not self._reel.is_enough and not self._reel.shown and self._opens_with == "libav":
            raise UnfitError("all its pictures lie before its beginning, so that this server's loader shows none")
        frames = self._reel.packets if self._reel.is_enough else self._reel.count
        if self._opens_with == "ffmpeg":  # which gives one for every moment, those without a picture of their own too
            rate = max(media.rate, self._guessed_rate)
            self._shown_until_s = max(self._shown_until_s, self._pieces.seconds)
            frames = max(frames, min(math.ceil(self._shown_until_s * rate), _MOST_FRAMES))
        return media._replace(frames=frames, seconds=max(self._shown_until_s, 0.0))


class _Pieces:
    """How long a film is for ffmpeg, which puts pieces one behind the other where the time begins anew."""

    def __init__(self) -> None:
        self._run_s = self._length_s = 0.0
        self._last_s: float | None = None

    def take(self, packet: Any) -> None:
        if packet.dts is None or not packet.size or packet.time_base is None:
            return
        now_s = float(packet.dts * packet.time_base)
        step_s = now_s - self._last_s if self._last_s is not None else 0.0
        self._run_s += step_s if step_s > 0 else self._length_s
        self._last_s, self._length_s = now_s, float((packet.duration or 0) * packet.time_base)

    @property
    def seconds(self) -> float:
        return self._run_s + self._length_s


def _measure(container: Any, film: Any, wanted: Any, holds: str) -> Media:
    seconds = _find_seconds(container, wanted)
    if holds == "audio" or film is None:
        return Media(seconds=seconds)
    rate = float(film.average_rate or film.guessed_rate or 0)
    frames = max(int(film.frames or 0), round(seconds * rate))
    context = film.codec_context
    return Media(context.width, context.height, frames if frames < _MOST_FRAMES else 0, seconds, rate)


def _find_seconds(container: Any, stream: Any) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration / 1_000_000) if container.duration else 0.0
