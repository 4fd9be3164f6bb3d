"""The depot: what `files.url` may be, and that a file in it is the file that was put in, or none."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit import stores
from unit.children import as_child
from unit.fakes import LONG_S, new_job
from unit.store_steps import claim, run_to_success, submit

from comfyui_guarded.guard.depot import Depot, depot, make_key, objects, read_address, reader
from comfyui_guarded.guard.depot.outcomes import Depositor, Deposits
from comfyui_guarded.guard.depot.reader import Reader
from comfyui_guarded.guard.depot.results import Results
from comfyui_guarded.guard.doctor.depot import examine_depot
from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.files.inputs import Inputs
from comfyui_guarded.guard.job import Artifact, Result
from comfyui_guarded.guard.outgoing import StoredFile
from comfyui_guarded.guard.settings import Settings, SettingsError, hide_password, rows
from comfyui_guarded.guard.store.outbox import DeliveryState

LARGE = depot.WHOLE_BYTES + reader.PART_BYTES + 12345


def open_depot(folder):
    folder.mkdir(exist_ok=True)
    made = Depot(read_address(folder.as_uri()))
    made.look()
    assert made.trouble is None
    return made


def put(store, data, name="a.png"):
    key = make_key(hashlib.sha256(data).hexdigest(), name)
    store.put(key, io.BytesIO(data))
    return key


# The setting. ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://KEY:s3cret/of+it@bucket/prefix",
        "s3://KEY@bucket/prefix",
        "s3://KEY:s3cret@bucket?secret=s3cret",
        "s3://KEY:s3cret@bucket?endpoint=127.0.0.1:9000",
        "s3://KEY:s3cret@bucket:9000/prefix",
        "file://shared/files",
        "file:///",
        "file:shared",
        "file:///shared?x=1",
        "/shared",
        "redis://:s3cret@localhost",
        "https://KEY:s3cret@localhost/bucket",
        "s3://[KEY:s3cret@bucket",
    ],
)
def test_an_address_that_is_none_is_a_setting_to_correct_and_its_secret_is_not_told(url):
    with pytest.raises(SettingsError, match=r"files\.url") as refused:
        read_address(url)
    assert "s3cret" not in str(refused.value) + refused.value.told


@pytest.mark.parametrize(
    "url", ["s3://KEY:s3cret@bucket/a/b?endpoint=http://127.0.0.1:9&region=eu", "s3://KEY:s3cret%2Fof%2Bit@bucket"]
)
def test_no_setting_and_no_trouble_shows_the_secret(url, caplog):
    shown = {name: value for name, value, _help in rows(Settings(files={"url": url}))}["files.url"]
    address = read_address(url)
    assert "s3cret" not in hide_password(url) + shown + repr(address) + address.shown
    assert address.secret in ("s3cret", "s3cret/of+it")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SettingsError, match=r"-m pip install") as refused:
        read_address("s3://KEY:s3cret@bucket")
    assert "obstore" in refused.value.told
    assert "s3cret" not in str(refused.value)


def test_the_package_loads_only_where_the_setting_asks_for_it():
    code = (
        "import comfyui_guarded.guard.files.storage, comfyui_guarded.guard.submit.admission\n"
        "import comfyui_guarded.guard.doctor.checks\n"
        "print('obstore' in sys.modules)\n"
    )
    assert subprocess.run(as_child(code), capture_output=True, text=True, check=True).stdout == "False\n"


# Files. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, depot.WHOLE_BYTES, depot.WHOLE_BYTES + 1, LARGE])
def test_what_is_put_in_comes_out_whole_and_in_parts(tmp_path, size):
    store = open_depot(tmp_path / "depot")
    data = os.urandom(size)
    key = put(store, data)
    found = store.stat(key)
    assert (found.key, found.bytes) == (key, size)
    assert store.fetch(key, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    for again in (store, open_depot(tmp_path / "depot")):  # the second has not seen it being put
        handle, modified_s = again.open(key, size)
        assert modified_s == found.modified_s
        assert handle.read() == data
        handle.seek(size // 3)
        assert handle.read(1000) == data[size // 3 :][:1000]
    assert [item.key for item in store.list_all()] == [key]
    store.delete(key)
    store.delete(key)
    assert store.stat(key) is None
    assert store.open(key, size) is None
    assert not store.fetch(key, tmp_path / "none")


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_file_with_other_bytes_than_its_name_says_never_goes_in(tmp_path, size):
    store = open_depot(tmp_path / "depot")
    key = make_key(hashlib.sha256(b"something else").hexdigest(), "a.png")
    with pytest.raises(objects.WrongBytesError):
        store.put(key, io.BytesIO(os.urandom(size)))
    assert os.listdir(tmp_path / "depot") == []
    assert not store.is_away, "that is no fault of the depot's"


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("how", ["changed", "cut", "longer"])
def test_a_file_that_was_changed_in_the_depot_is_none(tmp_path, size, how):
    data = os.urandom(size)
    key = put(open_depot(tmp_path / "depot"), data)
    other = {"changed": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "longer": data + b"x"}[how]
    (tmp_path / "depot" / key).write_bytes(other)
    store = open_depot(tmp_path / "depot")
    assert store.open(key, size) is None
    assert not store.fetch(key, tmp_path / "back")


def test_a_large_file_that_changes_under_its_old_tag_is_not_served(tmp_path):
    """As where a disk forgets: nobody has written to it, so its times are those of before."""
    store, data = open_depot(tmp_path / "depot"), os.urandom(LARGE)
    key = put(store, data)
    path = tmp_path / "depot" / key
    handle, _modified_s = store.open(key, LARGE)
    assert handle.read(10) == data[:10]
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(5_000_000)
        file.write(bytes([data[5_000_000] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    handle.seek(4_999_000)
    with pytest.raises(ConnectionError):
        handle.read(5000)
    handle.seek(LARGE - 7)
    assert handle.read() == data[-7:], "what is right is served"
    assert store.open(key, LARGE) is None, "its bytes are compared anew"
    assert not store.is_away


@pytest.mark.parametrize("is_new", [True, False], ids=["another process", "the one that has put it in"])
def test_a_prompts_file_that_the_depot_has_wrongly_is_put_in_anew(tmp_path, is_new):
    """A 200 means that the files are there, and not that something of their size is."""
    store, folder = open_depot(tmp_path / "depot"), tmp_path / "input"
    folder.mkdir()
    data = os.urandom(1000)
    key = put(store, data)
    (folder / key).write_bytes(data)
    (tmp_path / "depot" / key).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    store = open_depot(tmp_path / "depot") if is_new else store
    host = SimpleNamespace(input_folder=lambda: folder)
    Inputs(store, host, None, None, 3600, None)._put(key)
    assert (tmp_path / "depot" / key).read_bytes() == data


def test_a_file_that_the_disk_cannot_take_is_a_fault_of_the_disk(tmp_path):
    store = open_depot(tmp_path / "depot")
    key = put(store, b"data")
    with pytest.raises(FileNotFoundError):
        store.fetch(key, tmp_path / "nowhere" / "back")
    assert not store.is_away


def test_a_depot_that_is_away_refuses_says_so_once_and_is_noticed_when_it_is_back(tmp_path, caplog):
    store = open_depot(tmp_path / "depot")
    returns = []
    store.returned.subscribe(lambda: returns.append(True))
    key = put(store, b"data")
    (tmp_path / "depot").rename(tmp_path / "away")
    for ask in (
        lambda: store.stat(key),
        lambda: put(store, b"other"),
        lambda: store.fetch(key, tmp_path / "back"),
        lambda: store.open(key, 4),
    ):
        with pytest.raises(ServerUnavailableError) as refused:
            ask()
        assert refused.value.status == 503
        assert str(tmp_path) not in refused.value.message + refused.value.details
    store.look()
    assert store.is_away
    assert sum("cannot be used" in record.message for record in caplog.records) == 1
    (tmp_path / "away").rename(tmp_path / "depot")
    store.look()
    assert not store.is_away
    assert returns == [True]
    assert store.stat(key).bytes == 4


def test_a_depot_that_fails_while_a_file_is_read_ends_that(tmp_path):
    store = open_depot(tmp_path / "depot")
    data = os.urandom(LARGE)
    handle, _modified_s = store.open(put(store, data), LARGE)
    assert handle.read(10) == data[:10]
    (tmp_path / "depot").rename(tmp_path / "away")
    handle.seek(LARGE // 2)
    with pytest.raises(ConnectionError):
        handle.read(10)
    assert store.is_away


def test_nobody_waits_for_a_depot_that_has_failed_until_it_has_answered_a_look(tmp_path, monkeypatch):
    store = open_depot(tmp_path / "depot")
    key = put(store, b"data")
    store.note_slow(30.0)
    asked = []
    monkeypatch.setattr(store, "_stat", lambda key: asked.append(key))
    with pytest.raises(ServerUnavailableError):
        store.stat(key)
    assert asked == []
    monkeypatch.undo()
    store.look()
    assert store.stat(key).bytes == 4


def test_a_folder_that_is_not_there_is_trouble_from_the_start_and_not_made(tmp_path):
    store = Depot(read_address((tmp_path / "none").as_uri()))
    store.look()
    assert "none" in store.trouble
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").mkdir()
    store.look()
    assert store.trouble is None
    assert abs(store.skew_s) < 60
    assert os.listdir(tmp_path / "none") == []


def test_an_empty_folder_in_the_place_of_the_one_that_was_used_is_trouble(tmp_path):
    """As with a disk that is not mounted: what went there would be in nobody's depot."""
    folder, known = tmp_path / "depot", tmp_path / "own" / "depot.id"
    folder.mkdir()
    first = Depot(read_address(folder.as_uri()), known)
    first.look()
    key = put(first, b"data")
    folder.rename(tmp_path / "unmounted")
    folder.mkdir()
    again = Depot(read_address(folder.as_uri()), known)
    other = Depot(read_address(folder.as_uri()), tmp_path / "other" / "depot.id")
    for store in (first, again):
        store.look()
        assert "not be mounted" in (store.trouble or store.failing)
    assert os.listdir(folder) == []
    folder.rmdir()
    (tmp_path / "unmounted").rename(folder)
    for store in (first, again, other):
        store.look()
        assert not store.is_away
        assert store.stat(key).bytes == 4
    assert len(list(first.list_all())) == 1
    assert known.read_text() == (tmp_path / "other" / "depot.id").read_text()


