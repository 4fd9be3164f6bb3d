"""Whose a file is, what a prompt may name, and what becomes of uploads."""

import asyncio
import errno
import filecmp
import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import LONG_S, FailingStore, FakeHost, new_job
from unit.janitor import DAY_S, Box, age_folders, put

from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import BadImageError, DiskFullError, InvalidRequestError, NotFoundError
from comfyui_guarded.guard.files import files
from comfyui_guarded.guard.files.files import Files
from comfyui_guarded.guard.files.inputs import Inputs
from comfyui_guarded.guard.files.names import is_plain, owner_folder, strip_owner_folder
from comfyui_guarded.guard.files.references import References
from comfyui_guarded.guard.files.uploads import INCOMING
from comfyui_guarded.guard.graph import Names
from comfyui_guarded.guard.host import Folders
from comfyui_guarded.guard.job import SUCCESS, Artifact, JobState, Result, Verdict
from comfyui_guarded.guard.owners import FOLDER, folder_of
from comfyui_guarded.guard.store import Listing, listed, queries

MINE, YOURS = Client("mine", operator=False), Client("yours", operator=False)


class Place:
    """Files of two owners, shared ones and results, on a fake host."""

    def __init__(self, store: FailingStore, host: FakeHost, base: Path) -> None:
        self.base, self.store, self.host = base, store, host
        for folder in ("input", "output", "temp"):
            (base / folder).mkdir()
        host.places = Folders(base / "output", base / "temp", base / "input", keep=(base / "user",))
        host.declared = {"LoadImage": {"image": Names.FILE}, "LoadPath": {"path": Names.PATH}}
        self.files = Files(host, store)
        self.references = References(host, self.files)

    def put(self, path: str, data: bytes = b"x") -> Path:
        file = self.base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    def made(self, owner: str, filename: str, kind: str = "output") -> None:
        """As if a job of that owner had made the file."""
        data = self.put(f"{kind}/{filename}").read_bytes()
        job = new_job(owner=owner)
        self.store.submit(job, 100).result(LONG_S)
        self.store.claim("local", 1).result(LONG_S)
        self.store.start(job.job_id).result(LONG_S)
        folder, _slash, name = filename.rpartition("/")
        artifact = Artifact(0, "1", "image", name, folder, kind, len(data), hashlib.sha256(data).hexdigest())
        self.store.settle(job.job_id, SUCCESS, Result({}, (artifact,))).result(LONG_S)
        self.store.release(job.job_id).result(LONG_S)

    async def settled(self, value: object, client: Client = MINE, kind: str = "LoadImage", name: str = "image"):
        """What a prompt's input says once its files are settled."""
        graph = {"1": {"class_type": kind, "inputs": {name: value}}}
        changed = await self.references.resolve(graph, client)
        assert changed is (graph["1"]["inputs"][name] != value) or isinstance(value, (dict, list))
        return graph["1"]["inputs"][name]


@pytest.fixture
def place(store: FailingStore, host: FakeHost, tmp_path: Path) -> Place:
    (tmp_path / "place").mkdir()
    return Place(store, host, tmp_path / "place")


# Folders. ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=2, unique=True))
def test_owners_have_folders_of_their_own_with_names_that_any_file_system_takes(owners):
    one, two = map(folder_of, owners)
    assert one.casefold() != two.casefold()
    for folder in (one, two):
        top, name = folder.split("/")
        assert top == FOLDER
        assert len(name) <= 50
        assert name.isascii()
        assert all(letter.islower() or letter.isdigit() or letter == "-" for letter in name)
        assert name[0] != "-"


@pytest.mark.parametrize("pair", [("bot", "Bot"), ("a.b", "a-b"), ("x" * 64, "x" * 63), ("кот", "дог")])
def test_names_that_look_alike_are_different_owners(pair):
    assert folder_of(pair[0]) != folder_of(pair[1])


def test_the_operator_at_the_machine_has_the_folders_themselves():
    assert owner_folder(LOCAL.owner) == ""


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a.png", True), ("a/b.png", True), ("./a", True), ("a..b.png", True), ("...", True), ("a b", True),
     ("", False), ("/a", False), ("\\a", False), ("..", False), ("a/..", False), ("../a", False), ("a\\..\\b", False),
     ("C:a", False), ("c:\\a", False), ("a\0b", False)],
)  # fmt: skip
def test_a_plain_name_stays_below_its_folder(name, plain):
    assert is_plain(name) is plain


