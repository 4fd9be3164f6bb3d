"""The job store on PostgreSQL: what it refuses, and what becomes of jobs where the engine or a connection fails."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import PASSWORD, Server
from unit import stores
from unit.children import as_child
from unit.fakes import LONG_S, SetClock, new_id, new_job
from unit.store_steps import CANCELLED, Held, claim, run_to_success, submit
from unit.stores import ask, name_schema, only_postgres, open_store, server, until

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.doctor import checks
from comfyui_guarded.guard.errors import DiskFullError, GuardError, InternalError, ServerUnavailableError
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.settings import Settings, SettingsError, hide_password, rows
from comfyui_guarded.guard.store import (
    IdempotencyKey,
    Limits,
    Member,
    StoreLockedError,
    StoreTooNewError,
    StoreUnusableError,
    make_store,
    pause,
    postgres_held,
    schema,
)
from comfyui_guarded.guard.store import postgres_engine as engines
from comfyui_guarded.guard.store.postgres import PostgresStore
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_fleet import FleetStore

pytestmark = only_postgres


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture(autouse=True)
def _try_again_soon(monkeypatch):
    monkeypatch.setattr(pause, "PAUSE_S", 0.05)
    monkeypatch.setattr(pause, "LONGEST_PAUSE_S", 0.2)


def end_connections(store, name=None):
    """As a network that drops them: the engine ends our connections; of those, the writer's has the lock."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s "
        "AND (NOT %s OR pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory'))"
    )
    with contextlib.closing(server().connect()) as db:
        db.execute(query, [f"comfyui-guarded {store._engine._held.name}", name == "writer"])


def submitted_on_disk(path):
    return {job_id for (job_id,) in ask(path, "SELECT job_id FROM jobs")}


def test_nobody_reads_of_an_engine_that_the_one_who_writes_has_left(path, clock):
    """It may have been taken over from, and go on with what it had then."""
    store = open_store(path, clock)
    job_id = submit(store).job.job_id
    store.get(job_id).result(LONG_S)
    store.list_jobs(None, [JobState.QUEUED], 1).result(LONG_S)
    name = [f"comfyui-guarded {store._engine._held.name}"]

    def list_connections():
        with contextlib.closing(server().connect()) as db:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
            return {pid for (pid,) in db.execute(query, name).fetchall()}

    before = list_connections()
    assert len(before) >= 3
    end_connections(store, "writer")
    until(lambda: list_connections() - before and store.trouble is None)
    assert store.get(job_id).result(LONG_S).job_id == job_id
    store.list_jobs(None, [JobState.QUEUED], 1).result(LONG_S)
    until(lambda: len(list_connections() & before) == len(before) - 3)
    store.close()


# What is refused. ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server():
    """One that may be killed."""
    started = Server()
    yield started
    started.stop()


@pytest.mark.parametrize("name", ["fsync", "synchronous_commit"])
def test_an_engine_that_would_lose_what_was_told_is_refused(own_server, clock, name):
    own_server.kill()
    own_server.start(**{name: "off"})
    with pytest.raises(StoreUnusableError, match=f"{name} is off"):
        PostgresStore(read_address(own_server.url()), clock)
    own_server.kill()
    own_server.start()
    PostgresStore(read_address(own_server.url()), clock).close()


def test_a_session_that_was_another_connections_before_is_refused(own_server, clock):
    """As a pooler gives it that makes a session of each transaction."""
    with contextlib.closing(own_server.connect()) as db:
        db.execute("ALTER DATABASE postgres SET guarded.session = 'marked'")
        with pytest.raises(StoreUnusableError, match="pool_mode = session"):
            PostgresStore(read_address(own_server.url()), clock)
        db.execute("ALTER DATABASE postgres RESET guarded.session")
    PostgresStore(read_address(own_server.url()), clock).close()


