"""What an owner's files may come to together, and which of them go first."""

import json
import os
import time
from pathlib import Path

import pytest
from unit.fakes import LONG_S, FakeHost, new_job
from unit.janitor import DAY_S, Box, put
from unit.store_steps import CANCELLED, claim, run_to_success
from unit.test_admission import Gate

from comfyui_guarded.guard.access import keys
from comfyui_guarded.guard.access.keys import OPERATE, SUBMIT, Key, Keys
from comfyui_guarded.guard.client import LOCAL, Client, KeyLimits
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import GuardError, InvalidRequestError, PayloadTooLargeError, QuotaExceededError
from comfyui_guarded.guard.janitor.quotas import AGAIN_S, MEASURE_S
from comfyui_guarded.guard.job import Artifact, Result
from comfyui_guarded.guard.owners import folder_of
from comfyui_guarded.guard.quotas import FILE_BYTES, FilesHeld, measure_places
from comfyui_guarded.guard.store import SqliteStore

BOT = Client("bot", operator=False)
#: What each file counts as.
SIZE = 10_000
CONTENT = SIZE - FILE_BYTES
MINUTE_S = 60.0


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "jobs.db", Clock())
    yield store
    store.close()


@pytest.fixture
def held():
    return FilesHeld()


def own(root: Path, name: str, owner: str = "bot") -> Path:
    return root / folder_of(owner) / name


def lay(box: Box, *names: str, owner: str = "bot", age_s: float = 60 * MINUTE_S, size: int = CONTENT) -> None:
    """Files of the owner's, `output/a.png`, say; each a minute younger than the one before."""
    for number, name in enumerate(names):
        root, _slash, path = name.partition("/")
        put(own(getattr(box, root), path, owner), age_s - number * MINUTE_S, size)


def left(box: Box, owner: str = "bot") -> set[str]:
    folder = f"{folder_of(owner)}/"
    return {path.replace(folder, "") for path in box.left() if folder in path}


def make_results(store, held, *names: str) -> list[str]:
    """Let a job end with each of these files below output; nobody has fetched them."""
    ids = []
    for name in names:
        job_id = store.submit(new_job(), 10**9).result(LONG_S).job.job_id
        assert claim(store) == job_id
        artifact = Artifact(0, "2", "image", name, folder_of("bot"), "output", CONTENT, "0" * 64)
        held.add_results(run_to_success(store, job_id, Result({}, (artifact,))).job)
        ids.append(job_id)
    return ids


def test_the_oldest_that_were_fetched_go_first_and_then_the_oldest_that_were_not(box: Box, store, held):
    janitor = box.janitor(store, held=held, quotas={"bot": 10 * SIZE})
    lay(box, *(f"output/{number}.png" for number in range(6)), "input/photo.png", "temp/preview.png", "input/late.png")
    ids = make_results(store, held, *(f"{number}.png" for number in range(6)))
    for number in (2, 4):
        store.mark_fetched(ids[number], 0).result(LONG_S)
    janitor.turn(now := time.time())
    assert held.count("bot") == 9 * SIZE
    assert len(left(box)) == 9, "nine tenths of the quota are no reason"
    lay(box, "temp/one_more.png", age_s=7 * MINUTE_S)
    held.add("bot", SIZE)
    janitor.turn(now + AGAIN_S)
    everything = {f"output/{number}.png" for number in range(6)} | {
        "input/photo.png", "temp/preview.png", "input/late.png", "temp/one_more.png",
    }  # fmt: skip
    assert left(box) == everything - {"output/2.png", "output/4.png"}
    assert held.count("bot") == 8 * SIZE
    lay(box, "temp/7.png", "temp/8.png", "temp/9.png", "temp/10.png", "temp/11.png", age_s=0)  # still warm
    held.add("bot", 5 * SIZE)
    janitor.turn(now + 2 * AGAIN_S)
    assert left(box) == {
        "output/1.png", "output/3.png", "output/5.png", *(f"temp/{number}.png" for number in range(7, 12)),
    }  # fmt: skip
    assert held.count("bot") == 8 * SIZE


