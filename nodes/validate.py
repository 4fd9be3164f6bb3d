"""GuardedValidateImage and GuardedValidateVideo: fail a job as soon as a picture is wrong, and not at its end.

A check that fails raises a typed error, which settles the job with its code (`comfyui_guarded.ResultBlankError` →
`result_blank`); with `on_fail` set to `warn` the picture passes, and the second output says what was found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from ..guard import runtime
from ..guard.results import film_files
from ..guard.results.budget import Budget
from ..guard.results.content import Checks, as_array, check_frames, check_images
from ..guard.results.findings import Facts, Fault, Finding
from ..guard.results.judgement import make_error
from ..guard.settings import ResultsSettings
from . import shown

log = logging.getLogger("guarded.nodes")

_SIDE = {"default": 0, "min": 0, "max": 16384}
_COUNT = {"default": 0, "min": 0, "max": 1_000_000}
_ON_FAIL = (
    ["raise", "warn"],
    {"tooltip": "raise: the job fails with a typed error. warn: it continues and lists what was found."},
)


def _make_flag(default: bool, tooltip: str) -> tuple[str, dict[str, Any]]:
    return ("BOOLEAN", {"default": default, "tooltip": tooltip})


class GuardedValidateImage:
    """Pass an IMAGE on, unless it shows nothing, is broken by NaN, or has the wrong size."""

    CATEGORY = "guarded"
    FUNCTION = "validate"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "warnings")
    OUTPUT_TOOLTIPS = ("The same images.", "What was found, one per line; with on_fail = warn.")
    DESCRIPTION = "Fails the job with a typed error if an image is blank, broken by NaN, or of the wrong size."
    SEARCH_ALIASES = ["black image", "nan", "check image"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": (
                    "IMAGE",
                    {
                        "tooltip": "The images to check; they come out unchanged. One of a single colour is blank: an "
                        "all-white or all-black mask too, so check the picture and not its mask."
                    },
                )
            },
            "optional": {
                "width": ("INT", {**_SIDE, "tooltip": "The exact number of pixels; 0: any"}),
                "height": ("INT", {**_SIDE, "tooltip": "The exact number of pixels; 0: any"}),
                "frames": ("INT", {**_COUNT, "tooltip": "The fewest; 0: any number"}),
                "check_nan": _make_flag(
                    True, "NaN or infinite values, which SaveImage writes as if they were a picture"
                ),
                "check_blank": _make_flag(True, "One flat colour, all black, white or transparent"),
                "check_speckle": _make_flag(True, "Single black pixels, which NaN leaves after a conversion"),
                "check_frozen": _make_flag(False, "All images of the batch are the same"),
                "on_fail": _ON_FAIL,
            },
            "hidden": shown.HIDDEN,
        }

    def validate(
        self,
        image: Any,
        width: int = 0,
        height: int = 0,
        frames: int = 0,
        check_nan: bool = True,
        check_blank: bool = True,
        check_speckle: bool = True,
        check_frozen: bool = False,
        on_fail: str = "raise",
        unique_id: Any = None,
        extra_pnginfo: Any = None,
    ) -> tuple[Any, str]:
        """Raises ResultBlankError, ResultCorruptError, ResultIncompleteError for the worst finding."""
        checks = Checks(
            nan=check_nan,
            blank=check_blank,
            speckle=check_speckle,
            frozen=check_frozen,
            width=width or None,
            height=height or None,
            frames=frames or None,
        )
        findings = check_images(as_array(image), checks, runtime.current().settings.results)
        return image, _report(findings, "The image", on_fail, (unique_id, extra_pnginfo))


class GuardedValidateVideo:
    """Pass a VIDEO or its frames on, unless it shows nothing, stands still, or is too short."""

    CATEGORY = "guarded"
    FUNCTION = "validate"
    RETURN_TYPES = ("VIDEO", "IMAGE", "STRING")
    RETURN_NAMES = ("video", "images", "warnings")
    OUTPUT_TOOLTIPS = ("The same video.", "The same frames.", "What was found, one per line; with on_fail = warn.")
    DESCRIPTION = "Fails the job with a typed error if a video is blank, frozen, too short or of the wrong size."
    SEARCH_ALIASES = ["frozen video", "black video", "check video"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "optional": {
                "video": ("VIDEO", {"tooltip": "The video to check; it comes out unchanged."}),
                "images": ("IMAGE", {"tooltip": "Or its frames."}),
                "fps": (
                    "FLOAT",
                    {"default": 25.0, "min": 0.01, "max": 1000.0, "tooltip": "Frames per second of `images`"},
                ),
                "width": ("INT", {**_SIDE, "tooltip": "The exact number of pixels; 0: any"}),
                "height": ("INT", {**_SIDE, "tooltip": "The exact number of pixels; 0: any"}),
                "frames": ("INT", {**_COUNT, "tooltip": "The fewest; 0: any number"}),
                "duration_s": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 86400.0,
                        "step": 0.01,
                        "tooltip": "The shortest length in seconds, less results.duration_tolerance; 0: any",
                    },
                ),
                "needs_audio": _make_flag(False, "It must have a sound track (VIDEO only)"),
                "check_nan": _make_flag(True, "NaN or infinite values"),
                "check_blank": _make_flag(True, "More than results.max_blank_share of the frames are blank"),
                "check_frozen": _make_flag(True, "All frames are the same"),
                "on_fail": _ON_FAIL,
            },
            "hidden": shown.HIDDEN,
        }

    def validate(
        self,
        video: Any = None,
        images: Any = None,
        fps: float = 25.0,
        width: int = 0,
        height: int = 0,
        frames: int = 0,
        duration_s: float = 0.0,
        needs_audio: bool = False,
        check_nan: bool = True,
        check_blank: bool = True,
        check_frozen: bool = True,
        on_fail: str = "raise",
        unique_id: Any = None,
        extra_pnginfo: Any = None,
    ) -> tuple[Any, Any, str]:
        """Raises ResultBlankError, ResultCorruptError, ResultIncompleteError for the worst finding; ValueError
        without any input."""
        if video is None and images is None:
            raise ValueError("GuardedValidateVideo needs a video or images.")
        settings = runtime.current().settings.results
        checks = Checks(
            nan=check_nan,
            blank=check_blank,
            speckle=False,
            frozen=check_frozen,
            width=width or None,
            height=height or None,
            frames=frames or None,
        )
        findings: list[Finding] = []
        if images is not None:
            findings += _check_frames(images, fps, duration_s, checks, settings)
        if video is not None:
            findings += _check_video(video, duration_s, needs_audio, checks, settings)
        return video, images, _report(findings, "The video", on_fail, (unique_id, extra_pnginfo))


def _report(findings: list[Finding], name: str, on_fail: str, node: tuple[Any, Any]) -> str:
    """Put the findings into words, one per line; raise the first as a typed error unless `on_fail` is `warn`.

    Args:
        node: its id and the prompt's `extra_pnginfo`, to show the verdict on it.
    """
    lines = [f"{finding.fault.value}: {finding.text}" for finding in findings]
    error = make_error(findings[0], name) if findings and on_fail != "warn" else None
    shown.show(*node, {"code": error.code if error else None, "lines": lines, "pictures": []})
    if error is not None:
        raise error
    for finding in findings:
        log.warning("%s: %s", name, finding.text)
    return "\n".join(lines)


def _check_frames(
    images: Any, fps: float, duration_s: float, checks: Checks, settings: ResultsSettings
) -> list[Finding]:
    frames = as_array(images)
    return [
        *_check_duration(len(frames) / fps, duration_s, settings),
        *check_frames(frames, checks, settings),
    ]


def _check_video(
    video: Any, duration_s: float, needs_audio: bool, checks: Checks, settings: ResultsSettings
) -> Iterable[Finding]:
    """Check the frames of a VIDEO that holds tensors; read one that is a file frame by frame."""
    if _is_file(video) and not _is_trimmed(video):
        source = video.get_stream_source()
        if isinstance(source, BytesIO):
            source.seek(0)
        facts = film_files.check(source, None, settings, Budget(settings))
        yield from _check_size(facts, checks)
        yield from _check_duration(facts.duration_s or 0.0, duration_s, settings)
        if needs_audio and not facts.audio:
            yield Finding(Fault.NO_AUDIO, "it has no sound")
        for finding in facts.findings:
            if checks.frozen if finding.fault is Fault.FROZEN else checks.blank:
                yield finding
        return
    components = video.get_components()
    yield from _check_frames(components.images, float(components.frame_rate), duration_s, checks, settings)
    if needs_audio and components.audio is None:
        yield Finding(Fault.NO_AUDIO, "it has no sound")


def _check_size(facts: Facts, checks: Checks) -> Iterable[Finding]:
    for name, has, wanted in (("wide", facts.width, checks.width), ("high", facts.height, checks.height)):
        if wanted is not None and has != wanted:
            yield Finding(Fault.WRONG_SIZE, f"it is {has} pixels {name}; {wanted} were expected", has, wanted)
    if checks.frames is not None and (facts.frames or 0) < checks.frames:
        text = f"it has {facts.frames} frames; {checks.frames} were expected"
        yield Finding(Fault.TOO_FEW_FRAMES, text, facts.frames, checks.frames)


def _check_duration(has_s: float, wanted_s: float, settings: ResultsSettings) -> Iterable[Finding]:
    if wanted_s and has_s < wanted_s * (1 - settings.duration_tolerance):
        text = f"it is {has_s:.3g} s long; {wanted_s:.3g} s were expected"
        yield Finding(Fault.TOO_SHORT, text, round(has_s, 3), wanted_s)


def _is_file(video: Any) -> bool:
    """Whether it is ComfyUI's VideoFromFile, by name, since the class moves between modules from version to version."""
    return any(kind.__name__ == "VideoFromFile" for kind in type(video).__mro__)


def _is_trimmed(video: Any) -> bool:
    """Whether the VIDEO is a part of its file: ComfyUI (since 0.4) gives the whole file as its source."""
    window = getattr(video, "get_active_trim_window", None)
    return window is not None and any(window())


NODE_CLASS_MAPPINGS = {
    "GuardedValidateImage": GuardedValidateImage,
    "GuardedValidateVideo": GuardedValidateVideo,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "GuardedValidateImage": "Validate Image (Guarded)",
    "GuardedValidateVideo": "Validate Video (Guarded)",
}
