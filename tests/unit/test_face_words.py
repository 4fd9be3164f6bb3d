"""What packs say where they find no face, and what else they say of faces."""

from collections.abc import Collection
from pathlib import Path

import pytest
from unit.machine import Machine

from comfyui_guarded.guard.errors import NoFaceError
from comfyui_guarded.guard.faces.required import REQUIRED_BY
from comfyui_guarded.guard.host import Outcome
from comfyui_guarded.guard.life.face_words import read_face_error

#: Read in the packs' sources, each at the commit that guard/faces/required.py names: the class that raises, its text.
NO_FACE = [
    ("IPAdapterFaceID", "Exception", "InsightFace: No face detected."),
    ("ApplyInstantID", "Exception", "Reference Image: No face detected."),
    ("ApplyInstantIDAdvanced", "Exception", "Reference Image: No face detected.\n"),
    ("easy instantIDApply", "Exception", "Reference Image: No face detected."),
    ("FaceEmbed", "AssertionError", "No face detected for face embed"),
    ("ExtractIDEmbedding", "ValueError", "No face detected in the input ID image"),
    ("ExtractFacePoseImage", "ValueError", "No face detected in the input pose image"),
    ("FaceBoundingBox", "Exception", "No face detected in image."),
    ("FaceEmbedDistance", "Exception", "No face detected in reference image"),
    ("LivePortraitProcess", "ValueError", "No face detected in FIRST source image"),
    ("LatentSyncNode", "RuntimeError", "Face not detected"),
    ("PhotoMakerEncodePlus", "ValueError", "No face detected in input image pool"),
    # Of packs whose classes an operator may add to the list, and of the libraries below them.
    ("AngleFromFace", "AssertionError", "No face detected in pose image"),
    ("LivePortraitNode", "Exception", "No face detected in the source image!"),
    ("IDGenerationNode", "Error", "Cannot find any face in the reference image! Please upload another person image"),
    ("ReActorFaceSwap", "Exception", "No face found, please try another image"),
    ("ReActorFaceSwap", "Exception", "No source face(s) found"),
    ("ReActorFaceSimilarity", "Exception", "Face not found in one or both images"),
    ("LatentSyncNode", "RuntimeError", "bad video, face not detected"),
    ("Swap", "ValueError", "No usable face detected in source image."),
    ("Swap", "ValueError", "No usable faces were found in the reference photos; choose clearer reference photos"),
    ("Swap", "Exception", "No face detected"),
    # As Python writes those of its own.
    ("ApplyInstantID", "KeyError", "'No face detected in image.'"),
    ("ApplyInstantID", "ExceptionGroup", "No face detected in image. (1 sub-exception)"),
]
#: What may follow: words of the photo alone.
OF_THE_PHOTO = [
    "No face detected. Please make sure the image contains a clearly visible face.",
    "No face found! The photo must show one person, from the front.",
    "Face not found: please use a clearer, well lit picture of a single person (front facing)",
    "Unable to detect a face in the reference image, try a different photo.",
]
#: What another photo does not mend, so whoever sent this one must not hear that there is no face in it.
OF_THE_SERVER = [
    "No face detected. Please make sure that the detection file is there",
    "No face found. Make sure the checkpoint buffalo_l is in place",
    "Face not found. Please use pip",
    "Failed to locate the face. Please use insightface 0.7.3",
    "No face found, please try --lowvram",
    "Unable to find human face, please try to update ComfyUI",
    "Multiple faces found, please use another provider than CUDA",
    "No face detected. Use a bigger GPU",
    "No face detected. Please check your onnxruntime",
    "Face could not be found. Please choose another detector",
    "Could not locate face. Please upload face_landmarker.task to models",
    "No face detected, try lowering det_thresh",
    "No face detected. The analyser was not loaded.",
    "No face detected; out of memory",
    "No face detected.\nTraceback: CUDA error",
    "'No face detected: please restart the server'",
]
TOO_MANY = ["More than one face detected", "Multiple faces found in the reference image.", "Too many faces in photo"]
#: Texts about faces, surfaces and interfaces: of packs, of what they import, and invented near misses.
OTHER = (Path(__file__).parent / "other_face_words.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def end_of(store, host, clock, tmp_path):
    """The code of a job whose node raises, with those classes believed."""

    async def run(kind: str, exception: str, text: str, believed: Collection[str] = tuple(REQUIRED_BY)) -> str | None:
        machine = Machine(store, host, clock, tmp_path, face_classes=believed)
        job_id = await machine.run(job_id=f"{kind} in {len(believed)}")
        about = {"exception_type": exception, "exception_message": text, "node_id": "7", "node_type": kind}
        verdict = machine.finish(job_id, Outcome(success=False, **about))
        assert verdict.details["node_id"] == "7"
        assert verdict.details["exception_message"] == text.strip()
        assert machine.job(job_id).body()["refund"] is True
        return verdict.code

    return run


@pytest.mark.parametrize(("node_type", "exception_type", "text"), NO_FACE)
async def test_a_packs_word_that_there_is_no_face_ends_the_job_as_no_face(end_of, node_type, exception_type, text):
    assert await end_of(node_type, exception_type, text, {*REQUIRED_BY, node_type}) == "no_face"
    names_detector = text.startswith("InsightFace: ")
    assert await end_of("SomeMeshNode", exception_type, text) == ("no_face" if names_detector else "generation_failed")


@pytest.mark.parametrize("text", TOO_MANY)
async def test_a_packs_word_that_there_are_too_many_has_a_code_of_its_own(end_of, text):
    assert await end_of("ApplyPulid", "ValueError", text) == "too_many_faces"


def test_no_other_word_about_faces_is_taken_for_one():
    assert len(OTHER) >= 200
    assert all("face" in text.lower() for text in OTHER)
    assert [text for text in OTHER if read_face_error(text) is not None] == []


@pytest.mark.parametrize("text", OF_THE_PHOTO)
def test_a_pack_may_ask_for_another_photo(text):
    assert read_face_error(text) is NoFaceError


@pytest.mark.parametrize("text", OF_THE_SERVER)
def test_what_another_photo_does_not_mend_is_no_fault_of_the_photo(text):
    assert read_face_error(text) is None


def test_a_long_word_is_read_in_no_time():
    for text in (
        "No " + "valid " * 100_000 + "face",
        "Cannot find " * 50_000,
        "x image " * 100_000,
        "No face found. " * 50_000,
    ):
        assert read_face_error(text) is None


@pytest.mark.parametrize("exception_type", ["torch.OutOfMemoryError", "comfyui_guarded.ResultBlankError"])
async def test_a_type_that_says_what_it_is_comes_first(end_of, exception_type):
    assert await end_of("ApplyPulid", exception_type, "No face detected") in ("out_of_memory", "result_blank")
