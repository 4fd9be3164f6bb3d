import asyncio
import base64
import threading

import pytest
from unit.fakes import LONG_S, new_id, new_job

from comfyui_guarded.guard.errors import CancelledError, GenerationTimeoutError
from comfyui_guarded.guard.events import stream as events_module
from comfyui_guarded.guard.events import subscription
from comfyui_guarded.guard.events.event import ALARM, PREVIEW, PROGRESS, STATE, Event
from comfyui_guarded.guard.events.stream import Events
from comfyui_guarded.guard.host import Progress
from comfyui_guarded.guard.job import SUCCESS, Job, JobState, Verdict


@pytest.fixture
def events(store):
    made = Events(store)
    store.changed.subscribe(made.follow)
    return made


def _job(job_id="a", state=JobState.RUNNING, event_id=1):
    return Job(
        job_id=job_id, number=1, owner="bot", state=state, priority=0, attempts=1, created_at_ms=0, started_at_ms=0,
        settled_at_ms=None, timeout_s=1, locale="en", client_id=None, shape="", template="", parameters={},
        outputs_to_execute=(), metadata={}, has_secrets=False, event_id=event_id,
    )  # fmt: skip


def submit(store, owner="bot", **facts):
    return store.submit(new_job(owner=owner, **facts), 10**6).result(LONG_S).job


def run(store, owner="bot"):
    """A job's whole life: five states."""
    job_id = submit(store, owner).job_id
    store.claim("local", 10**6).result(LONG_S)
    store.start(job_id).result(LONG_S)
    store.validate(job_id).result(LONG_S)
    store.settle(job_id, SUCCESS).result(LONG_S)
    store.release(job_id).result(LONG_S)
    return job_id


CANCELLED = Verdict.of(CancelledError("The job was cancelled."))
LIFE = ["queued", "dispatched", "running", "validating", "succeeded"]


async def states(reader, until=None, count=None):
    """(job id, state, event id) of everything that comes, up to a job's end or that many."""
    told = []
    while True:
        batch = await reader.next(LONG_S)
        assert batch, "nothing came"
        told += [(event.job.job_id, event.data["state"], event.id) for event in batch if event.name == STATE]
        if any(job_id == until and JobState(state).settled for job_id, state, _id in told) or len(told) == count:
            return told


async def test_a_reader_hears_every_state_of_its_job_in_order_and_of_no_other(store, events):
    job = submit(store)
    with events.subscribe(job_id=job.job_id) as reader:
        other = submit(store)
        store.claim("local", 9).result(LONG_S)
        store.start(job.job_id).result(LONG_S)
        store.settle(other.job_id, CANCELLED)
        store.settle(job.job_id, SUCCESS).result(LONG_S)
        told = await states(reader, job.job_id)
    assert [state for _job, state, _id in told] == ["dispatched", "running", "succeeded"]
    assert {job_id for job_id, _state, _id in told} == {job.job_id}
    ids = [event_id for *_rest, event_id in told]
    assert ids == sorted(ids)
    assert ids[0] > job.event_id


async def test_a_reader_of_an_owner_hears_of_its_jobs_only_and_one_of_all_hears_of_everybodys(store, events):
    with events.subscribe(owner="a") as of_a, events.subscribe() as of_all:
        ids = {owner: await asyncio.to_thread(run, store, owner) for owner in ("a", "b", "a2")}
        assert {job_id for job_id, *_rest in await states(of_a, ids["a"])} == {ids["a"]}
        assert {job_id for job_id, *_rest in await states(of_all, ids["a2"])} == set(ids.values())


async def test_a_change_before_the_first_look_is_not_lost(store, events):
    with events.subscribe() as reader:
        job_id = await asyncio.to_thread(run, store)
        assert [state for _job, state, _id in await states(reader, job_id)] == LIFE


async def test_a_reader_that_hears_nothing_is_told_so(events):
    with events.subscribe() as reader:
        assert await reader.next(0.001) == []


