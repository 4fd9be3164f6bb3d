"""Keys and sign-ins of a fleet: what one box or a command changes holds on all."""

import json
import logging
from argparse import ArgumentParser, Namespace
from concurrent.futures import Future
from dataclasses import asdict

import pytest
from unit import stores
from unit.stores import make_schema, only_postgres, server
from unit.test_fleet_store import kill, open_box

from comfyui_guarded.guard.access import sign_in
from comfyui_guarded.guard.access.access import Access, Request
from comfyui_guarded.guard.access.command import add_arguments, run
from comfyui_guarded.guard.access.keys import FILE, Key, KeyFile, Keys, KeysError, create, limit, revoke
from comfyui_guarded.guard.access.shared_keys import SharedKeys
from comfyui_guarded.guard.access.tokens import Tokens
from comfyui_guarded.guard.client import KeyLimits
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import ServerUnavailableError, UnauthorizedError
from comfyui_guarded.guard.settings import AccessSettings
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_once import OnceStore

SECRET = "d1f6a3c2" * 8


class Table:
    """A table of keys in memory, whose database can be away."""

    def __init__(self):
        self.rows, self.last, self.reads, self.is_away = {}, 0, 0, False

    def read_keys(self, known):
        return self._answer(lambda: None if known == self.last else (self.last, dict(self.rows)))

    def change_keys(self, edit):
        def change():
            edit(dict(self.rows))  # an engine may begin again
            told, changed = edit(dict(self.rows))
            self.rows |= changed
            self.last += bool(changed)
            return told

        return self._answer(change)

    def _answer(self, ask):
        self.reads += 1
        future = Future()
        if self.is_away:
            future.set_exception(ServerUnavailableError("away"))
        else:
            future.set_result(ask())
        return future


def wanted(name, **facts):
    defaults = {"key_id": "", "scope": "submit", "sha256": "", "created_at_ms": Clock().now_ms(), "webhook_secret": ""}
    return Key(name=name, **{**defaults, **facts})


def join(own, table):
    own.mkdir(exist_ok=True)
    keys = Keys(own, Clock())
    keys.join(SharedKeys(table))
    keys.refresh()
    return keys


@pytest.fixture
def table():
    return Table()


def test_what_one_box_makes_limits_or_revokes_holds_on_another_at_its_next_look(tmp_path, table):
    place = SharedKeys(table)
    here, there = join(tmp_path / "a", table), join(tmp_path / "b", table)
    key, secret = create(place, wanted("bot", jobs_per_minute=6.0, allow_nodes=("A", "B*")), same_owner=False)
    for keys in (here, there):
        keys.refresh()
        client = keys.find(secret)
        assert (client.owner, client.limits.jobs_per_minute, client.limits.allow_nodes) == ("bot", 6, ("A", "B*"))
        assert keys.webhook_secret("bot") == key.webhook_secret
    limit(place, key.key_id, KeyLimits(max_queued=3))
    there.refresh()
    assert there.find(secret).limits == KeyLimits(max_queued=3)
    revoke(place, "bot", Clock().now_ms())
    there.refresh()
    assert there.find(secret) is None
    with pytest.raises(KeysError, match="no key"):
        revoke(place, "bot", Clock().now_ms())
    with pytest.raises(KeysError, match="there is or was"):
        create(place, wanted("Bot"), same_owner=False)
    assert [each.name for each in place.read()] == ["bot"]


def test_keys_from_a_file_are_taken_in_once_and_the_log_says_so(tmp_path, table, caplog):
    own = tmp_path / "a"
    old, secret = create(own, wanted("bot"), same_owner=False)
    caplog.set_level(logging.WARNING)
    keys = join(own, table)
    assert keys.find(secret).owner == "bot"
    assert json.loads(table.rows[old.key_id]) == json.loads(json.dumps(asdict(old)))
    assert f"bot ({old.key_id})" in caplog.text
    caplog.clear()
    keys.refresh()
    other = join(tmp_path / "b", table)
    join(own, table)
    assert other.find(secret).owner == "bot"
    assert not caplog.text


