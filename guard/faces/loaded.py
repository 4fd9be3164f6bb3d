"""Open what a prompt's loaders will read, before there is a job: pictures whole, films and sounds to their ends.

A loader that gets a broken file fails on the GPU, or makes something of the half that is there. What a file must hold,
its loader's declaration says. What was found is remembered for as long as the file does not change.
"""

from __future__ import annotations

import os
import stat
import string
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..cost.values import Media
from ..errors import BadAudioError, BadImageError, BadVideoError, GuardError
from ..files.jpegs import find_end
from ..files.marks import Mark, find_mark
from ..files.names import split_annotation
from ..files.packed import unpacks_to_more
from ..graph import Declared, Names, find_upstream
from ..host import Host
from ..results.containers import BrokenFileError
from .cuts import Cut, check_cuts, find_cuts
from .films import HEAD_BYTES, look_at_film, sniff_more
from .folders import count_folder
from .frames import MOST_PICTURES, MULTIPLE, count_by_libav
from .gifs import breaks_off, measure_gif
from .latents import LOADER, look_at_latent
from .opencv import look_with_opencv
from .pages import count_by_pillow, count_frames
from .photos import (
    PhotoLimits,
    check_pixels,
    decode,
    is_boxed,
    is_mirrored,
    read,
)
from .savers import Saver, check_savers, find_savers
from .sounds import UnfitError

#: So many bytes a packed file may unpack to of which nobody knows what it holds. ComfyUI's `File3DToSplat` takes three
#: times as much; ten million splats have 200 MB.
_MOST_UNPACKED = 256 << 20
#: What a picture that is no odd one may grow by where its sides are made multiples.
_PADDED = 1.1

_ERRORS: Mapping[str, type[GuardError]] = {
    "image": BadImageError,
    "video": BadVideoError,
    "audio": BadAudioError,
    "media": BadVideoError,
    "latent": BadImageError,
    "file": BadImageError,
}
#: What the editor's views of scenes leave in one input, and the loader that it is read with: Load3D of
#: `comfy_extras/nodes_load_3d.py`.
_DRAWN: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("image", "mask", "normal"), ("image", "LoadImage")),
    "recording": ("video", "LoadVideo"),
}
#: What some loaders leave out at a name's ends (`strip_path` in VideoHelperSuite's `utils.py`): another file's name.
_LEFT_OUT = string.whitespace + '"'
_CALLED = {"image": "picture", "video": "film", "audio": "sound", "media": "film", "latent": "latent", "file": "file"}


class FilmError(Exception):
    """It is a film or a sound, and to open it may take minutes: see `LoadedFiles.open_all`."""


class Loaded(NamedTuple):
    """A file that a node of a prompt will read.

    Attributes:
        holds: `image`, `video`, `audio`, `latent`, `media`: a film or a sound, or `file`: nobody knows.
        opens_with: as its loader's class declares.
        savers: what gets it as it is.
        cuts: what is cut out of it.
    """

    node_id: str
    input: str
    text: str
    holds: str
    opens_with: str
    savers: frozenset[Saver] = frozenset()
    cuts: frozenset[Cut] = frozenset()


class Looked(NamedTuple):
    """A file as it was when its job was let in. `real`: its path, of which no part is a link."""

    file: Loaded
    real: str
    mark: Mark
    media: Media | None


class Opened(NamedTuple):
    """What the files of a prompt hold, by node id; and the files themselves."""

    media: dict[str, Media]
    files: tuple[Looked, ...]

    def join(self, other: Opened) -> Opened:
        """Both; of what one node loads, the larger."""
        media = self.media | other.media
        for node_id in self.media.keys() & other.media.keys():
            media[node_id] = max(self.media[node_id], other.media[node_id], key=_weigh)
        return Opened(media, self.files + other.files)