async def test_a_reader_resumes_behind_any_state_without_a_gap_or_a_repetition(store, events):
    first = await asyncio.to_thread(run, store)
    with events.subscribe(after=0) as reader:
        whole = await states(reader, first)
    assert [state for _job, state, _id in whole] == LIFE
    for done in range(len(whole)):
        with events.subscribe(job_id=first, after=whole[done][2]) as reader:
            if done < len(whole) - 1:
                assert await states(reader, first) == whole[done + 1 :]
            else:
                assert await reader.next(0.001) == []


async def test_a_job_is_told_as_it_was_at_each_state(store, events):
    """Also where it was begun twice."""
    job = submit(store)
    store.claim("local", 1).result(LONG_S)
    store.start(job.job_id).result(LONG_S)
    store.recover("local", 2).result(LONG_S)
    store.claim("local", 1).result(LONG_S)
    store.start(job.job_id).result(LONG_S)
    store.settle(job.job_id, SUCCESS).result(LONG_S)
    with events.subscribe(job_id=job.job_id, after=0) as reader:
        told = [event.data for event in await reader.next(LONG_S)]
    assert [(data["state"], data["attempts"], data["started_at_ms"] is not None) for data in told] == [
        ("queued", 0, False), ("dispatched", 0, False), ("running", 1, True), ("queued", 1, False),
        ("dispatched", 1, False), ("running", 2, True), ("succeeded", 2, True),
    ]  # fmt: skip
    assert [data["refund"] for data in told] == [None] * 6 + [False]
    assert [data["settled_at_ms"] is not None for data in told] == [False] * 6 + [True]
    last = store.get(job.job_id).result(LONG_S)
    assert told[-1] == last.body()


async def test_states_that_come_while_a_reader_catches_up_follow_those_from_the_store(store, events, monkeypatch):
    monkeypatch.setattr("comfyui_guarded.guard.store.queries.CHANGES", 3)
    earlier = [await asyncio.to_thread(run, store) for _ in range(4)]
    with events.subscribe(after=0) as reader:
        told = await states(reader, earlier[0])
        later = await asyncio.to_thread(run, store)
        told += await states(reader, later)
    assert [event_id for *_rest, event_id in told] == list(range(1, 26))


@pytest.mark.parametrize("kept", [1, 2, 7])
async def test_a_slow_reader_misses_no_state_and_holds_few(store, events, monkeypatch, kept):
    monkeypatch.setattr(subscription, "STATES_KEPT", kept)
    with events.subscribe() as reader:
        for _ in range(4):
            last = await asyncio.to_thread(run, store)
            await asyncio.sleep(0.01)
            assert len(reader._states) <= kept
        told = await states(reader, last)
        assert [event_id for *_rest, event_id in told] == list(range(1, 21))
        again = await asyncio.to_thread(run, store)
        assert [event_id for *_rest, event_id in await states(reader, again)] == list(range(21, 26))


async def test_a_number_from_another_database_begins_anew(store, events):
    job_id = await asyncio.to_thread(run, store)
    with events.subscribe(after=10**9) as reader:
        assert [state for _job, state, _id in await states(reader, job_id)] == LIFE


async def test_a_state_that_the_reader_knows_is_not_told_again(store, events):
    with events.subscribe() as reader:
        job = submit(store)
        reader.has_seen(job.event_id)
        store.settle(job.job_id, CANCELLED).result(LONG_S)
        assert [state for _job, state, _id in await states(reader, job.job_id)] == ["cancelled"]


async def test_numbers_are_never_used_twice(store, events):
    job_id = await asyncio.to_thread(run, store)
    last = store.get(job_id).result(LONG_S).event_id
    assert store.forget(2**53, 10).result(LONG_S) == 1
    assert submit(store).event_id == last + 1


async def test_a_job_that_is_found_to_run_elsewhere_is_no_news_but_may_tell_of_its_progress(store, events):
    with events.subscribe((STATE, PROGRESS)) as reader:
        events.follow_other(_job("told", event_id=1))
        events.find(_job("told", event_id=1))
        events.find(_job("found", event_id=2))
        assert [event.job.job_id for event in await reader.next(LONG_S)] == ["told"]
        events.progressed("found", Progress(1, 2, "1", "x", 50))
        assert [(event.name, event.job.job_id) for event in await reader.next(LONG_S)] == [(PROGRESS, "found")]


