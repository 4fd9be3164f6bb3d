# Over 400 lines: the stages of one walk, each of which reads and writes what it knows of the nodes before.
"""Go through a prompt's graph, and tell what each node asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..graph import is_link, list_in_order
from .calls import find_calls, find_factor, hands_calls
from .classes import PLAIN, NodeClass, NodeClasses, find_short_role
from .counts import go_back
from .lists import count_parts, count_runs, mark_lists, spread
from .measures import measure
from .names import Role, Trait
from .particular import (
    BOXES,
    USUAL_SCALE,
    Node,
    bound_boxes,
    enlarge,
    find_compression,
    find_scale,
    make,
    spread_constants,
)
from .picks import count_picks, count_places, hand_places
from .plain import PlainNode, find_named, fit, of_constant, read_value
from .ranges import ANYTHING, ENDLESS, Range, read_number, read_text, take_size
from .shapes import Asked, find_largest, pad_mask
from .sizes import combine, list_extents
from .sounds import PER_PIXEL, TRACKS, count_moments, find_sounds, measure_sound
from .steps import count_conditions, find_steps
from .texts import Budget
from .values import ONCE, USUAL_AREA, Amount, Extent, Items, Media, Value, unite_values

_OWN_PICTURES = frozenset(
    {Role.WIDTH, Role.HEIGHT, Role.MOST_WIDTH, Role.MOST_HEIGHT, Role.MEGAPIXELS, Role.SIDE, Role.SHORT_SIDE}
    | {Role.SQUARE, Role.FRAMES, Role.CAP, Role.BATCH}
)

_KEPT_KINDS = frozenset({"IMAGE", "MASK", "AUDIO", "LATENT"})
_PICTURES = frozenset({"IMAGE", "MASK"})
#: Pixels whose latents take as much memory as one pixel. FLUX.2's have half a number for each, the others' less.
_LATENT_PIXELS = 8
_SOUND_KINDS = frozenset({"AUDIO", "VIDEO"})
_HANDING = frozenset({Trait.SWITCH, Trait.HANDS_ON})
_SIDES = frozenset({Role.WIDTH, Role.HEIGHT, Role.MOST_WIDTH, Role.MOST_HEIGHT})
_UNKNOWN = Value()
_NO_CLASSES = NodeClasses()


class Walk:
    """One graph. Its nodes must be objects with a `class_type` and `inputs`; looks at each node and each link once.

    Args:
        media: what the loaders' files hold, by node id.

    Attributes:
        amounts: what each node asks for that makes pictures, or more of them, or works on them.
    """

    def __init__(
        self,
        graph: Mapping[str, Any],
        classes: NodeClasses = _NO_CLASSES,
        media: Mapping[str, Media] | None = None,
    ) -> None:
        self._classes = classes
        self._strange: dict[str, frozenset[str]] = {}
        self._graph = {node_id: self._take_in(node_id, node) for node_id, node in graph.items()}
        self._media = media or {}
        self._values: dict[str, Sequence[Value] | Value] = {}
        self._asked: dict[str, list[Asked]] = {}
        self._budget = Budget()
        self.amounts: list[Amount] = []
        for node_id in list_in_order(self._graph):
            self._visit(node_id)

    def _take_in(self, node_id: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """A node with nothing but what ComfyUI will hand to it."""
        inputs, strange = self._classes.find(str(node["class_type"])).drop_strange(node["inputs"])
        if strange:
            self._strange[node_id] = strange
        if node["class_type"] == "CustomCombo":  # which declares no index, and takes it for 0 without one
            inputs = {"index": 0, **inputs}
        return node if inputs is node["inputs"] else {**node, "inputs": inputs}

    def kind(self, node_id: str) -> str:
        return str(self._graph[node_id]["class_type"])

    def numbers(self) -> Iterator[tuple[str, Asked]]:
        """(node id, what it asks for) of every input that counts by itself."""
        for node_id, node in self._graph.items():
            asked = self._asked.get(node_id)
            if asked is None:  # in a circle
                asked = self._list_asked(node["inputs"])
            for one in asked:
                if one.role is Role.FRAMES:
                    node_class = self._classes.find(str(node["class_type"]))
                    if Trait.CUTS in node_class.traits or node_class.only_plain:
                        continue
                yield node_id, one

    def read(self, value: Any) -> Range | None:
        """What an input's number may be; None: only the run can tell."""
        return read_value(self._find(value)) if is_link(value) else read_text(value)

    def text(self, value: Any) -> str | None:
        """What an input's text is; None: only the run can tell, or it is none."""
        return self._find(value).text if is_link(value) else value if isinstance(value, str) else None

    def items(self, link: Any) -> float:
        """How long a list a link brings, as far as it is known; 1: it is none."""
        return self._find(link).items.most

    def sum_pixels(self) -> tuple[float, str]:
        """(pixels of all nodes' pictures, masks and latents together, the node that has the most): the host keeps all.

        Three samples of a sound count as a pixel, and eight pixels of latents.
        """
        total, most, largest = 0.0, 0.0, ""
        for node_id, values in self._values.items():
            node_class = self._classes.find(self.kind(node_id))
            if _KEPT_KINDS.isdisjoint(node_class.kinds) or not _HANDING.isdisjoint(node_class.traits):
                continue
            given = [values] if isinstance(values, Value) else values
            pixels = max((value.extent.pixels for value in given if value.extent is not None), default=0)
            if _PICTURES.isdisjoint(node_class.kinds) and not any(
                value.extent is not None and value.extent.scale == 1 for value in given
            ):
                pixels /= _LATENT_PIXELS
            pixels += max((value.samples * value.items.most for value in given), default=0) / PER_PIXEL
            total += pixels
            if pixels > most:
                most, largest = pixels, node_id
        return min(total, ENDLESS), largest

    # One node after the other. -------------------------------------------------------------------------------

    def _find(self, link: Any) -> Value:
        """What a link brings; of an output that is not there, the node's first."""
        values = self._values.get(link[0], _UNKNOWN)
        if isinstance(values, Value):
            return values
        at = int(link[1]) if math.isfinite(link[1]) else 0
        # Below 0 they are counted from the last, as Python's lists are.
        return values[at] if -len(values) <= at < len(values) else values[0] if values else _UNKNOWN

    def _kind_of(self, link: Any) -> str:
        """The kind of output that a link comes from."""
        node = self._graph.get(link[0])
        outputs = self._classes.find(str(node["class_type"])).outputs if node is not None else []
        at = int(link[1]) if math.isfinite(link[1]) else len(outputs)
        return outputs[at][0] if -len(outputs) <= at < len(outputs) else ""

    def _list_asked(self, inputs: Mapping[str, Any], *, cuts: bool = False) -> list[Asked]:
        return [
            Asked(name, role, take_size(self.read(value)) if role is Role.FRAMES and not cuts else self.read(value))
            for name, value in inputs.items()
            if (role := find_short_role(name)) is not None
        ]

    def _visit(self, node_id: str) -> None:
        node = self._graph[node_id]
        inputs = node["inputs"]
        node_class = self._classes.find(str(node["class_type"]))
        traits = node_class.traits
        linked = {name: self._find(value) for name, value in inputs.items() if is_link(value)}
        asked = self._asked[node_id] = self._list_asked(inputs, cuts=Trait.CUTS in traits)
        times = _count_rounds(asked, traits, linked)
        plain = PlainNode(str(node["class_type"]), node_class, inputs, linked, self._kind_of, self._budget)
        branches = plain.list_branches() if Trait.SWITCH in traits else {}
        if branches and node_class.lazy:
            linked = {name: value for name, value in linked.items() if name in branches or name not in node_class.lazy}
        runs = count_runs(node_id, node_class, linked)
        if runs.most > 1:
            linked = spread(linked)
        extents = list_extents(node_class, linked) if linked and not node_class.calculates else []
        media = self._media.get(node_id)
        handed = [value for value in _list_values(branches, linked) if value is not None]
        if handed:
            whole = unite_values(handed, each=runs.most > 1)
        elif _handles_pictures(node_class, extents, asked, media):
            parts = count_parts(node_class, inputs, linked)
            often = times * parts, runs
            whole = self._make_pictures(node_id, node_class, linked, asked, media, often, extents)
            if (strange := self._strange.get(node_id)) is not None:
                # Nobody knows whether it uses those.
                less = {name: value for name, value in linked.items() if name not in strange}
                fewer = [one for one in asked if one.name not in strange]
                extents = list_extents(node_class, less) if not node_class.calculates else []
                other = self._make_pictures(node_id, node_class, less, fewer, media, often, extents)
                whole = max(whole, other, key=_find_pixels)
            if media is not None and (resized := inputs.get("resize", True)) is not True:
                # A loader that may give its file as large as it is, whatever size stands beside that.
                fewer = [one for one in asked if one.role not in _SIDES]
                own = self._make_pictures(node_id, node_class, linked, fewer, media, often, extents)
                whole = own if resized is False else max(whole, own, key=_find_pixels)
            whole = whole._replace(told=plain.told)
            if parts > 1 and whole.extent is not None:
                whole = whole._replace(extent=whole.extent._replace(batch=min(whole.extent.batch * parts, ENDLESS)))
        elif node_class.gathers:
            whole = unite_values([value for value in _list_values(inputs, linked) if value is not None])
        else:
            whole = plain.give() if node_class.numbers else Value()
            steps = find_steps(node_class, inputs, asked, linked)
            factor = find_factor(str(node["class_type"]), node_class, inputs, self.read, linked)
            whole = whole._replace(steps=steps, factor=factor)
            if "VAE" in node_class.kinds:
                names = [value for value in inputs.values() if isinstance(value, str)]
                whole = whole._replace(scale=max(map(find_scale, names), default=0))
            elif TRACKS in node_class.kinds and (moments := count_moments(asked, inputs, linked)):
                whole = whole._replace(moments=moments, number=(moments, moments))
        if not handed and not _SOUND_KINDS.isdisjoint(node_class.kinds):
            whole = self._hear(node_id, node_class, whole, asked, linked)
        if not node_class.only_pictures:
            whole = whole._replace(conditions=count_conditions(node_class, inputs, linked))
            if not handed:
                whole = self._note_calls(node_id, node_class, whole, linked)
        if (times, runs) != (whole.times, whole.items):
            whole = whole._replace(times=max(times, whole.times), items=runs)
        outputs = node_class.outputs
        if node_class.only_plain or (outputs and whole.extent is not None) or len(outputs) > 1 or node_class.lists:
            values = self._deal(node_class, whole, inputs, linked)
            if node_class.lists:
                values = mark_lists(node_id, node_class, values, inputs, linked, asked)
            self._values[node_id] = values
        else:
            self._values[node_id] = whole

    def _make_pictures(
        self,
        node_id: str,
        node_class: NodeClass,
        linked: Mapping[str, Value],
        asked: Sequence[Asked],
        media: Media | None,
        often: tuple[float, Items],
        extents: Sequence[Extent],
    ) -> Value:
        times, runs = often
        inputs = self._graph[node_id]["inputs"]
        texts = {name: value for name, value in inputs.items() if isinstance(value, str)}
        factor = rate = 0.0
        for name, value in linked.items():
            factor, rate = max(factor, value.factor), max(rate, value.rate)
            if value.text is not None:
                texts[name] = value.text
        picks = count_picks(inputs, linked, extents) if extents else None
        names, extent = combine(
            extents,
            asked,
            texts,
            node_class.traits,
            factor=factor,
            media=media,
            times=times,
            runs=runs.most,
            picks=picks,
        )
        given = extent._replace(scale=self._find_scale(node_id, node_class, linked, extents))
        latents = [each for each in extents if each.scale > USUAL_SCALE]
        if latents and names and any(one.role in _SIDES for one in asked):
            given = enlarge(given, latents[0], crops=Trait.CROPS in node_class.traits)
        works = extent = given
        node = Node(inputs, linked, self.read)
        if (made := make(self.kind(node_id), node, given)) is not None:
            extent, works = made.gives, made.works
            names.append("")
        if texts.get("shape") in ("BCTHW", "BTCHW"):  # of noise, which may have a moment for each channel
            extent = extent._replace(
                batch=min(extent.batch * max(read_number(texts.get("latent_channels")) or 4, 4), ENDLESS)
            )
        if made is None:
            extent = spread_constants(node_class, inputs, extent, names)
        places, hidden = count_places(inputs, linked, lists=made is None)
        if places > 1:
            extent = extent._replace(batch=min(extent.batch * places, ENDLESS))
        if hidden := hidden or (made.hidden if made is not None else ""):
            names.append(hidden)
        if not runs.counted:
            extent = extent._replace(known=False)
        if made is None:
            works = extent
        writes = next((one for one in asked if one.role is Role.RATE), None)
        if writes is not None and writes.number is not None:
            rate = writes.number[0]
        elif media is not None:
            rate = media.rate
        steps = find_steps(node_class, inputs, asked, linked)
        sampled = steps if node_class.makes else 0
        seconds = max(find_sounds(node_class, asked, linked), made.seconds if made is not None else 0)
        calls = find_calls(self.kind(node_id), node_class, node, self._kind_of) if sampled else ONCE
        if calls.larger > 1:
            known = works.known and works.area > 0
            works = works._replace(area=min((works.area or USUAL_AREA) * calls.larger, ENDLESS), known=known)
        # A film is loaded whole, except where it stays one.
        loaded = media is not None and node_class.given in ("IMAGE", "MASK")
        if names or writes is not None or sampled or ((loaded or node_class.takes_films) and extent.frames):
            name = names[0] if names and names[0] else writes.name if writes is not None else _first_link(inputs)
            rated = rate if writes is not None else None
            if writes is not None:
                works = go_back(works, node_class.inputs, inputs)
            if writes is not None and (again := find_largest(asked, Role.ROUNDS)) > 0:
                # The film goes through as often once more.
                works = works._replace(batch=min(works.batch * (again + 1), ENDLESS))
            conditions = max((value.conditions for value in linked.values()), default=1)
            schedule = linked["sigmas"].steps if "sigmas" in linked else 0
            if node_class.inputs.get("steps") == "STRING":
                conditions = 1  # it runs for each, which is counted
            # Who writes a film gives the name of its file, or nothing.
            pictures = node_class.pictures or (writes is not None and "LATENT" not in node_class.kinds)
            self.amounts.append(
                Amount(
                    node_id, name, works, rated, sampled, times, pictures, runs.most, conditions, schedule,
                    min(seconds * extent.batch, ENDLESS), calls=calls, hidden=hidden,
                )
            )  # fmt: skip
        return Value(extent=extent, steps=0 if node_class.makes else steps, rate=rate, seconds=seconds)

    def _note_calls(self, node_id: str, node_class: NodeClass, whole: Value, linked: Mapping[str, Value]) -> Value:
        """With how often a sampler calls its model, and with places and boxes that nothing else tells."""
        node = Node(self._graph[node_id]["inputs"], linked, self.read)
        if places := hand_places(self.kind(node_id), node.inputs, linked):
            whole = whole._replace(places=places)
        if not node_class.numbers and not BOXES.isdisjoint(node_class.kinds):
            whole = whole._replace(number=bound_boxes(node))
        if not hands_calls(node_class):
            return whole
        calls = find_calls(self.kind(node_id), node_class, node, self._kind_of)
        if calls.sum_up(1) >= ENDLESS and not any(value.calls.sum_up(1) >= ENDLESS for value in linked.values()):
            # Some take all memory before there is a sampler.
            self.amounts.append(Amount(node_id, "", Extent(area=1), steps=1, calls=calls))
        return whole._replace(calls=calls)

    def _hear(
        self, node_id: str, node_class: NodeClass, whole: Value, asked: Sequence[Asked], linked: Mapping[str, Value]
    ) -> Value:
        """With the sound that it gives, of several one after the other all of them."""
        inputs, media = self._graph[node_id]["inputs"], self._media.get(node_id)
        seconds, samples = measure_sound(node_class, inputs, asked, linked, self.read, media)
        before = [value.seconds for value in linked.values() if value.seconds]
        is_film = whole.extent is not None and "VIDEO" in node_class.kinds
        together = 0.0
        if len(before) > 1 and "concat" in self.kind(node_id)[:100].lower():
            seconds = together = min(sum(before), ENDLESS)
        if not is_film and (samples or together):
            loaded_s = seconds if media is not None and node_class.given is None else 0
            self.amounts.append(Amount(node_id, "", Extent(), seconds=together, samples=samples, loaded_s=loaded_s))
        return whole._replace(samples=samples, seconds=whole.seconds if whole.extent is not None else seconds)

    def _find_scale(
        self, node_id: str, node_class: NodeClass, linked: Mapping[str, Value], extents: Sequence[Extent]
    ) -> float:
        """By how much the sides of the latents are smaller that a node gives: those of what it gets, or its own."""
        if "LATENT" not in node_class.kinds:
            return 0
        own = find_scale(self.kind(node_id)) or find_compression(self._graph[node_id]["inputs"])
        scales = [each.scale for each in extents] + [value.scale for value in linked.values()]
        return max(own, *scales) if scales else own

    def _deal(
        self, node_class: NodeClass, whole: Value, inputs: Mapping[str, Any], linked: Mapping[str, Value]
    ) -> list[Value]:
        """What each output gives."""
        values: list[Value] = []
        bare = Value(times=whole.times, items=whole.items, told=whole.told, places=whole.places)
        several = len(node_class.outputs) > 1
        others: list[Range | Extent | None] = []
        if whole.extent is not None and several:
            others = [value.extent for value in linked.values()]
            others += [
                self.read(value) for value in inputs.values() if is_link(value) or isinstance(value, (int, float))
            ]
        for kind, name in node_class.outputs:
            if kind not in PLAIN:
                one = whole
                if kind == "AUDIO" or "audio" in name.lower():
                    one = bare._replace(samples=whole.samples, seconds=whole.seconds if whole.extent is None else 0)
                elif kind == "MASK" and Trait.ONE_MASK in node_class.traits and whole.extent is not None:
                    one = whole._replace(extent=whole.extent._replace(batch=whole.items.most, frames=0))
                elif kind == "MASK" and Trait.PADS in node_class.traits and whole.extent is not None:
                    one = whole._replace(extent=pad_mask(whole.extent, *_find_pair(linked)))
                elif kind in BOXES:
                    one = whole._replace(number=bound_boxes(Node(inputs, linked, self.read)))
                values.append(one)
                continue
            number = whole.number
            if whole.extent is not None:
                number = measure(name, whole, node_class.traits, others, latent="LATENT" in node_class.inputs.values())
                if number is None and find_short_role(name) is not None and (named := find_named(name, inputs)):
                    number = self.read(inputs[named])
            elif several and (named := find_named(name, inputs)) is not None:
                found = linked[named] if named in linked else of_constant(inputs[named])
                if found is not None:
                    values.append(found._replace(times=max(found.times, whole.times), items=whole.items))
                    continue
            if number is None and kind in ("INT", "FLOAT", "NUMBER") and whole.told:
                number = read_text(whole.text) or ANYTHING
            text = whole.text if kind != "INT" else None
            values.append(bare._replace(number=fit(kind, number, node_class.traits), text=text))
        return values


