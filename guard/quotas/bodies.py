"""Bound the bodies of an owner's open jobs, which the database cannot let go of. Any thread."""

from __future__ import annotations

from ..errors import PayloadTooLargeError
from .refusal import refuse


def check_open_bytes(held: int, size: int, limit: int) -> None:
    """Refuse a body of `size` bytes, more or less, beside the `held` ones of the owner's jobs that have not ended.

    Raises:
        QuotaExceededError: there is room for it once some of these have ended.
        PayloadTooLargeError: there never is.
    """
    if size > limit:
        raise PayloadTooLargeError(
            f"The request is over the {limit} bytes that your open jobs may have together.",
            extra_info={"max_open_bytes": limit},
        )
    if held + size > limit:
        raise refuse(
            f"The requests of your open jobs have {held} bytes, and this one {size}; {limit} are allowed together.",
            "open_bytes",
            held,
            limit,
            "one of your jobs has ended",
        )
