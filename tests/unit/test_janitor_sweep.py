"""What a sweep deletes, and what it leaves."""

import errno
import json
import os
import shutil
import stat
import subprocess
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from unit.fakes import FailingStore, new_job
from unit.janitor import DAY_S, Box, age, age_folders, put, small_disk

from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.host import Folders
from comfyui_guarded.guard.janitor import folder as folder_module
from comfyui_guarded.guard.janitor.folder import HANDLES, open_root
from comfyui_guarded.guard.janitor.report import SAMPLES
from comfyui_guarded.guard.janitor.walk import MAX_DEPTH
from comfyui_guarded.guard.job import SUCCESS, Artifact, Result
from comfyui_guarded.guard.owners import FOLDER

needs_handles = pytest.mark.skipif(not HANDLES, reason="this platform cannot open folders by handle")
ways = pytest.mark.parametrize(
    "handles", [pytest.param(True, marks=needs_handles, id="handles"), pytest.param(False, id="paths")]
)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


def make_files(box: Box, store: FailingStore, job_id: str, *paths: str, is_fetched: bool = True) -> None:
    """The files of a job below output, old enough to go."""
    store.submit(new_job(job_id), 100).result(5)
    artifacts = tuple(
        Artifact(number, "1", "image", Path(path).name, str(Path(path).parent), "output", 10, "0" * 64)
        for number, path in enumerate(paths)
    )
    store.claim("x", 100).result(5)
    store.start(job_id).result(5)
    store.settle(job_id, SUCCESS, Result({}, artifacts)).result(5)
    for path in paths:
        put(box.output / path)
    for number in range(len(paths) if is_fetched else 0):
        store.mark_fetched(job_id, number).result(5)


def test_each_root_has_its_own_age(box: Box):
    for root in ("output", "temp", "input"):
        for hours in (0.5, 2, 25, 24 * 8):
            put(box.base / root / f"{hours}h.png", hours * 3600)
    box.janitor().sweep(time.time())
    assert box.left() == {
        *(f"output/{hours}h.png" for hours in (0.5, 2)),
        "temp/0.5h.png",
        *(f"input/{hours}h.png" for hours in (0.5, 2, 25)),
    }


def test_a_folder_may_have_an_age_of_its_own_and_a_deeper_one_another(box: Box):
    for folder in ("", "video/", "video/best/", "video/best/x/", "videos/"):
        put(box.output / f"{folder}day.mp4", 26 * 3600)
        put(box.output / f"{folder}hour.mp4", 2 * 3600)
    box.janitor(folders={"output/video": 3600, "output/video/best": "off"}).sweep(time.time())
    assert box.left() == {
        "output/hour.mp4",
        "output/videos/hour.mp4",
        *(f"output/video/best/{folder}{name}.mp4" for folder in ("", "x/") for name in ("day", "hour")),
    }


def test_a_root_can_be_switched_off_and_a_folder_in_it_on(box: Box):
    put(box.input / "a.png")
    put(box.input / "uploads" / "b.png")
    box.janitor(folders={"input": "off", "input/uploads/": 60}, settle_s=0).sweep(time.time())
    assert box.left() == {"input/a.png"}


def test_keep_patterns_hold_names_and_whole_paths_and_folders(box: Box):
    for name in ("a.png", "a.gold.png", "gold/b.png", "best/c.png", "best/d.txt", "x/best/e.png", ".f", ".g/h.png"):
        put(box.output / name)
    put(box.input / "best" / "c.png")
    put(box.input / "example.png")
    box.janitor(keep=["*.gold.*", "gold", "output/best/*.png"]).sweep(time.time())
    assert box.left() == {
        "output/a.gold.png",
        "output/gold/b.png",
        "output/best/c.png",
        "output/.f",
        "output/.g/h.png",
        "input/example.png",
    }


