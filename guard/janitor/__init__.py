"""Delete old files and records, so that a rented disk never fills.

`rules` says what may go, `folder` lists and deletes (by handle, if the platform can), `in_use` knows what open jobs
name, `walk` goes through a root, `sweep` is one pass, `oldest` deletes what is oldest where a disk is short, `quotas`
where an owner has too much, `depot` sweeps that, `records` what it asks of the job database, `report` what it did,
`bodies` its JSON, `thread` decides when, `command` is the command line.
"""

from .in_use import InUse
from .report import Report
from .thread import Janitor

__all__ = ["InUse", "Janitor", "Report"]