def test_an_owner_is_shown_its_own_names():
    seen = strip_owner_folder({"a": [f"{folder_of('mine')}/x.png", 5, None], "b": folder_of("yours") + "/x"}, "mine")
    assert seen == {"a": ["x.png", 5, None], "b": folder_of("yours") + "/x"}


# What a prompt names. ---------------------------------------------------------------------------------------------


async def test_a_bare_name_is_the_own_upload_first_and_then_the_shared_file(place):
    own = place.put(f"input/{folder_of('mine')}/a.png")
    place.put("input/a.png")
    place.put("input/sub/b.png")
    assert await place.settled("a.png") == f"{folder_of('mine')}/a.png"
    assert await place.settled("a.png [input]") == f"{folder_of('mine')}/a.png"
    assert await place.settled(f"{folder_of('mine')}/a.png") == f"{folder_of('mine')}/a.png"
    assert await place.settled("a.png", YOURS) == "a.png"
    assert await place.settled("a.png [input]", YOURS) == "a.png [input]"
    assert await place.settled("sub/b.png") == "sub/b.png"
    own.unlink()
    assert await place.settled("a.png") == "a.png"


async def test_folders_lists_and_nested_values_name_files_too(place):
    place.put(f"input/{folder_of('mine')}/set/a.png")
    own = f"{folder_of('mine')}/set"
    assert await place.settled("set") == own
    assert await place.settled(["set/a.png", "set/a.png", "x"]) == [f"{own}/a.png", f"{own}/a.png", "x"]
    assert await place.settled({"__value__": ["set/a.png"]}) == {"__value__": [f"{own}/a.png"]}
    nested = {"image": "set/a.png [input]", "width": 5}
    assert await place.settled(nested, kind="Load3D") == {"image": f"{own}/a.png", "width": 5}


async def test_what_does_not_exist_is_left_for_comfyui_to_refuse(place):
    assert await place.settled("nowhere.png") == "nowhere.png"
    assert await place.settled("none") == "none"


async def test_a_name_that_another_node_makes_up_is_refused(place):
    for kind, name in (("LoadImage", "image"), ("LoadPath", "path")):
        with pytest.raises(BadImageError):
            await place.settled(["2", 0], kind=kind, name=name)
        assert await place.settled(["2", 0], LOCAL, kind, name) == ["2", 0]
    assert await place.settled(["2", 0], kind="Text", name="text") == ["2", 0]


async def test_results_are_for_those_who_made_them(place):
    place.made("mine", "a.png")
    place.made("yours", "sub/b.png", "temp")
    assert await place.settled("a.png [output]") == "a.png [output]"
    assert await place.settled("sub/b.png [temp]", YOURS) == "sub/b.png [temp]"
    for value, client in (
        ("a.png [output]", YOURS),
        ("sub/b.png [temp]", MINE),
        ("none.png [output]", MINE),
        ("a.png [temp]", MINE),
    ):
        with pytest.raises(BadImageError):
            await place.settled(value, client)
    place.put("output/a.png", b"y")
    with pytest.raises(BadImageError):
        await place.settled("a.png [output]")
    # The name belongs to the last who made such a file.
    place.made("yours", "a.png")
    with pytest.raises(BadImageError):
        await place.settled("a.png [output]")


@pytest.mark.parametrize(
    "value",
    ["../a.png", "/etc/hostname", "x/../../a.png", "..\\a.png", "C:\\a.png", "{yours}/a.png", "{YOURS}/a.png",
     "./{yours}/a.png", "{mine}/../x", "{top}", "{top}/.incoming/x", "../input/{yours}/a.png [input]", "link.png",
     "{base}/input/a.png", "a\0.png", "{dots}{yours}/a.png", "{dots}a.png", "guarded\u200c-uploads/x"],
)  # fmt: skip
async def test_no_way_leads_out_of_what_is_the_senders(place, value):
    place.put(f"input/{folder_of('yours')}/a.png")
    (place.base / "input" / "link.png").symlink_to(place.put("user/secret"))
    yours, mine = folder_of("yours"), folder_of("mine")
    text = value.format(yours=yours, YOURS=yours.upper(), mine=mine, top=FOLDER, base=place.base, dots="./" * 3000)
    with pytest.raises(BadImageError) as caught:
        await place.settled(text)
    assert caught.value.extra_info["node_id"] == "1"


