"""Places for the checks of runs beside the worker, by turns between owners."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

from ..quotas.places import Places

T = TypeVar("T")

#: So many runs of an owner may wait for their checks; from then on it is to begin no other.
WAITING = 8


class CheckPlaces(Generic[T]):
    """So many places, of which an owner has no more than `most`. Any thread; nobody waits who hands something in.

    `hold_back` is called with the owners that are to begin nothing, whenever they are others than before: those of
    which :data:`WAITING` things wait, and those that are held.
    """

    def __init__(self, count: int, most: int, hold_back: Callable[[frozenset[str]], object]) -> None:
        """`hold_back` is called under a lock: it may note that, and no more."""
        self._places: Places[T] = Places(count, most)
        self._hold_back = hold_back
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
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

    def hold(self, owner: str) -> None:
        """The owner is to begin nothing until :meth:`let_go`."""
        with self._lock:
            self._held[owner] += 1
            self._note_held_back()

    def let_go(self, owner: str) -> None:
        with self._lock:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
            self._note_held_back()

    def _note_held_back(self) -> None:
        waiting = (owner for owner, count in self._places.count_waiting() if count >= WAITING)
        held_back = frozenset((*waiting, *self._held))
        if held_back != self._held_back:
            self._held_back = held_back
            self._hold_back(held_back)
