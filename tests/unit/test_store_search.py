"""Any damage to a database file, as a search: what is not damaged is saved, and the store works."""

import logging
import random
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st
from unit.fakes import LONG_S
from unit.pages import PAGE, map_pages
from unit.store_steps import claim_all, run_to_success
from unit.test_store_repair import assert_works, make_jobs

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.store import SqliteStore, StoreTooNewError, check, disk

KINDS = ("header", "free", "interior", "leaf", "overflow", "index")
SETTLED = {"succeeded", "failed", "cancelled"}
#: Tables whose rows are found wherever they are.
NUMBERED = ("jobs", "bodies", "transitions", "webhooks", "leases", "idempotency")


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """A few jobs; many; and many of which most were forgotten, so that there are free pages."""
    folder = tmp_path_factory.mktemp("whole")
    made = []
    for number, (queued, settled) in enumerate(((10, 10), (80, 60), (60, 90))):
        path = folder / f"{number}.db"
        make_jobs(path, queued=queued, settled=settled)
        if number == 2:
            store = SqliteStore(path, Clock())
            store.recover("local", 3).result(LONG_S)
            for job_id in claim_all(store)[:40]:
                run_to_success(store, job_id)
            store.forget(2**60, 60).result(LONG_S)
            store.close()
        made.append((path, map_pages(path), read(path)))
    assert {kind for _path, pages, _rows in made for kind, _name in pages.kinds.values()} == set(KINDS)
    return made


def read(path):
    with closing(sqlite3.connect(path)) as db:
        return {table: {row[0]: row for row in db.execute(f"SELECT rowid, * FROM {table}")} for table in NUMBERED}


@dataclass
class Damage:
    """`where` chooses among the pages of that kind; `how` says what is written there."""

    kind: str
    where: float
    how: str
    seed: int

    def do(self, data, pages):
        """Return the pages that it damages."""
        numbers = pages.of(self.kind)
        if not numbers:
            return set()
        page = numbers[int(self.where * len(numbers))]
        start, chance = (page - 1) * PAGE, random.Random(self.seed)
        if start >= len(data) or (page == 1 and self.how == "the end is missing"):
            return set()  # an empty file is a new one
        if self.how == "noise":
            data[start : start + PAGE] = chance.randbytes(PAGE)
        elif self.how == "zeros":
            data[start : start + PAGE] = bytes(PAGE)
        elif self.how == "another page":
            other = chance.randrange(len(data) // PAGE) * PAGE
            data[start : start + PAGE] = data[other : other + PAGE]
        elif self.how == "half":
            data[start + PAGE // 2 : start + PAGE] = chance.randbytes(PAGE // 2)
        elif self.how == "bytes":
            for _ in range(chance.randrange(1, 20)):
                data[start + chance.randrange(PAGE)] = chance.randrange(256)
        elif self.how == "bit":
            data[start + chance.randrange(PAGE)] ^= 1 << chance.randrange(8)
        elif self.how == "the end is missing":
            del data[start:]
            return set(range(page, len(pages.kinds) + 1))
        return {page}


damages = st.builds(
    Damage,
    kind=st.sampled_from(KINDS),
    where=st.floats(0, 1, exclude_max=True),
    how=st.sampled_from(("noise", "zeros", "another page", "half", "bytes", "bit", "the end is missing")),
    seed=st.integers(0, 2**20),
)


class Lines(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def open_and_check(path):
    """What a server does in the long run: it opens the file, checks it while it works, and opens it again."""
    for is_last in (False, True):
        db = disk.open_database(path)
        try:
            looking = check.Check(_fail)
            while looking.step(db):
                pass
        except sqlite3.DatabaseError:
            assert not is_last, "what was mended is damaged"
            disk.suspect(path)
        else:
            return
        finally:
            db.close()


def _fail(error):
    raise error


@settings(max_examples=min(settings().max_examples, 60))
@given(which=st.integers(0, 2), several=st.lists(damages, min_size=1, max_size=4))
def test_what_is_not_damaged_is_saved_and_the_store_works(wholes, which, several):
    whole, pages, before = wholes[which]
    lines = Lines()
    log = logging.getLogger("guarded.store")
    log.addHandler(lines)
    log.propagate = False
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "jobs.db"
            data = bytearray(whole.read_bytes())
            bad = set()
            for damage in several:
                bad |= pages.kinds.keys() & damage.do(data, pages)
            path.write_bytes(data)
            _examine(path, pages, before, bad, lines)
    finally:
        log.removeHandler(lines)
        log.propagate = True


def _examine(path, pages, before, bad, lines):
    try:
        open_and_check(path)
    except StoreTooNewError:
        assert 1 in bad  # its header says so
        return
    after = read(path)
    text = "\n".join(lines.lines)
    good = {
        table: {n: row for n, row in rows.items() if not pages.rows[table, n] & bad} for table, rows in before.items()
    }
    target(float(sum(len(rows) for rows in after.values())))
    missing = {n for n in good["jobs"] if n not in after["jobs"]}
    if missing:
        assert "set aside" in text
        assert "jobs were saved" in text or "cannot be read" in text
    # One bad page or a few cost only what was on them.
    if 1 not in bad:
        assert not missing
        for table in ("bodies", "transitions"):
            kept = {n for n in good[table] if before_job(before, table, n) in good["jobs"]}
            assert kept <= after[table].keys(), table
    jobs = list(after["jobs"].values())
    assert len({row[2] for row in jobs}) == len(jobs)
    for number, row in good["jobs"].items():
        if number not in after["jobs"]:
            continue
        now = after["jobs"][number]
        if row[4] in SETTLED:
            assert now == row  # ended once, for good
        elif now != row:
            assert number not in good["bodies"]  # lost what it was to do
            assert (now[4], "server_restarted" in str(now)) == ("failed", True)
    open_now = [row[0] for row in jobs if row[4] not in SETTLED]
    assert set(open_now) <= after["bodies"].keys()
    with closing(SqliteStore(path, Clock())) as store:
        assert_works(store)


def before_job(before, table, number):
    """The number of the job that a row belongs to."""
    if table == "bodies":
        return number
    job_id = before[table][number][2]
    return next((n for n, row in before["jobs"].items() if row[2] == job_id), None)
