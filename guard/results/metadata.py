"""Take out of result files what does not belong to the picture, film or sound: the prompt, the workflow, versions.

Nothing is encoded anew. What can be left out is left out, and what others point past is overwritten in its place; so a
file never grows, and is changed where it lies. A format that is not known here stays as it is.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..errors import ResultCorruptError
from ..host import ReportedFile
from ..job import Artifact
from .containers import BrokenFileError, sniff
from .metadata_films import IN_PLACE
from .opener import hash_file

_MAX_HEADER = 1 << 27
#: A picture is rewritten in memory.
_MAX_PICTURE = 1 << 30


def strip_results(files: Sequence[ReportedFile], artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """Strip a run's files, which have passed the checks, and say anew how large they are and what they hash to.

    Args:
        files: those of the artifacts, in their order.

    Raises:
        ResultCorruptError: a file is no longer whole.
        OSError: the disk refuses.
    """
    paths = [file.path for file in files if file.path is not None]
    for path in dict.fromkeys(paths):
        with suppress(BrokenFileError, struct.error, ValueError, LookupError, TypeError, AttributeError):
            strip(path)  # what makes no sense here is left as it is
    return tuple(_measure(path, artifact) for path, artifact in zip(paths, artifacts, strict=True))


def strip_byproducts(files: Iterable[ReportedFile]) -> None:
    """Strip what a run left beside its files: it has the same prompt in it."""
    for file in files:
        if file.path is not None:
            with suppress(OSError, BrokenFileError, struct.error, ValueError, LookupError, TypeError, AttributeError):
                strip(file.path)


def _measure(path: Path, artifact: Artifact) -> Artifact:
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        kind = sniff(handle.read(64))
        try:
            if kind is not None:
                kind.check_whole(handle, size)
        except BrokenFileError as error:
            where = {"node_id": artifact.node_id, "filename": artifact.filename}
            raise ResultCorruptError(f"{artifact.filename} is damaged: {error}.", extra_info=where) from None
        return replace(artifact, bytes=size, sha256=hash_file(handle))


def strip(path: Path) -> None:
    """Take the metadata out of a file. Raises OSError, and BrokenFileError where it makes no sense."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(64)
        kind = sniff(head)
        name = kind.format if kind is not None else ""
        if name in _PICTURES and size <= _MAX_PICTURE:
            file.seek(0)
            _rewrite(file, _PICTURES[name](file.read()), size)
        elif name in IN_PLACE:
            IN_PLACE[name](file, size)
        elif head[:4] == b"glTF":
            _blank_json(file, 20, int.from_bytes(head[12:16], "little"), _clean_gltf)
        elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size, _MAX_HEADER):
            _blank_json(file, 8, int.from_bytes(head[:8], "little"), _clean_safetensors)
        elif head[:4] == _EXR:
            _blank_exr(file)
        elif head.startswith(_FFMETADATA):
            _rewrite(file, _FFMETADATA + b"1\n", size)
        elif b"<svg" in head or b"<?xml" in head[:8]:
            file.seek(0)
            text = file.read(_MAX_HEADER)
            if b"<svg" in text and len(text) == size:
                _rewrite(file, _strip_drawing(text.decode(errors="surrogateescape")), size)


_METADATA, _METADATA_END = re.compile(r"<metadata\b[^>]*>(\s*<!\[CDATA\[\s*(?=\{))?"), re.compile(r"</metadata\s*>")


def _strip_drawing(text: str) -> bytes:
    """ComfyUI writes the prompt as JSON: a text in it may end the element for whoever reads the drawing as XML."""
    kept, at = [], 0
    while begin := _METADATA.search(text, at):
        ends = begin.end()
        if begin[1]:
            with suppress(ValueError, RecursionError):
                ends = json.JSONDecoder().raw_decode(text, ends)[1]
        if (end := _METADATA_END.search(text, ends)) is None:
            break
        kept.append(text[at : begin.start()])
        at = end.end()
    left = re.sub(r"<!--.*?-->", "", "".join([*kept, text[at:]]), flags=re.DOTALL)
    return left.encode(errors="surrogateescape")


def _rewrite(file: IO[bytes], data: bytes, size: int) -> None:
    if len(data) < size:
        file.seek(0)
        file.write(data)
        file.truncate()


# Pictures: copied without what is not needed. ----------------------------------------------------------------

_PNG_CHUNKS = frozenset(
    {
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"tRNS",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"iCCP",
        b"sBIT",
        b"pHYs",
        b"bKGD",
        b"hIST",
    }
    | {b"sPLT", b"acTL", b"fcTL", b"fdAT", b"cICP", b"mDCV", b"cLLI"}
)


