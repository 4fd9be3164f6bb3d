"""What was looked at as the job was let in is what its nodes read."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from policy.test_loaded import Host, film
from policy.test_loaded_sounds import caf, silence

from comfyui_guarded.guard.errors import BadAudioError, BadImageError, BadVideoError, GuardError
from comfyui_guarded.guard.faces.loaded import LoadedFiles, find_mark


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 60, 10)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = {"7": {"class_type": "LoadImage", "inputs": {"image": "a.bin"}}}
SOUND = {"7": {"class_type": "LoadAudio", "inputs": {"audio": "a.bin"}}}
FILM = {"7": {"class_type": "LoadVideo", "inputs": {"file": "a.bin"}}}
#: What ends the process that asks for its channels.
DEADLY = caf([2, 1])


class Job:
    """A job that waits, with a file of its owner's."""

    def __init__(self, folder):
        self.host = Host(folder)
        self.path = Path(self.host.folders().input) / "a.bin"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.loaded = LoadedFiles(self.host)

    def let_in(self, graph, data):
        self.write(data)
        self.loaded.keep("job", self.loaded.open_all(self.loaded.list_files(graph, None)).files)

    def write(self, data):
        """As an upload does: another file takes the name."""
        new = self.path.with_name("new")
        new.write_bytes(data)
        os.replace(new, self.path)

    def run(self):
        self.loaded.look_again("job", os.path.realpath(self.path), find_mark(os.stat(self.path)))


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
    job.loaded.forget("job")
    job.run()
    job.write(DEADLY)
    for _ in range(2):
        with pytest.raises(GuardError):
            job.run()


def test_a_file_that_is_gone_is_left_to_the_node(job):
    job.let_in(SOUND, silence(1))
    mark = find_mark(os.stat(job.path))
    job.path.unlink()
    job.loaded.look_again("job", os.path.realpath(job.path), (0, *mark[1:]))
