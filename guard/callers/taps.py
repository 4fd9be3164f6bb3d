"""Keep what a running job says to its client id, for other boxes of the fleet where that client is connected.

A box asks once the job has begun, so the start of what was said is kept for it, within bounds. How a job ends is told
by every box out of the job database, and is not passed on: it would be told twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..job import Job, JobState

log = logging.getLogger("guarded.sockets")

#: So many messages of a run, and characters of them, are kept for those that ask later.
KEPT_MESSAGES, KEPT_CHARS = 64, 2**18
#: More than that waits for no other box: its stream is ended, and it comes again.
WAITING_MESSAGES, WAITING_CHARS = 2_000, 16 * 2**20

#: They tell the end, or what is left to it.
_OF_THE_END = frozenset({"executed", "execution_success", "execution_error", "execution_interrupted"})
#: Of these only the last one counts.
_PASSING = frozenset({"progress", "progress_state"})


@dataclass(frozen=True)
class Said:
    """One message; its number grows. `kind`: the host's event, or empty for a picture."""

    number: int
    job_id: str
    kind: str
    content: str | bytes


@dataclass
class _Run:
    job: Job
    said: deque[Said] = field(default_factory=lambda: deque(maxlen=KEPT_MESSAGES))
    last: dict[str, Said] = field(default_factory=dict)
    chars: int = 0

    def keep(self, said: Said) -> None:
        if not said.kind or len(said.content) + self.chars > KEPT_CHARS:
            return
        if said.kind in _PASSING:
            self.last[said.kind] = said
        else:
            self.chars += len(said.content)
            self.said.append(said)

    def list_after(self, number: int) -> list[Said]:
        kept = [*self.said, *self.last.values()]
        return sorted((said for said in kept if said.number > number), key=lambda said: said.number)


class Tap:
    """What one other box has yet to hear. Event loop."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        """`give_up` ends the stream: the other box takes too little."""
        self.job_ids: frozenset[str] = frozenset()
        self._give_up = give_up
        self._waiting: deque[Said] = deque()
        self._chars = 0
        self._filled = asyncio.Event()

    def put(self, said: Said) -> None:
        if not said.kind and any(other.job_id == said.job_id and not other.kind for other in self._waiting):
            return  # a picture waits, and the next one comes
        self._waiting.append(said)
        self._chars += len(said.content)
        if len(self._waiting) > WAITING_MESSAGES or self._chars > WAITING_CHARS:
            self._give_up()
        self._filled.set()

    async def next(self) -> Said:
        """Wait for the next message."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        said = self._waiting.popleft()
        self._chars -= len(said.content)
        return said


class Taps:
    """What the runs of this box say. Event loop, except where a method says otherwise."""

    def __init__(self, find_sid: Callable[[Job], str | None]) -> None:
        self._find_sid = find_sid
        #: By the host's client ids: the run that speaks to it.
        self._runs: dict[str, _Run] = {}
        self._sids: dict[str, str] = {}
        self._taps: set[Tap] = set()
        self._numbers = itertools.count(1)

    def begin(self, job: Job) -> None:
        """The job begins here. The worker's thread."""
        if (sid := self._find_sid(job)) is not None:
            self._runs[sid] = _Run(job)
            self._sids[job.job_id] = sid

    def follow(self, job: Job) -> None:
        """A job has ended, or waits again. The store's thread."""
        if (job.state.settled or job.state is JobState.QUEUED) and job.job_id in self._sids:
            sid = self._sids.pop(job.job_id)
            run = self._runs.get(sid)
            if run is not None and run.job.job_id == job.job_id:
                self._runs.pop(sid, None)

    def find(self, sid: str | None) -> Job | None:
        """The job that speaks to that client id now. Any thread."""
        run = self._runs.get(sid) if sid is not None else None
        return run.job if run is not None else None

    def wants(self, sid: str | None, is_picture: bool) -> bool:
        """Whether to keep or pass on what is said to that client id. Any thread."""
        job = self.find(sid)
        return job is not None and (not is_picture or any(job.job_id in tap.job_ids for tap in list(self._taps)))

    def say(self, event: Any, data: Any, sid: str, content: str | bytes) -> None:
        """The host has sent that to the client id."""
        run = self._runs.get(sid)
        if run is None or not _is_on_its_way(event, data, run.job.job_id):
            return
        said = Said(next(self._numbers), run.job.job_id, event if isinstance(content, str) else "", content)
        run.keep(said)
        for tap in self._taps:
            if said.job_id in tap.job_ids:
                tap.put(said)

    def open(self, give_up: Callable[[], None]) -> Tap:
        tap = Tap(give_up)
        self._taps.add(tap)
        return tap

    def close(self, tap: Tap) -> None:
        self._taps.discard(tap)

    def listen(self, tap: Tap, after: Mapping[str, int]) -> None:
        """Let the tap hear these jobs, and no others; of new ones, what was said after that number."""
        new = [job_id for job_id in after if job_id not in tap.job_ids]
        tap.job_ids = frozenset(after)
        for job_id in new:
            run = self._runs.get(self._sids.get(job_id, ""))
            if run is not None and run.job.job_id == job_id:
                for said in run.list_after(after[job_id]):
                    tap.put(said)


def _is_on_its_way(event: Any, data: Any, job_id: str) -> bool:
    """Whether a message is of that run, and tells nothing of its end."""
    if not isinstance(data, dict):
        return True
    if event in _OF_THE_END or (event == "executing" and data.get("node") is None):
        return False
    return bool(data.get("prompt_id", job_id) == job_id)