def test_nobody_elses_files_go_and_none_of_an_open_job(box: Box, store, held):
    janitor = box.janitor(store, held=held, quotas={"bot": 2 * SIZE, "rich": 100 * SIZE})
    lay(box, "input/waits.png", "input/a.png", "output/b.png", "temp/c.png")
    lay(box, *(f"output/{number}.png" for number in range(20)), owner="rich")
    lay(box, *(f"output/{number}.png" for number in range(20)), owner="unlimited")
    put(box.output / "of_operators.png", DAY_S / 2, 10**6)
    name = f"{folder_of('bot')}/waits.png"
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    job_id = store.submit(new_job(body=json.dumps({"prompt": prompt}).encode()), 10**9).result(LONG_S).job.job_id
    janitor.turn(now := time.time())
    assert left(box) == {"input/waits.png"}
    assert len(left(box, "rich")) == len(left(box, "unlimited")) == 20
    assert (box.output / "of_operators.png").exists()
    assert (held.count("bot"), held.count("rich"), held.count("unlimited")) == (SIZE, 20 * SIZE, 0)
    # More than all of the quota, and nothing may go: new jobs do not come in until that one has ended.
    lay(box, *(f"input/{number}.png" for number in range(3)), age_s=0)
    held.add("bot", 3 * SIZE)
    janitor.turn(now + AGAIN_S)
    assert len(left(box)) == 4
    with pytest.raises(QuotaExceededError) as caught:
        held.take("bot", 0, 2 * SIZE)
    assert caught.value.extra_info["of"] == "file_bytes"
    assert (caught.value.extra_info["held"], caught.value.extra_info["limit"]) == (4 * SIZE, 2 * SIZE)
    store.settle(job_id, CANCELLED).result(LONG_S)
    for number in range(3):
        put(own(box.input, f"{number}.png"), 30 * MINUTE_S, CONTENT)
    janitor.turn(now + 2 * AGAIN_S)
    held.take("bot", 0, 2 * SIZE)
    assert len(left(box)) == 1


def test_without_a_quota_nothing_is_counted_and_nothing_goes(box: Box, store, held):
    janitor = box.janitor(store, held=held)
    lay(box, *(f"output/{number}.png" for number in range(50)))
    make_results(store, held, "1.png")
    janitor.turn(time.time())
    assert len(left(box)) == 50
    assert held.count("bot") == 0


def test_files_that_nobody_has_told_of_are_found_after_a_while(box: Box, store, held):
    janitor = box.janitor(store, held=held, quotas={"bot": 3 * SIZE + FILE_BYTES})
    janitor.turn(now := time.time())
    lay(box, *(f"output/side/{number}.bin" for number in range(5)))
    janitor.turn(now + MEASURE_S - 1)
    assert len(left(box)) == 5
    janitor.turn(now + MEASURE_S)
    assert left(box) == {"output/side/3.bin", "output/side/4.bin"}


def test_many_empty_files_are_too_much_as_well(box: Box, store, held):
    janitor = box.janitor(store, held=held, quotas={"bot": 10 * FILE_BYTES})
    lay(box, *(f"output/{number}" for number in range(20)), size=0)
    janitor.turn(time.time())
    assert left(box) == {f"output/{number}" for number in range(12, 20)}


def test_with_the_janitor_off_nothing_goes_and_the_owner_is_refused(box: Box, store, held):
    janitor = box.janitor(store, held=held, quotas={"bot": 3 * SIZE}, enabled=False)
    lay(box, *(f"output/{number}.png" for number in range(5)))
    janitor.turn(time.time())
    assert len(left(box)) == 5
    with pytest.raises(QuotaExceededError):
        held.take("bot", 0, 3 * SIZE)


def test_what_comes_while_files_are_measured_is_not_lost(held):
    held.watch({"bot": 10**9})
    begun = held.begin_measuring("bot")
    held.add("bot", 5)
    held.end_measuring("bot", 100, begun)
    assert held.count("bot") == 105
    begun = held.begin_measuring("bot")
    held.end_measuring("bot", 100, begun)
    assert held.count("bot") == 100
    held.watch({})
    held.add("bot", 5)
    assert held.count("bot") == 0


def test_where_the_store_cannot_say_what_is_in_use_nothing_goes(box: Box, held):
    closed = SqliteStore(box.base / "closed.db", Clock())
    closed.close()
    janitor = box.janitor(closed, held=held, quotas={"bot": SIZE})
    lay(box, "output/a.png", "output/b.png")
    janitor.turn(time.time())
    assert len(left(box)) == 2
    assert janitor.body()["totals"]["errors"] == 1


# At the door. --------------------------------------------------------------------------------------------------


