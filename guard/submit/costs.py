"""Judge what a prompt takes, once it is known what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..client import Client
from ..cost.values import Media
from ..cost.vram import estimate, names_models
from ..host import Host
from ..quotas.threads import run_beside, work
from ..settings import PolicySettings
from ..weight import ANYWHERE, Placement, VramBody
from .key_policies import KeyPolicies
from .needs import find_placement
from .policy import Policy


class Costs:
    """The operator's limits and those of each key. Event loop; models are looked at on another thread."""

    def __init__(self, settings: PolicySettings, host: Host, is_fleet: bool = False) -> None:
        """`is_fleet`: another server may be the one that runs the prompt."""
        self._is_fleet = is_fleet
        self._strict = settings.strict
        self._host = host
        self._policy = Policy(settings, describe=host.declaration)
        self._keys = KeyPolicies(settings, host.declaration)

    def check_graph(self, graph: Mapping[str, Any], client: Client) -> None:
        """Check what the graph alone tells. Raises PolicyViolationError. Any thread."""
        self._policy.check(graph, read=False)
        self._keys.check(graph, client, read=False)

    async def check(
        self, graph: Mapping[str, Any], client: Client, media: Mapping[str, Media], size: int
    ) -> VramBody | None:
        """Check it against the limits once more, now that it is known what its files hold.

        Returns what it takes of the card's memory, as far as that is known. Raises PolicyViolationError.
        """
        if media or self._strict:
            await work(size, self._check_media, graph, client, media)
        if not await work(size, names_models, graph):
            return None
        return await run_beside(self._weigh, graph, client, media)

    async def place(self, graph: Mapping[str, Any], vram: VramBody | None, size: int) -> Placement:
        """What decides which server of a fleet runs the prompt."""
        if not self._is_fleet:
            return ANYWHERE
        return await work(size, find_placement, graph, self._host.declaration, vram)

    def _check_media(self, graph: Mapping[str, Any], client: Client, media: Mapping[str, Media]) -> None:
        self._policy.check(graph, media)
        self._keys.check(graph, client, media)

    def _weigh(self, graph: Mapping[str, Any], client: Client, media: Mapping[str, Media]) -> VramBody | None:
        walk = self._policy.walk(graph, media)
        vram = estimate(graph, walk.amounts, self._policy.classes, self._host.weigh_model)
        if vram is None:
            return None
        self._policy.check_vram(graph, vram)
        self._keys.check_vram(graph, client, vram)
        return vram.body()
