"""Open a result where it is: on this box, or in the depot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from ..job import Artifact
from ..results.opener import ArtifactOpener
from .depot import Depot
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

    def __init__(self, host: Places, depot: Depot | None = None) -> None:
        self._host = host
        self.depot = depot
        self._opener = ArtifactOpener()

    def open(self, file: Artifact) -> Opened | None:
        """Open the very bytes that passed the checks; None where they are nowhere any more.

        Raises ServerUnavailableError where they may be in a depot that is away.
        """
        handle = self.open_here(file)
        if handle is not None:
            return Opened(handle, os.fstat(handle.fileno()).st_mtime)
        found = self.depot.open(make_key(file.sha256, file.filename), file.bytes) if self.depot is not None else None
        return Opened(*found) if found is not None else None

    def open_here(self, file: Artifact) -> IO[bytes] | None:
        """The same of this box alone. Raises nothing."""
        path = self._host.file(file.type, file.subfolder, file.filename)
        return self._opener.open(file, path) if path is not None else None

    def sign(self, file: Artifact) -> str | None:
        """An address at which the depot itself serves the file for a minute; None where it does not have the file, or
        makes no such addresses. Raises ServerUnavailableError."""
        if self.depot is None or not self.depot.can_sign:
            return None
        key = make_key(file.sha256, file.filename)
        found = self.depot.stat(key)
        return self.depot.sign(key) if found is not None and found.bytes == file.bytes else None
