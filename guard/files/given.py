"""Which files running jobs have been given, so that nothing takes their places before those jobs are over.

A node may open a file long after it has asked for its path, and more than once: LoadVideo hands a path on, and whatever
gets it opens that. What is looked at as the path is given is therefore what must still lie there at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileInUseError

#: A job is mostly over by then; nobody knows.
_AGAIN_S = 5.0


class Given:
    """Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a rename
        self._of_jobs: dict[str, set[str]] = {}

    def give(self, job_id: str, real: str) -> None:
        """The job is about to look at that file or folder, of whose path no part is a link."""
        with self._lock:
            self._of_jobs.setdefault(job_id, set()).add(real)

    def take_back(self, job_id: str) -> None:
        """The job's run is over."""
        with self._lock:
            self._of_jobs.pop(job_id, None)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[None]:
        """Put something else at that path, in the block, and be quick.

        Raises:
            FileInUseError: a running job has been given what lies there, or the folder in which it lies.
        """
        real = os.path.realpath(path)
        with self._lock:
            places = {real, *map(str, Path(real).parents)}
            if any(not places.isdisjoint(given) for given in self._of_jobs.values()):
                raise FileInUseError(
                    "A job that is running reads the file of that name. Send this one under another name, or later.",
                    extra_info={"filename": path.name},
                    retry_after_s=_AGAIN_S,
                )
            yield