def can_connect(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
def test_behind_a_pooler_a_store_works_or_says_why_not(own_server, clock, tmp_path, mode):
    """`GUARDED_PGBOUNCER` is a PgBouncer to try it with."""
    program = os.environ.get("GUARDED_PGBOUNCER")
    if program is None:
        pytest.skip("GUARDED_PGBOUNCER names none")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ini = tmp_path / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={own_server.port} user=guarded password='{PASSWORD}'\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = {mode}\n"
    )
    as_nobody = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    with open(ini) as config, subprocess.Popen([program, f"/dev/fd/{config.fileno()}"], pass_fds=[config.fileno()],
                                               **as_nobody) as pooler:  # fmt: skip
        try:
            url = own_server.url(port=port)
            until(lambda: can_connect(port))
            store = FleetStore(read_address(url), clock, Member("one", 60_000, 2), open_now=False)
            store.serve("local", 2)
            if mode == "session":
                assert store.trouble is None
                submit(store)
            else:
                assert "pool_mode = session" in store.trouble
            store.close()
        finally:
            pooler.kill()


@pytest.mark.parametrize("fault", ["password", "unreachable", "database"])
def test_an_engine_that_lets_nobody_in_is_told_without_the_password(clock, caplog, fault):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    url = {
        "password": server().url(password="wrong & secret"),
        "unreachable": server().url(port=free),
        "database": server().url().replace("/postgres", "/nobody"),
    }[fault]
    with pytest.raises(StoreUnusableError) as refused:
        make_store(url, Path("/"), clock)
    store = make_store(url, Path("/"), clock, open_now=False)
    store.serve("local", 2)
    refusal = store.submit(new_job(), 10).exception(LONG_S)
    said = f"{refused.value} {store.trouble} {refusal.details} {caplog.text} {store._engine.address!r}"
    store.close()
    assert isinstance(refusal, ServerUnavailableError)
    assert "password authentication failed" in said or "refused" in said or "does not exist" in said
    for secret in (PASSWORD, "wrong & secret", "wrong%20%26", "s3cret"):
        assert secret not in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://guarded:s3cret@db.internal/guarded",
        "postgresql://guarded:s3cr@et/s3cret:@db.internal/guarded?x=y",
        "postgresql://db.internal/guarded?user=a&password=s3cret&sslmode=require",
        "postgres://guarded:s3cret@a:1,b:2/guarded",
        "redis://x:s3cret@localhost",
        "postgresql://guarded:s3cret@db.internal:port/guarded",
        "postgresql://guarded:s3cret%zz@db.internal/guarded",
    ],
)
def test_no_setting_shows_the_password(tmp_path, url):
    shown = {name: value for name, value, _help in rows(Settings(store={"url": url}))}["store.url"]
    assert "s3cr" not in hide_password(url) + shown
    with contextlib.suppress(SettingsError):
        assert "s3cr" not in repr(read_address(url))
    with pytest.raises(SettingsError) as refused:
        make_store(url.replace("postgresql", "mysql").replace("postgres:", "mysql:"), tmp_path, Clock())
    assert "s3cr" not in str(refused.value) + refused.value.told


def test_an_address_that_is_none_is_a_setting_to_correct(tmp_path):
    for url in ("postgresql://guarded:s3cret%zz@db/guarded", "postgresql://guarded:s3cret@db/guarded?no_such_thing=1"):
        with pytest.raises(SettingsError, match=r"store\.url") as refused:
            make_store(url, tmp_path, Clock())
        assert "s3cret" not in str(refused.value) + refused.value.told


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"-m pip install") as refused:
        make_store("postgresql://guarded:s3cret@db/guarded", tmp_path, Clock())
    assert "psycopg" in refused.value.told
    assert "s3cret" not in str(refused.value)


