"""The weights that ship: whole, with their licence and their origin."""

import hashlib
import re

from faces.photos import photo

from comfyui_guarded.guard.faces import Detector
from comfyui_guarded.guard.faces.centerface import WEIGHTS


def test_the_weights_are_those_that_the_note_names() -> None:
    note = (WEIGHTS.parent / "ORIGIN.md").read_text(encoding="utf-8")
    size, digest = re.search(r"Here: ([\d,]+) bytes, sha256 `([0-9a-f]{64})`", note).groups()  # type: ignore[union-attr]
    data = WEIGHTS.read_bytes()
    assert len(data) == int(size.replace(",", ""))
    assert hashlib.sha256(data).hexdigest() == digest


def test_the_licence_lies_beside_them() -> None:
    text = (WEIGHTS.parent / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License")
    assert "Copyright (c) 2019 StarClouds" in text


def test_a_face_has_its_landmarks_where_eyes_and_mouth_are(centerface: Detector) -> None:
    import numpy as np

    face = centerface.find(np.asarray(photo("skimage/data/astronaut.png")))[0]
    (left_eye, right_eye, nose, left_mouth, right_mouth) = face.landmarks
    left, top, right, bottom = face.box
    assert left < left_eye[0] < nose[0] < right_eye[0] < right
    assert left_mouth[0] < right_mouth[0]
    assert top < left_eye[1] < nose[1] < left_mouth[1] < bottom
