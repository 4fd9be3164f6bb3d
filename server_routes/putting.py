"""Put results to the addresses that their owners have named: S3, R2, Google's and Azure's stores take them so."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from typing import IO, Protocol

import aiohttp
from yarl import URL

from ..guard.callers.served import Opener
from ..guard.errors import GuardError
from ..guard.events.attempts import Attempt
from ..guard.events.carrier import Carrier
from ..guard.events.puts import LONGEST, Puts, make_headers
from ..guard.job import Job
from ..guard.quotas.threads import run_beside
from ..guard.store import PutDelivery
from ..guard.wake import wrap_future
from .hearing import ScatteredError
from .outside import Outside, is_inside
from .sender import read_on, read_pause_s

log = logging.getLogger("guarded.puts")

_BLOCK_BYTES = 2**18
_CONNECT_S = 15
#: Worth another try, besides what the store's own faults are answered with; S3 says 400 to an upload that broke off.
_PASSING = frozenset({400, 408, 409, 425, 429})


class Records(Protocol):
    """What this asks of the job store: see :class:`guard.store.Store`."""

    def get(self, job_id: str) -> Future[Job | None]: ...


class Putter(Carrier[PutDelivery]):
    """Puts what is due. Event loop; other threads read the files.

    What it says of an attempt never has the address in it.
    """

    AT_ONCE = 16
    AT_ONCE_TO_ONE = 4

    def __init__(self, puts: Puts, timeout_s: float, store: Records, opener: Opener) -> None:
        super().__init__(puts)
        self._puts = puts
        self._timeout_s = timeout_s
        self._store = store
        self._opener = opener
        self._outside = Outside(puts.rules, timeout_s, self.AT_ONCE)

    async def close(self) -> None:
        await self._outside.close()

    async def attempt(self, delivery: PutDelivery) -> Attempt:
        if self._puts.has_expired(delivery):
            return Attempt(error="the address has expired", hopeless=True)
        try:
            self._puts.rules.check(delivery.url, "The address", LONGEST)  # the settings may have changed
        except GuardError:
            return Attempt(error="the address may not be reached", hopeless=True)
        job = await wrap_future(self._store.get(delivery.job_id))
        if job is None or not 0 <= delivery.artifact < len(job.result.artifacts):
            return Attempt(error="the job has no such artifact", hopeless=True)
        artifact = job.result.artifacts[delivery.artifact]
        try:
            served = await self._opener.open_beside(job, artifact)
        except GuardError:
            return Attempt(error="the file's storage is away")
        if served is None:
            return Attempt(error="the file is no longer what the job made", hopeless=True)
        with served.handle as handle:
            size = (artifact.copy or artifact).bytes
            return await self._send(delivery, handle, make_headers(delivery, served.mime, size))

    def report(self, delivery: PutDelivery, error: Exception) -> Attempt:
        # By its name alone: what it says may have the address in it.
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("job %s: an attempt to put a result failed: %s\n%s", delivery.job_id, type(error).__name__, where)
        return Attempt(error=type(error).__name__)

    async def _send(self, delivery: PutDelivery, handle: IO[bytes], headers: Mapping[str, str]) -> Attempt:
        try:
            async with self._outside.open_session().put(
                URL(delivery.url, encoded=True),
                data=_read(handle),
                headers=headers,
                skip_auto_headers=("content-type",),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=_CONNECT_S),
            ) as response:
                await read_on(response)
                return _judge(response)
        except asyncio.TimeoutError:
            return Attempt(error=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if is_inside(error):
                return Attempt(error="its name leads to an address that may not be reached")
            if isinstance(error, ScatteredError):
                return Attempt(error=str(error))
            return Attempt(error="the address cannot be reached, or the connection broke off")


async def _read(handle: IO[bytes]) -> AsyncIterator[bytes]:
    while block := await run_beside(handle.read, _BLOCK_BYTES):
        yield block


def _judge(response: aiohttp.ClientResponse) -> Attempt:
    """How an attempt went, by the status that was answered."""
    status = response.status
    if 200 <= status < 300:
        return Attempt(status)
    is_final = 400 <= status < 500 and status not in _PASSING
    why = "redirects are not followed" if 300 <= status < 400 else f"the answer was {status}"
    return Attempt(status, why, read_pause_s(response), hopeless=is_final)
