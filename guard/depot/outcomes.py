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
#: In a fleet a file that is not here may be on a machine whose box had this name, and has another one now. Each looks
#: for such files of its own so often, at so many rows at once; after so many attempts here a file is nowhere.
ADOPT_S = 30.0
_ADOPTED_AT_ONCE = 100
_VAIN = 10
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
    def list_orphans(self, box: str, before: str, after: int, limit: int) -> Future[list[Deposit]]: ...
    def adopt_deposit(self, box: str, number: int) -> Future[None]: ...
    def count_deposits(self, box: str) -> Future[int]: ...
    def note_kept(self, owner: str, files: Sequence[StoredFile], job_id: str) -> Future[None]: ...


class Deposits(Attempts[Deposit]):
    """The results that the depot does not have yet. Event loop, but for `put_all`."""

    WHAT = "results into the depot"
    LOG = log

    def __init__(
        self,
        depot: Depot,
        results: Results,
        store: Records,
        clock: Clock,
        timeout_s: float,
        find_own: Callable[[], str],
    ) -> None:
        """`timeout_s`: how long a verdict waits for its files at most. `find_own`: the name of this box, which another
        process may take from it."""
        super().__init__(clock)
        self._find_own, self._first = find_own, find_own()
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
            (file.index, is_copy, self._find_own())
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

    async def adopt(self, after: int) -> int:
        """Take over what boxes had that are gone, as far as it lies here: this one had their name, or has their disk.

        Looks at some, those behind `after`; returns behind which to go on. Raises GuardError.
        """
        if self._depot.is_away:
            return after
        orphans = await wrap_future(self._store.list_orphans(self._find_own(), self._first, after, _ADOPTED_AT_ONCE))
        for orphan in orphans:
            file = find_file(await wrap_future(self._store.get(orphan.job_id)), orphan)
            handle = await asyncio.to_thread(self._results.open_here, file) if file is not None else None
            if handle is not None:
                handle.close()
                await wrap_future(self._store.adopt_deposit(self._find_own(), orphan.number))
                waiting = await wrap_future(self._store.count_deposits(self._find_own()))
                with self._lock:
                    self.waiting = waiting
                self.filled()
        return orphans[-1].number if orphans else 0

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

        self._store.count_deposits(self._find_own()).add_done_callback(note)
        self.filled()

    def follow(self, job: Job) -> None:
        """A new state is durable. The store's thread."""
        if job.result.unstored:
            with self._lock:
                self.waiting += len(job.result.unstored)
            self.filled()

    def hurry(self) -> None:
        """The depot is back. Any thread."""
        self._store.hurry_deposits(self._find_own()).add_done_callback(lambda _done: self.filled())

    def _find(self, now_ms: int, limit: int, under_way: Collection[int], full: Collection[str]) -> Future[Due[Deposit]]:
        if not self._depot.is_away:
            return self._store.find_due_deposits(self._find_own(), now_ms, limit, under_way=under_way)
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

    def __init__(self, deposits: Deposits, depot: Depot, store: Records, *, has_others: bool = False) -> None:
        """`has_others`: other boxes may have what is not here."""
        super().__init__(deposits)
        self._has_others = has_others
        self._deposits = deposits
        self._depot = depot
        self._store = store

    async def adopt(self) -> None:
        """Look for what others have left here, now and then, for ever."""
        after = 0
        while True:
            await asyncio.sleep(ADOPT_S)
            try:
                after = await self._deposits.adopt(after)
            except GuardError as error:  # of its own troubles the store tells
                log.debug("what boxes have left that are gone cannot be looked up: %s", error)
            except Exception:
                log.exception("what boxes have left that are gone cannot be looked up")

    async def attempt(self, delivery: Deposit) -> Attempt:
        if self._depot.is_away:
            return Attempt(error="the depot is away")
        job = await wrap_future(self._store.get(delivery.job_id))
        file = find_file(job, delivery)
        if file is None:
            return Attempt(error="the job has no such file", hopeless=True)
        try:
            is_in = await asyncio.to_thread(self._deposits.put, file)
        except ServerUnavailableError:
            return Attempt(error="the depot is away")
        if job is None or not is_in:
            is_vain = not self._has_others or delivery.attempts + 1 >= _VAIN
            return Attempt(error="the file is no longer what the job made", hopeless=is_vain)
        await wrap_future(self._store.note_kept(job.owner, [describe_stored(file)], job.job_id))
        return Attempt(200)


def find_file(job: Job | None, deposit: Deposit) -> Artifact | None:
    """The file of that job that is to be put in; None where it has no such."""
    artifacts = job.result.artifacts if job is not None else ()
    original = artifacts[deposit.artifact] if deposit.artifact < len(artifacts) else None
    return original.copy if original is not None and deposit.is_copy else original


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