async def test_a_link_in_the_own_folder_leads_nowhere_else(place):
    secret = place.put(f"input/{folder_of('yours')}/a.png")
    (place.base / "input" / folder_of("mine")).mkdir(parents=True)
    (place.base / "input" / folder_of("mine") / "link.png").symlink_to(secret)
    (place.base / "input" / "deep").symlink_to(secret.parent)
    assert await place.settled("link.png") == "link.png"
    with pytest.raises(BadImageError):
        await place.settled("deep/a.png")
    for name in ("link.png", "deep/a.png"):
        with pytest.raises(NotFoundError):
            await place.files.find(MINE, "input", name)


@pytest.mark.parametrize(("kind", "refused"), [("STRING", True), ("*", True), ("MASK,STRING", True), ("IMAGE", False)])
async def test_a_loader_takes_from_another_node_what_is_no_text(place, kind, refused):
    place.host.outputs = {"Maker": (("INT", "number"), (kind, "made"))}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": ["2", 1]}},
        "2": {"class_type": "Maker", "inputs": {}},
    }
    if not refused:
        assert await place.references.resolve(graph, MINE) is False
        return
    with pytest.raises(BadImageError) as caught:
        await place.references.resolve(graph, MINE)
    assert caught.value.extra_info == {"node_id": "1", "input": "image"}


async def test_an_input_that_takes_any_path_takes_none_of_a_stranger(place):
    assert await place.settled("https://example.com/a.mp4", kind="LoadPath", name="path")
    for value in ("input/a.mp4", "/tmp/a.mp4"):
        with pytest.raises(BadImageError):
            await place.settled(value, kind="LoadPath", name="path")
    assert await place.settled("/tmp/a.mp4", LOCAL, "LoadPath", "path") == "/tmp/a.mp4"


@pytest.mark.skipif(os.name == "nt", reason="there a backslash separates folders")
async def test_a_backslash_is_a_sign_of_a_text_unless_a_way_into_comfyuis_folders_is_spelt_with_it(place, monkeypatch):
    monkeypatch.chdir(place.base / "output")  # ComfyUI runs in its own folder, from which a relative way leads inside
    place.put("output/x.png")
    for words in (r"\d+", r"\bcat\b", r"\w+\s", r"\o/", "C:\\x", "\\", "c:/", r"a\nb", r"\\server\share", "\\1"):
        assert await place.settled(words, kind="Text", name="text") == words
    base = str(place.base)
    for words in (
        f"{base}/output/x.png",
        f"{base}/output".replace("/", "\\"),
        r".\x.png",
        r"..\output\x.png",
        r".\\x.png",
    ):
        with pytest.raises(BadImageError):
            await place.settled(words, kind="Text", name="text")


async def test_texts_are_texts_unless_they_lead_into_comfyuis_folders(place):
    for words in ("a guarded castle", "/imagine a cat", "../x", "one [output]", "line\nsecond.png [output]", "/", "~"):
        assert await place.settled(words, kind="Text", name="text") == words
    for words in (f"{place.base}/output", f"{place.base}/user/x", f"{folder_of('yours')}/x", "x.png [output]"):
        with pytest.raises(BadImageError):
            await place.settled(words, kind="Text", name="text")


async def test_the_operator_at_the_machine_names_what_lies_inside(place):
    place.put("input/a/b.png")
    for value in ("a/../a/b.png", f"{place.base}/input/a/b.png", f"{folder_of('yours')}/x.png", "b.png [output]"):
        assert await place.settled(value, LOCAL) == value
    with pytest.raises(BadImageError):
        await place.settled("../user/secret", LOCAL)


async def test_results_below_the_input_folder_are_not_shared(place):
    place.host.places = Folders(place.base / "input" / "out", place.base / "temp", place.base / "input")
    place.put("input/out/a.png")
    with pytest.raises(BadImageError):
        await place.settled("out/a.png")


# Uploads. ---------------------------------------------------------------------------------------------------------


def _sent(place: Place, data: bytes) -> Path:
    return place.put(f"input/{INCOMING}/{time.monotonic_ns()}", data)


