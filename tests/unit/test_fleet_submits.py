"""A submit that the engine writes in one statement is what this process would have written; where another box has
written meanwhile, or the statement cannot do it, nothing is lost and nothing comes twice."""

import random
import threading
from dataclasses import replace

import pytest
from unit.fakes import LONG_S, new_id, new_job
from unit.stores import make_schema, only_postgres, server
from unit.test_fleet_claims import draw, note_answers
from unit.test_fleet_store import _on_postgres, clean, kill, open_box, read_line, sync
from unit.test_postgres import Proxy
from unit.test_postgres import open_box as open_box_at

from comfyui_guarded.guard.errors import ConflictError, QueueFullError, ServerUnavailableError
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.store import IdempotencyKey, postgres_engine, submitting
from comfyui_guarded.guard.store.postgres_fleet import _Submit

# A fixture for all of them here, too.
__all__ = ["_on_postgres"]

pytestmark = only_postgres


@pytest.fixture
def told(monkeypatch):
    """The rounds of the jobs that the engine has let in by itself; None where it has not."""
    return note_answers(monkeypatch, submitting)


@pytest.fixture
def box(tmp_path):
    box = open_box(tmp_path / "jobs", "one", slots=10**6)
    yield box
    kill(box)


@pytest.fixture
def other(tmp_path, box):
    other = open_box(tmp_path / "jobs", "two", slots=10**6)
    yield other
    kill(other)


def read_tables(box):
    """All that submits write, but for what the process was called."""

    def operation(db):
        return [
            db.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2").fetchall()
            for table, columns in (
                ("jobs", "number, *"), ("bodies", "number, body"), ("workflows", "number, job_id, workflow_id"),
                ("transitions", "event_id, *"), ("turns", "owner, *"), ("idempotency", "owner, key, *"),
            )
        ]  # fmt: skip

    return box._engine.read(operation).result(LONG_S)


def hold_to_tables(*boxes):
    """What boxes know of the queue is what the tables say, and each was told of each change once, in order."""
    for box in boxes:
        sync(box)
        line = box._transitions.line
        fresh = box._engine.read(lambda db, box=box: read_line(db, box.member.box)).result(LONG_S)
        assert replace(line, turns=clean(line)) == replace(fresh, turns=clean(fresh))
        seen = [job.event_id for job in box.heard.changes]
        assert seen == list(range(seen[0], fresh.event_id + 1))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_engine_writes_what_this_process_would(tmp_path, monkeypatch, told, seed):
    draws, ids = random.Random(seed), []
    jobs = [
        replace(
            new,
            created_at_ms=number,
            body=b"x" * number,
            workflow_id=draws.choice((None, "w")),
            order=draws.choice((None, None, None, 0.5, 9.0)),
            client_id=draws.choice((None, "c")),
        )
        for number, new in enumerate(draw(seed, 40, is_plain=False))
    ]
    keys = [draws.choice((None, IdempotencyKey(str(number), "d", 0))) for number in range(40)]
    written, places = [], []
    for name in ("engine", "process"):
        box, stood = open_box(tmp_path / name, "one", slots=10**6), []
        try:
            for number, (new, key) in enumerate(zip(jobs, keys, strict=True)):
                submitted = box.submit(new, 10**9, key).result(LONG_S)
                stood.append((submitted.job, submitted.waiting))
                assert submitted.job == box.get(new.job_id).result(LONG_S)
                if number in (7, 20, 30):
                    ids.append(box.claim("local", 10**6).result(LONG_S).job.job_id)
            hold_to_tables(box)
            written.append(read_tables(box))
            places.append(stood)
        finally:
            kill(box)
        monkeypatch.setattr(_Submit, "is_plain", lambda _self: False)
    assert sum(round_ is not None for round_ in told) >= 30
    assert ids[:3] == ids[3:]
    assert [job for job, _waiting in places[0]] == [job for job, _waiting in places[1]]
    assert [waiting for _job, waiting in places[0]] == [waiting for _job, waiting in places[1]]
    tokens = [[row for row in table if JobState.DISPATCHED.value not in row] for each in written for table in each]
    assert tokens[:6] == tokens[6:]


def test_what_another_box_has_written_meanwhile_counts(box, other, told):
    """Numbers, turns and limits are those of all, whoever has not looked for a while."""
    for each in (box, other):
        each._engine._due_s = 10**12  # neither looks by itself
    for number in range(12):
        each = (box, other)[number % 5 == 0]
        assert each.submit(new_job(owner=f"o{number % 2}"), 12).result(LONG_S).job.number == number + 1
    for each in (other, box):
        with pytest.raises(QueueFullError):
            each.submit(new_job(), 12).result(LONG_S)
    assert {round_ is None for round_ in told} == {True, False}
    hold_to_tables(box, other)


def test_boxes_that_submit_at_once_give_each_job_a_number(box, other):
    def submit(each):
        for _ in range(40):
            each.submit(new_job(), 10**9, IdempotencyKey(new_id(), "d", 0)).result(LONG_S)

    threads = [threading.Thread(target=submit, args=(each,)) for each in (box, other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    numbers = [row[0] for row in read_tables(box)[0]]
    assert numbers == list(range(1, 161))
    hold_to_tables(box, other)


def test_a_key_or_an_id_that_is_known_makes_no_second_job(box, other):
    key, new = IdempotencyKey("k", "d", 0), new_job()
    first = box.submit(new, 99, key).result(LONG_S)
    added = box._upkeep._added
    for each in (box, box, other):
        again = each.submit(new_job(), 99, key).result(LONG_S)
        assert (again.job.job_id, again.replayed) == (first.job.job_id, True)
        with pytest.raises(ConflictError):
            each.submit(new_job(), 99, IdempotencyKey("k", "another", 0)).result(LONG_S)
    assert box._upkeep._added == added  # what was not written takes no room
    for each in (box, box, other):
        with pytest.raises(ConflictError):
            each.submit(new_job(new.job_id), 99).result(LONG_S)
    assert len(read_tables(box)[0]) == 1
    hold_to_tables(box, other)


@pytest.mark.parametrize("way", ["before", "after"])
def test_a_submit_whose_answer_is_lost_is_told_as_it_ended(tmp_path, monkeypatch, way):
    monkeypatch.setattr(postgres_engine, "HOLD_S", LONG_S)
    proxy, new = Proxy(server().port), new_job()
    proxy.word = b"WITH signed AS"
    box = open_box_at(server().url(make_schema(tmp_path / "jobs"), port=proxy.port), "one")
    try:
        heard = []
        for changes in (box.changed, box.arrived):
            changes.subscribe(lambda job: heard.append((job.job_id, job.state)))
        proxy.cut = way
        submitting = box.submit(new, 9)
        if way == "before":
            with pytest.raises(ServerUnavailableError):
                submitting.result(LONG_S)
            submitting = box.submit(new, 9)
        submitted = submitting.result(LONG_S)
        assert (proxy.cuts, submitted.job.job_id, submitted.waiting.position) == (1, new.job_id, 1)
        assert box.get(new.job_id).result(LONG_S) == submitted.job
        assert box.claim("local", 9).result(LONG_S).job.job_id == new.job_id
        assert heard == [(new.job_id, JobState.QUEUED), (new.job_id, JobState.DISPATCHED)]
    finally:
        kill(box)
        proxy.close()
