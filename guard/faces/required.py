"""Find the pictures in a prompt that need a face, from the graph alone.

A face-check node, or a node of another pack that fails or does nothing without a face, gets its picture from a loader,
directly or through nodes that pass a picture along. Where nodes make the picture on the way (sample, decode, paint),
only the run can tell: then the face-check node checks it in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadImageError
from ..graph import find_upstream, is_link
from .check import FaceRules

FACE_CHECK = "GuardedFaceCheck"
FACE_LOADER = "GuardedLoadFaceImage"
_OURS = frozenset({FACE_CHECK, FACE_LOADER})

#: Node class → its inputs that must show a face; the default of `faces.required_by`. Read in the sources:
#: cubiq/ComfyUI_IPAdapter_plus 9d076a3 (IPAdapterPlus.py; raises "InsightFace: No face detected."),
#: cubiq/ComfyUI_InstantID 1ef34ef (InstantID.py; raises "Reference Image: No face detected.", or draws nothing),
#: nosiu/comfyui-instantId-faceswap d125a2a (nodes.py; "No face detected for face embed"),
#: cubiq/PuLID_ComfyUI 4e1fd40 (pulid.py), balazik/ComfyUI-PuLID-Flux a80912f and lldacing/ComfyUI_PuLID_Flux_ll
#: ba90657 (pulidflux.py; all three return the model unchanged), nunchaku-tech/ComfyUI-nunchaku 28c7fa4
#: (nodes/models/pulid.py; works on an empty list of faces),
#: bytedance/ComfyUI_InfiniteYou 1c97939 (nodes.py; "No face detected in the input ID image"),
#: yolain/ComfyUI-Easy-Use 4de1ab3 (py/nodes/adapter.py; hands the picture to InstantID, PuLID or IPAdapter FaceID),
#: cubiq/ComfyUI_FaceAnalysis 8846653 (faceanalysis.py; "No face detected in image."),
#: shiimizu/ComfyUI-PhotoMaker-Plus 459f5c0 (photomaker.py; "No face detected in input image pool"),
#: Gourieff/ComfyUI-ReActor 6ad6b35 (nodes.py; returns the picture unchanged),
#: kijai/ComfyUI-LivePortraitKJ 4d9dc62 (nodes.py; the cropper skips the frame, and LivePortraitProcess then raises "No
#: face detected in FIRST source image"; its animal mode needs no human face: take both out of the setting for that),
#: PowerHouseMan/ComfyUI-AdvancedLivePortrait 3bba732 (nodes.py),
#: ShmuelRonen/ComfyUI-LatentSyncWrapper 360d528 (nodes.py; "Face not detected").
REQUIRED_BY: dict[str, list[str]] = {
    "IPAdapterFaceID": ["image"],
    "IPAAdapterFaceIDBatch": ["image"],
    "IPAdapterFaceIDKolors": ["image"],
    "ApplyInstantID": ["image"],
    "ApplyInstantIDAdvanced": ["image"],
    "InstantIDAttentionPatch": ["image"],
    "FaceKeypointsPreprocessor": ["image"],
    "FaceEmbed": ["face_image"],
    "ApplyPulid": ["image"],
    "ApplyPulidAdvanced": ["image"],
    "ApplyPulidFlux": ["image"],
    "PulidFluxFaceDetector": ["image"],
    "NunchakuPulidApply": ["image"],
    "NunchakuFluxPuLIDApplyV2": ["image"],
    "ExtractIDEmbedding": ["image"],
    "ExtractFacePoseImage": ["image"],
    "easy instantIDApply": ["image"],
    "easy instantIDApplyADV": ["image"],
    "easy pulIDApply": ["image"],
    "easy pulIDApplyADV": ["image"],
    "easy ipadapterApplyFaceIDKolors": ["image"],
    "easy ipadapterApply": ["image"],
    "easy ipadapterApplyADV": ["image"],
    "FaceBoundingBox": ["image"],
    "FaceEmbedDistance": ["reference"],
    "FaceAlign": ["image_from", "image_to"],
    "FaceSegmentation": ["image"],
    "FaceWarp": ["image_from", "image_to"],
    "ReActorFaceSwap": ["input_image", "source_image"],
    "ReActorFaceSwapOpt": ["input_image", "source_image"],
    "ReActorBuildFaceModel": ["images"],
    "ReActorFaceSimilarity": ["image1", "image2"],
    "LivePortraitCropper": ["source_image"],
    "LivePortraitProcess": ["source_image"],
    "AdvancedLivePortrait": ["src_images"],
    "ExpressionEditor": ["src_image", "sample_image"],
    "LatentSyncNode": ["images"],
    "PhotoMakerEncodePlus": ["image"],
}

#: Node class → the input whose value says that the node needs a face; the others of these classes take any picture.
_ONLY_WITH = {
    "easy ipadapterApply": ("preset", "FACEID"),
    "easy ipadapterApplyADV": ("preset", "FACEID"),
    "PhotoMakerEncodePlus": ("insightface_opt", ""),
}
#: Node class → the input that, when false, makes it pass its picture on untouched.
_SWITCHES = {"ReActorFaceSwap": "enabled", "ReActorFaceSwapOpt": "enabled", "AdvancedLivePortrait": "turn_on"}

#: Node class → the input that names the file; the picture is output 0. LoadAndResizeImage: kijai/ComfyUI-KJNodes
#: 3f20054 (nodes/image_nodes.py).
LOADERS = {"LoadImage": "image", "LoadImageOutput": "image", FACE_LOADER: "image", "LoadAndResizeImage": "image"}

#: Node class → its picture inputs that come out whole at output 0: ComfyUI's own (nodes.py, comfy_extras/
#: nodes_images.py, nodes_post_processing.py, nodes_upscale_model.py, nodes_dataset.py). A `*` stands for a number.
_WHOLE = {
    FACE_CHECK: ("image",),
    "ImageScale": ("image",),
    "ImageScaleBy": ("image",),
    "ImageScaleToTotalPixels": ("image",),
    "ImageScaleToMaxDimension": ("image",),
    "ResizeImagesByShorterEdge": ("images",),
    "ResizeImagesByLongerEdge": ("images",),
    "ImageUpscaleWithModel": ("image",),
    "ImageFlip": ("image",),
    "ImageRotate": ("image",),
    "ImageFromBatch": ("image",),
    "RepeatImageBatch": ("image",),
    "ImageBatch": ("image1", "image2"),
    "BatchImagesNode": ("images.image*",),
    "ImageBatchMulti": ("image_*",),
}
#: The same, but a part of the picture comes out, or the picture with something around it. Then the file tells only
#: whether there is a face, not how many faces come out or how large. With KJNodes and cubiq/ComfyUI_essentials 9d9f4be.
_PART = {
    "ImageCrop": ("image",),
    "ImageCropV2": ("image",),
    "ImagePadForOutpaint": ("image",),
    "ResizeAndPadImage": ("image",),
    "ResizeImageMaskNode": ("input",),
    "FluxKontextImageScale": ("image",),
    "PrepImageForClipVision": ("image",),
    "ImageResizeKJ": ("image",),
    "ImageResizeKJv2": ("image",),
    "ImageResize+": ("image",),
    "ImageCrop+": ("image",),
}
#: Nodes where one of several pictures comes out, or all of them side by side: one of them must show a face.
#: ComfyUI's, ltdrdata/ComfyUI-Impact-Pack 727295b, Suzie1/ComfyUI_Comfyroll_CustomNodes, rgthree/rgthree-comfy,
#: yolain/ComfyUI-Easy-Use, KJNodes.
_ANY = {
    "ImageStitch": ("image1", "image2"),
    "ComfySwitchNode": ("on_true", "on_false"),
    "ImpactSwitch": ("input*",),
    "CR Image Input Switch": ("image1", "image2"),
    "CR Image Input Switch (4 way)": ("image1", "image2", "image3", "image4"),
    "Any Switch (rgthree)": ("any_*",),
    "easy imageSwitch": ("image_a", "image_b"),
    "easy imageConcat": ("image1", "image2"),
    "ImageConcanate": ("image1", "image2"),
    "ImageConcatMulti": ("image_*",),
}
#: Of those, the input that chooses, and the name of the picture that each of its values brings.
_CHOOSERS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "ComfySwitchNode": ("switch", lambda value: "on_true" if value else "on_false"),
    "ImpactSwitch": ("select", lambda value: f"input{value}"),
    "CR Image Input Switch": ("Input", lambda value: f"image{value}"),
    "CR Image Input Switch (4 way)": ("Input", lambda value: f"image{value}"),
    "easy imageSwitch": ("boolean", lambda value: "image_a" if value else "image_b"),
}
#: So many links are followed behind one of those; beyond, only the run can tell.
_LINKS = 200
#: The loader's node id, and the image as it names it.
_Picture = tuple[str, str]
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
        instead: (loader id, image) of others, any of which may show the face in its place.
    """

    node_id: str
    class_type: str
    input: str
    loader_id: str
    image: str
    rules: FaceRules
    detector: str | None = None
    instead: tuple[tuple[str, str], ...] = ()


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
    if not any(node["class_type"] in classes or node["class_type"] in _OURS for node in graph.values()):
        return []  # of most prompts
    alive = set(graph) if outputs is None else find_upstream(graph, outputs)
    pictures: dict[tuple[str, FaceRules, str | None, tuple[str, ...]], Wanted] = {}
    for node_id, node in graph.items():
        if node_id not in alive:
            continue
        for name, needed, detector in _list_needs(node, classes, rules or FaceRules()):
            for (loader_id, image), part, instead in _trace_sources(graph, node_id, name):
                fitting = _relax(needed) if part or instead else needed
                if fitting.min_faces or fitting.max_faces:
                    entry = Wanted(node_id, node["class_type"], name, loader_id, image, fitting, detector, instead)
                    key = (image, fitting, detector, tuple(name for _, name in instead))
                    pictures.setdefault(key, entry)
    return list(pictures.values())


