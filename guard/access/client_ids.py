"""Websocket client ids as the host knows them: one space for each owner.

Whoever knows a client id could otherwise listen to its jobs, or take its socket's place.
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
    """From (owner, the client's own id) to the id that the host is given: a keyed hash, for `local` the id itself."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def load(cls, own_directory: Path) -> ClientIds:
        """With the key that lies there, or a new one. Raises OSError."""
        return cls(private_files.read_or_make_key(own_directory / FILE))

    def of(self, owner: str, client_id: str) -> str:
        if owner == LOCAL.owner:
            return client_id
        told = json.dumps([owner, client_id]).encode()
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()

    def of_job(self, job_id: str, owner: str, client_id: str | None) -> str:
        """The id that a job runs under: without one, the host would tell everybody how it goes."""
        return self.of(owner, client_id or f"guarded-{job_id}")
