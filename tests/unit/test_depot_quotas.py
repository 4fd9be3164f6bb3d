"""What an owner's files in the depot may come to together, whichever servers have put them in."""

import pytest
from unit.fakes import LONG_S
from unit.janitor import Box
from unit.store_steps import CANCELLED, claim, run_to_success, submit
from unit.stores import both
from unit.test_depot_sweep import box, depot, folder, graph, left, made_old, put
from unit.test_file_quotas import MINUTE_S

from comfyui_guarded.guard.client import Client
from comfyui_guarded.guard.errors import PayloadTooLargeError, QuotaExceededError
from comfyui_guarded.guard.janitor.quotas import AGAIN_S, MEASURE_DEPOT_S
from comfyui_guarded.guard.job import Artifact, Result
from comfyui_guarded.guard.outgoing import StoredFile
from comfyui_guarded.guard.quotas import FILE_BYTES, FilesHeld, Quotas
from comfyui_guarded.tests.unit.fakes import settings

__all__ = ["box", "depot", "folder"]

pytestmark = both

#: What each file counts as.
SIZE = 10_000


@pytest.fixture
def held():
    return FilesHeld()


@pytest.fixture
def now_s(store):
    return store._clock.now_ms() / 1000 + 60 * MINUTE_S


def data(number):
    return f"{number:0{SIZE - FILE_BYTES}}".encode()


def make_result(store, depot, number, owner="bot", minutes=60):
    """A job's result that the depot has, and nobody has fetched yet."""
    store._clock._offset_s += 1
    key = put(depot, data(number), minutes * MINUTE_S)
    file = Artifact(0, "9", "image", f"{number}.png", "", "output", SIZE - FILE_BYTES, key[:64])
    job_id = submit(store, owner=owner).job.job_id
    while claim(store, 10**9) != job_id:
        pass
    run_to_success(store, job_id, Result({}, (file,), stored=(StoredFile("", key, file.bytes),)))
    return job_id, key


def upload(store, depot, number, owner="bot"):
    store._clock._offset_s += 1
    key = put(depot, data(number), 60 * MINUTE_S)
    store.note_uploads(owner, [StoredFile(f"{number}.png", key, SIZE - FILE_BYTES)]).result(LONG_S)
    return key


def test_the_oldest_that_were_fetched_go_first_and_then_the_oldest_that_were_not(box: Box, store, depot, held, now_s):
    janitor = box.janitor(store, depot=depot, held_in_depot=held, quotas={"bot": 5 * SIZE})
    first, second = make_result(store, depot, 1)[1], make_result(store, depot, 2)
    third, fourth = upload(store, depot, 3), upload(store, depot, 4)
    janitor.turn(now_s)
    assert left(depot) == {first, second[1], third, fourth}
    assert held.count("bot") == 4 * SIZE
    fifth = make_result(store, depot, 5)[1]
    store.mark_fetched(second[0], 0).result(LONG_S)
    janitor.turn(now_s + MEASURE_DEPOT_S)
    assert left(depot) == {first, third, fourth, fifth}
    assert held.count("bot") == 4 * SIZE
    sixth = make_result(store, depot, 6)[1]
    seventh = make_result(store, depot, 7)[1]
    janitor.turn(now_s + 2 * MEASURE_DEPOT_S)
    assert left(depot) == {first, fifth, sixth, seventh}
    make_result(store, depot, 8)
    janitor.turn(now_s + 3 * MEASURE_DEPOT_S)
    assert first not in left(depot)
    assert len(left(depot)) == 4


def test_one_server_deletes_and_all_count_and_refuse(box: Box, store, depot, held, now_s):
    quotas = Quotas(settings(limits={"max_file_bytes": 3 * SIZE}).limits, has_depot=True)
    keys = {upload(store, depot, number) for number in range(4)}
    other = box.janitor(
        store, depot=depot, held_in_depot=quotas.files_in_depot, quotas={"bot": 3 * SIZE}, is_keeper=False
    )
    other.turn(now_s)
    assert left(depot) == keys
    bot = Client("bot", operator=False)
    with pytest.raises(QuotaExceededError) as caught:
        quotas.take_files(bot, 0)
    assert (caught.value.extra_info["of"], caught.value.extra_info["held"]) == ("file_bytes", 4 * SIZE)
    assert quotas.files.count("bot") == 0, "what was refused is given back"
    keeper = box.janitor(store, depot=depot, held_in_depot=held, quotas={"bot": 3 * SIZE})
    keeper.turn(now_s)
    assert len(left(depot)) == 2
    other.turn(now_s + MEASURE_DEPOT_S)
    give_back = quotas.take_files(bot, SIZE)
    assert quotas.files_in_depot.count("bot") == 3 * SIZE
    give_back()
    assert (quotas.files.count("bot"), quotas.files_in_depot.count("bot")) == (0, 2 * SIZE)
    with pytest.raises(PayloadTooLargeError):
        quotas.take_files(bot, 3 * SIZE + 1)


def test_what_others_have_too_stays_for_them(box: Box, store, depot, held, now_s):
    shared = upload(store, depot, 1)
    assert upload(store, depot, 1, owner="rich") == shared
    own = upload(store, depot, 2)
    quotas = {"bot": SIZE, "rich": 100 * SIZE}
    janitor = box.janitor(store, depot=depot, held_in_depot=held, quotas=quotas)
    janitor.turn(now_s)
    assert left(depot) == {shared}
    assert (held.count("bot"), held.count("rich")) == (0, SIZE)
    assert store.find_uploads("bot", ["1.png", "2.png"]).result(LONG_S) == {}
    assert store.find_uploads("rich", ["1.png"]).result(LONG_S) == {"1.png": shared}
    assert own not in left(depot)


def test_what_an_open_job_names_stays_and_what_was_put_in_again_just_now(box: Box, store, depot, held, now_s):
    named, again, _old = (upload(store, depot, number) for number in range(3))
    job_id = submit(store, body=graph(named)).job.job_id
    made_old(depot, again, -60 * MINUTE_S)
    janitor = box.janitor(store, depot=depot, held_in_depot=held, quotas={"bot": SIZE})
    janitor.turn(now_s)
    assert left(depot) == {named, again}
    assert held.count("bot") == 2 * SIZE
    store.settle(job_id, CANCELLED).result(LONG_S)
    janitor.turn(now_s + 10 * AGAIN_S)  # later where the first look took more than a second
    assert left(depot) == {again}


def test_what_a_sweep_deletes_counts_no_more_and_neither_does_what_somebody_else_has(box: Box, store, depot, held):
    gone, swept = upload(store, depot, 1), upload(store, depot, 2)
    depot.delete(gone)
    janitor = box.janitor(store, depot=depot, held_in_depot=held, quotas={"bot": 9 * SIZE})
    assert store.count_kept(["bot", "other"]).result(LONG_S) == {"bot": 2 * SIZE}
    made_old(depot, swept, 8 * 86400)
    janitor.sweep(store._clock.now_ms() / 1000)
    assert store.count_kept(["bot"]).result(LONG_S) == {"bot": SIZE}
    assert left(depot) == set()
    janitor.sweep(store._clock.now_ms() / 1000 + 400 * 86400)
    assert store.count_kept(["bot"]).result(LONG_S) == {}


def test_one_that_is_overwritten_counts_until_it_goes(store, depot):
    for number in range(3):
        key = put(depot, data(number))
        store.note_uploads("bot", [StoredFile("same.png", key, SIZE - FILE_BYTES)]).result(LONG_S)
    assert store.count_kept(["bot"]).result(LONG_S) == {"bot": 3 * SIZE}
