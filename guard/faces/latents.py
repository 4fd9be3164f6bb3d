"""Read how large the latents in a file are, by its header: ComfyUI's LoadLatent (`nodes.py`) fails on a broken one."""

from __future__ import annotations

import math
import os
from typing import IO

from ..cost.values import Media
from ..results.containers import BrokenFileError
from ..results.others import read_tensors
from .sounds import UnfitError

#: The node that reads them, and its tensor's name.
LOADER, _TENSOR = "LoadLatent", "latent_tensor"
#: What a side of most models' latents stands for, and of films' a moment.
_SIDE, _MOMENTS = 8, 4
#: So many dimensions have those of a sound.
_OF_SOUND = 3


def look_at_latent(handle: IO[bytes]) -> Media:
    """Raises UnfitError, BrokenFileError, and whatever a header that makes no sense leads to."""
    shapes = read_tensors(handle, os.fstat(handle.fileno()).st_size)
    if not shapes:
        raise BrokenFileError("its header is too long to be read")
    shape = shapes.get(_TENSOR)
    if shape is None or not 3 <= len(shape) <= 5 or not all(isinstance(each, int) and each > 0 for each in shape):
        raise UnfitError(f"it holds no {_TENSOR} of three to five dimensions")
    if len(shape) == _OF_SOUND:
        return Media()
    moments = math.prod([shape[0], *((each - 1) * _MOMENTS + 1 for each in shape[2:-2])])
    return Media(shape[-1] * _SIDE, shape[-2] * _SIDE, moments if moments > 1 else 0)
