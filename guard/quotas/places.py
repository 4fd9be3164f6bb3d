"""A number of places for what takes long, by turns between owners."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Places(Generic[T]):
    """So many places, of which an owner has no more than `most`, however long others have nothing to do.

    Whoever frees a place asks for what has the next turn until nothing has. By itself not safe for threads.
    """

    def __init__(self, count: int, most: int) -> None:
        self._free = count
        self._most = most
        self._taken: Counter[str] = Counter()
        #: By owner, in the order of their turns.
        self._waiting: dict[str, deque[T]] = {}

    def take(self, owner: str) -> bool:
        """Take one of the owner's places, unless it has none or others of its things wait."""
        if owner in self._waiting or not self._may_begin(owner):
            return False
        self._count_taken(owner)
        return True

    def wait(self, owner: str, thing: T) -> None:
        """Let it wait for one of the owner's places."""
        self._waiting.setdefault(owner, deque()).append(thing)

    def free(self, owner: str) -> None:
        """One of the owner's places is free."""
        self._free += 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]

    def find_next(self) -> tuple[str, T] | None:
        """Whose turn it is, and what has a place now; None: nothing that waits may have one."""
        owner = next(filter(self._may_begin, self._waiting), None)
        if owner is None:
            return None
        things = self._waiting.pop(owner)
        thing = things.popleft()
        if things:
            self._waiting[owner] = things  # behind the others
        self._count_taken(owner)
        return owner, thing

    def count_waiting(self) -> Iterator[tuple[str, int]]:
        """How many things of each owner wait."""
        return ((owner, len(things)) for owner, things in self._waiting.items())

    def _may_begin(self, owner: str) -> bool:
        return self._free > 0 and self._taken[owner] < self._most

    def _count_taken(self, owner: str) -> None:
        self._free -= 1
        self._taken[owner] += 1