def list_loaded(graph: Mapping[str, Any], outputs: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(node id, image name) of every picture that a loader node of the prompt names."""
    alive = set(graph) if outputs is None else find_upstream(graph, outputs)
    return [
        (node_id, image) for node_id, node in graph.items() if node_id in alive and (image := _read_image_name(node))
    ]


def list_detectors(graph: Mapping[str, Any], outputs: Iterable[str] | None = None) -> list[tuple[str, str | None]]:
    """(node id, detector) of every face-check node, also of those whose pictures the run makes.

    Raises BadImageError where one that loads its picture names none.
    """
    ours = {node_id: node for node_id, node in graph.items() if node["class_type"] in _OURS}
    alive = find_upstream(graph, outputs) if ours and outputs is not None else ours.keys()
    found = []
    for node_id, node in ours.items():
        if node_id not in alive:
            continue
        inputs, name = node["inputs"], LOADERS.get(node["class_type"])
        if name in inputs and not isinstance(inputs[name], str) and not is_link(inputs[name]):
            raise BadImageError("It names no picture.", extra_info={"node_id": node_id, "input": name})
        found.append((node_id, _read_detector(inputs)))
    return found


def _read_detector(inputs: Mapping[str, Any]) -> str | None:
    """The one that a face-check node asks for; None for the setting's, and where a link says."""
    detector = inputs.get("detector")
    return detector if isinstance(detector, str) and detector != "auto" else None


def _list_needs(
    node: Mapping[str, Any], classes: Mapping[str, Sequence[str]], rules: FaceRules
) -> Iterator[tuple[str, FaceRules, str | None]]:
    """(input, rules, detector) of each picture in which a node needs a face."""
    kind, inputs = node["class_type"], node["inputs"]
    if kind in _OURS:
        yield "image", FaceRules.of(inputs), _read_detector(inputs)
    elif inputs.get(_SWITCHES.get(kind, "")) is not False and _is_for_faces(kind, inputs):
        for name in classes.get(kind, ()):
            yield name, rules, None


def _is_for_faces(kind: str, inputs: Mapping[str, Any]) -> bool:
    name, mark = _ONLY_WITH.get(kind, ("", ""))
    return not name or (name in inputs and (not mark or mark in str(inputs[name])))


def _trace_sources(
    graph: Mapping[str, Any], node_id: str, name: str
) -> Iterator[tuple[_Picture, bool, tuple[_Picture, ...]]]:
    """(picture, whether only a part arrives, pictures that may take its place) of all that reach a node's input."""
    if image := _read_image_name(graph[node_id]):
        yield (node_id, image), False, ()
        return
    waiting = [(graph[node_id]["inputs"].get(name), False)]
    seen = set()
    while waiting:
        link, part = waiting.pop()
        if not is_link(link) or link[0] not in graph or (link[0], link[1], part) in seen:
            continue
        seen.add((link[0], link[1], part))
        source, slot = graph[link[0]], link[1]
        if slot == _CHECKED_OUTPUT and source["class_type"] in _ANY and not _choose(source):
            if pictures := _gather(graph, link):
                yield pictures[0], part, tuple(pictures[1:])
        elif slot == _CHECKED_OUTPUT and (image := _read_image_name(source)):
            yield (link[0], image), part, ()
        else:
            waiting += [(passed, part or cuts) for passed, cuts in _list_passed(source, slot)]


def _gather(graph: Mapping[str, Any], link: Any) -> list[_Picture]:
    """The pictures behind a node that gives any of several; empty where one of them is none of a loader's."""
    pictures: dict[_Picture, None] = {}
    waiting: list[Any] = [link]
    seen: set[tuple[str, int]] = set()
    while waiting:
        link = waiting.pop()
        if not is_link(link) or link[0] not in graph or len(seen) > _LINKS:
            return []
        if (link[0], link[1]) in seen:
            continue
        seen.add((link[0], link[1]))
        source = graph[link[0]]
        if link[1] == _CHECKED_OUTPUT and (image := _read_image_name(source)):
            pictures[link[0], image] = None
        elif passed := [each for each, _cuts in _list_passed(source, link[1])]:
            waiting += passed
        else:
            return []
    return sorted(pictures)


def _list_passed(source: Mapping[str, Any], slot: int) -> list[tuple[Any, bool]]:
    """(value, whether it is cut) of the inputs whose pictures a node passes on to that output."""
    kind, inputs = source["class_type"], source["inputs"]
    if kind == FACE_CHECK and slot == _CROP_OUTPUT:
        return [(inputs.get("image"), True)]
    if slot != _CHECKED_OUTPUT:
        return []
    if chosen := _choose(source):
        return [(inputs.get(chosen), False)]
    cuts = kind in _PART or (kind == "ImageScale" and inputs.get("crop", "disabled") != "disabled")
    passed = []
    for name in _WHOLE.get(kind) or _PART.get(kind) or _ANY.get(kind) or ():
        if name.endswith("*"):
            rest = len(name) - 1
            passed += [value for key, value in inputs.items() if key[:rest] == name[:-1] and key[rest:].isdecimal()]
        elif inputs.get(name) is not None:
            passed.append(inputs[name])
    return [(value, cuts) for value in passed]


def _choose(source: Mapping[str, Any]) -> str:
    """The input that a switch lets through; empty where the run decides, and for other nodes."""
    name, choose = _CHOOSERS.get(source["class_type"], ("", None))
    value = source["inputs"].get(name)
    return choose(value) if choose is not None and isinstance(value, (int, bool)) else ""


def _read_image_name(node: Mapping[str, Any]) -> str:
    """The image that a loader node names; empty for other nodes, and where a link gives the name."""
    image = node["inputs"].get(LOADERS.get(node["class_type"], ""))
    return image if isinstance(image, str) else ""


def _relax(rules: FaceRules) -> FaceRules:
    return replace(rules, min_faces=min(rules.min_faces, 1), max_faces=0, min_face_fraction=0.0)
