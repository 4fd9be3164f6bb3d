# Over 400 lines: films and sounds are opened, counted and read on in one walk through an open container.
"""Open films and sounds as their loaders will: to the first frame, and on to the end without decoding.

A loader makes something of the half that is there. So what a container says of its own length is held against what has
come; formats that say nothing of it (MPEG streams, MP3 and AAC without a header of their own) pass with any length.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from ..cost.ranges import ENDLESS
from ..cost.values import Media
from ..results.containers import BrokenFileError, Kind, check_index, sniff
from ..results.film_files import MAX_FRAME_PIXELS, is_cover, open_container
from .sounds import Counter, UnfitError, check_rate

#: What films and sounds begin with that no job makes, but people send: (mark, where, holds, format, libav's demuxer).
_MORE_KINDS: tuple[tuple[bytes, int, str, str, str], ...] = (
    (b"AVI ", 8, "video", "avi", "avi"),
    (b"FLV\x01", 0, "video", "flv", "flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, "video", "asf", "asf"),
    (b"\x00\x00\x01\xba", 0, "video", "mpeg", "mpeg"),
    (b"\x00\x00\x01\xb3", 0, "video", "mpegvideo", "mpegvideo"),
    (b"\x47", 0, "video", "mpegts", "mpegts"),
    (b"moov", 4, "video", "mov", "mov"),
    (b"mdat", 4, "video", "mov", "mov"),
    (b"wide", 4, "video", "mov", "mov"),
    (b"free", 4, "video", "mov", "mov"),
    (b"skip", 4, "video", "mov", "mov"),
    (b"FORM", 0, "audio", "aiff", "aiff"),
    (b"\xff\xf0", 0, "audio", "aac", "aac"),
    (b"\xff\xf1", 0, "audio", "aac", "aac"),
    (b"\xff\xf8", 0, "audio", "aac", "aac"),
    (b"\xff\xf9", 0, "audio", "aac", "aac"),
    (b"\xff\xfc", 0, "audio", "mp2", "mp3"),
    (b"\xff\xfd", 0, "audio", "mp2", "mp3"),
    (b"#!AMR", 0, "audio", "amr", "amr"),
    (b"caff", 0, "audio", "caf", "caf"),
    (b".snd", 0, "audio", "au", "au"),
    (b"wvpk", 0, "audio", "wavpack", "wv"),
    (b"\x0b\x77", 0, "audio", "ac3", "ac3"),
)
#: A film of more than this is taken to be of unknown length: its header lies.
_MOST_FRAMES = 10**8
#: So much of a film is read after its first frame, and so many of its packets.
_MOST_BYTES, _MOST_PACKETS = 2**29, 1_000_000
#: Samples that ComfyUI's LoadAudio decodes and then fails on (`f32_pcm` in `comfy_extras/nodes_audio.py`).
_UNREAD = frozenset({"u8", "u8p", "s64", "s64p"})
#: Of a picture that moves, so many pixels are decoded.
_MOST_PIXELS = 3 * 10**8
#: The boxes at the top of a film that hold it. Behind them people's files have all sorts of things.
_BOXES = frozenset(
    {b"moov", b"mdat", b"moof", b"ftyp", b"styp", b"sidx", b"mfra", b"meta", b"uuid", b"free", b"skip", b"wide"}
)
_MOST_BOXES = 100_000
#: Where a header says how long all lasts: what may be missing of that, in seconds and as a share.
_TIMED = {"flac": (0.25, 0.0), "matroska": (1.0, 0.05), "flv": (0.5, 0.05)}
#: Writers that count the first eight bytes of a RIFF file among those behind them.
_RIFF_HEAD = 8


def sniff_more(head: bytes) -> Kind | None:
    """As `sniff`, and what only people send."""
    if (kind := sniff(head[:32])) is not None:
        return kind
    for mark, at, name, form, demuxer in _MORE_KINDS:
        if head[at : at + len(mark)] == mark:
            return Kind(name, form, "", demuxer, lambda _handle, _size: None)
    return None


def look_at_film(handle: IO[bytes], kind: Kind, holds: str, opens_with: str = "") -> Media:
    """What a film or sound holds. Blocks on the disk; decodes one frame, and what a loader hears, within bounds.

    Args:
        holds: `video`, `audio`, or `media`: a film or a sound.
        opens_with: as the loader's class declares.

    Raises:
        UnfitError: it has no such thing, or no frame that can be read.
        BrokenFileError: it ends before its end.
        Exception: whatever libav raises for a damaged file.
    """
    check_whole(handle, kind)
    handle.seek(0)
    with open_container(handle, kind) as container:
        films = [each for each in container.streams.video if each.codec_context is not None]
        film = next((each for each in films if holds != "media" or not is_cover(each)), None)
        sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        sound = sounds[-1 if holds == "video" else 0] if sounds else None  # as ComfyUI's loaders choose
        wanted = sound if holds == "audio" else film
        if wanted is None and holds == "media":
            wanted = sound
        if wanted is None:
            raise UnfitError("it has no sound" if holds == "audio" else "it has no pictures")
        if wanted is film:
            width, height = film.codec_context.width, film.codec_context.height
            if width * height > MAX_FRAME_PIXELS:
                raise UnfitError(f"its pictures have {width} × {height} pixels")
            film.codec_context.options = {**film.codec_context.options, "max_pixels": str(MAX_FRAME_PIXELS)}
        # Those of ComfyUI end with the first packet of sound that cannot be decoded, with which a cut one mostly ends.
        hears = opens_with == "libav"
        if sound is not None and (hears or wanted is sound):
            check_rate(sound)
        first = next(container.decode(wanted), None)
        if first is None:
            raise UnfitError("it has no frame that can be read")
        if holds == "audio" and opens_with == "libav" and first.format.name in _UNREAD:
            raise UnfitError("its samples have 8 or 64 bits, of which ComfyUI's loader makes nothing; send it with 16")
        media = _measure(container, film, wanted, holds)
        chosen = [each and each.index for each in (film, sound)]
    if sound is None and kind.demuxer not in _TIMED:
        return media
    handle.seek(0)
    with open_container(handle, kind) as container:  # anew: on the way to the first picture sounds are passed over
        count = _go_to_end(container, kind, chosen, hears=hears)
    if count is None:
        return media
    # A header that says less than there is, or nothing, is not believed.
    is_sound = wanted is sound and count.seconds > media.seconds * 1.05 + 1
    return media._replace(samples=count.samples, seconds=count.seconds if is_sound else media.seconds)


def _go_to_end(container: Any, kind: Kind, chosen: Sequence[int | None], *, hears: bool) -> Counter | None:
    """Read on to the last packet, count the sound, and hold the last packet's time against the header's.

    `chosen`: the places of film and sound. Returns what was counted of the sound.
    """
    film, sound = (container.streams[at] if at is not None else None for at in chosen)
    is_timed = kind.demuxer in _TIMED and bool(container.duration)
    streams = [each for each in (film, sound) if each is not None and (is_timed or each is sound)]
    count = Counter(sound, fails=hears) if sound is not None else None
    if not streams:
        return count
    begin_s = float(container.start_time or 0) / 1_000_000
    end_s, left_bytes, left = 0.0, _MOST_BYTES, _MOST_PACKETS
    is_cut = False
    for packet in container.demux(streams):
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.time_base is not None:
            end_s = max(end_s, float((at + (packet.duration or 0)) * packet.time_base) - begin_s)
        if count is not None and packet.stream_index == chosen[1]:
            count.take(packet)
        if packet.size:
            is_cut = bool(packet.is_corrupt)
        left_bytes -= packet.size
        left -= 1
        if left <= 0 or left_bytes <= 0:
            if count is not None and (left <= 0 or film is None):
                count.samples = count.seconds = ENDLESS
            return count
    if is_cut and (hears or is_timed):
        raise BrokenFileError("its last packet is cut off")
    if is_timed:
        whole_s = float(container.duration) / 1_000_000
        missing_s, share = _TIMED[kind.demuxer]
        if whole_s - end_s > max(missing_s, share * whole_s):
            raise BrokenFileError(f"{end_s:.3g} of {whole_s:.3g} seconds are there")
    return count


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


# Pictures that a loader gives to libav. -------------------------------------------------------------------------


def count_by_libav(path: Path, whole: tuple[int, int] | None = None) -> int:
    """Do with a picture what ComfyUI's `VideoFromFile.get_components` does, one frame at a time; returns their number.

    Where libav finds none, LoadImage gives the file to Pillow. Raises UnfitError, or what libav raises.

    Args:
        whole: the upright size of a picture in a film's container (HEIC, AVIF). The loader takes the first that lies
            there, which may be a tile or another one.
    """
    import av  # heavy: only when there is such a loader

    left, count = _MOST_PIXELS, 0
    shape: tuple[int, int, str] | None = None
    with av.open(str(path), mode="r") as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise UnfitError("libav, with which this server loads pictures, finds none in it")
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                if frame.pts is None:
                    raise UnfitError("libav, with which this server loads pictures, cannot tell when it is shown")
                found = frame.width, frame.height, frame.format.name
                if shape is None:
                    if whole is not None:
                        _check_is_whole(stream, frame, whole)
                    form = _choose_format(frame)
                    _convert(frame, form)
                    if form in _ALIGNED and frame.width % _MULTIPLE:
                        _align(frame, stream.time_base)
                elif found != shape:
                    raise UnfitError("its pictures have several sizes, which this server's loader cannot put together")
                shape, count = found, count + 1
                left -= frame.width * frame.height
            if left <= 0:
                break
    return count


def _check_is_whole(stream: Any, frame: Any, whole: tuple[int, int]) -> None:
    size = (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
    if size != whole or not stream.disposition & stream.disposition.default:
        raise UnfitError(
            f"this server's loader would read {size[0]} × {size[1]} pixels of another picture in it, or of a part, and "
            f"not its {whole[0]} × {whole[1]}"
        )


#: A larger picture is made smaller as it is converted: the loader's floats take 16 bytes a pixel.
_CONVERTED_SIDE = 1024


def _convert(frame: Any, form: str) -> None:
    """See whether libav can convert the picture as the loader asks it to. Raises what libav raises."""
    width, height = min(frame.width, _CONVERTED_SIDE), min(frame.height, _CONVERTED_SIDE)
    frame.reformat(width=width, height=height, format=form).to_ndarray()


#: What the loader pads to such a width before it converts it, since 0.33.
_ALIGNED, _MULTIPLE = ("gbrpf32le", "gbrapf32le"), 32


def _align(frame: Any, time_base: Any) -> None:
    """Pad a picture as the loader does. Raises UnfitError where libav's filters do not: a side is too small."""
    import av

    right, bottom = -frame.width % _MULTIPLE, -frame.height % _MULTIPLE
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=time_base)
    pad = graph.add("pad", f"{frame.width + right}:{frame.height + bottom}:0:0")
    fill = graph.add("fillborders", f"left=0:right={right}:top=0:bottom={bottom}:mode=smear")
    sink = graph.add("buffersink")
    source.link_to(pad)
    pad.link_to(fill)
    fill.link_to(sink)
    try:
        graph.configure()
        source.push(frame)
        sink.pull()
    except av.error.FFmpegError:
        size = f"{frame.width} × {frame.height}"
        raise UnfitError(f"with {size} pixels it is too small for this server's loader; send it as PNG") from None