def test_the_package_loads_only_where_the_setting_asks_for_it():
    code = "import comfyui_guarded.guard.store, comfyui_guarded.guard.doctor.checks\nprint('psycopg' in sys.modules)\n"
    assert subprocess.run(as_child(code), capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_database_of_a_later_version_is_left_as_it_is(path, clock):
    open_store(path, clock).close()
    with stores.look_into(path) as db:
        db.execute("UPDATE schema_version SET version = 999, works_since = 999")
    with pytest.raises(StoreTooNewError, match="999"):
        open_store(path, clock)
    assert ask(path, "SELECT version FROM schema_version") == [(999,)]


def describe(path):
    """Columns and indexes."""
    columns = ask(
        path,
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        "WHERE table_schema = current_schema() ORDER BY 1, 2",
    )
    indexes = ask(path, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1")
    plain = json.dumps([columns, indexes]).replace(name_schema(path), "schema")
    return json.loads(plain)


def test_a_database_of_the_version_before_becomes_one_of_today(path, tmp_path, clock, monkeypatch):
    """The last migration is one that PostgreSQL understands."""
    open_store(tmp_path / "fresh", clock).close()
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:-1])
    open_store(path, clock).close()
    before = describe(path)
    monkeypatch.undo()
    open_store(path, clock).close()
    assert before != describe(path) == describe(tmp_path / "fresh")


def test_one_server_at_a_time(path, clock):
    first = open_store(path, clock)
    with pytest.raises(StoreLockedError, match="another server"):
        open_store(path, clock)
    waiting = open_store(path, clock, open_now=False)
    waiting.serve("local", 2)
    assert "another server" in waiting.trouble
    assert waiting.unreadable_s == 0
    job_id = submit(first).job.job_id
    first.close()
    until(lambda: waiting.trouble is None)
    assert waiting.get(job_id).result(LONG_S).state is JobState.QUEUED
    waiting.close()


def test_who_comes_back_after_another_server_has_written_leaves_it_to_that_one(path, clock):
    first = open_store(path, clock)
    job_id = submit(first).job.job_id
    with contextlib.suppress(GuardError), Held(first):
        end_connections(first)
        second = open_store(path, clock)  # the lock went with the connection
        submit(second)
    second.close()
    until(lambda: first.trouble is not None and "end one of the two" in first.trouble)
    assert isinstance(first.submit(new_job(), 10).exception(LONG_S), ServerUnavailableError)
    assert first.recall(job_id) is None
    first.close()


def test_the_doctor_says_which_engine_it_is_and_how_far_away(path):
    fresh = Settings(store={"url": server().url(stores.make_schema(path))})
    (line,) = checks._check_store(None, fresh)
    assert line.level in ("ok", "warning")
    assert re.search(
        r"PostgreSQL \d+.* at postgresql://guarded:\*\*\*@127.* ms away.*the first start makes", line.message
    )
    open_store(path, Clock()).close()
    (line,) = checks._check_store(None, fresh)
    assert "first start" not in line.message
    (line,) = checks._check_store(None, Settings(store={"url": server().url(password="wr0ng")}))
    assert (line.level, line.check) == ("error", "store")
    assert "password authentication failed" in line.message
    assert "wr0ng" not in line.message


# Values. -----------------------------------------------------------------------------------------------------------


@settings(max_examples=min(settings().max_examples, 30))
@given(st.text(st.sampled_from("a\x00\U000f0000\U000f0001é'\\\"%?$1 "), min_size=1, max_size=8))
def test_every_text_comes_back_as_it_was(text):
    if not hasattr(test_every_text_comes_back_as_it_was, "store"):
        test_every_text_comes_back_as_it_was.store = open_store("/texts", Clock())
    store = test_every_text_comes_back_as_it_was.store
    facts = {"owner": text, "client_id": text, "user": text, "template": text, "metadata": {text: text}}
    job = submit(store, key=IdempotencyKey(new_id(), text), **facts).job
    (read,) = store._engine.read_list(lambda db: list_newest(db, text)).result(LONG_S)
    assert read == job
    assert (read.owner, read.client_id, read.user, read.template) == (text, text, text, text)
    assert store.get(text).result(LONG_S) is None


def list_newest(db, owner):
    from comfyui_guarded.guard.store.queries import list_jobs

    return list_jobs(db, owner, None, 1, None)


