"""GuardedLoadSound: the sound of a film, or nothing where the film is silent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..guard import runtime
from ..guard.errors import BadImageError
from ..guard.files.names import split_annotation
from ..guard.results.sounds import read_sound
from .tensors import to_tensor

_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".gif", ".avi", ".m4v", ".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a")


class GuardedLoadSound:
    """Load the sound of a film. Other loaders fail at a film without one, as messengers send them."""

    CATEGORY = "guarded"
    FUNCTION = "load"
    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)
    OUTPUT_TOOLTIPS = ("The sound; nothing where the film is silent.",)
    DESCRIPTION = "Loads the sound of a film. A silent film gives nothing, and a node that saves a film takes that."
    SEARCH_ALIASES = ["audio", "load audio", "sound of video"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": (_list_films(), {"video_upload": True, "tooltip": "The film, from ComfyUI's input folder."}),
                "longest_s": (
                    "FLOAT",
                    {"default": 60.0, "min": 0.1, "max": 600.0, "step": 0.1, "tooltip": "The most seconds to load."},
                ),
            }
        }

    def load(self, video: str, longest_s: float) -> tuple[dict[str, Any] | None]:
        """Load the sound as ComfyUI's AUDIO; None where there is none. Raises BadImageError where there is no file."""
        sound = read_sound(_find(video), longest_s)
        if sound is None:
            return (None,)
        return ({"waveform": to_tensor(sound[0][None]), "sample_rate": sound[1]},)

    @classmethod
    def IS_CHANGED(cls, video: str, longest_s: float) -> str:
        status = os.stat(_find(video))
        return f"{status.st_size} {status.st_mtime_ns} {longest_s}"

    @classmethod
    def VALIDATE_INPUTS(cls, video: str | None = None) -> bool | str:
        """If its name comes over a link, `load` looks for the file when the node runs."""
        try:
            return not isinstance(video, str) or _find(video).is_file()
        except BadImageError as error:
            return f"Invalid file: {error.message}"


def _find(video: str) -> Path:
    host = runtime.current().host
    kind, name = split_annotation(video)
    path = host.file(kind, "", name) if host is not None and name else None
    if path is None or not os.path.isfile(path):
        raise BadImageError(f"The film {video} is not there.", extra_info={"image": video})
    return path


def _list_films() -> list[str]:
    host = runtime.current().host
    try:
        found = host.input_folder().iterdir() if host is not None else ()
        return sorted(entry.name for entry in found if entry.suffix.lower() in _SUFFIXES and entry.is_file())
    except OSError:
        return []


NODE_CLASS_MAPPINGS: dict[str, Any] = {"GuardedLoadSound": GuardedLoadSound}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {"GuardedLoadSound": "Load Sound of a Film (Guarded)"}
