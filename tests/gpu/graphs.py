"""What is posted to a GPU."""

from contract.client import Prompt, make_sampled, node, save

CHECKPOINT = "small.safetensors"
#: As many steps as ComfyUI allows.
ENDLESS = 10_000


def sampled(steps: int, seed: int = 1, size: int = 64, prefix: str | None = None) -> Prompt:
    """ComfyUI's own nodes around a KSampler."""
    return make_sampled(CHECKPOINT, save("5", prefix), steps, seed, size)


def all_memory() -> Prompt:
    return {"1": node("FaultGpuMemory", cpu_mib=1024, seed=0), "2": save()}


def asserts(*, late: bool) -> Prompt:
    return {"1": node("FaultGpuAssert", late=late, seed=0), "2": save()}


def kernel(seconds: float, mib: int = 0) -> Prompt:
    return {"1": node("FaultGpuKernel", seconds=seconds, mib=mib, seed=0), "2": save()}