@pytest.mark.skipif(os.name == "nt", reason="names and links that Windows does not have")
@ways
def test_of_a_tree_of_traps_exactly_the_right_files_survive(box: Box, store: FailingStore, handles: bool):
    outside = put(box.base / "outside" / "precious.png")
    folder = box.output
    before = {
        "output/years/old.png": put(folder / "years" / "old.png", 900 * DAY_S),
        "output/years/deep/older.png": put(folder / "years" / "deep" / "older.png", 900 * DAY_S),
        "output/moved since.png": put(folder / "years" / "moved.png", 900 * DAY_S),
    }
    time.sleep(0.05)  # the file system's clock ticks every 4 ms or so
    first_start_s = time.time()
    time.sleep(0.05)
    os.rename(before["output/moved since.png"], folder / "moved since.png")
    # A name has 255 bytes at most.
    long_name = "я" * 126 + "x" * 3
    gone = [
        put(folder / "plain.png"),
        put(folder / "new\nline.png"),
        put(folder / " lead and trail "),
        put(folder / "-rf"),
        put(folder / long_name),
        put(Path(os.fsdecode(os.fsencode(folder) + b"/not utf-8 \xff.png"))),
        put(folder / Path(*[f"d{level}" for level in range(60)]) / "deep.png"),
        put(folder / "copied in with its old time.png", 900 * DAY_S),
        put(folder / "loras.safetensors"),
    ]
    linked = put(box.base / "outside" / "linked.png")
    os.link(linked, folder / "hard link to outside.png")
    os.link(put(folder / "twice.png"), folder / "years" / "twice too.png")
    kept = {
        "output/years/old.png",
        "output/years/deep/older.png",
        "output/moved since.png",
        "output/example.png",
        "output/.hidden.png",
        "output/.hidden/x.png",
        "output/loras/x.safetensors",
        "output/from the future.png",
        "output/young.png",
        "output/link to root",
        "output/link to file",
        "output/link to nothing",
        "output/link to folder",
        "output/loop/again",
        "output/loop/self",
        "output/pipe",
        "input/example.png",
        "input/named by a job.png",
    }
    for name in ("example.png", ".hidden.png", ".hidden/x.png", "loras/x.safetensors"):
        put(folder / name)
    put(box.input / "example.png")
    put(box.input / "named by a job.png")
    put(folder / "from the future.png", -900 * DAY_S)
    put(folder / "young.png", 60)
    (folder / "link to root").symlink_to("/")
    (folder / "link to file").symlink_to(outside)
    (folder / "link to nothing").symlink_to(box.base / "nothing")
    (folder / "link to folder").symlink_to(outside.parent)
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to(folder)
    (folder / "loop" / "self").symlink_to("self")
    os.mkfifo(folder / "pipe")
    for link in (
        "link to root",
        "link to file",
        "link to nothing",
        "link to folder",
        "loop/again",
        "loop/self",
        "pipe",
    ):
        age(folder / link, 30 * DAY_S)
    box.keep = [box.output / "loras", box.output / "checkpoints"]
    age_folders(box.output)
    assert all(os.path.lexists(path) for path in gone)

    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "named by a job.png [input]"}}}
    store.submit(new_job(body=json.dumps({"prompt": graph}).encode()), 10).result(60)
    janitor = box.janitor(store, handles=handles)
    janitor.marker.first_start_s = first_start_s
    report = janitor.sweep(time.time())

    assert box.left() == kept
    assert outside.read_bytes()
    assert linked.read_bytes()
    assert (report.errors, report.vanished) == (0, 0)
    assert report.files == len(gone) + 3
    assert not (folder / "d0").exists(), "the folders that were emptied are gone"
    assert report.kept["existing"].files == 3
    # A dry run, and a second sweep, find nothing more.
    assert (janitor.sweep(time.time(), dry_run=True).files, janitor.sweep(time.time()).files) == (0, 0)
    assert box.left() == kept


@needs_handles
@pytest.mark.slow
def test_a_folder_swapped_for_a_link_during_the_sweep_costs_nothing_outside(box: Box):
    """1,000 sweeps, each against a thread that swaps the folder and a link to outside as fast as it can."""
    outside = put(box.base / "outside" / "x.png")
    victim, aside, link = box.output / "a" / "victim", box.output / "a" / "aside", box.base / "link"
    link.symlink_to(outside.parent, target_is_directory=True)
    put(victim / "x.png")
    # The kernel names a folder's entries many at a time: while the sweep is in the others, the swap has its chance.
    for number in range(40):
        put(box.output / "a" / f"{number}" / "young.png", 0)
    done = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not done.is_set():
            os.rename(victim, aside)
            os.rename(link, victim)
            swaps += 1
            time.sleep(swaps % 4 * 0.0001)
            os.rename(victim, link)
            os.rename(aside, victim)

    janitor = box.janitor(settle_s=0)
    sweeps, deleted, met = 0, 0, 0
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        # A thousand of each, and then some where the two have not met yet.
        while sweeps < 1000 or swaps < 1000 or (sweeps < 20_000 and not (met and deleted)):
            # Deleted or not, the next sweep has something to reach for again. The folder may be swapped right now.
            for place in (victim, aside):
                try:
                    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
                except OSError:
                    continue
                file = os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
                os.close(file)
                os.utime("x.png", (1, 1), dir_fd=fd)
                os.close(fd)
                break
            report = janitor.sweep(time.time())
            sweeps += 1
            deleted += report.files
            met += report.skipped  # a folder when it was named, a link when it was to be opened
            assert outside.exists(), f"deleted outside in sweep {sweeps}"
            if not swapper.is_alive():
                break
    finally:
        done.set()
        swapper.join()
    assert sweeps >= 1000
    assert swaps >= 1000
    assert deleted, "the sweep deleted nothing at all, so nothing was tried"
    assert met, "the sweep never met the link"
    assert outside.read_bytes() == b"x" * 10


