"""Ask NVIDIA's driver what the GPUs do; say nothing where there is no such GPU."""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

from .bodies import GpuBody

log = logging.getLogger("guarded.gpu")

T = TypeVar("T")

LOOK_S = 5.0
#: A driver in trouble hangs for minutes. Its last answer counts no longer than this.
STALE_S = 30.0


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where the driver does not say. `uuid` tells two of one name apart."""

    index: int
    uuid: str
    name: str
    utilization_percent: int | None
    vram_used_bytes: int | None
    vram_total_bytes: int | None
    temperature_celsius: int | None = None

    def body(self) -> GpuBody:
        """As JSON."""
        return {
            "name": self.name,
            "utilization_percent": self.utilization_percent,
            "vram_used_bytes": self.vram_used_bytes,
            "vram_total_bytes": self.vram_total_bytes,
            "temperature_celsius": self.temperature_celsius,
        }


class Gpus:
    """Asks the driver every few seconds on a thread of its own; readers get its last answer without a wait."""

    def __init__(self, environment: Mapping[str, str] | None = None, nvml: ModuleType | None = None) -> None:
        """`nvml`: the module `pynvml`, or one like it. Without it the thread imports `pynvml`."""
        self._environment = os.environ if environment is None else environment
        self._nvml = nvml
        self._gpus: tuple[Gpu, ...] = ()
        self._seen_s = float("-inf")
        self._thread = threading.Thread(target=self._loop, name="guarded-gpu", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def all(self) -> tuple[Gpu, ...]:
        """Every GPU that the driver shows."""
        return self._gpus if time.monotonic() < self._seen_s + STALE_S else ()

    @property
    def ours(self) -> Gpu | None:
        """The GPU that ComfyUI runs on: the first of `CUDA_VISIBLE_DEVICES`, which ComfyUI's `--cuda-device` sets."""
        named = self._environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        for gpu in self.all:
            if named == str(gpu.index) or (not named.isdecimal() and named and gpu.uuid.startswith(named)):
                return gpu
        return None

    def look(self, nvml: ModuleType) -> None:
        """Ask the driver once. Raises whatever NVML raises."""
        self._gpus = tuple(_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        self._seen_s = time.monotonic()

    def _loop(self) -> None:
        try:
            nvml = self._nvml or importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception as error:  # no package, no driver, no such GPU: each raises something else
            log.debug("no GPU figures: %s: %s", type(error).__name__, error)
            return
        complained = False
        while True:
            try:
                self.look(nvml)
                complained = False
            except Exception as error:
                if not complained:
                    log.warning("the driver of the GPU does not answer: %s: %s", type(error).__name__, error)
                complained = True
            time.sleep(LOOK_S)


def _read_gpu(nvml: ModuleType, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    busy = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    celsius = _ask(nvml, lambda one: nvml.nvmlDeviceGetTemperature(one, nvml.NVML_TEMPERATURE_GPU), handle)
    return Gpu(
        index=index,
        uuid=_decode(nvml.nvmlDeviceGetUUID(handle)),
        name=_decode(nvml.nvmlDeviceGetName(handle)),
        utilization_percent=int(busy.gpu) if busy is not None else None,
        vram_used_bytes=int(memory.used) if memory is not None else None,
        vram_total_bytes=int(memory.total) if memory is not None else None,
        temperature_celsius=int(celsius) if celsius is not None else None,
    )


def _ask(nvml: ModuleType, question: Callable[[object], T], handle: object) -> T | None:
    """The answer; None where this GPU has none (a MIG part on utilization, a GPU that shares memory on memory)."""
    try:
        return question(handle)
    except nvml.NVMLError_NotSupported:
        return None


def _decode(value: str | bytes) -> str:
    """Old versions of the package answer in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
