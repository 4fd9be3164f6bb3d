"""Hold back polls that would be told nothing new, for a moment: they hear of a change sooner by that, and cost less."""

from __future__ import annotations

import time
from collections import OrderedDict

from ..client import Client
from ..job import Job, JobState

#: A caller hears the same of a job once in this time, and so many times as long while the job waits: its place is
#: looked up no more often (`TOLD_AGAIN_S` in :mod:`.places`).
PACE_S = 0.1
WAITING = 5.0
#: Who was told less than this ago hears of the next state only then, unless it is the last one.
NEWS_S = 0.1
#: … and so long after that state came at the earliest: of a small job the last one follows at once.
SETTLES_S = 0.05
#: So many callers' jobs are remembered, those that were polled last.
KEPT = 10_000


class Polls:
    """Knows what callers were told last. Event loop."""

    def __init__(self) -> None:
        #: By caller and job: the number of the state, and when.
        self._told: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def hold_s(self, job: Job, client: Client) -> float:
        """For how long to wait for a change before the caller is told of the job as it is."""
        if job.state.settled or (told := self._told.get((client.owner, job.job_id))) is None:
            return 0.0
        event_id, at_s = told
        pace_s = PACE_S * WAITING if job.state is JobState.QUEUED else PACE_S
        return max(at_s + (NEWS_S if event_id != job.event_id else pace_s) - time.monotonic(), 0.0)

    def note(self, job: Job, client: Client) -> None:
        """The caller is being told of the job."""
        key = client.owner, job.job_id
        if job.state.settled:
            self._told.pop(key, None)
            return
        self._told[key] = job.event_id, time.monotonic()
        self._told.move_to_end(key)
        if len(self._told) > KEPT:
            self._told.popitem(last=False)
