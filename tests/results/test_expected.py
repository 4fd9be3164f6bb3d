"""What a graph asks of its writers, and what happens to files that fall short of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import corpus, pictures
from results.checking import check, outcome, refusal

from comfyui_guarded.guard.errors import ResultMissingError
from comfyui_guarded.guard.results import checks, expected
from comfyui_guarded.guard.results.expected import Expected


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


WAN = {
    "1": node("WanImageToVideo", length=81, batch_size=1, width=512, height=512),
    "2": node("KSampler", latent_image=["1", 2], steps=20),
    "3": node("VAEDecode", samples=["2", 0], vae=["0", 0]),
}
BATCH = {"3": node("EmptyImage", batch_size=50, width=64, height=64)}


def test_a_batch_doubled_over_and_over_is_counted_without_being_walked_over_and_over():
    graph = {"0": node("EmptyImage", batch_size=1)}
    for step in range(1, 50):
        graph[str(step)] = node("ImageBatch", image1=[str(step - 1), 0], image2=[str(step - 1), 0])
    graph["w"] = node("VHS_VideoCombine", images=["49", 0], frame_rate=8)
    assert expected.infer(graph, "w") == Expected(2**49, 8)


@pytest.mark.parametrize(
    ("graph", "wanted"),
    [
        ({**WAN, "9": node("SaveWEBM", images=["3", 0], fps=16.0)}, Expected(81, 16.0)),
        ({**WAN, "9": node("SaveWEBM", images=["3", 0.0], fps=16.0)}, Expected(81, 16.0)),
        ({**WAN, "9": node("SaveWEBM", images=[3, 0], fps=16.0)}, Expected(None, 16.0)),
        ({**WAN, "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=16, pingpong=False)}, Expected(81, 16)),
        ({**WAN, "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, pingpong=True)}, Expected(160, 8)),
        ({**WAN, "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, meta_batch=["5", 0])}, Expected(None, 8)),
        (
            {**WAN, "8": node("CreateVideo", images=["3", 0], fps=24), "9": node("SaveVideo", video=["8", 0])},
            Expected(81, 24),
        ),
        (
            {
                **WAN,
                "7": node("CreateVideo", images=["3", 0], fps=24),
                "8": node("GuardedValidateVideo", video=["7", 0]),
                "9": node("SaveVideo", video=["8", 0]),
            },
            Expected(81, 24),
        ),
        ({**BATCH, "9": node("SaveAnimatedWEBP", images=["3", 0], fps=6.0)}, Expected(50, 6.0)),
        ({"9": node("SomePacksWriter", num_frames=30, fps=10)}, Expected(30, 10)),
        (
            {
                "1": node("EmptyHunyuanLatentVideo", length=16, batch_size=1),
                "2": node("VAEDecodeTiled", samples=["1", 0]),
                "9": node("SaveWEBM", images=["2", 0], fps=["4", 0]),
                "4": node("PrimitiveFloat", value=12.5),
            },
            Expected(13, 12.5),
        ),
        (
            {
                "1": node("RepeatImageBatch", image=["3", 0], amount=2),
                "2": node("ImageBatch", image1=["1", 0], image2=["3", 0]),
                **BATCH,
                "9": node("SaveWEBM", images=["2", 0], fps=25),
            },
            Expected(150, 25),
        ),
        ({"9": node("SaveVideo", video=["8", 0]), "8": node("LoadVideo", file="x.mp4")}, Expected()),
        ({"9": node("SaveWEBM", images=["8", 0], fps=25), "8": node("RIFE VFI", frames=["3", 0])}, Expected(None, 25)),
        ({"9": node("SaveWEBM", images=["9", 0], fps=25)}, Expected(None, 25)),
        ({"9": node("SaveWEBM", images=["2", 0], fps=25), "2": node("ImageScale", image=["2", 0])}, Expected(None, 25)),
        ({"9": {"class_type": "SaveWEBM", "inputs": None}}, Expected()),
        ({"9": node("SaveWEBM", images=["3", 0], fps=True), **BATCH}, Expected(50, None)),
        ({**WAN, "9": node("SaveWEBM", images=["3", 0], fps="25")}, Expected(81, None)),
        ({}, Expected()),
        (
            {
                **BATCH,
                "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, audio=["5", 0]),
                "5": node("LoadAudio"),
            },
            Expected(50, 8, audio=True),
        ),
        (
            {
                **BATCH,
                "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, audio=["5", 1]),
                "5": node("GetVideoComponents"),
            },
            Expected(50, 8, perhaps_audio=True),
        ),
    ],
)
def test_what_is_certain_is_expected(graph: dict[str, Any], wanted: Expected):
    assert expected.infer(graph, "9") == wanted


def graph(frames: int, fps: float, **more: Any) -> dict[str, Any]:
    return {
        "1": node("EmptyImage", batch_size=frames, width=64, height=64),
        "9": node("VHS_VideoCombine", images=["1", 0], frame_rate=fps, **more),
    }


def film(tmp_path: Path, frames: int, fps: float = 25, **options: Any) -> Path:
    path = tmp_path / "x.mp4"
    path.write_bytes(corpus.film(pictures.pan(pictures.landscape(256), frames), fps=fps, **options))
    return path


@pytest.mark.parametrize("frames", [50, 49, 46, 60])
def test_a_film_within_a_tenth_passes(frames: int, tmp_path: Path):
    artifact = check(film(tmp_path, frames), prompt=graph(50, 25))
    assert ("longer_than_asked" in artifact.warnings) is (frames == 60)


def test_a_shorter_one_is_incomplete(tmp_path: Path):
    error = refusal(film(tmp_path, 40), prompt=graph(50, 25))
    assert error.code == "result_incomplete"
    assert error.extra_info["check"] == "too_short"
    assert (error.extra_info["measured"], error.extra_info["limit"]) == (1.6, 2)


def test_one_frame_less_of_a_short_clip_is_not_too_short(tmp_path: Path):
    check(film(tmp_path, 6, crf="5"), prompt=graph(7, 25))


def test_a_sound_that_was_given_must_be_there(tmp_path: Path):
    given = {**graph(50, 25, audio=["5", 0]), "5": node("LoadAudio", audio="x.mp3")}
    error = refusal(film(tmp_path, 50), prompt=given)
    assert (error.code, error.extra_info["check"]) == ("result_incomplete", "no_audio")
    check(film(tmp_path, 50, sound=corpus.tone(2)), prompt=given)
    perhaps = {**graph(50, 25, audio=["5", 1]), "5": node("GetVideoComponents", video=["6", 0])}
    assert "no_audio" in check(film(tmp_path, 50), prompt=perhaps).warnings


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_an_animation_whose_writer_merged_equal_frames_is_whole(format: str, tmp_path: Path):
    frames = [frame for frame in pictures.pan(pictures.landscape(128), 6) for _ in range(4)]
    path = tmp_path / f"x.{format.lower()}"
    path.write_bytes(corpus.moving(frames, format, 40))
    artifact = check(path, prompt=graph(24, 25))
    assert artifact.frames == 6


def test_an_animation_of_half_the_frames_is_incomplete(tmp_path: Path):
    path = tmp_path / "x.webp"
    path.write_bytes(corpus.moving(pictures.pan(pictures.landscape(128), 12), "WEBP", 40))
    assert refusal(path, prompt=graph(24, 25)).code == "result_incomplete"


def test_stills_are_not_measured_against_the_batch(tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    prompt = {"1": node("EmptyImage", batch_size=50), "9": node("SaveImage", images=["1", 0])}
    assert check(path, prompt=prompt).frames is None


@pytest.mark.parametrize("level", [0, 255, 128])
def test_a_mask_may_be_black_white_or_grey_all_over(tmp_path: Path, level: int):
    """As that of every opaque photo is; the same picture as a picture is blank."""
    path = tmp_path / "x.png"
    path.write_bytes(corpus.image(np.full((64, 64, 3), level / 255, np.float32), "PNG"))
    load = node("LoadImage", image="photo.png")
    assert check(path, prompt={"1": load, "9": node("MaskPreview", mask=["1", 1])}).kind == "image"
    pictured = {"1": load, "2": node("MaskToImage", mask=["1", 1]), "9": node("SaveImage", images=["2", 0])}
    assert refusal(path, prompt=pictured).code == "result_too_small"
    both = {"1": load, "9": node("SaveWithAlpha", images=["1", 0], mask=["1", 1])}
    assert refusal(path, prompt=both).code == "result_too_small"
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path, prompt={"1": load, "9": node("MaskPreview", mask=["1", 1])}).code == "result_corrupt"


def test_files_out_of_the_hosts_cache_are_not_the_jobs_own(tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    cached = outcome(path, cached=frozenset({"9"}))
    with pytest.raises(ResultMissingError):
        checks.check(cached, checks.ResultsSettings())
    assert checks.own_files(cached) == ()
    assert checks.own_outputs(cached) == {}
    assert checks.own_outputs(outcome(path)).keys() == {"9"}
