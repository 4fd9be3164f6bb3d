"""Run by a real ComfyUI's Python (test_weights.py starts it): print what `host/comfyui/weights` tells of model files.

python weigh_models.py COMFYUI BASE ALIAS

The files have the headers that ComfyUI's own models would have, and no weights. As if there were a card, with PyTorch's
attention.
"""

import json
import os
import sys
from pathlib import Path

import our_package

COMFYUI, BASE, ALIAS = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
sys.path.insert(0, COMFYUI)
os.chdir(COMFYUI)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ldm.wan.model import WanModel  # noqa: E402

management.vram_state = management.VRAMState.NORMAL_VRAM
management.pytorch_attention_flash_attention = lambda: True

our_package.register(ALIAS)

from comfyui_guarded.host.comfyui import weights  # noqa: E402

META = {"device": "meta", "operations": comfy.ops.disable_weight_init, "dtype": torch.float16}
UNET = {
    "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "in_channels": 4,
    "model_channels": 320,
}  # fmt: skip
SD15 = {
    **UNET, "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2, "channel_mult": [1, 2, 4, 4],
    "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
SDXL = {
    **UNET, "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2] * 3,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
    "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip
WAN = {
    "model_type": "i2v", "patch_size": (1, 2, 2), "text_len": 512, "in_dim": 36, "dim": 5120, "ffn_dim": 13824,
    "freq_dim": 256, "text_dim": 4096, "out_dim": 16, "num_heads": 40, "num_layers": 40,
}  # fmt: skip


def write(name, tensors, kind="F16"):
    header, at = {}, 0
    for key, tensor in tensors.items():
        size = tensor.numel() * (2 if kind == "F16" else 1)
        header[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    data = json.dumps(header).encode()
    Path(BASE, "models", "checkpoints", name).write_bytes(len(data).to_bytes(8, "little") + data)


def put_in_checkpoint(tensors):
    """With a decoder beside it, which does not sample."""
    decoder = {"first_stage_model.decoder.conv_in.weight": torch.empty(1 << 20, device="meta")}
    return {**{f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}, **decoder}


def tell(name):
    found = weights.weigh(name)
    return None if found is None else vars(found)


Path(BASE, "models", "checkpoints").mkdir(parents=True)
write("sd15.safetensors", put_in_checkpoint(UNetModel(**SD15, **META).state_dict()))
write("sdxl.safetensors", put_in_checkpoint(UNetModel(**SDXL, **META).state_dict()))
film = WanModel(**WAN, **META).state_dict()
write("wan.safetensors", film)
write("wan8.safetensors", film, "F8_E4M3")
write("other.safetensors", {"a": torch.empty(2, 3, device="meta"), "b": torch.empty(5, device="meta")})
Path(BASE, "models", "checkpoints", "broken.safetensors").write_bytes(b"<html>" * 100)
names = ["sd15", "sdxl", "wan", "wan8", "other", "broken", "missing"]
answer = {name: tell(f"{name}.safetensors") for name in names}
management.vram_state = management.VRAMState.HIGH_VRAM
weights._weigh.cache_clear()
answer["sdxl, all on the card"] = tell("sdxl.safetensors")
management.vram_state = management.VRAMState.DISABLED
weights._weigh.cache_clear()
answer["sdxl, without a card"] = tell("sdxl.safetensors")
sys.stdout.write(json.dumps(answer) + "\n")
