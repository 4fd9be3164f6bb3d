"""Open a result in the form in which it was asked for: its converted copy, where it has one."""

from __future__ import annotations

from typing import IO, NamedTuple

from ..depot.results import Results
from ..job import Artifact, Job
from ..results.containers import sniff

_HEAD = 64


class Served(NamedTuple):
    """An open file, at its beginning, and its media type. Whoever asked for it closes it."""

    handle: IO[bytes]
    mime: str


class Opener:
    """Any thread, and but for `open_beside` not the event loop."""

    def __init__(self, results: Results) -> None:
        self._results = results

    async def open_beside(self, job: Job, artifact: Artifact) -> Served | None:
        """The same as `open`, for the event loop."""
        return await self._results.threads.run(job.owner, self.open, job, artifact)

    def open(self, job: Job, artifact: Artifact) -> Served | None:
        """Open that file of the job. None where it is gone, or is no longer what has passed.

        Raises ServerUnavailableError.
        """
        file = artifact.copy or artifact
        opened = self._results.open(job, file)
        if opened is None:
            return None
        handle = opened.handle
        handle.seek(0)
        if file is not artifact and artifact.converted is not None:
            return Served(handle, artifact.converted.mime)
        kind = sniff(handle.read(_HEAD))
        handle.seek(0)
        return Served(handle, kind.mime if kind is not None else "application/octet-stream")
