"""Give the host other websocket client ids than callers use, so that owners' ids never meet.

Otherwise whoever knows a client id could listen to its jobs, or take its socket's place.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

from .. import private_files
from ..client import LOCAL

FILE = "client_ids.key"


class ClientIds:
    """Maps an owner's client id to the host's: by a keyed hash, except for `local`, whose ids stay as they are."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def load(cls, own_directory: Path, key: bytes | None = None) -> ClientIds:
        """Without a `key`, read the one there, or make one. Raises OSError."""
        return cls(key or private_files.read_or_make_key(own_directory / FILE))

    def of(self, owner: str, client_id: str) -> str:
        if owner == LOCAL.owner:
            return client_id
        message = json.dumps([owner, client_id]).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()

    def of_job(self, job_id: str, owner: str, client_id: str | None) -> str:
        """The id that a job runs under. Without any, the host would tell everybody how it goes."""
        return self.of(owner, client_id or f"guarded-{job_id}")
