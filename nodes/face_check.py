"""Nodes that let no picture without a face pass.

An IMAGE is a float32 tensor (frames × height × width × channels, 0 to 1), or a numpy array of that shape in the
sandbox; torch is never imported here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from ..guard import runtime
from ..guard.errors import GuardError, ServerUnavailableError
from ..guard.faces import CANDIDATE, Pixels
from ..guard.faces.check import FaceRules, Faces
from ..guard.faces.chooser import AUTO, CHOICES
from ..guard.faces.machine import FaceMachine
from ..guard.faces.photos import decode, read, to_rgb
from . import shown
from .tensors import Floats, to_floats, to_kind_of, to_pixels, to_tensor

CATEGORY = "guarded/faces"

#: Pictures of a batch that are shown in the editor.
_SHOWN = 4

#: How much of the face's size the crop shows around it, on each side.
_CROP_MARGIN = 0.25


def _machine() -> FaceMachine:
    """Raises ServerUnavailableError while the guard is off (a setting that cannot be used)."""
    faces = runtime.current().faces
    if faces is None:
        raise ServerUnavailableError("ComfyUI-Guarded is off; its log says why. No face can be looked for.")
    return faces


def _images() -> list[str]:
    """For the loader's widget; empty while the guard is off."""
    faces = runtime.current().faces
    return [] if faces is None else faces.list_images()


def _rules() -> dict[str, Any]:
    """The widgets of the rules. Optional, so that a prompt written by hand may leave them out."""
    default = FaceRules()
    count = {"min": 0, "max": 1000, "step": 1}
    return {
        "min_faces": (
            "INT",
            {**count, "default": default.min_faces, "tooltip": "The fewest faces; 0: no face is fine too."},
        ),
        "max_faces": (
            "INT",
            {**count, "default": default.max_faces, "tooltip": "The most faces; 0: any number."},
        ),
        "min_confidence": (
            "FLOAT",
            {
                "default": default.min_confidence,
                "min": CANDIDATE,
                "max": 1.0,
                "step": 0.01,
                "tooltip": "How sure the detector must be.",
            },
        ),
        "min_face_fraction": (
            "FLOAT",
            {
                "default": default.min_face_fraction,
                "min": 0.0,
                "max": 1.0,
                "step": 0.01,
                "tooltip": "How large a face must be: its longer side as a fraction of the picture's shorter one.",
            },
        ),
        "detector": (
            list(CHOICES),
            {"default": AUTO, "tooltip": "auto: as the server is set; by default InsightFace if a pack is installed."},
        ),
    }


class GuardedFaceCheck:
    """Passes its pictures on when each of them shows the faces that it should."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        image = ("IMAGE", {"tooltip": "The pictures to check, each by itself; they come out unchanged."})
        return {"required": {"image": image}, "optional": _rules(), "hidden": shown.HIDDEN}

    RETURN_TYPES = ("IMAGE", "INT", "STRING", "MASK", "IMAGE")
    RETURN_NAMES = ("image", "face_count", "boxes", "face_mask", "largest_face")
    OUTPUT_TOOLTIPS = (
        "The same pictures.",
        "The number of faces in all of them.",
        "JSON: for each picture its index, width, height and faces.",
        "White where a face is.",
        "The largest face of each picture, cut out.",
    )
    FUNCTION = "check"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Stops the job with a typed error unless every picture shows a face. "
        "A picture that comes from a file is checked before the job is queued."
    )

    def check(
        self, image: Any, detector: str = AUTO, unique_id: Any = None, extra_pnginfo: Any = None, **rules: Any
    ) -> tuple[Any, int, str, Any, Any]:
        """Raises NoFaceError, TooManyFacesError, FaceTooSmallError for the first picture that breaks the rules."""
        checker = _machine().checker
        wanted = FaceRules.of(rules)
        frames = to_floats(image)
        view = _View(unique_id, extra_pnginfo)
        found = []
        for index, frame in enumerate(frames):
            name = f"image {index + 1} of {len(frames)}" if len(frames) > 1 else ""
            pixels = to_pixels(frame)
            with view.of(pixels):
                found.append(checker.check(pixels, wanted, name, _asked(detector)))
                view.found(pixels, found[-1].body())
        view.passed()
        told = [{"index": index, **faces.body()} for index, faces in enumerate(found)]
        masks = np.stack([_mask(frame, faces) for frame, faces in zip(frames, found, strict=True)])
        crops = _crops(frames, found)
        count = sum(len(faces.faces) for faces in found)
        return image, count, json.dumps(told), to_kind_of(image, masks), to_kind_of(image, crops)


class GuardedLoadFaceImage:
    """LoadImage for photos that must show a face: a prompt with another one is refused before it is queued."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        image = (_images(), {"image_upload": True, "tooltip": "The photo, from ComfyUI's input folder."})
        return {"required": {"image": image}, "optional": _rules(), "hidden": shown.HIDDEN}

    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = ("The photo, upright.", "White where it is transparent.")
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a photo upright, and refuses it if it does not show the faces it should."

    def load(
        self, image: str, detector: str = AUTO, unique_id: Any = None, extra_pnginfo: Any = None, **rules: Any
    ) -> tuple[Any, Any]:
        """The photo (1 × height × width × 3) and what of it is transparent (1 × height × width; 64 × 64 if nothing).

        Raises:
            BadImageError, NoFaceError, TooManyFacesError, FaceTooSmallError
        """
        faces = _machine()
        data = read(faces.find_image(image), faces.checker.limits, image)
        found = faces.checker.check(data, FaceRules.of(rules), image, _asked(detector))
        opened = decode(data, faces.checker.limits, image).image
        levels = np.asarray(_flat(opened))
        view = _View(unique_id, extra_pnginfo)
        view.found(levels, found.body())
        view.passed()
        pixels = levels.astype(np.float32) / np.float32(255)
        return to_tensor(pixels[None]), to_tensor(_transparent(opened)[None])

    @classmethod
    def IS_CHANGED(cls, image: str, **_others: Any) -> str:
        faces = _machine()
        return hashlib.sha256(read(faces.find_image(image), faces.checker.limits, image)).hexdigest()

    @classmethod
    async def VALIDATE_INPUTS(
        cls,
        image: str | None = None,
        min_faces: Any = None,
        max_faces: Any = None,
        min_confidence: Any = None,
        min_face_fraction: Any = None,
        detector: Any = None,
    ) -> bool | str:
        """The check itself, off the event loop. What comes over a link is not known yet, and checked when it runs."""
        if not isinstance(image, str):
            return True
        rules = {
            "min_faces": min_faces,
            "max_faces": max_faces,
            "min_confidence": min_confidence,
            "min_face_fraction": min_face_fraction,
        }
        return await asyncio.to_thread(_refusal, image, rules, detector if isinstance(detector, str) else AUTO)


