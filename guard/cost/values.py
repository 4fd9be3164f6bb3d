"""What goes along a link, as far as it is known before the run."""

from __future__ import annotations

from typing import NamedTuple

from .ranges import ENDLESS, Range


class Extent(NamedTuple):
    """Pictures, at most.

    Attributes:
        width, height: 0: unknown.
        area: pixels of one; 0: unknown.
        batch: how many.
        frames: each of them is a film of so many; 0: a single picture, or unknown.
        turned: nobody knows which side is the width.
        known: neither area nor number depends on anything that only the run can tell.
    """

    width: float = 0
    height: float = 0
    area: float = 0
    batch: float = 1
    frames: float = 0
    known: bool = True
    turned: bool = False

    @property
    def pictures(self) -> float:
        return min(self.batch * max(self.frames, 1), ENDLESS)

    @property
    def pixels(self) -> float:
        return min(self.area * self.pictures, ENDLESS)


class Value(NamedTuple):
    """One output of a node.

    Attributes:
        number: None: unknown, or none.
        text: None: unknown, or none.
        extent: of pictures, latents, masks and films.
        steps: of a schedule.
        factor: of a model that makes pictures larger; 0: it is none.
        rate: frames per second, of a film; 0: unknown.
        times: how often the run makes it.
    """

    number: Range | None = None
    text: str | None = None
    extent: Extent | None = None
    steps: float = 0
    factor: float = 0
    rate: float = 0
    times: float = 1


class Media(NamedTuple):
    """What a loader's file holds.

    Attributes:
        width, height: upright; 0 for sound.
        frames: 0 for a picture and for sound.
        seconds: 0 for a picture.
        rate: frames per second.
    """

    width: int = 0
    height: int = 0
    frames: int = 0
    seconds: float = 0
    rate: float = 0


class Amount(NamedTuple):
    """What one node asks for.

    Attributes:
        input: by which it asks; empty where it goes by what comes in.
        rate: of a film that it writes; None where it writes none.
        steps: of a sampler; 0: it is none.
        times: how often it runs.
        pictures: it gives pictures, and no latents: of those, a batch may be a film.
    """

    node_id: str
    input: str
    extent: Extent
    rate: float | None = None
    steps: float = 0
    times: float = 1
    pictures: bool = False

    @property
    def work(self) -> float:
        """Pixels × steps. Four frames of a film count as one, as in the latents of nearly all models for films."""
        frames = -(-max(self.extent.frames, 1) // 4) if self.extent.frames > 1 else 1
        area = self.extent.area or USUAL_AREA
        return min(area * self.extent.batch * frames * self.steps * self.times, ENDLESS)


#: What a sampler is taken to work on where nothing says how large it is.
USUAL_AREA = 1024 * 1024
