"""What each key's prompts may ask for, where its record is tighter than the server."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..client import Client, KeyLimits
from ..settings import PolicySettings
from .policy import Policy


class KeyPolicies:
    """What each key's prompts may ask for, beside what the server allows. Event loop."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._of = functools.lru_cache(maxsize=256)(self._make)

    def check(self, graph: Mapping[str, Any], client: Client) -> None:
        """Check a graph against the limits of its sender's key. Raises PolicyViolationError, as Policy does."""
        if (policy := self._of(client.limits)) is not None:
            policy.check(graph)

    def _make(self, limits: KeyLimits) -> Policy | None:
        names = ("allow_nodes", "deny_nodes", "profile", "max_pixels", "max_steps")
        own = {name: value for name in names if (value := getattr(limits, name))}
        if not own:
            return None
        server = {"max_nodes": self._settings.max_nodes, "strict": self._settings.strict}
        return Policy(PolicySettings.model_validate({**server, **own}), "key")
