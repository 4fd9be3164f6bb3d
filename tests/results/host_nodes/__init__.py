"""Nodes for these tests, loaded by the sandbox and by a real ComfyUI: films to make, files to report."""

import os
import shutil
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np

INPUTS: dict[str, Any] = {
    "source": ("STRING", {"default": ""}),
    "filename_prefix": ("STRING", {"default": "results"}),
}


class AnyInput(dict):
    """As some packs declare their inputs: whatever name is asked for is one of them."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> Any:
        return ("STRING", {}) if name not in self.keys() else super().__getitem__(name)


class ResultsReport:
    """Output node: copies a file of the input folder into the output folder, and reports it."""

    CATEGORY = "guarded/tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": dict(INPUTS)}

    def run(self, source: str, filename_prefix: str, **_more: Any) -> dict[str, Any]:
        root = folder_paths.get_output_directory()
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, root, 64, 64)
        name = f"{stem}_{counter:05}_{os.path.splitext(source)[1]}"
        shutil.copy(os.path.join(folder_paths.get_input_directory(), source), os.path.join(folder, name))
        return {"ui": {"images": [{"filename": name, "subfolder": subfolder, "type": "output"}]}}


class ResultsCached(ResultsReport):
    """The same, but it accepts any input: the guard gives it none, since it could break the node."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": dict(INPUTS), "optional": AnyInput()}


class ResultsFrames:
    """A moving, frozen, black or broken batch of 128 × 128 pictures."""

    CATEGORY = "guarded/tests"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "kind": (["moving", "frozen", "black", "nan"],),
                "frames": ("INT", {"default": 25, "min": 1, "max": 1000}),
                "seed": ("INT", {"default": 0}),
            }
        }

    def run(self, kind: str, frames: int, seed: int) -> tuple[Any]:
        still = np.random.default_rng(seed).uniform(0.1, 0.9, (128, 128, 3)).astype(np.float32)
        batch = np.stack([np.roll(still, 3 * index if kind == "moving" else 0, 1) for index in range(frames)])
        if kind == "black":
            batch = batch * 0
        if kind == "nan":
            batch[-1, 0, 0, 0] = np.nan
        torch = getattr(comfy.model_management, "torch", None)
        return (torch.from_numpy(batch) if torch is not None else batch,)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (ResultsReport, ResultsCached, ResultsFrames)}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