def make_gate(store, **limits):
    gate = Gate(store, FakeHost(), Clock(), limits=limits)
    gate.quotas.files.watch({"bot": 10**9})
    return gate


async def test_over_the_quota_no_job_comes_in(store):
    gate = make_gate(store, max_file_bytes=3 * SIZE)
    over = []
    gate.quotas.refused.subscribe(over.append)
    gate.quotas.files.add("bot", 3 * SIZE)
    await gate.admit()
    gate.quotas.files.add("bot", 1)
    error = await gate.refusal()
    assert isinstance(error, QuotaExceededError)
    assert error.body("ru", of_submit=True)["guard"]["refund"] is True
    assert over == ["file_bytes"]
    for client in (LOCAL, Client("boss", operator=True), Client("bot", False, limits=KeyLimits(max_file_bytes=10**9))):
        await gate.admit(client=client)


def test_files_count_as_they_come_and_a_refusal_gives_them_back(store):
    quotas = make_gate(store, max_file_bytes=3 * SIZE).quotas
    quotas.take_files(BOT, 2 * SIZE)
    with pytest.raises(QuotaExceededError):
        quotas.take_files(BOT, 2 * SIZE)
    give_back = quotas.take_files(BOT, SIZE)
    with pytest.raises(QuotaExceededError):
        quotas.take_files(BOT, 1)
    give_back()
    quotas.take_files(BOT, SIZE)
    with pytest.raises(PayloadTooLargeError):
        quotas.take_files(BOT, 3 * SIZE + 1)


async def test_a_prompt_that_is_refused_gives_back_what_its_files_took(store):
    gate = make_gate(store, max_file_bytes=3 * SIZE)
    for _ in range(5):
        error = await gate.refusal(b"{}", file_bytes=2 * SIZE)
        assert not isinstance(error, QuotaExceededError)
        assert isinstance(error, (InvalidRequestError, GuardError))
    assert gate.quotas.files.count("bot") == 0
    await gate.admit(file_bytes=2 * SIZE)
    assert gate.quotas.files.count("bot") == 2 * SIZE


def test_each_owner_has_the_largest_quota_of_its_keys(tmp_path):
    def make(name, *, scope=SUBMIT, **limits):
        wanted = Key("", name, scope, "", Clock().now_ms(), "", **limits)
        return keys.create(tmp_path, wanted, same_owner=True)[0]

    make("small", max_file_bytes=5)
    make("small", max_file_bytes=7)
    make("plain")
    make("boss", scope=OPERATE)
    revoked = make("gone", max_file_bytes=9)
    keys.revoke(tmp_path, revoked.key_id, Clock().now_ms())
    mixed = make("mixed", max_file_bytes=100)
    make("mixed", max_file_bytes=8)
    keys.revoke(tmp_path, mixed.key_id, Clock().now_ms())
    found = Keys(tmp_path, Clock())
    assert found.list_file_quotas(0) == {"small": 7, "gone": 9, "mixed": 8}
    assert found.list_file_quotas(6) == {"small": 7, "plain": 6, "gone": 9, "mixed": 8}


def test_folders_count_and_the_empty_ones_go_before_any_file(box: Box, store, held):
    """A job that fails leaves as many as its prefix has parts."""
    janitor = box.janitor(store, held=held, quotas={"bot": 10 * SIZE})
    lay(box, "output/1.png", "output/2.png")
    deep = own(box.output, "/".join("a" * 30))
    deep.mkdir(parents=True)
    fresh = own(box.temp, "/".join("b" * 5))
    for folder in (deep, *deep.parents):
        if folder_of("bot") in str(folder.parent):
            os.utime(folder, (time.time() - DAY_S, time.time() - DAY_S))
    fresh.mkdir(parents=True)
    janitor.turn(now := time.time())
    assert left(box) == {"output/1.png", "output/2.png"}
    assert not own(box.output, "a").exists()
    assert fresh.exists(), "something may be about to be written there"
    assert held.count("bot") == 2 * SIZE + 5 * FILE_BYTES
    janitor.turn(now + MEASURE_S)
    assert held.count("bot") == 2 * SIZE + 5 * FILE_BYTES


def test_an_upload_counts_the_folders_that_it_may_make():
    assert measure_places("") == FILE_BYTES
    assert measure_places("a/b\\c//") == 4 * FILE_BYTES
