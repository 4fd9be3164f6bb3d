"""Owners' folders: names that nobody can guess, and the folders of an earlier version under them."""

import json
import os
from pathlib import Path

import pytest

from comfyui_guarded.guard import owners
from comfyui_guarded.guard.job import Artifact


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(owners, "_key", b"x" * 32)
    monkeypatch.setattr(owners, "_taken_over", {})
    return tmp_path / "own"


def test_a_folders_name_has_128_bits_that_only_this_server_knows(own, tmp_path):
    owners.use_key(own)
    here = owners.folder_of("alice")
    assert len(here.rpartition("-")[2]) == 32
    owners.use_key(own)
    assert owners.folder_of("alice") == here  # after a restart, too
    owners.use_key(tmp_path / "another server")
    assert owners.folder_of("alice") != here
    if os.name != "nt":
        assert (own / owners.KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_without_a_key_file_no_name_can_be_guessed_either():
    assert owners.folder_of("alice") != owners.earlier_folder_of("alice")
    assert owners.folder_of("alice") != owners.name_folder(b"", "alice")


def test_the_folders_of_an_earlier_version_are_taken_over_with_the_jobs_that_wait(own, tmp_path):
    owners.use_key(own)
    roots = [tmp_path / kind for kind in ("input", "output", "temp")]
    earlier, now = owners.earlier_folder_of("alice"), owners.folder_of("alice")
    (roots[0] / earlier / "set").mkdir(parents=True)
    (roots[0] / earlier / "set" / "a.png").write_bytes(b"hers")
    body = json.dumps({"prompt": {"1": {"inputs": {"image": f"{earlier}/set/a.png"}}}}).encode()
    owners.take_over(roots, ["alice", "bob"])
    assert (roots[0] / now / "set" / "a.png").read_bytes() == b"hers"
    assert not (roots[0] / earlier).exists()
    image = json.loads(owners.renew(body))["prompt"]["1"]["inputs"]["image"]
    assert image == f"{now}/set/a.png"
    owners.take_over(roots, ["alice", "bob"])  # the next start
    assert (roots[0] / now / "set" / "a.png").read_bytes() == b"hers"
    assert owners.renew(json.dumps(image).encode()) == json.dumps(image).encode()


def test_a_start_that_was_killed_while_it_took_over_goes_on_where_it_was(own, tmp_path):
    owners.use_key(own)
    earlier, now = tmp_path / owners.earlier_folder_of("alice"), tmp_path / owners.folder_of("alice")
    for folder, name in ((earlier, "late.png"), (earlier, "both.png"), (now, "both.png")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(folder.name.encode())
    owners.take_over([tmp_path], ["alice"])
    assert (now / "late.png").read_bytes() == earlier.name.encode()
    assert (now / "both.png").read_bytes() == now.name.encode()


def test_no_folders_name_is_in_what_is_shown_of_a_job(own):
    folder = owners.folder_of("alice")
    assert owners.hide(f"see {folder}/a/b.png") == "see a/b.png"
    assert owners.hide(folder) == ""
    assert owners.hide_in({"images": [{"subfolder": f"{folder}/a"}, 5, None]}) == {
        "images": [{"subfolder": "a"}, 5, None]
    }
    artifact = Artifact(0, "1", "image", "x.png", f"{folder}/sets", "output", 1, "")
    assert artifact.body("job")["subfolder"] == "sets"
