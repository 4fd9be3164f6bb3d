"""Send webhooks: connections, look-ups, time limits, and many receivers at once."""

from __future__ import annotations

import asyncio
import contextlib
import io

import aiohttp

from ..guard.callers.inline import Inline
from ..guard.errors import GuardError, ServerUnavailableError
from ..guard.events.attempts import Attempt
from ..guard.events.carrier import Carrier
from ..guard.events.outbox import Outbox
from ..guard.quotas.threads import work
from ..guard.store import Delivery
from .outside import Outside

#: Read at most this much of an answer, so the connection can be reused; what it says does not matter.
READ_BYTES = 16 * 2**10


class Sender(Carrier[Delivery]):
    """Sends what is in the outbox. Event loop."""

    def __init__(self, outbox: Outbox, timeout_s: float, inline: Inline | None = None) -> None:
        """`inline`: puts the files into the webhooks that are to bring them."""
        super().__init__(outbox)
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._inline = inline
        self._outside = Outside(outbox.rules, timeout_s, self.AT_ONCE)

    async def close(self) -> None:
        await self._outside.close()

    async def attempt(self, delivery: Delivery) -> Attempt:
        payload = delivery.payload
        if self._inline is not None:
            try:
                payload = await self._inline.complete(payload, delivery.job_id)
            except ServerUnavailableError as error:
                return Attempt(error=error.message)
        try:
            headers = await work(len(payload), self._outbox.sign, delivery, payload)
        except GuardError as error:
            return Attempt(error=error.message, hopeless=True)
        except ImportError as error:  # until somebody installs it
            return Attempt(error=f"the package standardwebhooks cannot be imported: {error}")
        try:
            async with self._outside.open_session().post(
                delivery.url, data=io.BytesIO(payload.encode()), headers=headers, allow_redirects=False
            ) as response:
                await read_on(response)
                return _judge(response)
        except asyncio.TimeoutError:
            return Attempt(error=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Attempt(error=(str(error) or type(error).__name__)[:500])


def _judge(response: aiohttp.ClientResponse) -> Attempt:
    """How an attempt went, by the status that the receiver answered."""
    if 300 <= response.status < 400:
        return Attempt(response.status, "redirects are not followed")
    error = None if response.status < 300 else f"the receiver said {response.status}"
    return Attempt(response.status, error, read_pause_s(response))


async def read_on(response: aiohttp.ClientResponse) -> None:
    """Read what little there is of an answer, of which only the status counts, or give its connection up."""
    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
        await response.content.read(READ_BYTES)
        if not response.content.at_eof():
            response.close()


def read_pause_s(response: aiohttp.ClientResponse) -> float:
    """The pause that the receiver asks for; 0: none."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0.0