class _View:
    """What an editor shows on the node: the pictures with their faces, and the verdict."""

    def __init__(self, unique_id: Any, extra_pnginfo: Any) -> None:
        self._node = (unique_id, extra_pnginfo)
        self._watched = shown.is_watched(unique_id, extra_pnginfo)
        self._pictures: list[dict[str, Any]] = []

    @contextmanager
    def of(self, pixels: Pixels) -> Iterator[None]:
        """Shows a picture that is refused in here, and why."""
        try:
            yield
        except GuardError as error:
            self._pictures = []
            if "faces" in error.extra_info:
                self.found(pixels, error.extra_info)
            self._show(error.code, error.message)
            raise

    def found(self, pixels: Pixels, facts: Mapping[str, Any]) -> None:
        if self._watched and len(self._pictures) < _SHOWN:
            wanted = ("width", "height", "faces", "small_faces")
            picture = {"image": shown.small_picture(pixels), **{name: facts[name] for name in wanted}}
            self._pictures.append(picture)

    def passed(self) -> None:
        self._show(None, "")

    def _show(self, code: str | None, text: str) -> None:
        shown.show(*self._node, {"code": code, "lines": [text] if text else [], "pictures": self._pictures})


def _refusal(image: str, rules: dict[str, Any], detector: str) -> bool | str:
    try:
        faces = _machine()
        faces.checker.check(faces.find_image(image), FaceRules.of(rules), image, _asked(detector))
    except GuardError as error:
        return f"{error.code}: {error.message}"
    return True


def _asked(detector: str) -> str | None:
    """The detector for the check: `auto` means whatever the setting says."""
    return None if detector == AUTO else detector


def _mask(frame: Floats, faces: Faces) -> Floats:
    mask = np.zeros(frame.shape[:2], np.float32)
    for face in faces.faces:
        left, top, right, bottom = face.box
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 1
    return mask


def _crops(frames: Floats, found: list[Faces]) -> Floats:
    """The largest face of each frame, square, all of the first one's size; the whole frame where there is none."""
    cut = [_crop(frame, faces) for frame, faces in zip(frames, found, strict=True)]
    height, width = cut[0].shape[:2]
    return np.stack([_resized(crop, width, height) for crop in cut])


def _crop(frame: Floats, faces: Faces) -> Floats:
    face = faces.largest
    if face is None:
        return frame
    height, width = frame.shape[:2]
    side = min(round(face.size * (1 + 2 * _CROP_MARGIN)), width, height)
    middle_x, middle_y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    left = min(max(round(middle_x - side / 2), 0), width - side)
    top = min(max(round(middle_y - side / 2), 0), height - side)
    return frame[top : top + side, left : left + side]


def _resized(crop: Floats, width: int, height: int) -> Floats:
    if crop.shape[:2] == (height, width):
        return crop
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(crop[:, :, channel])).resize((width, height)))
        for channel in range(crop.shape[2])
    ]
    return np.stack(planes, axis=2)


def _flat(image: Image.Image) -> Image.Image:
    """RGB as LoadImage makes it: alpha is left out, not laid over white; it goes into the mask."""
    return image.convert("RGB") if "A" in image.getbands() or image.mode == "P" else to_rgb(image)


def _transparent(image: Image.Image) -> Floats:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if "A" not in image.getbands():
        return np.zeros((64, 64), np.float32)
    opacity: Floats = np.asarray(image.getchannel("A"), np.float32) / np.float32(255)
    transparency: Floats = 1 - opacity
    return transparency


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    "GuardedFaceCheck": GuardedFaceCheck,
    "GuardedLoadFaceImage": GuardedLoadFaceImage,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "GuardedFaceCheck": "Face Check (Guarded)",
    "GuardedLoadFaceImage": "Load Face Image (Guarded)",
}
