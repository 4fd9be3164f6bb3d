"""What each key's prompts may ask for, where its record is tighter than the server."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..client import Client, KeyLimits
from ..cost.classes import Describe, NodeClasses, describe_nothing
from ..cost.labour import find_labour
from ..cost.values import Media
from ..cost.vram import Vram
from ..errors import ForbiddenError, PolicyViolationError
from ..graph import measure_chain
from ..settings import PolicySettings
from .policy import Policy
from .request import Submission


class KeyPolicies:
    """What each key's prompts may ask for, beside what the server allows. Event loop."""

    def __init__(self, settings: PolicySettings, describe: Describe = describe_nothing) -> None:
        self._settings = settings
        self._describe = describe
        self._classes = NodeClasses(describe)
        self._of = functools.lru_cache(maxsize=256)(self._make)

    def check(
        self,
        graph: Mapping[str, Any],
        client: Client,
        media: Mapping[str, Media] | None = None,
        *,
        read: bool = True,
    ) -> None:
        """Check a graph against the limits of its sender's key. Raises PolicyViolationError, as Policy does.

        `media`, `read`: as there.
        """
        if not client.operator:
            self._check_size(graph)
            self._check_labour(graph)
        if (policy := self._of(client.limits)) is not None:
            policy.check(graph, media, read=read)

    def check_vram(self, graph: Mapping[str, Any], client: Client, vram: Vram) -> None:
        """The same for what it takes of the card's memory."""
        if (policy := self._of(client.limits)) is not None:
            policy.check_vram(graph, vram)

    def _check_size(self, graph: Mapping[str, Any]) -> None:
        """What ComfyUI's validation takes on the event loop, where it holds up everybody."""
        limit = self._settings.keyed_max_nodes
        if len(graph) > limit:
            raise PolicyViolationError(
                f"The prompt has {len(graph)} nodes; {limit} are allowed.",
                details="policy.keyed_max_nodes",
                extra_info={"nodes": len(graph), "max_nodes": limit},
            )
        limit = self._settings.keyed_max_chain
        if (longest := measure_chain(graph)) > limit:
            raise PolicyViolationError(
                f"{longest} nodes of the prompt follow each other, each fed by the one before; {limit} may.",
                details="policy.keyed_max_chain",
                extra_info={"nodes": longest, "max_chain": limit},
            )

    def _check_labour(self, graph: Mapping[str, Any]) -> None:
        """What its texts, patterns and formulas would do that nothing can interrupt, nor survive."""
        fault = find_labour(graph, self._classes, self._settings.max_text_chars)
        if fault is not None:
            kind = graph[fault.node_id]["class_type"]
            raise PolicyViolationError(
                f"{kind[:100]} (node {fault.node_id[:100]}) {fault.complaint}.",
                details="The texts, patterns and formulas in the prompts of a key have bounds (docs/limits.md).",
                extra_info={
                    "node_id": fault.node_id,
                    "class_type": kind,
                    "input": fault.input,
                    "value": fault.value if fault.value is not None and fault.value < 1e300 else None,
                    "limit": fault.limit,
                },
            )

    def _make(self, limits: KeyLimits) -> Policy | None:
        names = ("allow_nodes", "deny_nodes", "profile", "max_pixels", "max_steps")
        own = {name: value for name in names if (value := getattr(limits, name))}
        if not own:
            return None
        server = {"max_nodes": self._settings.max_nodes, "strict": self._settings.strict}
        return Policy(PolicySettings.model_validate({**server, **own}), "key", self._describe)


def check_kind(request: Submission) -> None:
    """Refuse graphs from a key that may use templates only."""
    is_made_of_template = request.fill is not None or request.repeats is not None
    if request.client.limits.templates_only and not is_made_of_template:
        raise ForbiddenError(
            "This key may use the server's templates only, and sends no graph.",
            details="POST /guarded/workflows/{name} takes a template's parameters; GET /guarded/workflows lists them.",
        )