def test_an_upload_takes_no_name_that_is_taken(place):
    names = [
        place.files.save(MINE, _sent(place, data), "a.png", "input", "", overwrite)
        for data, overwrite in ((b"1", False), (b"2", False), (b"1", False), (b"2", False), (b"3", True))
    ]
    assert names == ["a.png", "a (1).png", "a.png", "a (1).png", "a.png"]
    own = place.base / "input" / folder_of("mine")
    assert {path.name: path.read_bytes() for path in own.iterdir()} == {"a.png": b"3", "a (1).png": b"2"}
    assert list((place.base / "input" / INCOMING).iterdir()) == []


def test_an_upload_takes_no_name_that_another_box_has_given_to_another_picture(place, tmp_path):
    (tmp_path / "other").mkdir()
    other = Place(place.store, FakeHost(), tmp_path / "other")
    for box in (place, other):
        box.files = Files(box.host, box.store, uploaded=Inputs(None, box.host, None, box.store, 60.0, None))

    def upload(box, data, name="a.png", overwrite=False, client=MINE, subfolder=""):
        return box.files.save(client, _sent(box, data), name, "input", subfolder, overwrite)

    assert upload(place, b"1") == "a.png"
    assert upload(other, b"2") == "a (1).png"
    assert upload(other, b"1") == "a.png", "the same picture has the same name everywhere"
    assert upload(place, b"3") == "a (2).png"
    assert upload(other, b"4", client=YOURS) == "a.png"
    assert upload(other, b"4", subfolder="x") == "a.png"
    assert upload(place, b"5", subfolder="x") == "a (1).png"
    own = other.base / "input" / folder_of("mine")
    other.put(f"input/{folder_of('mine')}/b.png", b"older than all claims")
    assert upload(other, b"6", "b.png") == "b (1).png"
    assert {path.name: path.read_bytes() for path in own.glob("*.png")} == {
        "a.png": b"1", "a (1).png": b"2", "b.png": b"older than all claims", "b (1).png": b"6",
    }  # fmt: skip


def test_the_hundredth_upload_of_one_name_looks_at_no_more_files_than_the_twentieth(place, monkeypatch):
    looked_at = []
    compare = filecmp.cmp
    monkeypatch.setattr(filecmp, "cmp", lambda *paths, **how: looked_at.append(paths) or compare(*paths, **how))
    names, looks = [], []
    long_name = "x" * 236 + ".png"
    for filename in ("a.png", long_name):
        for number in range(100):
            before = len(looked_at)
            names.append(place.files.save(MINE, _sent(place, b"%d" % number), filename, "input", "", False))
            looks.append(len(looked_at) - before)
    assert len(set(names)) == 200
    assert all(name.endswith(".png") for name in names)
    assert max(looks) <= 10
    for number in (3, 50, 99):  # what is sent again is found
        assert place.files.save(MINE, _sent(place, b"%d" % number), "a.png", "input", "", False) == names[number]


def test_an_upload_that_is_sent_again_is_as_young_as_a_new_one(place):
    place.files.save(MINE, _sent(place, b"1"), "a.png", "input", "", False)
    path = place.base / "input" / folder_of("mine") / "a.png"
    os.utime(path, (1, 1))
    place.files.save(MINE, _sent(place, b"1"), "a.png", "input", "", False)
    assert time.time() - path.stat().st_mtime < LONG_S


def test_an_upload_goes_to_another_disk_whole(place, monkeypatch):
    replace = os.replace

    def across(source, target):
        if INCOMING in str(source):
            raise OSError(errno.EXDEV, "another device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    assert place.files.save(MINE, _sent(place, b"1"), "a.png", "temp", "s", False) == "a.png"
    folder = place.base / "temp" / folder_of("mine") / "s"
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_a_full_disk_is_said(place, monkeypatch):
    def full(*_paths):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError):
        place.files.save(MINE, _sent(place, b"1"), "a.png", "input", "", False)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/a", "a\nb", "a [output]", "x" * 300, FOLDER, "a\0"])
@pytest.mark.parametrize("client", [MINE, LOCAL])
def test_no_upload_has_a_name_that_no_prompt_could_give(place, client, name):
    with pytest.raises(InvalidRequestError):
        place.files.save(client, _sent(place, b"1"), name, "input", "", False)


@pytest.mark.parametrize("subfolder", ["..", "/x", "a/../..", FOLDER, "x/../y"])
def test_no_upload_leaves_its_owners_folder(place, subfolder):
    with pytest.raises(InvalidRequestError):
        place.files.save(MINE, _sent(place, b"1"), "a.png", "input", subfolder, False)


