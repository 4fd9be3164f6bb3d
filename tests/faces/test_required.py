"""Which pictures of a prompt need a face."""

from typing import Any

import pytest

from comfyui_guarded.guard.errors import InvalidRequestError
from comfyui_guarded.guard.faces.check import FaceRules
from comfyui_guarded.guard.faces.required import REQUIRED_BY, Wanted, find_wanted, list_loaded
from comfyui_guarded.guard.files.names import split_annotation


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


LOAD = node("LoadImage", image="photo.png")
OTHER = node("LoadImage", image="other.png")
#: What makes these classes look for a face.
ONLY_WITH = {
    "easy ipadapterApply": {"preset": "FACEID PLUS V2"},
    "easy ipadapterApplyADV": {"preset": "FACEID"},
    "PhotoMakerEncodePlus": {"insightface_opt": ["5", 0]},
}


#: Read in the packs: what fails, or does nothing, without a face in this input.
NEEDED = [
    ("NunchakuFluxPuLIDApplyV2", "image"),
    ("NunchakuPulidApply", "image"),
    ("ExtractIDEmbedding", "image"),  # InfiniteYou
    ("ExtractFacePoseImage", "image"),
    ("easy pulIDApply", "image"),
    ("easy pulIDApplyADV", "image"),
    ("easy instantIDApply", "image"),
    ("easy instantIDApplyADV", "image"),
    ("easy ipadapterApplyFaceIDKolors", "image"),
    ("easy ipadapterApply", "image"),
    ("easy ipadapterApplyADV", "image"),
    ("FaceBoundingBox", "image"),  # FaceAnalysis
    ("FaceEmbedDistance", "reference"),
    ("FaceAlign", "image_from"),
    ("FaceAlign", "image_to"),
    ("FaceSegmentation", "image"),
    ("FaceWarp", "image_from"),
    ("FaceWarp", "image_to"),
    ("IPAdapterFaceID", "image"),
    ("ApplyInstantID", "image"),
    ("ApplyPulid", "image"),
    ("ReActorFaceSwap", "source_image"),
    ("LivePortraitProcess", "source_image"),
    ("LatentSyncNode", "images"),
]


def images(graph: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    return [(entry.node_id, entry.image) for entry in find_wanted(graph, **options)]


def test_a_face_check_straight_behind_a_loader_is_found_with_its_rules() -> None:
    graph = {
        "1": LOAD,
        "2": node(
            "GuardedFaceCheck", image=["1", 0], min_faces=2, max_faces=3, min_confidence=0.6, detector="centerface"
        ),
    }
    assert find_wanted(graph) == [
        Wanted("2", "GuardedFaceCheck", "image", "1", "photo.png", FaceRules(2, 3, 0.6), "centerface")
    ]


@pytest.mark.parametrize(
    ("link", "followed"), [(["1", 0], True), (["1", 0.0], True), (["1", "0"], False), (["1", [0]], False)]
)
def test_a_link_is_followed_where_comfyui_takes_it_for_one(link: list[Any], followed: bool) -> None:
    graph = {"1": LOAD, "2": node("GuardedFaceCheck", image=link), "3": node("PreviewImage", images=["2", 0])}
    assert images(graph, outputs=["3"]) == ([("2", "photo.png")] if followed else [])
    assert list_loaded(graph, ["3"]) == ([("1", "photo.png")] if followed else [])


def test_the_face_loader_wants_a_face_itself() -> None:
    graph = {"7": node("GuardedLoadFaceImage", image="a/b.png [output]", max_faces=1, detector="auto")}
    entry = find_wanted(graph)[0]
    assert (entry.node_id, entry.loader_id, entry.image, entry.detector) == ("7", "7", "a/b.png [output]", None)
    assert entry.rules == FaceRules(max_faces=1)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REQUIRED_BY.items() for name in names])
