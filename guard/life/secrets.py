"""Keep the API credentials that came with a prompt in memory while its job waits or runs, never on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: ComfyUI takes these out of `extra_data` and shows them to nobody.
SECRET_NAMES = ("auth_token_comfy_org", "api_key_comfy_org")


class Secrets:
    """By job id. Any thread: each call is one operation on a dict."""

    def __init__(self) -> None:
        self._by_job: dict[str, dict[str, Any]] = {}

    def keep(self, job_id: str, secrets: Mapping[str, Any]) -> bool:
        """Keep them for the job. False where there are none, or where that id has some already."""
        return bool(secrets) and self._by_job.setdefault(job_id, own := dict(secrets)) is own

    def of(self, job_id: str) -> dict[str, Any]:
        return self._by_job.get(job_id, {})

    def forget(self, job_id: str) -> None:
        self._by_job.pop(job_id, None)
