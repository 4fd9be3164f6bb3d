"""Put results into the depot: with their verdict, or as soon as it goes. The store keeps what is still to be put."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

from ..clock import Clock
from ..errors import GuardError, ServerUnavailableError
from ..events.attempts import Attempt, Attempts, draw_pause_s
from ..events.carrier import Carrier
from ..job import Artifact, Job
from ..outgoing import StoredFile, Unstored
from ..results.within import run_within
from ..store import Due
from ..store.depot_files import Deposit
from ..wake import wrap_future
from .depot import Depot
from .objects import WrongBytesError, make_key
from .results import Results

log = logging.getLogger("guarded.depot")

_FIRST_RETRY_S = 1.0
#: The longest pause. The depot is one, and somebody looks all the time whether it is back.
_PAUSE_S = 60.0


class Records(Protocol):
    """What this asks of the job store: see :class:`guard.store.Store`."""

    def get(self, job_id: str) -> Future[Job | None]: ...
    def find_due_deposits(
        self, box: str, now_ms: int, limit: int, *, under_way: Collection[int]
    ) -> Future[Due[Deposit]]: ...
    def record_deposit(self, after: Deposit) -> Future[None]: ...
    def hurry_deposits(self, box: str) -> Future[None]: ...
    def count_deposits(self, box: str) -> Future[int]: ...
    def note_kept(self, owner: str, files: Sequence[StoredFile], job_id: str) -> Future[None]: ...


class Deposits(Attempts[Deposit]):
    """The results that the depot does not have yet. Event loop, but for `put_all`."""

    WHAT = "results into the depot"
    LOG = log

    def __init__(
        self, depot: Depot, results: Results, store: Records, clock: Clock, timeout_s: float, box: str
    ) -> None:
        """`timeout_s`: how long a verdict waits for its files at most. `box`: this one."""
        super().__init__(clock)
        self._box = box
        self._depot = depot
        self._results = results
        self._store = store
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        #: How many are waiting, about. Any thread.
        self.waiting = 0

    def put_all(self, artifacts: Sequence[Artifact]) -> tuple[Unstored, ...]:
        """Put a job's files in; return those that are not in when the time is over.

        Any thread but the event loop. Raises nothing.
        """
        ends_s = time.monotonic() + self._timeout_s
        return tuple(
            (file.index, is_copy, self._box)
            for file, is_copy in list_files(artifacts)
            if not self._put_within(file, ends_s - time.monotonic())
        )

    def put(self, file: Artifact) -> bool:
        """Put one file in. False where it is nowhere any more. Raises ServerUnavailableError. Not on the event loop."""
        key = make_key(file.sha256, file.filename)
        handle = self._results.open_here(file)
        if handle is None:
            found = self._depot.stat(key)  # an attempt that was given up may have come to its end
            return found is not None and found.bytes == file.bytes
        with handle:
            try:
                self._depot.put(key, handle)
            except WrongBytesError:
                return False
        return True

    def _put_within(self, file: Artifact, left_s: float) -> bool:
        if left_s <= 0 or self._depot.is_away:
            return False
        over = threading.Event()

        def put() -> bool:
            try:
                return self.put(file)
            finally:
                over.set()

        try:
            return run_within(left_s, put)
        except GuardError:
            if not over.is_set():
                self._depot.note_slow(left_s)
        except Exception:
            log.exception("%s was not put into the depot", file.filename)
        return False

    def begin(self) -> None:
        """The database is in use: go on with what waits. The store's thread."""

        def note(done: Future[int]) -> None:
            if done.exception() is None:
                self.waiting += done.result()

        self._store.count_deposits(self._box).add_done_callback(note)
        self.filled()

    def follow(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        if job.result.unstored:
            with self._lock:
                self.waiting += len(job.result.unstored)
            self.filled()

    def hurry(self) -> None:
        """The depot is back. Any thread."""
        self._store.hurry_deposits(self._box).add_done_callback(lambda _done: self.filled())

    def _find(self, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]) -> Future[Due[Deposit]]:
        if not self._depot.is_away:
            return self._store.find_due_deposits(self._box, now_ms, limit, under_way=under_way)
        none: Future[Due[Deposit]] = Future()
        none.set_result(Due([], None))  # once it is back, `hurry` calls
        return none

    def _write(self, after: Deposit) -> Future[None]:
        writing = self._store.record_deposit(after)
        writing.add_done_callback(lambda done: self._note_written(after, done))
        return writing

    def _note_written(self, after: Deposit, done: Future[None]) -> None:
        if not done.cancelled() and done.exception() is None and after.ended_at_ms is not None:
            with self._lock:
                self.waiting = max(self.waiting - 1, 0)

    def _retry_at_ms(self, delivery: Deposit, attempt: Attempt, now_ms: int) -> int | None:
        if attempt.final:
            return None
        pause_s = min(draw_pause_s(_FIRST_RETRY_S, attempt, delivery.attempts + 1), _PAUSE_S)
        return now_ms + max(int(pause_s * 1000), 1)

    def _describe_end(self, delivery: Deposit) -> str:
        return f"job {delivery.job_id}: artifact {delivery.artifact} is not put into the depot"


class Depositor(Carrier[Deposit]):
    """Puts in what is due. Event loop; other threads do it."""

    AT_ONCE = 4

    def __init__(self, deposits: Deposits, depot: Depot, store: Records) -> None:
        super().__init__(deposits)
        self._deposits = deposits
        self._depot = depot
        self._store = store

    async def attempt(self, delivery: Deposit) -> Attempt:
        if self._depot.is_away:
            return Attempt(error="the depot is away")
        job = await wrap_future(self._store.get(delivery.job_id))
        artifacts = job.result.artifacts if job is not None else ()
        original = artifacts[delivery.artifact] if delivery.artifact < len(artifacts) else None
        file = original.copy if original is not None and delivery.is_copy else original
        if file is None:
            return Attempt(error="the job has no such file", hopeless=True)
        try:
            is_in = await asyncio.to_thread(self._deposits.put, file)
        except ServerUnavailableError:
            return Attempt(error="the depot is away")
        if job is None or not is_in:
            return Attempt(error="the file is no longer what the job made", hopeless=True)
        await wrap_future(self._store.note_kept(job.owner, [describe_stored(file)], job.job_id))
        return Attempt(200)


def list_files(artifacts: Sequence[Artifact]) -> Iterator[tuple[Artifact, bool]]:
    """A job's files, its originals and their copies, and whether each is a copy."""
    for artifact in artifacts:
        yield artifact, False
        if artifact.copy is not None:
            yield artifact.copy, True


def list_stored(artifacts: Sequence[Artifact], unstored: Sequence[Unstored]) -> tuple[StoredFile, ...]:
    """What the depot has of a job's files."""
    missing = {(index, is_copy) for index, is_copy, _box in unstored}
    return tuple(
        describe_stored(file) for file, is_copy in list_files(artifacts) if (file.index, is_copy) not in missing
    )


def describe_stored(file: Artifact) -> StoredFile:
    return StoredFile("", make_key(file.sha256, file.filename), file.bytes)


#: Puts a job's files in: see :meth:`Deposits.put_all`.
PutAll = Callable[[Sequence[Artifact]], tuple[Unstored, ...]]
