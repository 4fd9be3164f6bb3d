"""What there is to say of a job database in PostgreSQL."""

from __future__ import annotations

from ..settings import SettingsError, hide_password
from ..store import StoreUnusableError, probe_postgres
from .facts import Line
from .sizes import format_size

#: An engine further away than this slows every job.
FAR_MS = 10.0


def examine_postgres(url: str) -> Line:
    """Connect to it for a moment. Blocks."""
    shown = hide_password(url)
    try:
        found = probe_postgres(url)
    except (SettingsError, StoreUnusableError) as error:
        mend = "docs/postgres.md says what it must be like."
        return Line("error", "store", f"The job database {shown} cannot be used: {error}.", mend)
    tables = format_size(found.bytes) if found.schema else "the first start makes its tables"
    message = f"PostgreSQL {found.version} at {shown}, {found.latency_ms:.1f} ms away: {tables}."
    if found.latency_ms > FAR_MS:
        return Line("warning", "store", message, "Put it nearer: each submit waits for some five answers.")
    return Line("ok", "store", message)
