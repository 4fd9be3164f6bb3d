"""Whatever lies where the server and the doctor read a file of ours: a clear word that names it, and soon."""

import argparse
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from unit.fakes import FakeHost

from comfyui_guarded import own_files
from comfyui_guarded.failure import NOTE, describe, note
from comfyui_guarded.guard import messages, owners
from comfyui_guarded.guard.access import sign_in
from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.access.keys import Keys
from comfyui_guarded.guard.access.tokens import Tokens
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.doctor.checks import examine
from comfyui_guarded.guard.doctor.command import gather
from comfyui_guarded.guard.doctor.facts import remember
from comfyui_guarded.guard.events.outbox import read_or_make_secret
from comfyui_guarded.guard.janitor import command as janitor_command
from comfyui_guarded.guard.janitor.marker import Marker
from comfyui_guarded.guard.settings import SettingsError, load, read_own_texts
from comfyui_guarded.guard.store import make_store
from comfyui_guarded.guard.templates.manifest import Template, TemplateError
from comfyui_guarded.guard.warmup.mark import Mark
from comfyui_guarded.own_files import FileError, MalformedFileError, UnreadableFileError

PACKAGE = Path(own_files.__file__).parent
NESTED = "[" * 20_000
DIGITS = "9" * 10_000


def _start_store(own: Path) -> None:
    store = make_store("", own, Clock(), open_now=False)
    try:
        store.serve("test", 3, None)
        store.count_open(None)
    finally:
        store.close()


def _start_template(own: Path) -> None:
    Template.read(own / "workflows" / "mine.toml")


#: What a start reads, by file, and whether it goes on without that file, and says so in the log.
READERS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "guarded.toml": (lambda own: load(own / "guarded.toml", {}), False),
    "keys.json": (lambda own: Keys(own, Clock()), True),
    "janitor.json": (lambda own: Marker(own, 0.0), True),
    "warming": (lambda own: Mark(own).read(), True),
    "webhook.secret": (read_or_make_secret, False),
    "token.key": (lambda own: Tokens(own, Clock()), False),
    "folders.key": (owners.use_key, False),
    "client_ids.key": (ClientIds.load, False),
    "messages/ru.json": (lambda own: messages.install(read_own_texts(own)), False),
    "workflows/mine.toml": (_start_template, False),
    "workflows/mine.json": (_start_template, False),
}
MANIFEST = """
outputs = ["2"]
title = { en = "x", ru = "x" }
description = { en = "x", ru = "x" }
parameters = {}
"""
_KEY = owners._key


