"""Nodes that refuse pictures without a face.

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
from ..guard.faces.photos import decode, read
from ..guard.faces.scaling import to_rgb
from . import shown
from .tensors import Floats, to_floats, to_kind_of, to_pixels, to_tensor

CATEGORY = "guarded/faces"

#: Show this many pictures of a batch in the editor.
_SHOWN = 4

#: What the crop shows around a face on each side, as a part of the face's size.
_CROP_MARGIN = 0.25


def _get_machine() -> FaceMachine:
    """Raises ServerUnavailableError while the guard is off, because of a setting that it cannot use."""
    faces = runtime.current().faces
    if faces is None:
        raise ServerUnavailableError("ComfyUI-Guarded is off; its log says why. No face can be looked for.")
    return faces


def _list_images() -> list[str]:
    """List the images for the loader's widget; none while the guard is off."""
    faces = runtime.current().faces
    return [] if faces is None else faces.list_images()


def _make_rule_inputs() -> dict[str, Any]:
    """Make the inputs for the rules. They are optional, so that a prompt written by hand may leave them out."""
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
        return {"required": {"image": image}, "optional": _make_rule_inputs(), "hidden": shown.HIDDEN}

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
        checker = _get_machine().checker
        wanted = FaceRules.of(rules)
        frames = to_floats(image)
        view = _View(unique_id, extra_pnginfo)
        results = []
        for index, frame in enumerate(frames):
            name = f"image {index + 1} of {len(frames)}" if len(frames) > 1 else ""
            pixels = to_pixels(frame)
            with view.show_refusal(pixels):
                results.append(checker.check(pixels, wanted, name, _read_choice(detector)))
                view.add(pixels, results[-1].body())
        view.show_success()
        bodies = [{"index": index, **faces.body()} for index, faces in enumerate(results)]
        masks = np.stack([_make_mask(frame, faces) for frame, faces in zip(frames, results, strict=True)])
        crops = _cut_faces(frames, results)
        count = sum(len(faces.faces) for faces in results)
        return image, count, json.dumps(bodies), to_kind_of(image, masks), to_kind_of(image, crops)


class GuardedLoadFaceImage:
    """LoadImage for photos that must show a face: a prompt with another one is refused before it is queued."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        image = (_list_images(), {"image_upload": True, "tooltip": "The photo, from ComfyUI's input folder."})
        return {"required": {"image": image}, "optional": _make_rule_inputs(), "hidden": shown.HIDDEN}

    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = ("The photo, upright.", "White where it is transparent.")
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a photo upright, and refuses it if it does not show the faces it should."
    GUARDED_BLAMES = "image"

    def load(
        self, image: str, detector: str = AUTO, unique_id: Any = None, extra_pnginfo: Any = None, **rules: Any
    ) -> tuple[Any, Any]:
        """Load the photo (1 × height × width × 3) and its transparency (1 × height × width; 64 × 64 if there is none).

        Raises:
            BadImageError, NoFaceError, TooManyFacesError, FaceTooSmallError
        """
        faces = _get_machine()
        data = read(faces.find_image(image), faces.checker.limits, image)
        result = faces.checker.check(data, FaceRules.of(rules), image, _read_choice(detector))
        picture = decode(data, faces.checker.limits, image).image
        levels = np.asarray(_drop_alpha(picture))
        view = _View(unique_id, extra_pnginfo)
        view.add(levels, result.body())
        view.show_success()
        pixels = levels.astype(np.float32) / np.float32(255)
        return to_tensor(pixels[None]), to_tensor(_read_transparency(picture)[None])

    @classmethod
    def IS_CHANGED(cls, image: str, **_others: Any) -> str:
        faces = _get_machine()
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
        """Check the photo on another thread. If its name comes over a link, `load` checks it when the node runs."""
        if not isinstance(image, str):
            return True
        rules = {
            "min_faces": min_faces,
            "max_faces": max_faces,
            "min_confidence": min_confidence,
            "min_face_fraction": min_face_fraction,
        }
        return await asyncio.to_thread(_check_file, image, rules, detector if isinstance(detector, str) else AUTO)


class _View:
    """What an editor shows on the node: the pictures with their faces, and the verdict."""

    def __init__(self, unique_id: Any, extra_pnginfo: Any) -> None:
        self._node = (unique_id, extra_pnginfo)
        self._watched = shown.is_watched(unique_id, extra_pnginfo)
        self._pictures: list[dict[str, Any]] = []

    @contextmanager
    def show_refusal(self, pixels: Pixels) -> Iterator[None]:
        """Show a picture that is refused in here, and why."""
        try:
            yield
        except GuardError as error:
            self._pictures = []
            if "faces" in error.extra_info:
                self.add(pixels, error.extra_info)
            self._show(error.code, error.message)
            raise

    def add(self, pixels: Pixels, facts: Mapping[str, Any]) -> None:
        """Keep a picture and its faces to show, if an editor watches; the first few of a batch."""
        if self._watched and len(self._pictures) < _SHOWN:
            wanted = ("width", "height", "faces", "small_faces")
            picture = {"image": shown.make_thumbnail(pixels), **{name: facts[name] for name in wanted}}
            self._pictures.append(picture)

    def show_success(self) -> None:
        self._show(None, "")

    def _show(self, code: str | None, text: str) -> None:
        shown.show(*self._node, {"code": code, "lines": [text] if text else [], "pictures": self._pictures})


def _check_file(image: str, rules: dict[str, Any], detector: str) -> bool | str:
    try:
        faces = _get_machine()
        faces.checker.check(faces.find_image(image), FaceRules.of(rules), image, _read_choice(detector))
    except GuardError as error:
        return f"{error.code}: {error.message}"
    return True


def _read_choice(detector: str) -> str | None:
    """The detector that the check takes; None, for `auto`: the one that the setting names."""
    return None if detector == AUTO else detector


def _make_mask(frame: Floats, faces: Faces) -> Floats:
    mask = np.zeros(frame.shape[:2], np.float32)
    for face in faces.faces:
        left, top, right, bottom = face.box
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 1
    return mask


def _cut_faces(frames: Floats, results: list[Faces]) -> Floats:
    """Cut out the largest face of each frame, square, all of the first one's size; the whole frame without a face."""
    cut = [_cut_face(frame, faces) for frame, faces in zip(frames, results, strict=True)]
    height, width = cut[0].shape[:2]
    return np.stack([_resize(crop, width, height) for crop in cut])


def _cut_face(frame: Floats, faces: Faces) -> Floats:
    face = faces.largest
    if face is None:
        return frame
    height, width = frame.shape[:2]
    side = min(round(face.size * (1 + 2 * _CROP_MARGIN)), width, height)
    middle_x, middle_y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    left = min(max(round(middle_x - side / 2), 0), width - side)
    top = min(max(round(middle_y - side / 2), 0), height - side)
    return frame[top : top + side, left : left + side]


def _resize(crop: Floats, width: int, height: int) -> Floats:
    if crop.shape[:2] == (height, width):
        return crop
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(crop[:, :, channel])).resize((width, height)))
        for channel in range(crop.shape[2])
    ]
    return np.stack(planes, axis=2)


def _drop_alpha(image: Image.Image) -> Image.Image:
    """Make RGB as LoadImage does: leave alpha out and do not lay the picture over white; the mask has the alpha."""
    return image.convert("RGB") if "A" in image.getbands() or image.mode == "P" else to_rgb(image)


def _read_transparency(image: Image.Image) -> Floats:
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