def _choose_format(frame: Any) -> str:
    has_alpha = frame.format.name == "pal8" or any(each.is_alpha for each in frame.format.components)
    if frame.format.name in ("yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"):
        return "rgba" if has_alpha else "rgb24"
    return "gbrapf32le" if has_alpha else "gbrpf32le"


# Containers that say how many bytes they have. ---------------------------------------------------------------


def check_whole(handle: IO[bytes], kind: Kind) -> None:
    """Raises BrokenFileError where a file ends before its container does. What follows on that is nobody's matter."""
    size = os.fstat(handle.fileno()).st_size
    check = _WHOLE.get(kind.demuxer)
    if check is not None:
        check(handle, size)


def _check_boxes(handle: IO[bytes], size: int) -> None:
    position, names = 0, set()
    for _ in range(_MOST_BOXES):
        handle.seek(position)
        head = handle.read(16)
        if len(head) < 8 or head[4:8] not in _BOXES:
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            break
        position += length
        if position > size:
            raise BrokenFileError(f"its box {head[4:8].decode()} is cut off")
        names.add(head[4:8])
    if b"moov" not in names:
        raise BrokenFileError("its index is missing")
    check_index(handle, size)


def _check_ebml(handle: IO[bytes], size: int) -> None:
    handle.seek(0)
    kind = sniff(handle.read(32))
    if kind is not None:
        kind.check_whole(handle, size)


