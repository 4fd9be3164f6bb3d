"""Send webhooks: connections, look-ups, time limits, and many receivers at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter

import aiohttp

from ..guard.errors import GuardError
from ..guard.events.outbox import Attempt, Outbox
from ..guard.signal import Signal
from ..guard.store import Delivery
from ..guard.wake import Wake
from .outside import Outside

log = logging.getLogger("guarded.webhooks")

#: Deliveries under way at once, and those to one receiver: one that hangs must not hold up the others.
AT_ONCE = 32
AT_ONCE_TO_ONE = 8

#: Read at most this much of an answer, so the connection can be reused; what it says does not matter.
READ_BYTES = 16 * 2**10

#: The longest sleep; a delivery that is due earlier ends it.
LOOK_S = 60.0

#: After a fault of the store.
PAUSE_S = 5.0


class Sender:
    """Sends what is in the outbox: one task on the event loop, and one for each delivery under way.

    A delivery is marked only when its attempt has ended. If the process dies before that is on disk, it is sent again.
    """

    def __init__(self, outbox: Outbox, timeout_s: float) -> None:
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._wake = Wake()
        #: An attempt has ended: its outcome in a word, and the seconds it took. Called on the event loop.
        self.attempted: Signal[[str, float]] = Signal()
        self._outside = Outside(outbox.rules, timeout_s, AT_ONCE)
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._to: Counter[str] = Counter()

    def wake(self) -> None:
        """Look at the outbox now. Any thread."""
        self._wake.set()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            try:
                sleep_s = await self.turn()
            except Exception as error:
                if not isinstance(error, GuardError):  # of its own troubles the store tells
                    log.exception("the outbox of webhooks failed")
                sleep_s = PAUSE_S
            await self._wake.wait(sleep_s)

    async def close(self) -> None:
        await self._outside.close()

    async def turn(self) -> float:
        """Begin all deliveries that are due and have room. Returns the seconds until the next one is due."""
        full = [target for target, count in self._to.items() if count >= AT_ONCE_TO_ONE]
        room = max(AT_ONCE - len(self._under_way), 0)
        deliveries, next_s = await self._outbox.find_due(room, under_way=list(self._under_way), full=full)
        for delivery in deliveries:
            if self._to[delivery.target] < AT_ONCE_TO_ONE:
                self._to[delivery.target] += 1
                self._under_way[delivery.number] = asyncio.create_task(self._deliver(delivery))
        # A delivery without room gets its turn when another one ends.
        return LOOK_S if next_s is None else min(next_s, LOOK_S)

    async def _deliver(self, delivery: Delivery) -> None:
        began_s = time.monotonic()
        try:
            try:
                attempt = await self._attempt(delivery)
            except Exception as error:  # a fault of ours: an attempt all the same, so that the pauses grow
                log.exception("webhook %s", delivery.webhook_id)
                attempt = Attempt(error=f"{type(error).__name__}: {error}"[:500])
            self._outbox.record_attempt(delivery, attempt)
            self.attempted(attempt.outcome, time.monotonic() - began_s)
        finally:
            del self._under_way[delivery.number]
            self._to[delivery.target] -= 1
            if not self._to[delivery.target]:
                del self._to[delivery.target]
            self._wake.set()

    async def _attempt(self, delivery: Delivery) -> Attempt:
        try:
            headers = self._outbox.sign(delivery)
        except GuardError as error:
            return Attempt(error=error.message, hopeless=True)
        except ImportError as error:  # until somebody installs it
            return Attempt(error=f"the package standardwebhooks cannot be imported: {error}")
        try:
            async with self._outside.open_session().post(
                delivery.url, data=delivery.payload.encode(), headers=headers, allow_redirects=False
            ) as response:
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    await response.content.read(READ_BYTES)  # the verdict is the status
                    if not response.content.at_eof():
                        response.close()
                return _judge(response)
        except asyncio.TimeoutError:
            return Attempt(error=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Attempt(error=(str(error) or type(error).__name__)[:500])


def _judge(response: aiohttp.ClientResponse) -> Attempt:
    """How an attempt went, by the status that the receiver answered."""
    if 300 <= response.status < 400:
        return Attempt(response.status, "redirects are not followed")
    asked = response.headers.get("Retry-After", "")
    return Attempt(
        response.status,
        None if response.status < 300 else f"the receiver said {response.status}",
        float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0.0,
    )
