"""What a running job was given stays until its run is over, whatever comes meanwhile."""

import os
import threading
import time

import pytest

from comfyui_guarded.guard.errors import FileInUseError
from comfyui_guarded.guard.files.given import Given


def test_what_a_run_was_given_stays_until_it_is_over(tmp_path):
    given, path = Given(), tmp_path / "a.png"
    given.give("one", str(path))
    given.give("two", str(path))
    for job in ("one", "two"):
        with pytest.raises(FileInUseError), given.replacing(path):
            pytest.fail("it is read")
        given.take_back(job)
    with given.replacing(path):
        path.write_bytes(b"new")


def test_a_folder_stays_as_it_is_and_links_are_followed(tmp_path):
    given, folder = Given(), tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    os.symlink(folder, tmp_path / "link")
    given.give("one", str(folder))
    for path in (folder / "a.png", folder / "deep" / "a.png", tmp_path / "link" / "a.png"):
        with pytest.raises(FileInUseError), given.replacing(path):
            pytest.fail("it is read")
    with given.replacing(tmp_path / "set2"):
        pass


def test_a_file_is_the_same_at_every_look_while_uploads_race(tmp_path):
    given, path, stop = Given(), tmp_path / "a", threading.Event()
    path.write_bytes(b"0")

    def replace():
        count = 0
        while not stop.is_set():
            count += 1
            new = tmp_path / "new"
            new.write_bytes(b"%d" % count)
            try:
                with given.replacing(path):
                    os.replace(new, path)
            except FileInUseError:
                pass

    uploads = threading.Thread(target=replace)
    uploads.start()
    try:
        for run in range(50):
            given.give(f"{run}", str(path))
            looks = {path.read_bytes() for _ in range(10)}
            given.take_back(f"{run}")
            assert len(looks) == 1
            while path.read_bytes() in looks:
                time.sleep(0.001)
    finally:
        stop.set()
        uploads.join()
