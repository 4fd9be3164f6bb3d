"""Keep jobs, their verdicts, their files and their webhooks on disk, so that they survive a kill or a restart.

The core knows the :class:`Store` protocol alone. The files: `protocol` says what a store promises and `facts` what it
takes and gives; `choice` opens what the settings name. `table_store` keeps the promises for both engines, of which
`store_engine` has what they have in common, with its `threads`, `pause` and `forks`. `sqlite` is SQLite's, through
`engine` (opening and commits); `held_file` and `file_lock` (no other process writes to it); `disk` (opening the file)
with `check`, `migrate` and `repair`, which copies rows with `salvage` and `pages`; `upkeep` (it stays small);
`transitions` (what changes jobs), `recent` (what memory knows of jobs), `queries` (what reads them), `search`,
`outbox`, `puts`, `result_files`, `depot_files` (with `depot_store` and `depot_protocol`), `kept` (whose the depot's
files are), `line` (the queue's order),
`times` (clocks that were wrong), `rows`, `alarms`, `spending` (what runs took), `tables` and `schema`. `database` has
what both engines understand; PostgreSQL's is `postgres`, with its `postgres_engine` (with `postgres_held`,
`postgres_reader`, `postgres_answers`), `postgres_connection`, `postgres_schema`, `postgres_address`, `postgres_upkeep`,
`postgres_probe`, for commands `postgres_once`, and what only a fleet has: `key_rows`, `sign_ins` and `buckets`, which
load only where they are asked for, since psycopg is optional. Of a
fleet's boxes `members` says which there are, `placing` which of them takes which job, and by `claiming`, `starting` and
`submitting` one statement writes that one does, or has let a job in.
"""

from .alarms import Alarm, NewAlarm
from .choice import is_postgres, make_store, open_once, probe_postgres
from .disk import StoreLockedError, StoreTooNewError, StoreUnusableError, database_path
from .facts import (
    Changes,
    Claimed,
    Counts,
    Ended,
    Entry,
    Found,
    Head,
    IdempotencyKey,
    Listing,
    Page,
    Recovery,
    Run,
    Settled,
    Size,
    Standing,
    Submitted,
    Waiting,
    Wanted,
)
from .members import Beat, Box, Member
from .outbox import Delivery, DeliveryState, Due
from .placing import Refused
from .protocol import Store
from .puts import PutDelivery
from .slices import Limits
from .spending import Spending, name_day
from .sqlite import SqliteStore

__all__ = [
    "Alarm",
    "Beat",
    "Box",
    "Changes",
    "Claimed",
    "Counts",
    "Delivery",
    "DeliveryState",
    "Due",
    "Ended",
    "Entry",
    "Found",
    "Head",
    "IdempotencyKey",
    "Limits",
    "Listing",
    "Member",
    "NewAlarm",
    "Page",
    "PutDelivery",
    "Recovery",
    "Refused",
    "Run",
    "Settled",
    "Size",
    "Spending",
    "SqliteStore",
    "Standing",
    "Store",
    "StoreLockedError",
    "StoreTooNewError",
    "StoreUnusableError",
    "Submitted",
    "Waiting",
    "Wanted",
    "database_path",
    "is_postgres",
    "make_store",
    "name_day",
    "open_once",
    "probe_postgres",
]