class LoadedFiles:
    """Finds and opens them. `open_all` and `compare` are for threads that may block.

    Args:
        limits: how large a picture may be.
        remembered: the number of files of which is remembered what they hold.
        opens: false: none is opened, and nobody knows what they hold.
    """

    def __init__(
        self, host: Host, limits: PhotoLimits | None = None, remembered: int = 1024, *, opens: bool = True
    ) -> None:
        self._host = host
        self._limits = limits or PhotoLimits()
        self._remembered = remembered
        self.opens = opens
        self._known: OrderedDict[tuple[Any, ...], Media] = OrderedDict()

    def list_files(self, graph: Mapping[str, Any], outputs: Iterable[str] | None) -> list[Loaded]:
        """What the nodes that will run read, as far as their classes say."""
        loaded: list[Loaded] = []
        if not self.opens:
            return loaded
        alive: set[str] | None = None
        savers: dict[str, frozenset[Saver]] | None = None
        cuts: dict[str, frozenset[Cut]] = {}
        for node_id, node in graph.items():
            for name, names in self._host.file_inputs(node["class_type"]).items():
                found = list(self._list_named(node_id, node, name)) if names is Names.FILE else []
                if not found:
                    continue
                if alive is None:
                    alive = set(graph) if outputs is None else find_upstream(graph, outputs)
                if node_id not in alive:
                    continue
                for one in found:
                    if one.holds in ("video", "audio", "media"):
                        if savers is None:
                            savers = find_savers(graph, alive, self._host.declaration)
                            cuts = find_cuts(graph, alive)
                        one = one._replace(savers=savers.get(node_id, one.savers), cuts=cuts.get(node_id, one.cuts))
                    loaded.append(one)
        return loaded

    def _list_named(self, node_id: str, node: Mapping[str, Any], name: str) -> Iterator[Loaded]:
        """What an input of a loader names: a file, or, as a scene's that the editor has drawn, several."""
        value = node["inputs"].get(name)
        declared = self._host.declaration(node["class_type"])
        if isinstance(value, str) and value:
            holds = "latent" if node["class_type"] == LOADER else _tell_content(declared, name)
            yield Loaded(node_id, name, value, holds, declared.opens_with)
        elif isinstance(value, Mapping):
            for part, (holds, class_type) in _DRAWN.items():
                if isinstance(text := value.get(part), str) and text:
                    yield Loaded(node_id, f"{name}.{part}", text, holds, self._host.declaration(class_type).opens_with)

    def open_all(self, files: Iterable[Loaded], *, films: bool = True) -> Opened:
        """What each node's file holds, as far as it is there.

        Raises:
            BadImageError, BadVideoError, BadAudioError: it is not what its loader reads, or is damaged.
            FilmError: without `films`, where nobody knows the film or sound yet.
        """
        opened = Opened({}, ())
        for one in files:
            try:
                looked = self._open_named(one, films)
            except GuardError as error:
                error.extra_info |= {"node_id": one.node_id, "input": one.input, "value": one.text[:200]}
                raise
            if looked is not None:
                media = {} if looked.media is None else {one.node_id: looked.media}
                opened = opened.join(Opened(media, (looked,)))
        return opened

    def _open_named(self, one: Loaded, films: bool) -> Looked | None:
        """None: there is no such file, and the host has said what it thinks of that."""
        if one.holds != "file" and one.text.strip(_LEFT_OUT) != one.text:
            raise refuse(one, "its name begins or ends with a blank or a quote; send it under another one")
        kind, name = split_annotation(one.text)
        path = self._host.file(kind, "", name)
        try:
            if path is None:
                raise FileNotFoundError
            status = os.stat(path)
            media = self._open(path, status, one, films)
            if media is not None and one.cuts:
                if not films:
                    raise FilmError
                _check_cuts(path, media, one)
        except OSError:
            if "." not in one.input:
                return None
            raise refuse(one, "there is no such file") from None  # the host does not look into a scene
        return Looked(one, os.path.realpath(path), find_mark(status), media)

    def compare(self, looked: Looked) -> None:
        """Look at what has replaced a file.

        Raises:
            BadImageError, BadVideoError, BadAudioError: it is not what its loader reads, or holds something else.
            OSError: it is not there.
        """
        if self._open(Path(looked.real), os.stat(looked.real), looked.file) != looked.media:
            raise refuse(looked.file, "it was replaced while its job waited, by one of another size or length")

    def _open(self, path: Path, status: os.stat_result, one: Loaded, films: bool = True) -> Media | None:
        if stat.S_ISDIR(status.st_mode):
            return None if one.holds == "file" else count_folder(path)
        mark = find_mark(status)
        key = (one.holds, one.opens_with, one.savers, os.path.realpath(path), mark)
        if (known := self._known.get(key)) is not None:
            return known
        media = self._look(path, one, films)
        if media is None:
            return None
        if one.opens_with == "opencv":
            try:
                media = look_with_opencv(path, media)
            except UnfitError as error:
                raise refuse(one, str(error)) from None
        if mark.is_settled():
            self._known[key] = media
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
        return media

    def _look(self, path: Path, one: Loaded, films: bool) -> Media | None:
        with open(path, "rb") as handle:
            if one.holds == "file":
                if unpacks_to_more(handle, _MOST_UNPACKED):
                    raise refuse(one, f"it unpacks to more than {_MOST_UNPACKED >> 20} MiB")
                return None
            head = handle.read(HEAD_BYTES)
            if one.holds == "latent":
                try:
                    return look_at_latent(handle)
                except Exception as error:  # a header is anything
                    raise refuse(one, str(error) or type(error).__name__) from None
            kind = sniff_more(head)
            is_film = kind is not None and kind.name == "video" and one.opens_with != "pillow"
            if one.holds == "image" and not is_film:
                return self._look_at_picture(path, one)
            if kind is None:
                raise refuse(one, "its format is not known here")
            is_picture = one.holds in ("video", "media") and kind.name == "image"  # a GIF is a film to some loaders
            if not (films or is_picture):
                raise FilmError
            try:
                if is_picture:
                    media = self._look_at_picture(path, one)
                else:
                    media = look_at_film(handle, kind, one.holds, one.opens_with)
                if one.opens_with in ("libav", "ffmpeg"):  # what others make of it, nobody knows
                    check_savers(handle, kind, one.holds, one.savers)
                return media
            except GuardError:
                raise
            except (UnfitError, BrokenFileError) as error:
                raise refuse(one, str(error)) from None
            except UnicodeDecodeError:
                why = "its titles are no UTF-8, on which this server's loader fails; save it without them"
                raise refuse(one, why) from None
            except Exception as error:  # libav raises almost anything on hostile input
                raise refuse(one, f"{type(error).__name__}: {error}"[:200]) from None

    def _look_at_picture(self, path: Path, one: Loaded) -> Media:
        data = read(path, self._limits, one.text)
        photo = decode(data, self._limits, one.text, at_least=1)
        width, height, exif_fault = photo.width, photo.height, photo.exif_fault
        del photo  # up to a gigabyte; libav decodes it anew
        if data.startswith(b"GIF8"):
            width, height = map(max, (width, height), measure_gif(data, MOST_PICTURES))
            check_pixels(width, height, self._limits, one.text)
        if one.opens_with == "libav":
            self._check_padded(width, height, one)
        try:
            frames = 0
            if one.opens_with == "libav":
                boxed = is_boxed(data)
                if boxed and is_mirrored(data):
                    raise UnfitError("this server's loader would not mirror it, as it asks for")
                whole = (width, height) if boxed else None
                is_film = one.holds == "video"
                frames = count_by_libav(path, width * height, self._limits.max_pixels, whole, fails=is_film)
            if not frames and one.holds == "video" and one.opens_with == "libav":
                raise UnfitError("libav finds no pictures in it")
            known = frames or count_frames(data, one.text)
            if data.startswith(b"GIF8") and breaks_off(data):
                raise UnfitError("it ends within a picture")
            if not frames:  # Pillow loads it, and turns it by its EXIF data
                if exif_fault:
                    raise UnfitError(exif_fault)
                frames = count_by_pillow(path, known, self._limits, one.text)
        except GuardError:
            raise
        except UnfitError as error:
            raise refuse(one, f"{error}{_advise(data)}") from None
        except Exception as error:  # Pillow and libav raise almost anything on hostile input
            raise refuse(one, f"{type(error).__name__}: {error}"[:200] + _advise(data)) from None
        return Media(width, height, frames if frames > 1 else 0)

    def _check_padded(self, width: int, height: int, one: Loaded) -> None:
        """A picture of one line takes as much of a loader that makes both sides a multiple as one of many."""
        pixels = (width + -width % MULTIPLE) * (height + -height % MULTIPLE)
        if pixels > self._limits.max_pixels * _PADDED:
            raise refuse(one, f"it has {width} × {height} pixels, of which this server's loader makes {pixels}")


