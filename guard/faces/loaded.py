"""Open what a prompt's loaders will read, before there is a job: pictures whole, films and sounds to the first frame.

A loader that gets a broken file fails on the GPU, or makes something of the half that is there. What a file must hold,
its loader's declaration says. What was found is remembered for as long as the file does not change.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, ImageSequence

from ..cost.values import Media
from ..errors import BadAudioError, BadImageError, BadVideoError, GuardError
from ..files.names import split_annotation
from ..graph import Declared, Names, find_upstream
from ..host import Host
from ..results.containers import Kind, sniff
from ..results.film_files import open_container
from .photos import PhotoLimits, decode, list_formats, read

#: What films and sounds begin with that no job makes, but people send.
_MORE_KINDS: tuple[tuple[bytes, int, str, str, str], ...] = (
    (b"AVI ", 8, "video", "avi", "avi"),
    (b"FLV\x01", 0, "video", "flv", "flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, "video", "asf", "asf"),
    (b"\x00\x00\x01\xba", 0, "video", "mpeg", "mpeg"),
    (b"\x47", 0, "video", "mpegts", "mpegts"),
    (b"moov", 4, "video", "mov", "mov"),
    (b"mdat", 4, "video", "mov", "mov"),
    (b"wide", 4, "video", "mov", "mov"),
    (b"free", 4, "video", "mov", "mov"),
    (b"FORM", 0, "audio", "aiff", "aiff"),
    (b"\xff\xf1", 0, "audio", "aac", "aac"),
    (b"\xff\xf9", 0, "audio", "aac", "aac"),
    (b"#!AMR", 0, "audio", "amr", "amr"),
)
#: A film of more than this is taken to be of unknown length: its header lies.
_MOST_FRAMES = 10**8
#: A file that was changed so lately may change again without another time of change: disks' clocks tick.
_FRESH_NS = 2_000_000_000
#: So many pictures of a folder are counted.
_MOST_FILES = 20_000
_MANY_FRAMES = 10_000

_ERRORS: Mapping[str, type[GuardError]] = {
    "image": BadImageError,
    "video": BadVideoError,
    "audio": BadAudioError,
    "media": BadVideoError,
}
_CALLED = {"image": "picture", "video": "film", "audio": "sound", "media": "film"}


class Loaded(NamedTuple):
    """A file that a node of a prompt will read. `holds`: `image`, `video`, `audio`, or `media`: a film or a sound."""

    node_id: str
    input: str
    text: str
    holds: str


class LoadedFiles:
    """Finds and opens them. `list_files` is for the event loop, the rest for threads that may block.

    Args:
        limits: how large a picture may be.
        remembered: the number of files of which is remembered what they hold.
    """

    def __init__(self, host: Host, limits: PhotoLimits | None = None, remembered: int = 1024) -> None:
        self._host = host
        self._limits = limits or PhotoLimits()
        self._remembered = remembered
        self._known: OrderedDict[tuple[Any, ...], Media] = OrderedDict()

    def list_files(self, graph: Mapping[str, Any], outputs: Iterable[str] | None) -> list[Loaded]:
        """What the nodes that will run read, as far as their classes say."""
        loaded: list[Loaded] = []
        alive: set[str] | None = None
        for node_id, node in graph.items():
            for name, names in self._host.file_inputs(node["class_type"]).items():
                text = node["inputs"].get(name)
                if names is not Names.FILE or not isinstance(text, str) or not text:
                    continue
                holds = _tell_content(self._host.declaration(node["class_type"]), name)
                if holds is None:
                    continue
                if alive is None:
                    alive = set(graph) if outputs is None else find_upstream(graph, outputs)
                if node_id in alive:
                    loaded.append(Loaded(node_id, name, text, holds))
        return loaded

    def open_all(self, files: Iterable[Loaded]) -> dict[str, Media]:
        """What each node's file holds, as far as it is there.

        Raises:
            BadImageError, BadVideoError, BadAudioError: it is not what its loader reads, or is damaged.
        """
        found: dict[str, Media] = {}
        for one in files:
            kind, name = split_annotation(one.text)
            path = self._host.file(kind, "", name)
            if path is None:
                continue  # the host has said what it thinks of that
            try:
                media = self._open(path, one)
            except GuardError as error:
                error.extra_info |= {"node_id": one.node_id, "input": one.input, "value": one.text[:200]}
                raise
            if media is not None:
                found[one.node_id] = media
        return found

    def _open(self, path: Path, one: Loaded) -> Media | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return _count_folder(path)
        mark = (
            one.holds,
            os.path.realpath(path),
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        if (known := self._known.get(mark)) is not None:
            return known
        media = self._look(path, one)
        if max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - _FRESH_NS:
            self._known[mark] = media
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
        return media

    def _look(self, path: Path, one: Loaded) -> Media:
        with open(path, "rb") as handle:
            head = handle.read(64)
            kind = _sniff_more(head)
            film = kind is not None and kind.name in ("video", "audio")
            if one.holds == "image" and not (film and kind is not None and kind.name == "video"):
                return self._look_at_picture(path, one.text)
            if one.holds in ("video", "media") and kind is not None and kind.name == "image":
                return self._look_at_picture(path, one.text)  # a GIF is a film to some loaders
            if kind is None:
                raise _refuse(one, "its format is not known here")
            handle.seek(0)
            try:
                return _look_at_film(handle, kind, one)
            except GuardError:
                raise
            except Exception as error:  # libav raises almost anything on hostile input
                raise _refuse(one, f"{type(error).__name__}: {error}"[:200]) from None

    def _look_at_picture(self, path: Path, name: str) -> Media:
        data = read(path, self._limits, name)
        photo = decode(data, self._limits, name, at_least=1)
        frames = 0 if data.startswith(b"\xff\xd8") else _count_frames(path)  # a phone's JPEG has others for depth
        return Media(photo.width, photo.height, frames if frames > 1 else 0)


def _tell_content(declared: Declared, name: str) -> str | None:
    """What a loader's file must hold, by what the loader gives; None: nobody knows."""
    kinds = {kind for kind, _name in declared.outputs}
    if "VIDEO" in kinds or ("IMAGE" in kinds and "video" in name.lower()):
        return "video"
    if kinds & {"IMAGE", "MASK"}:
        return "image"
    if "AUDIO" in kinds:
        return "media" if "video" in name.lower() else "audio"  # a film's sound, if it has any
    return None


