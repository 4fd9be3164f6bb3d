"""What is posted to a GPU."""

from contract.client import Prompt, node, save

CHECKPOINT = "small.safetensors"
#: As many steps as ComfyUI allows.
ENDLESS = 10_000


def sampled(steps: int, seed: int = 1, size: int = 64, prefix: str | None = None) -> Prompt:
    """ComfyUI's own nodes around a KSampler."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
        "3": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "4": node(
            "KSampler", model=["1", 0], seed=seed, steps=steps, cfg=7.0, sampler_name="euler", scheduler="normal",
            positive=["2", 0], negative=["2", 0], latent_image=["3", 0], denoise=1.0,
        ),
        "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": save("5", prefix),
    }  # fmt: skip


def all_memory() -> Prompt:
    return {"1": node("FaultGpuMemory", cpu_mib=1024, seed=0), "2": save()}


def asserts(*, late: bool) -> Prompt:
    return {"1": node("FaultGpuAssert", late=late, seed=0), "2": save()}


def kernel(seconds: float, mib: int = 0) -> Prompt:
    return {"1": node("FaultGpuKernel", seconds=seconds, mib=mib, seed=0), "2": save()}
