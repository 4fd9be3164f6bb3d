"""Find the pictures in a prompt that need a face, from the graph alone.

A face-check node, or a node of another pack that fails or does nothing without a face, gets its picture from a loader,
directly or through nodes that pass a picture along. Where nodes make the picture on the way (sample, decode, paint),
only the run can tell: then the face-check node checks it in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..graph import is_link
from .check import FaceRules

FACE_CHECK = "GuardedFaceCheck"
FACE_LOADER = "GuardedLoadFaceImage"

#: Node class → its inputs that must show a face; the default of `faces.required_by`. Read in the sources:
#: cubiq/ComfyUI_IPAdapter_plus 9d076a3 (IPAdapterPlus.py; raises "InsightFace: No face detected."),
#: cubiq/ComfyUI_InstantID 1ef34ef (InstantID.py; raises "Reference Image: No face detected.", or draws nothing),
#: cubiq/PuLID_ComfyUI 4e1fd40 (pulid.py), balazik/ComfyUI-PuLID-Flux a80912f and lldacing/ComfyUI_PuLID_Flux_ll
#: ba90657 (pulidflux.py; all three return the model unchanged),
#: Gourieff/ComfyUI-ReActor 6ad6b35 (nodes.py; returns the picture unchanged),
#: kijai/ComfyUI-LivePortraitKJ 4d9dc62 (nodes.py; skips the frame and fails later; its animal mode needs no human
#: face: take it out of the setting for that),
#: PowerHouseMan/ComfyUI-AdvancedLivePortrait 3bba732 (nodes.py).
REQUIRED_BY: dict[str, list[str]] = {
    "IPAdapterFaceID": ["image"],
    "IPAAdapterFaceIDBatch": ["image"],
    "IPAdapterFaceIDKolors": ["image"],
    "ApplyInstantID": ["image"],
    "ApplyInstantIDAdvanced": ["image"],
    "InstantIDAttentionPatch": ["image"],
    "FaceKeypointsPreprocessor": ["image"],
    "ApplyPulid": ["image"],
    "ApplyPulidAdvanced": ["image"],
    "ApplyPulidFlux": ["image"],
    "PulidFluxFaceDetector": ["image"],
    "ReActorFaceSwap": ["input_image", "source_image"],
    "ReActorFaceSwapOpt": ["input_image", "source_image"],
    "ReActorBuildFaceModel": ["images"],
    "ReActorFaceSimilarity": ["image1", "image2"],
    "LivePortraitCropper": ["source_image"],
    "AdvancedLivePortrait": ["src_images"],
    "ExpressionEditor": ["src_image", "sample_image"],
}

#: Node class → the input that, when false, makes it pass its picture on untouched.
_SWITCHES = {"ReActorFaceSwap": "enabled", "ReActorFaceSwapOpt": "enabled", "AdvancedLivePortrait": "turn_on"}

#: Node class → the input that names the file; the picture is output 0. LoadAndResizeImage: kijai/ComfyUI-KJNodes
#: 3f20054 (nodes/image_nodes.py).
LOADERS = {"LoadImage": "image", "LoadImageOutput": "image", FACE_LOADER: "image", "LoadAndResizeImage": "image"}

#: Node class → its picture inputs that come out whole at output 0: ComfyUI's own (nodes.py, comfy_extras/
#: nodes_images.py, nodes_post_processing.py, nodes_upscale_model.py).
_WHOLE = {
    FACE_CHECK: ("image",),
    "ImageScale": ("image",),
    "ImageScaleBy": ("image",),
    "ImageScaleToTotalPixels": ("image",),
    "ImageScaleToMaxDimension": ("image",),
    "ImageUpscaleWithModel": ("image",),
    "ImageFlip": ("image",),
    "ImageRotate": ("image",),
    "ImageFromBatch": ("image",),
    "RepeatImageBatch": ("image",),
    "ImageBatch": ("image1", "image2"),
}
#: The same, but a part of the picture comes out, or the picture with something around it. Then the file tells only
#: whether there is a face, not how many faces come out or how large.
_PART = {
    "ImageCrop": ("image",),
    "ImagePadForOutpaint": ("image",),
    "ResizeAndPadImage": ("image",),
    "PrepImageForClipVision": ("image",),
    "ImageResizeKJ": ("image",),
    "ImageResizeKJv2": ("image",),
}
#: GuardedFaceCheck's outputs: the picture itself, and the largest face cut out.
_CHECKED_OUTPUT, _CROP_OUTPUT = 0, 4


@dataclass(frozen=True)
class Wanted:
    """A picture that must keep the rules, or the job is refused.

    Attributes:
        node_id, class_type, input: of the node that wants the face.
        loader_id: the node that loads the picture.
        image: as the loader names it, perhaps with ` [output]` behind; see `split_annotation`.
        detector: None for the setting's.
    """

    node_id: str
    class_type: str
    input: str
    loader_id: str
    image: str
    rules: FaceRules
    detector: str | None = None


def find_wanted(
    graph: Mapping[str, Any],
    required_by: Mapping[str, Sequence[str]] | None = None,
    rules: FaceRules | None = None,
    outputs: Iterable[str] | None = None,
) -> list[Wanted]:
    """Every picture of a prompt whose face can be checked at admission, each once per set of rules.

    Args:
        graph: API format, its shape checked.
        required_by: node class → inputs that need a face (`faces.required_by`); None: REQUIRED_BY.
        rules: for those classes. Face-check nodes have their own.
        outputs: output nodes; nodes that none of them needs are skipped. None: no node is.

    Raises:
        InvalidRequestError: a face-check node's rules are out of range.
    """
    classes = REQUIRED_BY if required_by is None else required_by
    alive = set(graph) if outputs is None else _find_upstream(graph, outputs)
    pictures: dict[tuple[str, FaceRules, str | None], Wanted] = {}
    for node_id, node in graph.items():
        if node_id not in alive:
            continue
        for name, needed, detector in _list_needs(node, classes, rules or FaceRules()):
            for loader_id, image, part in _trace_sources(graph, node_id, name):
                fitting = _relax(needed) if part else needed
                if fitting.min_faces or fitting.max_faces:
                    entry = Wanted(node_id, node["class_type"], name, loader_id, image, fitting, detector)
                    pictures.setdefault((image, fitting, detector), entry)
    return list(pictures.values())


def list_loaded(graph: Mapping[str, Any], outputs: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(node id, image name) of every picture that a loader node of the prompt names."""
    alive = set(graph) if outputs is None else _find_upstream(graph, outputs)
    return [
        (node_id, image) for node_id, node in graph.items() if node_id in alive and (image := _read_image_name(node))
    ]