def _check_riff(handle: IO[bytes], size: int) -> None:
    """Writers that could not go back to fill in the length leave 0 or all ones."""
    handle.seek(0)
    head = handle.read(12)
    length = int.from_bytes(head[4:8], "little")
    if head[:4] == b"RIFF" and length not in (0, 0xFFFFFFFF) and length > size:
        raise BrokenFileError(f"it has {size} of {length + _RIFF_HEAD} bytes")


def _check_aiff(handle: IO[bytes], size: int) -> None:
    handle.seek(0)
    length = int.from_bytes(handle.read(8)[4:8], "big")
    if length > size:
        raise BrokenFileError(f"it has {size} of {length + 8} bytes")


def _check_asf(handle: IO[bytes], size: int) -> None:
    """The header's properties say the file's size, unless it was made to be sent as it came (the first flag)."""
    handle.seek(0)
    head = handle.read(2**16)
    at = head.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")
    if at < 0 or len(head) < at + 92:
        return
    length, flags = int.from_bytes(head[at + 40 : at + 48], "little"), head[at + 88]
    if not flags & 1 and length > size:
        raise BrokenFileError(f"it has {size} of {length} bytes")


def _check_au(handle: IO[bytes], size: int) -> None:
    handle.seek(0)
    head = handle.read(12)
    length = int.from_bytes(head[8:12], "big")
    if length != 0xFFFFFFFF and int.from_bytes(head[4:8], "big") + length > size:
        raise BrokenFileError(f"it has not all of its {length} bytes")