def _sniff_more(head: bytes) -> Kind | None:
    if (kind := sniff(head[:32])) is not None:
        return kind
    for mark, at, name, form, demuxer in _MORE_KINDS:
        if head[at : at + len(mark)] == mark:
            return Kind(name, form, "", demuxer, lambda _handle, _size: None)
    return None


def _look_at_film(handle: IO[bytes], kind: Kind, one: Loaded) -> Media:
    with open_container(handle, kind) as container:
        film = next((stream for stream in container.streams.video if stream.codec_context is not None), None)
        sound = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
        wanted = sound if one.holds == "audio" else film
        if wanted is None and one.holds == "media":
            wanted = sound
        if wanted is None:
            raise _refuse(one, "it has no sound" if one.holds == "audio" else "it has no pictures")
        if next(container.decode(wanted), None) is None:
            raise _refuse(one, "it has no frame that can be read")
        seconds = _find_seconds(container, wanted)
        if one.holds == "audio" or film is None:
            return Media(seconds=seconds)
        rate = float(film.average_rate or film.guessed_rate or 0)
        frames = max(int(film.frames or 0), round(seconds * rate))
        context = film.codec_context
        return Media(context.width, context.height, frames if frames < _MOST_FRAMES else 0, seconds, rate)


def _find_seconds(container: Any, stream: Any) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration / 1_000_000) if container.duration else 0.0


def _count_frames(path: Path) -> int:
    """The pictures of one that moves. Reads no further than it must, and not for ever."""
    try:
        with Image.open(path, formats=list_formats()) as image:
            known = getattr(image, "n_frames", 1)
            return int(known) if known < _MANY_FRAMES else sum(1 for _ in ImageSequence.Iterator(image))
    except Exception:
        return 1  # its first picture was fine


def _count_folder(path: Path) -> Media | None:
    """A folder of pictures, by its first."""
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())[:_MOST_FILES]
    for name in names[:10]:
        try:
            with Image.open(path / name, formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF")) as image:
                return Media(image.width, image.height, len(names))
        except Exception:
            continue
    return None


def _refuse(one: Loaded, why: str) -> GuardError:
    called = _CALLED[one.holds]
    return _ERRORS[one.holds](
        f"The file {one.text[:200]} cannot be read as a {called}.", details=why, extra_info={"filename": one.text[:200]}
    )
