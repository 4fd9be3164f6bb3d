"""Files that come with a prompt: their names, their place, and that a refusal leaves none behind."""

import asyncio
import json
import os

import phones
import pytest
from unit.fakes import LONG_S, FakeFaces, FakeHost, new_id, settings, uploads

from comfyui_guarded.guard.bounds import Bounds
from comfyui_guarded.guard.client import Client
from comfyui_guarded.guard.errors import (
    ConflictError,
    GuardError,
    InvalidRequestError,
    NoFaceError,
    PayloadTooLargeError,
    ServerUnavailableError,
)
from comfyui_guarded.guard.files.files import Files
from comfyui_guarded.guard.files.references import References
from comfyui_guarded.guard.files.uploads import UploadedFile, map_names, rename_inputs
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.host import Folders, Refusal, Rehearsal
from comfyui_guarded.guard.janitor.in_use import InUse, make_keys
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.secrets import Secrets
from comfyui_guarded.guard.owners import FOLDER, folder_of
from comfyui_guarded.guard.quotas import Quotas
from comfyui_guarded.guard.submit.admission import Admission
from comfyui_guarded.guard.submit.limits import Limits
from comfyui_guarded.guard.submit.request import Submission, from_form

BOT, OTHER = Client("bot", operator=False), Client("other", operator=False)
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "photo"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "photo"}},
}


def raw(**body) -> bytes:
    return json.dumps({"prompt": GRAPH, **body}).encode()


class Door:
    """An admission whose host has a real input folder."""

    def __init__(self, store, clock, folder):
        self.store, self.host, self.faces, self.input = store, FakeHost(), FakeFaces(), folder / "input"
        self.host.places = Folders(None, None, self.input)
        health = Health(self.host, store)
        health.mark_serving()
        self.uploads = uploads(self.host.input_folder, max_file_bytes=4096)
        limits, quotas = Limits(settings().limits, clock), Quotas(settings().limits)
        references = References(self.host, Files(self.host, store))
        self.admission = Admission(
            settings(), store, self.host, health, self.faces, references, Secrets(), clock, self.uploads, limits, quotas
        )

    def file(self, data=PNG, field="photo", filename="me.png") -> UploadedFile:
        incoming = self.uploads.start_file(field, filename)
        incoming.write(data)
        return incoming.finish()

    async def admit(self, *files, client=BOT, key=None, **body):
        return await self.admission.admit(Submission(raw(**body), client, key, files=files))

    async def refusal(self, *files, **more) -> GuardError:
        with pytest.raises(GuardError) as caught:
            await self.admit(*files, **more)
        return caught.value

    def stored(self) -> list[str]:
        """Every file that is in its place."""
        below = (path.relative_to(self.input) for path in self.input.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in below if ".incoming" not in path.parts)

    def body(self, submitted) -> dict:
        return json.loads(self.store.find_entry(submitted.job.job_id).result(LONG_S).body)["prompt"]


@pytest.fixture
def door(store, clock, tmp_path):
    return Door(store, clock, tmp_path)


# Names. -----------------------------------------------------------------------------------------------------------


def test_every_owner_has_a_folder_of_its_own_that_any_file_system_can_have():
    owners = ["local", "bot", "BOT", "bot a", "bot-a", "бот", "", "../..", "a" * 500, "con", "x/y", "\x00"]
    folders = [folder_of(owner) for owner in owners]
    assert len(set(folders)) == len(owners)
    for folder in folders:
        assert folder.startswith(f"{FOLDER}/")
        assert folder == folder.lower()
        assert folder.isascii()
        assert ".." not in folder
        assert folder.count("/") == 1
        assert len(folder) < 64


@pytest.mark.parametrize(
    ("data", "filename", "suffix"),
    [
        (PNG, "me.JPG", ".png"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 40, "blob", ".jpg"),
        (b"who knows", "clip.MKV", ".mkv"),
        (b"<html>", "page.html", ""),
        (b"<svg>", "x.svg", ""),
        (b"who knows", "", ""),
        (b"who knows", "..\\..\\x.png", ".png"),
    ],
)
def test_a_file_is_named_by_its_bytes_and_never_by_a_suffix_that_no_picture_has(door, data, filename, suffix):
    file = door.file(data, filename=filename)
    assert file.suffix == suffix
    assert file.stored_as("bot") == f"{folder_of('bot')}/{file.sha256}{suffix}"


def test_a_prompt_may_name_a_file_by_its_field_or_by_its_own_name(door):
    one, two = door.file(b"one", "a", "me.png"), door.file(b"two", "b", "you.png")
    stored = map_names([one, two], "bot")
    assert {name: stored[name] for name in ("a", "me.png")} == dict.fromkeys(("a", "me.png"), one.stored_as("bot"))
    assert {name: stored[name] for name in ("b", "you.png")} == dict.fromkeys(("b", "you.png"), two.stored_as("bot"))


