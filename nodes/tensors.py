"""Tensor <-> array. torch is touched only when the input is a tensor, and never imported: the sandbox has none."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..guard.pixels import as_array


def to_array(images: Any) -> np.ndarray[Any, Any]:
    """An IMAGE as a numpy view, frames × height × width × channels; a tensor on the CPU shares its memory."""
    return as_array(images)


def to_bytes(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """height × width × channels in 0..1, as 8 bits. Values outside are cut off; rounds down, as SaveImage does."""
    return np.clip(picture * 255.0, 0, 255).astype(np.uint8)


def like(template: Any, array: np.ndarray[Any, Any]) -> Any:
    """An array as whatever `template` is: a tensor of its type on its device, or the array itself."""
    if hasattr(template, "new_tensor"):
        return template.new_tensor(array)
    return array.astype(getattr(template, "dtype", np.float32), copy=False)
