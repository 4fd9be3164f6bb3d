"""Know what each owner is sending: bytes that are on the disk, or on their way there, and not yet files of its own.

Any thread.
"""

from __future__ import annotations

import threading

from ..errors import PayloadTooLargeError
from .refusal import refuse


class Arriving:
    """What the files that are being received come to, by owner. Owners that send nothing take no memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a few steps
        self._bytes: dict[str, int] = {}

    def count(self, owner: str) -> int:
        return self._bytes.get(owner, 0)

    def check(self, owner: str, size: int, limit: int) -> None:
        """Refuse what is known to be too much before it comes.

        Raises:
            QuotaExceededError: beside what is coming in already.
            PayloadTooLargeError: by itself.
        """
        if size > limit:
            raise PayloadTooLargeError(
                f"The request is over the {limit} bytes that you may be sending at once.",
                extra_info={"max_incoming_bytes": limit},
            )
        if (held := self._bytes.get(owner, 0)) + size > limit:
            raise refuse(
                f"Files of yours with {held} bytes are coming in, and this request has {size}; "
                f"{limit} are allowed together.",
                "incoming_bytes",
                held,
                limit,
                "one of these requests is answered",
            )

    def take(self, owner: str, size: int, limit: int | None) -> None:
        """Count what has come, until it is given back. Raises as `check` does, and then counts nothing."""
        with self._lock:
            if limit is not None:
                self.check(owner, size, limit)
            self._bytes[owner] = self._bytes.get(owner, 0) + size

    def give_back(self, owner: str, size: int) -> None:
        with self._lock:
            self._bytes[owner] -= size
            if not self._bytes[owner]:
                del self._bytes[owner]


class Parcel:
    """What one request sends, for as long as it is neither a file of its owner's nor deleted."""

    def __init__(self, arriving: Arriving | None = None, owner: str = "", limit: int | None = None) -> None:
        """Without `arriving`, it counts for nothing."""
        self._arriving = arriving
        self._owner = owner
        self._limit = limit
        self._size = 0

    def check(self, size: int) -> None:
        """Judge what a request says that it will send. Raises QuotaExceededError, PayloadTooLargeError."""
        if self._arriving is not None and self._limit is not None:
            self._arriving.check(self._owner, size, self._limit)

    def take(self, size: int) -> None:
        """Count what has come. Raises QuotaExceededError, PayloadTooLargeError."""
        if self._arriving is not None and size:
            self._arriving.take(self._owner, size, self._limit)
            self._size += size

    def close(self) -> None:
        """All of it has gone from where it came in."""
        if self._arriving is not None and self._size:
            self._arriving.give_back(self._owner, self._size)
            self._size = 0
