"""Places for the checks of runs beside the worker, by turns between owners."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ..quotas.places import Places

T = TypeVar("T")

#: So many runs of an owner may wait for their checks; from then on it is to begin no other.
WAITING = 8


class CheckPlaces(Generic[T]):
    """So many places, of which an owner has one less. Any thread.

    Nobody waits who hands something in. `hold_back` is called with the owners of which :data:`WAITING` things wait,
    whenever they are others than before.
    """

    def __init__(self, count: int, hold_back: Callable[[frozenset[str]], object]) -> None:
        """`hold_back` is called under a lock: it may note that, and no more."""
        self._places: Places[T] = Places(count, count - 1)
        self._hold_back = hold_back
        self._lock = threading.Lock()
        self._held_back: frozenset[str] = frozenset()

    def take(self, owner: str, thing: T) -> bool:
        """Take a place for that; False: it waits, and :meth:`give_back` returns it when it is its turn."""
        with self._lock:
            if self._places.take(owner):
                return True
            self._places.wait(owner, thing)
            self._note_held_back()
        return False

    def give_back(self, owner: str) -> T | None:
        """One of the owner's places is free; returns what has a place now, and is to begin."""
        with self._lock:
            self._places.free(owner)
            if (turn := self._places.find_next()) is None:
                return None
            self._note_held_back()
        return turn[1]

    def _note_held_back(self) -> None:
        held_back = frozenset(owner for owner, waiting in self._places.count_waiting() if waiting >= WAITING)
        if held_back != self._held_back:
            self._held_back = held_back
            self._hold_back(held_back)
