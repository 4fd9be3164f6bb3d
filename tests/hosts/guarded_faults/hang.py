"""Nodes that take their time."""

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import server
from PIL import Image

from .common import SECONDS, SEED, FaultNode, check_interrupt, passed_on, sample_image

STEP_S = 0.02


class FaultSleep(FaultNode):
    """Sleeps in steps of 20 ms, with or without looking at the interrupt flag."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seconds": SECONDS,
                "checks_interrupt": ("BOOLEAN", {"default": True}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 100000}),
                "seed": SEED,
            },
            "optional": {"image": ("IMAGE",)},
        }

    def run(
        self, seconds: float, checks_interrupt: bool, steps: int = 0, seed: int = 0, image: Any = None
    ) -> tuple[Any]:
        """`steps` > 0 drives a progress bar, whose every report is an interrupt check of its own."""
        bar = comfy.utils.ProgressBar(steps) if steps > 0 else None
        started_s = time.monotonic()
        done = 0
        while (elapsed_s := time.monotonic() - started_s) < seconds:
            time.sleep(min(STEP_S, seconds - elapsed_s))
            if checks_interrupt:
                check_interrupt()
            reached = min(steps, int(steps * (time.monotonic() - started_s) / seconds))
            if bar is not None and reached > done:
                done = reached
                bar.update_absolute(done)
        if bar is not None and done < steps:
            bar.update_absolute(steps)
        return passed_on(image, seed)


class FaultTicks(FaultNode):
    """Works for a time, and writes down when it does: in a file of input, a line with its run every 5 ms."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seconds": SECONDS,
                "checks_interrupt": ("BOOLEAN", {"default": True}),
                "raises": ("BOOLEAN", {"default": False}),
                "seed": SEED,
            }
        }

    def run(self, seconds: float, checks_interrupt: bool, raises: bool, seed: int = 0) -> dict[str, Any]:
        started_s = time.monotonic()
        path = os.path.join(folder_paths.get_input_directory(), "ticks.log")
        with open(path, "ab", buffering=0) as log:
            while (elapsed_s := time.monotonic() - started_s) < seconds:
                log.write(f"{seed} {started_s!r} {elapsed_s!r}\n".encode())
                time.sleep(0.005)
                if checks_interrupt:
                    check_interrupt()
        if raises:
            raise ValueError("on purpose")
        return {"ui": {"text": ["done"]}}


class FaultPreview(FaultNode):
    """Shows previews of what it makes, as a sampler does."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"steps": ("INT", {"default": 3, "min": 1, "max": 1000}), "seed": SEED}}

    def run(self, steps: int, seed: int = 0) -> tuple[Any]:
        bar = comfy.utils.ProgressBar(steps)
        picture = Image.fromarray((sample_image(seed)[0] * 255).astype("uint8"))
        for step in range(1, steps + 1):
            bar.update_absolute(step, steps, ("JPEG", picture, 64))
            time.sleep(STEP_S)
        return passed_on(None, seed)


class _Hang(FaultNode):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": SECONDS, "seed": SEED}, "optional": {"image": ("IMAGE",)}}


class FaultHangBetween(_Hang):
    """Ends at once; but what gives memory back before the next prompt hangs in C, once."""

    def run(self, seconds: float, seed: int = 0, image: Any = None) -> tuple[Any]:
        native = comfy.model_management.unload_all_models

        def unload_all_models() -> None:
            comfy.model_management.unload_all_models = native
            time.sleep(seconds)
            native()

        comfy.model_management.unload_all_models = unload_all_models
        server.PromptServer.instance.prompt_queue.set_flag("unload_models", True)
        return passed_on(image, seed)


class FaultHangC(_Hang):
    """One call into C that nothing can end before its time. Reports progress once, just before it."""

    def run(self, seconds: float, seed: int = 0, image: Any = None) -> tuple[Any]:
        comfy.utils.ProgressBar(2).update_absolute(1)
        time.sleep(seconds)
        return passed_on(image, seed)


class FaultProgram(FaultNode):
    """Starts a program that starts another one, as ffmpeg wrappers do; both are still there ten minutes later."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        how = (["waits", "checks", "leaves it"],)
        return {"required": {"mark": ("STRING", {"default": ""}), "then": how, "seed": SEED}}

    def run(self, mark: str, then: str, seed: int = 0) -> tuple[Any]:
        """`mark`: one of the words by which they were called."""
        sleeps = "import sys, time; time.sleep(600)"
        starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeps!r}, sys.argv[1]])"
        program = subprocess.Popen([sys.executable, "-c", starts, mark])
        comfy.utils.ProgressBar(2).update_absolute(1)
        if then == "waits":
            program.wait()
        while then == "checks":
            time.sleep(STEP_S)
            check_interrupt()
        return passed_on(None, seed)


class FaultHangPython(_Hang):
    """A busy loop in Python: checks nothing, but an injected exception ends it."""

    def run(self, seconds: float, seed: int = 0, image: Any = None) -> tuple[Any]:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            pass
        return passed_on(image, seed)


class FaultSwallow(FaultNode):
    """Checks for an interrupt, and goes on when there was one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seconds": SECONDS,
                "catches": (["Exception", "BaseException"],),
                "seed": SEED,
            },
            "optional": {"image": ("IMAGE",)},
        }

    def run(self, seconds: float, catches: str = "Exception", seed: int = 0, image: Any = None) -> tuple[Any]:
        """Since v0.33.0 the interrupt is a BaseException: there `Exception` lets it through."""
        swallowed = BaseException if catches == "BaseException" else Exception
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            try:
                time.sleep(STEP_S)
                check_interrupt()
            except swallowed:
                pass
        return passed_on(image, seed)


class FaultAsyncHang(_Hang):
    """Awaits, and checks nothing: only cancelling its task on the worker's loop ends it."""

    async def run(self, seconds: float, seed: int = 0, image: Any = None) -> tuple[Any]:
        await asyncio.sleep(seconds)
        return passed_on(image, seed)


class FaultHoldGil(_Hang):
    """A call into C that holds the GIL: no other thread of the process runs meanwhile."""

    def run(self, seconds: float, seed: int = 0, image: Any = None) -> tuple[Any]:
        if os.name == "nt":
            ctypes.PyDLL("kernel32").Sleep(int(seconds * 1000))
        else:
            ctypes.PyDLL(None).sleep(int(seconds))
        return passed_on(image, seed)


class FaultThreads(_Hang):
    """Starts threads that check for interrupts; the worker's thread only waits for them."""

    def run(self, seconds: float, seed: int = 0, image: Any = None) -> tuple[Any]:
        until_s = time.monotonic() + seconds

        def work() -> None:
            while time.monotonic() < until_s:
                time.sleep(STEP_S)
                check_interrupt()

        with ThreadPoolExecutor(2) as pool:
            for each in [pool.submit(work), pool.submit(work)]:
                each.result()
        return passed_on(image, seed)
