"""Bound what each owner may hold at once.

`quotas` counts open streams and requests, `turns` lets the requests of an owner wait for each other, `bodies` judges
the bodies of its open jobs, which the store counts, `files` knows what its files come to, `arriving` what it sends,
and `refusal` has the words.
"""

from .arriving import Parcel
from .bodies import check_open_bytes
from .files import FILE_BYTES, FilesHeld
from .quotas import Quotas
from .turns import Kind, Turn

__all__ = ["FILE_BYTES", "FilesHeld", "Kind", "Parcel", "Quotas", "Turn", "check_open_bytes"]
