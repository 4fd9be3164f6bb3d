"""Read a result that the depot does not have yet, or no more, from the box that made it."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from typing import IO, Any, Protocol
from urllib.error import HTTPError

from ..clock import Clock
from ..errors import ServerUnavailableError
from ..fleet import Membership, Signatures
from ..job import Artifact, Job
from ..store import Box
from ..store.depot_files import Holder
from .reader import Reader

log = logging.getLogger("guarded.depot")

#: How long the database, and a box that is asked for a part of a file, may be silent.
PATIENCE_S = 10.0
#: So much is asked for at once, at most.
PART_BYTES = 8 << 20
#: A box that has died with what the depot lacks may come back with it; after so long nobody is told to wait for it.
AWAITED_MS = 24 * 3_600_000


class Records(Protocol):
    """What this asks of the job store: see :class:`guard.store.Store`."""

    def find_holder(self, job_id: str, artifact: int, is_copy: bool) -> Future[Holder | None]: ...


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_facts: Any) -> None:
        """A box leads nowhere else."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())


def make_path(job_id: str, artifact: str, which: str) -> str:
    """What a box asks another one for, below our prefix. `which`: `original` or `copy`."""
    return f"/fleet/results/{job_id}/{artifact}/{which}"


class Holders:
    """Any thread but the event loop's: it waits for the database and for other boxes."""

    def __init__(self, store: Records, clock: Clock, find_own: Callable[[], str]) -> None:
        """`find_own`: the name of this box."""
        self._store = store
        self._clock = clock
        self._find_own = find_own
        self._fleet: tuple[Membership, Signatures] | None = None

    def join(self, membership: Membership, signatures: Signatures) -> None:
        """Ask the other boxes of the fleet from now on."""
        self._fleet = membership, signatures

    def open(self, job: Job, file: Artifact) -> tuple[IO[bytes], float] | None:
        """Open the file at another box, and say when it was last changed. None: the depot has it, or it is nowhere.

        Raises ServerUnavailableError where it is to come.
        """
        is_copy = job.result.artifacts[file.index] != file
        try:
            held = self._store.find_holder(job.job_id, file.index, is_copy).result(PATIENCE_S)
        except FutureTimeoutError:
            raise ServerUnavailableError("The job store did not answer.", retry_after_s=10) from None
        if held is None:
            return None
        refusal = ServerUnavailableError(
            f"{file.filename} is on another server, and on its way into the storage.", retry_after_s=10
        )
        if self._fleet is None:
            if held.box == self._find_own() or not held.is_sure:
                return None
            raise refusal
        membership, signatures = self._fleet
        box = next((box for box in membership.boxes if box.box == held.box and box.is_alive), None)
        if box is None and held.is_sure and self._clock.now_ms() - held.since_ms > AWAITED_MS:
            return None
        if box is None or box.url is None or box.box == self._find_own():
            if held.is_sure:
                raise refusal
            return None
        asked = _Asked(box, make_path(job.job_id, str(file.index), "copy" if is_copy else "original"), signatures)
        handle: Any = Reader(asked.read, file.bytes)
        try:
            handle.read(1)
        except _GoneError:
            if not held.is_sure:
                return None
            raise refusal from None
        except ConnectionError as error:
            log.warning("%s of job %s cannot be read at %s: %s", file.filename, job.job_id, box.url, error)
            raise refusal from None
        handle.seek(0)
        return handle, asked.modified_s


class _GoneError(ConnectionResetError):
    """That box does not have the file."""


class _Asked:
    """A file of another box. One thread at a time."""

    def __init__(self, box: Box, path: str, signatures: Signatures) -> None:
        self._address = f"{box.url}/guarded{path}"
        self._sign = partial(signatures.sign, path, box.box)
        #: As that box says.
        self.modified_s = 0.0

    def read(self, begin: int, length: int) -> bytes:
        """Raises ConnectionError: whoever reads may have begun to answer."""
        ends = range(begin, begin + length, PART_BYTES)
        return b"".join(self._read_part(at, min(PART_BYTES, begin + length - at)) for at in ends)

    def _read_part(self, begin: int, length: int) -> bytes:
        headers = {**self._sign(), "Range": f"bytes={begin}-{begin + length - 1}"}
        try:
            with _DIRECT.open(urllib.request.Request(self._address, headers=headers), timeout=PATIENCE_S) as answer:
                data: bytes = answer.read(length + 1)
                self.modified_s = parsedate_to_datetime(answer.headers["Last-Modified"]).timestamp()
        except (OSError, HTTPException, ValueError, TypeError) as error:
            if isinstance(error, HTTPError):
                error.close()
                if error.code == HTTPStatus.NOT_FOUND:
                    raise _GoneError(str(error)) from None
            raise ConnectionResetError(str(error)) from None
        if len(data) != length:
            raise ConnectionResetError(f"{len(data)} of {length} bytes came")
        return data
