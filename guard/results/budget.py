"""Bound the work of checking one job, and the reading of its files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import IO

from ..errors import ResultCorruptError
from ..settings import ResultsSettings

#: After this share of the time look only at samples: a long film on a slow machine is not a broken film.
_SAMPLE_FROM = 0.5
#: After this share read nothing more. It ends before `run_within` gives up, so that the thread ends by itself.
_END_AT = 0.9


class Budget:
    """The time and the pixels that one job's checks may take. One thread.

    There are two limits: past the first, `spent` is true and the checks go on with samples; past the second, every
    read of a file raises. Whatever libav or a structure walk does with a hostile file, it has to read it.
    """

    def __init__(self, settings: ResultsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        began_s = clock()
        self._timeout_s = settings.check_timeout_s
        self._sample_from_s = began_s + _SAMPLE_FROM * settings.check_timeout_s
        self._end_s = began_s + _END_AT * settings.check_timeout_s
        self._pixels = settings.max_decoded_pixels

    def take(self, pixels: int) -> None:
        """Count pixels that have been decoded."""
        self._pixels -= pixels

    @property
    def spent(self) -> bool:
        """Whether it is time to look at samples only."""
        return self._pixels <= 0 or self._clock() >= self._sample_from_s

    def check(self) -> None:
        """Raise ResultCorruptError when all the time is gone."""
        if self._clock() >= self._end_s:
            raise ResultCorruptError(f"The result could not be checked within {self._timeout_s:g} s.")


class BudgetFile:
    """An open file that cannot be read once the budget is gone. Pillow, libav and the structure walks read from it."""

    def __init__(self, handle: IO[bytes], budget: Budget) -> None:
        self._handle = handle
        self._budget = budget

    def read(self, size: int = -1) -> bytes:
        self._budget.check()
        return self._handle.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