class Moving(io.BytesIO):
    """A file during whose second part the disk of the folder goes, and leaves its bare place."""

    def __init__(self, data, folder, away):
        super().__init__(data)
        self._folder, self._away = folder, away

    def read(self, size=-1):
        if self.tell() > depot.WHOLE_BYTES and self._folder is not None:
            self._folder.rename(self._away)
            self._folder.mkdir()
            self._folder = None
        return super().read(size)


def test_a_folder_whose_disk_goes_while_it_is_in_use_gets_nothing_and_says_of_no_file_that_it_is_gone(tmp_path):
    """A put that is told must be found again once the disk is back."""
    folder = tmp_path / "depot"
    folder.mkdir()
    store = Depot(read_address(folder.as_uri()), tmp_path / "own" / "depot.id")
    store.look()
    key = put(store, b"data")
    data = os.urandom(LARGE)
    large = make_key(hashlib.sha256(data).hexdigest(), "a.png")
    with pytest.raises(ServerUnavailableError):
        store.put(large, Moving(data, folder, tmp_path / "away"))
    store._is_broken = False  # as for whoever asks at the same time
    for ask in (
        lambda: put(store, b"other"),
        lambda: store.stat(key),
        lambda: store.open(key, 4),
        lambda: store.fetch(key, tmp_path / "back"),
    ):
        with pytest.raises(ServerUnavailableError):
            ask()
        store._is_broken = False
    assert os.listdir(folder) == []
    folder.rmdir()
    with pytest.raises(ServerUnavailableError):
        put(store, b"other")
    assert not folder.exists(), "it is not made"
    (tmp_path / "away").rename(folder)
    store.look()
    assert store.stat(key).bytes == 4
    store.put(large, io.BytesIO(data))
    assert store.stat(large).bytes == LARGE


