"""Tell whether what nobody looks at is at least whole: scenes (glTF), drawings (SVG) and tensors (safetensors).

Their own structure says how long they are and how they go on. What they show is not judged.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import IO, Any
from xml.parsers import expat

import numpy as np

from .budget import BudgetFile
from .containers import BrokenFileError

#: Python reads JSON in one call, which no other thread may interrupt; what is longer is left unread, as a drawing is.
_MOST_JSON, _MOST_XML = 2**22, 2**24
#: Expat begins a long token anew with each piece that it gets.
_PIECE = 2**18
#: glTF's kinds of chunks, and its numbers: their bytes, and how many an element has.
_JSON, _BIN = 0x4E4F534A, 0x004E4942
_MOST_CHUNKS = 1000
_NUMBERS: Mapping[int, int] = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_ELEMENTS: Mapping[str, int] = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_FLOAT = 5126
#: safetensors' kinds of numbers, in bits.
_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}


def check_other(handle: BudgetFile, name: str, size: int) -> None:
    """Read such a file as far as its structure goes. Its name says what it should be.

    Raises:
        BrokenFileError: it is cut off, or does not go on as it begins.
        Exception: its structure makes no sense.
    """
    check = _CHECKS.get(PurePath(name).suffix.lower())
    if check is not None:
        check(handle, size)


def _read(handle: BudgetFile | IO[bytes], at: int, count: int) -> bytes:
    handle.seek(at)
    data = handle.read(count)
    if len(data) < count:
        raise BrokenFileError("the file is cut off")
    return data


def _read_json(handle: BudgetFile | IO[bytes], at: int, count: int) -> Any:
    """None where it is too long to be read."""
    if count > _MOST_JSON:
        return None
    try:
        return json.loads(_read(handle, at, count), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"its JSON cannot be read: {error}") from None


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON's")


# Scenes. -----------------------------------------------------------------------------------------------------


def _check_gltf(handle: BudgetFile, size: int) -> None:
    scene = _read_json(handle, 0, size)
    if scene is not None and not (isinstance(scene, dict) and "asset" in scene):
        raise BrokenFileError("it is no scene")


def _check_glb(handle: BudgetFile, size: int) -> None:
    """All chunks must be there, and what the scene finds in them."""
    magic, version, length = struct.unpack("<4sII", _read(handle, 0, 12))
    if magic != b"glTF":
        raise BrokenFileError("it is no glTF")
    if length > size:
        raise BrokenFileError(f"it has {size} of {length} bytes")
    if version != 2:
        return
    chunks: list[tuple[int, int, int]] = []
    at = 12
    while at + 8 <= length and len(chunks) < _MOST_CHUNKS:
        count, kind = struct.unpack("<II", _read(handle, at, 8))
        if at + 8 + count > length:
            raise BrokenFileError("a chunk is cut off")
        chunks.append((kind, at + 8, count))
        at += 8 + count
    if not chunks or chunks[0][0] != _JSON:
        raise BrokenFileError("it has no scene")
    scene = _read_json(handle, *chunks[0][1:])
    if scene is None:
        return
    if "asset" not in scene:
        raise BrokenFileError("it is no scene")
    binary = chunks[1][1:] if len(chunks) > 1 and chunks[1][0] == _BIN else (0, 0)
    _check_scene(handle, scene, *binary)


def _check_scene(handle: BudgetFile, scene: Mapping[str, Any], begin: int, count: int) -> None:
    """Its views must lie in their buffers, what it reads in its views; and its points must be somewhere."""
    buffers, views = scene.get("buffers", []), scene.get("bufferViews", [])
    accessors = scene.get("accessors", [])
    if buffers and not buffers[0].keys() & {"uri", "extensions"} and buffers[0]["byteLength"] > count:
        raise BrokenFileError(f"it has {count} of its {buffers[0]['byteLength']} bytes of data")
    for view in views:
        if view.get("byteOffset", 0) + view["byteLength"] > buffers[view["buffer"]]["byteLength"]:
            raise BrokenFileError("a view goes beyond its buffer")
    for accessor in accessors:
        if "bufferView" in accessor:
            view = views[accessor["bufferView"]]
            element = _NUMBERS[accessor["componentType"]] * _ELEMENTS[accessor["type"]]
            stride = view.get("byteStride", element)
            end = accessor.get("byteOffset", 0) + stride * (accessor["count"] - 1) + element
            if end > view["byteLength"] and not view.get("extensions"):
                raise BrokenFileError("it reads beyond a view")
    primitives = [each for mesh in scene.get("meshes", []) for each in mesh["primitives"]]
    for number in {each.get("attributes", {}).get("POSITION") for each in primitives} - {None}:
        accessor = accessors[number]
        view = views[accessor["bufferView"]] if "bufferView" in accessor else None
        if view is None or view["buffer"] or "uri" in buffers[0] or view.get("extensions"):
            continue
        if accessor["componentType"] == _FLOAT and view.get("byteStride", 12) == 12:
            offset = begin + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
            _check_points(handle, offset, accessor["count"] * 12)


def _check_points(handle: BudgetFile, at: int, count: int) -> None:
    while count > 0:
        data = _read(handle, at, min(count, _PIECE))
        if not np.isfinite(np.frombuffer(data, "<f4")).all():
            raise BrokenFileError("points of it are nowhere (NaN)")
        at, count = at + len(data), count - len(data)


# Drawings. ---------------------------------------------------------------------------------------------------


class _LeftUnreadError(Exception):
    """It defines texts of its own, which may grow without bounds."""


def _check_svg(handle: BudgetFile, size: int) -> None:
    """It must be XML to its end, and a drawing."""
    if size > _MOST_XML:
        return
    parser = expat.ParserCreate()

    def see_root(name: str, _attributes: Mapping[str, str]) -> None:
        if name.rpartition(":")[2] != "svg":
            raise BrokenFileError("it is no drawing")
        parser.StartElementHandler = None

    def stop(*_entity: object) -> None:
        raise _LeftUnreadError

    parser.StartElementHandler, parser.EntityDeclHandler = see_root, stop
    try:
        handle.seek(0)
        while data := handle.read(_PIECE):
            parser.Parse(data, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise BrokenFileError(f"its XML cannot be read: {error}") from None
    except _LeftUnreadError:
        return


# Tensors. ----------------------------------------------------------------------------------------------------


def _check_tensors(handle: BudgetFile, size: int) -> None:
    read_tensors(handle, size)


def read_tensors(handle: BudgetFile | IO[bytes], size: int) -> dict[str, Any]:
    """The shape of each tensor, by name; empty where the header is too long to be read.

    The header lists every tensor with its place, so the size is known to the byte. Raises as `check_other` does.
    """
    count = int.from_bytes(_read(handle, 0, 8), "little")
    if count > size - 8:
        raise BrokenFileError("it is no safetensors file, or its header is cut off")
    header = _read_json(handle, 8, count)
    if header is None:
        return {}
    end, shapes = 0, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        bits = _BITS.get(entry["dtype"])
        if not 0 <= first <= last or (bits is not None and (last - first) * 8 != math.prod(entry["shape"]) * bits):
            raise BrokenFileError(f"its tensor {name[:100]!r} does not have the size that its header says")
        end, shapes[name] = max(end, last), entry["shape"]
    if end != size - 8 - count:
        raise BrokenFileError(f"it has {size} of {8 + count + end} bytes")
    return shapes


_CHECKS: Mapping[str, Callable[[BudgetFile, int], None]] = {
    ".glb": _check_glb,
    ".gltf": _check_gltf,
    ".svg": _check_svg,
    **dict.fromkeys((".safetensors", ".sft", ".latent"), _check_tensors),
}