def test_a_name_that_two_different_files_have_is_refused_only_where_the_prompt_uses_it(door):
    one, two = door.file(b"one", "a", "photo.jpg"), door.file(b"two", "b", "photo.jpg")
    stored = map_names([one, two], "bot")
    assert stored["photo.jpg"] is None
    takes = FakeHost().file_inputs
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "a"}}}
    assert rename_inputs(graph, stored, takes) == {one.stored_as("bot")}
    with pytest.raises(InvalidRequestError):
        rename_inputs({"1": {"class_type": "LoadImage", "inputs": {"image": "photo.jpg"}}}, stored, takes)
    same = map_names([one, door.file(b"one", "b", "photo.jpg")], "bot")
    assert same["photo.jpg"] == one.stored_as("bot")


def test_a_field_comes_before_another_parts_file_name(door):
    one, two = door.file(b"one", "photo.png", "x.png"), door.file(b"two", "b", "photo.png")
    assert map_names([one, two], "bot")["photo.png"] == one.stored_as("bot")
    assert map_names([two, one], "bot")["photo.png"] == one.stored_as("bot")


# The way in. ------------------------------------------------------------------------------------------------------


async def test_loader_inputs_name_the_stored_file_and_other_inputs_stay_as_they_are(door):
    file = door.file()
    submitted = await door.admit(file)
    graph = door.body(submitted)
    assert graph["1"]["inputs"]["image"] == file.stored_as("bot")
    assert graph["2"]["inputs"]["filename_prefix"] == "photo"
    assert door.host.rehearsed[0]["prompt"] == graph
    assert door.faces.asked[0][0] == graph
    assert door.stored() == [file.stored_as("bot")]
    assert (door.input / file.stored_as("bot")).read_bytes() == PNG


async def test_a_file_is_in_its_place_before_the_host_looks_at_the_prompt(door):
    file = door.file()
    seen = []

    async def look():
        seen.extend(door.stored())

    door.host.during_rehearsal = look
    await door.admit(file)
    assert seen == [file.stored_as("bot")]


async def test_a_file_that_no_loader_names_is_refused(door):
    error = await door.refusal(door.file(field="picture", filename="you.png"))
    assert (error.code, error.extra_info["field"]) == ("invalid_request", "picture")
    assert door.stored() == []


async def test_a_refusal_leaves_nothing_behind(door):
    door.faces.error = NoFaceError("No face.")
    assert (await door.refusal(door.file())).code == "no_face"
    assert door.stored() == []
    door.faces.error = None
    door.host.alive = False
    assert isinstance(await door.refusal(door.file()), ServerUnavailableError)
    assert door.stored() == []


async def test_a_refusal_leaves_the_file_of_an_earlier_job(door):
    first = door.file()
    await door.admit(first)
    door.faces.error = NoFaceError("No face.")
    await door.refusal(door.file())
    assert door.stored() == [first.stored_as("bot")]


@pytest.mark.parametrize("refused_first", [True, False])
async def test_a_refusal_leaves_the_file_of_a_request_that_is_still_under_way(door, refused_first):
    """Both have placed the same file; one is let in and one is not, in either order."""
    both, refuse, admit = asyncio.Event(), asyncio.Event(), asyncio.Event()
    waiting = []

    async def rendezvous():
        waiting.append(door.host.rehearsed[-1]["prompt_id"])
        mine = refuse if waiting[-1] == bad else admit
        if len(waiting) == 2:
            both.set()
        await mine.wait()
        door.faces.error = NoFaceError("No face.") if mine is refuse else None

    good, bad = new_id(), new_id()
    door.host.during_rehearsal = rendezvous
    one = asyncio.create_task(door.admit(door.file(), prompt_id=good))
    other = asyncio.create_task(door.refusal(door.file(), prompt_id=bad))
    await both.wait()
    order = [(refuse, other), (admit, one)] if refused_first else [(admit, one), (refuse, other)]
    for event, task in order:
        event.set()
        await task
        assert len(door.stored()) == 1
    assert (await other).code == "no_face"


async def test_when_all_of_several_are_refused_the_last_one_takes_the_file_away(door):
    door.faces.error = NoFaceError("No face.")
    await asyncio.gather(*(door.refusal(door.file()) for _ in range(8)))
    assert door.stored() == []


async def test_a_file_stays_where_nobody_knows_whether_its_job_exists(door):
    door.faces.error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError):
        await door.admit(door.file())
    assert len(door.stored()) == 1


async def test_the_same_bytes_are_stored_once_for_one_owner_and_apart_for_another(door):
    files = [door.file() for _ in range(5)]
    await asyncio.gather(*(door.admit(file) for file in files))
    assert door.stored() == [files[0].stored_as("bot")]
    await door.admit(door.file(), client=OTHER)
    assert door.stored() == sorted({files[0].stored_as("bot"), files[0].stored_as("other")})


async def test_a_file_sent_again_is_young_again(door):
    file = door.file()
    await door.admit(file)
    path = door.input / file.stored_as("bot")
    os.utime(path, (1, 1))
    await door.admit(door.file())
    assert path.stat().st_mtime > 10**9


async def test_the_janitor_knows_the_file_by_the_body_that_is_stored(door):
    file = door.file()
    submitted = await door.admit(file)
    in_use = InUse(list)
    in_use.add_stored(door.store.find_entry(submitted.job.job_id).result(LONG_S).body)
    assert in_use.names_any(make_keys("input", file.stored_as("bot"), []))


