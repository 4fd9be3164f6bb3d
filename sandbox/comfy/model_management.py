"""The interrupt flag, and what a CPU-only machine answers about devices and memory."""

import logging
import os
import threading
from typing import NamedTuple


class Device(NamedTuple):
    """Stands in for `torch.device`."""

    type: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.type


class _OutOfMemoryError(RuntimeError):
    """Carries torch's name, since clients read `exception_type`."""


_OutOfMemoryError.__module__ = "torch"
_OutOfMemoryError.__name__ = _OutOfMemoryError.__qualname__ = "OutOfMemoryError"
OOM_EXCEPTION = _OutOfMemoryError


class InterruptProcessingException(BaseException):
    """Raised by the check; a BaseException since v0.33.0, so that `except Exception` lets it through."""


interrupt_processing_mutex = threading.RLock()
interrupt_processing = False

unload_all_models_calls = 0
soft_empty_cache_calls = 0


def interrupt_current_processing(value: bool = True) -> None:
    global interrupt_processing
    with interrupt_processing_mutex:
        interrupt_processing = value


def processing_interrupted() -> bool:
    with interrupt_processing_mutex:
        return interrupt_processing


def throw_exception_if_processing_interrupted() -> None:
    """Consume the flag and raise. It is one flag for all prompts: whoever checks first takes it."""
    global interrupt_processing
    with interrupt_processing_mutex:
        if not interrupt_processing:
            return
        interrupt_processing = False
    raise InterruptProcessingException


def is_oom(error: BaseException) -> bool:
    return isinstance(error, OOM_EXCEPTION)


def unload_all_models() -> None:
    global unload_all_models_calls
    unload_all_models_calls += 1
    logging.info("unload_all_models, call %d", unload_all_models_calls)


def soft_empty_cache(force: bool = False) -> None:
    global soft_empty_cache_calls
    soft_empty_cache_calls += 1


def get_torch_device() -> Device:
    return Device()


def intermediate_device() -> Device:
    return Device()


def get_torch_device_name(device: object) -> str:
    return str(device)


def get_total_memory(dev: object = None, torch_total_too: bool = False) -> int | tuple[int, int]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (total, total) if torch_total_too else total


def get_free_memory(dev: object = None, torch_free_too: bool = False) -> int | tuple[int, int]:
    free = _available_bytes()
    return (free, free) if torch_free_too else free


def _available_bytes() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
