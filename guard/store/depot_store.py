"""The job store's part for the depot's files, on tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future

from ..clock import Clock
from ..job import Artifact
from ..outgoing import StoredFile
from . import depot_files, kept
from .depot_files import Deposit, Holder
from .kept import Kept
from .outbox import Due
from .store_engine import StoreEngine


class DepotTables:
    """See :class:`.depot_protocol.DepotRecords`, which says what each method does."""

    _engine: StoreEngine
    _clock: Clock

    def record_deposit(self, after: Deposit) -> Future[None]:
        return self._engine.write(lambda db: depot_files.record_attempt(db, after), urgent=False)

    def note_uploads(self, owner: str, files: Sequence[StoredFile]) -> Future[None]:
        return self._engine.write(lambda db: depot_files.note_uploads(db, owner, files, self._clock.now_ms()))

    def claim_upload(self, owner: str, wanted: Sequence[tuple[str, bool]], file: StoredFile) -> Future[str]:
        return self._engine.write(lambda db: depot_files.claim_upload(db, owner, wanted, file, self._clock.now_ms()))

    def note_kept(self, owner: str, files: Sequence[StoredFile], job_id: str) -> Future[None]:
        return self._engine.write(lambda db: kept.note(db, owner, files, self._clock.now_ms(), job_id), urgent=False)

    def count_kept(self, owners: Sequence[str]) -> Future[dict[str, int]]:
        return self._engine.read_slowly(lambda db: kept.count(db, owners))

    def list_oldest_kept(self, owner: str, before_ms: int, limit: int) -> Future[list[Kept]]:
        return self._engine.read_slowly(lambda db: kept.list_oldest(db, owner, before_ms, limit))

    def forget_kept(self, owner: str, key: str) -> Future[None]:
        return self._engine.write(lambda db: kept.forget_of(db, owner, key), urgent=False)

    def forget_kept_before(self, at_ms: int, limit: int) -> Future[int]:
        return self._engine.write(lambda db: kept.forget_before(db, at_ms, limit), urgent=False)

    def forget_uploads(self, key: str) -> Future[None]:
        return self._engine.write(lambda db: depot_files.forget_uploads(db, key), urgent=False)

    def hurry_deposits(self, box: str) -> Future[None]:
        return self._engine.write(lambda db: depot_files.hurry(db, box, self._clock.now_ms()))

    def find_due_deposits(
        self, box: str, now_ms: int, limit: int, *, under_way: Collection[int]
    ) -> Future[Due[Deposit]]:
        numbers = tuple(under_way)
        return self._engine.read(lambda db: depot_files.find_due(db, box, now_ms, limit, numbers))

    def find_holder(self, job_id: str, artifact: int, is_copy: bool) -> Future[Holder | None]:
        return self._engine.read(lambda db: depot_files.find_holder(db, job_id, artifact, is_copy))

    def list_orphans(self, box: str, before: str, after: int, limit: int) -> Future[list[Deposit]]:
        return self._engine.read_slowly(lambda db: depot_files.list_orphans(db, box, before, after, limit))

    def adopt_deposit(self, box: str, number: int) -> Future[None]:
        return self._engine.write(lambda db: depot_files.adopt(db, box, number, self._clock.now_ms()), urgent=False)

    def count_deposits(self, box: str) -> Future[int]:
        return self._engine.read(lambda db: depot_files.count(db, box))

    def find_uploads(self, owner: str, paths: Sequence[str]) -> Future[dict[str, str]]:
        return self._engine.read(lambda db: depot_files.find_uploads(db, owner, paths))

    def list_uploads(self, owner: str, limit: int) -> Future[list[str]]:
        return self._engine.read(lambda db: depot_files.list_uploads(db, owner, limit))

    def find_newer_upload(self, owner: str, path: str, key: str, since_ms: int) -> Future[str | None]:
        return self._engine.read(lambda db: depot_files.find_newer_upload(db, owner, path, key, since_ms))

    def select_inputs(self, keys: Sequence[str]) -> Future[frozenset[str]]:
        return self._engine.read_list(lambda db: depot_files.select_inputs(db, keys))

    def list_unread_files(
        self, since_ms: int, after: int, limit: int
    ) -> Future[list[tuple[int, tuple[Artifact, ...]]]]:
        return self._engine.read_slowly(lambda db: depot_files.list_unread(db, since_ms, after, limit))