async def test_the_same_key_with_the_same_files_is_the_same_request_and_with_others_a_conflict(door):
    first = await door.admit(door.file(), key="k")
    again = await door.admit(door.file(), key="k")
    assert again.replayed
    assert again.job.job_id == first.job.job_id
    assert isinstance(await door.refusal(door.file(PNG + b"!"), key="k"), ConflictError)
    assert len(door.stored()) == 1


async def test_of_a_phones_photo_the_picture_is_stored_and_all_that_was_sent_counts_for_its_key(door):
    plain = phones.jpeg(phones.scene(32, 32))
    alone, first, other = (door.file(each, filename="me.jpg") for each in (plain, plain + PNG, plain + PNG * 2))
    assert len({file.stored_as("bot") for file in (alone, first, other)}) == 1
    job = (await door.admit(first, key="k")).job
    assert door.stored() == [alone.stored_as("bot")]
    assert (door.input / alone.stored_as("bot")).read_bytes() == plain
    again = await door.admit(door.file(plain + PNG, filename="me.jpg"), key="k")
    assert (again.replayed, again.job.job_id) == (True, job.job_id)
    for file in (alone, other):
        assert isinstance(await door.refusal(file, key="k"), ConflictError)


@pytest.mark.parametrize(("name", "pictures"), [("film.mjpeg", 3), ("FILM.MJPG", 3), ("mjpeg.jpg", 1), ("mjpeg", 1)])
def test_a_film_of_jpegs_stays_whole(door, name, pictures):
    plain = phones.jpeg(phones.scene(16, 16))
    assert door.file(plain * 3, filename=name).path.read_bytes() == plain * pictures


async def test_two_at_once_with_one_key_and_file_make_one_job(door):
    answers = await asyncio.gather(*(door.admit(door.file(), key="k") for _ in range(6)))
    assert len({answer.job.job_id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert len(door.stored()) == 1


async def test_what_the_host_refuses_is_told_in_the_language_of_the_request_and_taken_away(door):
    door.host.missing = ["SaveImage"]
    door.host.rehearsal = Rehearsal(Refusal("invalid_prompt", "no", "", {}, {}), ())
    error = await door.refusal(door.file(), guard={"locale": "en"})
    assert (error.code, error.locale) == ("missing_node", "en")
    assert door.stored() == []


# Receiving. -------------------------------------------------------------------------------------------------------


def test_a_file_over_the_limit_is_refused_as_it_comes(door):
    incoming = door.uploads.start_file("photo", "me.png")
    incoming.write(b"x" * 4096)
    with pytest.raises(PayloadTooLargeError) as caught:
        incoming.write(b"x")
    assert caught.value.extra_info == {"field": "photo", "max_file_bytes": 4096}
    incoming.discard()
    assert not incoming.path.exists()


@pytest.mark.parametrize(
    ("gives", "code"), [("IMAGE", "bad_image"), ("VIDEO", "bad_video"), ("AUDIO", "bad_audio"), ("MESH", "bad_image")]
)
async def test_an_empty_file_is_told_by_what_its_loader_reads(door, monkeypatch, gives, code):
    monkeypatch.setattr(door.host, "declaration", lambda _class: Declared({}, ((gives, gives),)))
    error = await door.refusal(door.file(b""))
    assert error.code == code
    assert error.extra_info == {"field": "photo", "node_id": "1", "input": "image"}
    assert door.stored() == []


def test_what_a_dead_process_was_receiving_is_deleted_at_the_next_start(door):
    path = door.file().path
    assert path.exists()
    door.uploads.tidy()
    assert not path.exists()
    door.uploads.tidy()


def test_a_forms_fields_are_those_of_the_json_body():
    fields = {
        "prompt": json.dumps(GRAPH).encode(),
        "guard": b'{"priority": 3}',
        "client_id": b"c",
        "front": b"true",
        "number": b"7",
    }
    body = json.loads(from_form(fields, Bounds()))
    assert body == {"prompt": GRAPH, "guard": {"priority": 3}, "client_id": "c", "front": True, "number": 7}
    assert from_form(dict(reversed(fields.items())), Bounds()) == from_form(fields, Bounds())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": b"{}", "gaurd": b"{}"}, "gaurd"),
        ({"prompt": b"{"}, "prompt"),
        ({"prompt": b""}, "prompt"),
        ({"prompt": b"\xff"}, "prompt"),
        ({"prompt": b'{"a": 1, "a": 2}'}, "'a'"),
        ({"prompt": b'{"1": NaN}'}, "NaN"),
        ({"prompt": b"[" * 100_000}, "prompt"),
        ({"prompt": b'"\\ud800"'}, "prompt"),
        ({"prompt": b"{}", "guard": b"x"}, "guard"),
    ],
)
def test_a_field_that_is_unknown_or_no_json_is_named(fields, named):
    with pytest.raises(InvalidRequestError) as caught:
        from_form(fields, Bounds())
    assert named in caught.value.message
