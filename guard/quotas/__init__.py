"""Bound what each owner may hold at once.

`quotas` counts open streams and requests, `turns` lets the requests of an owner wait for each other.
"""

from .quotas import Quotas
from .turns import Turn

__all__ = ["Quotas", "Turn"]
