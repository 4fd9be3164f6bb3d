"""Limit what a prompt may ask for: node classes, pixels, steps, frames, seconds, and what they come to together.

`guard/cost` follows the numbers and the pictures through the graph. What only the run can tell is allowed, unless
`policy.strict` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cost.classes import Describe, NodeClasses, describe_nothing
from ..cost.names import Role
from ..cost.ranges import ENDLESS, is_certain
from ..cost.sounds import PER_PIXEL, USUAL_RATE
from ..cost.values import Amount, Media
from ..cost.vram import Vram
from ..cost.walk import Walk
from ..errors import PolicyViolationError
from ..settings import PolicySettings
from .patterns import compile_patterns

#: The inputs that set a picture's size.
_SIZES = frozenset(
    {Role.WIDTH, Role.HEIGHT, Role.MOST_WIDTH, Role.MOST_HEIGHT, Role.MEGAPIXELS, Role.SIDE, Role.SHORT_SIDE}
    | {Role.SQUARE}
)
#: What each input that counts by itself is called in a refusal.
_WORDS = {Role.STEPS: "steps", Role.FRAMES: "frames", Role.CAP: "frames", Role.SECONDS: "seconds"}


#: ComfyUI keeps what all nodes of a prompt give until it ends. Its own templates have less than one largest film.
_TOGETHER = 2
#: A loader has its sound several times over while it puts the pieces together. Graphs mostly cut it afterwards.
_COPIES = _CUT_LATER = 4


class Policy:
    """The operator's limits, checked against graphs.

    `where` is how refusals call the place where the limits stand, `describe` says what a class declares.
    """

    def __init__(self, settings: PolicySettings, where: str = "policy", describe: Describe = describe_nothing) -> None:
        self._settings = settings
        self._where = where
        self.classes = NodeClasses(describe)
        self._allowed = compile_patterns(settings.allow_nodes)
        self._denied = compile_patterns(settings.deny_nodes)
        self._counts = any(
            (
                settings.max_pixels,
                settings.max_steps,
                settings.max_frames,
                settings.max_seconds,
                settings.max_film_pixels,
                settings.max_pixel_steps,
            )
        )

    @property
    def counts(self) -> bool:
        """Whether it limits any number, so that the size of a loaded file matters."""
        return self._counts

    def check(self, graph: Mapping[str, Any], media: Mapping[str, Media] | None = None, *, read: bool = True) -> None:
        """Check a graph, whose nodes must be objects with a `class_type` and `inputs`.

        Args:
            media: what the loaders' files hold, by node id.
            read: False: the files are still to be read, so what depends on them is not refused for being unknown.

        Raises:
            PolicyViolationError: something is over a limit; names the node, input, value and limit.
        """
        try:
            self._check(graph, media or {}, read)
        except PolicyViolationError as error:
            error.details = error.details and f"{self._where}.{error.details}"
            raise

    def walk(self, graph: Mapping[str, Any], media: Mapping[str, Media]) -> Walk:
        """What each of its nodes asks for."""
        return Walk(graph, self.classes, media)

    def check_vram(self, graph: Mapping[str, Any], vram: Vram) -> None:
        """Refuse what the card cannot hold even with as few weights as the host can do with. Raises as `check` does."""
        limit = self._settings.vram_budget_gb
        if limit and vram.least > limit * 2**30:
            kind, least = graph[vram.node_id]["class_type"], vram.body()["least_gb"]
            complaint = (
                f"takes {least} GB of video memory at least, with {vram.model[:100]}; {_format(limit)} are allowed"
            )
            error = _refuse(vram.node_id, kind, "", least, limit, f"{self._where}.vram_budget_gb", complaint)
            error.extra_info["vram"] = vram.body()
            raise error

    def _check(self, graph: Mapping[str, Any], media: Mapping[str, Media], read: bool) -> None:
        if len(graph) > self._settings.max_nodes:
            raise PolicyViolationError(
                f"The prompt has {len(graph)} nodes; {self._settings.max_nodes} are allowed.",
                extra_info={"nodes": len(graph), "max_nodes": self._settings.max_nodes},
            )
        if self._allowed or self._denied:
            self._check_classes(graph)
        if self._counts:
            walk = self.walk(graph, media)
            self._check_inputs(walk, self._settings.strict and read)
            self._check_amounts(walk, self._settings.strict and read)

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

    def _check_inputs(self, walk: Walk, strict: bool) -> None:
        for node_id, one in walk.numbers():
            name, role, known = one.name, one.role, one.number
            if role in _SIZES:
                limit: float = self._settings.max_pixels
            elif (what := _WORDS.get(role)) is not None:
                limit = getattr(self._settings, f"max_{what}")
            else:
                continue
            if not limit:
                continue
            if strict and not is_certain(known):
                raise self._refuse_unknown(walk, node_id, name, limit)
            if known is not None and role in _WORDS and known[1] > limit:
                raise self._refuse_amount(walk, node_id, name, known[1], limit, f"max_{_WORDS[role]}", _WORDS[role])

    def _check_amounts(self, walk: Walk, strict: bool) -> None:
        settings = self._settings
        work = 0.0
        for amount in walk.amounts:
            extent = amount.extent
            # Of pictures a batch may be a film, which has a limit of its own.
            batch = 1 if amount.pictures and settings.max_film_pixels else extent.batch
            self._check_amount(walk, amount, extent.area * batch, "pixels")
            if extent.frames or amount.pictures:
                self._check_amount(walk, amount, extent.pictures, "frames")
                self._check_amount(walk, amount, extent.pixels, "film_pixels")
            self._check_amount(walk, amount, amount.seconds, "seconds")
            if amount.samples:
                self._check_sound(walk, amount)
            if strict and amount.hidden and settings.max_frames:
                raise self._refuse_unknown(walk, amount.node_id, amount.hidden, settings.max_frames)
            if amount.steps:
                self._check_amount(walk, amount, amount.schedule, "steps")
            if amount.rate is not None:
                self._check_amount(walk, amount, extent.pictures, "frames")
                self._check_amount(walk, amount, extent.pictures / amount.rate if amount.rate > 0 else 0, "seconds")
            if strict and amount.steps and not (extent.area and extent.known) and settings.max_pixels:
                raise self._refuse_unknown(walk, amount.node_id, amount.input, settings.max_pixels)
            work += amount.work
            if settings.max_pixel_steps and work > settings.max_pixel_steps:
                raise self._refuse_amount(
                    walk, amount.node_id, amount.input, work, settings.max_pixel_steps, "max_pixel_steps",
                    "pixels times steps, together with the samplers before it,",
                )  # fmt: skip

        together, largest = walk.sum_pixels() if settings.max_film_pixels else (0, "")
        if together > settings.max_film_pixels * _TOGETHER:
            words = "pixels in the pictures and sounds of all nodes together"
            limit = settings.max_film_pixels * _TOGETHER
            raise self._refuse_amount(walk, largest, "", together, limit, "max_film_pixels", words)

    def _check_sound(self, walk: Walk, amount: Amount) -> None:
        limit: float = self._settings.max_film_pixels
        pixels = amount.samples / PER_PIXEL * (_COPIES if amount.loaded_s else 1)
        if limit and pixels > limit:
            words = "pixels' memory for a sound"
            raise self._refuse_amount(walk, amount.node_id, "", pixels, limit, "max_film_pixels", words)
        limit = self._settings.max_seconds * _CUT_LATER
        seconds = max(amount.loaded_s, amount.samples / USUAL_RATE)
        if amount.loaded_s and limit and seconds > limit:
            words = "seconds of a file's sound, as stereo at 48 kHz"
            raise self._refuse_amount(walk, amount.node_id, "", seconds, limit, "max_seconds", words)

    def _check_amount(self, walk: Walk, amount: Amount, value: float, what: str) -> None:
        limit = getattr(self._settings, f"max_{what}")
        if limit and value > limit:
            words = "pixels in all frames together" if what == "film_pixels" else what
            raise self._refuse_amount(walk, amount.node_id, amount.input, value, limit, f"max_{what}", words)

    def _refuse_unknown(self, walk: Walk, node_id: str, name: str, limit: float) -> PolicyViolationError:
        complaint = f"has an input {name[:100]} whose value only the run can tell; it must be a number or a constant"
        return _refuse(node_id, walk.kind(node_id), name, None, limit, "strict", complaint)

    def _refuse_amount(
        self, walk: Walk, node_id: str, name: str, value: float, limit: float, setting: str, what: str
    ) -> PolicyViolationError:
        by = f" (input {name[:100]})" if name else ""
        asks = f"asks for {_format(value)} {what}{by}"
        if value >= ENDLESS:
            asks = f"may ask for any number of {what}{by}, since nothing tells before the run what it will get"
        complaint = f"{asks}; at most {_format(limit)} are allowed"
        return _refuse(node_id, walk.kind(node_id), name, value if value < ENDLESS else None, limit, setting, complaint)


def _refuse(
    node_id: str, kind: str, name: str, value: float | str | None, limit: float | str, setting: str, complaint: str
) -> PolicyViolationError:
    return PolicyViolationError(
        f"{kind[:100]} (node {node_id[:100]}) {complaint}.",
        details=setting,
        extra_info={"node_id": node_id, "class_type": kind, "input": name, "value": value, "limit": limit},
    )


def _matches(pattern: str, kind: str) -> bool:
    compiled = compile_patterns([pattern])
    return compiled is not None and compiled.fullmatch(kind) is not None


def _format(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.3f}"
