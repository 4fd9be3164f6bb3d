"""Sample how busy the machine is, on a thread of its own: the last hour, for the page."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections import deque
from types import ModuleType
from typing import Any

from typing_extensions import TypedDict

from ..clock import Clock
from .gpu import Gpus

log = logging.getLogger("guarded.machine")

EVERY_S = 5.0
KEPT_S = 3600.0


class SampleBody(TypedDict):
    """How busy the machine was at a time; null is what nobody says."""

    at_ms: int
    cpu_percent: float | None
    ram_used_bytes: int | None
    gpu_percent: int | None
    vram_used_bytes: int | None
    gpu_celsius: int | None


class MachineBody(TypedDict):
    """The samples of the last hour, oldest first, and what there is of memory."""

    every_s: float
    ram_total_bytes: int | None
    vram_total_bytes: int | None
    samples: list[SampleBody]


class Machine:
    """Keeps the samples. `look` runs on its own thread; whoever reads gets a copy."""

    def __init__(self, gpus: Gpus, clock: Clock, psutil: ModuleType | None = None) -> None:
        """`psutil`: the package, or one like it. Without it the thread imports it."""
        self._gpus = gpus
        self._clock = clock
        self._psutil: Any = psutil
        self._samples: deque[SampleBody] = deque(maxlen=int(KEPT_S / EVERY_S))
        self._ram_total: int | None = None
        self._thread = threading.Thread(target=self._loop, name="guarded-machine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def body(self, after_ms: int) -> MachineBody:
        """The samples after that time. Any thread."""
        gpu = self._gpus.ours
        return {
            "every_s": EVERY_S,
            "ram_total_bytes": self._ram_total,
            "vram_total_bytes": gpu.vram_total_bytes if gpu is not None else None,
            "samples": [sample for sample in list(self._samples) if sample["at_ms"] > after_ms],
        }

    def look(self) -> None:
        """Take one sample."""
        cpu = ram = None
        if self._psutil is not None:
            try:
                memory = self._psutil.virtual_memory()
                cpu, ram = self._psutil.cpu_percent(None), memory.total - memory.available
                self._ram_total = memory.total
            except Exception as error:  # a container without /proc, say
                log.debug("no figures of the machine: %s: %s", type(error).__name__, error)
        gpu = self._gpus.ours
        self._samples.append(
            {
                "at_ms": self._clock.now_ms(),
                "cpu_percent": cpu,
                "ram_used_bytes": ram,
                "gpu_percent": gpu.utilization_percent if gpu is not None else None,
                "vram_used_bytes": gpu.vram_used_bytes if gpu is not None else None,
                "gpu_celsius": gpu.temperature_celsius if gpu is not None else None,
            }
        )

    def _loop(self) -> None:
        try:
            self._psutil = self._psutil or importlib.import_module("psutil")
            self._psutil.cpu_percent(None)  # the first answer is of no time
        except Exception as error:
            log.debug("no figures of the machine: %s: %s", type(error).__name__, error)
        while True:
            time.sleep(EVERY_S)
            self.look()
