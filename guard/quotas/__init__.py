"""Bound what each owner may hold at once.

`quotas` counts open streams and requests, `turns` lets the requests of an owner wait for each other, `bodies` judges
the bodies of its open jobs, which the store counts, `files` knows what its files come to, `arriving` what it sends,
`refusal` has the words, and `rates` says how much may be asked for in a time.
"""

from .arriving import Parcel
from .bodies import check_open_bytes
from .files import FILE_BYTES, FilesHeld, measure_places
from .quotas import Quotas
from .rates import EPSILON, Quota, Taking, Whose, make_refusal
from .turns import Kind, Turn

__all__ = [
    "EPSILON",
    "FILE_BYTES",
    "FilesHeld",
    "Kind",
    "Parcel",
    "Quota",
    "Quotas",
    "Taking",
    "Turn",
    "Whose",
    "check_open_bytes",
    "make_refusal",
    "measure_places",
]
