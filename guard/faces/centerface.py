"""Run CenterFace, whose weights ship with the package. weights/ORIGIN.md says where they come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ServerUnavailableError
from . import CANDIDATE, Face, Pixels
from .on_torch import TorchNetwork
from .onnx import Device, Runtime, default_threads, device_of, open_session

WEIGHTS = Path(__file__).with_name("weights") / "centerface.onnx"

NAME = "centerface"
_INPUT = "input.1"
_OUTPUTS = ["537", "538", "539", "540"]
#: The sides of a picture must be a multiple of the first; a cell of the output is as many pixels wide as the second.
_MULTIPLE, _STRIDE = 32, 4
#: Boxes that overlap more than this show the same face (CenterFace's own value).
_NMS_IOU = 0.3
#: More than the faces in any picture of a megapixel. This bounds the suppression, which is quadratic.
_MAX_CANDIDATES = 2000

_Floats = npt.NDArray[np.float32]


class CenterFace:
    """A detector with one network, which several threads may use at once."""

    def __init__(self, device: Device = "cpu", threads: int | None = None, runtime: Runtime | None = None) -> None:
        """Load the weights (about 0.1 s).

        Args:
            runtime: what runs the network; None: onnxruntime, and where that is missing or does not load, torch.

        Raises:
            ServerUnavailableError: there is none that loads.
        """
        self._network, self.device, self.runtime = _open(device, threads, runtime)

    @property
    def name(self) -> str:
        return NAME

    def find(self, pixels: Pixels) -> list[Face]:
        """See Detector.find. Pads the picture with black to sides that are a multiple of 32."""
        height, width = pixels.shape[:2]
        rows, columns = (-(-side // _MULTIPLE) * _MULTIPLE for side in (height, width))
        planes = np.zeros((1, 3, rows, columns), np.float32)
        planes[0, :, :height, :width] = pixels.transpose(2, 0, 1)
        heatmap, scale, offset, landmarks = self._network.run(_OUTPUTS, {_INPUT: planes})
        return decode(heatmap, scale, offset, landmarks, width, height)


def is_installed(runtime: Runtime) -> bool:
    """Whether that package is there. Does not import it."""
    try:
        return importlib.util.find_spec(runtime) is not None
    except ValueError:  # what is left of a failed import lies in sys.modules
        return False


def _open(device: Device, threads: int | None, runtime: Runtime | None) -> tuple[Any, Device, Runtime]:
    if runtime != "torch":
        try:
            session = open_session(WEIGHTS, device, threads or default_threads())
            return session, device_of(session), "onnxruntime"
        except ServerUnavailableError:
            if runtime or not is_installed("torch"):
                raise
    network = TorchNetwork(WEIGHTS, device, threads)
    return network, network.device, "torch"


def decode(
    heatmap: _Floats, scale: _Floats, offset: _Floats, landmarks: _Floats, width: int, height: int
) -> list[Face]:
    """Read the faces from the four outputs of the network.

    Args:
        heatmap: 1 × 1 × rows × columns, the confidence that a face's middle lies in this cell of 4 × 4 pixels.
        scale: 1 × 2 × …, the logarithm of height and width in cells.
        offset: 1 × 2 × …, where in the cell the middle is (y, x).
        landmarks: 1 × 10 × …, five points (y, x) in parts of the box, from its upper left corner.
        width, height: of the picture, in pixels; boxes are cut to it.
    """
    scores = heatmap[0, 0]
    rows, columns = np.nonzero(scores >= CANDIDATE)
    order = np.argsort(-scores[rows, columns], kind="stable")[:_MAX_CANDIDATES]
    rows, columns = rows[order], columns[order]
    confidences = scores[rows, columns]
    heights, widths = np.exp(np.clip(scale[0][:, rows, columns], -10, 10)) * _STRIDE
    middle_y = (rows + offset[0, 0, rows, columns] + 0.5) * _STRIDE
    middle_x = (columns + offset[0, 1, rows, columns] + 0.5) * _STRIDE
    left, top = middle_x - widths / 2, middle_y - heights / 2
    boxes = np.stack([left, top, left + widths, top + heights], axis=1)
    points = landmarks[0][:, rows, columns].reshape(5, 2, -1)
    points_x, points_y = points[:, 1] * widths + left, points[:, 0] * heights + top
    limit = np.array([width, height, width, height], np.float32)
    return [
        Face(
            box=tuple(float(value) for value in np.clip(boxes[index], 0, limit)),  # type: ignore[arg-type]
            landmarks=tuple((float(x), float(y)) for x, y in zip(points_x[:, index], points_y[:, index], strict=True)),
            confidence=float(confidences[index]),
        )
        for index in suppress(boxes)
    ]


def suppress(boxes: _Floats) -> list[int]:
    """Which of the boxes (count × 4, most confident first) remain when each removes those that overlap it."""
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    remaining: npt.NDArray[np.integer[Any]] = np.arange(len(boxes))
    kept: list[int] = []
    while remaining.size:
        best, remaining = int(remaining[0]), remaining[1:]
        kept.append(best)
        corner = np.minimum(boxes[best, 2:], boxes[remaining, 2:]) - np.maximum(boxes[best, :2], boxes[remaining, :2])
        common = np.prod(np.clip(corner, 0, None), axis=1)
        union = areas[best] + areas[remaining] - common
        remaining = remaining[common <= _NMS_IOU * union]
    return kept
