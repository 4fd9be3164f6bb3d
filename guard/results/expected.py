"""Work out what a graph asked a writer node for: how many frames, how fast, with sound or without.

Only what is certain counts: a chain of nodes whose effect on the number of frames is listed here, with constants at
its end. With one unknown node in it, no number is expected: that node gives one frame at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..graph import is_link

#: Longer chains than this, and circles, say nothing.
_DEEPEST = 64

#: The inputs that give writer nodes their rate: VHS_VideoCombine; CreateVideo, SaveWEBM, SaveAnimatedWEBP and PNG.
_RATES = ("frame_rate", "fps")
#: … and, in packs that write frames themselves, their number.
_COUNTS = ("num_frames", "frame_count", "frames")

#: Nodes that pass on as many frames as they get, and the input that brings them.
_KEEPS = {
    "KSampler": "latent_image",
    "KSamplerAdvanced": "latent_image",
    "SamplerCustom": "latent_image",
    "SamplerCustomAdvanced": "latent_image",
    "VAEDecode": "samples",
    "VAEDecodeTiled": "samples",
    "ImageScale": "image",
    "ImageScaleBy": "image",
    "ImageScaleToTotalPixels": "image",
    "ImageUpscaleWithModel": "image",
    "ImageInvert": "image",
    "ImageBlur": "image",
    "ImageSharpen": "image",
    "ImageQuantize": "image",
    "GuardedValidateImage": "image",
}

#: Latents of `length` frames. The model works in steps and drops what does not fill one: (length - 1) // step * step
#: + 1 frames come out. (class → (which output is the latent, step); comfy_extras of ComfyUI 0.3.64 to 0.33.0)
_LATENTS = {
    "EmptyHunyuanLatentVideo": (0, 4),
    "EmptyCosmosLatentVideo": (0, 8),
    "EmptyLTXVLatentVideo": (0, 8),
    "EmptyMochiLatentVideo": (0, 6),
    "WanImageToVideo": (2, 4),
    "WanFirstLastFrameToVideo": (2, 4),
    "WanFunControlToVideo": (2, 4),
    "WanFunInpaintToVideo": (2, 4),
    "LTXVImgToVideo": (2, 8),
    "HunyuanImageToVideo": (1, 4),
}

#: A node that is linked through these alone shows a mask: which part of a picture counts, and that may be all or none.
_MASKS = frozenset({"mask", "masks"})

#: Nodes that certainly give a sound. A film's own track (GetVideoComponents) may not exist.
_SOUNDS = frozenset({"LoadAudio", "VAEDecodeAudio", "EmptyAudio", "RecordAudio", "TrimAudioDuration"})


@dataclass(frozen=True)
class Expected:
    """What the graph asks one writer node for; None where that cannot be known.

    Attributes:
        many: it writes a film, of more than one frame.
        audio: it was given a sound that certainly exists.
        perhaps_audio: it was given one that may not: the track of another film.
        mask: what it shows is a mask, not a picture.
    """

    frames: int | None = None
    fps: float | None = None
    many: bool = False
    audio: bool = False
    perhaps_audio: bool = False
    mask: bool = False

    @property
    def duration_s(self) -> float | None:
        return self.frames / self.fps if self.frames and self.fps else None


class _Count(NamedTuple):
    """How many frames there are at least, and whether there are exactly so many."""

    least: float
    exact: bool


_UNKNOWN = _Count(1, False)


def infer(prompt: Mapping[str, Any], node_id: str) -> Expected:
    """Work out what the prompt asks of its node `node_id`."""
    node = prompt.get(node_id)
    if not isinstance(node, Mapping):
        return Expected()
    links = {name for name, value in _inputs(node).items() if is_link(value)}
    if links and links <= _MASKS:
        return Expected(mask=True)
    source = _find_source(prompt, node, "video")
    writer = source if source is not None and source.get("class_type") == "CreateVideo" else node
    if source is not None and writer is node:
        return Expected()  # a film that came as one: as long as it is
    count = _count_written(prompt, writer)
    frames = int(count.least) if count.exact else None
    fps = _find_number(prompt, writer, _RATES)
    many = count.least > 1 and any(name in _inputs(writer) for name in _RATES)
    sound = _inputs(writer).get("audio")
    if sound is None or not is_link(sound):
        return Expected(frames, fps, many)
    maker = prompt.get(str(sound[0]))
    certain = isinstance(maker, Mapping) and maker.get("class_type") in _SOUNDS
    return Expected(frames, fps, many, audio=certain, perhaps_audio=not certain)


def _count_written(prompt: Mapping[str, Any], writer: Mapping[str, Any]) -> _Count:
    number = _find_number(prompt, writer, _COUNTS)
    if number is not None:
        count = _Count(number, True)
    else:
        link = _inputs(writer).get("images")
        count = _frames_over(prompt, link, _DEEPEST, {}) if is_link(link) else _UNKNOWN
    return _count_vhs(writer, count) if writer.get("class_type") == "VHS_VideoCombine" else count


def _count_vhs(writer: Mapping[str, Any], count: _Count) -> _Count:
    """VHS plays back and forth, and in some formats several times over; in a meta batch it gets only a part."""
    inputs = _inputs(writer)
    if "meta_batch" in inputs or inputs.get("trim_to_audio"):
        return _UNKNOWN
    if inputs.get("pingpong") is True:
        return _Count(count.least * 2 - 2, count.exact) if count.least > 2 else _Count(count.least, False)
    return count


def _frames_over(
    prompt: Mapping[str, Any], link: Sequence[Any], depth: int, known: dict[tuple[str, int], _Count]
) -> _Count:
    """How many frames come over a link. `known` keeps the answers, since two links may lead to one node."""
    asked = (str(link[0]), link[1])
    if asked not in known:
        known[asked] = _count_frames(prompt, link, depth, known)
    return known[asked]


def _count_frames(
    prompt: Mapping[str, Any], link: Sequence[Any], depth: int, known: dict[tuple[str, int], _Count]
) -> _Count:
    node = prompt.get(str(link[0]))
    if not isinstance(node, Mapping) or depth <= 0:
        return _UNKNOWN
    kind, inputs, output = str(node.get("class_type")), _inputs(node), link[1]

    def over(name: str) -> _Count:
        incoming = inputs.get(name)
        return _frames_over(prompt, incoming, depth - 1, known) if is_link(incoming) else _UNKNOWN

    def given(name: str) -> _Count:
        number = _resolve_number(prompt, inputs.get(name, 1))
        return _Count(number, True) if number is not None else _UNKNOWN

    if kind in _LATENTS:
        latent, step = _LATENTS[kind]
        length = _resolve_number(prompt, inputs.get("length"))
        if length is None or output != latent or _resolve_number(prompt, inputs.get("batch_size", 1)) != 1:
            return _UNKNOWN
        return _Count((int(length) - 1) // step * step + 1, True)
    if kind in ("EmptyImage", "EmptyLatentImage", "EmptySD3LatentImage"):
        return given("batch_size")
    if kind == "RepeatImageBatch":
        count, amount = over("image"), given("amount")
        return _Count(count.least * amount.least, count.exact and amount.exact)
    if kind == "ImageBatch":
        first, second = over("image1"), over("image2")
        return _Count(first.least + second.least, first.exact and second.exact)
    if kind in _KEEPS and output == 0:
        return over(_KEEPS[kind])
    return _UNKNOWN


def _find_number(prompt: Mapping[str, Any], node: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    inputs = _inputs(node)
    return next((value for name in names if (value := _resolve_number(prompt, inputs.get(name))) is not None), None)


def _resolve_number(prompt: Mapping[str, Any], value: Any) -> float | None:
    """Resolve a positive number, given as such or by a primitive node."""
    if is_link(value):
        node = prompt.get(str(value[0]))
        if not isinstance(node, Mapping) or node.get("class_type") not in ("PrimitiveInt", "PrimitiveFloat"):
            return None
        value = _inputs(node).get("value")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        return None
    return value


def _find_source(prompt: Mapping[str, Any], node: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Find the node that an input of type VIDEO comes from, past nodes that pass a film on unchanged."""
    for _ in range(_DEEPEST):
        link = _inputs(node).get(name)
        maker = prompt.get(str(link[0])) if is_link(link) else None
        if not isinstance(maker, Mapping):
            return None
        if maker.get("class_type") != "GuardedValidateVideo":
            return maker
        node = maker
    return None


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}
