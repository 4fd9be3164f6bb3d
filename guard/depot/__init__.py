"""Keep files by their content in one place for all boxes: a shared folder, or S3 (`files.url`).

`address` reads the setting, `objects` says what files are called, `depot` speaks to the storage, `mark` knows a folder
again, `folder` writes into that one alone, `reader` reads a file of it as if it lay here, and `digests` says whether
those are its bytes. `outcomes` puts results in, with their verdict or as soon as it goes; `results` opens them, here or
there, and `holders` on the box that has what is not in yet. What prompts name is `guard/files/inputs.py`'s.
"""

from .address import Address, read_address
from .depot import Depot
from .objects import make_key

__all__ = ["Address", "Depot", "make_key", "read_address"]