async def test_no_reader_stays_behind(store, events):
    with events.subscribe(job_id="a"), events.subscribe(job_id="a"), events.subscribe(owner="b"), events.subscribe():
        assert set(events._of_job) == {"a"}
    with pytest.raises(ValueError, match="x"), events.subscribe(job_id="a"):
        raise ValueError("x")
    assert (events._of_job, events._of_owner, events._of_all, events._count) == ({}, {}, set(), 0)
    submit(store)
    assert events._inbox == []


async def test_changes_from_many_threads_reach_every_reader(store, events):
    ids = [new_id() for _ in range(40)]
    with events.subscribe() as one, events.subscribe() as two:
        threads = [
            threading.Thread(target=lambda some=ids[start::4]: [submit(store, job_id=job_id) for job_id in some])
            for start in range(4)
        ]
        for thread in threads:
            thread.start()
        for reader in (one, two):
            assert {job_id for job_id, *_rest in await states(reader, count=40)} == set(ids)
        for thread in threads:
            thread.join()


async def test_one_text_is_made_for_all_readers(store, events):
    with events.subscribe() as one, events.subscribe() as two:
        submit(store)
        (first,), (second,) = await one.next(LONG_S), await two.next(LONG_S)
        assert first is second
        assert first.text is second.text


PROGRESS_OF_A = Progress(5, 20, "3", "KSampler", 40)
BODY = {"value": 5, "max": 20, "node_id": "3", "node_title": "KSampler", "percent": 40}


def test_progress_is_known_while_the_job_runs(events):
    assert events.progress("a") is None
    events.follow(_job(state=JobState.RUNNING))
    assert events.progress("a") is None
    events.progressed("a", PROGRESS_OF_A)
    assert events.progress("a").body() == BODY
    assert events.progress("b") is None
    events.follow(_job(state=JobState.VALIDATING))
    assert events.progress("a") is PROGRESS_OF_A


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "queued"])
def test_progress_is_forgotten_when_the_job_ends_also_if_its_node_goes_on_telling(events, state):
    """After a timeout a node may go on for minutes."""
    events.follow(_job(state=JobState.RUNNING))
    events.progressed("a", PROGRESS_OF_A)
    events.follow(_job(state=JobState(state)))
    events.progressed("a", PROGRESS_OF_A)
    assert events.progress("a") is None
    assert events._running == {}


def test_a_job_that_is_begun_again_does_not_show_its_old_progress(events):
    events.follow(_job(state=JobState.RUNNING))
    events.progressed("a", PROGRESS_OF_A)
    events.follow(_job(state=JobState.RUNNING))
    assert events.progress("a") is None


