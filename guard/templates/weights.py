"""Tell a model file that is whole from one that a broken download has left, or a web page in its place.

By its own structure, as far as that says how long it is: a name or a size is easily right by chance.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import IO

#: safetensors' own limit for its header.
_LONGEST_HEADER = 100_000_000
#: Sizes in manifests are rounded, and repositories store a file anew with another header now and then.
_SHARE, _ROUNDED = 0.9, 1_000_000
#: The fields of ONNX' ModelProto (onnx.proto); the last one of each pair says how it is written.
_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_MOST_FIELDS = 100_000
#: Kinds of model files that are texts.
_TEXTS = frozenset({".json", ".yaml", ".yml", ".txt", ".toml", ".cfg", ".csv"})
_BROKEN_OFF = "the download has broken off"


def find_fault(path: Path, size_mb: int) -> str | None:
    """What is wrong with the file, as the end of a sentence about it; None where it seems whole.

    Remembered by size and time of change, since headers of large models have megabytes.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "is no file"
        return _find_fault(str(path), status.st_size, status.st_mtime_ns, size_mb)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


@functools.lru_cache(maxsize=512)
def _find_fault(path: str, size: int, _changed_ns: int, size_mb: int) -> str | None:
    if not size:
        return "is empty"
    suffix = PurePath(path).suffix.lower()
    with open(path, "rb") as file:
        head = file.read(1024)
        if suffix not in _TEXTS and _is_text(head):
            return "is a text; a web page, or a pointer to the file, may have been saved in its place"
        look = _LOOKS.get(suffix)
        file.seek(0)
        fault, is_measured = look(file, size) if look is not None else (None, False)
    if fault is None and not is_measured and size < size_mb * 1_000_000 * _SHARE - _ROUNDED:
        return f"has {size / 1e6:.0f} of about {size_mb} MB; the download seems to have broken off"
    return fault


def _is_text(head: bytes) -> bool:
    """Whether a file begins as a text does: every format of weights has zeros or other controls in its head."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a sign that was cut in two
            return False
        text = head[: error.start].decode("utf-8-sig", "replace")
    return not any(ord(sign) < 32 and sign not in "\t\r\n\f" for sign in text)


#: Looks at a file of that size. Returns what is wrong with it, and whether its structure says how long it is.
_Look = Callable[[IO[bytes], int], tuple[str | None, bool]]


def _look_at_safetensors(file: IO[bytes], size: int) -> tuple[str | None, bool]:
    """The header lists every tensor with its place, so the size is known to the byte."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size, _LONGEST_HEADER):
        return "is no safetensors file; a web page may have been saved in its place", True
    try:
        header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        whole = 8 + length + int(end)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        return "has a header that cannot be read", True
    if size < whole:
        return f"has {size / 1e6:.0f} of {whole / 1e6:.0f} MB; {_BROKEN_OFF}", True
    return (f"has {size - whole} bytes behind its end" if size > whole else None), True


def _look_at_torch(file: IO[bytes], size: int) -> tuple[str | None, bool]:
    """PyTorch writes a zip archive, whose directory is at its end; before 1.6 it wrote pickles, one after the other."""
    head = file.read(4)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                is_cut = any(each.header_offset + each.compress_size > size for each in archive.infolist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError):
            return f"has no directory at its end; {_BROKEN_OFF}", True
        if is_cut or not any(name.endswith(".pkl") for name in names):
            return "is an archive without weights", True
        return None, True
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return None, False
    return "is no PyTorch file", True


def _look_at_gguf(file: IO[bytes], size: int) -> tuple[str | None, bool]:
    """The header lists every tensor with its place; the size of the last one is its type's, and not looked up."""
    try:
        end = _read_gguf(file)
    except (ValueError, struct.error, OverflowError, UnicodeDecodeError):
        return "is no GGUF file, or has a header that cannot be read", True
    if size < end:
        return f"has {size / 1e6:.0f} of over {end / 1e6:.0f} MB; {_BROKEN_OFF}", True
    return None, False


#: The sizes of GGUF's numbers, by type; 8 is text, 9 a list.
_GGUF_SIZES: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_ENTRIES, _MOST_ITEMS, _LONGEST_TEXT = 100_000, 1_000_000, 10_000_000


def _read_gguf(file: IO[bytes]) -> int:
    """Where the last tensor begins, as a place in the file. Raises ValueError or struct.error."""
    magic, version, tensors, entries = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version not in (2, 3) or max(tensors, entries) > _MOST_ENTRIES:
        raise ValueError(magic)
    alignment = 32
    for _ in range(entries):
        name = _read_gguf_text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if name == "general.alignment" and kind == 4:
            (alignment,) = struct.unpack("<I", file.read(4))
        else:
            _skip_gguf(file, kind)
    last = 0
    for _ in range(tensors):
        _read_gguf_text(file)
        (dimensions,) = struct.unpack("<I", file.read(4))
        if dimensions > 8:
            raise ValueError(dimensions)
        *_sides, _kind, offset = struct.unpack(f"<{dimensions}QIQ", file.read(8 * dimensions + 12))
        last = max(last, offset)
    if not 1 <= alignment <= 2**20:
        raise ValueError(alignment)
    return -(-file.tell() // alignment) * alignment + last


def _read_gguf_text(file: IO[bytes]) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    text = file.read(min(length, _LONGEST_TEXT))
    if len(text) < length:
        raise ValueError(length)
    return text.decode()


def _skip_gguf(file: IO[bytes], kind: int) -> None:
    """Pass over a value of that type. Texts are lists of bytes, and lists do not lie within lists."""
    if kind == 8:
        _read_gguf_text(file)
        return
    count = 1
    if kind == 9:
        kind, count = struct.unpack("<IQ", file.read(12))
        if count > _MOST_ITEMS:
            raise ValueError(count)
        if kind == 8:
            for _ in range(count):
                _read_gguf_text(file)
            return
    if kind not in _GGUF_SIZES:
        raise ValueError(kind)
    file.seek(_GGUF_SIZES[kind] * count, os.SEEK_CUR)


def _look_at_onnx(file: IO[bytes], size: int) -> tuple[str | None, bool]:
    """A protobuf message: fields one after the other, the longest of them the graph, up to the file's last byte."""
    at = 0
    numbers: set[int] = set()
    for _ in range(_MOST_FIELDS):
        if at == size:
            break
        file.seek(at)
        part = file.read(20)
        tag, length = _read_varint(part, 0)
        value, behind = _read_varint(part, length)
        number, kind = tag >> 3, tag & 7
        if not length or number not in _ONNX_FIELDS or kind not in (0, 2) or behind <= length:
            return "is no ONNX file" if not numbers else f"is damaged; {_BROKEN_OFF}", True
        numbers.add(number)
        at += behind + (value if kind == 2 else 0)
        if at > size:
            return f"has {size / 1e6:.0f} of {at / 1e6:.0f} MB; {_BROKEN_OFF}", True
    return (None if 7 in numbers else "is no ONNX file"), True


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number, the place behind it); that place is `at` where there is no number."""
    value = 0
    for index in range(at, min(at + 10, len(data))):
        value |= (data[index] & 0x7F) << (7 * (index - at))
        if data[index] < 0x80:
            return value, index + 1
    return 0, at


_LOOKS: Mapping[str, _Look] = {
    **dict.fromkeys((".safetensors", ".sft"), _look_at_safetensors),
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), _look_at_torch),
    ".gguf": _look_at_gguf,
    ".onnx": _look_at_onnx,
}
