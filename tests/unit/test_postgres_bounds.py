"""What every operation of the store costs on PostgreSQL, in rows and pages, does not grow with the number of jobs."""

import sqlite3
from contextlib import closing

import pytest
from unit.explained import Explaining
from unit.fakes import LONG_S
from unit.store_steps import CANCELLED
from unit.stores import OnPostgres, look_into, only_postgres
from unit.test_fleet_store import kill, open_box
from unit.test_store_bounds import CALLS, FEW, MANY, fill

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import line, queries, search

pytestmark = [only_postgres, pytest.mark.timeout(600)]

#: These change what others find.
LAST = ("forget", "clear_history")
#: As in the test for SQLite.
BOUNDS = ((line, "COUNTED"), (line, "COUNTED_BY_SUBMIT"), (line, "STANDING"), (queries, "PAGE"), (queries, "SHOWN"),
          (queries, "OVERDUE"), (queries, "CHANGES"), (search, "LOOKED_AT"))  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """SQLite's databases of the test for SQLite."""
    folder = tmp_path_factory.mktemp("bounds")
    for count in (FEW, MANY):
        fill(folder / f"{count}.db", count)
    return folder


def copy_in(source, path):
    """Have the tables of a new schema hold what SQLite's do."""
    OnPostgres(path, Clock()).close()
    with closing(sqlite3.connect(source)) as read, look_into(path) as db:
        names = [name for (name,) in read.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in set(names) - {"sqlite_sequence"}:
            # Else the engine cleans up whenever it is time, and what is asked of one of the two finds less in the way.
            db.raw.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            if db.raw.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                continue  # what every database begins with
            rows = read.execute(f"SELECT * FROM {table}")
            columns = [name for name, *_ in rows.description]
            with db.raw.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        db.raw.execute("SELECT setval(pg_get_serial_sequence('webhooks', 'number'), max(number)) FROM webhooks")
        db.raw.execute("VACUUM ANALYZE")


class Counting:
    """A store that is asked one thing after the other, and what each takes, on any thread."""

    def __init__(self, store, is_generic):
        self.store = store
        engine = store._engine
        # Else the upkeep looks whenever it is time, in the midst of what is counted.
        store._upkeep._due_s = float("inf")
        self.settle_down()
        self._connections = []
        for thread in (engine._writer, *engine._readers):
            thread.db._statements = Explaining(thread.db._statements, thread.db.raw, is_generic)
            self._connections.append(thread.db._statements)

    def settle_down(self):
        engine = self.store._engine
        for _ in range(2):
            for run in (engine.read, engine.read_list, engine.read_slowly, engine.write):
                run(lambda _db: None).result(LONG_S)

    def count(self, asked):
        """What this call takes, and what most of that is."""
        self._switch(True)
        try:
            asked(self.store).result(LONG_S)
        finally:
            self._switch(False)
        self.settle_down()
        taken = [connection.take() for connection in self._connections]
        return sum(total for total, _most in taken), max((most for _total, most in taken), key=lambda most: most[0])

    def _switch(self, counts):
        for connection in self._connections:
            connection.counts = counts


def count_all(path, count, is_fleet):
    """By operation: what each way to ask for it takes."""
    store = open_box(path, "one") if is_fleet else OnPostgres(path, Clock())
    try:
        counting = Counting(store, is_generic=is_fleet)
        middle = count + count // 2
        taken = {}
        for name in sorted(CALLS, key=lambda name: name in LAST):
            take_one(store, is_begun=name == "validate")
            taken[name] = [counting.count(lambda store, each=each: each(store, middle)) for each in CALLS[name]]
        return taken
    finally:
        kill(store) if is_fleet else store.close()


def take_one(store, is_begun):
    """Let this store have one job under way, and no other."""
    for job_id in store.leases:
        store.settle(job_id, CANCELLED).result(LONG_S)
        store.release(job_id).result(LONG_S)
    claimed = store.claim("local", 1).result(LONG_S)
    if is_begun:
        store.start(claimed.job.job_id).result(LONG_S)


@pytest.mark.parametrize("is_fleet", [False, True], ids=["alone", "fleet"])
def test_ten_times_the_jobs_take_no_more_rows_and_pages(filled, tmp_path, monkeypatch, is_fleet):
    for where, bound in BOUNDS:
        monkeypatch.setattr(where, bound, 25)
    few, many = (
        (copy_in(filled / f"{count}.db", path := tmp_path / str(count)), count_all(path, count, is_fleet))[1]
        for count in (FEW, MANY)
    )
    grown = {
        (name, at): (before, after, most[1:])
        for name in CALLS
        for at, ((before, _most), (after, most)) in enumerate(zip(few[name], many[name], strict=True))
        if after > 1.3 * before + 300
    }
    assert not grown, "\n\n".join(f"{which}: {found}" for which, found in grown.items())
