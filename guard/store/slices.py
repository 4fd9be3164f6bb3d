"""What the slices of work between the writer's commits share."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .database import Database
from .threads import Operation

#: A slice ends after this time. One step of it is one body, one record, or one page that moves.
SLICE_S = 0.005
#: After a failure the next slice waits for this long.
AGAIN_S = 10.0

Read = Callable[[Operation[Any]], Future[Any]]


@dataclass(frozen=True)
class Means:
    """What the engine lends.

    Attributes:
        begin: begins a transaction whose commit does not wait for the disk; raises where this process may no longer
            write.
        read: runs one on a reader's thread, which takes some milliseconds.
        read_slowly: runs one on a thread that may take its time.
    """

    begin: Callable[[Database], None]
    read: Read
    read_slowly: Read


@dataclass(frozen=True)
class Limits:
    """When bodies and records of settled jobs go.

    Attributes:
        bodies_max_age_s, max_bytes: see the section `store`; 0 is no limit of bytes.
        kept_s: a record stays for so long whatever its owner has.
        unread_max_age_s: … and so long where nobody has fetched its results.
    """

    bodies_max_age_s: float = math.inf
    max_bytes: int = 0
    kept_s: float = 86400.0
    unread_max_age_s: float = 259200.0
