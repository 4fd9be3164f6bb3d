"""Show the guard's waiting and settled jobs in the host's own queue and history.

For `native.mode = "guarded"`: the editor and other clients of the host's own routes see, delete and clear the guard's
jobs like the host's own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import islice
from typing import Any, Protocol

from ..client import LOCAL
from ..errors import CancelledError, GuardError
from ..host import Host
from ..job import Job
from ..life.settle import Settler
from ..store import Entry, Head, Settled
from . import as_comfyui
from .bodies import HistoryEntry
from .jobs import ENDED_AT_ONCE, Jobs

log = logging.getLogger("guarded.backlog")

#: So many jobs are read at once.
PAGE = 1000
#: At most this many waiting jobs are shown at once, the next ones first, and so many of them with their prompts.
SHOWN = 1000
WHOLE = 200
#: Rows with prompts are cached up to this many bytes; jobs beyond are shown without their prompts.
KEPT_BYTES = 2 * 2**20
#: A reader of the host's queue holds up the event loop. It waits for rows that are not cached for this long in all,
#: and for one body for this long.
LOOK_S = 0.02
BODY_S = 2.0

_TAKEN_OUT = CancelledError("The job was taken out of ComfyUI's queue.")


class Entries(Protocol):
    """What the backlog asks of the job store: see :class:`guard.store.Store`."""

    def list_heads(self, after: int, limit: int) -> Future[list[tuple[str, Head]]]: ...
    def find_entry(self, job_id: str) -> Future[Entry | None]: ...
    def hide(self, owner: str | None, job_ids: Sequence[str]) -> Future[None]: ...
    def clear_history(self, owner: str) -> Future[None]: ...


class Backlog:
    """See :class:`guard.host.Backlog`. Any thread, except where it says so."""

    def __init__(self, store: Entries, host: Host, settler: Settler, jobs: Jobs) -> None:
        self._store = store
        self._host = host
        self._settler = settler
        self._jobs = jobs
        #: Oldest first. Only the store's thread changes it.
        self._open: dict[str, Head] = {}
        #: Cached rows of open jobs, each with the size of its body, and the sum of these sizes.
        self._rows: dict[str, tuple[list[Any], int]] = {}
        self._bytes = 0
        #: The sizes of bodies that did not fit into the cache.
        self._large: dict[str, int] = {}
        self._lock = threading.Lock()
        #: Jobs that are being hidden (None: all), and so are shown in the history no more.
        self._hiding: set[str | None] = set()

    def load(self) -> None:
        """Read the jobs that an earlier process left. Blocks. The store's thread, before it tells of any other job."""
        heads: dict[str, Head] = {}
        after = 0
        while page := self._store.list_heads(after, PAGE).result():
            heads.update(page)
            after = page[-1][1][0]
        self._open = heads
        if self._open:
            self._host.queue_changed()

    def follow(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        if not job.state.settled:
            is_new = job.job_id not in self._open
            if is_new:
                self._open[job.job_id] = as_comfyui.head(job)
                self._host.queue_changed()
            return
        with self._lock:
            self._open.pop(job.job_id, None)
            self._bytes -= self._rows.pop(job.job_id, ([], 0))[1]
            self._large.pop(job.job_id, None)
        self._host.queue_changed()

    def count(self, known: Collection[str]) -> int:
        return max(len(self._open) - sum(job_id in self._open for job_id in known), 0)

    def rows(self, known: Collection[str]) -> list[list[Any]]:
        ends_s = time.monotonic() + LOOK_S
        rows = []
        shown = islice((job_id for job_id in list(self._open) if job_id not in known), SHOWN)
        for number, job_id in enumerate(shown):
            has_room = number < WHOLE and self._bytes + self._large.get(job_id, 1) <= KEPT_BYTES
            if job_id not in self._rows and has_room and time.monotonic() < ends_s:
                self._read_row(job_id)
            if number < WHOLE and (cached := self._rows.get(job_id)) is not None:
                rows.append(cached[0])
            elif (head := self._open.get(job_id)) is not None:
                rows.append(as_comfyui.bare_row(job_id, head))
        return rows

    def row(self, job_id: str) -> list[Any] | None:
        cached = self._rows.get(job_id)
        return cached[0] if cached is not None else self._read_row(job_id)

    def take_out(self, job_ids: Collection[str]) -> None:
        self._take_out(iter(list(job_ids)))

    def _take_out(self, job_ids: Iterator[str]) -> None:
        """End some, and the next ones once these are on disk: what is handed in meanwhile waits for a few only."""
        some = islice((job_id for job_id in job_ids if job_id in self._open), ENDED_AT_ONCE)
        endings = [self._settler.end_waiting(job_id, _TAKEN_OUT) for job_id in some]
        for ending in endings:
            ending.add_done_callback(self._end_begun)
        if endings:
            endings[-1].add_done_callback(lambda _done: self._take_out(job_ids))

    def _end_begun(self, done: Future[Settled | None]) -> None:
        """End a job that began in the moment in which it was taken out: whoever did that was told that it is out,
        and could not see it run. The store's thread.
        """
        settled = done.result()
        if settled is not None and not settled.job.state.settled:
            self._settler.end(settled.job, _TAKEN_OUT)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._open

    def is_of_a_key(self, job_id: object) -> bool:
        head = self._open.get(job_id) if isinstance(job_id, str) else None
        return head is not None and head[-1] != LOCAL.owner

    def waiting(self, known: Collection[str]) -> list[str]:
        return [job_id for job_id in list(self._open) if job_id not in known]

    def history_entry(self, job_id: str) -> HistoryEntry | None:
        if job_id in self._hiding or None in self._hiding:
            return None
        try:
            entry = self._store.find_entry(job_id).result(BODY_S)
        except (GuardError, FutureTimeoutError) as error:
            log.warning("job %s cannot be shown in ComfyUI's history: %r", job_id, error)
            return None
        if entry is None or not entry.job.state.settled:
            return None
        return as_comfyui.history_entry(entry, self._jobs.describe(entry.job, None))

    def forget(self, job_id: str | None) -> None:
        self._hiding.add(job_id)
        store = self._store
        future = store.clear_history(LOCAL.owner) if job_id is None else store.hide(None, [job_id])
        future.add_done_callback(lambda _done: self._hiding.discard(job_id))

    def _read_row(self, job_id: str) -> list[Any] | None:
        """The whole row, cached if it fits; None where the job cannot be read, or has settled."""
        try:
            entry = self._store.find_entry(job_id).result(BODY_S)
        except (GuardError, FutureTimeoutError) as error:
            log.warning("job %s cannot be shown whole in ComfyUI's queue: %r", job_id, error)
            return None
        if entry is None or entry.job.state.settled:
            return None
        row, size = as_comfyui.row(entry), len(entry.body or b"")
        with self._lock:
            if job_id in self._open and job_id not in self._rows:
                if self._bytes + size <= KEPT_BYTES:
                    self._rows[job_id] = (row, size)
                    self._bytes += size
                    self._large.pop(job_id, None)
                else:
                    self._large[job_id] = size
        return row