@needs_handles
def test_a_folder_that_becomes_a_link_while_it_is_open_is_still_the_folder(box: Box):
    outside = put(box.base / "outside" / "x.png")
    put(box.output / "a" / "x.png")
    root = open_root(box.output)
    opened = root.open_child("a")
    assert opened is not None
    os.rename(box.output / "a", box.output / "b")
    (box.output / "a").symlink_to(outside.parent, target_is_directory=True)
    opened.unlink("x.png")
    assert outside.exists()
    assert not (box.output / "b" / "x.png").exists()
    assert root.open_child("a") is None
    opened.close()
    root.close()


@pytest.mark.skipif(os.name == "nt", reason="symlinks need rights there")
def test_without_handles_a_path_that_leads_elsewhere_by_now_is_not_deleted_through(box: Box):
    outside = put(box.base / "outside" / "x.png")
    put(box.output / "a" / "b" / "x.png")
    root = open_root(box.output, handles=False)
    middle = root.open_child("a")
    assert middle is not None
    opened = middle.open_child("b")
    assert opened is not None
    (box.base / "outside" / "b").mkdir()
    put(box.base / "outside" / "b" / "x.png")
    os.rename(box.output / "a", box.output / "moved")
    (box.output / "a").symlink_to(outside.parent, target_is_directory=True)
    with pytest.raises(FileNotFoundError):
        opened.unlink("x.png")
    assert (box.base / "outside" / "b" / "x.png").exists()