def test_a_command_that_knows_nothing_of_the_fleet_is_heard_on_all_boxes(tmp_path, table):
    here, there = join(tmp_path / "a", table), join(tmp_path / "b", table)
    key, secret = create(tmp_path / "a", wanted("bot"), same_owner=False)
    here.refresh()
    there.refresh()
    assert there.find(secret).owner == "bot"
    revoke(tmp_path / "b", key.key_id, 1)  # in the copy that the other box has
    there.refresh()
    here.refresh()
    assert here.find(secret) is None
    assert there.find(secret) is None


def test_an_old_file_brings_no_revoked_key_back(tmp_path, table):
    place, here = SharedKeys(table), join(tmp_path / "a", table)
    key, secret = create(place, wanted("bot"), same_owner=False)
    here.refresh()
    old = (tmp_path / "a" / FILE).read_bytes()
    revoke(place, key.key_id, 1)
    here.refresh()
    (tmp_path / "a" / FILE).write_bytes(old)
    here.refresh()
    later = join(tmp_path / "a", table)
    for keys in (here, later):
        assert keys.find(secret) is None
    assert KeyFile(tmp_path / "a").read() == place.read()


def test_a_database_from_a_backup_brings_no_revoked_key_back_for_good(tmp_path, table):
    place, keys = SharedKeys(table), join(tmp_path / "a", table)
    _key, secret = create(place, wanted("bot"), same_owner=False)
    keys.refresh()
    backup = dict(table.rows), table.last
    create(place, wanted("late"), same_owner=False)
    revoke(place, "bot", 1)
    keys.refresh()
    table.rows, table.last = dict(backup[0]), backup[1]
    for _ in range(2):
        keys.refresh()
    assert keys.find(secret) is None
    assert {key.name: key.revoked_at_ms for key in place.read()} == {"bot": 1, "late": None}


def test_a_box_whose_database_is_away_knows_the_keys_of_before_and_trusts_nobody_for_lack_of_them(tmp_path, table):
    place = SharedKeys(table)
    join(tmp_path / "a", table)
    _key, secret = create(place, wanted("bot"), same_owner=False)
    join(tmp_path / "a", table)
    table.is_away = True
    again, new = join(tmp_path / "a", table), join(tmp_path / "new", table)
    assert again.find(secret).owner == "bot"
    assert again.were_made
    assert new.were_made
    table.is_away = False
    revoke(place, "bot", 1)
    again.refresh()
    assert again.find(secret) is None
    assert not join(tmp_path / "empty", Table()).were_made


def test_a_box_that_has_not_read_the_keys_refuses_none_for_good(tmp_path, table):
    """A new one behind a balancer would else tell bots that their keys are wrong."""
    _key, secret = create(SharedKeys(table), wanted("bot"), same_owner=False)
    join(tmp_path / "a", table)
    _key, newer = create(SharedKeys(table), wanted("newer"), same_owner=False)
    table.is_away = True
    again, new = join(tmp_path / "a", table), join(tmp_path / "new", table)

    def ask(keys, secret):
        access = Access(AccessSettings(), keys, Tokens(tmp_path, Clock(), b"key" * 11))
        return access.identify(Request("GET", "/", "10.0.0.9", {"Authorization": f"Bearer {secret}"}))

    assert ask(again, secret).owner == "bot"
    for keys, unknown in ((again, newer), (new, secret), (new, newer)):
        with pytest.raises(ServerUnavailableError):
            ask(keys, unknown)
    table.is_away = False
    for keys in (again, new):
        keys.refresh()
        assert (ask(keys, secret).owner, ask(keys, newer).owner) == ("bot", "newer")
        with pytest.raises(UnauthorizedError):
            ask(keys, newer[:-1] + ("a" if newer[-1] != "a" else "b"))


def test_a_box_reads_no_keys_while_nothing_changes(tmp_path, table):
    keys = join(tmp_path / "a", table)
    create(SharedKeys(table), wanted("bot"), same_owner=False)
    keys.refresh()
    parsed = keys.list_all()
    keys.refresh()
    assert keys.list_all()[0] is parsed[0]


@pytest.mark.parametrize("row", ["{", "[]", '{"key_id": "x", "scope": 7}', "\x00"])
def test_a_row_that_is_no_key_opens_nothing_and_keeps_nobody_from_revoking_others(tmp_path, table, row, caplog):
    keys = join(tmp_path / "a", table)
    _key, secret = create(SharedKeys(table), wanted("bot"), same_owner=False)
    table.rows["x"], table.last = row, 99
    keys.refresh()
    assert keys.find(secret).owner == "bot"
    assert "the key x" in caplog.text
    revoke(SharedKeys(table), "bot", 1)
    keys.refresh()
    assert keys.find(secret) is None
    assert table.rows["x"] == row


