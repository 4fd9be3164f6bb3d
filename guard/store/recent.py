"""Remember the jobs that changed last: who asks for one again and again need not wait for the disk."""

from __future__ import annotations

import marshal
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..job import Job

#: At most so many jobs are remembered, and so many bytes of them. Python's garbage collector, which holds up all
#: threads, looks at some ten objects of each.
JOBS = 2_000
BYTES = 32 * 2**20
#: What a job takes without what callers and nodes wrote into it, and what each of its files takes.
JOB_BYTES, FILE_BYTES, PUT_BYTES = 2_000, 1_000, 300
#: What each value takes beside what it says: a list of one number is two bytes of JSON, and an object to the collector.
VALUE_BYTES = 100


class Recent:
    """The jobs that changed last in this process, as the last commit has left them.

    The writer's thread changes it; any thread reads it.
    """

    def __init__(self, jobs: int = JOBS, max_bytes: int = BYTES) -> None:
        self._max_jobs = jobs
        self._max_bytes = max_bytes
        #: Each with its size, the one that changed last at the end.
        self._jobs: OrderedDict[str, tuple[Job, int]] = OrderedDict()
        self._bytes = 0

    def get(self, job_id: str) -> Job | None:
        """The job; None where it is not remembered, which says nothing of whether there is one."""
        known = self._jobs.get(job_id)
        return None if known is None else known[0]

    def update(self, changed: Mapping[str, Job | None]) -> None:
        """Remember jobs as a commit has left them; None: it has deleted that one."""
        for job_id, job in changed.items():
            size = None if job is None else _measure(job)
            if job is None or size is None or size > self._max_bytes:
                self._forget(job_id)
                continue
            known = self._jobs.get(job_id)
            # In one step, so that no reader meanwhile finds the job gone.
            self._jobs[job_id] = job, size
            self._jobs.move_to_end(job_id)
            self._bytes += size - (known[1] if known is not None else 0)
            while len(self._jobs) > self._max_jobs or self._bytes > self._max_bytes:
                self._forget(next(iter(self._jobs)))

    def clear(self) -> None:
        """Forget all: the tables may say something else now."""
        self._jobs = OrderedDict()
        self._bytes = 0

    def _forget(self, job_id: str) -> None:
        known = self._jobs.pop(job_id, None)
        if known is not None:
            self._bytes -= known[1]


def _measure(job: Job) -> int | None:
    """About how many bytes the job takes; None where it holds what did not come out of JSON."""
    details = job.verdict.details if job.verdict is not None else {}
    parts = [part for part in (job.parameters, job.metadata, job.result.outputs, details) if part]
    try:
        written = sum(len(marshal.dumps(part, 2)) for part in parts) + VALUE_BYTES * sum(map(count_values, parts))
    except ValueError:
        return None
    return JOB_BYTES + FILE_BYTES * len(job.result.artifacts) + PUT_BYTES * len(job.puts) + written


def count_values(whole: Any) -> int:
    """How many values are in it, however deep."""
    waiting, seen = [whole], 0
    while waiting:
        item = waiting.pop()
        held = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        seen += len(held)
        waiting += held
    return seen
