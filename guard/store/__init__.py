"""Keep every durable fact, through kills and restarts, where a second engine could take over without the core noticing.

Each method of :class:`Store` returns a :class:`concurrent.futures.Future` at once, from any thread; by the time it is
done, the change is on disk and every listener has been told. Calls take effect in the order in which they were made:
of two verdicts for one job, the one handed in first holds.
"""

from .disk import StoreLockedError, StoreTooNewError, StoreUnusableError, database_path
from .facts import (
    Changes,
    Claimed,
    Counts,
    Ended,
    Entry,
    IdempotencyKey,
    Listing,
    Page,
    Recovery,
    Run,
    Settled,
    Standing,
    Submitted,
    Waiting,
)
from .outbox import Delivery, DeliveryState, Due
from .protocol import Store
from .sqlite import SqliteStore

__all__ = [
    "Changes",
    "Claimed",
    "Counts",
    "Delivery",
    "DeliveryState",
    "Due",
    "Ended",
    "Entry",
    "IdempotencyKey",
    "Listing",
    "Page",
    "Recovery",
    "Run",
    "Settled",
    "SqliteStore",
    "Standing",
    "Store",
    "StoreLockedError",
    "StoreTooNewError",
    "StoreUnusableError",
    "Submitted",
    "Waiting",
    "database_path",
]
