"""Refused files are kept for the operator, within bounds."""

import os
import time
from pathlib import Path

from results.checking import DEFAULTS, reported

from comfyui_guarded.guard.job import Artifact
from comfyui_guarded.guard.results import opener, quarantine

DAY_S = 86400


def put(folder: Path, name: str, size: int, age_s: float = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_refused_file_moves_aside(tmp_path: Path):
    bad = put(tmp_path / "output", "bad.png", 100, age_s=30 * DAY_S)
    quarantine.set_aside([reported(bad), reported(bad)], tmp_path / "q" / "job", DEFAULTS)
    assert not bad.exists()
    assert [path.name for path in (tmp_path / "q" / "job").iterdir()] == ["0-bad.png"]


def test_a_link_and_a_missing_file_stay_what_they_are(tmp_path: Path):
    target = put(tmp_path / "elsewhere", "theirs.png", 10)
    link = tmp_path / "link.png"
    link.symlink_to(target)
    quarantine.set_aside([reported(link), reported(tmp_path / "no.png")], tmp_path / "q" / "job", DEFAULTS)
    assert target.exists()
    assert link.is_symlink()


def test_the_oldest_go_when_there_are_too_many_bytes(tmp_path: Path):
    settings = DEFAULTS.model_copy(update={"quarantine_max_bytes": 250})
    root = tmp_path / "q"
    for number in range(4):
        put(root / f"job{number}", "0-x.png", 100, age_s=100 - number)
    assert quarantine.trim(root, settings) == 2
    assert sorted(path.name for path in root.iterdir()) == ["job2", "job3"]


def test_of_a_job_of_very_many_files_some_are_kept(tmp_path: Path):
    files = [put(tmp_path / "output", f"{number}.png", 10) for number in range(500)]
    aside = tmp_path / "q" / "job"
    for part in (files[:150], files[150:]):
        quarantine.set_aside(map(reported, part), aside, DEFAULTS)
    assert not any(file.exists() for file in files)
    assert len(list(aside.iterdir())) == 200


def test_the_oldest_go_when_there_are_too_many_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(quarantine, "_MOST", 3)
    root = tmp_path / "q"
    for number in range(5):
        put(root / f"job{number}", "0-x.png", 10, age_s=100 - number)
    assert quarantine.trim(root, DEFAULTS) == 2
    assert sorted(path.name for path in root.iterdir()) == ["job2", "job3", "job4"]


def test_a_file_larger_than_the_whole_quarantine_is_deleted(tmp_path: Path):
    bad = put(tmp_path / "output", "bad.png", 100)
    settings = DEFAULTS.model_copy(update={"quarantine_max_bytes": 0})
    quarantine.set_aside([reported(bad)], tmp_path / "q" / "job", settings)
    assert not bad.exists()
    assert not (tmp_path / "q" / "job").exists()


def test_no_quarantine_is_no_trouble(tmp_path: Path):
    assert quarantine.trim(tmp_path / "none", DEFAULTS) == 0


def test_a_verified_file_is_not_hashed_again_until_it_changes(tmp_path: Path, monkeypatch):
    path = put(tmp_path, "x.png", 3000, age_s=10)
    hashed = []
    original = opener.hash_file
    monkeypatch.setattr(opener, "hash_file", lambda *args: hashed.append(1) or original(*args))
    monkeypatch.setattr(opener.ArtifactOpener, "_SETTLED_S", -1)
    with open(path, "rb") as handle:
        artifact = Artifact(0, "1", "image", "x.png", "", "output", 3000, original(handle))
    files = opener.ArtifactOpener()
    for _ in range(3):
        with files.open(artifact, path) as handle:
            assert len(handle.read()) == 3000
    assert len(hashed) == 1
    before = path.stat()
    path.write_bytes(b"\1" * 3000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.open(artifact, path) is None
    path.unlink()
    assert files.open(artifact, path) is None
