"""Quotas: what each owner may hold at once. Event loop only.

A stream over the quota is refused. A request over it waits for its turn, so that a bot whose thousand users ask at once
is not refused: its requests are worked on some at a time, beside everybody else's. A request that only waits for a job,
or sends a file, is not worked on.

Operators, `local` among them, have no quotas: they must be able to look at a server that others have filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from ..client import Client
from ..errors import QuotaExceededError
from ..settings import LimitsSettings
from ..signal import Signal
from .arriving import Arriving, Parcel
from .bodies import check_open_bytes
from .files import FilesHeld
from .large import Large
from .refusal import refuse
from .turns import Kind, Requests, Turn

#: So many requests of an owner are there at once, whether they are worked on, wait for their turn or for a job.
HELD = 4096

_Quota = Literal["max_streams", "max_requests", "max_open_bytes", "max_file_bytes", "max_incoming_bytes"]


class Quotas:
    """What each owner holds. Owners that hold nothing take no memory."""

    def __init__(self, settings: LimitsSettings, *, has_depot: bool = False) -> None:
        """`has_depot`: files are in a depot as well, and count there, too."""
        self._settings = settings
        self._streams: Counter[str] = Counter()
        self._requests: dict[str, Requests] = {}
        #: So many requests of an owner are there at once.
        self.held_at_most = HELD
        #: What each owner has on this server, and in the depot, if there is one.
        self.files, self.files_in_depot = FilesHeld(), FilesHeld()
        self._files = (self.files, self.files_in_depot) if has_depot else (self.files,)
        self._arriving = Arriving()
        self._large = Large()
        #: Something was refused: what there were too many of. Called on the event loop.
        self.refused: Signal[[str]] = Signal()

    def find(self, client: Client, name: _Quota) -> int | None:
        """The client's quota of that name; None where it has none."""
        if client.operator or not client.owner:
            return None
        own: int | None = getattr(client.limits, name, None)
        return (getattr(self._settings, name) if own is None else own) or None

    @property
    def streams(self) -> int:
        """How many streams of owners with quotas are open."""
        return self._streams.total()

    def check_open_bytes(self, client: Client, held: int, size: int) -> None:
        """Judge a body of `size` bytes by what the client's open jobs hold. Raises as :func:`check_open_bytes` does."""
        if (limit := self.find(client, "max_open_bytes")) is not None:
            with self.counting():
                check_open_bytes(held, size, limit)

    def take_files(self, client: Client, size: int) -> Callable[[], None]:
        """Count files of `size` bytes that the client sends, none as well, until what is returned is called.

        Raises:
            QuotaExceededError: its files come to too much now.
            PayloadTooLargeError: those that it sends alone are too much.
        """
        limit = self.find(client, "max_file_bytes")
        if limit is None:
            return lambda: None
        taken: list[FilesHeld] = []

        def give_back() -> None:
            for held in taken:
                held.add(client.owner, -size)

        try:
            with self.counting():
                for held in self._files:
                    held.take(client.owner, size, limit)
                    taken.append(held)
        except BaseException:
            give_back()
            raise
        return give_back

    def open_parcel(self, client: Client, declared: int = 0) -> Parcel:
        """Count what the client sends into files, of which it declares so many bytes. Close it once that has gone.

        Raises:
            QuotaExceededError: that is too much beside what it is sending already.
            PayloadTooLargeError: that alone is too much.
        """
        limit = self.find(client, "max_incoming_bytes")
        if limit is None:
            return Parcel()
        parcel = Parcel(self._arriving, client.owner, limit)
        with self.counting():
            parcel.check(declared)
        return parcel

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Announce what the block refuses as one too many."""
        try:
            yield
        except QuotaExceededError as error:
            self.refused(error.extra_info["of"])
            raise

    @contextmanager
    def stream(self, client: Client) -> Iterator[None]:
        """Count one open stream until the end of the block. Raises QuotaExceededError where it is one too many."""
        quota = self.find(client, "max_streams")
        if quota is None:
            yield
            return
        if (held := self._streams[client.owner]) >= quota:
            raise self._refuse("streams", held, quota, "You have {} streams open", "one of them is closed")
        self._streams[client.owner] += 1
        try:
            yield
        finally:
            self._streams[client.owner] -= 1
            if not self._streams[client.owner]:
                del self._streams[client.owner]

    async def begin_request(self, client: Client) -> Turn:
        """Wait for a request's turn; close it once the request has been answered.

        Raises:
            QuotaExceededError: its turn does not come within a minute, or the owner has too many requests.
        """
        quota = self.find(client, "max_requests")
        if quota is None:
            return Turn()
        own = self._requests.setdefault(client.owner, Requests(quota))
        own.quota = quota  # keys of one name may have different ones
        if own.held >= self.held_at_most:
            held_at_most = self.held_at_most
            said = "{} of your requests are under way"
            raise self._refuse("requests", own.held, held_at_most, said, "one is answered")
        turn = own.take_up(lambda: self._requests.pop(client.owner), self._refuse_turn, self._large)
        try:
            await turn.take(Kind.WORK)
        except BaseException:
            turn.close()
            raise
        return turn

    def _refuse_turn(self, kind: Kind, at_once: int) -> QuotaExceededError:
        said = "{} of your requests are worked on, and this one's turn does not come"
        return self._refuse(kind.value, at_once, at_once, said, "one of them is answered")

    def _refuse(self, of: str, held: int, limit: int, said: str, frees: str) -> QuotaExceededError:
        self.refused(of)
        return refuse(f"{said.format(held)}; {limit} are allowed.", of, held, limit, frees)
