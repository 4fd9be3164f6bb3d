"""A child that forks off this process must leave the database alone, even when it ends as a whole program does."""

from __future__ import annotations

import ctypes
import os
from typing import Protocol
from weakref import WeakSet


class Leaves(Protocol):
    """What has connections open."""

    def leave_to_parent(self) -> None:
        """In the child, before anything else runs there: from now on refuse whatever is asked."""


_parents: WeakSet[Leaves] = WeakSet()


def watch(parent: Leaves) -> None:
    """Tell `parent` in each child that it has become a copy there."""
    _parents.add(parent)


def keep_for_ever(db: object) -> None:
    """Let a child end without closing its copy of a connection.

    SQLite's own locks may have been held by other threads at the moment of the fork, and nobody frees them there.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _leave_all() -> None:
    for parent in list(_parents):
        parent.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