def test_what_no_column_can_hold_ends_as_an_error_of_its_own_and_harms_no_neighbour(path, clock):
    store = open_store(path, clock)
    with Held(store):
        before = store.submit(new_job(), 99)
        too_long = store.submit(new_job(owner=os.urandom(20_000).hex()), 99)  # for an index
        after = store.submit(new_job(), 99)
    assert isinstance(too_long.exception(LONG_S), InternalError)
    assert before.result(LONG_S).job.number == 1
    assert after.result(LONG_S).waiting.position == 2
    assert store.failing is None
    store.close()


def test_a_number_is_not_given_twice_although_its_job_is_forgotten(path, clock):
    store = open_store(path, clock)
    submitted = [submit(store).job for _ in range(3)]
    for job in submitted:
        store.settle(job.job_id, CANCELLED).result(LONG_S)
    assert store.forget(2**60, 10).result(LONG_S) == 3
    store.close()
    store = open_store(path, clock)
    later = submit(store).job
    assert later.number == 4
    assert later.event_id == 7
    store.close()


# Failures. ---------------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_made_again(path, clock):
    store = open_store(path, clock)
    job_id = submit(store).job.job_id
    for name in ("all", "writer"):
        end_connections(store, name)
        until(lambda: not isinstance(store.submit(new_job(), 99).exception(LONG_S), GuardError))
        until(lambda: store.find_entry(job_id).exception(LONG_S) is None)
    assert store.trouble is None
    assert store.list_jobs(None, None, 1000).result(LONG_S)[-1].job_id == job_id
    store.close()


def test_a_store_that_writes_and_has_no_connection_to_read_says_so_until_there_is_one(path, clock, monkeypatch):
    """Nobody is sent there meanwhile, who would ask again."""
    store = open_store(path, clock)

    def refuse(*_silent, **_session):
        raise psycopg.OperationalError("too many clients already")

    with monkeypatch.context() as patch:
        patch.setattr(store._engine._held, "connect", refuse)
        assert not store.lacks_readers
        assert isinstance(store.list_jobs(None, None, 10).exception(LONG_S), ServerUnavailableError)
        submit(store)
        time.sleep(1.5)
        assert store.lacks_readers
        assert store.trouble is None
    until(lambda: not store.lacks_readers)
    store.close()


class Submitters:
    """Threads that submit until they are stopped, each job once; what was acknowledged, and what was refused."""

    def __init__(self, store, count=4):
        self.store = store
        self.acknowledged, self.refused, self.odd = set(), [], []
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._done = [self._pool.submit(self._run) for _ in range(count)]

    def _run(self):
        while not self._over.is_set():
            new = new_job()
            try:
                self.store.submit(new, 10**9).result(LONG_S)
                self.acknowledged.add(new.job_id)
            except (ServerUnavailableError, DiskFullError) as error:
                self.refused.append(error)
                time.sleep(0.01)
            except BaseException as error:
                self.odd.append(error)
                raise

    def stop(self):
        self._over.set()
        for future in self._done:
            future.result(LONG_S)
        self._pool.shutdown()


