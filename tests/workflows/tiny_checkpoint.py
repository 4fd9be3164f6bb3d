"""Writes a checkpoint that ComfyUI loads as Stable Diffusion 1.x, small enough to sample on two processor cores.

Run by the Python of a real ComfyUI, in its folder: `python tiny_checkpoint.py <target.safetensors>`. What ComfyUI
goes by when it looks at a checkpoint stays as it is there: 320 channels at the top, 768 in the text. What it counts is
as few as it takes: two levels of one block each, one transformer. The picture comes from a TAESD, which ComfyUI
takes in the place of a VAE. The text encoder's size is fixed, and all its weights are zero.

SDXL has no small form: its number of transformers is what ComfyUI knows it by, and one pass of it takes minutes here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
target = sys.argv.pop()
sys.argv.append("--cpu")

import comfy.options  # noqa: E402
import torch  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import comfy.taesd.taesd  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.sd1_clip import SD1ClipModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def random(module, spread):
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in module.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator) * spread
        # Norms would make nothing of something.
        weights[name] = drawn + 1 if name.endswith("weight") and value.ndim == 1 else drawn
    return weights


unet = UNetModel(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    channel_mult=[1, 1],
    num_res_blocks=[1, 1],
    transformer_depth=[0, 1],
    transformer_depth_output=[0, 0, 0, 0],
    transformer_depth_middle=-1,
    context_dim=768,
    num_heads=8,
    use_spatial_transformer=True,
    legacy=False,
    dtype=torch.float32,
    device="cpu",
    operations=comfy.ops.disable_weight_init,
)
# Neither flat nor black and white alone: around middle grey, as strong as it came in.
decoder = random(comfy.taesd.taesd.TAESD(), 0.045)
decoder[[name for name in decoder if name.startswith("taesd_decoder.") and name.endswith(".bias")][-1]].fill_(0.5)

parts = {
    "model.diffusion_model.": random(unet, 0.02),
    "first_stage_model.": decoder,
    "cond_stage_model.": {
        name.replace("clip_l.", "", 1): torch.zeros(value.shape, dtype=torch.float16)
        for name, value in SD1ClipModel(device="cpu", dtype=torch.float32).state_dict().items()
        if "transformer" in name
    },
}
save_file({prefix + name: value.contiguous() for prefix, part in parts.items() for name, value in part.items()}, target)
