"""What the boxes of a fleet tell each other once a second of their limits: see :mod:`.limits`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol, cast

from ..errors import GuardError
from ..quotas import Taking
from ..store import Store
from ..store.buckets import At, Levels
from ..wake import wrap_future
from .limits import Limits

log = logging.getLogger("guarded.limits")

LOOK_S = 1.0
#: So often buckets that are full again are deleted, in looks.
TIDY_LOOKS = 600


class Buckets(Protocol):
    """What this asks of the job store: see :class:`guard.store.postgres_fleet.FleetStore`."""

    is_keeper: bool

    def read_buckets(self, places: Sequence[At]) -> Future[Levels]: ...
    def add_takings(self, takings: Sequence[Taking]) -> Future[None]: ...
    def forget_full_buckets(self) -> Future[None]: ...


async def keep_shared(limits: Limits, store: Store) -> None:
    """Tell the others what was uploaded here, and know what is left when they have taken of it. Event loop."""
    looks = 0
    while limits.is_shared:
        buckets = cast(Buckets, store)
        await asyncio.sleep(LOOK_S)
        looks += 1
        try:
            await exchange(limits, buckets)
            if looks % TIDY_LOOKS == 0 and buckets.is_keeper:
                await wrap_future(buckets.forget_full_buckets())
        except GuardError as error:
            log.debug("the limits go by what is known here: %s", error)  # the store has said why
        except Exception:
            log.exception("the limits go by what is known here; the others are asked again")


async def exchange(limits: Limits, buckets: Buckets) -> None:
    if takings := limits.list_untold():
        await wrap_future(buckets.add_takings(takings))
        limits.note_told(takings)
    if places := limits.list_places():
        limits.follow(places, await wrap_future(buckets.read_buckets(places)))