def test_a_box_that_has_used_no_other_folder_uses_that_of_its_fleet_or_none(tmp_path):
    """Two machines with one address, on one of which the shared disk is not mounted."""
    marks = {}

    def agree(place, mark):
        return marks.setdefault(place, mark) if mark else marks.get(place, "")

    folder = tmp_path / "depot"
    folder.mkdir()
    first = Depot(read_address(folder.as_uri()), tmp_path / "first" / "depot.id", agree)
    first.look()
    assert first.trouble is None
    assert marks == {str(folder): (folder / "guarded-depot").read_text()}
    folder.rename(tmp_path / "unmounted")
    folder.mkdir()
    second = Depot(read_address(folder.as_uri()), tmp_path / "second" / "depot.id", agree)
    second.look()
    assert "not be mounted" in second.trouble
    assert os.listdir(folder) == []
    assert not (tmp_path / "second" / "depot.id").exists()
    # It was marked by a version that did not ask.
    other = Depot(read_address(folder.as_uri()), tmp_path / "other" / "depot.id")
    other.look()
    again = Depot(read_address(folder.as_uri()), tmp_path / "other" / "depot.id", agree)
    again.look()
    assert other.trouble is None
    assert f"Write {marks[str(folder)]} into {folder / 'guarded-depot'}" in again.trouble
    shutil.rmtree(folder)
    (tmp_path / "unmounted").rename(folder)
    second.look()
    assert not second.is_away


