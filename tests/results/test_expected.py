"""What a graph asks of its writers, and what happens to files that fall short of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import corpus, pictures
from results.checking import DEFAULTS, check, outcome, refusal

from comfyui_guarded.guard.errors import ResultCorruptError, ResultMissingError
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
    assert expected.infer(graph, "w") == Expected(2**49, 8, many=True)


@pytest.mark.parametrize(
    ("graph", "wanted"),
    [
        ({**WAN, "9": node("SaveWEBM", images=["3", 0], fps=16.0)}, Expected(81, 16.0, many=True)),
        ({**WAN, "9": node("SaveWEBM", images=["3", 0.0], fps=16.0)}, Expected(81, 16.0, many=True)),
        ({**WAN, "9": node("SaveWEBM", images=[3, 0], fps=16.0)}, Expected(None, 16.0)),
        (
            {**WAN, "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=16, pingpong=False)},
            Expected(81, 16, many=True),
        ),
        (
            {**WAN, "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, pingpong=True)},
            Expected(160, 8, many=True),
        ),
        ({**WAN, "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, meta_batch=["5", 0])}, Expected(None, 8)),
        (
            {**WAN, "8": node("CreateVideo", images=["3", 0], fps=24), "9": node("SaveVideo", video=["8", 0])},
            Expected(81, 24, many=True),
        ),
        (
            {
                **WAN,
                "7": node("CreateVideo", images=["3", 0], fps=24),
                "8": node("GuardedValidateVideo", video=["7", 0]),
                "9": node("SaveVideo", video=["8", 0]),
            },
            Expected(81, 24, many=True),
        ),
        ({**BATCH, "9": node("SaveAnimatedWEBP", images=["3", 0], fps=6.0)}, Expected(50, 6.0, many=True)),
        ({"9": node("SomePacksWriter", num_frames=30, fps=10)}, Expected(30, 10, many=True)),
        (
            {
                "1": node("EmptyHunyuanLatentVideo", length=16, batch_size=1),
                "2": node("VAEDecodeTiled", samples=["1", 0]),
                "9": node("SaveWEBM", images=["2", 0], fps=["4", 0]),
                "4": node("PrimitiveFloat", value=12.5),
            },
            Expected(13, 12.5, many=True),
        ),
        (
            {
                "1": node("RepeatImageBatch", image=["3", 0], amount=2),
                "2": node("ImageBatch", image1=["1", 0], image2=["3", 0]),
                **BATCH,
                "9": node("SaveWEBM", images=["2", 0], fps=25),
            },
            Expected(150, 25, many=True),
        ),
        ({"9": node("SaveVideo", video=["8", 0]), "8": node("LoadVideo", file="x.mp4")}, Expected()),
        ({"9": node("SaveWEBM", images=["8", 0], fps=25), "8": node("RIFE VFI", frames=["3", 0])}, Expected(None, 25)),
        ({"9": node("SaveWEBM", images=["9", 0], fps=25)}, Expected(None, 25)),
        ({"9": node("SaveWEBM", images=["2", 0], fps=25), "2": node("ImageScale", image=["2", 0])}, Expected(None, 25)),
        ({"9": {"class_type": "SaveWEBM", "inputs": None}}, Expected()),
        ({"9": node("SaveWEBM", images=["3", 0], fps=True), **BATCH}, Expected(50, None, many=True)),
        ({**WAN, "9": node("SaveWEBM", images=["3", 0], fps="25")}, Expected(81, None, many=True)),
        ({}, Expected()),
        (
            {
                **BATCH,
                "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, audio=["5", 0]),
                "5": node("LoadAudio"),
            },
            Expected(50, 8, many=True, audio=True),
        ),
        (
            {
                **BATCH,
                "9": node("VHS_VideoCombine", images=["3", 0], frame_rate=8, audio=["5", 1]),
                "5": node("GetVideoComponents"),
            },
            Expected(50, 8, many=True, perhaps_audio=True),
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


def still(tmp_path: Path, form: str = "WEBP", frames: int = 16) -> Path:
    """As Pillow writes a film of equal frames: a plain picture, of which only a GIF says how long it is shown."""
    path = tmp_path / f"x.{form.lower()}"
    path.write_bytes(corpus.moving([pictures.landscape(128)] * frames, form, 125))
    return path


def repeated(writer: dict[str, Any], times: int = 16) -> dict[str, Any]:
    """One photo, so many times; or, if it were a moving one, each of its pictures."""
    return {
        "1": node("LoadImage", image="photo.png"),
        "2": node("RepeatImageBatch", image=["1", 0], amount=times),
        "9": writer,
    }


def joined(writer: dict[str, Any]) -> dict[str, Any]:
    """A film from another pack's nodes, and one more."""
    return {
        "1": node("SomePacksFrames"),
        "2": node("ImageBatch", image1=["1", 0], image2=["1", 1]),
        "3": node("ImageScale", image=["2", 0]),
        "9": {**writer, "inputs": {**writer["inputs"], "images": ["3", 0]}},
    }


