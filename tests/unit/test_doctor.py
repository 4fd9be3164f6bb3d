"""The doctor: each fault has a line that says how to fix it, and what is well is not complained of."""

import argparse
import json
import re
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from unit.fakes import FakeHost
from unit.janitor import DAY_S, Box, put

from comfyui_guarded.failure import NOTE
from comfyui_guarded.guard.access.keys import Key, KeysError
from comfyui_guarded.guard.doctor import checks, command
from comfyui_guarded.guard.doctor.checks import examine
from comfyui_guarded.guard.doctor.facts import Facts, Line, recall, remember
from comfyui_guarded.guard.settings import Settings, SettingsError, origins
from comfyui_guarded.guard.store import SqliteStore

REPO = Path(__file__).parents[2]
NOW_MS = int(time.time() * 1000)
DAY_MS = 86_400_000
FACES = {
    "detector": "centerface",
    "reason": "No InsightFace pack is there.",
    "device": "cpu",
    "runtime": "onnxruntime",
    "loaded": False,
    "onnxruntime": {
        "packages": {"onnxruntime": "1.20"},
        "providers": ["CPUExecutionProvider"],
        "problem": "",
        "broken": False,
        "command": "",
    },
}
READY = {
    "name": "sdxl",
    "models": [
        {"file": "sdxl.safetensors", "folder": "checkpoints", "source": "https://example.org", "present": True},
        {"file": "vae.safetensors", "folder": "vae", "source": "https://example.org", "present": True},
    ],
    "node_packs": [{"name": "Pack", "source": "https://example.org/pack"}],
    "missing": {"models": [], "node_packs": []},
}


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


@pytest.fixture
def well(box):
    """A server without a fault, on this machine only."""
    return Facts(
        own=box.own,
        environment={},
        in_force=Settings(),
        host={"name": "ComfyUI", "version": "0.33.0", "listen": ["127.0.0.1"], "replaceable_worker": True},
        folders=box.folders,
        running=True,
        keys=[],
        faces=FACES,
        templates=[READY],
        existing=(0, 0),
        server_ms=int(time.time() * 1000),
    )


def key(name="bot", **facts):
    return Key(f"{abs(hash(name)) % 10**8:08x}", name, "submit", "", NOW_MS, "", **facts)


def wrong(facts):
    """(level, check) of everything that is not well; each must have a mend."""
    found = [line for line in examine(facts) if line.level != "ok"]
    assert all(line.mend for line in found), found
    return [(line.level, line.check) for line in found]


def said(facts, check):
    return " ".join(f"{line.message} {line.mend}" for line in examine(facts) if line.check == check)


def test_a_server_without_a_fault_has_none(well):
    assert wrong(well) == []
    seen = {line.check for line in examine(well)}
    assert seen == {
        *("settings", "host", "worker", "packages", "faces", "onnxruntime", "template sdxl", "folders", "disk"),
        *("janitor", "keys", "network", "store", "clock"),
    }


def test_a_line_as_json():
    assert Line("ok", "disk", "There is room.").body() == {
        "level": "ok",
        "check": "disk",
        "message": "There is room.",
        "mend": "",
    }


def test_a_check_that_stumbles_harms_no_other(well, monkeypatch):
    def _broken(_facts, _settings):
        raise ValueError("oops")
        yield

    monkeypatch.setattr(checks, "CHECKS", (_broken, checks._check_disk))
    first, *others = examine(well)
    assert (first.level, first.check) == ("warning", "broken")
    assert others


class TestSettings:
    def test_each_that_is_not_at_its_default_is_shown_with_who_set_it(self, well):
        (well.own / "guarded.toml").write_text("[queue]\nmax_jobs = 2\nmax_queued = 7\n")
        environment = {"GUARDED_QUEUE__MAX_JOBS": "3", "MAX_GPU_JOBS": "9", "PATH": "x"}
        settings = Settings.model_validate({"queue": {"max_jobs": 3, "max_queued": 7}})
        told = said(replace(well, environment=environment, in_force=settings), "settings")
        assert "queue.max_jobs = 3, from GUARDED_QUEUE__MAX_JOBS" in told
        assert "queue.max_queued = 7, from guarded.toml" in told

    def test_a_file_changed_since_the_start(self, well):
        (well.own / "guarded.toml").write_text("[queue]\nmax_jobs = 2\n")
        assert wrong(well) == [("warning", "settings")]

    @pytest.mark.parametrize("running", [True, False])
    def test_a_file_that_cannot_be_used(self, well, running):
        (well.own / "guarded.toml").write_text("[queue]\nmax_job = 2\n")
        facts = well if running else replace(well, in_force=None, running=False)
        assert ("error", "settings" if running else "start") in wrong(facts)
        assert "queue.max_job" in said(facts, "settings" if running else "start")

    def test_a_value_that_was_refused_is_not_shown_as_the_default(self, well):
        environment = {"GUARDED_QUEUE__MAX_JOBS": "zero"}
        facts = replace(well, in_force=None, running=False, environment=environment)
        assert "got 'zero'" in said(facts, "start")
        assert "max_jobs = " not in said(facts, "settings")

    def test_origins_of_a_file_that_is_no_toml(self, tmp_path):
        (tmp_path / "guarded.toml").write_text("[")
        with pytest.raises(SettingsError):
            origins(tmp_path / "guarded.toml", {})