def _advise(data: bytes) -> str:
    """What to do with a phone's photo that this server's loader does not take as it is."""
    if is_boxed(data):
        return ". Send it as JPEG."
    if not data.startswith(b"\xff\xd8") or find_end(data) == len(data):
        return ""
    return (
        ". More follows behind its picture, as in many phones' photos: send it with the prompt, or upload it to "
        "/guarded/upload/image, which keeps the picture alone."
    )


def find_error(host: Host, graph: Mapping[str, Any], text: str) -> tuple[type[GuardError], dict[str, Any]]:
    """The error for a file that cannot be read, and which input of a loader names it by `text`."""
    for node_id, node in graph.items():
        for name in host.file_inputs(node["class_type"]):
            if node["inputs"].get(name) == text:
                holds = _tell_content(host.declaration(node["class_type"]), name)
                return _ERRORS[holds], {"node_id": node_id, "input": name}
    return BadImageError, {}


def _check_cuts(path: Path, media: Media, one: Loaded) -> None:
    if all(cut.end_s <= media.seconds for cut in one.cuts):
        return
    with open(path, "rb") as handle:
        kind = sniff_more(handle.read(HEAD_BYTES))
        try:
            check_cuts(handle, kind, media, one.cuts)
        except UnfitError as error:
            raise refuse(one, str(error)) from None


def _weigh(media: Media) -> float:
    return media.width * media.height * max(media.frames, 1) + media.samples


def _tell_content(declared: Declared, name: str) -> str:
    """What a loader's file must hold, by what the loader gives."""
    if "model" in name.lower():
        return "file"  # a scene, of which it makes pictures
    kinds = {kind for kind, _name in declared.outputs}
    if "VIDEO" in kinds or ("IMAGE" in kinds and "video" in name.lower()):
        return "video"
    if kinds & {"IMAGE", "MASK"}:
        return "image"
    if "AUDIO" in kinds:
        return "media" if "video" in name.lower() else "audio"  # a film's sound, if it has any
    return "file"


def refuse(one: Loaded, why: str) -> GuardError:
    called = _CALLED[one.holds]
    return _ERRORS[one.holds](
        f"The file {one.text[:200]} cannot be read as a {called}.", details=why, extra_info={"filename": one.text[:200]}
    )
