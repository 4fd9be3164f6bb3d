"""Every file of the corpus gets the verdict that it should, with default settings."""

from pathlib import Path

import pytest
from results.checking import DEFAULTS, check, refusal
from results.corpus import CASES, Case

KINDS = {
    "image": {".png", ".jpg", ".webp", ".gif"},
    "video": {".mp4", ".webm", ".mov", ".mkv"},
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".m4a"},
}


def test_the_corpus_is_large_and_has_good_and_bad_of_every_format():
    assert len(CASES) >= 60
    assert len({case.filename for case in CASES}) == len(CASES)
    for suffix in set().union(*KINDS.values()) - {".mkv", ".m4a"}:
        verdicts = {case.code is None for case in CASES if case.suffix == suffix}
        assert verdicts == {True, False}, suffix


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_file_gets_its_verdict(case: Case, tmp_path: Path):
    path = case.write(tmp_path)
    if case.code is not None:
        error = refusal(path)
        assert error.code == case.code, f"{error.message} {error.details}"
        assert (error.extra_info["node_id"], error.extra_info["filename"]) == ("9", case.filename)
        return
    artifact = check(path)
    assert tuple(name for name in artifact.warnings if name != "low_bitrate") == case.warnings
    assert artifact.bytes == path.stat().st_size
    assert len(artifact.sha256) == 64
    if artifact.kind == "other":
        return
    assert artifact.kind == next(kind for kind, suffixes in KINDS.items() if case.suffix in suffixes)
    assert (artifact.width is None) == (artifact.kind == "audio")
    if artifact.kind == "video":
        assert artifact.duration_s == pytest.approx(artifact.frames / artifact.fps, rel=0.02)


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize(
    ("name", "setting", "warning"),
    [
        ("black png", "refuse_blank", "black"),
        ("grey jpeg", "refuse_blank", "flat"),
        ("transparent png", "refuse_blank", "transparent"),
        ("breaks off", "refuse_blank", "blank_frames"),
        ("frozen mp4", "refuse_frozen", "frozen"),
        ("silent wav", "refuse_silent", "silent"),
    ],
)
def test_a_check_that_is_off_only_warns(name: str, setting: str, warning: str, tmp_path: Path):
    path = by_name(name).write(tmp_path)
    assert refusal(path).extra_info["check"] == warning
    artifact = check(path, DEFAULTS.model_copy(update={setting: False}))
    assert warning in artifact.warnings


def test_a_low_bitrate_is_a_warning_and_with_strict_an_error(tmp_path: Path):
    path = by_name("talking head 15 s, small").write(tmp_path)
    assert check(path).warnings == ("low_bitrate",)
    error = refusal(path, DEFAULTS.model_copy(update={"strict_bitrate": True}))
    assert error.code == "result_too_small"
    assert error.extra_info["bytes_per_s"] < error.extra_info["min_bytes_per_s"] == 51200


def test_a_talking_head_is_measured(tmp_path: Path):
    artifact = check(by_name("talking head 15 s").write(tmp_path))
    assert (artifact.kind, artifact.width, artifact.height) == ("video", 512, 512)
    assert (artifact.frames, artifact.fps, artifact.duration_s) == (375, 25, 15)


def test_a_moving_gif_is_measured(tmp_path: Path):
    artifact = check(by_name("gif of 3 frames").write(tmp_path))
    assert (artifact.kind, artifact.frames, artifact.duration_s, artifact.fps) == ("image", 3, 0.6, 5)


def test_a_measurement_comes_with_the_error(tmp_path: Path):
    error = refusal(by_name("nearly black png").write(tmp_path))
    assert error.extra_info["check"] == "black"
    assert 0 < error.extra_info["measured"] <= error.extra_info["limit"] == DEFAULTS.black_level