def test_every_listed_class_wants_a_face(kind: str, name: str) -> None:
    graph = {"1": LOAD, "2": node(kind, **{**ONLY_WITH.get(kind, {}), name: ["1", 0]})}
    rules = FaceRules(min_faces=1, min_face_fraction=0.1)
    assert find_wanted(graph, rules=rules) == [Wanted("2", kind, name, "1", "photo.png", rules)]


@pytest.mark.parametrize(("kind", "name"), NEEDED)
def test_a_photo_for_what_fails_without_a_face_is_looked_at(kind: str, name: str) -> None:
    graph = {"1": LOAD, "2": node(kind, **{**ONLY_WITH.get(kind, {}), name: ["1", 0]})}
    assert images(graph) == [("2", "photo.png")]


def test_the_operators_list_replaces_the_shipped_one() -> None:
    graph = {"1": LOAD, "2": node("MyFaceThing", portrait=["1", 0]), "3": node("ApplyPulid", image=["1", 0])}
    assert images(graph, required_by={"MyFaceThing": ["portrait"]}) == [("2", "photo.png")]
    assert images(graph, required_by={}) == []


@pytest.mark.parametrize(
    "passing",
    [
        node("ImageScale", image=["1", 0], crop="disabled"),
        node("ImageScaleBy", image=["1", 0]),
        node("ImageScaleToTotalPixels", image=["1", 0]),
        node("ImageScaleToMaxDimension", image=["1", 0]),
        node("ResizeImagesByShorterEdge", images=["1", 0]),
        node("ResizeImagesByLongerEdge", images=["1", 0]),
        node("ImageUpscaleWithModel", image=["1", 0], upscale_model=["9", 0]),
        node("ImageFlip", image=["1", 0]),
        node("ImageRotate", image=["1", 0]),
        node("ImageFromBatch", image=["1", 0]),
        node("RepeatImageBatch", image=["1", 0]),
        node("BatchImagesNode", **{"images.image0": ["1", 0]}),
        node("GuardedFaceCheck", image=["1", 0], min_faces=0),
    ],
)
def test_nodes_that_pass_a_picture_along_whole_are_looked_through(passing: dict[str, Any]) -> None:
    graph = {"1": LOAD, "2": passing, "3": node("GuardedFaceCheck", image=["2", 0], max_faces=1)}
    assert [(entry.node_id, entry.rules) for entry in find_wanted(graph)] == [("3", FaceRules(max_faces=1))]


@pytest.mark.parametrize(
    "cutting",
    [
        node("ImageCrop", image=["1", 0], width=100),
        node("ImageScale", image=["1", 0], crop="center"),
        node("ImageCropV2", image=["1", 0]),
        node("ImagePadForOutpaint", image=["1", 0]),
        node("ResizeAndPadImage", image=["1", 0]),
        node("PrepImageForClipVision", image=["1", 0]),
        node("ImageResize+", image=["1", 0]),
        node("ImageCrop+", image=["1", 0]),
        node("FluxKontextImageScale", image=["1", 0]),
        node("ResizeImageMaskNode", input=["1", 0]),
        node("ImageResizeKJ", image=["1", 0]),
        node("ImageResizeKJv2", image=["1", 0]),
    ],
)
def test_behind_a_cut_only_that_there_is_a_face_can_be_said(cutting: dict[str, Any]) -> None:
    graph = {"1": LOAD, "2": cutting, "3": node("GuardedFaceCheck", image=["2", 0], min_faces=2, max_faces=2)}
    assert [entry.rules for entry in find_wanted(graph)] == [FaceRules(min_faces=1, max_faces=0, min_face_fraction=0)]


def test_the_crop_of_a_face_check_is_a_part_and_its_mask_is_no_picture() -> None:
    graph = {"1": LOAD, "2": node("GuardedFaceCheck", image=["1", 0], min_faces=0), "3": node("ApplyPulid")}
    graph["3"]["inputs"]["image"] = ["2", 4]
    assert [entry.rules.min_face_fraction for entry in find_wanted(graph)] == [0]
    graph["3"]["inputs"]["image"] = ["2", 3]
    assert find_wanted(graph) == []


