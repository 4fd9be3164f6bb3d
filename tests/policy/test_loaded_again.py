"""What was looked at as the job was let in is what its nodes read."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from policy.test_loaded import Host, film
from policy.test_loaded_sounds import caf, silence

from comfyui_guarded.guard.errors import BadAudioError, BadImageError, BadVideoError, GuardError, NoFaceError
from comfyui_guarded.guard.faces.again import KeptFiles
from comfyui_guarded.guard.faces.loaded import LoadedFiles
from comfyui_guarded.guard.faces.machine import FaceMachine
from comfyui_guarded.guard.faces.required import find_wanted

SKIN, SKY = (200, 60, 10), (10, 60, 200)


def png(width, height, colour=SKIN):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = {"7": {"class_type": "LoadImage", "inputs": {"image": "a.bin"}}}
SOUND = {"7": {"class_type": "LoadAudio", "inputs": {"audio": "a.bin"}}}
FILM = {"7": {"class_type": "LoadVideo", "inputs": {"file": "a.bin"}}}
#: What ends the process that asks for its channels.
DEADLY = caf([2, 1])


class Checker:
    """Takes what is red for a face."""

    def check(self, path, _rules, name, _detector):
        with Image.open(path) as image:
            if image.getpixel((0, 0)) != SKIN:
                raise NoFaceError(f"No face found in {name}.")


class Job:
    """A job that waits, with a file of its owner's."""

    def __init__(self, folder):
        self.host = Host(folder)
        self.path = Path(self.host.folders().input) / "a.bin"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.loaded = LoadedFiles(self.host)
        machine = FaceMachine(Checker(), self.host.file, lambda: self.path.parent)
        self.kept = KeptFiles(self.loaded, machine)

    def let_in(self, graph, data):
        self.write(data)
        files = self.loaded.open_all(self.loaded.list_files(graph, None)).files
        self.kept.keep("job", files, tuple(find_wanted(graph)))

    def write(self, data):
        """As an upload does: another file takes the name."""
        new = self.path.with_name("new")
        new.write_bytes(data)
        os.replace(new, self.path)

    def run(self):
        self.kept.look_again("job", os.path.realpath(self.path))


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.mark.parametrize(
    ("graph", "before", "after", "error"),
    [
        (PICTURE, png(64, 64), png(400, 400), BadImageError),
        (PICTURE, png(64, 64), b"no picture", BadImageError),
        (SOUND, silence(1), silence(9), BadAudioError),
        (SOUND, silence(1), DEADLY, BadAudioError),
        (FILM, film(8), film(16), BadVideoError),
        (FILM, film(8), DEADLY, BadVideoError),
    ],
)
def test_a_file_that_is_replaced_by_what_would_not_be_let_in_is_not_read(job, graph, before, after, error):
    job.let_in(graph, before)
    job.run()
    job.write(after)
    with pytest.raises(error):
        job.run()


def test_a_file_that_is_only_touched_or_sent_again_is_read(job):
    job.let_in(SOUND, silence(1))
    os.utime(job.path, (1, 1))
    job.run()
    job.write(silence(1))
    job.run()


@pytest.mark.parametrize("graph", [SOUND, {}])
def test_of_a_file_that_nobody_knows_what_ends_the_server_is_not_read(job, graph):
    """After a start, and where a node has made the name."""
    job.let_in(graph, silence(1))
    job.kept.forget("job")
    job.run()
    job.write(DEADLY)
    for _ in range(2):
        with pytest.raises(GuardError):
            job.run()


def test_a_file_that_is_gone_is_left_to_the_node(job):
    job.let_in(SOUND, silence(1))
    job.path.unlink()
    job.run()


PORTRAIT = PICTURE | {"8": {"class_type": "ApplyPulid", "inputs": {"image": ["7", 0]}}}


def test_a_photo_that_needs_a_face_is_replaced_by_one_with_a_face_alone(job):
    job.let_in(PORTRAIT, png(64, 64))
    job.write(png(64, 64, (200, 60, 10)))
    job.run()
    job.write(png(64, 64, SKY))
    with pytest.raises(NoFaceError) as caught:
        job.run()
    assert (caught.value.extra_info["node_id"], caught.value.extra_info["needed_by"]) == ("7", "8")


def test_where_nobody_needs_a_face_any_photo_of_that_size_will_do(job):
    job.let_in(PICTURE, png(64, 64))
    job.write(png(64, 64, SKY))
    job.run()


def test_of_several_photos_one_must_go_on_to_show_the_face(job):
    other = job.path.with_name("b.bin")
    other.write_bytes(png(64, 64))
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.bin"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "b.bin"}},
        "3": {"class_type": "ImageStitch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "8": {"class_type": "ApplyPulid", "inputs": {"image": ["3", 0]}},
    }
    job.let_in(graph, png(64, 64, SKY))
    job.write(png(64, 64, (10, 60, 201)))
    job.run()
    other.write_bytes(png(64, 64, SKY))
    with pytest.raises(NoFaceError):
        job.kept.look_again("job", os.path.realpath(other))


def test_what_is_not_opened_at_the_door_is_not_opened_later(job):
    job.kept = KeptFiles(LoadedFiles(job.host, opens=False))
    job.write(DEADLY)
    job.run()


def test_what_comes_into_a_folder_later_is_counted(job):
    folder = job.path.parent / "many"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(png(64, 64))
    graph = {"7": {"class_type": "LoadImage", "inputs": {"image": "many"}}}
    job.kept.keep("job", job.loaded.open_all(job.loaded.list_files(graph, None)).files)
    job.kept.look_again("job", os.path.realpath(folder))
    (folder / "2.png").write_bytes(png(900, 900))
    with pytest.raises(BadImageError):
        job.kept.look_again("job", os.path.realpath(folder))


def test_a_file_that_nobody_knows_is_looked_at_once_a_node_asks_for_it(job):
    job.write(DEADLY)
    assert not job.kept.look_again("job", os.path.realpath(job.path), False)
    with pytest.raises(GuardError):
        job.kept.look_again("job", os.path.realpath(job.path), True)