def test_while_its_fleet_cannot_be_asked_a_box_uses_no_folder_that_it_does_not_know(tmp_path):
    def agree(_place, _mark):
        raise ServerUnavailableError("not now")

    store = Depot(read_address(tmp_path.as_uri()), tmp_path / "own" / "depot.id", agree)
    store.look()
    assert store.trouble
    assert os.listdir(tmp_path) == []


def test_a_server_that_is_not_there_is_trouble_and_its_secret_is_not_told(caplog):
    store = Depot(read_address("s3://KEY:s3cret@bucket?endpoint=http://127.0.0.1:1&region=us-east-1"))
    store.look()
    assert "127.0.0.1" in store.trouble
    assert "s3cret" not in store.trouble + caplog.text


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 320), st.integers(-1, 320)), max_size=20))
def test_a_reader_reads_like_a_file_in_memory(data, steps):
    here = io.BytesIO(data)
    there = Reader(lambda begin, length: data[begin : begin + length], len(data))
    for at, size in steps:
        here.seek(at)
        there.seek(at)
        assert (there.read(size), there.tell()) == (here.read(size), here.tell())


def test_the_doctor_says_how_it_stands(tmp_path, monkeypatch):
    folder = tmp_path / "depot"

    def examine(**facts):
        return [(line.level, line.message) for line in examine_depot(Settings(files=facts).files)]

    ((level, message),) = examine(url=folder.as_uri())
    assert (level, "there is no folder" in message) == ("error", True)
    folder.mkdir()
    assert [level for level, _message in examine(url=folder.as_uri())] == ["ok"]
    assert [level for level, _message in examine(url=folder.as_uri(), redirect=True)] == ["warning", "ok"]
    ((level, message),) = examine(url="s3://KEY:s3cret@bucket?endpoint=http://127.0.0.1:1")
    assert (level, "s3cret" in message) == ("error", False)
    ((level, message),) = examine(url="s3:/KEY:s3cret@bucket")
    assert (level, "s3cret" in message) == ("error", False)
    wall = time.time
    monkeypatch.setattr(depot.time, "time", lambda: wall() - 3600)
    (skewed, _ok) = examine(url=folder.as_uri())
    assert skewed[0] == "error"
    assert "+3600 s off" in skewed[1]


# An S3 that has a bad minute. ---------------------------------------------------------------------------------