def test_a_picture_that_is_made_on_the_way_is_left_to_the_graph() -> None:
    graph = {
        "1": LOAD,
        "2": node("VAEEncode", pixels=["1", 0]),
        "3": node("KSampler", latent_image=["2", 0]),
        "4": node("VAEDecode", samples=["3", 0]),
        "5": node("ReActorFaceSwap", enabled=True, input_image=["4", 0], source_image=["1", 0]),
        "6": node("GuardedFaceCheck", image=["4", 0]),
    }
    assert [(entry.node_id, entry.input) for entry in find_wanted(graph)] == [("5", "source_image")]


def test_a_node_that_is_switched_off_wants_no_face() -> None:
    swap = node("ReActorFaceSwap", enabled=False, input_image=["1", 0], source_image=["1", 0])
    assert find_wanted({"1": LOAD, "2": swap}) == []
    off = node("AdvancedLivePortrait", turn_on=False, src_images=["1", 0])
    assert find_wanted({"1": LOAD, "2": off}) == []


@pytest.mark.parametrize(
    "inputs",
    [
        ("easy ipadapterApply", {"preset": "PLUS FACE (portraits)"}),
        ("PhotoMakerEncodePlus", {}),
        ("easy ipadapterApply", {}),
    ],
)
def test_a_class_that_takes_any_picture_wants_a_face_only_where_it_looks_for_one(inputs: Any) -> None:
    kind, values = inputs
    assert find_wanted({"1": LOAD, "2": node(kind, image=["1", 0], **values)}) == []


@pytest.mark.parametrize(
    "passing",
    [
        node("ImageResize+", image=["1", 0]),
        node("ImageCrop+", image=["1", 0]),
        node("FluxKontextImageScale", image=["1", 0]),
        node("ResizeImageMaskNode", input=["1", 0]),
        node("ResizeImagesByShorterEdge", images=["1", 0]),
        node("ImageStitch", image1=["1", 0]),
        node("ComfySwitchNode", switch=True, on_true=["1", 0], on_false=["9", 0]),
        node("ComfySwitchNode", switch=False, on_true=["9", 0], on_false=["1", 0]),
        node("ImpactSwitch", select=2, input1=["9", 0], input2=["1", 0]),
        node("CR Image Input Switch", Input=1, image1=["1", 0], image2=["9", 0]),
        node("easy imageSwitch", boolean=False, image_a=["9", 0], image_b=["1", 0]),
        node("Any Switch (rgthree)", any_01=["1", 0]),
        node("BatchImagesNode", **{"images.image0": ["1", 0], "images.image1": ["9", 0]}),
        node("ImageBatchMulti", image_1=["1", 0], image_2=["9", 0], inputcount=2),
    ],
)
def test_faces_are_looked_for_through_nodes_of_real_graphs(passing: dict[str, Any]) -> None:
    graph = {"1": LOAD, "2": passing, "3": node("ApplyPulid", image=["2", 0]), "9": node("EmptyImage")}
    assert images(graph) == [("3", "photo.png")]


@pytest.mark.parametrize(
    "joint",
    [
        node("ImageStitch", image1=["1", 0], image2=["2", 0]),
        node("ComfySwitchNode", switch=["5", 0], on_true=["1", 0], on_false=["2", 0]),
        node("ImageConcatMulti", image_1=["1", 0], image_2=["2", 0]),
        node("Any Switch (rgthree)", any_01=["1", 0], any_02=["2", 0]),
    ],
)
def test_of_pictures_side_by_side_or_behind_a_switch_one_must_show_a_face(joint: dict[str, Any]) -> None:
    graph = {"1": LOAD, "2": OTHER, "3": joint, "4": node("ApplyPulid", image=["3", 0]), "5": node("AnyBoolean")}
    (entry,) = find_wanted(graph)
    assert (entry.loader_id, entry.image, entry.instead) == ("1", "photo.png", (("2", "other.png"),))
    assert entry.rules.max_faces == 0
    graph["2"] = node("VAEDecode", samples=["1", 0])
    assert find_wanted(graph) == [], "the run may make the face"


