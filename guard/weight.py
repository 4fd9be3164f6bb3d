"""What a model takes of the card's memory, as the host tells it, and what a job needs of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from typing_extensions import TypedDict


@dataclass(frozen=True)
class ModelWeight:
    """A model that samples, by the host's own figures.

    Attributes:
        family: the host's name for what it is.
        weights_bytes: all of its weights, as the host would hold them.
        cell_bytes: what it works in, for each cell of the latents: one pixel of theirs, at one moment of a film.
        side: a cell is so many pixels wide and high, and `frames` of a film long.
        spare_bytes: the least that the host keeps free to work in.
        in_parts: the host can do with a part of the weights on the card.
    """

    family: str
    weights_bytes: int
    cell_bytes: float
    side: int
    frames: int
    spare_bytes: int
    in_parts: bool


class Weigher(Protocol):
    """Knows the host's models."""

    def weigh_model(self, name: str) -> ModelWeight | None:
        """What the model of that name takes; None where nobody knows. Waits for the disk. Any thread."""


class VramBody(TypedDict):
    """What a job is estimated to take of the card's memory.

    `usual_gb` with all weights there, `least_gb` with as few as the host can do with. `model` is the file that decides,
    `family` the host's name for what it is, `node_id` the sampler.
    """

    least_gb: float
    usual_gb: float
    node_id: str
    model: str
    family: str


class Placement(NamedTuple):
    """What decides which server of a fleet may run a job, and which should.

    Attributes:
        needs: a digest of all that decides which may; "" where that is nobody's question.
        models: the names of its models, but for what is merely laid over one.
        min_vram_mb: the memory that the card must have, where that is known.
    """

    needs: str = ""
    models: tuple[str, ...] = ()
    min_vram_mb: int | None = None


ANYWHERE = Placement()
