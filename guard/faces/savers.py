"""Find what a graph's savers will do with a loader's file, where they get it as it is, and whether they can.

`SaveVideo` copies a film's streams where container and codec are those that it is asked for; else it makes them anew.
Core's savers of sounds take more than two channels for two. Each of those fails on the GPU, or saves noise, so the file
is refused before there is a job. Read in ComfyUI 0.3.64 and 0.33 (`comfy_api/latest/_input_impl/video_types.py`,
`comfy_api/latest/_ui.py`, `comfy_extras/nodes_audio.py`). Behind a node that is not named here nobody knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple

from ..graph import Declared, is_link
from ..results.containers import Kind
from ..results.film_files import open_container
from .sounds import UnfitError

#: `SaveVideo`'s formats, by what libav calls them.
_CONTAINERS = {"auto": "mp4", "mp4": "mp4", "mkv": "matroska", "webm": "webm"}
#: Which of those a file's demuxer goes by, too.
_GOES_BY = {"mov": ("mp4",), "matroska": ("matroska", "webm")}
#: The most pictures a second that the encoder of AV1 takes.
_MOST_FOR_AV1 = 240
#: Which codecs of a film `SaveVideo` copies into WebM.
_IN_WEBM = frozenset({"av1", "vp8", "vp9", "opus", "vorbis", "webvtt"})
#: Nodes that save a sound, by the encoder.
_SOUND_SAVERS = {
    "SaveAudio": "flac",
    "SaveAudioMP3": "libmp3lame",
    "SaveAudioOpus": "libopus",
    "SaveAudioAdvanced": "",  # an input says
    "PreviewAudio": "flac",
}
#: Nodes that give a sound on with its channels and its rate, and by which input they take it, or its film.
_PASS_SOUND = {
    **dict.fromkeys(_SOUND_SAVERS, "audio"),
    **dict.fromkeys(("TrimAudioDuration", "AudioAdjustVolume", "AudioEqualizer3Band"), "audio"),
    **dict.fromkeys(("GetVideoComponents", "Video Slice", "SaveVideo"), "video"),
}
_STEREO, _SURROUND = (1, 2), (1, 2, 6)
#: Encoders that get a rate that they have.
_RESAMPLED = frozenset({"", "libopus"})


class Saver(NamedTuple):
    """What becomes of a file.

    Attributes:
        container: in which a film's pictures are saved; "": only its sound is.
        codec, source: copied where the film has those; "": any. With `anew` it is encoded in any case.
        encoder: of a sound; "": nobody knows.
        channels: the numbers of channels that a sound can have.
    """

    container: str = ""
    codec: str = ""
    source: str = ""
    anew: bool = False
    encoder: str = ""
    channels: tuple[int, ...] = ()


def find_savers(
    graph: Mapping[str, Any], alive: Iterable[str], describe: Callable[[str], Declared]
) -> dict[str, frozenset[Saver]]:
    """What becomes of what each node gives, where a saver gets it as it is. As much work as there are links.

    Args:
        alive: the nodes that will run.
    """
    waiting: list[tuple[Any, Saver]] = []
    for node_id in alive:
        class_type, inputs = graph[node_id]["class_type"], graph[node_id]["inputs"]
        if class_type in _SOUND_SAVERS:
            waiting.append((inputs.get("audio"), Saver(encoder=_SOUND_SAVERS[class_type], channels=_STEREO)))
        elif class_type == "SaveVideo" and (saver := _read_saver(inputs)) is not None:
            waiting.append((inputs.get("video"), saver))
    found: dict[str, set[Saver]] = {}
    while waiting:
        link, saver = waiting.pop()
        if not is_link(link) or link[0] not in graph or saver in found.setdefault(link[0], set()):
            continue
        found[link[0]].add(saver)
        class_type, inputs = graph[link[0]]["class_type"], graph[link[0]]["inputs"]
        if not saver.container:
            waiting.append((inputs.get(_PASS_SOUND.get(class_type, "")), saver))
        elif class_type == "SaveVideo" or (class_type == "Video Slice" and _keeps_all(inputs)):
            waiting.append((inputs.get("video"), saver))
        elif class_type == "CreateVideo":
            # A SaveVideo whose codec belongs to its format is one that also knows six channels.
            channels = _SURROUND if describe("SaveVideo").parts else _STEREO
            encoder = "libopus" if saver.container == "webm" else "aac"
            waiting.append((inputs.get("audio"), Saver(encoder=encoder, channels=channels)))
    return {node_id: frozenset(savers) for node_id, savers in found.items()}


def _keeps_all(inputs: Mapping[str, Any]) -> bool:
    start, duration = (inputs.get(name, 0) for name in ("start_time", "duration"))
    return bool(start == duration == 0)


def _read_saver(inputs: Mapping[str, Any]) -> Saver | None:
    """What a `SaveVideo` is asked for; None: only the run can tell."""
    form = inputs.get("format", "auto")
    part = "format.codec" if "format.codec" in inputs else "codec"
    codec, encoding = inputs.get(part, "auto"), inputs.get(f"{part}.encoding", "auto")
    if not all(isinstance(each, str) for each in (form, codec, encoding)) or form not in _CONTAINERS:
        return None
    source = "" if form == "auto" else _CONTAINERS[form]
    return Saver(_CONTAINERS[form], "" if codec == "auto" else codec, source, encoding == "re-encode")


def check_savers(handle: IO[bytes], kind: Kind, holds: str, savers: Iterable[Saver]) -> None:
    """Raises UnfitError where one of them fails on the file, or makes noise of its sound. Blocks on the disk.

    Its sounds were heard apart: to look at them here does not end the process.
    """
    goes_by = _GOES_BY.get(kind.demuxer, ())
    for saver in savers:
        handle.seek(0)
        with open_container(handle, kind if kind.demuxer else None) as container:
            films = [each for each in container.streams.video if each.codec_context is not None]
            sounds = [each for each in container.streams.audio if each.codec_context is not None]
            sound = sounds[0 if holds in ("audio", "media") else -1] if sounds else None
            if not saver.container:
                if sound is not None:
                    _check_channels(sound, saver)
                    _check_rate(sound, saver.encoder)
            elif films and saver.source in ("", *goes_by) and _is_copied(container, films[0], saver):
                _check_copy(container, saver.container)
            elif films:
                _check_encoding(films[0], saver)
                if sound is not None:
                    _check_rate(sound, "libopus" if saver.container == "webm" else "aac")


def _is_copied(container: Any, film: Any, saver: Saver) -> bool:
    """Whether SaveVideo takes the packets of such a container as they are."""
    codecs = {
        each.codec_context.codec.canonical_name
        for each in container.streams
        if each.type in ("video", "audio", "subtitle") and each.codec_context is not None
    }
    if saver.anew or (saver.container == "webm" and not codecs <= _IN_WEBM):
        return False
    return saver.codec in ("", film.codec_context.codec.canonical_name)


class _Nowhere:
    """A file that is written and not kept."""

    def __init__(self) -> None:
        self._at = self._size = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


def _check_copy(container: Any, form: str) -> None:
    """Copy it as SaveVideo will. Raises UnfitError where libav does not."""
    import av
    from av.subtitles.stream import SubtitleStream

    made: dict[Any, Any] = {}
    try:
        with av.open(_Nowhere(), "w", format=form) as copy:
            for stream in container.streams:
                kinds = (av.VideoStream, av.AudioStream, SubtitleStream)
                if isinstance(stream, kinds) and stream.codec_context is not None:
                    made[stream] = copy.add_stream_from_template(template=stream, opaque=True)
            for packet in container.demux():
                if packet.stream in made and packet.dts is not None:
                    packet.stream = made[packet.stream]
                    copy.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        called = {"mp4": "MP4", "matroska": "Matroska", "webm": "WebM"}[form]
        raise UnfitError(
            f"SaveVideo would copy its streams into {called}, which cannot have them ({error}); send MP4 with H.264 "
            "and AAC, or have it saved in another codec"
        ) from None


def _check_encoding(film: Any, saver: Saver) -> None:
    is_av1 = saver.codec == "av1" or saver.container == "webm"
    if is_av1 and float(film.average_rate or 0) > _MOST_FOR_AV1:
        raise UnfitError(f"it has {film.average_rate} pictures a second, of which AV1 takes {_MOST_FOR_AV1}")
    width, height = film.codec_context.width, film.codec_context.height
    if width % 2 or height % 2:
        raise UnfitError(
            f"its pictures have {width} × {height} pixels, and SaveVideo would encode it anew, for which both sides "
            "must be even"
        )


def _check_channels(sound: Any, saver: Saver) -> None:
    count = sound.codec_context.layout.nb_channels
    if count not in saver.channels:
        raise UnfitError(f"it has {count} channels, of which the node that saves it makes noise; send it in stereo")


def _check_rate(sound: Any, encoder: str) -> None:
    """Raises UnfitError where it has a rate that the encoder does not take."""
    import av

    if encoder in _RESAMPLED:
        return
    try:
        rates = av.Codec(encoder, "w").audio_rates
    except (av.FFmpegError, ValueError):
        return  # this libav has no such encoder
    rate = sound.codec_context.sample_rate
    if rates and rate not in rates:
        raise UnfitError(
            f"it has {rate} samples a second, which the encoder that saves it lacks; send it with 48000 or 44100"
        )