def test_a_key_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path, table):
    keys = join(tmp_path / "a", table)
    key, secret = create(SharedKeys(table), wanted("bot"), same_owner=False)
    table.rows[key.key_id] = json.dumps({**json.loads(table.rows[key.key_id]), "max_tomorrow": 1})
    table.last += 1
    keys.refresh()
    assert keys.find(secret).owner == "bot"


# On a real database. ------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A command's, for a box of a fleet whose database is new."""
    stores.use("postgres")
    url = server().url(make_schema(tmp_path / "store"))
    for name, value in (("STORE__URL", url), ("FLEET__ENABLED", "true"), ("FLEET__SECRET", SECRET)):
        monkeypatch.setenv(f"GUARDED_{name}", value)
    monkeypatch.setattr("comfyui_guarded.guard.access.command.find_guard_folder", lambda *_: tmp_path / "own")
    monkeypatch.setattr("comfyui_guarded.guard.access.sign_in.find_guard_folder", lambda *_: tmp_path / "own")
    (tmp_path / "own").mkdir()
    return url


def command(tmp_path, *words):
    parser, said = ArgumentParser(), []
    add_arguments(parser)
    return run(parser.parse_args(words), tmp_path, said.append), said


@only_postgres
def test_commands_make_and_revoke_keys_of_all_boxes_before_and_while_they_run(tmp_path, environment):
    status, said = command(tmp_path, "create", "early")
    assert status == 0, said
    early = said[0]
    boxes = [open_box(tmp_path / "store", name) for name in ("a", "b")]
    try:
        found = [Keys(tmp_path / name, Clock()) for name in ("a", "b")]
        for keys, box in zip(found, boxes, strict=True):
            keys.join(SharedKeys(box))
            keys.refresh()
            assert keys.find(early).owner == "early"
        made, secret = create(SharedKeys(boxes[0]), wanted("late"), same_owner=False)
        found[1].refresh()
        assert found[1].find(secret).owner == "late"
        status, said = command(tmp_path, "list")
        assert [line.split()[1] for line in said] == ["early", "late"]
        assert command(tmp_path, "revoke", made.key_id)[0] == 0
        assert command(tmp_path, "create", "Early")[0] == 2
        for keys in found:
            keys.refresh()
            assert keys.find(secret) is None
        assert not (tmp_path / "own" / FILE).exists()
    finally:
        for box in boxes:
            kill(box)


@only_postgres
def test_a_command_says_what_is_wrong_with_the_database_and_no_password(tmp_path, environment, monkeypatch):
    monkeypatch.setenv("GUARDED_STORE__URL", "postgresql://guarded:hunter2@127.0.0.1:1/x")
    status, said = command(tmp_path, "create", "bot")
    assert status == 2
    assert "cannot be used" in said[0]
    assert "hunter2" not in said[0]
    assert not (tmp_path / "own" / FILE).exists()
    monkeypatch.setenv("GUARDED_STORE__URL", "")
    assert "postgresql://" in command(tmp_path, "create", "bot")[1][0]


@only_postgres
def test_a_link_signs_in_once_on_one_of_the_boxes(tmp_path, environment):
    boxes = [open_box(tmp_path / "store", name) for name in ("a", "b")]
    try:
        said = []
        assert sign_in.run(Namespace(url="https://x"), tmp_path, str, said.append) == 0
        token = said[0].rpartition("=")[2]
        here, there = (Tokens(tmp_path / name, Clock(), b"x" * 32) for name in ("a", "b"))
        here.join(boxes[0])
        there.join(boxes[1])
        assert there.use_up(token)
        assert not here.use_up(token)
        assert not there.use_up(token)
        assert not there.use_up("x" * 43)
        once = OnceStore(read_address(environment))
        once.put_sign_in(sign_in.digest("y" * 43), -1).result()
        assert not there.use_up("y" * 43)
        assert here.use_up(sign_in.make(tmp_path / "a", Clock().now_ms()))  # one of this box alone
    finally:
        for box in boxes:
            kill(box)
