"""Take back times that a wrong clock has written."""

from __future__ import annotations

import logging

from . import spending
from .database import Database, list_columns
from .outbox import PAUSE_AT_MOST_S
from .rows import IS_OPEN

log = logging.getLogger("guarded.store")

#: No clock that is right says less. One that has not been set yet since the machine was switched on says 1970 or so,
#: and must not make everything that old.
EARLIEST_MS = 1_767_225_600_000  # 2026-01-01

#: Where a time from the future shows without reading whole tables: in what was written last, and in what is still acted
#: on. Each process has one clock, and leaves no time from the future behind when it starts.
_SIGNS = (
    "SELECT at_ms FROM transitions ORDER BY event_id DESC LIMIT 1",
    f"SELECT max(created_at_ms) FROM jobs INDEXED BY jobs_open WHERE {IS_OPEN}",
    "SELECT max(settled_at_ms) FROM jobs INDEXED BY jobs_settled WHERE settled_at_ms IS NOT NULL",
)


#: Written by another clock, and in the future: until when an address is valid, or a box of a fleet has its lease.
_FOREIGN = ("expires_at_ms", "until_ms")


def clamp(db: Database, now_ms: int) -> None:
    """Set every time that lies in the future to now: the clock was ahead while they were written.

    Otherwise deliveries would wait for it, and jobs would wait past their timeouts. An attempt that is planned for
    later than the longest pause is due now.
    """
    plan_ms = now_ms + int(PAUSE_AT_MOST_S * 1000)
    db.execute(
        "UPDATE webhooks INDEXED BY webhooks_pending SET next_at_ms = ? WHERE state = 'pending' AND next_at_ms > ?",
        (now_ms, plan_ms),
    )
    db.execute("UPDATE puts SET next_at_ms = ? WHERE next_at_ms IS NOT NULL AND next_at_ms > ?", (now_ms, plan_ms))
    db.execute("UPDATE unstored SET next_at_ms = ? WHERE next_at_ms > ?", (now_ms, plan_ms))
    if now_ms < EARLIEST_MS:
        log.warning("the clock says a time before this version was made; set it, or nothing here can be on time")
        return
    latest = [at_ms for sign in _SIGNS for (at_ms,) in db.execute(sign) if at_ms is not None]
    if not latest or max(latest) <= now_ms:
        return
    log.warning(
        "the clock was ahead by %.1f s at least when this database was written: times from the future are set to now",
        (max(latest) - now_ms) / 1000,
    )
    spending.clamp(db, now_ms)
    for table, columns in list_columns(db):
        # By their names, so that no column of a later version is forgotten.
        times = [name for name in columns if name.endswith("_ms") and name not in _FOREIGN]
        latest_of = {name: plan_ms if name == "next_at_ms" else now_ms for name in times}
        if latest_of:
            changes = ", ".join(f"{name} = CASE WHEN {name} > ? THEN ? ELSE {name} END" for name in latest_of)
            db.execute(
                f"UPDATE {table} SET {changes} WHERE {' OR '.join(f'{name} > ?' for name in latest_of)}",
                [*(most for most in latest_of.values() for _twice in range(2)), *latest_of.values()],
            )