def test_a_thousand_switches_in_a_row_cost_no_more_than_their_number() -> None:
    graph = {"0": LOAD}
    for index in range(1, 3000):
        graph[str(index)] = node("ImageStitch", image1=[str(index - 1), 0], image2=[str(index - 1), 0])
        graph[f"w{index}"] = node("ImageBatch", image1=[str(index), 0], image2=[f"w{index - 1}", 0])
    graph["end"] = node("GuardedFaceCheck", image=["w2999", 0])
    assert images(graph) == [("end", "photo.png")]


def test_every_picture_of_a_batch_is_wanted() -> None:
    graph = {
        "1": LOAD,
        "2": node("LoadImage", image="other.png"),
        "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
        "4": node("GuardedFaceCheck", image=["3", 0]),
    }
    assert sorted(images(graph)) == [("4", "other.png"), ("4", "photo.png")]


def test_one_picture_under_one_set_of_rules_is_wanted_once() -> None:
    graph = {
        "1": LOAD,
        "2": node("ApplyInstantID", image=["1", 0]),
        "3": node("FaceKeypointsPreprocessor", image=["1", 0]),
        "4": node("GuardedFaceCheck", image=["1", 0], max_faces=1),
    }
    assert images(graph) == [("2", "photo.png"), ("4", "photo.png")]


def test_what_no_output_needs_is_not_wanted() -> None:
    graph = {
        "1": LOAD,
        "2": node("GuardedFaceCheck", image=["1", 0]),
        "3": node("PreviewImage", images=["2", 0]),
        "4": node("SaveImage", images=["1", 0]),
    }
    assert images(graph, outputs=["4"]) == []
    assert images(graph, outputs=["3"]) == [("2", "photo.png")]
    assert list_loaded(graph, outputs=["4"]) == [("1", "photo.png")]


@pytest.mark.parametrize(
    "link", [None, "x", ["9", 0], ["1"], ["1", 0, 0], [1, 0], ["1", 1], ["1", "0"], [["1"], 0], {}, 3]
)
def test_a_link_that_leads_to_no_picture_is_passed_over(link: Any) -> None:
    assert find_wanted({"1": LOAD, "2": node("GuardedFaceCheck", image=link)}) == []


def test_a_name_that_comes_over_a_link_is_left_to_the_graph() -> None:
    graph = {
        "1": node("PrimitiveString", value="photo.png"),
        "2": node("LoadImage", image=["1", 0]),
        "3": node("GuardedFaceCheck", image=["2", 0]),
    }
    assert find_wanted(graph) == []


def test_a_cycle_ends() -> None:
    graph = {
        "1": node("ImageScaleBy", image=["2", 0]),
        "2": node("ImageScaleBy", image=["1", 0]),
        "3": node("GuardedFaceCheck", image=["1", 0]),
    }
    assert find_wanted(graph) == []
    assert find_wanted(graph, outputs=["3"]) == []


def test_a_chain_of_thousands_of_nodes_is_followed() -> None:
    graph = {"0": LOAD}
    for index in range(1, 5000):
        graph[str(index)] = node("ImageBatch", image1=[str(index - 1), 0], image2=[str(index - 1), 0])
    graph["end"] = node("GuardedFaceCheck", image=["4999", 0])
    assert images(graph, outputs=["end"]) == [("end", "photo.png")]


def test_rules_out_of_range_are_an_invalid_request() -> None:
    with pytest.raises(InvalidRequestError):
        find_wanted({"1": LOAD, "2": node("GuardedFaceCheck", image=["1", 0], min_faces=-1)})


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("photo.png", ("input", "photo.png")),
        ("a/photo.png [output]", ("output", "a/photo.png")),
        ("photo.png [input]", ("input", "photo.png")),
        ("photo.png [temp]", ("temp", "photo.png")),
        ("photo [1].png", ("input", "photo [1].png")),
    ],
)
def test_a_name_says_in_which_folder_it_lies(image: str, expected: tuple[str, str]) -> None:
    assert split_annotation(image) == expected
