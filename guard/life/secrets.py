"""API credentials that came with a prompt: kept in memory while its job waits or runs, never on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What ComfyUI takes out of `extra_data` and shows to nobody.
SECRET_NAMES = ("auth_token_comfy_org", "api_key_comfy_org")


class Secrets:
    """By job id. Any thread: each call is one operation on a dict."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Any]] = {}

    def keep(self, job_id: str, secrets: Mapping[str, Any]) -> bool:
        """Whether they are kept now: not where there are none, nor where that id has some already."""
        return bool(secrets) and self._kept.setdefault(job_id, kept := dict(secrets)) is kept

    def of(self, job_id: str) -> dict[str, Any]:
        return self._kept.get(job_id, {})

    def forget(self, job_id: str) -> None:
        self._kept.pop(job_id, None)
