"""The package's nodes for ComfyUI's editor: check faces, check results, save a picture, load a film's sound."""

from typing import Any

from . import face_check, save, sound, validate

_ROOMS = (face_check, validate, save, sound)

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
for _room in _ROOMS:
    NODE_CLASS_MAPPINGS.update(_room.NODE_CLASS_MAPPINGS)
    NODE_DISPLAY_NAME_MAPPINGS.update(_room.NODE_DISPLAY_NAME_MAPPINGS)
