"""Convert between tensors and arrays. torch is used only if it is already loaded: the sandbox has none."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guard.faces import Pixels
from ..guard.results.content import as_array

Floats = npt.NDArray[np.float32]


def to_bytes(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """height × width × channels in 0..1 as 8 bits, to save: clips, and rounds down as SaveImage does."""
    return np.clip(picture * 255.0, 0, 255).astype(np.uint8)


def to_floats(images: Any) -> Floats:
    """An IMAGE as float32, frames × height × width × channels; copied only from another type or device.

    Raises:
        ValueError: it has another number of axes, or none of something.
    """
    return np.asarray(as_array(images), np.float32)


def to_kind_of(image: Any, values: Floats) -> Any:
    """`values` as a tensor of the kind and device of `image`, or as they are where that is an array."""
    return image.new_tensor(values) if hasattr(image, "new_tensor") else values


def to_tensor(values: Floats) -> Any:
    """`values` as a torch tensor where the host has loaded torch; the sandbox has none."""
    torch = sys.modules.get("torch")
    return torch.from_numpy(np.ascontiguousarray(values)) if torch is not None else values


def to_pixels(frame: Floats) -> Pixels:
    """A frame as uint8 RGB, to search: repeats grey, drops alpha, turns NaN black, and rounds to the nearest level."""
    values = np.clip(np.nan_to_num(frame), 0, 1) * 255
    colours = np.repeat(values[:, :, :1], 3, axis=2) if frame.shape[2] < 3 else values[:, :, :3]
    return np.ascontiguousarray(np.round(colours).astype(np.uint8))
