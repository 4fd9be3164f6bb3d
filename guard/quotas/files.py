"""Know what each owner's files come to. Any thread.

The janitor measures them now and then. In between, uploads and results are added as they come, so that nobody gets far
over its quota before the janitor looks again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping

from ..errors import PayloadTooLargeError
from ..job import Job
from ..owners import folder_of
from .refusal import refuse

#: What a file takes beside what it holds: its last block, and its place in a folder. A folder takes as much.
FILE_BYTES = 4096


def measure_places(subfolder: str) -> int:
    """What a file there takes at most beside what it holds: all of its folders may be new."""
    return FILE_BYTES * (1 + len([part for part in re.split(r"[/\\]", subfolder) if part]))


class FilesHeld:
    """What the files of each owner with a quota come to, as far as it is known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a few steps
        self._held: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        #: All that was ever added, so that what is added during a measurement is not lost.
        self._added: dict[str, int] = {}

    def watch(self, limits: Mapping[str, int]) -> None:
        """Know of these owners from now on, which may have so many bytes, and forget all others."""
        with self._lock:
            self._limits = dict(limits)
            if limits.keys() != self._held.keys():
                self._held = {owner: self._held.get(owner, 0) for owner in limits}
                self._added = {owner: self._added.get(owner, 0) for owner in limits}

    def count(self, owner: str) -> int:
        return self._held.get(owner, 0)

    def add(self, owner: str, change: int) -> None:
        with self._lock:
            if owner in self._held:
                self._held[owner] += change
                self._added[owner] = self._added.get(owner, 0) + change

    def add_results(self, job: Job) -> None:
        """Add what a job has made, once it has succeeded."""
        if job.result.artifacts and job.owner in self._held:
            own = folder_of(job.owner)
            self.add(
                job.owner,
                sum(
                    file.bytes + measure_places(one.subfolder.removeprefix(own))
                    for one in job.result.artifacts
                    for file in (one, one.copy)
                    if file is not None
                ),
            )

    def judge(self, owner: str) -> None:
        """Raises QuotaExceededError where the owner has too much for another job to begin, as far as is known."""
        if (limit := self._limits.get(owner)) is not None:
            self.take(owner, 0, limit)

    def begin_measuring(self, owner: str) -> int:
        """What to hand to `end_measuring`."""
        return self._added.get(owner, 0)

    def end_measuring(self, owner: str, measured: int, begun: int) -> None:
        """Take what was `measured` for what the owner has, and what has been added since that began."""
        with self._lock:
            if owner in self._held:
                self._held[owner] = measured + max(self._added.get(owner, 0) - begun, 0)

    def take(self, owner: str, size: int, limit: int) -> None:
        """Add files of `size` bytes, or refuse them; 0 for what makes none at once.

        Raises:
            QuotaExceededError: the owner has too much now.
            PayloadTooLargeError: they alone are too much.
        """
        if size > limit:
            raise PayloadTooLargeError(
                f"The files are over the {limit} bytes that your files may have together.",
                extra_info={"max_file_bytes": limit},
            )
        with self._lock:
            held = self._held.setdefault(owner, 0)  # a key may be newer than the janitor's last look
            if held + size <= limit:
                self._held[owner] += size
                self._added[owner] = self._added.get(owner, 0) + size
                return
        raise refuse(
            f"Your files come to {held} bytes; {limit} are allowed.",
            "file_bytes",
            held,
            limit,
            "older files of yours are deleted, which begins with those that you have fetched",
        )
