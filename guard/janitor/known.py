"""What the job database knows of files: which of them jobs have made, and which nobody has fetched yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from ..errors import InternalError
from ..job import RESULT_ROOTS
from ..owners import FOLDER
from .records import Records
from .rules import Root
from .walk import Candidate

#: Up to this many files that nobody has fetched are kept in memory (a few MB); beyond, each batch asks the store.
UNREAD_AT_HAND = 10_000
#: How long the sweep waits for the store's answer.
STORE_WAIT_S = 30.0

_Answer = TypeVar("_Answer")


class Known:
    """Asks the job database for one sweep. The thread that sweeps."""

    def __init__(self, records: Records | None, unread_since_ms: int, native: bool) -> None:
        """`native`: sweep what no job has made, outside temp."""
        self._records = records
        self._unread_since_ms = unread_since_ms
        self._native = native
        #: Files not fetched yet by root, where they are few enough to have all of them at hand.
        self._unread: dict[str, frozenset[str]] | None = {}

    def learn(self) -> None:
        """Note what nobody has fetched. From now on only files that are too young to delete can join that."""
        if self._records is not None:
            self._unread = wait_for(self._records.list_unread(self._unread_since_ms, UNREAD_AT_HAND))

    def go_blind(self) -> None:
        """Do without the database: nothing is known."""
        self._records, self._unread = None, {}

    def list_made(self, root: Root, at_once: int) -> Iterator[list[str]]:
        """What jobs have made below the root, some at a time."""
        if self._records is None:
            return
        for kind in _kinds(root):
            paths = [""]
            while paths := wait_for(self._records.list_made(kind, paths[-1], at_once)):
                yield paths

    def find_unread(self, root: Root, prefix: str, candidates: Sequence[Candidate]) -> frozenset[str]:
        """Find the files that some owner has not fetched yet, as paths below `root`."""
        if self._unread == {}:
            return frozenset()
        unread: frozenset[str] = frozenset()
        paths = [prefix + file.name for file in candidates]
        for kind in _kinds(root):
            if self._unread is not None:
                unread |= self._unread.get(kind, frozenset()).intersection(paths)
            elif self._records is not None:
                some: frozenset[str] = wait_for(self._records.select_unread(kind, paths, self._unread_since_ms))
                unread |= some
        return unread

    def sweeps_all(self, root: Root, path: str) -> bool:
        """Whether everything there goes by age alone, whoever made it; `path` is below the root."""
        is_ours = not root.has_past or "temp" in root.names or f"{path}/".startswith(f"{FOLDER}/")
        return self._native or is_ours

    def find_native(self, root: Root, prefix: str, candidates: Sequence[Candidate]) -> frozenset[str]:
        """Find the files that no job has made, as paths below `root`, where they are not to be swept.

        In temp none is anybody's, in the quarantine and the owners' folders all are ours.
        """
        if self.sweeps_all(root, prefix):
            return frozenset()
        native = frozenset(prefix + file.name for file in candidates)
        if self._records is not None:
            for kind in _kinds(root):
                made: frozenset[str] = wait_for(self._records.select_made(kind, list(native)))
                native -= made
        return native


def _kinds(root: Root) -> list[str]:
    return [kind for kind in RESULT_ROOTS if kind in root.names]


def wait_for(future: Future[_Answer]) -> _Answer:
    """The store's answer. Raises InternalError where none comes."""
    try:
        return future.result(STORE_WAIT_S)
    except FutureTimeoutError:
        raise InternalError("The job store did not answer.") from None
