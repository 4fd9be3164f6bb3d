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


class ResultsShown(ResultsReport):
    """The same, but it takes a picture or a mask, as some packs' previews do."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {**INPUTS, "shown": ("IMAGE,MASK",)}}


class ResultsNamed(ResultsReport):
    """The same, but it reports the file in a shape of its own."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {**INPUTS, "shape": ("STRING", {"default": "3d"})}}

    def run(self, source: str, filename_prefix: str, shape: str = "3d", **_more: Any) -> dict[str, Any]:
        (item,) = super().run(source, filename_prefix)["ui"]["images"]
        below = "/".join(filter(None, (item["subfolder"], item["filename"])))
        path = os.path.join(folder_paths.get_output_directory(), below)
        shapes: dict[str, Any] = {
            "3d": {"result": [below, {"position": {"x": 1.5}}, None, []]},
            "path": {"text": [path]},
            "sentence": {"text": f"2 files\nsaved as {path}."},
            "annotated": {"value": [f"{below} [output]"]},
            "deep": {"video": [{"preview": [[item]]}]},
            "beside": {"images": [item], "text": [below, path]},
            "sequence": {"gifs": [{**item, "filename": self._spread(path) if shape == "sequence" else ""}]},
            "nothing": {"text": ["no_such.glb", "/etc/hosts", "../x.png", "\0.png", "x" * 5000 + ".png", "."]},
        }
        return {"ui": shapes[shape]}

    @staticmethod
    def _spread(path: str) -> str:
        """The name of a sequence of three pictures, as FFmpeg fills it in, beside files that resemble it."""
        folder, name = os.path.split(path)
        stem = os.path.splitext(name)[0]
        for one, other in (("007", "7"), ("008", "8"), ("1000", "1000"), ("007", "8"), ("7", "7"), ("007", "007")):
            shutil.copy(path, os.path.join(folder, f"{one} % {stem}.{other}.png"))
        return f"%03d %% {stem}.%d.png"


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


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls for cls in (ResultsReport, ResultsCached, ResultsShown, ResultsNamed, ResultsFrames)
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