def test_an_engine_that_is_killed_and_comes_back_has_every_acknowledged_job_and_each_verdict_once(
    own_server, clock, monkeypatch
):
    """Whoever ends a job while it is away hands that in again, as after a full disk."""
    monkeypatch.setattr(engines, "HOLD_S", 0.3)
    store = PostgresStore(read_address(own_server.url()), clock)
    told = []
    store.changed.subscribe(lambda job: told.append((job.job_id, job.event_id)))
    submitters = Submitters(store)
    for _ in range(3):
        ended = [claim(store, 10**9) for _ in range(3)]
        count = len(submitters.acknowledged)
        until(lambda count=count: len(submitters.acknowledged) > count + 20)
        own_server.kill()
        until(lambda: store.trouble is not None)
        assert isinstance(store.settle(ended[0], CANCELLED).exception(LONG_S), ServerUnavailableError)
        own_server.start()
        until(lambda: store.trouble is None)
        for job_id in ended:
            assert store.settle(job_id, CANCELLED).result(LONG_S).won
            store.release(job_id).result(LONG_S)
    submitters.stop()
    assert submitters.refused
    there = {}
    before = None
    while page := store.list_jobs(None, None, 1000, before).result(LONG_S):
        there.update({job.job_id: job for job in page})
        before = page[-1].number
    assert submitters.acknowledged <= set(there)
    assert len(told) == len(set(told)), "told twice"
    assert {job_id for job_id, _event in told} == set(there), "a change was not told"
    assert sum(job.state is JobState.CANCELLED for job in there.values()) == 9
    assert store._transitions.line.queued == sum(job.state is JobState.QUEUED for job in there.values())
    store.close()


class Proxy:
    """Stands between the store and the engine. Once `cut` is set, it ends the connection at a commit, after `passes`:
    before the engine has it, or after that, before the answer. So it does at `more` of
    the next ones that are signed. `word`: what tells a commit. While `flows` is not set nothing comes through, and
    nobody is told."""

    word = b"COMMIT"

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut, self.cuts, self.is_down = None, 0, False
        self.passes, self.more = 0, 0
        self.flows = threading.Event()
        self.flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                if self.is_down:
                    client.close()
                    continue
                engine = socket.create_connection(("127.0.0.1", self._port))
                state = {"answers": True, "signs": not self.cuts}
                for source, target, is_asking in ((client, engine, True), (engine, client, False)):
                    threading.Thread(target=self._pump, args=(source, target, is_asking, state), daemon=True).start()

    def _pump(self, source, target, is_asking, state):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                state["signs"] |= b"UPDATE epoch" in data
                is_commit = is_asking and self.cut and state["signs"] and self.word in data
                if is_commit and self.passes:
                    self.passes -= 1
                elif is_commit:
                    way, self.cut = self.cut, self.cut if self.more else None
                    self.more = max(self.more - 1, 0)
                    self.cuts += 1
                    if way == "before":
                        break
                    state["answers"] = False
                    target.sendall(data)
                    time.sleep(0.2)  # the engine commits
                    break
                if is_asking or state["answers"]:
                    target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self):
        self._listener.close()