async def test_of_much_progress_a_reader_hears_the_last(events):
    with events.subscribe([PROGRESS]) as reader:
        events.follow(_job(state=JobState.RUNNING))
        for value in range(1000):
            events.progressed("a", Progress(value, 1000, "3", "x", value // 10))
        seen = []
        while not seen or seen[-1]["value"] != 999:
            seen += [event.data for event in await reader.next(LONG_S)]
        assert len(seen) <= 3
        assert seen[-1] == {"job_id": "a", "value": 999, "max": 1000, "node_id": "3", "node_title": "x", "percent": 99}
        # And after a pause again.
        events.progressed("a", PROGRESS_OF_A)
        assert [event.data for event in await reader.next(LONG_S)] == [{"job_id": "a", **BODY}]


async def test_progress_from_before_anybody_read_does_not_keep_later_progress_back(events):
    events.follow(_job(state=JobState.RUNNING))
    events.progressed("a", PROGRESS_OF_A)
    with events.subscribe([PROGRESS], job_id="a") as reader:
        events.progressed("a", PROGRESS_OF_A)
        assert await reader.next(LONG_S)


async def test_progress_does_not_follow_the_end_of_its_job(events):
    with events.subscribe([PROGRESS, STATE]) as reader:
        events.follow(_job(state=JobState.RUNNING, event_id=1))
        events.progressed("a", PROGRESS_OF_A)
        await asyncio.sleep(0.01)
        events.follow(_job(state=JobState.SUCCEEDED, event_id=2))
        await asyncio.sleep(0.01)
        assert [event.name for event in await reader.next(LONG_S)] == [STATE, STATE]
        assert await reader.next(0.001) == []


async def test_a_preview_is_encoded_only_where_somebody_wants_it_and_only_the_newest(events):
    encoded = []

    def picture(number):
        return lambda: encoded.append(number) or b"picture %d" % number

    events.follow(_job(state=JobState.RUNNING))
    events.previewed("a", "image/jpeg", picture(0))
    with events.subscribe([PREVIEW], job_id="b"):
        events.previewed("a", "image/jpeg", picture(1))
        await asyncio.sleep(0.05)
        assert encoded == []
    with events.subscribe([PREVIEW], job_id="a") as reader:
        await asyncio.sleep(events_module.PREVIEW_EVERY_S)
        for number in range(2, 100):
            events.previewed("a", "image/png", picture(number))
        (first,) = await reader.next(LONG_S)
        assert first.data == {
            "job_id": "a",
            "mime": "image/png",
            "data": base64.b64encode(b"picture %d" % encoded[-1]).decode(),
        }
        assert encoded[-1] == 99
        events.previewed("a", "image/png", picture(100))
        assert base64.b64decode((await reader.next(LONG_S))[0].data["data"]) == b"picture 100"
    events.follow(_job(state=JobState.SUCCEEDED))
    with events.subscribe([PREVIEW], job_id="a") as reader:
        events.previewed("a", "image/png", picture(101))
        assert await reader.next(0.05) == []
    await asyncio.sleep(events_module.PREVIEW_EVERY_S * 2)
    assert (events._showing, events._pictures) == ({}, {})


async def test_a_picture_that_cannot_be_encoded_does_no_harm(events):
    events.follow(_job(state=JobState.RUNNING))
    with events.subscribe([PREVIEW]) as reader:
        events.previewed("a", "image/jpeg", lambda: 1 / 0)
        await asyncio.sleep(0.02)
        events.previewed("a", "image/jpeg", lambda: b"good")
        assert (await reader.next(LONG_S))[0].data["data"] == "Z29vZA=="


async def test_alarms_reach_those_who_ask_for_them_and_a_timeout_is_one(store, events):
    with events.subscribe([ALARM]) as operator, events.subscribe([ALARM], owner="bot") as owner:
        events.alarm("worker_replaced", "a worker hangs")
        job = submit(store)
        store.settle(job.job_id, Verdict.of(GenerationTimeoutError("too long"))).result(LONG_S)
        told = []
        while len(told) < 2:
            told += [event.data for event in await operator.next(LONG_S)]
        assert told == [
            {"code": "worker_replaced", "job_id": None, "message": "a worker hangs"},
            {"code": "generation_timeout", "job_id": job.job_id, "message": "too long"},
        ]
        assert await owner.next(0.001) == []


async def test_states_wait_for_a_moment_and_come_together_but_the_last_one_comes_at_once(store, events, monkeypatch):
    monkeypatch.setattr(events_module, "LATER_S", LONG_S)
    with events.subscribe() as reader:
        job_id = run(store)
        batch = await asyncio.wait_for(reader.next(LONG_S), LONG_S / 2)
        assert [event.data["state"] for event in batch] == LIFE
        assert {event.job.job_id for event in batch} == {job_id}
        run(store)  # that a timer still runs for the first ones holds up no other
        assert [event.data["state"] for event in await asyncio.wait_for(reader.next(LONG_S), LONG_S / 2)] == LIFE


async def test_a_state_without_an_end_comes_after_that_moment(store, events):
    with events.subscribe() as reader:
        for _ in range(3):
            submit(store)
            assert [event.data["state"] for event in await reader.next(LONG_S)] == ["queued"]


async def test_what_else_is_told_comes_after_the_states_before_it(store, events, monkeypatch):
    monkeypatch.setattr(events_module, "LATER_S", LONG_S)
    with events.subscribe([STATE, PROGRESS]) as reader:
        job = submit(store)
        store.flush()
        events.tell(Event(PROGRESS, dict, job))
        assert [event.name for event in await asyncio.wait_for(reader.next(LONG_S), LONG_S / 2)] == [STATE, PROGRESS]
