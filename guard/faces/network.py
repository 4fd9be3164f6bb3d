"""Read the network that ships with the package without the package onnx, which ComfyUI does not bring.

The file is ONNX, which is protobuf; this knows no more fields than CenterFace has (onnx.proto has their numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
#: Protobuf's wire types that occur: a number, eight bytes, a length and so many bytes, four bytes.
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclass(frozen=True)
class Step:
    """A node of the network: what it does, the names of what it reads, the name of what it makes, its attributes."""

    kind: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


def read_network(file: Path) -> tuple[list[Step], dict[str, _Floats]]:
    """The steps of the network in `file`, in order, and its weights by name.

    Raises:
        OSError: it cannot be read.
        ValueError, IndexError: it is no network.
    """
    graph = next((value for number, value in _list_fields(memoryview(file.read_bytes())) if number == 7), None)
    if graph is None:
        raise ValueError("there is no graph in it")
    steps, weights = [], {}
    for number, value in _list_fields(graph):
        if number == 1:
            steps.append(_read_step(value))
        elif number == 5:
            name, weight = _read_weight(value)
            weights[name] = weight
    return steps, weights


def _list_fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number and value; a number as int, everything else as its bytes."""
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _read_varint(data, place)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, place = _read_varint(data, place)
        elif wire in (_EIGHT, _FOUR):
            length = 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"this is no network: wire type {wire}")
        yield key >> 3, data[place : place + length]
        place += length


def _read_varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _read_step(data: memoryview) -> Step:
    inputs, outputs, kind, attributes = [], [], "", {}
    for number, value in _list_fields(data):
        if number == 1:
            inputs.append(str(value, "utf-8"))
        elif number == 2:
            outputs.append(str(value, "utf-8"))
        elif number == 4:
            kind = str(value, "utf-8")
        elif number == 5:
            name, attribute = _read_attribute(value)
            attributes[name] = attribute
    return Step(kind, inputs, outputs[0], attributes)


def _read_attribute(data: memoryview) -> tuple[str, Any]:
    name, single, many = "", None, []
    for number, value in _list_fields(data):
        if number == 1:
            name = str(value, "utf-8")
        elif number == 2:
            single = struct.unpack("<f", value)[0]
        elif number == 3:
            single = value
        elif number == 8:
            many.append(value)
    return name, many or single


def _read_weight(data: memoryview) -> tuple[str, _Floats]:
    shape, name, raw = [], "", b""
    for number, value in _list_fields(data):
        if number == 1:
            shape.append(value)
        elif number == 8:
            name = str(value, "utf-8")
        elif number in (4, 9):  # as packed numbers, or as bytes: the same in little-endian
            raw = value
    return name, np.frombuffer(raw, "<f4").reshape(shape).astype(np.float32)