@needs_handles
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_is_not_crossed(box: Box, kind: str):
    inside, other = box.output / "mounted", box.base / "other"
    inside.mkdir()
    put(other / "x.png")
    command = ["mount", "-t", "tmpfs", "none"] if kind == "tmpfs" else ["mount", "--bind", str(other)]
    try:
        mounted = subprocess.run([*command, str(inside)], capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user cannot mount")
    try:
        put(inside / "x.png")
        age_folders(box.output)
        report = box.janitor().sweep(time.time())
        assert (inside / "x.png").exists()
        assert (report.files, report.skipped, report.errors) == (0, 1, 0)
    finally:
        subprocess.run(["umount", str(inside)], check=True)


def test_a_model_folder_below_output_is_left_alone_even_under_another_name(box: Box):
    put(box.output / "loras" / "x.safetensors")
    put(box.output / "other" / "x.png")
    box.keep = [box.base / "output" / ".." / "output" / "loras"]
    box.janitor().sweep(time.time())
    assert box.left() == {"output/loras/x.safetensors"}


def test_a_root_inside_another_is_swept_by_its_own_age_only(box: Box):
    box.input = box.output / "input"
    put(box.input / "a.png", 2 * DAY_S)
    put(box.output / "b.png", 2 * DAY_S)
    box.janitor().sweep(time.time())
    assert [path.name for path in box.output.rglob("*.png")] == ["a.png"]


def test_one_folder_for_two_purposes_keeps_what_either_would_keep(box: Box):
    box.input = box.output
    put(box.output / "a.png", 2 * DAY_S)
    put(box.output / "b.png", 8 * DAY_S)
    box.janitor().sweep(time.time())
    assert box.left() == {"output/a.png"}


@pytest.mark.parametrize("root", [Path("/"), Path.home(), Path(folder_module.__file__).parents[2]])
def test_a_root_that_holds_a_home_or_this_package_is_refused(box: Box, root: Path):
    box.output = root
    janitor = box.janitor(interval_s=1)
    report = janitor.sweep(time.time(), dry_run=True)
    assert (report.files, report.errors) == (0, 1)
    assert "nothing in it is deleted" in report.error_samples[0]


def test_roots_that_are_not_there_are_nothing_to_sweep(box: Box):
    box.output = box.base / "gone"
    assert box.janitor().sweep(time.time()).errors == 0


def test_a_file_modified_a_moment_ago_stays_whatever_the_age(box: Box):
    put(box.output / "a.png", 100)
    put(box.output / "b.png", 400)
    box.janitor(output_max_age_s=1).sweep(time.time())
    assert box.left() == {"output/a.png"}


def test_an_input_that_is_uploaded_again_while_the_sweep_comes_for_it_stays(box: Box, monkeypatch):
    put(box.input / "a.png")
    janitor = box.janitor()
    about = janitor.in_use.about_to_delete

    def uploaded(doomed):
        put(box.input / "a.png", 0)
        return about(doomed)

    monkeypatch.setattr(janitor.in_use, "about_to_delete", uploaded)
    assert janitor.sweep(time.time()).files == 0
    assert box.left() == {"input/a.png"}


def test_folders_go_when_they_are_empty_and_have_been_for_as_long_as_a_file_may_lie(box: Box):
    (box.output / "old" / "nested").mkdir(parents=True)
    (box.output / "fresh").mkdir()
    age_folders(box.output / "old")
    report = box.janitor().sweep(time.time())
    assert sorted(os.listdir(box.output)) == ["fresh"]
    assert report.folders == 2


@pytest.mark.parametrize("native", ["ask", False])
def test_of_empty_folders_only_those_go_that_a_sweep_has_emptied_where_people_work(
    box: Box, store: FailingStore, native
):
    """A person makes an empty folder for what is to come."""
    mine = box.output / "2026" / "portraits"
    for folder in (mine, box.input / "photos", box.output / "job" / "parts", box.temp / "previews"):
        folder.mkdir(parents=True)
    (box.output / FOLDER / "bot-1" / "x").mkdir(parents=True)
    make_files(box, store, "one", "job/parts/a.png", "later/b.png")
    for root in (box.output, box.input, box.temp):
        age_folders(root)
    os.utime(box.output / "later")  # something has just come or gone
    janitor = box.janitor(store, sweep_native=native)
    janitor.sweep(time.time(), dry_run=True)
    janitor.sweep(time.time())
    assert mine.is_dir()
    assert (box.input / "photos").is_dir()
    assert not (box.output / "job").exists(), "what held a job's file alone goes with it"
    assert not (box.temp / "previews").exists()
    assert not (box.output / FOLDER).exists()
    assert (box.output / "later").is_dir()
    age_folders(box.output)
    janitor.sweep(time.time())
    assert not (box.output / "later").exists(), "a later sweep knows what an earlier one has emptied"
    assert mine.is_dir()


def test_a_folder_that_a_waiting_prompt_will_write_into_stays(box: Box):
    (box.output / "bot" / "x").mkdir(parents=True)
    (box.output / "other").mkdir()
    age_folders(box.output)
    janitor = box.janitor()
    with janitor.in_use.admission() as hold:
        janitor.in_use._hold({"bot/x/", "bot/"})
        janitor.sweep(time.time())
        del hold
    assert sorted(os.listdir(box.output)) == ["bot"]


def test_a_dry_run_counts_the_same_and_deletes_nothing(box: Box):
    for number in range(30):
        put(box.output / "a" / f"{number}.png")
    age_folders(box.output)
    janitor = box.janitor()
    dry = janitor.sweep(time.time(), dry_run=True)
    assert len(box.left()) == 30
    real = janitor.sweep(time.time())
    assert box.left() == set()
    assert (dry.files, dry.bytes, dry.folders) == (real.files, real.bytes, real.folders) == (30, 300, 1)
    assert len(dry.samples) == SAMPLES


class TestErrors:
    def test_a_file_that_cannot_be_deleted_is_counted_and_the_rest_goes(self, box: Box, monkeypatch):
        """As on Windows, where a file that somebody has open cannot go."""
        for number in range(5):
            put(box.output / f"{number}.png")
        unlink = os.unlink

        def refusing(path, *args, **kwargs):
            if os.fspath(path).endswith("3.png"):
                raise PermissionError(errno.EACCES, "used by another process")
            unlink(path, *args, **kwargs)

        monkeypatch.setattr(os, "unlink", refusing)
        report = box.janitor().sweep(time.time())
        assert (report.files, report.errors) == (4, 1)
        assert report.error_samples == ["output/3.png: used by another process"]

    def test_a_file_that_vanishes_under_the_sweep_is_no_error(self, box: Box, monkeypatch):
        put(box.output / "a.png")
        unlink = os.unlink

        def late(path, *args, **kwargs):
            unlink(path, *args, **kwargs)
            unlink(path, *args, **kwargs)

        monkeypatch.setattr(os, "unlink", late)
        report = box.janitor().sweep(time.time())
        assert (report.errors, report.vanished) == (0, 1)

    @needs_handles
    def test_a_folder_that_may_not_be_read_is_counted_and_the_rest_goes(self, box: Box, monkeypatch):
        put(box.output / "closed" / "a.png")
        put(box.output / "open" / "b.png")
        (box.output / "closed").chmod(0)
        if os.geteuid() == 0:  # root may read everything
            really = os.open

            def refusing(path, *args, **kwargs):
                if path == "closed":
                    raise PermissionError(errno.EACCES, "Permission denied")
                return really(path, *args, **kwargs)

            monkeypatch.setattr(os, "open", refusing)
        report = box.janitor().sweep(time.time())
        (box.output / "closed").chmod(stat.S_IRWXU)
        assert box.left() == {"output/closed/a.png"}
        assert (report.files, report.errors) == (1, 1)

    def test_what_the_host_does_not_answer_ends_no_thread(self, box: Box):
        janitor = box.janitor()

        def failing() -> Folders:
            raise RuntimeError("another pack has broken folder_paths")

        janitor._folders = failing
        report = janitor.sweep(time.time())
        assert report.errors == 1
        assert "broken folder_paths" in report.error_samples[0]

    @needs_handles
    def test_folders_nested_without_end_are_left_and_use_no_more_handles(self, box: Box):
        deep = box.output
        for _level in range(MAX_DEPTH + 20):
            deep = deep / "d"
        put(deep / "x.png")
        report = box.janitor().sweep(time.time())
        assert (report.files, report.skipped, report.errors) == (0, 1, 0)


class TestWhatNoJobMade:
    def test_only_owners_folders_temp_and_quarantine_are_swept_while_nobody_has_said(self, box: Box):
        gone = [
            put(box.output / "guarded-uploads" / "bot-0123456789ab" / "x.png"),
            put(box.input / "guarded-uploads" / "bot-0123456789ab" / "y.png"),
            put(box.temp / "preview.png"),
            put(box.own / "quarantine" / "q.png"),
        ]
        mine = [put(box.output / "mine.png", size=100), put(box.input / "a" / "mine.png", size=20)]
        report = box.janitor(sweep_native="ask").sweep(time.time())
        assert not any(path.exists() for path in gone)
        assert all(path.exists() for path in mine)
        assert (report.kept["native"].files, report.kept["native"].bytes) == (2, 120)

    def test_a_full_disk_does_not_take_them_either(self, box: Box):
        mine = [put(box.output / f"{number}.png", age_s=3600, size=1000) for number in range(9)]
        ours = [put(box.output / "guarded-uploads" / "bot-0123456789ab" / f"{n}.png", 3600, 1000) for n in range(9)]
        limits = {"min_free_bytes": 12_000, "target_free_bytes": 15_000, "floor_free_bytes": 0}
        with small_disk(box.base, 19_000):
            box.janitor(sweep_native="ask", **limits).sweep(time.time())
            assert all(path.exists() for path in mine)
            assert not any(path.exists() for path in ours)
            box.janitor(sweep_native=True, **limits).sweep(time.time())
            assert not all(path.exists() for path in mine)

    def test_a_word_that_cannot_be_written_is_not_taken(self, box: Box):
        janitor = box.janitor(past=True, sweep_native="ask")
        shutil.rmtree(box.own)
        box.own.write_text("no folder")
        with pytest.raises(ServerUnavailableError):
            janitor.decide(True)
        assert janitor.native.sweep == "ask"


class TestThePast:
    def test_what_was_there_before_the_first_start_is_left_alone_until_it_is_adopted(self, box: Box):
        put(box.output / "a.png", size=100)
        time.sleep(0.05)
        janitor = box.janitor(past=True)
        time.sleep(0.05)
        put(box.output / "b.png")
        report = janitor.sweep(time.time())
        assert box.left() == {"output/a.png"}
        assert (report.kept["existing"].files, report.kept["existing"].bytes) == (1, 100)
        janitor.adopt()
        janitor.sweep(time.time())
        assert box.left() == set()

    def test_the_setting_adopts_too(self, box: Box):
        put(box.output / "a.png")
        time.sleep(0.05)
        box.janitor(past=True, adopt_existing=True).sweep(time.time())
        assert box.left() == set()

    def test_the_first_start_is_remembered_across_restarts(self, box: Box):
        first = box.janitor(past=True).marker.first_start_s
        time.sleep(0.05)
        again = box.janitor(past=True).marker
        assert abs(again.first_start_s - first) < 0.002
        assert again.adopted is False
        again.adopt()
        assert box.janitor(past=True).marker.adopted is True

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"first_start_ms": "x", "adopted": false}', b"\xff"])
    def test_a_marker_that_cannot_be_read_makes_now_the_first_start(self, box: Box, damage: bytes):
        (box.own / "janitor.json").write_bytes(damage)
        before_s = time.time()
        assert box.janitor(past=True).marker.first_start_s >= before_s
        assert box.janitor(past=True).marker.first_start_s >= before_s - 0.002

    def test_a_marker_that_cannot_be_written_keeps_everything(self, box: Box):
        put(box.output / "a.png")
        time.sleep(0.05)
        box.own.rmdir()
        box.own.write_text("no folder")
        assert box.janitor(past=True).sweep(time.time()).files == 0

    def test_where_no_birth_is_known_a_file_modified_before_is_taken_for_an_old_one(self, box: Box, monkeypatch):
        janitor = box.janitor(past=True)
        time.sleep(0.05)
        put(box.output / "copied in.png")
        for kind in (folder_module._Handle, folder_module._Path):
            monkeypatch.setattr(kind, "born_s", lambda *_args: None)
        assert janitor.sweep(time.time()).kept["existing"].files == 1

    def test_an_empty_folder_from_before_stays(self, box: Box):
        (box.output / "mine").mkdir()
        age_folders(box.output)
        time.sleep(0.05)
        box.janitor(past=True).sweep(time.time())
        assert (box.output / "mine").is_dir()


