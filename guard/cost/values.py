"""What goes along a link, as far as it is known before the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .ranges import ENDLESS, Range, is_certain, read_text, unite


class Extent(NamedTuple):
    """Pictures, at most.

    Attributes:
        width, height: 0: unknown.
        area: pixels of one; 0: unknown.
        batch: how many.
        frames: each of them is a film of so many; 0: a single picture, or unknown.
        turned: nobody knows which side is the width.
        scale: by how much the sides of the latents are smaller, where these are latents; 0: as usual, or unknown.
        known: neither area nor number depends on anything that only the run can tell.
    """

    width: float = 0
    height: float = 0
    area: float = 0
    batch: float = 1
    frames: float = 0
    known: bool = True
    turned: bool = False
    scale: float = 0

    @property
    def pictures(self) -> float:
        return min(self.batch * max(self.frames, 1), ENDLESS)

    @property
    def pixels(self) -> float:
        return min(self.area * self.pictures, ENDLESS)


class Items(NamedTuple):
    """How long a list is: each of its items runs what follows.

    Attributes:
        most: 1: it is no list, as far as anybody knows.
        maker: who made it: lists of one maker are of one length.
        counted: nobody but the run could tell of more items.
    """

    most: float = 1
    least: float = 1
    maker: str = ""
    counted: bool = True


ONE = Items()


class Calls(NamedTuple):
    """How often a sampler calls its model, beside once at each step.

    Attributes:
        times: each of those is so many.
        added: so many more at each step.
        larger: the pixels that a part of the model works on, by those of the latent.
        again, together: so many more at one step at most, and at all steps together.
        least: whatever the steps are.
    """

    times: float = 1
    added: float = 0
    larger: float = 1
    again: float = 0
    together: float = 0
    least: float = 0

    def sum_up(self, steps: float) -> float:
        calls = max(steps + min(steps * self.again, self.together), self.least)
        return min(calls * (1 + self.added) * self.times, ENDLESS)


ONCE = Calls()


class Value(NamedTuple):
    """One output of a node.

    Attributes:
        number: None: unknown, or none.
        text: None: unknown, or none.
        extent: of pictures, latents, masks and films; of a list, of all its items together.
        steps: of a schedule.
        factor: of a model that makes pictures larger; 0: it is none.
        rate: frames per second, of a film; 0: unknown.
        times: how often the run makes it.
        items: of the list that it is.
        told: it is made of nothing but what the prompt says.
        conditions: how many conditions there are, each of which every step works on.
        scale: by how much the latents of a VAE are smaller; 0: as usual, or it is none.
        seconds: of a sound, or of each that latents stand for; 0: unknown, or none.
        moments: of tracks along which things move; 0: unknown, or none.
        samples: of a sound, all channels together; 0: unknown, or none.
        calls: of a model, by what is done to it, of a sampler, or of conditions.
        places: how many a text of them has at most that is not known, or how long a list is; 0: unknown, or none.
    """

    number: Range | None = None
    text: str | None = None
    extent: Extent | None = None
    steps: float = 0
    factor: float = 0
    rate: float = 0
    times: float = 1
    items: Items = ONE
    told: bool = False
    conditions: float = 1
    scale: float = 0
    seconds: float = 0
    moments: float = 0
    samples: float = 0
    calls: Calls = ONCE
    places: float = 0


class Media(NamedTuple):
    """What a loader's file holds.

    Attributes:
        width, height: upright; 0 for sound.
        frames: 0 for a picture and for sound.
        seconds: 0 for a picture.
        rate: frames per second.
        samples: of its sound, all channels together.
    """

    width: int = 0
    height: int = 0
    frames: int = 0
    seconds: float = 0
    rate: float = 0
    samples: float = 0


class Amount(NamedTuple):
    """What one node asks for.

    Attributes:
        input: by which it asks; empty where it goes by what comes in.
        rate: of a film that it writes; None where it writes none.
        steps: of a sampler; 0: it is none.
        times: how often a loop runs it.
        runs: how often a list runs it; what it works on is of all of those together.
        pictures: it gives pictures, and no latents: of those, a batch may be a film.
        conditions: each step of a sampler works on so many, beside what is not wanted.
        schedule: the steps of the list of sigmas that it takes; 0: it takes none.
        seconds: of the sounds that it makes or puts together; 0: it does not.
        samples: of its sounds, all channels together.
        loaded_s: how long a sound is that comes from a file; 0: it does not.
        calls: of its model, for each step.
        hidden: the input by which there are more, and of which only the run can tell by how many; empty: there is none.
    """

    node_id: str
    input: str
    extent: Extent
    rate: float | None = None
    steps: float = 0
    times: float = 1
    pictures: bool = False
    runs: float = 1
    conditions: float = 1
    schedule: float = 0
    seconds: float = 0
    samples: float = 0
    loaded_s: float = 0
    calls: Calls = ONCE
    hidden: str = ""

    @property
    def work(self) -> float:
        """Pixels × steps × conditions. Four frames count as one, as in the latents of nearly all models for films."""
        if not self.steps:
            return 0
        frames = -(-max(self.extent.frames, 1) // 4) if self.extent.frames > 1 else 1
        area = self.extent.area or USUAL_AREA
        calls = self.calls.sum_up(self.steps)
        return min(area * self.extent.batch * frames * calls * self.times * self.conditions, ENDLESS)


#: What a sampler is taken to work on where nothing says how large it is.
USUAL_AREA = 1024 * 1024


def unite_values(values: Sequence[Value], *, each: bool = False) -> Value:
    """What any of them may be. With `each`, now one and now the other: the pictures of all of them may come."""
    if len(values) < 2:
        return values[0] if values else Value()
    extents = [value.extent for value in values if value.extent is not None]
    places = [find_places(value) for value in values]
    extent = None
    if extents:
        largest = max(extents, key=lambda one: one.pixels or one.pictures)
        extent = Extent(
            max(one.width for one in extents),
            max(one.height for one in extents),
            max(one.area for one in extents),
            min(sum(one.batch for one in extents), ENDLESS) if each else largest.batch,
            max(one.frames for one in extents) if each else largest.frames,
            all(one.known for one in extents),
            scale=max(one.scale for one in extents),
        )
    return Value(
        number=unite([value.number or read_text(value.text) for value in values]),
        extent=extent,
        steps=max(value.steps for value in values),
        factor=max(value.factor for value in values),
        rate=max(value.rate for value in values),
        times=max(value.times for value in values),
        told=all(value.told for value in values),
        conditions=max(value.conditions for value in values),
        scale=max(value.scale for value in values),
        seconds=max(value.seconds for value in values),
        moments=max(value.moments for value in values),
        samples=max(value.samples for value in values),
        calls=unite_calls([value.calls for value in values]),
        places=max(places) if all(places) else 0,
    )


def unite_calls(calls: Sequence[Calls]) -> Calls:
    """What any of them may take."""
    return calls[0] if len(set(calls)) == 1 else Calls(*map(max, zip(*calls, strict=True)))


def count_marks(text: str) -> float:
    """How many places a text of them has at most, or numbers a list of those."""
    return text.count("{") + text.count("[") or text.count(",") + 1


def find_places(value: Value) -> float:
    """The same of what a link brings; 0: nobody knows."""
    if value.text is not None:
        return count_marks(value.text)
    return value.places or (1 if is_certain(value.number) else 0)