def _count_rounds(asked: Sequence[Asked], traits: frozenset[Trait], linked: Mapping[str, Value]) -> float:
    """How often a node runs, and all that follows it."""
    times = 1.0
    for value in linked.values():
        times = max(times, value.times)
    for one in asked:
        if one.role is Role.ROUNDS and one.number is not None and (Trait.LOOPS in traits or "_" in one.name):
            times = min(times * max(one.number[1], 1), ENDLESS)
    return times


def _handles_pictures(
    node_class: NodeClass, extents: Sequence[Extent], asked: Sequence[Asked], media: Media | None
) -> bool:
    """Whether a node gets pictures, loads some, makes some of a size that it is told, or says how large they are."""
    if extents:
        return True
    if media is not None:
        return node_class.given is not None or "AUDIO" not in node_class.kinds
    if node_class.known:
        return node_class.given is not None or node_class.sizes
    return any(one.role in _OWN_PICTURES for one in asked)


def _find_pixels(value: Value) -> float:
    return value.extent.pixels or value.extent.pictures if value.extent is not None else 0


def _find_pair(linked: Mapping[str, Value]) -> tuple[Extent | None, Extent | None]:
    """The picture that a node gets, and the mask."""
    image, mask = (linked[name].extent if name in linked else None for name in ("image", "mask"))
    return image, mask


def _first_link(inputs: Mapping[str, Any]) -> str:
    return next((name for name, value in inputs.items() if is_link(value)), "")


def _list_values(inputs: Mapping[str, Any], linked: Mapping[str, Value]) -> list[Value | None]:
    return [linked[name] if name in linked else of_constant(value) for name, value in inputs.items()]
