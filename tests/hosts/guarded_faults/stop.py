"""Nodes that raise, and nodes that end the worker's thread or the whole process."""

import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import comfy.model_management
import execution
import server

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


class FaultKillWorker(FaultNode):
    """Passes on, and makes the worker's thread die once, outside of any node."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "when": (["handing_back", "between_prompts"],),
                "kind": (["system_exit", "runtime_error"],),
                "seed": SEED,
            },
            "optional": {"image": ("IMAGE",)},
        }

    def run(self, when: str, kind: str, seed: int = 0, image: Any = None) -> tuple[Any]:
        error = SystemExit("a mine") if kind == "system_exit" else RuntimeError("a mine")
        # The worker looks both up each time: the class for the arguments of `task_done`, the method after it.
        owner, name = {
            "handing_back": (execution.PromptQueue, "ExecutionStatus"),
            "between_prompts": (server.PromptServer.instance.prompt_queue, "get_flags"),
        }[when]
        native = getattr(owner, name)

        def mine(*_args: Any, **_kwargs: Any) -> Any:
            setattr(owner, name, native)
            raise error

        setattr(owner, name, mine)
        return passed_on(image, seed)


class FaultKillProcess(FaultNode):
    """Sends SIGKILL to its own process, as the kernel does when memory is short."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": SEED}, "optional": {"image": ("IMAGE",)}}

    def run(self, seed: int = 0, image: Any = None) -> tuple[Any]:
        if os.name == "nt":
            os._exit(137)
        os.kill(os.getpid(), signal.SIGKILL)
        return passed_on(image, seed)