class BadS3(BaseHTTPRequestHandler):
    """Keeps objects in memory. `faults`: what becomes of the next requests of a method, one after the other; `is_gone`:
    its bucket is not there."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict] = {}
    faults: ClassVar[dict] = {}
    is_gone: ClassVar[bool] = False

    def _answer(self, status, body=b"", told=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if told is None else told))
        self.end_headers()
        self.wfile.write(body)

    def _begin(self):
        waiting = self.faults.get(self.command)
        fault = "no bucket" if self.is_gone else waiting.pop(0) if waiting else None
        if fault in ("slow down", "no bucket"):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, code = (503, b"SlowDown") if fault == "slow down" else (404, b"NoSuchBucket")
            self._answer(status, b"" if self.command == "HEAD" else b"<Error><Code>%b</Code></Error>" % code)
        return fault

    def do_PUT(self):
        if self._begin() not in ("slow down", "no bucket"):
            self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200, ETag='"tag"')

    def do_POST(self):
        """Delete some."""
        keys = re.findall(rb"<Key>([^<]+)</Key>", self.rfile.read(int(self.headers["Content-Length"])))
        for key in keys:
            self.objects.pop(f"/bucket/{key.decode()}", None)
        told = b"".join(b"<Deleted><Key>%b</Key></Deleted>" % key for key in keys)
        self._answer(200, b'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">%b</DeleteResult>' % told)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        fault = self._begin()
        if fault in ("slow down", "no bucket"):
            return
        data = self.objects.get(self.path)
        if data is None:
            self._answer(404)
            return
        about = {"ETag": '"tag"', "Last_Modified": formatdate(usegmt=True)}
        if self.command == "HEAD":
            self._answer(200, told=len(data), **about)
            return
        status, begin, end = 200, 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            status, begin, end = 206, int(asked[1]), min(int(asked[2]) + 1, len(data))
            about["Content_Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        body = data[begin:end]
        if fault == "other bytes":
            body, fault = body[:-1] + bytes([body[-1] ^ 1]), None
        sent = body[: len(body) // 2] if fault else body
        self.close_connection = bool(fault)
        self._answer(status, sent, told=len(sent if fault == "less" else body), **about)

    def log_message(self, *_words):
        pass


@pytest.fixture
def bad_s3():
    BadS3.objects, BadS3.faults, BadS3.is_gone = {}, {}, False
    with ThreadingHTTPServer(("127.0.0.1", 0), BadS3) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"s3://KEY:s3cret@bucket?endpoint=http://127.0.0.1:{server.server_port}&region=us-east-1"
        store = Depot(read_address(url))
        store.look()
        assert store.trouble is None
        yield store
        server.shutdown()


def test_an_s3_that_says_slow_down_for_a_moment_is_not_away(bad_s3, tmp_path):
    BadS3.faults = {"PUT": 3 * ["slow down"], "GET": 3 * ["slow down"], "HEAD": 3 * ["slow down"]}
    key = put(bad_s3, b"data")
    assert bad_s3.fetch(key, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"data"
    assert not bad_s3.is_away


@pytest.mark.parametrize("fault", ["cut off", "less"])
def test_an_answer_that_was_cut_short_says_nothing_of_the_file(bad_s3, tmp_path, fault):
    """Else a result would be gone for good, or a job's input missing, for what the network has done."""
    key = put(bad_s3, b"the whole file")
    for ask in (lambda: bad_s3.open(key, 14), lambda: bad_s3.fetch(key, tmp_path / "back")):
        BadS3.faults = {"GET": 20 * [fault]}
        with pytest.raises(ServerUnavailableError):
            ask()
        BadS3.faults = {}
        bad_s3.look()
    handle, _modified_s = bad_s3.open(key, 14)
    assert handle.read() == b"the whole file"


def test_a_bucket_that_goes_says_of_no_file_that_it_is_gone(bad_s3, tmp_path):
    """Else results were answered with 410, and jobs ended without their inputs, for a disk that a server has lost."""
    key = put(bad_s3, b"the whole file")
    asks = bad_s3.stat, lambda key: bad_s3.open(key, 14), lambda key: bad_s3.fetch(key, tmp_path / "back")
    for ask in (*asks, lambda key: put(bad_s3, b"another")):
        BadS3.is_gone = True
        with pytest.raises(ServerUnavailableError):
            ask(key)
        assert bad_s3.is_away
        BadS3.is_gone = False
        bad_s3.look()
        assert not bad_s3.is_away
    assert bad_s3.stat(key).bytes == 14
    assert bad_s3.stat(make_key("0" * 64, "a.png")) is None


