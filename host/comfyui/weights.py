"""Tell what a model file takes of the card's memory, from its header alone, by ComfyUI's own figures.

ComfyUI finds out what a model is by the names and shapes of its tensors (`comfy.model_detection`), and plans memory by
`memory_usage_factor` of that kind of model (`comfy.supported_models`), in `BaseModel.memory_required`. So what is told
here is what it will plan, on this host, with this host's attention, of every model that this version knows.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from types import SimpleNamespace
from typing import Any

import folder_paths

from ...guard.weight import ModelWeight

log = logging.getLogger("guarded.host")

#: The kinds of files that a sampler's model is loaded from.
_KINDS = ("checkpoints", "diffusion_models", "unet")
#: safetensors' own limit for its header.
_LONGEST_HEADER = 100_000_000
#: Bits of one number, by safetensors' name for its type.
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "I64": 64,
    "I32": 32, "I16": 16, "I8": 8, "U8": 8, "U16": 16, "U32": 32, "U64": 64, "BOOL": 8,
}  # fmt: skip


def weigh(name: str) -> ModelWeight | None:
    """What the model of that name takes; None where ComfyUI has no such file, or does not know what it is."""
    for kind in _KINDS:
        if kind not in folder_paths.folder_names_and_paths:
            continue
        path = folder_paths.get_full_path(kind, name)
        if path is None or not path.endswith((".safetensors", ".sft")):
            continue
        try:
            status = os.stat(path)
            return _weigh(path, status.st_size, status.st_mtime_ns)
        except Exception:  # of ComfyUI's detection, on a file that is none of its models
            log.debug("nobody knows what %s takes", name, exc_info=True)
            return None
    return None


@functools.lru_cache(maxsize=64)
def _weigh(path: str, _size: int, _changed_ns: int) -> ModelWeight | None:
    try:
        import comfy.model_base
        import comfy.model_detection
        import comfy.model_management
        import torch
    except ImportError:
        return None
    if comfy.model_management.vram_state is comfy.model_management.VRAMState.DISABLED:
        return None  # there is no card
    header = _read_header(path)
    tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    if not any(name.startswith(prefix) for name in tensors):
        prefix = ""
    config = comfy.model_detection.model_config_from_unet(tensors, prefix)
    if config is None:
        return None
    numbers = [
        (math.prod(each["shape"]), _BITS[each["dtype"]]) for name, each in header.items() if name.startswith(prefix)
    ]
    # ComfyUI computes in two bytes where it can, and loads what is larger as that.
    weights = sum(count * min(bits, 16) for count, bits in numbers) // 8
    form, management = config.latent_format, comfy.model_management
    flat = getattr(form, "latent_dimensions", 2) < 3
    return ModelWeight(
        family=type(config).__name__,
        weights_bytes=weights,
        cell_bytes=float(comfy.model_base.BaseModel.memory_required(_stand_in(config, torch.float16), [1, 1, 1, 1])),
        side=int(getattr(form, "spacial_downscale_ratio", 8)),
        frames=1 if flat else max(int(getattr(form, "temporal_downscale_ratio", 4)), 1),
        spare_bytes=int(management.minimum_inference_memory()),
        in_parts=management.vram_state is not management.VRAMState.HIGH_VRAM,
    )


def _stand_in(config: Any, dtype: Any) -> Any:
    """What `BaseModel.memory_required` reads of a model."""
    return SimpleNamespace(
        memory_usage_factor=config.memory_usage_factor,
        memory_usage_factor_conds=(),
        memory_usage_shape_process={},
        manual_cast_dtype=None,
        get_dtype=lambda: dtype,
        get_dtype_inference=lambda: dtype,
    )


def _read_header(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(length)
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
