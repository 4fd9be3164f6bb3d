"""What a job store promises. :mod:`.sqlite` keeps these promises on the server's own disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

from ..job import Job, JobState, NewJob, Result, Verdict
from ..signal import Signal
from .facts import (
    Changes,
    Claimed,
    Counts,
    Ended,
    Entry,
    IdempotencyKey,
    Listing,
    Page,
    Recovery,
    Run,
    Settled,
    Standing,
    Submitted,
    Waiting,
)
from .outbox import Delivery, DeliveryState, Due


class Store(Protocol):
    """The job store. Raises `ServerUnavailableError` or `DiskFullError` through the future where it cannot write."""

    #: Each change of state, told on the store's thread once it is durable.
    changed: Signal[[Job]]

    @property
    def queued(self) -> int:
        """How many jobs waited at the last commit; costs nothing."""

    def count_queued(self, owner: str) -> int:
        """How many of the owner's jobs wait, about; costs nothing."""

    @property
    def leased(self) -> int:
        """How many slots were taken at the last commit; costs nothing."""

    def count_open(self, owner: str | None) -> int:
        """How many of the owner's jobs (None: everybody's) have not settled, as of about now; costs nothing."""

    def recover(self, holder: str, max_attempts: int) -> Future[Recovery]:
        """Deal with what `holder`'s dead process held: dispatched jobs wait again; running ones too, until they
        have been begun `max_attempts` times; jobs whose secrets died with it settle as `server_restarted`."""

    def replay(self, owner: str, key: IdempotencyKey) -> Future[Submitted | None]:
        """The job that the key made, if it made one. Raises `ConflictError` where the body was another."""

    def submit(
        self,
        new: NewJob,
        max_queued: int,
        key: IdempotencyKey | None = None,
        *,
        max_queued_of_owner: int | None = None,
    ) -> Future[Submitted]:
        """Let a job in. Raises `QueueFullError`, `ConflictError` (id or key taken)."""

    def claim(self, holder: str, max_jobs: int) -> Future[Claimed | None]:
        """Give a free slot to the next job, fairly between owners; None without a slot or a job."""

    def start(self, job_id: str) -> Future[Job | None]:
        """dispatched → running, one attempt more. None where it has settled meanwhile."""

    def validate(self, job_id: str) -> Future[Job | None]:
        """running → validating. None where it has settled meanwhile."""

    def settle(
        self, job_id: str, verdict: Verdict, result: Result | None = None, *, only_waiting: bool = False
    ) -> Future[Settled | None]:
        """Give a job its verdict, unless it has one (or, with `only_waiting`, has begun to run).

        None: no such job. The lease stays until `release`.
        """

    def release(self, job_id: str) -> Future[None]:
        """Free the job's slot."""

    def get(self, job_id: str) -> Future[Job | None]: ...

    def locate(self, job_id: str) -> Future[Waiting | None]:
        """Where a queued job stands; None where it is not queued."""

    def list_jobs(
        self, owner: str | None, states: frozenset[JobState] | None, limit: int, before: int | None = None
    ) -> Future[list[Job]]:
        """Jobs, newest first; `before` is the `number` to go on from."""

    def read_changes(self, after: int, *, owner: str | None = None, job_id: str | None = None) -> Future[Changes]:
        """What has happened behind the change of that number, to one owner's jobs, to one job, or to all.

        Not all at once where that is much: go on from `up_to`.
        """

    # What the facade shows as ComfyUI's. `owner` None: everybody's. ------------------------------------------

    def find_entry(self, job_id: str) -> Future[Entry | None]:
        """The job, unless it is hidden."""

    def list_queue(self, owner: str | None) -> Future[list[Entry]]:
        """The owner's jobs that have not settled, first come first. Where their bodies are too much together, the
        last ones come with an empty object as theirs; so it is in the history, with the earliest ones."""

    def list_history(self, owner: str | None, limit: int, offset: int | None) -> Future[list[Entry]]:
        """The owner's settled jobs that are not hidden, first settled first: from `offset` on, or the last ones."""

    def find_page(self, owner: str | None, asked: Listing) -> Future[Page]:
        """The owner's jobs that are not hidden."""

    def hide(self, owner: str | None, job_ids: Sequence[str] | None) -> Future[None]:
        """Take the owner's settled jobs (None: all of them) out of history and listing."""

    def find_maker(self, kind: str, path: str) -> Future[tuple[Job, int] | None]:
        """The last job that made a file of that name (below the root `kind`, with slashes), and which artifact."""

    def list_overdue(self, created_before_ms: int) -> Future[list[Job]]:
        """Queued and dispatched jobs that were admitted before that time."""

    def list_standings(self) -> Future[list[Standing]]:
        """All queued jobs, next one first, if every owner goes on taking turns."""

    def list_recent_runs(self, limit: int) -> Future[list[Run]]:
        """The last `limit` successes, oldest first."""

    def count_jobs(self, owner: str | None = None) -> Future[Counts]:
        """Of everybody's jobs, or of one owner's."""

    def count_endings(self, from_ms: int, before_ms: int) -> Future[list[Ended]]:
        """What ended in that time. Ask for an hour or so at a time: others wait for the reader meanwhile."""

    def list_template_runs_ms(self, owner: str | None, limit: int, since_ms: int) -> Future[list[tuple[str, int]]]:
        """(template, run time) of the successes since then among the last `limit` jobs, newest first."""

    def list_missed(self, owner: str, client_id: str, since_ms: int, limit: int) -> Future[list[Job]]:
        """The client id's jobs that settled after `since_ms` without `mark_heard`: the last `limit`, oldest first."""

    def mark_heard(self, job_id: str) -> Future[None]:
        """A websocket of the job's client id has been sent the verdict."""

    # The outbox of webhooks: a change of state that somebody wants to hear of puts its delivery in, in one commit. ----

    def find_due_deliveries(
        self, now_ms: int, limit: int, *, under_way: Collection[int], full: Collection[str]
    ) -> Future[Due]:
        """Up to `limit` deliveries to try: of each job the first one only, none of the numbers `under_way`, and none
        for the targets in `full`."""

    def record_attempt(
        self, number: int, state: DeliveryState, next_at_ms: int, status: int | None, error: str | None
    ) -> Future[None]:
        """An attempt has ended; the delivery is now in `state`."""

    def list_deliveries(
        self, owner: str | None, states: frozenset[DeliveryState], limit: int, before: int | None = None
    ) -> Future[list[Delivery]]:
        """Deliveries, newest first; `before` is the `number` to go on from."""

    def redeliver(self, webhook_id: str, owner: str | None) -> Future[Delivery | None]:
        """Try that delivery again, as if it were new; None where there is none (or it is another owner's)."""

    # What the janitor asks. ----------------------------------------------------------------------------------

    def list_open_numbers(self) -> Future[list[int]]:
        """The numbers of all jobs that have not settled."""

    def read_bodies(self, numbers: Sequence[int]) -> Future[tuple[list[bytes], int]]:
        """The bodies of the first few of `numbers` (some MiB together), and how many numbers that dealt with."""

    def mark_fetched(self, job_id: str, artifact: int) -> Future[None]:
        """The owner has got that result file."""

    def select_unread(self, kind: str, paths: Sequence[str], since_ms: int) -> Future[frozenset[str]]:
        """Which of the files (paths below the root `kind`, with slashes) belong to a job that succeeded after
        `since_ms` and whose owner has not fetched them."""

    def list_unread(self, since_ms: int, at_most: int) -> Future[dict[str, frozenset[str]] | None]:
        """All such files by root; None where there are more than `at_most`."""

    def forget(self, settled_before_ms: int, limit: int) -> Future[int]:
        """Delete up to `limit` jobs that settled before that time, with all that is known of them; how many."""

    def close(self) -> None:
        """Finish what was handed in and close. Later calls fail."""