def open_box(url, name):
    """A store that shares the database with others."""
    store = FleetStore(read_address(url), Clock(), Member(name, 600_000), open_now=False)
    store.serve("local", 2)
    assert store.trouble is None
    return store


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "in a fleet"])
@pytest.mark.parametrize("stays_away", [False, True], ids=["soon back", "away for longer"])
@pytest.mark.parametrize("way", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_told_as_it_ended(path, clock, monkeypatch, way, stays_away, is_shared):
    proxy = Proxy(server().port)
    url = server().url(stores.make_schema(path), port=proxy.port)
    store = open_box(url, "one") if is_shared else PostgresStore(read_address(url), clock)
    other = open_box(server().url(stores.make_schema(path)), "two") if is_shared else None
    monkeypatch.setattr(engines, "HOLD_S", 0.2 if stays_away else LONG_S)
    told, numbers = [], []
    for changes in (store.changed, store.arrived):
        changes.subscribe(lambda job: told.append((job.job_id, job.state)))
        changes.subscribe(lambda job: numbers.append(job.event_id))
    job_id = submit(store).job.job_id
    with monkeypatch.context() as patch:
        patch.setattr(store._engine, "_check", lambda _db: None)  # what it asks ends in COMMIT, too
        with Held(store):
            if other is not None:  # the commit whose answer is lost comes after this, and before `meanwhile`
                other.submit(new_job(), 10**9)
                until(lambda: stores.ask(path, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)])
            settled = store.settle(job_id, CANCELLED)
            new = new_job()
            submitted = store.submit(new, 99, IdempotencyKey("k", "d"))
            full = store.submit(new_job(), 0)
            proxy.is_down, proxy.passes, proxy.cut = stays_away, 1, way
        answers = [settled.exception(LONG_S), submitted.exception(LONG_S), full.exception(LONG_S)]
    assert proxy.cuts == 1
    meanwhile = submit(other).job.job_id if other is not None else None
    is_told = way == "after" and not stays_away
    assert [answer is None for answer in answers] == [is_told, is_told, False]
    proxy.is_down = False
    until(lambda: store.trouble is None)
    if is_told:
        assert settled.result().won
    else:
        assert all(isinstance(answer, GuardError) for answer in answers)
        # Handed in again, as the settler and a bot do.
        assert store.settle(job_id, CANCELLED).result(LONG_S).won
    again = store.submit(new_job(), 99, IdempotencyKey("k", "d")).result(LONG_S)
    assert again.replayed is (way == "after")
    assert not store.settle(job_id, CANCELLED).result(LONG_S).won
    assert told.count((job_id, JobState.CANCELLED)) == 1
    assert told.count((new.job_id, JobState.QUEUED)) == (1 if way == "after" else 0)
    until(lambda: meanwhile is None or (meanwhile, JobState.QUEUED) in told)
    assert numbers == list(range(1, len(numbers) + 1))
    for opened in (store, other):
        if opened is not None:
            opened.close()
    proxy.close()


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "in a fleet"])
def test_an_engine_that_says_nothing_is_given_up_and_found_again(path, clock, monkeypatch, is_shared):
    monkeypatch.setattr(engines, "READ_S", 1)
    monkeypatch.setattr(postgres_held, "SILENT_S", 2.0)
    monkeypatch.setattr(postgres_held, "CONNECT_S", 2)
    proxy = Proxy(server().port)
    url = server().url(stores.make_schema(path), port=proxy.port)
    with contextlib.closing(open_box(url, "one") if is_shared else PostgresStore(read_address(url), clock)) as store:
        job_id = submit(store).job.job_id
        assert store.get(job_id).result(LONG_S) is not None
        proxy.flows.clear()
        asked = [store.get(job_id) for _ in range(50)] + [store.list_queue(None), store.settle(job_id, CANCELLED)]
        refusals = [each.exception(LONG_S) for each in asked]
        assert {type(refusal) for refusal in refusals[-2:]} <= {ServerUnavailableError, InternalError}
        proxy.flows.set()

        def is_back():
            return store.trouble is None and store.get(job_id).exception(LONG_S) is None

        until(is_back)
        store.settle(job_id, CANCELLED).result(LONG_S)
        assert store.get(job_id).result(LONG_S).state is JobState.CANCELLED
    proxy.close()


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "in a fleet"])
@pytest.mark.parametrize("more", [1, 2])
def test_a_commit_is_told_as_it_ended_where_the_answers_to_the_next_ones_are_lost_too(path, clock, is_shared, more):
    proxy = Proxy(server().port)
    url = server().url(stores.make_schema(path), port=proxy.port)
    with contextlib.closing(open_box(url, "one") if is_shared else PostgresStore(read_address(url), clock)) as store:
        told = []
        store.changed.subscribe(lambda job: told.append(job.state))
        job_id = submit(store).job.job_id
        with Held(store):
            settled = store.settle(job_id, CANCELLED)
            proxy.passes, proxy.more, proxy.cut = 1, more, "after"
        assert settled.result(LONG_S).won
        assert proxy.cuts == 1 + more
        assert told == [JobState.QUEUED, JobState.CANCELLED]
    proxy.close()


_SUBMITTER = """
import os, threading
from unit.fakes import new_job
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.doctor import checks
from comfyui_guarded.guard.store.postgres import PostgresStore
from comfyui_guarded.guard.store.postgres_address import read_address
store = PostgresStore(read_address(sys.argv[1]), Clock())
def run():
    while True:
        job = store.submit(new_job(), 10**9).result().job
        os.write(1, job.job_id.encode() + bytes([10]))
for _ in range(4):
    threading.Thread(target=run).start()
"""


