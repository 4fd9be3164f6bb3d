"""Open a result where it is: on this box, in the depot, or on the box that made it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from ..errors import ServerUnavailableError
from ..job import Artifact, Job
from ..quotas.threads import SharedThreads
from ..results.opener import ArtifactOpener, copy_and_hash
from .depot import Depot, make_refusal
from .holders import Holders
from .objects import make_key


class Places(Protocol):
    """What this asks of the host; `Host` says more."""

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None: ...


class Opened(NamedTuple):
    """An open file, and when it was last changed. Whoever asked for it closes it."""

    handle: IO[bytes]
    modified_s: float


class Results:
    """Any thread, not the event loop."""

    def __init__(self, host: Places, depot: Depot | None = None, holders: Holders | None = None) -> None:
        """`holders`: has what the depot lacks."""
        self._host = host
        self.depot = depot
        self._holders = holders
        self._opener = ArtifactOpener()
        #: To open one takes as long as it is large, and as the depot is slow.
        self.threads = SharedThreads(8, "guarded-opening", 4)

    def open(self, job: Job, file: Artifact) -> Opened | None:
        """Open the very bytes that passed the checks of that job; None where they are nowhere any more.

        Raises ServerUnavailableError where they may be in a depot, or on a box, that is away.
        """
        handle = self.open_here(file)
        if handle is not None:
            return Opened(handle, os.fstat(handle.fileno()).st_mtime)
        try:
            found = self._open_stored(file)
        except ServerUnavailableError:
            if self._holders is None or (found := self._holders.open(job, file)) is None:
                raise
        else:
            if found is None and self._holders is not None:
                # Where nobody has it now, it was put in a moment ago, or is gone.
                found = self._holders.open(job, file) or self._open_stored(file)
        return Opened(*found) if found is not None else None

    def _open_stored(self, file: Artifact) -> tuple[IO[bytes], float] | None:
        return self.depot.open(make_key(file.sha256, file.filename), file.bytes) if self.depot is not None else None

    def copy(self, job: Job, file: Artifact, target: Path) -> bool:
        """Write the file to a path at which there is none; False where it is nowhere any more.

        Raises ServerUnavailableError as :meth:`open` does, OSError where the disk refuses.
        """
        opened = self.open(job, file)
        if opened is None:
            return False
        with opened.handle:
            try:
                return copy_and_hash(opened.handle, target)[0] == file.sha256
            except ConnectionError:  # where it comes from has failed
                raise make_refusal() from None

    def open_here(self, file: Artifact) -> IO[bytes] | None:
        """The same of this box alone. Raises nothing."""
        path = self._host.file(file.type, file.subfolder, file.filename)
        return self._opener.open(file, path) if path is not None else None

    def read_here(self, file: Artifact, begin: int, length: int) -> tuple[bytes, float] | None:
        """A part of it, and when it was last changed; None where it is not here. Raises OSError."""
        handle = self.open_here(file)
        if handle is None:
            return None
        with handle:
            handle.seek(begin)
            return handle.read(length), os.fstat(handle.fileno()).st_mtime

    def sign(self, file: Artifact) -> str | None:
        """An address at which the depot itself serves the file for a minute; None where it does not have the file, or
        makes no such addresses. Raises nothing: what is not to be had there may be here."""
        if self.depot is None or not self.depot.can_sign:
            return None
        key = make_key(file.sha256, file.filename)
        try:
            found = self.depot.stat(key)
            return self.depot.sign(key) if found is not None and found.bytes == file.bytes else None
        except ServerUnavailableError:
            return None
