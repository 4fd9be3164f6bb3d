"""Convert results beside the checks, a few jobs at a time, by turns between owners."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..quotas.places import Places

log = logging.getLogger("guarded.queue")

#: Jobs whose results are converted at once; of one owner, one.
AT_ONCE = 4

Task = Callable[[], None]


class Conversions:
    """Runs tasks on threads of its own, so that neither the worker nor a check waits for an encoder or the depot."""

    def __init__(self, name: str = "guarded-converting") -> None:
        """`name`: of its threads."""
        self._name = name
        self._changed = threading.Condition()
        self._places: Places[Task] = Places(AT_ONCE, 1)
        self._threads = 0

    def hand_in(self, owner: str, task: Task) -> None:
        """Run it soon. On this thread where no other can be had."""
        with self._changed:
            self._places.wait(owner, task)
            self._changed.notify()
            if self._threads == AT_ONCE:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._loop, name=self._name, daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter ends
            with self._changed:
                self._threads -= 1
                if self._threads:
                    return
            while (turn := self._take()) is not None:
                self._run(*turn)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while (turn := self._take()) is None:
                    self._changed.wait()
            self._run(*turn)

    def _take(self) -> tuple[str, Task] | None:
        with self._changed:
            return self._places.find_next()

    def _run(self, owner: str, task: Task) -> None:
        try:
            task()
        except Exception:
            log.exception("the end of a job could not be handed on")
        finally:
            with self._changed:
                self._places.free(owner)
                self._changed.notify()
