"""Nodes that do to a GPU what goes wrong there. On ComfyUI's CPU each does what comes nearest. They need torch.

What a GPU does, it does behind the caller's back: an error comes up at a later call, in whatever node makes it.
"""

import threading
import time
from typing import Any

import comfy.model_management

from .common import SECONDS, SEED, FaultNode, passed_on

MIB = 2**20
#: What one tensor takes. The last one that no longer fits leaves room for what needs less.
CHUNK_MIB = 256
#: About what a GPU makes at work. A slower one takes longer than it was asked to.
CYCLES_PER_S = 2e9
#: As torch words it.
ASSERTED = "CUDA error: device-side assert triggered"


#: On a CPU: whoever has it computes, and all that would wait for a GPU waits for it.
_device = threading.Lock()
#: On a CPU: set once a GPU would be lost to this process.
_lost = threading.Event()


def _stand_in() -> None:
    """Before it takes or gives back memory ComfyUI waits for the GPU, also between two jobs; and a lost one raises."""
    for name in ("load_models_gpu", "soft_empty_cache"):
        native = getattr(comfy.model_management, name)
        if not hasattr(native, "stands_in"):

            def waiting(*args: Any, native: Any = native, **kwargs: Any) -> Any:
                with _device:
                    if _lost.is_set():
                        raise RuntimeError(ASSERTED)
                return native(*args, **kwargs)

            waiting.stands_in = True  # type: ignore[attr-defined]
            setattr(comfy.model_management, name, waiting)


class _GpuFault(FaultNode):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {**cls.inputs(), "seed": SEED}, "optional": {"image": ("IMAGE",)}}

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {}


def _take(mib: int) -> Any:
    """So much of the device's memory, written to, so that it is really taken."""
    import torch

    return torch.ones(mib * MIB, dtype=torch.uint8, device=comfy.model_management.get_torch_device())


def _is_cpu() -> bool:
    return bool(comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device()))


class FaultGpuMemory(_GpuFault):
    """Takes memory until there is no more; a CPU says so after `cpu_mib`."""

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {"cpu_mib": ("INT", {"default": 1024, "min": 0, "max": 2**20})}

    def run(self, cpu_mib: int, seed: int = 0, image: Any = None) -> tuple[Any]:
        held = []
        while True:
            if _is_cpu() and len(held) * CHUNK_MIB >= cpu_mib:
                raise comfy.model_management.OOM_EXCEPTION(f"Tried to allocate {CHUNK_MIB} MiB, in place of a GPU.")
            held.append(_take(CHUNK_MIB))


class FaultGpuAssert(_GpuFault):
    """A kernel that reads beyond its table. `late`: this node does not wait for it, and the next one hears of it."""

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {"late": ("BOOLEAN", {"default": False})}

    def run(self, late: bool, seed: int = 0, image: Any = None) -> tuple[Any]:
        import torch

        if _is_cpu():
            _stand_in()
            _lost.set()
            if not late:
                raise RuntimeError(ASSERTED)
            return (_make_lost_image(),)
        device = comfy.model_management.get_torch_device()
        table = torch.zeros(8, device=device)
        wrong = table[torch.full((1,), 2**20, dtype=torch.int64, device=device)]
        if not late:
            torch.cuda.synchronize()
        return (passed_on(image, seed)[0].to(device) + wrong.sum(),)


def _make_lost_image() -> Any:
    """An image on a GPU that is lost: whoever looks at it, and be it to print it, hears of that."""
    import torch

    class Lost(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") == "__get__":  # what is known without the GPU: its shape, its device
                return super().__torch_function__(func, types, args, kwargs or {})
            raise RuntimeError(ASSERTED)

    return torch.zeros((1, 128, 128, 3)).as_subclass(Lost)


class FaultGpuKernel(_GpuFault):
    """One kernel that runs so long, in a call that nothing ends, and memory of a GPU that is held meanwhile."""

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {"seconds": SECONDS, "mib": ("INT", {"default": 0, "min": 0, "max": 2**20})}

    def run(self, seconds: float, mib: int, seed: int = 0, image: Any = None) -> tuple[Any]:
        import torch

        if _is_cpu():  # whose memory is written to by a slow call that does end, before the one that does not
            _stand_in()
            with _device:
                time.sleep(seconds)
        else:
            held = _take(mib)
            torch.cuda._sleep(int(seconds * CYCLES_PER_S))
            torch.cuda.synchronize()
            del held
        return passed_on(image, seed)
