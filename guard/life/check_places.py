"""Places for what takes long: owners take turns, and one place is kept from each for the others."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: So many things of an owner may wait for a place; with more than that to come, the owner is to begin nothing new.
WAITING = 8


class CheckPlaces(Generic[T]):
    """So many places, of which an owner has one less, however long others have nothing to do. Any thread.

    Whoever hands something in does not wait. Where an owner has :data:`WAITING` things that do, `hold_back` is called
    with those owners, and again with fewer once their things have moved up.
    """

    def __init__(self, count: int, hold_back: Callable[[frozenset[str]], object]) -> None:
        """`hold_back` is called under a lock: it may note that, and no more."""
        self._free = count
        self._most = count - 1
        self._hold_back = hold_back
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        #: By owner, in the order of their turns.
        self._waiting: dict[str, deque[T]] = {}
        self._held_back: frozenset[str] = frozenset()

    def take(self, owner: str, thing: T) -> bool:
        """Take a place for that; False: it waits, and :meth:`give_back` returns it when it is its turn."""
        with self._lock:
            if self._may_begin(owner):
                self._count_taken(owner)
                return True
            self._waiting.setdefault(owner, deque()).append(thing)
            self._note_held_back()
        return False

    def give_back(self, owner: str) -> T | None:
        """One of the owner's places is free; returns what has a place now, and is to begin."""
        with self._lock:
            self._free += 1
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]
            following = next(filter(self._may_begin, self._waiting), None)
            if following is None:
                return None
            things = self._waiting.pop(following)
            thing = things.popleft()
            if things:
                self._waiting[following] = things  # behind the others
            self._count_taken(following)
            self._note_held_back()
        return thing

    def _may_begin(self, owner: str) -> bool:
        return self._free > 0 and self._taken[owner] < self._most

    def _count_taken(self, owner: str) -> None:
        self._free -= 1
        self._taken[owner] += 1

    def _note_held_back(self) -> None:
        held_back = frozenset(owner for owner, things in self._waiting.items() if len(things) >= WAITING)
        if held_back != self._held_back:
            self._held_back = held_back
            self._hold_back(held_back)
