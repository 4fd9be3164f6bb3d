"""Lists have a size: however much jobs have reported, a page is small, and the single job is whole."""

import json
import tracemalloc

import pytest
from unit.fakes import LONG_S, new_job
from unit.stores import both, open_store

from comfyui_guarded.guard.callers import as_comfyui
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import OPEN, SUCCESS, TERMINAL, Artifact, Result
from comfyui_guarded.guard.store import Listing, Wanted

pytestmark = both

MIB = 2**20
PAGE = 8 * MIB
JOBS = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Jobs, each with a text of 2 MiB, short ones and a file; of every other one the parameters are long."""
    store = open_store(tmp_path_factory.mktemp("listed") / "jobs.db", Clock())
    for number in range(JOBS):
        parameters = {"words": "p" * MIB} if number % 2 else {}
        job = new_job(f"job-{number:02}", owner="bot", template="t", parameters=parameters, client_id="client")
        store.submit(job, 1000).result(LONG_S)
        store.claim("x", 1000).result(LONG_S)
        store.start(job.job_id).result(LONG_S)
        file = {"filename": f"{number}.png", "subfolder": "", "type": "output"}
        outputs = {"1": {"text": ["w" * 2 * MIB, "a", "b", "c"]}, "2": {"images": [file]}}
        artifact = Artifact(0, "2", "image", f"{number}.png", "", "output", 1, "0" * 64)
        store.settle(job.job_id, SUCCESS, Result(outputs, (artifact,))).result(LONG_S)
        store.release(job.job_id).result(LONG_S)
    yield store
    store.close()


def measured(ask):
    """What `ask` gives, and the most memory that it took."""
    tracemalloc.start()
    try:
        given = ask()
        return given, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def show(job):
    return json.dumps(job.body())


LISTS = {
    "search": lambda store: store.search("bot", Wanted(), 500, None).result(LONG_S).jobs,
    "history": lambda store: [entry.job for entry in store.list_history("bot", 1000, None).result(LONG_S)],
    "history from": lambda store: [entry.job for entry in store.list_history("bot", 1000, 0).result(LONG_S)],
    "api/jobs": lambda store: [
        job for job, _id in store.find_page("bot", Listing(OPEN | TERMINAL)).result(LONG_S).jobs
    ],
    "missed": lambda store: store.list_missed("bot", "client", 0, 100).result(LONG_S),
    "changes": lambda store: store.read_changes(0, owner="bot").result(LONG_S).jobs,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_jobs_that_reported_much_is_small_in_memory_and_in_the_answer(store, name):
    jobs, most = measured(lambda: LISTS[name](store))
    assert len(jobs) >= 5
    assert sum(len(show(job)) for job in jobs) <= PAGE
    assert most <= 4 * PAGE


def test_in_a_list_texts_are_cut_and_files_are_not_and_it_says_so(store):
    (job,) = store.search("bot", Wanted(), 1, None).result(LONG_S).jobs
    body = job.body()
    assert body["shortened"] is True
    assert body["outputs"]["2"]["images"][0]["filename"] == "23.png"
    long, *short = body["outputs"]["1"]["text"]
    assert long == "w" * 1000 + f"… ({2 * MIB} characters)"
    assert short == ["a", "b", "c"]
    assert body["artifacts"][0]["filename"] == "23.png"
    whole = store.get(job.job_id).result(LONG_S).body()
    assert "shortened" not in whole
    assert whole["outputs"]["1"]["text"][0] == "w" * 2 * MIB
    assert whole["parameters"] == {"words": "p" * MIB}
    assert "shortened" not in store.find_entry(job.job_id).result(LONG_S).job.body()


def test_pages_lead_through_all_jobs(store):
    seen, before = [], None
    while True:
        found = store.search("bot", Wanted(), 500, before).result(LONG_S)
        seen += [job.job_id for job in found.jobs]
        if found.next is None:
            break
        before = found.next
    assert seen == [f"job-{number:02}" for number in reversed(range(JOBS))]
    offset, listed = 0, []
    while page := store.find_page("bot", Listing(TERMINAL, offset=offset)).result(LONG_S).jobs:
        listed += [job.job_id for job, _workflow in page]
        offset += len(page)
    assert listed == seen


def test_a_reader_far_behind_hears_every_change_once_and_few_at_a_time(store, monkeypatch):
    monkeypatch.setattr("comfyui_guarded.guard.store.queries.READ_CHANGES", 10)
    heard, after = [], 0
    while True:
        changes = store.read_changes(after, owner="bot").result(LONG_S)
        heard += [(job.event_id, job.job_id, job.state) for job in changes.jobs]
        assert len(changes.jobs) < 10 + 4, "hundreds of readers may be given so many at once"
        after = changes.up_to
        if after >= changes.head:
            break
    assert [event_id for event_id, _job, _state in heard] == sorted({event_id for event_id, _job, _state in heard})
    assert len(heard) == 4 * JOBS


def test_a_reader_far_behind_gets_few_large_jobs_at_a_time(tmp_path):
    """Fifty that do not read on keep as many pages."""
    store = open_store(tmp_path / "jobs.db", Clock())
    try:
        for number in range(20):
            store.submit(new_job(f"job-{number}", metadata={"about": "x" * 40_000}), 1000).result(LONG_S)
        heard, after, head = [], 0, 1
        while after < head:
            changes = store.read_changes(after).result(LONG_S)
            assert sum(len(json.dumps(job.metadata)) for job in changes.jobs) <= 128 * 2**10
            heard += [job.job_id for job in changes.jobs]
            after, head = changes.up_to, changes.head
        assert heard == [f"job-{number}" for number in range(20)]
    finally:
        store.close()


def test_a_history_with_long_prompts_has_a_size_too(tmp_path):
    store = open_store(tmp_path / "jobs.db", Clock())
    try:
        for number in range(12):
            body = json.dumps({"prompt": {"1": {"inputs": {"text": "x" * (MIB - 100)}}}}).encode()
            store.submit(new_job(f"job-{number}", owner="bot", body=body), 1000).result(LONG_S)
        entries, most = measured(lambda: store.list_queue("bot").result(LONG_S))
        assert len(entries) == 12
        rows = [as_comfyui.row(entry) for entry in entries]
        assert len(json.dumps(rows)) <= PAGE
        assert most <= 4 * PAGE
        assert sum(len(entry.body or b"") > MIB // 2 for entry in entries) == 7
    finally:
        store.close()
