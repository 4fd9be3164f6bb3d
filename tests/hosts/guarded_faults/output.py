"""Nodes whose results are not what they say."""

import contextlib
import os
import time
from io import BytesIO
from typing import Any

import comfy.utils
import folder_paths
import numpy as np
from PIL import Image

from .common import SECONDS, SEED, FaultNode, host_image, sample_image

SIDE = ("INT", {"default": 512, "min": 1, "max": 16384})


class _FaultOutput(FaultNode):
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"filename_prefix": ("STRING", {"default": "fault"}), "seed": SEED}}


def _report(filename: str, subfolder: str = "") -> dict[str, Any]:
    return {"ui": {"images": [{"filename": filename, "subfolder": subfolder, "type": "output"}]}}


def _next_name(prefix: str) -> tuple[str, str, str]:
    """Folder, file name and subfolder of the next output file of this prefix."""
    root = folder_paths.get_output_directory()
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root, 128, 128)
    return folder, f"{stem}_{counter:05}_.png", subfolder


def _write(prefix: str, content: bytes) -> dict[str, Any]:
    folder, name, subfolder = _next_name(prefix)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)
    return _report(name, subfolder)


class FaultTruncatedImage(_FaultOutput):
    """A PNG of which the second half is missing."""

    def run(self, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        buffer = BytesIO()
        Image.fromarray((sample_image(seed)[0] * 255).astype(np.uint8)).save(buffer, format="png")
        content = buffer.getvalue()
        return _write(filename_prefix, content[: len(content) // 2])


class FaultTinyFile(_FaultOutput):
    """Ten bytes that call themselves a PNG."""

    def run(self, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        return _write(filename_prefix, b"\x89PNG\r\n\x1a\n\0\0")


class FaultLateImage(_FaultOutput):
    """A call into C that nothing ends, and then a good picture, whatever came meanwhile."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        more = super().INPUT_TYPES()["required"]
        return {"required": {"seconds": SECONDS, **more}}

    def run(self, seconds: float, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        with contextlib.suppress(BaseException):
            time.sleep(seconds)
        buffer = BytesIO()
        Image.fromarray((sample_image(seed)[0] * 255).astype(np.uint8)).save(buffer, format="png")
        return _write(filename_prefix, buffer.getvalue())


class FaultGatedImage(_FaultOutput):
    """A good picture once there is a file of that name in the input folder, whatever came meanwhile."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        more = super().INPUT_TYPES()["required"]
        return {"required": {"gate": ("STRING", {"default": "gate"}), **more}}

    def run(self, gate: str, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        while not os.path.exists(os.path.join(folder_paths.get_input_directory(), gate)):
            time.sleep(0.02)
        buffer = BytesIO()
        Image.fromarray((sample_image(seed)[0] * 255).astype(np.uint8)).save(buffer, format="png")
        return _write(filename_prefix, buffer.getvalue())


class FaultMissingFile(_FaultOutput):
    """Names a file that it never wrote."""

    def run(self, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        _, name, subfolder = _next_name(filename_prefix)
        return _report(f"missing_{name}", subfolder)


class FaultOutsideFile(_FaultOutput):
    """Names a file two levels above the output folder."""

    def run(self, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        return _report("../../x.png")


class FaultNoOutput(_FaultOutput):
    """Ends well and reports nothing at all."""

    def run(self, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        return {}


class FaultText(_FaultOutput):
    """Reports text instead of files, and is right to."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"default": "only text"}), "seed": SEED}}

    def run(self, text: str, seed: int = 0) -> dict[str, Any]:
        return {"ui": {"text": [text]}}


class FaultClock(_FaultOutput):
    """Reports the time at which it ends."""

    def run(self, filename_prefix: str, seed: int = 0) -> dict[str, Any]:
        return {"ui": {"text": [repr(time.time())]}}


class FaultReadFile(_FaultOutput):
    """Reports the words in an input file. Like the loaders of many packs it offers what lies in the root of input, and
    leaves the check to ComfyUI, which refuses what is not in the list."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        folder = folder_paths.get_input_directory()
        files = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))
        return {"required": {"file": (files,)}}

    def run(self, file: str) -> dict[str, Any]:
        with open(folder_paths.get_annotated_filepath(file), encoding="utf-8") as opened:
            return {"ui": {"text": [opened.read()]}}


def _nest(depth: int) -> Any:
    nest: Any = "bottom"
    for _ in range(depth):
        nest = [nest]
    return nest


def _grow() -> Any:
    """Few lists, and more things than any machine can write."""
    grown: Any = "x" * 1000
    for _ in range(30):
        grown = [grown] * 30
    return grown


#: Reports that no JSON can tell, or that are JSON of another shape than ComfyUI or a frontend expects.
ODD_REPORTS: dict[str, Any] = {
    "nan": lambda: {"rows": [float("nan"), float("-inf"), 1e308]},
    "bytes": lambda: {"rows": [b"\xff\x00", bytearray(3), memoryview(b"x")]},
    "objects": lambda: {"rows": [object(), object, print, {1, 2}, np.float32(0.5), np.zeros(3), 1 + 2j]},
    "deep": lambda: {"rows": [_nest(20_000)]},
    "grown": lambda: {"rows": [_grow()]},
    "digits": lambda: {"rows": [10**5000, -(10**400)]},
    "tuple key": lambda: {("a", "b"): [1], None: [2], b"c": [3]},
    "no files": lambda: {"images": ["x.png", 5, None], "audio": [["x"]], "video": "x", "animated": ["yes", None]},
    "numbers for names": lambda: {
        "images": [{"filename": "a.png", "type": "input", "subfolder": 5, "format": 7, "id": 9, "display_name": [1]}]
    },
    "a type of its own": lambda: {"images": [{"filename": "x.png", "type": "elsewhere"}, {"type": {}}]},
    "texts that are none": lambda: {"text": [5, {"filename": 6}, None], "3d": [{"mediaType": 5, "content": 5}]},
    "formats": lambda: {"gifs": [{"format": 5}, {"format": None, "filename": None}]},
}


class FaultOddReport(_FaultOutput):
    """Reports what JSON cannot hold, or progress that makes no sense."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kinds = ["keys", "circle", "surrogate", "nan progress", "numpy progress", *ODD_REPORTS]
        return {"required": {"kind": (kinds,), "seed": SEED}}

    def run(self, kind: str, seed: int = 0) -> dict[str, Any]:
        if kind.endswith("progress"):
            comfy.utils.ProgressBar(10).update_absolute(float("nan") if kind.startswith("nan") else np.int64(5), 10)
            return {"ui": {"text": [kind]}}
        circle: list[Any] = ["round and round"]
        circle.append(circle)
        odd = {"keys": {("a", 1): 2, "b": 3}, "circle": circle, "surrogate": "caf\udce9.txt"}
        return {"ui": ODD_REPORTS[kind]() if kind in ODD_REPORTS else {"rows": [odd[kind]]}}


class FaultBlackImage(FaultNode):
    """An image that is black, or with `nan` nothing at all."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": SIDE, "height": SIDE, "nan": ("BOOLEAN", {"default": False}), "seed": SEED}}

    def run(self, width: int, height: int, nan: bool = False, seed: int = 0) -> tuple[Any]:
        value = np.float32("nan") if nan else np.float32(0)
        return (host_image(np.full((1, height, width, 3), value, np.float32)),)
