"""Work on some of an owner's requests at a time; the others wait for their turn, in order. Event loop only.

What a request holds in memory differs by what it does just now, so there are turns of four kinds, and a request has
one of them at most. It keeps it until its answer has been written to the socket: whoever does not read takes up turns
of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ..errors import QuotaExceededError
from .large import Large
from .line import Line

#: A request waits for its turn for so long.
TURN_WITHIN_S = 60.0
#: So many files are sent to an owner at once. Each is in memory a few hundred KiB at a time.
SENT_AT_ONCE = 256


class Kind(Enum):
    """What a request does in its turn."""

    #: It is worked on.
    WORK = "requests"
    #: The same, and its body or its answer may have megabytes: a list, a prompt with pictures in it.
    LARGE = "large_requests"
    #: An agent's message of megabytes is kept: until it is answered, while its tools' requests have turns of their own.
    AGENT = "large_messages"
    #: A file is sent.
    SEND = "sent_files"

    def count(self, quota: int) -> int:
        """How many an owner may have at once; `quota`: of `WORK`."""
        large = max(quota // 5, 1)
        return {Kind.WORK: quota, Kind.LARGE: large, Kind.AGENT: large, Kind.SEND: SENT_AT_ONCE}[self]


class Turn:
    """One request's share of its owner's. Without an owner it counts for nothing."""

    def __init__(
        self,
        requests: Requests | None = None,
        on_last: Callable[[], object] = lambda: None,
        refuse: Callable[[Kind, int], QuotaExceededError] | None = None,
        large: Large | None = None,
    ) -> None:
        """`refuse` makes the error for a turn that does not come; it gets how many there may be. `large`: those of all
        owners."""
        self._requests = requests
        self._on_last = on_last
        self._refuse = refuse
        self._large = large
        self._has: Kind | None = None
        #: Closes the request's connection: called where it holds others up.
        self.end: Callable[[], object] = lambda: None
        #: Whether nobody waits for the request's answer any more.
        self.is_vain: Callable[[], bool] = lambda: False

    async def take(self, kind: Kind) -> None:
        """Wait for a turn of that kind, and give back the one that the request has.

        Raises:
            QuotaExceededError: it does not come within a minute.
            ServerUnavailableError: a large one of all owners' does not.
            ConnectionResetError: the client has not waited for it.
        """
        if self._requests is None or self._has is kind:
            return
        self.rest()
        requests = self._requests
        at_once = kind.count(requests.quota)
        if not await requests.lines[kind].wait_for_turn(at_once, TURN_WITHIN_S):
            assert self._refuse is not None
            raise self._refuse(kind, at_once)
        self._has = kind
        if kind is Kind.LARGE and self._large is not None:
            try:
                await self._large.take(self, self._end)
            except BaseException:
                self.rest()
                raise
        if self.is_vain():
            self.rest()
            raise ConnectionResetError("the client did not wait for the turn")

    def rest(self) -> None:
        """The request is not worked on any more: what it waits for takes its time."""
        if self._requests is not None and self._has is not None:
            has, self._has = self._has, None
            self._requests.lines[has].pass_on()
            if has is Kind.LARGE and self._large is not None:
                self._large.give_back(self)

    def _end(self) -> None:
        self.end()

    def close(self) -> None:
        """The request has been answered."""
        self.rest()
        if self._requests is not None:
            requests, self._requests = self._requests, None
            requests.held -= 1
            if not requests.held:
                self._on_last()


@dataclass
class Requests:
    """An owner's requests: how many there are, how many of them may be worked on at once, and their turns."""

    quota: int
    held: int = 0
    lines: dict[Kind, Line] = field(default_factory=lambda: {kind: Line() for kind in Kind})

    def take_up(
        self, on_last: Callable[[], object], refuse: Callable[[Kind, int], QuotaExceededError], large: Large
    ) -> Turn:
        """Count one more request, until its turn is closed; `on_last` is called where no other is left then."""
        self.held += 1
        return Turn(self, on_last, refuse, large)
