"""The janitor: a rented disk that never fills.

`rules` says what may go, `folder` is how it is looked at and deleted (by handle, where the platform can), `in_use`
knows what open jobs name, `sweep` is one pass, `thread` is when, `command` is the same from the command line.
"""

from .in_use import InUse
from .report import Report
from .thread import Janitor

__all__ = ["InUse", "Janitor", "Report"]
