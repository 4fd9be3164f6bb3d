"""A node that raises."""

from collections.abc import Callable
from typing import Any, ClassVar

import comfy.model_management

from .common import SEED, FaultNode, passed_on


class FaultRaise(FaultNode):
    """`system_exit` and `keyboard_interrupt` kill a bare worker; `out_of_memory` is the host's own class."""

    KINDS: ClassVar[dict[str, Callable[[str], BaseException]]] = {
        "value_error": ValueError,
        "out_of_memory": lambda message: comfy.model_management.OOM_EXCEPTION(message),
        "system_exit": SystemExit,
        "keyboard_interrupt": KeyboardInterrupt,
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "kind": (list(cls.KINDS),),
                "message": ("STRING", {"default": "raised on purpose"}),
                "seed": SEED,
            },
            "optional": {"image": ("IMAGE",)},
        }

    def run(self, kind: str, message: str, seed: int = 0, image: Any = None) -> tuple[Any]:
        if kind in self.KINDS:
            raise self.KINDS[kind](message)
        return passed_on(image, seed)
