import contextlib
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from unit.fakes import new_job

from comfyui_guarded.guard import private_files
from comfyui_guarded.guard.store import SqliteStore


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes; there the user's own folder protects them")
def test_a_private_file_is_for_its_user_alone_whatever_lay_there(tmp_path):
    path = tmp_path / "folder" / "token.key"
    private_files.write(path, b"one")
    path.chmod(0o644)
    private_files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["token.key"]


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    path, elsewhere = tmp_path / "token.key", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"theirs")
    for link in (path, path.with_suffix(".new")):
        link.symlink_to(elsewhere)
    private_files.write(path, b"ours")
    assert (path.read_bytes(), elsewhere.read_bytes()) == (b"ours", b"theirs")


def test_a_key_is_made_once_and_again_where_it_was_cut_off(tmp_path):
    path = tmp_path / "token.key"
    key = private_files.read_or_make_key(path)
    assert len(key) == 32
    assert private_files.read_or_make_key(path) == key
    path.write_bytes(key[:5])
    made = private_files.read_or_make_key(path)
    assert len(made) == 32
    assert made != key


def test_a_key_that_cannot_be_kept_serves_until_the_process_ends(tmp_path, caplog):
    (tmp_path / "folder").write_text("a file where the folder should be")
    assert len(private_files.read_or_make_key(tmp_path / "folder" / "token.key")) == 32
    assert "token.key cannot be written" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_the_job_database_and_what_lies_beside_it_are_this_users_alone(tmp_path, clock):
    """Whatever the umask is, and also where an earlier version has made them."""
    before = os.umask(0o000)
    try:
        for existing in (False, True):
            path = tmp_path / f"{existing}.db"
            if existing:
                with contextlib.closing(sqlite3.connect(path)) as db:
                    db.execute("PRAGMA journal_mode = WAL")
                assert stat.S_IMODE(path.stat().st_mode) == 0o644
            store = SqliteStore(path, clock)
            store.submit(new_job(), 10).result(60)
            beside = list(tmp_path.glob(f"{existing}.db*"))
            assert {path, Path(f"{path}-wal")} <= set(beside)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in beside if not file.name.endswith(".lock")}
            store.close()
            assert set(modes.values()) == {0o600}, modes
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_a_folder_is_shut_to_everybody_else_also_if_it_was_there(tmp_path):
    for folder in (tmp_path / "new/__guarded", tmp_path / "there"):
        if folder.name == "there":
            folder.mkdir(mode=0o755)
        private_files.make_folder(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
