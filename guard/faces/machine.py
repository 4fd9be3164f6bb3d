"""Give nodes the face check, and the folders that its pictures lie in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadImageError
from ..files.names import split_annotation
from .check import FaceChecker

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")


@dataclass(frozen=True)
class FaceMachine:
    """Everything that face nodes need.

    Attributes:
        checker: the face check.
        file: Host.file: (type, subfolder, filename) → the path, None where that is not inside its folder.
        input_folder: where uploads lie.
    """

    checker: FaceChecker
    file: Callable[[str, str, str], Path | None]
    input_folder: Callable[[], Path]

    def find_image(self, image: str) -> Path:
        """The path of an image that a loader names. Raises BadImageError where there is none in its folder."""
        if not isinstance(image, str):  # a link gives anything
            raise BadImageError("It names no picture.")
        kind, name = split_annotation(image)
        path = self.file(kind, "", name) if name else None
        if path is None or not os.path.isfile(path):  # False for a name that is too long
            raise BadImageError(f"The image {image} is not there.", extra_info={"image": image})
        return path

    def list_images(self) -> list[str]:
        """The names of the pictures in the input folder itself, as LoadImage lists them."""
        try:
            return sorted(
                entry.name
                for entry in self.input_folder().iterdir()
                if entry.suffix.lower() in _SUFFIXES and entry.is_file()
            )
        except OSError:
            return []
