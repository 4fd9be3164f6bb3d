"""Several boxes, one queue: each beats, and one that cannot stops its runs before others begin them again.

`membership` beats and says when the lease is over; `names` has the box's own name; `secret` has the keys that are the
same on all, `agreed` finds settings that should be, `version` says what the code is compared by, and `signature` signs
what one asks of another. What the boxes share is in :mod:`..store`, where `members` and `shared` say how they keep out
of each other's way.
"""

from .agreed import find_differences
from .membership import Lease, Membership
from .names import read_or_make_name, rename
from .secret import derive, make_keys
from .signature import Signatures
from .version import read_version

__all__ = [
    "Lease",
    "Membership",
    "Signatures",
    "derive",
    "find_differences",
    "make_keys",
    "read_or_make_name",
    "read_version",
    "rename",
]
