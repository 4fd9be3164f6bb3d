"""Find InsightFace's packs where ComfyUI and insightface keep them, and use their detection models.

The packs are for non-commercial use unless their owner has granted a licence (insightface #2587); the guard ships and
downloads none.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ServerUnavailableError
from . import CANDIDATE, Face, Pixels
from .onnx import Device, Runtime, default_threads, device_of, explain_missing, open_session

#: The best first; other packs follow by name.
PREFERRED = ("antelopev2", "buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc", "antelope")
#: The detection model's file in a pack: scrfd_10g_bnkps.onnx (antelopev2), det_10g.onnx (buffalo_l).
_DETECTION_FILES = ("scrfd_*.onnx", "det_*.onnx")
#: SCRFD's coarsest grid has cells of 32 pixels.
_MULTIPLE = 32


@dataclass(frozen=True)
class Pack:
    """A pack on disk: its name, its folder, and the file of its detection model."""

    name: str
    folder: Path
    model: Path


def find_packs(roots: Iterable[Path]) -> list[Pack]:
    """Find the packs below `roots` (folders like `models/insightface/models`), the best first. Opens no file.

    This also finds a pack that was unzipped into a folder of its own name (`antelopev2/antelopev2/*.onnx`), where
    insightface itself fails. Of two packs with one name the first root's counts.
    """
    packs: dict[str, Pack] = {}
    for root in roots:
        for folder in _list_folders(root):
            model = next((file for inner in (folder, folder / folder.name) if (file := _find_model(inner))), None)
            if model is not None:
                packs.setdefault(folder.name, Pack(folder.name, folder, model))
    rank = {name: place for place, name in enumerate(PREFERRED)}
    return sorted(packs.values(), key=lambda pack: (rank.get(pack.name, len(rank)), pack.name))


def list_roots(models: Iterable[Path]) -> list[Path]:
    """The folders that may hold packs: below each of ComfyUI's model folders, and insightface's own."""
    return [*(folder / "insightface" / "models" for folder in models), Path.home() / ".insightface" / "models"]


def _list_folders(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError:
        return []


def _find_model(folder: Path) -> Path | None:
    """Find the detection model's file in a folder, by its name."""
    for pattern in _DETECTION_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                return file
    return None


class InsightFace:
    """A detector that runs insightface's own class SCRFD on a session of ours. Several threads may use it at once."""

    runtime: Runtime = "onnxruntime"

    def __init__(self, pack: Pack, device: Device = "cpu", threads: int | None = None) -> None:
        """Load the pack's detection model. Importing insightface takes a second or more.

        Raises:
            ServerUnavailableError: insightface or a package that it needs is missing, or the file is no SCRFD model.
        """
        scrfd = _import_scrfd()
        opened = open_session(pack.model, device, threads or default_threads())
        try:
            # Without the file's name: insightface 2 would open it again and keep a session for each size of picture.
            self._model: Any = scrfd(session=opened)
            sides = opened.get_inputs()[0].shape[2:4]
            self._fixed = (sides[1], sides[0]) if all(isinstance(side, int) and side > 0 for side in sides) else None
            # A context of 0 leaves the session's providers as they are; -1 would change them.
            self._model.prepare(0, det_thresh=CANDIDATE, input_size=self._fixed or (640, 640))
            outputs = len(opened.get_outputs())
        except Exception as error:
            raise _refuse_model(pack, f"{type(error).__name__}: {error}") from None
        if outputs not in (6, 9, 10, 15):  # the numbers that SCRFD's constructor knows
            raise _refuse_model(pack, f"It has {outputs} outputs; SCRFD has 6, 9, 10 or 15.")
        self.device = device_of(opened)
        self._name = f"insightface/{pack.name}"

    @property
    def name(self) -> str:
        return self._name

    def find(self, pixels: Pixels) -> list[Face]:
        """See Detector.find. A model with a fixed input gets the picture scaled to it, by insightface."""
        height, width = pixels.shape[:2]
        size = self._fixed
        if size is None:
            size = (-(-width // _MULTIPLE) * _MULTIPLE, -(-height // _MULTIPLE) * _MULTIPLE)
            padded: Pixels = np.zeros((size[1], size[0], 3), np.uint8)
            padded[:height, :width] = pixels
        else:
            padded = pixels
        boxes, points = self._model.detect(np.ascontiguousarray(padded[:, :, ::-1]), input_size=size)
        faces = []
        for index, (*corners, confidence) in enumerate(boxes.tolist()):
            left, top, right, bottom = corners
            box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
            if box[0] < box[2] and box[1] < box[3]:
                marks = () if points is None else tuple((float(x), float(y)) for x, y in points[index])
                faces.append(Face(box, marks, min(confidence, 1.0)))
        return sorted(faces, key=lambda face: -face.confidence)


def _import_scrfd() -> Any:
    try:
        return importlib.import_module("insightface.model_zoo.scrfd").SCRFD
    except Exception as error:
        raise explain_missing("insightface", error) from None


def _refuse_model(pack: Pack, details: str) -> ServerUnavailableError:
    return ServerUnavailableError(
        f"{pack.model.name} of the InsightFace pack {pack.name} is not a detection model that insightface can use.",
        details=details,
        extra_info={"pack": pack.name, "model": pack.model.name},
        retry_after_s=60,
    )