def _check_caf(handle: IO[bytes], size: int) -> None:
    """Its chunks say how long they are; the last one may say -1: up to the end."""
    position = 8
    for _ in range(_MOST_BOXES):
        handle.seek(position)
        head = handle.read(12)
        if len(head) < 12 or not head[:4].isalnum():
            return
        length = int.from_bytes(head[4:], "big", signed=True)
        if length < 0:
            return
        position += 12 + length
        if position > size:
            raise BrokenFileError("its last chunk is cut off")


def _check_ogg(handle: IO[bytes], size: int) -> None:
    """The last page must be all there. That it is marked as the last one, many recorders leave out."""
    position = 0
    while position + 27 <= size:
        handle.seek(position)
        head = handle.read(27 + 255)
        if head[:4] != b"OggS":
            return
        position += 27 + head[26] + sum(head[27 : 27 + head[26]])
    if position != size:
        raise BrokenFileError("its last page is cut off")


def _check_mp3(handle: IO[bytes], size: int) -> None:
    """The header that encoders put into the first frame says how many bytes follow (Xing's, or LAME's `Info`)."""
    handle.seek(0)
    head = handle.read(10)
    begin = 0
    if head[:3] == b"ID3" and len(head) == 10:
        begin = (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + 10
    handle.seek(begin)
    frame = handle.read(256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or not frame[at + 7] & 2:
        return
    at += 12 if frame[at + 7] & 1 else 8
    length = int.from_bytes(frame[at : at + 4], "big")
    if begin + length > size:
        raise BrokenFileError(f"it has {size - begin} of {length} bytes")


_WHOLE: dict[str, Callable[[IO[bytes], int], None]] = {
    "mov": _check_boxes,
    "matroska": _check_ebml,
    "wav": _check_riff,
    "avi": _check_riff,
    "aiff": _check_aiff,
    "asf": _check_asf,
    "au": _check_au,
    "caf": _check_caf,
    "ogg": _check_ogg,
    "mp3": _check_mp3,
}
