"""Client: who asks, and whose jobs it may see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _limit(default: Any, says: str, meaning: str, kind: str = "") -> Any:
    """A limit of a key: `says` is its word in the list of the keys, with `{}` for its value; `kind` is what it takes,
    where its type does not tell."""
    return field(default=default, metadata={"says": says, "meaning": meaning, "kind": kind})


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """The limits of a key; None, or empty: as the settings say.

    The command line, the routes and the page make their options and fields of these (`guard/access/limit_fields.py`).

    Attributes:
        allow_nodes, deny_nodes, profile, max_pixels, max_steps: as in the section `policy` of the settings. Both must
            let a prompt through, so that a key can only be tighter than the server.
        max_streams, max_requests, max_open_bytes, max_file_bytes: as in the section `limits`.
        templates_only: the key sends parameters of templates, never a graph.
        results_format, results_quality, results_max_side, results_inline: what `guard.results` of its requests does not
            say; no limits, but kept with them.
    """

    jobs_per_minute: float | None = _limit(None, "jobs/min {}", "instead of the limit in the settings")
    max_queued: int | None = _limit(None, "queued {}", "how many of its jobs may wait at once")
    max_streams: int | None = _limit(None, "streams {}", "its open event streams and websockets")
    max_requests: int | None = _limit(None, "requests {}", "its requests that are worked on at once")
    max_open_bytes: int | None = _limit(None, "open bytes {}", "bytes of the requests of its jobs that have not ended")
    max_file_bytes: int | None = _limit(None, "file bytes {}", "bytes of its files in input, output and temp")
    max_pixels: int | None = _limit(None, "pixels {}", "width × height × batch of its prompts")
    max_steps: int | None = _limit(None, "steps {}", "steps of its prompts")
    profile: str = _limit("", "profile {}", "limits for a card, for its prompts")
    allow_nodes: tuple[str, ...] = _limit((), "only {}", "its prompts may use only these classes")
    deny_nodes: tuple[str, ...] = _limit((), "not {}", "… and none of these")
    templates_only: bool = _limit(False, "templates only", "it may use the server's templates, and never sends a graph")
    results_format: str = _limit("", "results {}", "convert results, unless its requests say otherwise", "format")
    results_quality: int | None = _limit(None, "quality {}", "1 to 100, for that format", "quality")
    results_max_side: int | None = _limit(None, "side {}", "pixels of a converted copy's longer side", "side")
    results_inline: bool = _limit(False, "results inline", "answers and webhooks bring the files in Base64")


@dataclass(frozen=True)
class Client:
    """Who asks, and owns the jobs that it submits. An `operator` sees and stops everybody's jobs.

    `key_id` is None for trusted loopback; `webhook` is the URL that is told of the key's jobs.
    """

    owner: str
    operator: bool
    key_id: str | None = None
    limits: KeyLimits = KeyLimits()
    webhook: str | None = None

    @property
    def sees_only(self) -> str | None:
        """The owner whose jobs the client may see; None for an operator, who sees everybody's."""
        return None if self.operator else self.owner

    def may_see(self, owner: str) -> bool:
        """Whether the client may see that owner's jobs."""
        return self.operator or self.owner == owner


LOCAL = Client("local", operator=True)