@pytest.fixture(autouse=True)
def as_before():
    yield
    messages.install({})
    owners._key = _KEY


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listen(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def grow(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**33)


KINDS: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": pipe,
    "socket": listen,
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("not-mounted"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "gigabytes": grow,
}
CONTENTS: dict[str, bytes] = {
    "nested": NESTED.encode(),
    "nested JSON": f"{NESTED}{']' * 20_000}".encode(),
    "nested TOML": f"x = {NESTED}".encode(),
    "a name of many parts": f"a{'.a' * 100_000} = 1".encode(),
    "digits": DIGITS.encode(),
    "digits in JSON": f'[{{"created_at_ms": {DIGITS}, "first_start_ms": {DIGITS}}}]'.encode(),
    "digits in TOML": f"[queue]\nmax_jobs = {DIGITS}\n".encode(),
    "more digits in TOML": f"[queue]\nmax_jobs = 0x{'f' * 10_000}\n".encode(),
    "no text": b"\xff\xfe\x00",
    "characters that are none": b'{"name": "\\ud800", "x": "\\u0000"}',
    "a number that is none": b'{"first_start_ms": NaN, "adopted": false}',
    "another shape": b'{"off": 5, "host": [], "runs": [1], "prompt": {}}',
    "nothing": b"",
}

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")


def make_own(base: Path) -> Path:
    own = base / "user" / "__guarded"
    for folder in (own / "messages", own / "workflows", own / sign_in.FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    (own / "workflows" / "mine.toml").write_text(MANIFEST)
    (own / "workflows" / "mine.json").write_text('{"2": {"class_type": "X", "inputs": {}}}')
    return own


def start_and_examine(own: Path, name: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Read the file as a start does and as the doctor does. Returns what the start says; nothing else may happen."""
    caplog.clear()
    reader, goes_on = READERS[name]
    failure = None
    try:
        reader(own)
    except (SettingsError, FileError, TemplateError) as error:
        failure = describe(error, own, {}, ["127.0.0.1"])
    said = [record.getMessage() for record in caplog.records] if failure is None else [failure.message]
    assert failure is None or not goes_on, f"{name} turns the package off: {failure}"
    assert all(len(each) < 1000 for each in said)
    lines = examine(gather(own, {}, PACKAGE))
    assert all(len(line.message) < 1000 for line in lines)
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert not [line for line in lines if "This check failed" in line.message], lines
    return said


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_named_and_nobody_waits_for_it(tmp_path, caplog, kind):
    for number, name in enumerate(READERS):
        own = make_own(tmp_path / str(number))
        (own / name).unlink(missing_ok=True)
        KINDS[kind](own / name)
        said = start_and_examine(own, name, caplog)
        assert any(Path(name).name in each or Path(name).stem in each for each in said), (name, said)


@pytest.mark.parametrize("content", CONTENTS)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, caplog, content):
    for number, name in enumerate(READERS):
        own = make_own(tmp_path / str(number))
        (own / name).write_bytes(CONTENTS[content])
        said = start_and_examine(own, name, caplog)
        if content.startswith(("nested", "digits in", "more digits")) and not name.endswith(".key"):
            assert any(Path(name).stem in each for each in said), (name, said)


PIECES = [
    *'[]{}":,=\n.-',
    *(
        "'",
        "\\u0000",
        "1e999",
        "0x",
        "a",
        "native",
        "mode",
        "queue",
        "max_jobs",
        DIGITS,
        "runs",
        "first_start_ms",
        "true",
        "é",
    ),
]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(sorted(READERS)),
    st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=30).map(lambda parts: "".join(parts).encode()),
)
@example("guarded.toml", b'[queue]\nmax_jobs = "' + b"x" * 100_000 + b'"')
@example("guarded.toml", b'[store]\nurl = "sqlite:////tmp/' + b"x" * 5000 + b'"')
@example("guarded.toml", b'[store]\nurl = "sqlite:////tmp/\\u0000"')
@example("keys.json", b'[{"name": ' + b"9" * 4000 + b"}]")
def test_no_bytes_make_a_traceback(tmp_path_factory, caplog, name, content):
    own = make_own(tmp_path_factory.mktemp("box"))
    (own / name).write_bytes(content)
    start_and_examine(own, name, caplog)


@needs_pipes
@pytest.mark.parametrize("kind", [*KINDS, "long name"])
def test_a_job_database_that_is_no_file_is_an_error_for_the_doctor_and_the_store(tmp_path, caplog, kind):
    if kind == "gigabytes":
        return  # of zeros, which SQLite itself says is none
    own = make_own(tmp_path)
    url = f"sqlite:///{tmp_path}/{'x' * 5000}" if kind == "long name" else ""
    if not url:
        KINDS[kind](own / "guarded.db")
    lines = examine(gather(own, {"GUARDED_STORE__URL": url} if url else {}, PACKAGE))
    assert [line.level for line in lines if line.check == "store"] == ["error"], lines
    store = make_store(url, own, Clock(), open_now=False)
    try:
        store.serve("test", 3, None)
        ends_s = time.monotonic() + 60
        while (trouble := store.trouble) is None or "not been opened" in trouble:
            assert time.monotonic() < ends_s, trouble
            time.sleep(0.01)
        assert not [record for record in caplog.records if record.exc_info], caplog.text
    finally:
        store.close()


def test_of_every_file_that_cannot_be_read_the_error_is_one(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as raised:
        own_files.read_bytes(missing)
    assert not isinstance(raised.value, FileError)
    for path, expected in ((tmp_path, UnreadableFileError), (tmp_path / ("x" * 5000), UnreadableFileError)):
        with pytest.raises(expected):
            own_files.read_bytes(path)
    (tmp_path / "a.json").write_bytes(b'{"a":\n  [1,\n \xff]}')
    with pytest.raises(MalformedFileError, match=re.escape("a.json, line 3: it is not UTF-8")):
        own_files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a":\n  [1,\n ]}')
    with pytest.raises(MalformedFileError, match=r"a\.json, line 3: it is not JSON"):
        own_files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a":\n\n' + NESTED)
    with pytest.raises(MalformedFileError, match=r"a\.json, line 3: it is nested too deep"):
        own_files.read_json(tmp_path / "a.json")
    (tmp_path / "a.toml").write_text("a = 1\nb = = 2\n")
    with pytest.raises(MalformedFileError, match=r"a\.toml, line 2: it is not TOML"):
        own_files.read_toml(tmp_path / "a.toml")


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
in_order = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | st.booleans() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=9,
)


@given(in_order)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_in_order_is_read(tmp_path_factory, value: Any):
    path = tmp_path_factory.getbasetemp() / "in-order.json"
    path.write_text(json.dumps(value))
    assert own_files.read_json(path) == value


def test_a_name_of_a_few_parts_and_a_text_with_many_dots_are_in_order(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[a.b.c]\nd.e = '" + "x.y. " * 500 + "'\nkeep = [" + '"a.png", ' * 500 + "]\n")
    assert own_files.read_toml(path)[0]["a"]["b"]["c"]["d"]["e"].startswith("x.y")


@needs_pipes
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_the_janitor_on_the_command_line_deletes_nothing_where_the_job_database_is_no_file(tmp_path, kind):
    """Nobody knows then which results are still to be fetched."""
    own = make_own(tmp_path)
    result = tmp_path / "output" / "a.png"
    result.parent.mkdir()
    result.write_bytes(b"x")
    os.utime(result, (0, 0))
    KINDS[kind](own / "guarded.db")
    parser = argparse.ArgumentParser()
    janitor_command.add_arguments(parser)
    wanted = parser.parse_args(["--output", str(result.parent), "--user", str(own.parent), "--adopt-existing"])
    said: list[str] = []
    assert janitor_command.run(wanted, {}, PACKAGE, said.append) == 2
    assert "not a job database" in said[-1]
    assert result.exists()


@needs_pipes
def test_what_a_start_writes_waits_for_nobody_who_might_read_it(tmp_path):
    own = make_own(tmp_path)
    for name in ("janitor", NOTE.removesuffix(".json"), "draining", "warming", "token"):
        for suffix in (".part", ".new", ".json.part"):
            os.mkfifo(own / f"{name}{suffix}")
    Marker(own, 0.0).adopt()
    Tokens(own, Clock())
    Mark(own).begin("x")
    why = describe(SettingsError("x"), own, {}, [])
    note(own, why, {"host": {}, "output": None, "temp": None, "input": None, "models": []})
    assert json.loads((own / NOTE).read_text())["off"]
    remember(own, FakeHost())
    assert json.loads((own / "janitor.json").read_text())["adopted"] is True
    assert "off" not in json.loads((own / NOTE).read_text())
