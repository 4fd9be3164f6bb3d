"""Nodes whose validation misbehaves: at the admission of a prompt, or only when its job is dispatched."""

import asyncio
import contextvars
import os
import signal
from typing import Any

from .common import SEED, FaultNode, passed_on


class FaultValidation(FaultNode):
    """`kill_process` is what the kernel does when memory is short; the others raise what no `except Exception` gets."""

    DOES = ("pass", "cancelled", "system_exit", "generator_exit", "kill_process")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"does": (list(cls.DOES),), "at": (["dispatch", "admission"],), "seed": SEED},
            "optional": {"image": ("IMAGE",)},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, does: str, at: str) -> bool:
        if at == _find_step():
            _do(does)
        return True

    def run(self, does: str, at: str, seed: int = 0, image: Any = None) -> tuple[Any]:
        return passed_on(image, seed)


class FaultAsyncValidation(FaultValidation):
    """The same, awaited in a task of its own; `hang` never ends."""

    DOES = (*FaultValidation.DOES, "hang")

    @classmethod
    async def VALIDATE_INPUTS(cls, does: str, at: str) -> bool:
        if at == _find_step():
            await asyncio.sleep(0.01)
            if does == "hang":
                await asyncio.Event().wait()
            _do(does)
        return True


def _find_step() -> str:
    """Whether the guard dispatches the prompt, or only rehearses it; it notes that in the context."""
    dispatches = any(
        value is True
        for variable, value in contextvars.copy_context().items()
        if variable.name == "guarded_dispatching"
    )
    return "dispatch" if dispatches else "admission"


def _do(what: str) -> None:
    if what == "kill_process":
        if os.name == "nt":
            os._exit(137)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "cancelled":
        raise asyncio.CancelledError("of a node")
    if what == "system_exit":
        raise SystemExit("of a node")
    if what == "generator_exit":
        raise GeneratorExit("of a node")
