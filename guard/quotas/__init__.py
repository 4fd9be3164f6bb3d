"""Bound what each owner may hold at once.

`quotas` counts open streams and requests, `turns` lets the requests of an owner wait for each other, and `bodies`
judges the bodies of its open jobs, which the store counts.
"""

from .bodies import check_open_bytes
from .quotas import Quotas
from .turns import Turn

__all__ = ["Quotas", "Turn", "check_open_bytes"]
