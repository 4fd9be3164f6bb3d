"""Open a result in the form in which it was asked for: its converted copy, where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import IO, NamedTuple, Protocol

from ..job import Artifact
from ..results.containers import sniff
from ..results.opener import ArtifactOpener

_HEAD = 64


class Places(Protocol):
    """What this asks of the host; `Host` says more."""

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None: ...


class Served(NamedTuple):
    """An open file, at its beginning, and its media type. Whoever asked for it closes it."""

    handle: IO[bytes]
    mime: str


class Opener:
    """Any thread, not the event loop."""

    def __init__(self, host: Places) -> None:
        self._host = host
        self._opener = ArtifactOpener()

    def open(self, artifact: Artifact) -> Served | None:
        """None where the file is gone, or is no longer what has passed."""
        file = artifact.copy or artifact
        path = self._host.file(file.type, file.subfolder, file.filename)
        handle = self._opener.open(file, path) if path is not None else None
        if handle is None:
            return None
        handle.seek(0)
        if file is not artifact and artifact.converted is not None:
            return Served(handle, artifact.converted.mime)
        kind = sniff(handle.read(_HEAD))
        handle.seek(0)
        return Served(handle, kind.mime if kind is not None else "application/octet-stream")
