"""What admission asks of the job store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from ..job import NewJob
from ..quotas import Taking
from ..store import IdempotencyKey, Submitted


class Queue(Protocol):
    """See :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...
    def count_queued(self, owner: str) -> int: ...
    def count_open_bytes(self, owner: str) -> int: ...
    def replay(self, owner: str, key: IdempotencyKey) -> Future[Submitted | None]: ...
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
    ) -> Future[Submitted]: ...
    def let_go(self) -> None: ...
