"""What the faulty nodes share: their common inputs, and images of the kind that the host uses."""

from typing import Any

import comfy.model_management
import numpy as np

SECONDS = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 86400.0, "step": 0.01})
SEED = ("INT", {"default": 0, "min": 0, "max": 2**53})


class FaultNode:
    """Runs every time: its IS_CHANGED is never equal to itself, and `seed` varies the sample."""

    CATEGORY = "guarded/faults"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        # A new NaN each time; math.nan is one object, and a tuple that holds it equals itself.
        return float("nan")


def host_image(pixels: np.ndarray) -> Any:
    """A float32 array (frames, height, width, channels), or a tensor of it where the host has torch."""
    # Real ComfyUI imports torch there. sys.modules would not do: a pack may import torch into the sandbox.
    torch = getattr(comfy.model_management, "torch", None)
    return torch.from_numpy(pixels) if torch is not None else pixels


def sample_image(seed: int = 0, width: int = 128, height: int = 128) -> np.ndarray:
    """A slope with noise over it: neither blank nor small, and another for another seed."""
    slope = np.linspace(0.2, 0.8, width, dtype=np.float32)[None, None, :, None]
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (1, height, width, 3)).astype(np.float32)
    return np.clip(slope + noise, 0, 1)


def passed_on(image: Any, seed: int) -> tuple[Any]:
    return (image if image is not None else host_image(sample_image(seed)),)


def check_interrupt() -> None:
    """By attribute, so that whatever a plugin has put there is called."""
    comfy.model_management.throw_exception_if_processing_interrupted()
