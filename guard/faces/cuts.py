"""Find what a graph's `Video Slice` nodes leave of a loader's film: beyond its end there is nothing, and they fail.

Read in ComfyUI 0.33 (`as_trimmed` and `get_components` in `comfy_api/latest/_input_impl/video_types.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any, NamedTuple

from ..cost.values import Media
from ..graph import is_link
from ..results.containers import Kind
from ..results.film_files import open_container
from .sounds import UnfitError

_SLICE = "Video Slice"
#: Lengths of films are rounded.
_ROUNDED_S = 0.05
_MICROSECONDS = 1_000_000


#: No graph cuts one film so often.
_MOST_CUTS = 1000


class Cut(NamedTuple):
    """`start_s`: where it begins, counted from the file's beginning. `least_s`: so much must follow; 0: anything."""

    start_s: float
    least_s: float = 0

    @property
    def end_s(self) -> float:
        return self.start_s + self.least_s


def find_cuts(graph: Mapping[str, Any], alive: Iterable[str]) -> dict[str, frozenset[Cut]]:
    """What is cut out of what each node gives, where that stands in the prompt.

    Args:
        alive: the nodes that will run.
    """
    found: dict[str, set[Cut]] = {}
    waiting = [
        (graph[node_id]["inputs"].get("video"), cut)
        for node_id in alive
        if graph[node_id]["class_type"] == _SLICE and (cut := _read(graph[node_id]["inputs"])) is not None
    ]
    for _ in range(_MOST_CUTS):
        if not waiting:
            break
        link, cut = waiting.pop()
        if not is_link(link) or link[0] not in graph or cut in found.setdefault(link[0], set()):
            continue
        found[link[0]].add(cut)
        node = graph[link[0]]
        if node["class_type"] == _SLICE and (outer := _read(node["inputs"])) is not None:
            waiting.append((node["inputs"].get("video"), Cut(outer.start_s + cut.start_s, cut.least_s)))
    return {node_id: frozenset(cuts) for node_id, cuts in found.items()}


def _read(inputs: Mapping[str, Any]) -> Cut | None:
    """None: only the run can tell; a start before 0 counts from the end, of which there always is something."""
    start, duration, strict = (inputs.get(name, 0) for name in ("start_time", "duration", "strict_duration"))
    if not isinstance(start, (int, float)) or not isinstance(duration, (int, float)) or start < 0:
        return None
    return Cut(float(start), float(duration) if strict is True else 0.0)


def check_cuts(handle: IO[bytes], kind: Kind | None, media: Media, cuts: Iterable[Cut]) -> None:
    """Raises UnfitError where nothing is left of the film, or less than there must be. Blocks on the disk."""
    handle.seek(0)
    with open_container(handle, kind if kind is not None and kind.demuxer else None) as container:
        whole_s = float(container.duration or 0) / _MICROSECONDS
        begin_s = max(float(container.start_time or 0) / _MICROSECONDS, 0.0)
    for cut in cuts:
        if cut.start_s > begin_s + max(whole_s, media.seconds):
            raise UnfitError(f"it is {media.seconds:.3g} s long, and {_SLICE} would begin at {cut.start_s:.3g} s")
        if cut.least_s and cut.end_s > whole_s + _ROUNDED_S:
            raise UnfitError(f"it is {whole_s:.3g} s long, and {_SLICE} asks for what ends at {cut.end_s:.3g} s")
