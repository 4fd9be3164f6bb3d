"""Which node classes give each file a new name, so that no later run overwrites one that is being checked."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..host import Outcome
from ..results import checks


@dataclass
class _Namer:
    """A node class: the files that it has made lately, with the time, and how many make it trusted."""

    made: dict[Path, float] = field(default_factory=dict)
    needed: float = 2


class Namers:
    """Learns which node classes give each file of an owner a new name.

    A name that comes again may be a fixed one; or its earlier file was deleted, and the node counts the files that are
    there. Which of both, nobody can tell afterwards. So the class is trusted again after twice as many new names as the
    time before, which one with fixed names never makes. It is trusted no more once it has overwritten a file that was
    being checked.
    """

    #: The last names of a class that are remembered, and so many classes of all owners.
    NAMES, CLASSES = 1000, 1000
    #: A name that comes again after so long comes from a node that counts, whose earlier file was deleted.
    FRESH_S = 600.0

    def __init__(self) -> None:
        self._namers: dict[tuple[str, str], _Namer] = {}
        #: The files that are being checked beside the worker, and for how many jobs.
        self._under_check: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def name_anew(self, outcome: Outcome, owner: str) -> bool:
        """Whether every class that made a file of this run can be trusted to give each of the owner's a new name.

        By owner, since what an owner asks for makes a name a fixed one (in ComfyUI a prefix that ends with a slash).

        The worker's thread.
        """
        is_safe = True
        with self._lock:
            for file in checks.own_files(outcome):
                node = outcome.prompt.get(file.node_id)
                name = str(node.get("class_type")) if isinstance(node, Mapping) else ""
                is_safe = file.path is not None and self._note((owner, name), file.path) and is_safe
        return is_safe

    def hold(self, outcome: Outcome, change: int) -> None:
        """Count `change` more checks beside the worker that look at the files of that run. Any thread."""
        with self._lock:
            for path in _find_paths(outcome):
                self._under_check[path] += change
                if self._under_check[path] <= 0:
                    del self._under_check[path]

    def forget(self, outcome: Outcome) -> None:
        """The files of that run are gone, so their names are free again. Any thread."""
        paths = _find_paths(outcome)
        with self._lock:
            for path in paths:
                self._under_check.pop(path, None)
                for namer in self._namers.values():
                    namer.made.pop(path, None)

    def _note(self, key: tuple[str, str], path: Path) -> bool:
        namer = self._namers.setdefault(key, _Namer())
        while len(self._namers) > self.CLASSES:
            del self._namers[next(iter(self._namers))]
        now_s = time.monotonic()
        if self._under_check[path]:
            namer.needed = math.inf
        elif now_s - namer.made.get(path, -math.inf) < self.FRESH_S:
            namer.made.clear()
            namer.needed = max(min(2 * namer.needed, self.NAMES), namer.needed)
        namer.made[path] = now_s
        while len(namer.made) > self.NAMES:
            namer.made.pop(next(iter(namer.made)), None)
        return len(namer.made) >= namer.needed


def _find_paths(outcome: Outcome) -> list[Path]:
    return [file.path for file in checks.own_files(outcome) if file.path is not None]
