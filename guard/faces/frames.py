"""Look at the pictures of a film, or of a picture that moves, as their loader will: one at a time, within bounds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from ..results.containers import BrokenFileError
from .sounds import UnfitError

#: Of a picture that moves, so many pixels are decoded, and of a film: some seconds of work. Behind that, of a film so
#: many in pictures that stand alone.
MOST_PIXELS, MOST_OF_FILM, MOST_BEHIND = 3 * 10**8, 10**9, 10**9
#: More pictures has no file that moves: a quarter of an hour, at ten a second.
MOST_PICTURES = 10_000
#: Of the pictures that lie in one file, or that libav finds beside it by its name.
_MOST_BYTES = 2**28
#: Where all pictures are drawn on one canvas, as large as the file says at its beginning.
_ON_ONE_CANVAS = frozenset({"gif", "apng"})
#: Decoders that pass over a picture which does not stand alone, if they are asked to, and say by themselves which do.
_PASSES_OVER = frozenset(
    {
        "flv", "h263", "h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v1", "msmpeg4v2",
        "vc1", "vp8", "wmv1", "wmv2", "wmv3",
    }
)  # fmt: skip
#: What a small picture counts for, since each takes its time.
LEAST_PIXELS = 20_000
#: A larger picture is made smaller as it is converted: the loader's floats take 16 bytes a pixel.
_CONVERTED_SIDE = 1024
#: Degrees, of which PyAV leaves out the fraction: ffmpeg turns by a quarter what is less than one away from it.
#: VideoHelperSuite cuts what comes of that into rows of the width from before (`ffmpeg_frame_generator`).
_QUARTERS = (89, 90)
#: What the loader pads to such a width before it converts it, since 0.33.
_ALIGNED, MULTIPLE = ("gbrpf32le", "gbrapf32le"), 32


class Reel:
    """Takes one picture after the other.

    Args:
        opens_with: what the loader's class opens its file with. ComfyUI's own end with the first of another size, and
            so does what reads with OpenCV; ffmpeg makes all as large as the first, and turns them.
        whole: the upright size of a picture in a film's container (HEIC, AVIF). ComfyUI's loader takes the first that
            lies there, which may be a tile or another one.

    Attributes:
        count: how many were decoded.
        packets: how many there are at most, those that were not decoded with them.
        shown: how many of them ComfyUI's loader takes, which leaves out what lies before the beginning.
    """

    def __init__(
        self, stream: Any, opens_with: str, *, whole: tuple[int, int] | None = None, most_pixels: int | None = None
    ) -> None:
        self._stream = stream
        self._by_libav = opens_with == "libav"
        self._by_ffmpeg = opens_with == "ffmpeg"
        self._stacks = opens_with in ("libav", "opencv")
        self._whole = whole
        self._left, self._left_behind = most_pixels or MOST_OF_FILM, MOST_BEHIND
        self._first: tuple[int, int, str] | None = None
        self.count = self.packets = self.shown = 0

    @property
    def is_enough(self) -> bool:
        """Whether no more is decoded than what stands alone: the rest is counted by its packets."""
        return self._left <= 0

    def decode(self, packet: Any) -> None:
        """Look at what a film's packet holds.

        Raises:
            BrokenFileError: something of it cannot be decoded.
            UnfitError: as `take` does; or too much has been looked at, and there is more.
        """
        import av

        self.packets += packet.size > 0
        if self.is_enough:
            context = self._stream.codec_context
            context.skip_frame = "NONKEY"
            if packet.size and not packet.is_keyframe and context.codec.canonical_name not in _PASSES_OVER:
                return
            if self._left_behind <= 0:
                raise UnfitError(
                    f"it goes on behind its picture {self.packets}, and no more of it is looked at; "
                    "send it shorter, or as H.264"
                )
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            raise BrokenFileError(f"its picture {self.count + 1} cannot be decoded: {error.strerror}") from None
        for frame in frames:
            if frame.is_corrupt:
                raise BrokenFileError(f"its picture {self.count + 1} is damaged")
            self.take(frame)

    def take(self, frame: Any) -> None:
        """Raises UnfitError where the loader makes nothing of it, or what libav raises."""
        if self._by_libav and frame.pts is None:
            raise UnfitError("libav, with which this server loads it, cannot tell when a picture is shown")
        if self._by_ffmpeg and abs(frame.rotation) in _QUARTERS:
            raise UnfitError(
                "it is turned by a quarter, as upright films of phones are, of which this loader makes stripes; load "
                "it with another one, or send it turned"
            )
        found = frame.width, frame.height, frame.format.name
        if self._first is None:
            self._first = found
            if self._whole is not None:
                _check_is_whole(self._stream, frame, self._whole)
            if self._by_libav:
                form = _choose_format(frame)
                _convert(frame, form)
                if form in _ALIGNED and frame.width % MULTIPLE:
                    _align(frame, self._stream.time_base)
        elif self._stacks and found[: 3 if self._by_libav else 2] != self._first[: 3 if self._by_libav else 2]:
            raise UnfitError("its pictures have several sizes, which this server's loader cannot put together")
        self.count += 1
        self.shown += frame.pts is None or frame.pts >= 0
        pixels = max(frame.width * frame.height, LEAST_PIXELS)
        if self._left > 0:
            self._left -= pixels
        else:
            self._left_behind -= pixels


def count_by_libav(
    path: Path, area: int, most: int, whole: tuple[int, int] | None = None, *, fails: bool = False
) -> int:
    """Do with a picture what ComfyUI's `VideoFromFile.get_components` does, one frame at a time; returns their number.

    Its first picture may be followed by others: libav takes what was hung on for more of them. All are counted before
    any is decoded. Where libav finds none, LoadImage gives the file to Pillow.

    Args:
        area: of the first picture, in pixels; none may have more than `most`.
        whole: as `Reel` has it.
        fails: what cannot be decoded raises, as a film's loader of earlier versions does.

    Raises UnfitError, also where it would be too much work to look at all of them, or what libav raises.
    """
    import av  # heavy: only when there is such a loader

    with av.open(str(path), mode="r") as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise UnfitError("libav, with which this server loads pictures, finds none in it")
        bound(stream, most)
        packets = _list_packets(container, stream)
        pictures = sum(each.size > 0 for each in packets)
        alike = str(container.format.name) in _ON_ONE_CANVAS
        if not alike:
            check_work(pictures, area)
        reel = Reel(stream, "libav", whole=whole, most_pixels=MOST_PIXELS)
        for at, packet in enumerate(packets):
            if reel.is_enough and packet.size:
                # Of one canvas each takes as much; what has another in the middle is a second file behind the first.
                if not alike or any(bytes(each)[:4] == b"GIF8" for each in packets[at:]):
                    raise UnfitError(explain(pictures))
                return max(int(pictures), reel.count)
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                if fails:
                    raise
                continue
            for frame in frames:
                reel.take(frame)
    return reel.count


def bound(stream: Any, most: int) -> None:
    """Let a decoder allocate no more for a picture, whatever comes in the middle."""
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(most)}


def _list_packets(container: Any, stream: Any) -> list[Any]:
    packets, left = [], _MOST_BYTES
    for packet in itertools.islice(container.demux(stream), MOST_PICTURES + 2):  # the last is an empty one
        packets.append(packet)
        left -= packet.size
        if left <= 0:
            raise UnfitError(explain(len(packets)))
    if len(packets) > MOST_PICTURES + 1:
        raise UnfitError(f"it holds more than {MOST_PICTURES} pictures")
    return packets


def check_work(pictures: int, area: int) -> None:
    """Raises UnfitError where it would be too much work to decode so many: of what is not, nobody knows the size."""
    if pictures > 1 and (pictures - 1) * area > MOST_PIXELS:
        raise UnfitError(explain(pictures))


def explain(pictures: int) -> str:
    """Why a file of so many pictures is refused."""
    return (
        f"it holds some {pictures} pictures, which have more than {MOST_PIXELS // 10**6} million pixels together; "
        "so much of one file is not looked at"
    )


def _check_is_whole(stream: Any, frame: Any, whole: tuple[int, int]) -> None:
    size = (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
    if size != whole or not stream.disposition & stream.disposition.default:
        raise UnfitError(
            f"this server's loader would read {size[0]} × {size[1]} pixels of another picture in it, or of a part, and "
            f"not its {whole[0]} × {whole[1]}"
        )


def _convert(frame: Any, form: str) -> None:
    """See whether libav can convert the picture as the loader asks it to. Raises what libav raises."""
    width, height = min(frame.width, _CONVERTED_SIDE), min(frame.height, _CONVERTED_SIDE)
    frame.to_ndarray(width=width, height=height, format=form)


def _align(frame: Any, time_base: Any) -> None:
    """Pad a picture as the loader does. Raises UnfitError where libav's filters do not: a side is too small."""
    import av

    right, bottom = -frame.width % MULTIPLE, -frame.height % MULTIPLE
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