@pytest.mark.parametrize("size", [1000, LARGE])
def test_bytes_that_have_changed_on_their_way_are_asked_for_again(bad_s3, tmp_path, size):
    data = os.urandom(size)
    key = make_key(hashlib.sha256(data).hexdigest(), "a.png")
    BadS3.objects[f"/bucket/{key}"] = data
    BadS3.faults = {"GET": ["other bytes"]}
    handle, _modified_s = bad_s3.open(key, size)
    BadS3.faults = {"GET": ["other bytes"]}
    assert handle.read() == data
    BadS3.faults = {"GET": ["other bytes"]}
    assert bad_s3.fetch(key, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert not bad_s3.is_away


# What the store keeps of it. ---------------------------------------------------------------------------------


def artifact(index=0):
    return Artifact(index, "9", "image", f"x_{index}.png", "", "output", 4, hashlib.sha256(b"data").hexdigest())


@stores.both
def test_what_the_depot_lacks_is_written_with_the_verdict_and_goes_once_it_is_in(path, clock):
    store = stores.open_store(path, clock)
    job_id = submit(store).job.job_id
    claim(store)
    result = Result(
        artifacts=(artifact(), artifact(1)), unstored=((0, False, "here"), (1, True, "here"), (1, False, "there"))
    )
    run_to_success(store, job_id, result)
    store.close()
    store = stores.open_store(path, clock)
    due = store.find_due_deposits("here", clock.now_ms(), 10, under_way=[]).result(LONG_S).deliveries
    assert [(item.job_id, item.artifact, item.is_copy) for item in due] == [(job_id, 0, False), (job_id, 1, True)]
    later = replace(due[0], attempts=1, next_at_ms=clock.now_ms() + 60_000)
    store.record_deposit(later).result(LONG_S)
    over = replace(due[1], attempts=1, state=DeliveryState.DELIVERED, ended_at_ms=clock.now_ms())
    store.record_deposit(over).result(LONG_S)
    found = store.find_due_deposits("here", clock.now_ms(), 10, under_way=[]).result(LONG_S)
    assert found.deliveries == []
    assert found.next_at_ms == later.next_at_ms
    store.hurry_deposits("here").result(LONG_S)
    found = store.find_due_deposits("here", clock.now_ms(), 10, under_way=[]).result(LONG_S)
    assert [item.number for item in found.deliveries] == [due[0].number]
    assert store.count_deposits("here").result(LONG_S) == 1
    others = store.find_due_deposits("here", clock.now_ms(), 10, under_way=[due[0].number]).result(LONG_S)
    assert others.deliveries == []
    store.forget(clock.now_ms() + 1, 10).result(LONG_S)
    assert store.count_deposits("here").result(LONG_S) == 0
    store.close()


@stores.both
def test_uploads_are_written_with_their_job_and_found_by_their_owner_alone(path, clock):
    store = stores.open_store(path, clock)
    files = (StoredFile("a.png", "1" * 64 + ".png", 7), StoredFile("b/c.png", "2" * 64, 8))
    submit(store, owner="one", inputs=files)
    submit(store, owner="one", inputs=(StoredFile("a.png", "3" * 64 + ".png", 9),))
    paths = ["a.png", "b/c.png", "d.png"]
    assert store.find_uploads("one", paths).result(LONG_S) == {"a.png": "3" * 64 + ".png", "b/c.png": "2" * 64}
    assert store.find_uploads("two", paths).result(LONG_S) == {}
    job_id = new_job().job_id
    with pytest.raises(Exception, match=r"full|limit|wait"):
        store.submit(new_job(job_id, owner="two", inputs=files), 1).result(LONG_S)
    assert store.find_uploads("two", paths).result(LONG_S) == {}
    store.close()


class OneFolder:
    """A host whose results are all in one folder."""

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir()

    def file(self, _kind, _subfolder, filename):
        return self._folder / filename


@stores.both
async def test_what_a_box_has_left_is_put_in_by_whoever_has_its_disk_and_by_nobody_given_up_at_once(
    path, clock, tmp_path
):
    """A box may come back under another name, and another machine may have its own."""
    store = stores.open_store(path, clock)
    job_id = submit(store).job.job_id
    claim(store)
    run_to_success(store, job_id, Result(artifacts=(artifact(),), unstored=((0, False, "before"),)))
    depot_here = open_depot(tmp_path / "depot")
    key = make_key(artifact().sha256, artifact().filename)

    def make(folder, name, *names):
        """Deposits of a box that was called `name` first, and has the last of the names now."""
        called = [name, *names]
        made = Deposits(depot_here, Results(OneFolder(tmp_path / folder)), store, clock, 10, lambda: called[-1])
        return made, Depositor(made, depot_here, store, has_others=True), called

    def list_due(name):
        found = store.find_due_deposits(name, clock.now_ms(), 10, under_way=[]).result(LONG_S)
        return found.deliveries

    # The other machine, which has that name now and not the file.
    _deposits, depositor, _names = make("theirs", "before")
    (due,) = list_due("before")
    attempt = await depositor.attempt(due)
    assert not attempt.delivered
    assert not attempt.final
    assert (await depositor.attempt(replace(due, attempts=99))).final, "not for ever"
    # A stranger takes nothing that it does not have.
    strangers, _depositor, _names = make("strangers", "stranger")
    await strangers.adopt(0)
    assert [each.number for each in list_due("before")] == [due.number]
    # The box itself.
    ours, depositor, names = make("ours", "before")
    (tmp_path / "ours" / artifact().filename).write_bytes(b"data")
    names.append("now")
    assert await ours.adopt(0) == due.number
    assert await ours.adopt(due.number) == 0
    (adopted,) = list_due("now")
    assert list_due("before") == []
    assert (await depositor.attempt(adopted)).delivered
    assert depot_here.stat(key).bytes == 4
    store.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guarded.db"
