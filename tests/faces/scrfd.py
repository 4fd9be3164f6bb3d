"""A small model in SCRFD's shape: what insightface's real loading path gets in place of weights nobody may ship."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

#: Cells of 8, 16 and 32 pixels with two anchors each, as in scrfd_10g_bnkps and det_10g.
STRIDES, ANCHORS = (8, 16, 32), 2


def build(path: Path, side: int | None = None) -> None:
    """Write a model to which a patch of red is a face of 2 × 2 cells around each red cell; nine outputs, like SCRFD's.

    Args:
        side: a fixed input of side × side pixels; None: any size.
    """
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper, tensor = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    nodes: list[Any] = []
    # Red as RGB, -1 to 1 after (x - 127.5) / 128: red minus green minus blue is 3 for pure red, 1 for black and for
    # white, -1 for blue.
    weights = [
        numpy_helper.from_array(np.array([1, -1, -1], np.float32).reshape(1, 3, 1, 1), "colours"),
        numpy_helper.from_array(np.array([2.0], np.float32), "two"),
        numpy_helper.from_array(np.array([0.0], np.float32), "zero"),
        numpy_helper.from_array(np.array([1.0], np.float32), "one"),
    ]
    nodes.append(helper.make_node("Conv", ["input.1", "colours"], ["red"]))
    nodes.append(helper.make_node("Sub", ["red", "two"], ["over"]))
    nodes.append(helper.make_node("Clip", ["over", "zero", "one"], ["score"]))
    outputs = {"score": [], "box": [], "points": []}  # type: dict[str, list[str]]
    for stride in STRIDES:
        nodes.append(
            helper.make_node(
                "AveragePool", ["score"], [f"cells{stride}"], kernel_shape=[stride, stride], strides=[stride, stride]
            )
        )
        for kind, columns in (("score", 1), ("box", 4), ("points", 10)):
            width = ANCHORS * columns
            source = f"cells{stride}"
            tile = numpy_helper.from_array(np.array([1, width, 1, 1], np.int64), f"tile_{kind}{stride}")
            shape = numpy_helper.from_array(np.array([-1, columns], np.int64), f"shape_{kind}{stride}")
            weights += [tile, shape]
            nodes.append(helper.make_node("Tile", [source, tile.name], [f"wide_{kind}{stride}"]))
            if kind != "score":  # the distances do not depend on the picture
                nodes.append(helper.make_node("Mul", [f"wide_{kind}{stride}", "zero"], [f"none_{kind}{stride}"]))
                added = "one" if kind == "box" else "zero"
                nodes.append(helper.make_node("Add", [f"none_{kind}{stride}", added], [f"set_{kind}{stride}"]))
            last = f"wide_{kind}{stride}" if kind == "score" else f"set_{kind}{stride}"
            nodes.append(helper.make_node("Transpose", [last], [f"turned_{kind}{stride}"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"turned_{kind}{stride}", shape.name], [f"{kind}{stride}"]))
            outputs[kind].append(f"{kind}{stride}")
    columns = {"score": 1, "box": 4, "points": 10}
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("input.1", tensor.FLOAT, [1, 3, side or "height", side or "width"])],
        [
            helper.make_tensor_value_info(name, tensor.FLOAT, [None, columns[kind]])
            for kind, names in outputs.items()
            for name in names
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
