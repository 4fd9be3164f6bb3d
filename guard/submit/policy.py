"""Limit what a prompt may ask for: node classes, pixels, steps, frames, seconds.

Inputs are known by their names, and links lead to the nodes that hand a number on. What a node computes (a formula, the
size of a loaded picture) cannot be known here and is allowed, unless `policy.strict` says otherwise. Every pass looks
at each node and each link once, in circles too.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PolicyViolationError
from ..graph import is_link
from ..settings import PolicySettings
from .patterns import compile_patterns

#: Nodes with several inputs that hand on one of them: at most the largest of these comes out. (A node with a single
#: input, such as a constant, a converter or a reroute, hands that one on and need not stand here.)
_HANDS_ON = {
    "ComfySwitchNode": ("on_true", "on_false"),
    "ComfySoftSwitchNode": ("on_true", "on_false"),
    "easy ifElse": ("on_true", "on_false"),
    "easy convertAnything": ("*",),
    "ImpactConditionalBranch": ("tt_value", "ff_value"),
    "Constant Number": ("number", "number_as_text"),
}

#: Their sizes say which part of a canvas a text describes, not how large the picture is: 4096 is usual and harmless.
_NO_PICTURE = frozenset({"CLIPTextEncodeSDXL", "CLIPTextEncodeSDXLRefiner"})

_STEPS = re.compile(r"(?:.+_)?steps")
_WIDTH = re.compile(r"(?:.*_)?width(?:_.*)?")
_HEIGHT = re.compile(r"(?:.*_)?height(?:_.*)?")
_FRAMES = frozenset(
    {"length", "num_frames", "frames", "frame_count", "n_frames", "total_frames", "max_frames"}
    | {"video_frames", "video_length", "frame_load_cap", "image_load_cap"}
)
_RATES = frozenset({"fps", "frame_rate"})
_SECONDS = frozenset(
    {"seconds", "duration", "duration_s", "duration_seconds", "seconds_total", "total_seconds", "total_second_length"}
)
_BATCHES = frozenset({"batch_size", "batch_count", "num_images"})
#: Inputs that set one side of a picture, from which the other follows: at worst, the picture is a square.
_SIDES = frozenset({"longer_size", "longer_edge", "largest_size", "shorter_size"})
_SCALES = frozenset({"scale_by", "upscale_by", "upscale_factor", "scale_factor", "rescale_factor"})
#: ResizeImageMaskNode's. A bare `multiplier` rarely is a scale.
_SCALE_OF_RESIZE = "resize_type.multiplier"

#: Nodes that give more pictures than they get, and the input that says how many times as many.
_REPEATS = {
    "RepeatImageBatch": "amount",
    "RepeatLatentBatch": "amount",
    "VHS_DuplicateImages": "multiply_by",
    "VHS_DuplicateLatents": "multiply_by",
    "VHS_DuplicateMasks": "multiply_by",
}
#: The same for films: nodes that make pictures between the frames.
_INTERPOLATES = {"FrameInterpolate": "multiplier", "RIFE VFI": "multiplier", "FILM VFI": "multiplier"}
#: Nodes that give all the pictures of all their inputs.
_JOINS = frozenset(
    {"ImageBatch", "ImageBatchMulti", "LatentBatch", "BatchImagesNode", "BatchLatentsNode", "BatchMasksNode"}
    | {"BatchImagesMasksLatentsNode"}
)
#: Nodes that take `length` pictures out of a batch.
_CUTS = frozenset({"ImageFromBatch", "LatentFromBatch"})

#: Anything beyond this is too much. Without a bound, a number doubled a thousand times would outgrow the graph.
_ENDLESS = 1e18


@dataclass(frozen=True)
class _Amount:
    """What a node gives at most.

    Attributes:
        area: pixels of one picture; 0: unknown.
        batch: pictures.
        frames: of a film; 0: unknown.
    """

    area: float = 0
    batch: float = 1
    frames: float = 0


class Policy:
    """The operator's limits, checked against graphs.

    `where` is how refusals call the place where the limits stand.
    """

    def __init__(self, settings: PolicySettings, where: str = "policy") -> None:
        self._settings = settings
        self._where = where
        self._allowed = compile_patterns(settings.allow_nodes)
        self._denied = compile_patterns(settings.deny_nodes)
        self._numbers = any((settings.max_pixels, settings.max_steps, settings.max_frames, settings.max_seconds))

    def check(self, graph: Mapping[str, Any]) -> None:
        """Check a graph, whose nodes must be objects with a `class_type` and `inputs`.

        Raises:
            PolicyViolationError: something is over a limit; names the node, input, value and limit.
        """
        try:
            self._check(graph)
        except PolicyViolationError as error:
            error.details = error.details and f"{self._where}.{error.details}"
            raise

    def _check(self, graph: Mapping[str, Any]) -> None:
        if len(graph) > self._settings.max_nodes:
            raise PolicyViolationError(
                f"The prompt has {len(graph)} nodes; {self._settings.max_nodes} are allowed.",
                extra_info={"nodes": len(graph), "max_nodes": self._settings.max_nodes},
            )
        if self._allowed or self._denied:
            self._check_classes(graph)
        if self._numbers:
            numbers = _Numbers(graph)
            self._check_inputs(numbers)
            self._check_amounts(numbers)

    def _check_classes(self, graph: Mapping[str, Any]) -> None:
        settings = self._settings
        for node_id, node in graph.items():
            kind = node["class_type"]
            if self._denied and self._denied.fullmatch(kind):
                limit = next(pattern for pattern in settings.deny_nodes if _matches(pattern, kind))
                raise _refuse(node_id, kind, "class_type", kind, limit, "deny_nodes", "is denied on this server")
            if self._allowed and not self._allowed.fullmatch(kind):
                limit = ", ".join(settings.allow_nodes)
                raise _refuse(node_id, kind, "class_type", kind, limit, "allow_nodes", "is not allowed here")

    def _check_inputs(self, numbers: _Numbers) -> None:
        settings = self._settings
        for node_id, name, value in numbers.inputs():
            leaf = _last_part(name)
            if _STEPS.fullmatch(leaf):
                limit: float = settings.max_steps
                what = "steps"
            elif leaf in _FRAMES:
                limit, what = settings.max_frames, "frames"
            elif leaf in _SECONDS:
                limit, what = settings.max_seconds, "seconds"
            elif _sets_size(name):
                limit, what = settings.max_pixels, "pixels"
            else:
                continue
            if not limit:
                continue
            known, certain = numbers.read(value)
            if settings.strict and not certain:
                complaint = (
                    f"has an input {name[:100]} whose value only the run can tell; it must be a number or a constant"
                )
                raise _refuse(node_id, numbers.kind(node_id), name, None, limit, "strict", complaint)
            if known is not None and known > limit and what != "pixels":
                raise self._refuse_amount(numbers, node_id, name, known, limit, what)

    def _check_amounts(self, numbers: _Numbers) -> None:
        settings = self._settings
        for node_id, name, amount, rate in numbers.amounts():
            pixels = amount.area * amount.batch
            if settings.max_pixels and pixels > settings.max_pixels:
                raise self._refuse_amount(numbers, node_id, name, pixels, settings.max_pixels, "pixels")
            if rate is None:
                continue
            frames = max(amount.frames, 1) * amount.batch
            if settings.max_frames and frames > settings.max_frames:
                raise self._refuse_amount(numbers, node_id, name, frames, settings.max_frames, "frames")
            seconds = frames / rate if rate > 0 else 0
            if settings.max_seconds and seconds > settings.max_seconds:
                raise self._refuse_amount(numbers, node_id, name, seconds, settings.max_seconds, "seconds")

    def _refuse_amount(
        self, numbers: _Numbers, node_id: str, name: str, value: float, limit: float, what: str
    ) -> PolicyViolationError:
        kind = numbers.kind(node_id)
        complaint = f"asks for {_format(value)} {what} (input {name[:100]}); at most {_format(limit)} are allowed"
        return _refuse(node_id, kind, name, value if value < _ENDLESS else None, limit, f"max_{what}", complaint)


def _refuse(
    node_id: str, kind: str, name: str, value: float | str | None, limit: float | str, setting: str, complaint: str
) -> PolicyViolationError:
    return PolicyViolationError(
        f"{kind[:100]} (node {node_id[:100]}) {complaint}.",
        details=setting,
        extra_info={"node_id": node_id, "class_type": kind, "input": name, "value": value, "limit": limit},
    )


class _Numbers:
    """The numbers of one graph, traced through its links."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._kinds = {node_id: str(node["class_type"]) for node_id, node in graph.items()}
        self._inputs: dict[str, Mapping[str, Any]] = {node_id: node["inputs"] for node_id, node in graph.items()}
        self._largest, self._uncertain = self._trace_numbers()

    def kind(self, node_id: str) -> str:
        return self._kinds[node_id]

    def inputs(self) -> Iterable[tuple[str, str, Any]]:
        for node_id, inputs in self._inputs.items():
            for name, value in inputs.items():
                yield node_id, name, value

    def read(self, value: Any) -> tuple[float | None, bool]:
        """(the largest number that an input can have, None where unknown; whether that is certain)."""
        if is_link(value):
            return self._largest.get(value[0]), value[0] not in self._uncertain and value[0] in self._kinds
        return _read_number(value), True

    def amounts(self) -> Iterable[tuple[str, str, _Amount, float | None]]:
        """(node id, input, amount, frame rate) of every node that sets or changes an amount, or has a frame rate."""
        needs = dict.fromkeys(self._kinds, 0)
        feeds: dict[str, list[str]] = {node_id: [] for node_id in self._kinds}
        for node_id, _name, value in self.inputs():
            if is_link(value) and value[0] in feeds:
                needs[node_id] += 1
                feeds[value[0]].append(node_id)
        known: dict[str, _Amount] = {}
        ready = [node_id for node_id, count in needs.items() if not count]
        while ready:  # nodes in a circle never become ready, and ComfyUI cannot run them either
            node_id = ready.pop()
            names, known[node_id] = self._find_amount(node_id, known)
            rate = self._find_number(node_id, _RATES)
            if rate is not None:
                names = [*names, rate[0]]
            if names:
                yield node_id, names[0], known[node_id], rate[1] if rate is not None else None
            for fed in feeds[node_id]:
                needs[fed] -= 1
                if not needs[fed]:
                    ready.append(fed)

    def _find_amount(self, node_id: str, known: Mapping[str, _Amount]) -> tuple[list[str], _Amount]:
        """The inputs by which the node itself sets an amount, and the amount that it gives."""
        kind, inputs = self._kinds[node_id], self._inputs[node_id]
        names: list[str] = []
        incoming = [known[value[0]] for value in inputs.values() if is_link(value) and value[0] in known]
        area = max((amount.area for amount in incoming), default=0)
        frames = max((amount.frames for amount in incoming), default=0)
        batch = max((amount.batch for amount in incoming), default=1)
        if kind in _JOINS and len(incoming) > 1:
            batch = sum(amount.batch for amount in incoming)
            frames = sum(amount.frames for amount in incoming)
            names.append(next(name for name, value in inputs.items() if is_link(value)))
        if kind not in _NO_PICTURE and (size := self._find_size(inputs)) is not None:
            names.append(size[0])
            area = size[1]
        for name, value in inputs.items():
            leaf = _last_part(name)
            number = self.read(value)[0]
            if number is None or number <= 0:
                continue
            if leaf in _SCALES or name == _SCALE_OF_RESIZE:
                area *= number * number
            elif name == _REPEATS.get(kind):
                batch *= number
            elif name == _INTERPOLATES.get(kind):
                frames = max(frames, batch) * number
            elif kind in _CUTS and leaf == "length":
                batch = min(batch, number)
            elif leaf in _BATCHES:
                batch = number
            elif leaf in _FRAMES:
                frames = number
            else:
                continue
            names.append(name)
        return names, _Amount(min(area, _ENDLESS), min(batch, _ENDLESS), min(frames, _ENDLESS))

    def _find_size(self, inputs: Mapping[str, Any]) -> tuple[str, float] | None:
        """(input, pixels) of the largest size that the node sets; None where it sets none."""
        sizes: list[tuple[float, str]] = []
        for name, value in inputs.items():
            leaf = _last_part(name)
            width = self.read(value)[0] if _sets_size(name) else None
            if width is None or width <= 0:
                continue
            if leaf == "megapixels":
                sizes.append((width * 2**20, name))  # as ComfyUI's ImageScaleToTotalPixels counts them
            elif leaf in _SIDES:
                sizes.append((width * width, name))
            elif _WIDTH.fullmatch(leaf):
                height = self.read(inputs.get(_name_height(name)))[0]
                # A height that follows from the picture may be anything from one pixel on.
                sizes.append((width * max(height or 1, 1), name))
            elif (height_only := inputs.get(_name_width(name))) is None or (self.read(height_only)[0] or 0) <= 0:
                sizes.append((width, name))
        if not sizes:
            return None
        area, name = max(sizes)
        return name, area

    def _find_number(self, node_id: str, names: frozenset[str]) -> tuple[str, float] | None:
        for name, value in self._inputs[node_id].items():
            if _last_part(name) in names and (number := self.read(value)[0]) is not None:
                return name, number
        return None

    def _trace_numbers(self) -> tuple[dict[str, float], set[str]]:
        """Follow numbers through the nodes that hand them on, in circles too.

        The largest numbers travel first, so that the first to reach a node is the largest that may come out of it.
        Returns them by node, and the nodes where they are not certain.
        """
        largest: dict[str, float] = {}
        uncertain: set[str] = set()
        readers: dict[str, list[str]] = {}
        seeds: list[tuple[float, str]] = []
        for node_id, inputs in self._inputs.items():
            names = _HANDS_ON.get(self._kinds[node_id]) or (tuple(inputs) if len(inputs) == 1 else ())
            numbers = 0
            for name in names:
                value = inputs.get(name)
                if is_link(value):
                    readers.setdefault(value[0], []).append(node_id)
                    numbers += 1
                elif (number := _read_number(value)) is not None:
                    seeds.append((-number, node_id))
                    numbers += 1
            if not numbers:
                uncertain.add(node_id)
        heapq.heapify(seeds)
        while seeds:
            negative, node_id = heapq.heappop(seeds)
            if node_id not in largest:
                largest[node_id] = -negative
                for reader in readers.get(node_id, ()):
                    heapq.heappush(seeds, (negative, reader))
        doubtful = [*uncertain, *(node_id for node_id in readers if node_id not in self._kinds)]
        while doubtful:
            for reader in readers.get(doubtful.pop(), ()):
                if reader not in uncertain:
                    uncertain.add(reader)
                    doubtful.append(reader)
        uncertain.update(node_id for node_id in self._kinds if node_id not in largest)
        return largest, uncertain


def _last_part(name: str) -> str:
    """The name without the prefix of ComfyUI's dynamic inputs: `resize_type.width` is a `width`."""
    return name.rpartition(".")[2]


def _sets_size(name: str) -> bool:
    leaf = _last_part(name)
    return leaf == "megapixels" or leaf in _SIDES or bool(_WIDTH.fullmatch(leaf) or _HEIGHT.fullmatch(leaf))


def _name_height(name: str) -> str:
    return name.replace("width", "height")


def _name_width(name: str) -> str:
    return name.replace("height", "width")


def _read_number(value: Any) -> float | None:
    """The number that ComfyUI makes of an input; it unwraps `__value__` and converts text."""
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    if not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:
        number = math.inf if int(value) > 0 else -math.inf  # more than 308 digits
    return None if math.isnan(number) else max(min(number, _ENDLESS), -_ENDLESS)


def _matches(pattern: str, kind: str) -> bool:
    compiled = compile_patterns([pattern])
    return compiled is not None and compiled.fullmatch(kind) is not None


def _format(number: float) -> str:
    if number >= _ENDLESS:
        return "endless"
    return str(int(number)) if number == int(number) else f"{number:.3f}"
