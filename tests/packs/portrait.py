"""Writes models that LivePortraitKJ loads, with weights drawn by chance.

Run by the Python of a real ComfyUI, with what the pack imports: `python portrait.py <the pack's folder> <target>`. The
five networks have the shapes of the real ones, since the pack's own classes make them. The sixth file says the same 203
points of a face for any picture.
"""

import sys
from math import cos, pi, sin
from pathlib import Path

import onnx
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

pack, target = map(Path, sys.argv[1:])
sys.path.insert(0, str(pack))

from liveportrait.modules.appearance_feature_extractor import AppearanceFeatureExtractor  # noqa: E402
from liveportrait.modules.motion_extractor import MotionExtractor  # noqa: E402
from liveportrait.modules.spade_generator import SPADEDecoder  # noqa: E402
from liveportrait.modules.stitching_retargeting_network import StitchingRetargetingNetwork  # noqa: E402
from liveportrait.modules.warping_network import WarpingNetwork  # noqa: E402

torch.manual_seed(1)
target.mkdir(parents=True, exist_ok=True)
parameters = yaml.safe_load((pack / "liveportrait" / "config" / "models.yaml").read_text())["model_params"]


def save(name, weights):
    save_file({key: value.contiguous().clone() for key, value in weights.items()}, target / f"{name}.safetensors")


for name, network in {
    "appearance_feature_extractor": AppearanceFeatureExtractor,
    "motion_extractor": MotionExtractor,
    "warping_module": WarpingNetwork,
    "spade_generator": SPADEDecoder,
}.items():
    save(name, network(**parameters[f"{name}_params"]).state_dict())
parts = parameters["stitching_retargeting_module_params"]
save(
    "stitching_retargeting_module",
    {
        f"{prefix}_module.{key}": value
        for part, prefix in (("stitching", "retarget_shoulder"), ("lip", "retarget_mouth"), ("eye", "retarget_eye"))
        for key, value in StitchingRetargetingNetwork(**parts[part]).state_dict().items()
    },
)

oval = [0.5 + 0.25 * turn(2 * pi * point / 203) for point in range(203) for turn in (cos, sin)]
outputs = [("a", [0.0]), ("b", [0.0]), ("points", oval)]
landmarks = onnx.GraphProto(name="landmarks")
landmarks.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 224, 224]))
for name, values in outputs:
    value = numpy_helper.from_array(torch.tensor([values]).numpy())
    landmarks.node.append(helper.make_node("Constant", [], [name], value=value))
    landmarks.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, len(values)]))
# The manifest's size tells a broken download from a whole one.
model = helper.make_model(
    landmarks, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string="x" * 115_000_000
)
onnx.save(model, target / "landmark.onnx")
