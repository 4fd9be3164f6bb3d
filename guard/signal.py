"""Signals: a class announces what happened without knowing who wants to hear of it; app.py subscribes the listeners."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec

log = logging.getLogger("guarded.signal")

P = ParamSpec("P")


class Signal(Generic[P]):
    """Calling it calls every listener, in the order of subscription, on the thread of the caller.

    A listener must be quick. One that raises is logged, and the others are called all the same: the caller's own work
    must not depend on who listens.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[P, object]] = []

    def subscribe(self, listener: Callable[P, object]) -> None:
        """Call `listener` from now on."""
        self._listeners.append(listener)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        for listener in self._listeners:
            try:
                listener(*args, **kwargs)
            except Exception:
                job_id = next((value.job_id for value in args if hasattr(value, "job_id")), None)
                what = "a listener failed" if job_id is None else f"a listener failed on job {job_id}"
                log.exception("%s: %r", what, listener, extra={"job_id": job_id})
