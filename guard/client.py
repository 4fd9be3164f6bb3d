"""Client: who asks, and whose jobs it may see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """The limits of a key; None, or empty: as the settings say.

    Attributes:
        allow_nodes, deny_nodes, profile, max_pixels, max_steps: as in the section `policy` of the settings. Both must
            let a prompt through, so that a key can only be tighter than the server.
        max_streams, max_requests, max_open_bytes, max_file_bytes: as in the section `limits`.
        templates_only: the key sends parameters of templates, never a graph.
    """

    jobs_per_minute: float | None = None
    max_queued: int | None = None
    max_streams: int | None = None
    max_requests: int | None = None
    max_open_bytes: int | None = None
    max_file_bytes: int | None = None
    allow_nodes: tuple[str, ...] = ()
    deny_nodes: tuple[str, ...] = ()
    profile: str = ""
    max_pixels: int | None = None
    max_steps: int | None = None
    templates_only: bool = False


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
