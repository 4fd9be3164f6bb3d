"""Lists that a ledger can trust: a filter keeps what fits and nothing else, and the pages lose and repeat nothing."""

import itertools
import random

import pytest
from unit.fakes import LONG_S, SetClock, new_job
from unit.store_steps import CANCELLED, run_to_success
from unit.stores import both, open_store

from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.store import IdempotencyKey, Wanted, search
from comfyui_guarded.guard.store.times import EARLIEST_MS

pytestmark = both


@pytest.fixture
def hands():
    return SetClock(EARLIEST_MS + 1000)


@pytest.fixture
def shop(tmp_path, hands):
    """A store with 60 jobs of two owners; each of their facts differs for some."""
    store = open_store(tmp_path / "jobs.db", hands)
    rng = random.Random(7)
    for at in range(60):
        hands.ms += 10
        new = new_job(
            f"job-{at}",
            owner=rng.choice("xxy"),
            user=rng.choice(["", "1", "2"]),
            template=rng.choice(["", "sdxl"]),
            metadata=rng.choice([{}, {"order": at % 5}, {"order": str(at % 5), "vip": True}]),
            created_at_ms=hands.ms,
        )
        store.submit(new, 10**9, IdempotencyKey(f"key-{at}", "d") if at % 2 else None).result(LONG_S)
    for at in rng.sample(range(60), 40):
        hands.ms += 10
        if at % 3:
            store.settle(f"job-{at}", CANCELLED).result(LONG_S)
    while (claimed := store.claim("local", 1).result(LONG_S)) is not None and claimed.job.number % 7:
        hands.ms += 10
        run_to_success(store, claimed.job.job_id)
    yield store
    store.close()


def find_all(store, owner, wanted, limit):
    jobs, before, pages = [], None, 0
    while True:
        found = store.search(owner, wanted, limit, before).result(LONG_S)
        jobs += found.jobs
        pages += 1
        if found.next is None:
            return jobs, pages
        assert len(found.jobs) <= limit
        before = found.next


def fits(job, wanted):
    metadata = {name: value if isinstance(value, str) else {True: "true"}.get(value is True, str(value))
                for name, value in job.metadata.items()}  # fmt: skip
    return all([
        wanted.states is None or job.state in wanted.states,
        wanted.code in (None, job.verdict and job.verdict.code),
        wanted.text in (None, job.job_id, job.idempotency_key, job.client_id, *metadata.values()),
        wanted.template in (None, job.template),
        wanted.user in (None, job.user),
        wanted.idempotency_key in (None, job.idempotency_key),
        wanted.metadata.items() <= metadata.items(),
        wanted.created_after_ms is None or job.created_at_ms >= wanted.created_after_ms,
        wanted.settled_after_ms is None or (job.settled_at_ms or -1) >= wanted.settled_after_ms,
    ])  # fmt: skip


def filters(jobs):
    """Each filter by itself, and all pairs of two."""
    times = sorted(job.created_at_ms for job in jobs)
    ends = sorted(job.settled_at_ms for job in jobs if job.settled_at_ms)
    each = [
        {"states": frozenset({JobState.QUEUED, JobState.CANCELLED})}, {"states": frozenset({JobState.SUCCEEDED})},
        {"template": "sdxl"}, {"template": ""}, {"template": "absent"}, {"user": "1"}, {"user": ""}, {"user": "absent"},
        {"code": "cancelled"}, {"code": "absent"}, {"text": "job-7"}, {"text": "3"}, {"text": "true"},
        {"text": "key-9"}, {"text": "absent"}, {"idempotency_key": "key-7"}, {"idempotency_key": "key-8"},
        {"metadata": {"order": "3"}}, {"metadata": {"order": "3", "vip": "true"}}, {"metadata": {"absent": "3"}},
        {"created_after_ms": times[30]}, {"created_after_ms": times[-1] + 1}, {"created_after_ms": 0},
        {"settled_after_ms": ends[10]}, {"settled_after_ms": ends[-1] + 1}, {"settled_after_ms": 0},
    ]  # fmt: skip
    pairs = [{**one, **other} for one, other in itertools.combinations(each, 2) if not one.keys() & other.keys()]
    return [Wanted(**facts) for facts in [{}, *each, *pairs]]


@pytest.mark.parametrize("looked_at", [1000, 7])
@pytest.mark.parametrize("owner", [None, "x"])
def test_every_filter_keeps_what_fits_in_order_whole_and_once(shop, monkeypatch, owner, looked_at):
    monkeypatch.setattr(search, "LOOKED_AT", looked_at)
    jobs = shop.list_jobs(owner, None, 1000).result(LONG_S)
    assert len(jobs) == 60 or owner == "x"
    some = 0
    for wanted in filters(jobs):
        newest = sorted(jobs, key=lambda job: -(job.number if wanted.settled_after_ms is None else job.event_id))
        expected = [job.job_id for job in newest if fits(job, wanted)]
        for limit in (3, 500):
            found, _pages = find_all(shop, owner, wanted, limit)
            assert [job.job_id for job in found] == expected, wanted
        some += bool(expected)
    assert some > 30, "the filters match something, or nothing was tested"


def test_the_beginning_of_an_id_finds_its_job_where_it_is_long_enough(tmp_path, hands):
    store = open_store(tmp_path / "jobs.db", hands)
    for job_id in ("aaaabbbb-1", "aaaabbbb-2", "cccc"):
        store.submit(new_job(job_id), 10**9).result(LONG_S)
    for text, expected in (("aaaabbbb", 2), ("aaaabbbb-1", 1), ("aaaabbb", 0), ("cccc", 1), ("", 0)):
        assert len(find_all(store, None, Wanted(text=text), 500)[0]) == expected, text
    assert find_all(store, "stranger", Wanted(text="aaaabbbb-1"), 500)[0] == []
    store.close()


def test_a_page_that_ends_with_the_last_job_says_so(shop):
    jobs, pages = find_all(shop, None, Wanted(), 60)
    assert (len(jobs), pages) == (60, 1)


def test_much_metadata_ends_a_page_early_and_loses_nothing(shop, monkeypatch):
    monkeypatch.setattr(search, "METADATA_BYTES", 100)
    wanted = Wanted(metadata={"vip": "true"})
    jobs, pages = find_all(shop, None, wanted, 500)
    assert pages > 3
    assert len(jobs) == sum(fits(job, wanted) for job in shop.list_jobs(None, None, 1000).result(LONG_S)) > 0


def test_jobs_of_a_clock_that_was_not_set_end_no_list(tmp_path, hands):
    store = open_store(tmp_path / "jobs.db", hands)
    for at, when_ms in enumerate((hands.ms, 5_000, hands.ms + 50)):
        store.submit(new_job(f"job-{at}", created_at_ms=when_ms), 10**9).result(LONG_S)
    found, _pages = find_all(store, "bot", Wanted(created_after_ms=hands.ms - 10), 500)
    assert [job.job_id for job in found] == ["job-2", "job-0"]
    store.close()


def test_a_key_that_stands_for_another_job_by_now_finds_both(tmp_path, hands):
    store = open_store(tmp_path / "jobs.db", hands)
    for at in range(2):  # the second one a day later
        store.submit(new_job(f"job-{at}"), 10**9, IdempotencyKey("k", "d", since_ms=10**15)).result(LONG_S)
    found, _pages = find_all(store, "bot", Wanted(idempotency_key="k"), 500)
    assert [job.job_id for job in found] == ["job-1", "job-0"]
    store.close()