def test_the_janitor_takes_uploads_by_age_whatever_they_are_called(tmp_path):
    """A stranger's `example.png` is not ComfyUI's, and a dot before a name is no way to stay for ever."""
    box = Box(tmp_path / "box")
    own = box.input / folder_of("mine")
    for name in ("example.png", ".hidden.png", "a.png", ".d/b.png"):
        put(own / name)
    put(box.input / INCOMING / "broken", 2 * 3600)
    put(box.input / INCOMING / "coming", 600)
    put(box.input / "example.png")
    put(own / "kept.gold")
    age_folders(box.input)
    box.janitor(keep=["*.gold"], input_max_age_s=7 * DAY_S).sweep(time.time())
    assert box.left() == {"input/example.png", f"input/{INCOMING}/coming", f"input/{folder_of('mine')}/kept.gold"}


# The store's side of the facade. ----------------------------------------------------------------------------------


def _ended(store, owner, **facts):
    job = new_job(owner=owner, **facts)
    store.submit(job, 100).result(LONG_S)
    store.claim("local", 5).result(LONG_S)
    store.start(job.job_id).result(LONG_S)
    store.settle(job.job_id, SUCCESS).result(LONG_S)
    return job.job_id


def test_what_is_hidden_is_gone_from_history_alone(store):
    mine = [_ended(store, "mine") for _ in range(3)]
    theirs = _ended(store, "yours")
    waiting = new_job(owner="mine")
    store.submit(waiting, 100).result(LONG_S)
    store.hide("mine", [mine[0], theirs, waiting.job_id]).result(LONG_S)
    assert [entry.job.job_id for entry in store.list_history(None, 10, None).result(LONG_S)] == [*mine[1:], theirs]
    assert store.find_entry(mine[0]).result(LONG_S) is None
    assert store.get(mine[0]).result(LONG_S) is not None
    assert [entry.job.job_id for entry in store.list_queue("mine").result(LONG_S)] == [waiting.job_id]
    assert store.count_open("mine") == 1
    store.clear_history("mine").result(LONG_S)
    assert [entry.job.job_id for entry in store.list_history(None, 10, 0).result(LONG_S)] == [theirs]


