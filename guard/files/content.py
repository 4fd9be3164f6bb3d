"""Refuse files that make their reader open others: playlists, manifests, scripts, and whatever else names what to load.

What a file is, its content decides, not its name: libav, Pillow and 3D loaders look at it too. A name counts where a
reader goes by it. Nothing is decoded; the size of an upload bounds the work.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import BadImageError
from ..results.containers import sniff
from ..results.film_index import iterate_readable_boxes
from .texts import UTF16, find_scene_fault, find_text_fault

#: libav reads so much before it decides what a file is (PROBE_BUF_MAX), in a text; in most files comes a zero before.
_PROBED = 1 << 20
_FIRST = 1 << 16
#: No line by which a list is known is longer.
_LINE = 1 << 13
#: A scene within a file is no larger.
_MAX_TEXT = 1 << 26
_MAX_BOXES = 100_000

#: Readers take files of these names for lists or scripts, whatever the content.
_SUFFIXES = frozenset(
    {".m3u", ".m3u8", ".pls", ".asx", ".wax", ".wvx", ".wpl", ".xspf", ".cue", ".sdp", ".mpd", ".ism", ".ismc", ".smil"}
    | {".smi", ".ram", ".qtl", ".concat", ".ffconcat", ".avs", ".avsi", ".vpy", ".sub", ".idx", ".cpl", ".strm", ".url"}
    | {".webloc", ".desktop", ".lnk", ".mvg", ".msl", ".svgz", ".eps", ".ps", ".pkl", ".pickle"}
)

#: Lines by which players, libav among them, know a list of other files: in a text, or in what they find behind an ID3
#: tag. The demuxers are hls, dash, concat, sdp, imf and vobsub (libavformat/*.c, the functions `*_probe`).
_LIST = re.compile(
    rb"^[ \t]*(?:"
    rb"#EXTM3U|#EXT-X-|#EXTINF|ffconcat\s{1,9}version|# VobSub index|\[playlist\]|\[reference\]|"
    rb"c=IN IP|v=0[\r\n]{1,9}o=|"
    rb"<\?wpl|<(?:[\w.-]+:)?(?:mpd|smil|asx|xspf|playlist|smoothstreamingmedia|assetmap|compositionplaylist|"
    rb"packinglist|msl)[\s>/]|"
    rb"FILE[ \t][^\r\n]{1,4096}[ \t](?:WAVE|MP3|AIFF|BINARY|MOTOROLA|FLAC)\b|push graphic-context|"
    rb"import vapoursynth|from vapoursynth"
    rb")",
    re.I | re.M,
)
#: dash looks for its element anywhere.
_DASH = re.compile(rb"<(?:[\w.-]+:)?MPD[\s>]|dash:profile", re.I)
#: A text that begins with an address, or is a list of them.
_ADDRESSES = re.compile(rb"\s*(?:[a-z][a-z0-9+.-]{1,15}://|file:)\S+\s*(?:[\r\n]|$)", re.I)

_POSTSCRIPT = (b"%!PS", b"\x04%!PS", b"\xc5\xd0\xd3\xc6")  # Pillow gives it to Ghostscript


def check_content(path: Path, name: str) -> None:
    """Check a file before a node of somebody else's prompt opens it. Blocks on the disk.

    Args:
        name: what its owner calls it.

    Raises:
        BadImageError: it refers to other files or addresses, or holds code.
    """
    try:
        with open(path, "rb") as handle:
            fault = _find_fault(handle, os.fstat(handle.fileno()).st_size, PurePosixPath(name).suffix.lower())
    except OSError:
        return  # the host itself says best that it cannot be read
    if fault is not None:
        raise BadImageError(
            f"The file {name[:200]} cannot be used, because it {fault}.",
            details="Send the picture, film or sound itself.",
            extra_info={"filename": name[:200]},
        )


def check_folder(path: Path, name: str, most: int = 20_000) -> None:
    """Check every file in a folder and below it, as :func:`check_content` does; a folder of more is refused."""
    count = 0
    for folder, _folders, files in os.walk(path):
        for file in files:
            count += 1
            if count > most:
                raise BadImageError(f"The folder {name[:200]} has more than {most} files.")
            below = os.path.relpath(os.path.join(folder, file), path).replace(os.sep, "/")
            check_content(Path(folder, file), f"{name}/{below}")


def _find_fault(handle: IO[bytes], size: int, suffix: str) -> str | None:
    """What is wrong with a file; None if it stands for itself."""
    head = _read_head(handle)
    kind = sniff(head[:32])
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return _find_mov_fault(handle, size) or _find_list(head)
    if kind is not None:
        return _find_list(head)
    if suffix in _SUFFIXES:
        return "is a list or a script by its name"
    if head.startswith(_POSTSCRIPT):
        return "is PostScript, which is a program"
    if head[:4] == b"glTF":
        return find_scene_fault(_read_glb_json(head, handle))
    if _is_code(head, handle, size):
        return "is Python's pickle, which is a program"
    if (found := _find_list(head)) is not None:
        return found
    if _ADDRESSES.match(_take_text(head)):
        return "is a list of addresses"
    return find_text_fault(head, handle)


def _read_head(handle: IO[bytes]) -> bytes:
    """The file's beginning, behind its ID3 tags: libav skips one before it looks what the file is."""
    position, head = 0, handle.read(_FIRST)
    for _ in range(16):
        if head[:3] != b"ID3" or len(head) < 10 or any(byte & 0x80 for byte in head[6:10]):
            break
        length = (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + 10
        position += length + (10 if head[5] & 0x10 else 0)
        handle.seek(position)
        head = handle.read(_FIRST)
    return head if b"\0" in head else head + handle.read(_PROBED - _FIRST)


def _find_list(head: bytes) -> str | None:
    """Whether the text with which a file begins is a list: readers look no further than to the first zero."""
    text = _take_text(head).replace(b"\r", b"\n")
    for at in range(0, len(text), _FIRST):  # a search in C keeps all other threads waiting
        window = max(at - _LINE, 0), at + _FIRST
        if _LIST.search(text, *window) or _DASH.search(text, *window):
            return "is a list of other files or addresses"
    return None


def _take_text(head: bytes) -> bytes:
    """The text with which a file begins, in UTF-8 and without its mark."""
    for byte_order, encoding in UTF16.items():
        if head.startswith(byte_order):
            head = head.decode(encoding, "replace").encode()
            break
    return head.split(b"\0", 1)[0].removeprefix(b"\xef\xbb\xbf")


def _is_code(head: bytes, handle: IO[bytes], size: int) -> bool:
    """Whether a file is a pickle, alone, in torch's archives or in numpy's arrays."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if head[:6] == b"\x93NUMPY":
        return re.search(rb"'descr'\s*:\s*[^,]*O", head[:4096]) is not None
    if head[:4] == b"PK\x03\x04":
        handle.seek(max(size - _PROBED, 0))  # the archive's directory
        return b".pkl" in handle.read(_PROBED) or b"/data.pkl" in head
    return False


# Films. ------------------------------------------------------------------------------------------------------


def _find_mov_fault(handle: IO[bytes], size: int) -> str | None:
    """QuickTime can take its data from other files (`dref`), or be nothing but a reference to films (`rmra`)."""
    waiting = [(0, size)]
    left = _MAX_BOXES
    while waiting:
        begin, end = waiting.pop()
        for name, position, behind in iterate_readable_boxes(handle, begin, end):
            left -= 1
            if left == 0:
                return "has too many boxes"
            if name in (b"rmra", b"rmda", b"rdrf"):
                return "refers to another film"
            if name == b"cmov":
                return "has an index that is compressed, which may refer to other files"
            if name == b"dref" and _has_outside_data(handle, position, behind):
                return "takes its data from another file"
            if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"edts"):
                waiting.append((position + 8, behind))
            elif name == b"meta":  # with a version, or, in QuickTime, without
                waiting += [(position + 8, behind), (position + 12, behind)]
    return None


def _has_outside_data(handle: IO[bytes], position: int, behind: int) -> bool:
    """Whether an entry of a `dref` box lacks the flag that the data lies in the same file."""
    handle.seek(position + 12)
    count = int.from_bytes(handle.read(4), "big")
    entry = position + 16
    for _ in range(min(count, 1000)):
        if entry + 12 > behind:
            return False
        handle.seek(entry)
        head = handle.read(12)
        length = int.from_bytes(head[:4], "big")
        if not head[11] & 1:
            return True
        if length < 12:
            return False
        entry += length
    return count > 1000


# Scenes. -----------------------------------------------------------------------------------------------------


def _read_glb_json(head: bytes, handle: IO[bytes]) -> bytes | None:
    """The scene of a binary glTF; None where it is not the first chunk."""
    length = int.from_bytes(head[12:16], "little")
    if (head[4:8] == b"\2\0\0\0" and head[16:20] != b"JSON") or length > _MAX_TEXT:
        return None
    handle.seek(20)
    return handle.read(length)