class TestTheMachine:
    def test_no_server_yet(self, well):
        assert ("warning", "host") in wrong(replace(well, host={}, running=False))

    def test_a_comfyui_whose_worker_cannot_be_replaced(self, well):
        assert wrong(replace(well, host={**well.host, "replaceable_worker": False})) == [("warning", "host")]

    def test_alarms(self, well):
        alarms = [{"code": code, "message": code} for code in ("worker_stuck", "worker_hangs", "draining")]
        assert wrong(replace(well, alarms=alarms)) == [
            ("error", "worker"),
            ("warning", "worker"),
            ("warning", "worker"),
        ]

    def test_packages_that_are_missing(self, well, monkeypatch):
        monkeypatch.setattr(checks, "_is_installed", lambda name: name != "prometheus-client")
        assert wrong(well) == [("warning", "packages")]
        assert "pip install prometheus-client" in said(well, "packages")

    def test_all_that_requirements_ask_for_and_comfyui_does_not_bring_is_looked_for(self):
        asked = (Path(checks.__file__).parents[2] / "requirements.txt").read_text()
        names = set(re.findall(r"^([\w-]+)[><=]", asked, re.MULTILINE))
        theirs = {"aiohttp", "numpy", "Pillow", "psutil", "tomli", "typing_extensions"}
        assert set(checks.PACKAGES) == names - theirs

    def test_onnxruntime_that_lost_its_gpu(self, well):
        state = {**FACES["onnxruntime"], "problem": "Gone.", "broken": True, "command": "pip …"}
        assert wrong(replace(well, faces={**FACES, "onnxruntime": state})) == [("error", "onnxruntime")]

    def test_no_detector(self, well):
        assert wrong(replace(well, faces={**FACES, "detector": None})) == [("error", "faces")]

    def test_a_face_check_on_torch_needs_no_onnxruntime(self, well):
        none = {**FACES["onnxruntime"], "packages": {}, "providers": []}
        facts = replace(well, faces={**FACES, "runtime": "torch", "onnxruntime": none})
        assert wrong(facts) == []
        assert "centerface on the CPU (torch)" in said(facts, "faces")
        assert "not installed" in said(facts, "onnxruntime")

    def test_models_and_packs_of_a_template(self, well):
        missing = {"models": ["sdxl.safetensors"], "node_packs": ["Pack"]}
        facts = replace(well, templates=[{**READY, "missing": missing}])
        assert wrong(facts) == [("warning", "template sdxl")] * 2
        assert "models/checkpoints, from https://example.org" in said(facts, "template sdxl")

    def test_a_template_of_ours_that_nobody_has_set_up_is_no_fault_and_an_operators_is(self, well):
        models = [{**model, "present": False} for model in READY["models"]]
        missing = {"models": [model["file"] for model in models], "node_packs": ["Pack"]}
        nothing = {**READY, "models": models, "missing": missing}
        facts = replace(well, templates=[nothing])
        assert wrong(facts) == []
        assert "none of its 2 models is here" in said(facts, "template sdxl")
        assert wrong(replace(well, templates=[{**nothing, "name": "my-own"}])) == [("warning", "template my-own")] * 3

    def test_a_damaged_job_database(self, well):
        (well.own / "guarded.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 32)
        assert wrong(well) == [("error", "store")]
        assert "is damaged" in said(well, "store")

    def test_a_folder_that_cannot_be_written(self, well, box, monkeypatch):
        really = checks.os.access
        monkeypatch.setattr(checks.os, "access", lambda path, mode: path != box.output and really(path, mode))
        assert wrong(well) == [("error", "folders")]

    @pytest.mark.parametrize(("free", "level"), [(2**40, None), (2**30, "warning"), (2**20, "error")])
    def test_disks_against_the_floors(self, well, monkeypatch, free, level):
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
        assert wrong(well) == ([(level, "disk")] if level else [])

    def test_a_janitor_that_is_off_and_a_floor_of_nothing(self, well):
        settings = Settings.model_validate({"janitor": {"enabled": False, "floor_free_bytes": 0}})
        assert [check for _level, check in wrong(replace(well, in_force=settings)) if check == "janitor"] == [
            "janitor"
        ] * 2

    def test_pictures_from_before_the_first_start(self, well):
        facts = replace(well, existing=(12, 3_565_000))
        assert wrong(facts) == [("warning", "janitor")]
        assert "12 files (3.4 MB)" in said(facts, "janitor")

    def test_a_job_database_that_was_set_aside(self, well, clock):
        SqliteStore(well.own / "guarded.db", clock).close()
        (well.own / "guarded.db.corrupt-20260101-000000").write_bytes(b"x")
        assert wrong(well) == [("warning", "store")]

    def test_a_job_database_of_a_later_version(self, well):
        with sqlite3.connect(well.own / "guarded.db") as db:
            db.execute("CREATE TABLE jobs (created_at_ms INTEGER)")
            db.execute("PRAGMA user_version = 999")
        db.close()
        assert wrong(well) == [("error", "store")]


class TestTheClock:
    def test_a_job_from_the_future(self, well, clock):
        SqliteStore(well.own / "guarded.db", clock).close()
        db = sqlite3.connect(well.own / "guarded.db")
        columns = [(row[1], row[3]) for row in db.execute("PRAGMA table_info(jobs)") if row[1] != "created_at_ms"]
        names = [name for name, needed in columns if needed and name != "number"]
        db.execute(
            f"INSERT INTO jobs (created_at_ms, {', '.join(names)}) VALUES (?, {', '.join('?' for _ in names)})",
            [NOW_MS + DAY_MS, *("1" for _ in names)],
        )
        db.commit()
        db.close()
        assert wrong(well) == [("error", "clock")]

    def test_a_clock_that_was_set_under_the_server(self, well):
        assert wrong(replace(well, server_ms=well.server_ms - DAY_MS)) == [("warning", "clock")]

    def test_a_machine_without_a_clock(self, well, monkeypatch):
        monkeypatch.setattr(checks.time, "time", lambda: 86400.0)
        assert ("error", "clock") in wrong(well)

    def test_a_disk_with_another_clock(self, well, monkeypatch):
        really = time.time
        monkeypatch.setattr(checks.time, "time", lambda: really() + 3600)
        assert ("error", "clock") in wrong(replace(well, server_ms=None))


class TestWhoIsLetIn:
    def outside(self, well, mode="open", **facts):
        settings = Settings.model_validate({"native": {"mode": mode}})
        (well.own / "guarded.toml").write_text(f'[native]\nmode = "{mode}"\n')
        return replace(well, host={**well.host, "listen": ["0.0.0.0", "::"]}, in_force=settings, **facts)

    def test_off_loopback_with_open_native_routes_is_an_error(self, well):
        facts = self.outside(well, keys=[key()])
        assert ("error", "network") in wrong(facts)
        assert "native.mode" in said(facts, "network")

    @pytest.mark.parametrize("mode", ["guarded", "closed"])
    def test_off_loopback_with_keys_only_the_encryption_is_left_to_say(self, well, mode):
        assert wrong(self.outside(well, mode, keys=[key()])) == [("warning", "network")]

    def test_off_loopback_without_a_key(self, well):
        assert ("warning", "keys") in wrong(self.outside(well, "closed"))

    def test_keys_that_end(self, well):
        keys = [
            key("old", expires_at_ms=NOW_MS - 1),
            key("soon", expires_at_ms=NOW_MS + DAY_MS),
            key("late", expires_at_ms=NOW_MS + 300 * DAY_MS),
            key("gone", revoked_at_ms=NOW_MS - 1),
        ]
        facts = replace(well, keys=keys)
        assert wrong(facts) == [("warning", "keys")] * 2
        assert "Valid keys: late, soon." in said(facts, "keys")

    def test_a_key_file_that_cannot_be_read(self, well):
        assert wrong(replace(well, keys=KeysError("keys.json it is not JSON"))) == [("error", "keys")]

    def test_everybody_a_trusted_proxy(self, well):
        settings = Settings.model_validate({"access": {"trusted_proxies": ["0.0.0.0/0"]}})
        assert ("warning", "network") in wrong(replace(well, in_force=settings))


class TestLoopback:
    @pytest.mark.parametrize(("trust", "level"), [("auto", "ok"), (False, "ok"), (True, "warning")])
    def test_once_there_are_keys_who_needs_none_is_said(self, well, trust, level):
        settings = Settings.model_validate({"access": {"trust_loopback": trust}})
        lines = examine(replace(well, in_force=settings, keys=[key()]))
        (line,) = (line for line in lines if line.check == "loopback")
        assert line.level == level
        assert "loopback" not in [line.check for line in examine(replace(well, in_force=settings))]


class TestTheCommand:
    @pytest.fixture
    def user(self, tmp_path):
        """A ComfyUI of which only the folders are there."""
        for name in ("output", "temp", "input", "models", "user"):
            (tmp_path / "comfy" / name).mkdir(parents=True)
        return tmp_path / "comfy" / "user"

    def ran(self, user, environment=None, **options):
        told = []
        arguments = argparse.Namespace(user=user, json=False, **options)
        return command.run(arguments, environment or {}, REPO, told.append), told

    def test_its_exit_status_is_the_worst_of_what_it_says(self):
        assert command.worst([]) == 0
        assert command.worst([Line("ok", "", "")]) == 0
        assert command.worst([Line("warning", "", "", "x"), Line("ok", "", "")]) == 1
        assert command.worst([Line("ok", "", ""), Line("error", "", "", "x"), Line("warning", "", "", "x")]) == 2

    def test_before_the_first_start(self, user):
        status, told = self.ran(user)
        assert status == 1
        assert any("No server with this package has started here yet" in line for line in told)
        assert any(line.strip().startswith("->") for line in told)
        assert not (user / "__guarded").exists()  # it only looks

    def test_with_a_setting_that_cannot_be_used(self, user):
        status, told = self.ran(user, {"GUARDED_QUEUE__MAX_JOBS": "many"})
        assert status == 2
        assert any("ERROR" in line and "queue.max_jobs" in line for line in told)

    def test_without_a_user_folder(self, user):
        status, told = self.ran(user / "nowhere")
        assert status == 2
        assert "--user" in told[0]

    def test_models_are_found_below_the_model_folders(self, user):
        facts = command.gather(user / "__guarded", {}, REPO)
        missing = {one["name"]: one["missing"]["models"] for one in facts.templates}
        assert "sd_xl_base_1.0.safetensors" in missing["sdxl"]
        model = user.parent / "models" / "checkpoints" / "xl" / "sd_xl_base_1.0.safetensors"
        model.parent.mkdir(parents=True)
        model.write_bytes((2).to_bytes(8, "little") + b"{}")
        facts = command.gather(user / "__guarded", {}, REPO)
        missing = {one["name"]: one["missing"]["models"] for one in facts.templates}
        assert "sd_xl_base_1.0.safetensors" not in missing["sdxl"]

    def test_pictures_from_before_are_counted_and_left(self, user):
        picture = put(user.parent / "output" / "gallery.png", age_s=400 * DAY_S)
        facts = command.gather(user / "__guarded", {}, REPO)
        assert facts.existing == (1, 10)
        assert picture.exists()

    def test_folders_and_host_are_those_of_the_last_start(self, user, tmp_path):
        own, host = user / "__guarded", FakeHost()
        box = Box(tmp_path / "elsewhere")
        host.places = box.folders
        remember(own, host)
        assert recall(own) == (host.describe(), replace(box.folders, keep=()), [])
        assert command.gather(own, {}, REPO).folders.output == box.output

    @pytest.mark.parametrize("note", ["", "[]", '{"host": 1}', '{"host": {}}'])
    def test_a_note_that_cannot_be_read_is_none(self, tmp_path, note):
        (tmp_path / NOTE).write_text(note)
        assert recall(tmp_path) is None

    @pytest.mark.parametrize(
        "facts",
        [
            {"host": {"listen": ["a b"], "port": 1}},
            {"host": {"listen": [""], "port": 99999}},
            {"host": {"listen": {}, "port": []}},
            {"output": f"/{'x' * 5000}", "temp": "/dev/zero", "input": "/proc/self", "models": [f"/{'y' * 5000}"]},
            {"output": 5, "models": {}},
            {"off": {"reason": 5}},
            {"off": {"reason": "x", "mend": "y", "state": "z", "more": 1}},
        ],
    )
    def test_no_note_of_a_start_stops_it(self, user, facts):
        note = {"host": {}, "output": None, "temp": None, "input": None, "models": [], **facts}
        (user / "__guarded").mkdir()
        (user / "__guarded" / NOTE).write_text(json.dumps(note))
        status, told = self.ran(user)
        assert status in (1, 2)
        assert "This check failed" not in "\n".join(told)

    @pytest.mark.parametrize("name", ["janitor.json", "warming", NOTE])
    def test_a_small_file_that_cannot_be_used_is_told(self, user, name):
        (user / "__guarded").mkdir()
        (user / "__guarded" / name).write_text("[" * 20_000)
        _status, told = self.ran(user)
        assert any(f"files: {name}, line 1: it is nested too deep. " in line for line in told), told

    def test_json(self, user):
        told = []
        command.run(argparse.Namespace(user=user, json=True), {}, REPO, told.append)
        body = json.loads(told[0])
        assert set(body) == {"lines"}
        assert all(set(line) == {"level", "check", "message", "mend"} for line in body["lines"])