def test_bodies_that_are_too_much_together_are_left_out_and_their_jobs_are_not(store, monkeypatch):
    body = b'{"prompt": {}, "pad": "' + b"x" * (queries.ENTRY_BYTES - 100) + b'"}'
    monkeypatch.setattr(listed, "PAGE_BYTES", 5 * queries.ENTRY_BYTES // 2)
    ended = [_ended(store, "mine", body=body) for _ in range(3)]
    waiting = [new_job(owner="mine", body=body) for _ in range(3)]
    for job in waiting:
        store.submit(job, 100).result(LONG_S)
    queue = store.list_queue("mine").result(LONG_S)
    assert [(entry.job.job_id, entry.body) for entry in queue] == [
        (job.job_id, shown) for job, shown in zip(waiting, (body, body, b"{}"), strict=True)
    ]
    history = store.list_history("mine", 10, None).result(LONG_S)
    assert [(entry.job.job_id, entry.body) for entry in history] == list(zip(ended, (b"{}", body, body), strict=True))


def test_of_many_jobs_the_first_come_with_their_bodies_and_the_others_come(store, monkeypatch):
    monkeypatch.setattr(queries, "WHOLE", 2)
    ended, waiting = [_ended(store, "mine") for _ in range(3)], [new_job(owner="mine") for _ in range(3)]
    for job in waiting:
        store.submit(job, 100).result(LONG_S)
    for entries, ids, whole in (
        (store.list_queue("mine"), [job.job_id for job in waiting], [True, True, False]),
        (store.list_history("mine", 10, 0), ended, [True, True, False]),
        (store.list_history("mine", 10, None), ended, [False, True, True]),
    ):
        shown = entries.result(LONG_S)
        assert [entry.job.job_id for entry in shown] == ids
        assert [entry.body != b"{}" for entry in shown] == whole


def test_a_listing_says_of_which_workflow_a_job_was_made(store):
    with_id = _ended(store, "mine", workflow_id="w")
    without = _ended(store, "mine")
    page = store.find_page("mine", Listing(frozenset(JobState))).result(LONG_S)
    assert {job.job_id: workflow for job, workflow in page.jobs} == {with_id: "w", without: None}
    page = store.find_page("mine", Listing(frozenset(JobState), workflow_id="w")).result(LONG_S)
    assert ([job.job_id for job, _workflow in page.jobs], page.total) == ([with_id], 1)


@pytest.mark.parametrize("owner", ["mine", None])
def test_what_ends_after_a_clear_is_shown_although_it_came_in_before(store, owner):
    before, waiting = _ended(store, "mine"), new_job(owner="mine")
    store.submit(waiting, 100).result(LONG_S)
    store.clear_history("mine").result(LONG_S)
    assert store.list_history(owner, 10, None).result(LONG_S) == []
    assert store.find_entry(before).result(LONG_S) is None
    assert store.find_entry(waiting.job_id).result(LONG_S) is not None
    store.settle(waiting.job_id, Verdict(JobState.CANCELLED, "cancelled", "")).result(LONG_S)
    for offset in (None, 0):
        shown = [entry.job.job_id for entry in store.list_history(owner, 10, offset).result(LONG_S)]
        assert shown == [waiting.job_id]
    page = store.find_page(owner, Listing(frozenset(JobState))).result(LONG_S)
    assert ([job.job_id for job, _workflow in page.jobs], page.total) == ([waiting.job_id], 1)
    assert store.find_entry(waiting.job_id).result(LONG_S) is not None
    assert store.get(before).result(LONG_S) is not None


def test_what_was_made_is_forgotten_with_its_job(place):
    place.made("mine", "a.png")
    assert place.store.find_maker("output", "a.png").result(LONG_S)[1] == 0
    place.store.forget(10**15, 10).result(LONG_S)
    assert place.store.find_maker("output", "a.png").result(LONG_S) is None


async def test_of_many_uploads_at_once_each_gets_a_name(place):
    sent = [_sent(place, str(number).encode()) for number in range(20)]
    names = await asyncio.gather(
        *(asyncio.to_thread(place.files.save, MINE, path, "a.png", "input", "", False) for path in sent)
    )
    assert len(set(names)) == 20


async def test_words_that_are_no_paths_pass_even_where_a_folder_is_called_so(place, monkeypatch):
    (place.base / "models").mkdir()
    monkeypatch.chdir(place.base)
    for words in ("output", "models", "a/b", "x.png", "what [output]"):
        assert await place.settled(words, kind="Words", name="text") == words


@pytest.mark.parametrize("text", ["a photo: a cat, 50% grey", "output", "x.png", "ä" * 5000, ""])
def test_a_prompt_of_plain_words_waits_for_no_look_at_the_disk(place, text):
    graph = {"1": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "more": [text, {"a": text}]}}}
    with pytest.raises(StopIteration) as ended:
        place.references.resolve(graph, MINE).send(None)
    assert ended.value.value is False


async def test_a_text_that_leads_to_a_file_is_refused_however_it_is_spelled(place, monkeypatch):
    file = place.put("output/x.png")
    monkeypatch.chdir(place.base)
    spelled = [str(file), f"/{file}", f"//{file}", "output/x.png", "./output//x.png", "output/../output/x.png"]
    if os.path.exists("/proc/self/root"):
        spelled += [f"/proc/self/root{file}", "/proc/self/cwd/output/x.png"]
    for text in spelled:
        with pytest.raises(BadImageError):
            await place.settled(text, kind="Words", name="text")


@pytest.mark.parametrize("before", ["/", ".", "//", "  ", ""])
async def test_an_annotated_name_counts_whatever_letter_comfyui_drops(place, before):
    place.made("yours", "x.png")
    with pytest.raises(BadImageError):
        await place.settled(f"x.png{before}[output]", kind="Words", name="text")


@pytest.mark.parametrize("text", ["x://a", "file:///etc/hostname", "http:/x", "https:///x"])
async def test_an_input_for_paths_takes_addresses_and_no_other_text(place, text):
    with pytest.raises(BadImageError):
        await place.settled(text, kind="LoadPath", name="path")
    assert await place.settled("https://example.org/x.png", kind="LoadPath", name="path")


async def test_of_many_uploads_the_newest_are_listed_by_name(place, monkeypatch):
    """They stand in the choices of every loader, however many a bot sends."""
    monkeypatch.setattr(files, "LISTED", 3)
    for age in range(5):
        file = place.put(f"input/{owner_folder('mine')}/{age}.png")
        os.utime(file, (10**9 - age, 10**9 - age))
    assert await place.files.list_uploads(MINE) == ["0.png", "1.png", "2.png"]
