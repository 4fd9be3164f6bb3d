"""Statements sent to PostgreSQL in one piece: their answers, and what becomes of those behind one that fails."""

from contextlib import closing

import psycopg
import pytest
from unit.stores import only_postgres, server

from comfyui_guarded.guard.store import postgres_statements
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_held import HeldDatabase

pytestmark = only_postgres


@pytest.fixture
def db():
    with closing(HeldDatabase(read_address(server().url())).connect()) as db:
        db.execute("CREATE TEMP TABLE kept (number bigint PRIMARY KEY, body bytea)")
        yield db


def begin(db):
    db.begin()
    return db


def list_kept(db):
    return [number for (number,) in db.execute("SELECT number FROM kept ORDER BY number").fetchall()]


def test_each_answer_is_that_of_its_statement(db):
    begin(db)
    asked = [db.execute("SELECT ?, ?::text", (number, "x" * number)) for number in range(30)]
    written = db.execute("INSERT INTO kept SELECT generate_series(1, 7), NULL")
    db.commit()
    assert [answer.fetchone() for answer in asked] == [(number, "x" * number) for number in range(30)]
    assert (written.rowcount, asked[0].fetchone()) == (7, None)
    assert list_kept(db) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("read", [lambda answer: answer.fetchall(), list, lambda answer: [answer.fetchone(), *answer]])
def test_rows_come_however_they_are_read(db, read):
    assert read(db.execute("SELECT generate_series(1, 3)")) == [(1,), (2,), (3,)]


def test_what_is_large_both_ways_comes_through(db):
    """Neither side waits for the other to take what it has sent."""
    begin(db)
    asked = [db.execute("SELECT ?", (bytes([number]) * 2**20,)) for number in range(40)]
    db.commit()
    assert all(answer.fetchone() == (bytes([number]) * 2**20,) for number, answer in enumerate(asked))


def test_an_error_is_raised_by_whoever_waits_next_and_nothing_is_kept(db):
    begin(db)
    db.execute("INSERT INTO kept VALUES (1, NULL)")
    db.execute("SELECT 1 / ?", (0,))
    behind = db.execute("INSERT INTO kept VALUES (2, NULL)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.commit()
    with pytest.raises(psycopg.Error):
        behind.fetchone()
    db.roll_back()
    assert list_kept(db) == []


def test_a_commit_behind_an_error_that_nobody_has_minded_is_none(db):
    begin(db)
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute("SELECT 1 / ?", (0,)).fetchone()
    with pytest.raises(psycopg.Error):
        db.commit()
    assert not db.in_transaction


def test_a_statement_behind_one_that_has_failed_can_be_asked_again(db):
    """Though it was not prepared there."""
    for fails in (False, True, False, False):
        begin(db)
        if fails:
            db.execute("SELECT 1 / ?", (0,))
        asked = db.execute("SELECT ? + 1", (1,))
        if fails:
            with pytest.raises(psycopg.errors.DivisionByZero):
                db.commit()
            db.roll_back()
        else:
            db.commit()
            assert asked.fetchone() == (2,)


def test_a_statement_that_is_wrong_fails_each_time(db):
    for _ in range(4):
        with pytest.raises(psycopg.errors.UndefinedTable):
            db.execute("SELECT ? FROM nothing", (1,))
    assert db.execute("SELECT 1").fetchone() == (1,)


def test_more_statements_than_are_kept_prepared(db, monkeypatch):
    monkeypatch.setattr(postgres_statements, "PREPARED", 3)
    for _ in range(3):
        begin(db)
        asked = [db.execute(f"SELECT {number} + ?", (1,)) for number in range(8) for _twice in range(2)]
        db.commit()
        assert [answer.fetchone() for answer in asked] == [(number + 1,) for number in range(8) for _twice in range(2)]
    (prepared,) = db.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert prepared <= 3 + 1


@pytest.mark.parametrize("waits", [False, True], ids=["in a transaction", "alone"])
def test_a_connection_that_ends_is_lost(db, waits):
    pid = db.raw.info.backend_pid
    if not waits:
        begin(db)
        db.execute("SELECT 1").fetchone()
    with closing(server().connect()) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            db.execute("SELECT 1").fetchone()
    assert db.is_lost


def test_what_fails_at_the_end_of_one_statements_transaction_is_raised(db):
    db.execute("ALTER TABLE kept ADD UNIQUE (body) DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute("INSERT INTO kept SELECT generate_series(1, 2), ''")
    assert list_kept(db) == []