def test_a_server_that_is_killed_has_lost_nothing_that_it_acknowledged(path, clock):
    address = server().url(stores.make_schema(path))
    acknowledged = set()
    for _ in range(2):
        with subprocess.Popen(as_child(_SUBMITTER, address), stdout=subprocess.PIPE, text=True) as child:
            acknowledged |= {child.stdout.readline().strip() for _ in range(60)} - {""}
            child.kill()
            acknowledged |= {line.strip() for line in child.stdout if line.endswith("\n")}
    store = open_store(path, clock)  # its lock went with it
    assert len(acknowledged) >= 120
    assert acknowledged <= submitted_on_disk(path)
    assert store.queued == len(submitted_on_disk(path))
    store.close()


def test_every_change_that_was_told_survives_a_crash_of_the_engine(own_server, clock):
    """Not only submits and verdicts: the server goes on, and must not know of a run what the tables do not."""
    own_server.kill()
    own_server.start(wal_writer_delay="10s")  # what is not synced by its commit stays in the engine's memory
    with contextlib.closing(own_server.connect()) as db:
        db.execute("CREATE SCHEMA crashes")
    store = PostgresStore(read_address(own_server.url("crashes")), clock)
    job_id = submit(store).job.job_id
    steps = [
        (lambda: store.claim("local", 1), JobState.DISPATCHED),
        (lambda: store.start(job_id), JobState.RUNNING),
        (lambda: store.validate(job_id), JobState.VALIDATING),
        (lambda: store.settle(job_id, CANCELLED), JobState.CANCELLED),
    ]
    for step, state in steps:
        until(lambda step=step: step().exception(LONG_S) is None)
        own_server.kill()
        own_server.start(wal_writer_delay="10s")
        with contextlib.closing(own_server.connect("crashes")) as db:
            assert db.execute("SELECT state FROM jobs").fetchall() == [(state.value,)]
            assert db.execute("SELECT job_id FROM leases").fetchall() == [(job_id,)]
    until(lambda: store.release(job_id).exception(LONG_S) is None)
    store.close()


# Kept small. ---------------------------------------------------------------------------------------------------------


def bodies(path):
    return ask(path, "SELECT count(*) FROM bodies")[0][0]


def test_prompts_of_settled_jobs_go_by_their_age(path):
    clock = SetClock(1_800_000_000_000)
    store = open_store(path, clock, "power_cut", Limits(bodies_max_age_s=3600))
    job_id, stays = (submit(store).job.job_id for _ in range(2))
    claim(store)
    run_to_success(store, job_id)
    clock.ms += 3_700_000
    until(lambda: bodies(path) == 1)
    assert store.find_body(job_id).result(LONG_S)[0] is None
    assert store.find_body(stays).result(LONG_S)[0] is not None
    assert store.get(job_id).result(LONG_S).state is JobState.SUCCEEDED
    store.close()


def test_near_its_limit_the_first_settled_ones_go_and_new_jobs_have_room(path, clock, monkeypatch):
    from comfyui_guarded.guard.store import postgres_upkeep

    monkeypatch.setattr(postgres_upkeep, "MEASURE_S", 0.05)
    limit = 6 * 2**20
    store = open_store(path, clock, "power_cut", Limits(max_bytes=limit))
    until(lambda: store.size.bytes > 0)
    for _ in range(12):
        job_id = new_id()
        until(lambda job_id=job_id: not store.submit(new_job(job_id, body=os.urandom(2**20)), 99).exception(LONG_S))
        store.settle(job_id, CANCELLED).result(LONG_S)
    until(lambda: 1 <= bodies(path) <= 6)  # as soon as the sizes were measured again
    assert store.thinned[0] >= 6
    waiting = [store.submit(new_job(body=os.urandom(2**20)), 99).exception(LONG_S) for _ in range(12)]
    assert isinstance(waiting[-1], DiskFullError)
    store.close()
