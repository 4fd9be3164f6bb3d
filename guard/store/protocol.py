# Over 400 lines: a method for each thing that the store does, with its promise.
"""What a job store promises. :mod:`.table_store` keeps these promises on a database's tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

from ..errors import DiskFullError
from ..job import Job, JobState, NewJob, Result, Verdict
from ..quotas import Taking
from ..signal import Signal
from ..spent import Spent
from .alarms import Alarm, NewAlarm
from .depot_protocol import DepotRecords
from .facts import (
    Changes,
    Claimed,
    Counts,
    Ended,
    Entry,
    Found,
    Head,
    IdempotencyKey,
    Listing,
    Page,
    Recovery,
    Run,
    Settled,
    Size,
    Standing,
    Submitted,
    Waiting,
    Wanted,
)
from .outbox import Delivery, DeliveryState, Due
from .puts import PutDelivery
from .spending import Spending


class Store(DepotRecords, Protocol):
    """The job store.

    Each method that returns a :class:`concurrent.futures.Future` may be called on any thread and returns at once. When
    the future is done, the change is on disk and every listener has been told. Changes take effect in the order of the
    calls: of two verdicts for one job, the first one holds. A future raises `ServerUnavailableError` or
    `DiskFullError` where the database cannot be used.

    `owner` None stands for everybody, where a method takes it.
    """

    #: Announces each change of state on the store's thread, once it is on disk.
    changed: Signal[[Job]]
    #: The same for changes that another box has made, where boxes share the database. All come in one order.
    arrived: Signal[[Job]]
    #: As this server becomes a box of a fleet, each job that another one runs by then. That is no change.
    found: Signal[[Job]]
    #: Announces on the store's thread that the database is in use and what was recovered, once in a process.
    opened: Signal[[Recovery]]

    @property
    def trouble(self) -> str | None:
        """Why the database cannot be used now; None where it can. Any thread."""

    @property
    def failing(self) -> str | None:
        """Why the last change failed, until one succeeds; each is tried all the same. Any thread."""

    @property
    def lacks_readers(self) -> bool:
        """Whether what is looked up has failed, and would again, although the database is open. Any thread."""

    @property
    def unreadable_s(self) -> float:
        """For how long nobody has been able to read the database; 0 where this or another process is. Any thread."""

    @property
    def silent_s(self) -> float:
        """How long the oldest change that is not on disk has waited; 0 where none does. Any thread."""

    # How large it is, as of a moment ago. Any thread. -----------------------------------------------------------

    @property
    def size(self) -> Size:
        """The bytes on the disk."""

    @property
    def max_bytes(self) -> int:
        """How large it may become; 0: no limit."""

    @property
    def thinned(self) -> tuple[int, int]:
        """How many bodies of settled jobs were deleted since the start, and their bytes."""

    def full(self) -> DiskFullError | None:
        """Why no job can be put into the queue, if so: the database is as large as it may become."""

    def relieve(self, wanted_bytes: int) -> None:
        """Delete bodies of settled jobs, whatever their age, until so many bytes are given back or free within."""

    # Counts kept in memory: they cost nothing, on any thread, and may be a commit older than the tables. --------

    #: Whether this server looks after what is enough for one of those that share the queue. Any thread.
    is_keeper: bool

    @property
    def queued(self) -> int:
        """Jobs that wait, of all owners."""

    @property
    def leased(self) -> int:
        """Slots that are taken."""

    @property
    def leases(self) -> frozenset[str]:
        """The jobs that hold them."""

    def find_token(self, job_id: str) -> str | None:
        """What the run that this server has of the job must say with its end; None where nobody else could have one."""

    @property
    def under_way(self) -> int:
        """Jobs that this server has taken and that have not settled, whether they hold a slot or not."""

    def count_queued(self, owner: str) -> int:
        """Count the owner's jobs that wait."""

    def count_open_bytes(self, owner: str) -> int:
        """Count the bytes of the bodies of the owner's jobs that have not settled."""

    def count_open(self, owner: str | None) -> int:
        """Count the owner's jobs that have not settled."""

    def has_open(self, owner: str | None) -> Future[bool]:
        """Whether there are any, also where another server of this queue has let one in just now."""

    # A job's life. ---------------------------------------------------------------------------------------------

    def recover(self, holder: str, max_attempts: int, lived_until_ms: int | None = None) -> Future[Recovery]:
        """Take up what `holder` left open when its process died.

        Dispatched jobs wait again; so do running ones that began fewer than `max_attempts` times. A dispatched job that
        the host had not taken yet (`hand_over`) counts as begun: its validation may have killed the process. Jobs that
        began that often, and jobs whose secrets died with the process, settle as `server_restarted`.
        """

    def replay(self, owner: str, key: IdempotencyKey) -> Future[Submitted | None]:
        """Find the job that an earlier request with this key made. Raises `ConflictError` if the body differed."""

    def submit(
        self,
        new: NewJob,
        max_queued: int,
        key: IdempotencyKey | None = None,
        *,
        max_queued_of_owner: int | None = None,
        max_queued_of_user: int | None = None,
        max_bytes_of_owner: int | None = None,
        takings: Sequence[Taking] = (),
        held: bool = False,
    ) -> Future[Submitted]:
        """Put a job into the queue, where its user's last job is, or a round of turns after that.

        A job that repeats one that was repeated before is not put in: the earlier one is the answer. `held`: until
        `let_go`. `takings`: what it takes of limits that boxes share. Raises `QueueFullError`, `RateLimitedError`,
        `QuotaExceededError` where the bodies of the owner's open jobs would come to more than `max_bytes_of_owner`,
        `DiskFullError` where the database may not become larger, or `ConflictError` if the job's id or key is taken.
        """

    def let_go(self) -> None:
        """Hand in what was held, for one commit, unless something else has taken it along."""

    def remind(self) -> None:
        """The same for what `validate`, `release` and `spend` were to hold, a moment later at most."""

    def hold_back(self, owners: frozenset[str]) -> None:
        """Give no slot of this server's to jobs of these owners, and of no others, until it is told otherwise."""

    def claim(self, holder: str, max_jobs: int) -> Future[Claimed | None]:
        """Give a slot to the next job; owners take turns. None if no slot is free or no job waits.

        A job that had begun when a process died has everything to itself, until it has settled: should it kill this
        process too, that costs no other job an attempt. Jobs whose prompt was deleted settle as `internal_error`.
        """

    def begin(self, holder: str, max_jobs: int, is_ready: Callable[[str], bool]) -> Future[Job | None]:
        """Give a slot to the next job and move it to running, as `claim` and `start` would, in one commit.

        None where `claim` would find no job, or the next one is not ready: `is_ready` gets its id, on the store's
        thread, and must be quick.
        """

    def hand_over(self, job_id: str) -> Future[None]:
        """Note that the host has taken the job that holds a slot."""

    def start(self, job_id: str) -> Future[Job | None]:
        """Move a dispatched job to running, and count the attempt. None if it has settled."""

    def validate(self, job_id: str, held: bool = False) -> Future[Job | None]:
        """Move a running job to validating. None if it has settled. `held`: until `remind`, or the next commit."""

    def settle(
        self,
        job_id: str,
        verdict: Verdict,
        result: Result | None = None,
        *,
        only_waiting: bool = False,
        token: str | None = None,
        here: bool = False,
    ) -> Future[Settled | None]:
        """Give a job its verdict, unless it has one or, with `only_waiting`, has begun to run.

        `token`: this is how the run of that token has ended, which counts only while it has the job. `here`: the caller
        has nothing else to do, and may do it itself.

        None if there is no such job. The job keeps its slot until `release`. Raises `InternalError` where the verdict
        or the result is nothing that any database could hold.
        """

    def release(self, job_id: str, held: bool = False) -> Future[None]:
        """Free the job's slot. `held`: as of `validate`."""

    def forget(self, settled_before_ms: int, limit: int) -> Future[int]:
        """Delete up to `limit` jobs that settled before that time, with everything about them; return how many."""

    # Jobs. -----------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Future[Job | None]:
        """Read one job. Where memory has it, the future is done at once."""

    def recall(self, job_id: str) -> Job | None:
        """The job as the last commit has left it, where memory has it; None says nothing. Any thread, at once."""

    def find_retry(self, job_id: str) -> Future[Job | None]:
        """Find the job that repeats that one."""

    def find_body(self, job_id: str) -> Future[tuple[bytes | None, int | None]]:
        """Find what the job was submitted with, also of one that is hidden, or None and, if known, since when not."""

    def locate(self, job_id: str) -> Future[Waiting | None]:
        """Say where a job stands in the queue; None if it is not queued.

        Behind and before more than 10,000 jobs of its own owner and priority the position is an estimate.
        """

    def list_jobs(
        self, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None = None
    ) -> Future[list[Job]]:
        """List up to 1000 jobs, newest first; `before` is the `number` of the last one of the page before."""

    def search(self, owner: str | None, wanted: Wanted, limit: int, before: int | None = None) -> Future[Found]:
        """Find up to `limit` of the owner's jobs that match, newest first or, if asked, last settled first.

        It looks at a thousand jobs at most: a page may hold few or none, and those after it more. `before` is the
        `next` of the page before.
        """

    def list_overdue(self, created_before_ms: int) -> Future[list[Job]]:
        """List queued and dispatched jobs that came in before that time: a thousand of each, the oldest."""

    def list_standings(self) -> Future[list[Standing]]:
        """List the first 10,000 queued jobs in the order in which they will run."""

    def list_heads(self, after: int, limit: int) -> Future[list[tuple[str, Head]]]:
        """List up to `limit` jobs above the number `after` that have not settled, the smallest first: ids and heads."""

    def list_open_numbers(self, after: int, limit: int) -> Future[list[int]]:
        """List the numbers above `after` of up to `limit` jobs that have not settled, the smallest first."""

    def read_bodies(self, numbers: Sequence[int]) -> Future[tuple[list[bytes], int]]:
        """Read bodies by their jobs' numbers, a few MiB at once; return them and how many numbers they cover.

        Jobs that are gone have no body in the list, but count as covered.
        """

    def read_changes(self, after: int, *, owner: str | None = None, job_id: str | None = None) -> Future[Changes]:
        """Read the changes of state after the one of that number, of one owner, of one job, or of all.

        A long list comes in parts: continue from `up_to`.
        """

    # Verdicts that a websocket has not been sent. --------------------------------------------------------------

    def list_missed(self, owner: str, client_id: str, since_ms: int, limit: int) -> Future[list[Job]]:
        """List the client id's jobs that settled since then and were not marked as heard.

        The newest `limit` of them, oldest first.
        """

    def list_states(self, job_id: str) -> Future[list[tuple[JobState, int]]]:
        """List the states that the job has been in, each with its time: the last 100, oldest first."""

    def list_deliveries_of(self, job_id: str, limit: int) -> Future[list[Delivery]]:
        """List the job's last webhooks, oldest first."""

    def mark_heard(self, job_id: str) -> Future[None]:
        """Note that a websocket of the job's client id was sent the verdict."""

    # What the facade shows as ComfyUI's queue and history. -----------------------------------------------------

    def find_entry(self, job_id: str) -> Future[Entry | None]:
        """Read a job with its body, which may be gone once it has settled; None if it is hidden."""

    def list_queue(self, owner: str | None) -> Future[list[Entry]]:
        """List the owner's jobs that have not settled, oldest first: the first 1000.

        The first 200 have their bodies; the others, and the newest where these are too large together, an empty object.
        """

    def list_history(self, owner: str | None, limit: int, offset: int | None) -> Future[list[Entry]]:
        """List the owner's settled jobs that are not hidden, first settled first: from `offset`, or the last ones.

        Only the last 10,000 of them are there; up to 1000 come at once.
        The bodies of 200 come with them, where these are not too large together. The other jobs have an empty object
        as theirs: the last ones of a page with an `offset`, otherwise the earliest.
        """

    def find_page(self, owner: str | None, asked: Listing) -> Future[Page]:
        """Find the owner's jobs that match and are not hidden: up to 1000 at once.

        Looked at are the 10,000 newest that have not settled, and the last 10,000 that have.
        """

    def hide(self, owner: str | None, job_ids: Sequence[str]) -> Future[None]:
        """Take those of the owner's jobs that have settled out of history and listing."""

    def clear_history(self, owner: str) -> Future[None]:
        """Take all of the owner's jobs that have settled out of history and listing."""

    # Result files. `kind` is ComfyUI's (output or temp); paths are below that root, with slashes. ---------------

    def find_maker(self, kind: str, path: str) -> Future[tuple[Job, int] | None]:
        """Find the last job that made a file of that name, and the artifact's index."""

    def list_made(self, kind: str, after: str, limit: int) -> Future[list[str]]:
        """List files that jobs have made and that are still in the records, by their paths: those behind `after`."""

    def select_made(self, kind: str, paths: Sequence[str]) -> Future[frozenset[str]]:
        """Select those that jobs have made and that are still in the records."""

    def mark_fetched(self, job_id: str, artifact: int) -> Future[None]:
        """Note that the owner has fetched that result file."""

    def select_unread(self, kind: str, paths: Sequence[str], since_ms: int) -> Future[frozenset[str]]:
        """Select the files of jobs that succeeded since then and whose owner has not fetched them."""

    def list_unread(self, since_ms: int, at_most: int) -> Future[dict[str, frozenset[str]] | None]:
        """List all such files by kind; None if there are more than `at_most`."""

    # Figures. --------------------------------------------------------------------------------------------------

    def count_jobs(self, owner: str | None = None) -> Future[Counts]:
        """Count the owner's jobs that wait, hold a slot, and run."""

    def count_endings(self, from_ms: int, before_ms: int) -> Future[list[Ended]]:
        """Count what ended in that time. Ask for an hour or so at a time: other look-ups wait meanwhile."""

    def list_recent_runs(self, limit: int) -> Future[list[Run]]:
        """List the last `limit` successes, oldest first."""

    def list_template_runs_ms(self, owner: str | None, limit: int, since_ms: int) -> Future[list[tuple[str, int]]]:
        """List (template, run time) of the successes since then among the owner's last `limit` jobs, newest first."""

    # The outbox. A change of state puts its delivery in, in the same commit. -------------------------------------

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[Delivery]]:
        """Find up to `limit` deliveries to try now.

        Each job's first pending one only; none whose number is `under_way`, and none to the targets in `full`.
        """

    def record_attempt(self, after: Delivery) -> Future[None]:
        """Note how an attempt ended: the delivery as it is `after` that. Nothing if it was redelivered meanwhile."""

    def list_deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]:
        """List deliveries, newest first; `before` is the `number` of the last one of the page before."""

    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]:
        """Make a delivery pending again, as if it were new; None if the owner has no such delivery."""

    # Results to be put to addresses. They become due with their job's success, in the same commit. ---------------

    def find_due_puts(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due[PutDelivery]]:
        """Find up to `limit` puts to try now; none whose number is `under_way`, and none of the targets in `full`."""

    def record_put(self, after: PutDelivery) -> Future[None]:
        """Note how an attempt ended: the put as it is `after` that. What was stored counts as fetched."""

    # What operators should look at. ----------------------------------------------------------------------------

    def put_alarms(self, alarms: Sequence[NewAlarm]) -> Future[None]:
        """Write them down; of all only the newest 1000 are kept."""

    def list_alarms(self, limit: int, before: int | None = None) -> Future[list[Alarm]]:
        """List alarms, newest first; `before` is the `number` of the last one of the page before."""

    def count_unseen_alarms(self) -> Future[int]:
        """Count those that nobody has marked as seen."""

    def mark_alarms_seen(self, numbers: Sequence[int], up_to: int) -> Future[int]:
        """Mark those of these numbers, and all up to `up_to`; return how many are left that are not."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed in is on disk; False where it is not by then. Blocks."""

    def close(self) -> None:
        """Finish what was handed in, then close. Later calls fail."""

    # What runs took. ---------------------------------------------------------------------------------------------

    def spend(self, job: Job, spent: Spent, held: bool = False) -> Future[None]:
        """Count what a run of the job has taken of the worker. `held`: as of `validate`."""

    def read_spending(self, owner: str | None, first: str, last: str, limit: int) -> Future[list[Spending]]:
        """What runs took on the days from `first` to `last`, in order."""