def _list_needs(
    node: Mapping[str, Any], classes: Mapping[str, Sequence[str]], rules: FaceRules
) -> Iterator[tuple[str, FaceRules, str | None]]:
    """(input, rules, detector) of each picture in which a node needs a face."""
    kind, inputs = node["class_type"], node["inputs"]
    if kind in (FACE_CHECK, FACE_LOADER):
        detector = inputs.get("detector")
        yield "image", FaceRules.of(inputs), detector if isinstance(detector, str) and detector != "auto" else None
    elif inputs.get(_SWITCHES.get(kind, "")) is not False:
        for name in classes.get(kind, ()):
            yield name, rules, None


def _trace_sources(graph: Mapping[str, Any], node_id: str, name: str) -> Iterator[tuple[str, str, bool]]:
    """(loader id, image, whether only a part arrives) of each picture that reaches a node's input."""
    if image := _read_image_name(graph[node_id]):
        yield node_id, image, False
        return
    waiting = [(graph[node_id]["inputs"].get(name), False)]
    seen = set()
    while waiting:
        link, part = waiting.pop()
        if not is_link(link) or link[0] not in graph or (link[0], link[1], part) in seen:
            continue
        seen.add((link[0], link[1], part))
        source, slot = graph[link[0]], link[1]
        kind = source["class_type"]
        if kind == FACE_CHECK and slot == _CROP_OUTPUT:
            waiting.append((source["inputs"].get("image"), True))
        elif slot != _CHECKED_OUTPUT:
            continue
        elif kind in LOADERS:
            if image := _read_image_name(source):
                yield link[0], image, part
        else:
            cuts = kind in _PART or (kind == "ImageScale" and source["inputs"].get("crop", "disabled") != "disabled")
            for passed in _WHOLE.get(kind, _PART.get(kind, ())):
                waiting.append((source["inputs"].get(passed), part or cuts))


def _read_image_name(node: Mapping[str, Any]) -> str:
    """The image that a loader node names; empty for other nodes, and where a link gives the name."""
    image = node["inputs"].get(LOADERS.get(node["class_type"], ""))
    return image if isinstance(image, str) else ""


def _relax(rules: FaceRules) -> FaceRules:
    return replace(rules, min_faces=min(rules.min_faces, 1), max_faces=0, min_face_fraction=0.0)


def _find_upstream(graph: Mapping[str, Any], outputs: Iterable[str]) -> set[str]:
    alive: set[str] = set()
    waiting = [node_id for node_id in outputs if node_id in graph]
    while waiting:
        node_id = waiting.pop()
        if node_id not in alive:
            alive.add(node_id)
            links = [value for value in graph[node_id]["inputs"].values() if is_link(value)]
            waiting += [link[0] for link in links if link[0] in graph]
    return alive
