from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from comfyui_guarded.guard import runtime
from comfyui_guarded.guard.faces import Detector, Face, Pixels
from comfyui_guarded.guard.faces.check import FaceChecker
from comfyui_guarded.guard.faces.chooser import Chooser
from comfyui_guarded.guard.faces.machine import FaceMachine
from comfyui_guarded.guard.settings import Settings


@pytest.fixture(scope="session")
def centerface() -> Detector:
    pytest.importorskip("onnxruntime")
    from comfyui_guarded.guard.faces.centerface import CenterFace

    return CenterFace()


@pytest.fixture(scope="session")
def checker() -> FaceChecker:
    """The whole check, with the weights that ship."""
    pytest.importorskip("onnxruntime")
    return FaceChecker(Chooser(detector="centerface"))


class RedIsAFace:
    """A detector for which each patch of pure red is a face, as confident as it is red."""

    name = "red"

    def __init__(self) -> None:
        self.looks: list[tuple[int, int]] = []

    def find(self, pixels: Pixels) -> list[Face]:
        self.looks.append(pixels.shape[:2])
        red = (pixels[:, :, 0] > 100) & (pixels[:, :, 1] < 60) & (pixels[:, :, 2] < 60)
        found = []
        while red.any():
            top, left = (int(place[0]) for place in np.nonzero(red))
            columns = np.nonzero(~red[top, left:])[0]
            right = left + (int(columns[0]) if columns.size else red.shape[1] - left)
            rows = np.nonzero(~red[top:, left])[0]
            bottom = top + (int(rows[0]) if rows.size else red.shape[0] - top)
            confidence = float(pixels[top:bottom, left:right, 0].max()) / 255
            found.append(Face((left, top, right, bottom), ((left, top),), confidence))
            # Scaling blurs the edges: what lies right beside is the same patch.
            red[max(top - 6, 0) : bottom + 6, max(left - 6, 0) : right + 6] = False
        return sorted(found, key=lambda face: -face.confidence)


class OnlyChooser:
    """A chooser with one detector, already there."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def get(self, detector: str | None = None) -> Detector:
        return self.detector


@pytest.fixture
def red() -> RedIsAFace:
    return RedIsAFace()


@pytest.fixture
def red_checker(red: RedIsAFace) -> FaceChecker:
    return FaceChecker(OnlyChooser(red), remembered=3)  # type: ignore[arg-type]


@pytest.fixture
def connected(red_checker: FaceChecker, tmp_path: Path) -> Iterator[Path]:
    """The nodes' machine with the red detector; the value is the folder of its input files."""

    def file(kind: str, subfolder: str, filename: str) -> Path | None:
        base = (tmp_path / kind).resolve()
        if "\0" in filename:
            return None
        path = (base / subfolder / filename).resolve()
        return path if path.is_relative_to(base) and path != base else None

    (tmp_path / "input").mkdir()
    faces = FaceMachine(red_checker, file, lambda: tmp_path / "input")
    runtime.install(runtime.Runtime(Settings(), faces=faces))
    yield tmp_path / "input"
    runtime.install(runtime.Runtime(Settings()))