def test_refused_results_leave_quarantine_after_their_time(box: Box):
    for job, age_s in (("a", 8 * DAY_S), ("b", DAY_S)):
        put(box.own / "quarantine" / job / "0-x.png", age_s)
    put(box.own / "guarded.toml")
    age_folders(box.own / "quarantine" / "a")
    time.sleep(0.05)
    box.janitor(past=True).sweep(time.time())
    assert [path.name for path in (box.own / "quarantine").iterdir()] == ["b"]
    assert (box.own / "guarded.toml").exists()


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path):
    peaks = []
    for number in (1_000, 20_000):
        box = Box(tmp_path / str(number))
        (box.output / "a").mkdir()
        for index in range(number):
            path = box.output / "a" / f"{index:08}.png"
            os.close(os.open(path, os.O_CREAT))
            os.utime(path, (1, 1))
        janitor = box.janitor()
        tracemalloc.start()
        report = janitor.sweep(time.time())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.files == number
    assert peaks[1] < peaks[0] + 200_000, peaks


def test_what_jobs_made_under_hidden_names_is_swept_and_nothing_else_that_is_hidden(box: Box, store: FailingStore):
    make = partial(make_files, box, store)
    make("old", ".h/.x_00001_.png", ".top.png", "a/.b/c/d.png", ".kept/e.png")
    make("unread", ".h/unread.png", is_fetched=False)
    make("young", ".young/f.png")
    age(box.output / ".young" / "f.png", 60)
    for name in (".git/config", ".h2/mine.png", "a/.b/mine.png", ".mine"):
        put(box.output / name)
    if HANDLES:
        (box.output / ".link").symlink_to(box.input)
        make("through a link", ".link/g.png")
    report = box.janitor(store, keep=[".kept"], folders={"input": "off"}).sweep(time.time())
    left = {path.removeprefix("output/") for path in box.left() if path.startswith("output/")}
    stays = {".h/unread.png", ".kept/e.png", ".young/f.png", ".git/config", ".h2/mine.png", "a/.b/mine.png", ".mine"}
    assert left - {".link"} == stays
    assert not (box.output / "a" / ".b" / "c").exists(), "an empty folder goes with its file"
    assert report.kept["unread"].files == 1
    assert report.errors == 0
    if HANDLES:
        assert (box.input / "g.png").exists()
