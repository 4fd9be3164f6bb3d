"""GuardedSaveImage: check a picture, write it under a name of the job's own, read it back, and only then report it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..guard import runtime
from ..guard.errors import InternalError, InvalidWorkflowError, ResultCorruptError
from ..guard.results import checks as artifacts
from ..guard.results.budget import Budget
from ..guard.results.containers import sniff
from ..guard.results.content import Checks, as_array, check_images
from ..guard.results.judgement import make_error
from .tensors import to_bytes

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
#: Exif tags that ComfyUI's own writers put a workflow into where the format has no text of its own.
_EXIF_MODEL = 0x0110
_EXIF_MAKE = 0x010F
#: A JPEG's header holds at most 64 KB.
_EXIF_BYTES = 65_000


class GuardedSaveImage:
    """Save images under names that no other job gets, and fail rather than report a bad file."""

    CATEGORY = "guarded"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The same images.",)
    DESCRIPTION = "Saves images under names that no other job has; each file is read back before it counts as saved."
    SEARCH_ALIASES = ["save image", "jpeg", "webp"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to save; they come out unchanged."}),
                "filename_prefix": (
                    "STRING",
                    {"default": "guarded", "tooltip": "May begin with folders: bots/a/photo"},
                ),
                "format": (list(_SUFFIXES), {"tooltip": "png is lossless; jpeg and webp are smaller."}),
            },
            "optional": {
                "quality": (
                    "INT",
                    {"default": 92, "min": 1, "max": 100, "tooltip": "For JPEG and WEBP; higher is better and larger"},
                ),
                "lossless": ("BOOLEAN", {"default": False, "tooltip": "Lossless WEBP"}),
                "embed_workflow": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Writes the prompt and the workflow into the file: whoever gets it can read them",
                    },
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    def save(
        self,
        images: Any,
        filename_prefix: str = "guarded",
        format: str = "png",
        quality: int = 92,
        lossless: bool = False,
        embed_workflow: bool = False,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        unique_id: Any = None,
    ) -> dict[str, Any]:
        """Raises ResultCorruptError for NaN and for what does not read back, InvalidWorkflowError for a prefix that
        leads outside the output folder."""
        batch = as_array(images)
        settings = runtime.current().settings.results
        if findings := check_images(batch, Checks(blank=False, speckle=False), settings):
            raise make_error(findings[0], "The image")
        destination = _Destination(filename_prefix, batch.shape[2], batch.shape[1], _read_job_id(prompt, unique_id))
        metadata = _make_metadata(prompt, extra_pnginfo) if embed_workflow else {}
        options = _make_options(format, quality, lossless, metadata)
        saved = []
        for number, picture in enumerate(batch, 1):
            path, name = destination.find_free(number, _SUFFIXES[format])
            _write(path, _make_picture(picture, format), format, options)
            saved.append({"filename": name, "subfolder": destination.subfolder, "type": "output"})
        return {"ui": {"images": saved}, "result": (images,)}


class _Destination:
    """Where one run of the node writes, and under which names.

    The job's id and four random bytes are in each name, behind a letter: the counter of ComfyUI's own SaveImage reads
    whatever number follows the prefix.
    """

    def __init__(self, prefix: str, width: int, height: int, job_id: str | None) -> None:
        host = runtime.current().host
        if host is None:
            raise InternalError("GuardedSaveImage works only while ComfyUI-Guarded is on; see the server's log.")
        self._host = host
        expanded = _expand(prefix.replace("\\", "/"), width, height)
        folder, _, stem = expanded.rpartition("/")
        self.subfolder = os.path.normpath(folder) if folder else ""
        owner = re.sub("[^0-9a-z]", "", (job_id or "").lower())[:8]
        self._stem = f"{stem or 'guarded'}_g{owner}{secrets.token_hex(4)}"

    def find_free(self, number: int, suffix: str) -> tuple[Path, str]:
        """Find the path and name of the next file, and make its folder."""
        name = f"{self._stem}_{number:05}{suffix}"
        path = self._host.file_to_save(self.subfolder, name)
        if path is None:
            raise InvalidWorkflowError("filename_prefix leads outside the output folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, name


def _expand(prefix: str, width: int, height: int) -> str:
    """Fill in ComfyUI's placeholders."""
    now = time.localtime()
    values = {"width": str(width), "height": str(height), "year": str(now.tm_year), "month": f"{now.tm_mon:02}"}
    values |= {"day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}"}
    values["second"] = f"{now.tm_sec:02}"
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def _read_job_id(prompt: Any, unique_id: Any) -> str | None:
    """Read the job's id from the node's inputs, where the guard has put it; None in a native prompt."""
    node = prompt.get(str(unique_id)) if isinstance(prompt, Mapping) else None
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return str(inputs["_guarded"]) if isinstance(inputs, Mapping) and "_guarded" in inputs else None


def _make_metadata(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    metadata = {"prompt": json.dumps(prompt)} if prompt is not None else {}
    if isinstance(extra_pnginfo, Mapping):
        metadata |= {str(name): json.dumps(value) for name, value in extra_pnginfo.items()}
    return metadata


def _make_options(format: str, quality: int, lossless: bool, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Make options for Pillow's save. PNG takes text, the others Exif, in the tags from which ComfyUI reads it back."""
    options: dict[str, Any] = {"png": {"compress_level": 4}, "jpeg": {"quality": quality, "optimize": True}}.get(
        format, {"quality": quality, "lossless": lossless}
    )
    if metadata and format == "png":
        options["pnginfo"] = PngInfo()
        for name, text in metadata.items():
            options["pnginfo"].add_text(name, text)
    elif metadata:
        exif = Image.Exif()
        for tag, (name, text) in zip((_EXIF_MODEL, *range(_EXIF_MAKE, 0x0100, -1)), metadata.items(), strict=False):
            exif[tag] = f"{name}:{text}"
        written = exif.tobytes()
        if format == "webp" or len(written) <= _EXIF_BYTES:
            options["exif"] = written
    return options


def _make_picture(picture: np.ndarray[Any, Any], format: str) -> Image.Image:
    pixels = to_bytes(picture)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    elif pixels.shape[-1] == 4 and format == "jpeg":
        pixels = pixels[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _write(path: Path, picture: Image.Image, format: str, options: Mapping[str, Any]) -> None:
    """Write a file beside the destination, read it back, and move it there in one step: nobody sees half a file."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "xb") as handle:
            picture.save(handle, format=format.upper(), **options)
            handle.flush()
            os.fsync(handle.fileno())
        _read_back(beside, picture.size)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _read_back(path: Path, size: tuple[int, int]) -> None:
    settings = runtime.current().settings.results
    try:
        with open(path, "rb") as handle:
            kind = sniff(handle.read(artifacts.SNIFF_BYTES))
            if kind is None:
                raise ValueError("it is no picture")
            facts = artifacts.inspect(handle, kind, os.fstat(handle.fileno()).st_size, settings, Budget(settings))
    except OSError:
        raise
    except Exception as error:
        raise ResultCorruptError("The saved image does not read back.", details=f"{error}") from error
    if (facts.width, facts.height) != size:
        raise ResultCorruptError("The saved image has another size than it was given.")


NODE_CLASS_MAPPINGS = {"GuardedSaveImage": GuardedSaveImage}
NODE_DISPLAY_NAME_MAPPINGS = {"GuardedSaveImage": "Save Image (Guarded)"}
