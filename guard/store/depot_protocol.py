"""What a job store promises of the depot's files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

from ..job import Artifact
from ..outgoing import StoredFile
from .depot_files import Deposit, Holder
from .kept import Kept
from .outbox import Due


class DepotRecords(Protocol):
    """A part of :class:`.protocol.Store`, which says more."""

    def find_uploads(self, owner: str, paths: Sequence[str]) -> Future[dict[str, str]]:
        """Find what the depot has of these files of the owner's below input: its keys by path."""

    def note_uploads(self, owner: str, files: Sequence[StoredFile]) -> Future[None]:
        """Note that the depot has these files of the owner's."""

    def claim_upload(self, owner: str, wanted: Sequence[tuple[str, bool]], file: StoredFile) -> Future[str]:
        """Choose a name for that upload of the owner's: the first under which it is known already, or nothing is, here
        (the second of each pair) or on any other box. Of two at once, one gets it. Empty: there is none."""

    def list_uploads(self, owner: str, limit: int) -> Future[list[str]]:
        """List what the owner's uploads are called that the depot has, by name: those of the first `limit` that lie in
        no subfolder, and none that is called by its content."""

    def find_newer_upload(self, owner: str, path: str, key: str, since_ms: int) -> Future[str | None]:
        """Find what the depot has of that file of the owner's below input, if it is another one than `key` and came
        since then: its key."""

    def select_inputs(self, keys: Sequence[str]) -> Future[frozenset[str]]:
        """Select the depot's keys that are somebody's uploads."""

    def forget_uploads(self, key: str) -> Future[None]:
        """Forget that the depot has it."""

    def note_kept(self, owner: str, files: Sequence[StoredFile], job_id: str) -> Future[None]:
        """Note that the depot has these files of the owner's, which the job has made."""

    def count_kept(self, owners: Sequence[str]) -> Future[dict[str, int]]:
        """Count the bytes that the depot has of each of the owners, `FILE_BYTES` for each file with them."""

    def list_oldest_kept(self, owner: str, before_ms: int, limit: int) -> Future[list[Kept]]:
        """List what the depot has of the owner and was put in before that time, the oldest first, and those last of
        whose job some files were not fetched."""

    def forget_kept(self, owner: str, key: str) -> Future[None]:
        """Forget that the depot has it as the owner's."""

    def forget_kept_before(self, at_ms: int, limit: int) -> Future[int]:
        """Forget up to `limit` files that were put in before that time; how many there were."""

    def list_unread_files(
        self, since_ms: int, after: int, limit: int
    ) -> Future[list[tuple[int, tuple[Artifact, ...]]]]:
        """List the files of up to `limit` jobs that succeeded since then and of which some were not fetched: the
        numbers of the jobs above `after`, the smallest first, each with its files."""

    def find_due_deposits(
        self, box: str, now_ms: int, limit: int, *, under_way: Collection[int]
    ) -> Future[Due[Deposit]]:
        """Find up to `limit` results of that box to put into the depot now; none whose number is `under_way`."""

    def record_deposit(self, after: Deposit) -> Future[None]:
        """Note how an attempt ended: the deposit as it is `after` that."""

    def hurry_deposits(self, box: str) -> Future[None]:
        """Make all of the box's deposits due now."""

    def find_holder(self, job_id: str, artifact: int, is_copy: bool) -> Future[Holder | None]:
        """Find the box that has a result which the depot does not have yet; else the one that has made it, which may
        have what the depot has lost."""

    def list_orphans(self, box: str, before: str, after: int, limit: int) -> Future[list[Deposit]]:
        """List up to `limit` results that the depot does not have yet, of boxes that are not there, or of `before`:
        their numbers above `after`, the smallest first. `box`: this one; `before`: what it was called first."""

    def adopt_deposit(self, box: str, number: int) -> Future[None]:
        """Let the box put that result in, now."""

    def count_deposits(self, box: str) -> Future[int]:
        """Count the results of the box that the depot does not have yet."""