def _strip_png(data: bytes) -> bytes:
    kept = [data[:8]]
    position = 8
    while True:
        length = struct.unpack_from(">I", data, position)[0]
        name, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            raise BrokenFileError("the file is cut off")
        if name in _PNG_CHUNKS:
            kept.append(data[position:end])
        elif name == b"eXIf" and (exif := _keep_orientation(data[position + 8 : end - 4])):
            chunk = name + exif.removeprefix(b"Exif\0\0")
            kept.append(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        position = end
        if name == b"IEND":
            return b"".join(kept)


def _strip_jpeg(data: bytes) -> bytes:
    kept = [data[:2]]
    position = 2
    while data[position] == 0xFF:
        mark = data[position + 1]
        if mark == 0xFF:
            position += 1
            continue
        if mark == 0xDA:
            return b"".join([*kept, data[position:]])
        length = struct.unpack_from(">H", data, position + 2)[0] + 2
        segment = data[position : position + length]
        position += length
        if mark == 0xE1 and segment[4:10] == b"Exif\0\0":
            if exif := _keep_orientation(segment[4:]):
                kept.append(b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif)
        elif segment[4:16] == b"ICC_PROFILE\0" or mark not in (*range(0xE1, 0xEE), 0xEF, 0xFE):
            # E0 is JFIF, EE says how Adobe meant the colours.
            kept.append(segment)
    raise BrokenFileError("a marker is missing")


def _strip_webp(data: bytes) -> bytes:
    kept = []
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        chunk = data[position : position + 8 + length + length % 2]
        position += 8 + length + length % 2
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~0x0C]) + chunk[9:]
        if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"):
            kept.append(chunk)
        elif name == b"EXIF" and (exif := _keep_orientation(chunk[8 : 8 + length])):
            exif = exif.removeprefix(b"Exif\0\0")
            kept = [
                piece[:8] + bytes([piece[8] | 0x08]) + piece[9:] if piece[:4] == b"VP8X" else piece for piece in kept
            ]
            kept.append(struct.pack("<4sI", b"EXIF", len(exif)) + exif + b"\0" * (len(exif) % 2))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _strip_gif(data: bytes) -> bytes:
    position = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    kept = [data[:position]]
    while data[position] != 0x3B:
        begin = position
        if data[position] == 0x21:
            label, position = data[position + 1], position + 2
            name = data[position + 1 : position + 12]
            keep = label == 0xF9 or (label == 0xFF and name in (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012"))
        elif data[position] == 0x2C:
            flags = data[position + 9]
            position += 10 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0) + 1
            keep = True
        else:
            raise BrokenFileError("it has a block of an unknown kind")
        while data[position]:
            position += data[position] + 1
        position += 1
        if keep:
            kept.append(data[begin:position])
    return b"".join([*kept, b";"])


def _keep_orientation(exif: bytes) -> bytes:
    """EXIF that says how to turn the picture, and nothing else; empty where it need not be turned."""
    read = Image.Exif()
    try:
        read.load(exif)
        turned = read.get(0x0112, 1)
    except Exception:  # whatever Pillow raises at what is no EXIF
        return b""
    if turned not in range(2, 9):
        return b""
    kept = Image.Exif()
    kept[0x0112] = turned
    return kept.tobytes()


_PICTURES: dict[str, Callable[[bytes], bytes]] = {
    "png": _strip_png,
    "jpeg": _strip_jpeg,
    "webp": _strip_webp,
    "gif": _strip_gif,
}


#: An OpenEXR picture; what ffmpeg reads titles from, as VideoHelperSuite leaves it in temp.
_EXR, _FFMETADATA = b"\x76\x2f\x31\x01", b";FFMETADATA"
#: Its texts that say which part of the picture is meant.
_EXR_NEEDED = frozenset({b"name", b"type", b"view"})
_EXR_PARTS = 0x1000


def _blank_exr(file: IO[bytes]) -> None:
    """Each part has a header of attributes (name, type, length, value) up to a zero; places of pixels count from the
    file's begin."""
    file.seek(0)
    data = file.read(_MAX_HEADER)
    has_parts = bool(int.from_bytes(data[4:8], "little") & _EXR_PARTS)
    at = 8
    while True:
        if not data[at]:
            at += 1
            if not has_parts or not data[at]:
                return
            continue
        name_end = data.index(b"\0", at)
        type_end = data.index(b"\0", name_end + 1)
        begin = type_end + 5
        length = int.from_bytes(data[type_end + 1 : begin], "little")
        if begin + length > len(data):
            raise BrokenFileError("its header is cut off")
        if data[name_end + 1 : type_end] == b"string" and data[at:name_end] not in _EXR_NEEDED:
            file.seek(begin)
            file.write(b" " * length)
        at = begin + length


# Scenes and tensors: JSON that keeps its length. -------------------------------------------------------------


def _blank_json(file: IO[bytes], position: int, length: int, clean: Callable[[Any], None]) -> None:
    if length > _MAX_HEADER:
        raise BrokenFileError("its header is too large")
    file.seek(position)
    value = json.loads(file.read(length))
    clean(value)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= length:
        file.seek(position)
        file.write(text.ljust(length))


def _clean_gltf(scene: Any) -> None:
    asset = scene.get("asset", {})
    for name in ("extras", "generator", "copyright"):
        asset.pop(name, None)
    scene.pop("extras", None)


def _clean_safetensors(header: Any) -> None:
    kept = {name: text for name, text in (header.pop("__metadata__", None) or {}).items() if name == "format"}
    if kept:
        header["__metadata__"] = kept
