"""A fleet of two versions, of which the later one has more tables and columns: both run jobs until all are updated."""

import contextlib

import pytest
from unit.fakes import LONG_S
from unit.stores import look_into, only_postgres
from unit.test_fleet_store import _on_postgres, boxes, claim, kill, path, submit, sync

from comfyui_guarded.guard.job import SUCCESS, JobState
from comfyui_guarded.guard.store import StoreTooNewError, schema

__all__ = ["_on_postgres", "boxes", "path"]

pytestmark = only_postgres

LATER = (
    *schema.MIGRATIONS,
    """
    CREATE TABLE later_things (name TEXT PRIMARY KEY, job_id TEXT NOT NULL) WITHOUT ROWID;
    ALTER TABLE jobs ADD COLUMN later TEXT NOT NULL DEFAULT 'x';
    ALTER TABLE boxes ADD COLUMN later INTEGER;
    ALTER TABLE transitions ADD COLUMN later INTEGER;
    CREATE INDEX jobs_later ON jobs (later);
    """,
)


@contextlib.contextmanager
def later_version(monkeypatch, works_since=schema.WORKS_SINCE):
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", LATER)
        patched.setattr(schema, "WORKS_SINCE", works_since)
        yield


def run(store, job):
    store.start(job.job_id).result(LONG_S)
    assert store.settle(job.job_id, SUCCESS, token=job.token).result(LONG_S).won
    store.release(job.job_id).result(LONG_S)


def test_a_box_goes_on_beside_a_later_version_whose_tables_have_more_and_may_start_again(boxes, path, monkeypatch):
    older = boxes("older")
    began = submit(older)
    claimed = claim(older)
    waiting = submit(older)
    with later_version(monkeypatch):
        later = boxes("later")
    run(older, claimed)
    taken = claim(later)
    assert taken.job_id == waiting.job_id
    run(later, taken)
    third = submit(later)
    run(older, claim(older))
    sync(later)
    states = {later.get(job.job_id).result(LONG_S).state for job in (began, waiting, third)}
    assert states == {JobState.SUCCEEDED}
    assert older.beat() is not None
    kill(older)
    again = boxes("older")
    assert again.beat() is not None
    assert {box.box for box in again.list_boxes()} == {"older", "later"}
    submit(again)
    run(again, claim(again))
    with look_into(path) as db:
        assert db.execute("SELECT version FROM schema_version").fetchall() == [(len(LATER),)]


def test_a_box_whose_tables_a_later_version_has_changed_says_so_and_changes_nothing(boxes, path, monkeypatch):
    with later_version(monkeypatch, works_since=len(LATER)):
        later = boxes("later")
    with pytest.raises((StoreTooNewError, AssertionError), match="update this server"):
        boxes("older")
    job = submit(later)
    run(later, claim(later))
    assert later.get(job.job_id).result(LONG_S).state is JobState.SUCCEEDED


def test_a_database_of_before_such_a_number_was_kept_is_brought_up(boxes, path, monkeypatch):
    boxes("older")
    with look_into(path) as db:
        db.execute("ALTER TABLE schema_version DROP COLUMN works_since")
    with later_version(monkeypatch):
        boxes("later")
    with look_into(path) as db:
        known = db.execute("SELECT version, works_since FROM schema_version").fetchall()
    assert known == [(len(LATER), schema.WORKS_SINCE)]