PILLOW = {
    "SaveAnimatedWEBP": ("WEBP", node("SaveAnimatedWEBP", images=["2", 0], fps=8.0)),
    "SaveAnimatedPNG": ("PNG", node("SaveAnimatedPNG", images=["2", 0], fps=8.0)),
    "VHS gif": ("GIF", node("VHS_VideoCombine", images=["2", 0], frame_rate=8, format="image/gif")),
    "VHS webp": ("WEBP", node("VHS_VideoCombine", images=["2", 0], frame_rate=8, format="image/webp")),
    "VHS webp at a rate of another node's": (
        "WEBP",
        node("VHS_VideoCombine", images=["2", 0], frame_rate=["8", 0], format="image/webp"),
    ),
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("graph", [repeated, joined])
def test_a_film_of_equal_frames_is_frozen_also_where_its_writer_makes_one_of_them(name, graph, tmp_path: Path):
    form, writer = PILLOW[name]
    path, prompt = still(tmp_path, form), graph(writer)
    error = refusal(path, prompt=prompt)
    assert (error.code, error.extra_info["check"]) == ("result_corrupt", "frozen")
    settings = DEFAULTS.model_copy(update={"refuse_frozen": False})
    assert check(path, settings, prompt=prompt).warnings == ("frozen",)


def test_a_film_of_which_only_the_gif_says_how_long_it_is_shown_is_frozen(tmp_path: Path):
    writer = node("VHS_VideoCombine", images=["1", 0], frame_rate=8, format="image/gif")
    prompt = {"1": node("SomePacksFrames"), "9": writer}
    assert refusal(still(tmp_path, "GIF"), prompt=prompt).extra_info["check"] == "frozen"
    assert check(still(tmp_path, "GIF", frames=1), prompt=prompt).frames is None


@pytest.mark.parametrize(("form", "is_frozen"), [("WEBP", True), ("PNG", False)])
def test_a_node_that_says_that_its_picture_moves_is_believed(form: str, is_frozen: bool, tmp_path: Path):
    """Not of a PNG: SaveAnimatedPNG of older ComfyUIs says so of one frame, too."""
    path = still(tmp_path, form)
    writer = node("SaveAnimated" + form, images=["1", 0], fps=8.0)
    ended = outcome(path, prompt={"1": node("SomePacksFrames"), "9": writer})
    ended = replace(ended, outputs={"9": {**ended.outputs["9"], "animated": [True]}})
    if not is_frozen:
        assert len(checks.check(ended, DEFAULTS)) == 1
        return
    with pytest.raises(ResultCorruptError) as caught:
        checks.check(ended, DEFAULTS)
    assert caught.value.extra_info["check"] == "frozen"


@pytest.mark.parametrize("name", PILLOW)
def test_a_film_of_one_frame_is_one_picture(name, tmp_path: Path):
    """As an MP4 of one frame is."""
    form, writer = PILLOW[name]
    assert check(still(tmp_path, form, frames=1), prompt=repeated(writer, 1)).warnings == ()


@pytest.mark.parametrize("count", [{"meta_batch": ["5", 0]}, {"trim_to_audio": True}])
def test_a_writer_that_takes_only_a_part_may_take_one_frame(count: dict[str, Any], tmp_path: Path):
    writer = node("VHS_VideoCombine", images=["2", 0], frame_rate=8, format="image/webp", **count)
    check(still(tmp_path, frames=1), prompt=repeated(writer))


def test_stills_of_equal_pictures_are_no_film(tmp_path: Path):
    """Those of SaveImage, and a film that is saved as pictures: each is judged by itself."""
    paths = [tmp_path / f"x_00001.{number:03d}.png" for number in range(1, 5)]
    for path in paths:
        path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    writers = [
        node("SaveImage", images=["2", 0]),
        node("VHS_VideoCombine", images=["2", 0], frame_rate=8, format="video/8bit-png"),
        node("VHS_VideoCombine", images=["7", 0], frame_rate=8, format="video/8bit-png"),
    ]
    for writer in writers:
        prompt = {**repeated(writer), "7": node("EmptyImage", batch_size=4)}
        assert len(checks.check(outcome(*paths, prompt=prompt), DEFAULTS)) == 4
    assert check(paths[0], prompt=repeated(node("SaveImage", images=["2", 0]))).frames is None


def test_pictures_of_a_film_that_were_written_one_over_the_other_are_incomplete(tmp_path: Path):
    """FFmpeg takes no number for a name that asks for something else, too."""
    path = tmp_path / "a%b_00001.%03d.png"
    path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    writer = node("VHS_VideoCombine", images=["1", 0], frame_rate=8, format="video/8bit-png")
    error = refusal(path, prompt={"1": node("SomePacksFrames"), "9": writer})
    assert (error.code, error.extra_info["check"]) == ("result_incomplete", "too_few_frames")
    saved = path.rename(tmp_path / "a%03d_00001_.png")
    check(saved, prompt={"1": node("LoadImage", image="x.png"), "9": node("SaveImage", images=["1", 0])})


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_a_sound_that_a_moving_picture_cannot_hold_is_missed(form: str, tmp_path: Path):
    path = tmp_path / f"x.{form.lower()}"
    path.write_bytes(corpus.moving(pictures.pan(pictures.landscape(128), 12), form, 40))
    given = {**graph(12, 25, audio=["5", 0]), "5": node("LoadAudio", audio="x.mp3")}
    assert "no_audio" in check(path, prompt=given).warnings


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


def test_a_file_that_two_nodes_name_is_one_result(tmp_path: Path):
    """Of two equal savers ComfyUI runs one, and both report its file."""
    path = tmp_path / "x.png"
    path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    ended = outcome(path)
    again = replace(ended.files[0], node_id="8")
    both = replace(ended, files=(again, *ended.files), outputs={**ended.outputs, "8": ended.outputs["9"]})
    assert [artifact.node_id for artifact in checks.check(both, DEFAULTS)] == ["8"]


def test_a_file_that_one_node_names_many_times_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also under spellings of its own: `.` is a subfolder, too."""
    path = tmp_path / "x.png"
    path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    ended = outcome(path)
    files = [replace(ended.files[0], subfolder="./" * (at % 50)) for at in range(3000)]
    opened: list[Any] = []
    inspect = checks.inspect
    monkeypatch.setattr(checks, "inspect", lambda *given: opened.append(given) or inspect(*given))
    (artifact,) = checks.check(replace(ended, files=tuple(files)), DEFAULTS)
    assert artifact.subfolder == ""
    assert len(opened) == 1
