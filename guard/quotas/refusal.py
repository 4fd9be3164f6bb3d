"""Say that an owner holds too much."""

from __future__ import annotations

from ..errors import QuotaExceededError


def refuse(message: str, of: str, held: int, limit: int, frees: str) -> QuotaExceededError:
    """`of`: what there is too much of; `frees`: in words, when there is room again."""
    return QuotaExceededError(
        message,
        details=f"There is room again once {frees}.",
        extra_info={"of": of, "held": held, "limit": limit, "scope": "client", "frees": frees},
    )
