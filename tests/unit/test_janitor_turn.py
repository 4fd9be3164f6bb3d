"""When the janitor sweeps, what it does when the disk runs short, and what it says of itself."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from unit.fakes import LONG_S, FailingStore, FakeHost, new_job
from unit.janitor import DAY_S, Box, age_folders, put, small_disk

from comfyui_guarded.guard.errors import DiskFullError, ServerUnavailableError
from comfyui_guarded.guard.janitor import command
from comfyui_guarded.guard.janitor import oldest as oldest_module
from comfyui_guarded.guard.janitor import sweep as sweep_module
from comfyui_guarded.guard.janitor.marker import Marker
from comfyui_guarded.guard.janitor.oldest import FRUITLESS_S, PRESSURE_AGAIN_S
from comfyui_guarded.guard.janitor.thread import HISTORY
from comfyui_guarded.guard.job import SUCCESS, Artifact, Result
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.settings import Settings, SettingsError, load

REPO = Path(__file__).parents[2]
HOUR_S = 3600.0


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


class TestTheClock:
    def test_the_first_sweep_comes_a_minute_after_the_start_and_then_one_each_interval(self, box: Box):
        janitor = box.janitor()
        now_s = time.time()
        swept_at = []
        for second in range(0, 7500, 2):
            before = len(janitor.body()["sweeps"])
            janitor.turn(now_s + second)
            if len(janitor.body()["sweeps"]) != before:
                swept_at.append(second)
        assert swept_at == [60, 3660, 7260]

    def test_a_clock_set_back_does_not_put_the_next_sweep_off(self, box: Box):
        janitor = box.janitor()
        now_s = time.time()
        janitor.turn(now_s)
        janitor.turn(now_s - 300 * DAY_S)
        janitor.turn(now_s - 300 * DAY_S + 61)
        assert len(janitor.body()["sweeps"]) == 1

    def test_switched_off_it_sweeps_on_demand_only_but_watches_the_disk(self, box: Box):
        put(box.output / "a.png", size=100)
        janitor = box.janitor(enabled=False, min_free_bytes=50, target_free_bytes=60, floor_free_bytes=40)
        alarms: list[str] = []
        janitor.disk_filled.subscribe(alarms.append)
        with small_disk(box.base, 120):
            for second in range(0, 8000, 1000):
                janitor.turn(time.time() + second)
            assert box.left() == {"output/a.png"}
            assert janitor.disk_full() is not None
        assert len(alarms) == 1, "told when it begins, and not at every look"
        assert janitor.body()["next_sweep_at_ms"] is None
        janitor.sweep(time.time())
        assert box.left() == set()

    def test_the_last_twenty_sweeps_are_remembered_newest_first(self, box: Box):
        janitor = box.janitor()
        for number in range(HISTORY + 5):
            janitor.sweep(1000.0 + number)
        started = [report["started_at_ms"] for report in janitor.body()["sweeps"]]
        assert started == [(1000 + number) * 1000 for number in reversed(range(5, HISTORY + 5))]
        json.dumps(janitor.body())

    def test_the_thread_outlives_whatever_a_turn_raises(self, box: Box, monkeypatch):
        janitor = box.janitor()
        raised = threading.Event()
        turn = janitor.turn

        def failing(now_s: float) -> float:
            if not raised.is_set():
                raised.set()
                raise RuntimeError("on purpose")
            return turn(now_s)

        monkeypatch.setattr(janitor, "turn", failing)
        monkeypatch.setattr("comfyui_guarded.guard.janitor.thread.LOOK_S", 0.01)
        janitor.start()
        raised.wait(LONG_S)
        assert janitor.ask(dry_run=True).result(LONG_S).dry_run is True
        janitor.close()

    def test_a_sweep_that_is_under_way_ends_with_the_server_and_whoever_waits_is_told(self, box: Box, monkeypatch):
        for number in range(40):
            put(box.output / str(number) / "a.png")
        janitor = box.janitor()
        began, go_on = threading.Event(), threading.Event()

        def slow(*_args: Any, **_kwargs: Any) -> None:
            began.set()
            go_on.wait(LONG_S)

        monkeypatch.setattr(sweep_module.Sweep, "_learn_what_is_in_use", slow)
        janitor.start()
        first, second = janitor.ask(dry_run=False), janitor.ask(dry_run=True)
        began.wait(LONG_S)
        assert janitor.body()["sweeping"] is True
        janitor._closed = True
        go_on.set()
        for asked in (first, second):
            with pytest.raises(ServerUnavailableError):
                asked.result(LONG_S)
        janitor.close()
        assert len(box.left()) == 40
        with pytest.raises(ServerUnavailableError):
            janitor.ask(dry_run=True).result(LONG_S)

    def test_each_deletion_is_a_debug_line_and_each_sweep_an_info_line(self, box: Box, caplog):
        put(box.output / "a\nb.png", size=7)
        with caplog.at_level(logging.DEBUG, "guarded.janitor"):
            box.janitor().sweep(time.time())
        lines = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert lines[0] == ("DEBUG", "deleted output/a\\nb.png")
        assert [level for level, _line in lines] == ["DEBUG", "INFO"]
        assert lines[1][1].startswith("janitor: deleted 1 files (7 bytes)")


class TestPressure:
    """Files of 100 bytes on a disk of 1,000."""

    LIMITS: dict[str, Any] = {"min_free_bytes": 300, "target_free_bytes": 500, "floor_free_bytes": 100}  # noqa: RUF012

    def test_the_oldest_go_first_across_the_roots_until_the_target_is_free(self, box: Box):
        ages = {
            "output/1": 1,
            "temp/2": 0.9,
            "input/3": 3,
            "output/sub/4": 4,
            "input/5": 5,
            "output/6": 6,
            "temp/7": 0.8,
        }
        for name, hours in ages.items():
            put(box.base / f"{name}.png", hours * HOUR_S, size=100)
        put(box.output / "8.png", 10, size=100)
        deleted: list[str] = []
        janitor = box.janitor(**self.LIMITS)
        janitor._on_delete = deleted.append
        with small_disk(box.base, 1000):
            janitor.turn(time.time())
        assert deleted == ["output/6.png", "input/5.png", "output/sub/4.png"]
        report = janitor.body()["sweeps"][0]
        assert report["oldest"] == {"files": 3, "bytes": 300}

    def test_with_room_enough_nothing_goes_before_its_time(self, box: Box):
        for number in range(6):
            put(box.output / f"{number}.png", HOUR_S, size=100)
        janitor = box.janitor(**self.LIMITS)
        with small_disk(box.base, 1000):
            janitor.turn(time.time())
            janitor.sweep(time.time())
        assert len(box.left()) == 6

    def test_what_is_never_deleted_is_not_deleted_under_pressure_either(self, box: Box, store: FailingStore):
        put(box.output / "past.png", HOUR_S, size=100)
        time.sleep(0.05)
        janitor = box.janitor(
            store, past=True, keep=["gold.png"], folders={"output/off": "off", "temp/x": 60}, **self.LIMITS
        )
        time.sleep(0.05)
        for name in ("output/gold.png", "output/off/a.png", "output/loras/a.png", "input/named.png", "temp/x/a.png"):
            put(box.base / name, HOUR_S, size=100)
        put(box.output / "settling.png", 200, size=100)
        put(box.output / "free.png", 0.1 * HOUR_S, size=100)
        if os.name != "nt":
            outside = put(box.base / "outside.png", size=100)
            (box.output / "link").symlink_to(outside)
        box.keep = [box.output / "loras"]
        body = json.dumps({"prompt": {"1": {"class_type": "L", "inputs": {"image": "named.png"}}}}).encode()
        store.submit(new_job(body=body), 10).result(LONG_S)
        with small_disk(box.base, 900):
            janitor.turn(time.time())
        assert box.left() - {"output/link"} == {
            "output/past.png",
            "output/gold.png",
            "output/off/a.png",
            "output/loras/a.png",
            "output/settling.png",
            "input/named.png",
        }

    def test_what_nobody_has_fetched_goes_last(self, box: Box, store: FailingStore):
        for number in range(8):
            put(box.output / f"{number}.png", (20 - number) * HOUR_S, size=100)
        job = new_job()
        store.submit(job, 10).result(LONG_S)
        store.claim("h", 1).result(LONG_S)
        artifacts = tuple(
            Artifact(index, "2", "image", f"{index}.png", "", "output", 100, "0" * 64) for index in range(6)
        )
        store.settle(job.job_id, SUCCESS, Result({}, artifacts)).result(LONG_S)
        deleted: list[str] = []
        janitor = box.janitor(store, **self.LIMITS)
        janitor._on_delete = deleted.append
        with small_disk(box.base, 1000):
            janitor.turn(time.time())
        assert deleted == ["output/6.png", "output/7.png", "output/0.png"]

    def test_more_files_than_one_walk_remembers_are_picked_out_in_order_all_the_same(self, box: Box, monkeypatch):
        monkeypatch.setattr(oldest_module, "OLDEST", 3)
        for number in range(30):
            put(box.output / f"{number % 4}" / f"{number:02}.png", (20 - number / 2) * HOUR_S, size=20)
        deleted: list[str] = []
        janitor = box.janitor(**self.LIMITS)
        janitor._on_delete = deleted.append
        with small_disk(box.base, 850):
            janitor.turn(time.time())
        assert [name[-6:-4] for name in deleted] == [f"{number:02}" for number in range(13)]

    def test_a_dry_run_says_the_same_as_the_sweep_after_it(self, box: Box):
        for number in range(9):
            put(box.output / f"{number}.png", (29 - 3 * number) * HOUR_S, size=100)
        janitor = box.janitor(**self.LIMITS)
        with small_disk(box.base, 900):
            dry = janitor.sweep(time.time(), dry_run=True)
            assert len(box.left()) == 9
            real = janitor.sweep(time.time())
        assert (dry.files, dry.bytes, dry.oldest) == (real.files, real.bytes, real.oldest)
        assert (real.files, real.oldest.files) == (5, 3)

    def test_where_deleting_frees_nothing_the_rest_does_not_follow(self, box: Box):
        """Somebody has the files open, or a snapshot holds them."""
        for number in range(9):
            put(box.output / f"{number}.png", (10 + number) * HOUR_S, size=100)
        janitor = box.janitor(**self.LIMITS)
        now_s = time.time()
        with small_disk(box.base, 1000) as disk:
            janitor._on_delete = lambda _path: disk.update(more=disk["more"] + 100)
            for second in range(0, int(FRUITLESS_S) - 2, 2):
                janitor.turn(now_s + second)
            assert len(box.left()) == 5
            janitor.turn(now_s + FRUITLESS_S + 1)
            assert len(box.left()) < 5

    def test_where_there_is_nothing_to_delete_it_does_not_walk_all_the_time(self, box: Box):
        janitor = box.janitor(**self.LIMITS)
        now_s = time.time()
        with small_disk(box.base, 1000) as disk:
            disk["more"] = 900
            for second in range(0, int(PRESSURE_AGAIN_S) * 3, 2):
                janitor.turn(now_s + second)
        assert 3 <= len(janitor.body()["sweeps"]) <= 5


class TestTheFloor:
    def test_below_it_no_job_is_let_in_and_above_it_they_are_again(self, box: Box, host: FakeHost, store: FailingStore):
        janitor = box.janitor(min_free_bytes=300, target_free_bytes=500, floor_free_bytes=100)
        health = Health(host, store)
        health.watch_disk(janitor.disk_full)
        health.mark_serving()
        with small_disk(box.base, 1000) as disk:
            janitor.turn(time.time())
            health.check_ready()
            disk["more"] = 950
            janitor.turn(time.time())
            with pytest.raises(DiskFullError) as refusal:
                health.check_ready()
            assert refusal.value.extra_info == {"free_bytes": 50, "floor_free_bytes": 100}
            assert refusal.value.retry_after_s == 60
            assert health.refusals() == ["disk full"]
            assert health.problems() == [], "the jobs that are in go on"
            assert [disk["state"] for disk in janitor.body()["disks"]] == ["full"]
            disk["more"] = 0
            janitor.turn(time.time())
            health.check_ready()
            assert health.refusals() == []

    def test_zero_switches_both_off(self, box: Box):
        put(box.output / "a.png", HOUR_S)
        janitor = box.janitor(min_free_bytes=0, target_free_bytes=0, floor_free_bytes=0)
        with small_disk(box.base, 1000) as disk:
            disk["more"] = 1000
            janitor.turn(time.time())
            assert janitor.disk_full() is None
        assert len(box.left()) == 1

    def test_a_disk_that_cannot_be_asked_refuses_nobody(self, box: Box, monkeypatch):
        def failing(_path: object) -> Any:
            raise OSError("no such mount")

        monkeypatch.setattr("shutil.disk_usage", failing)
        janitor = box.janitor()
        janitor.turn(time.time())
        assert janitor.disk_full() is None


class TestSettings:
    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"min_free_bytes": 10, "target_free_bytes": 5}, "target_free_bytes"),
            ({"floor_free_bytes": 10, "min_free_bytes": 5, "target_free_bytes": 5}, "floor_free_bytes"),
            ({"folders": {"models/x": 5}}, "models/x"),
            ({"folders": {"output/../x": 5}}, "output/../x"),
            ({"folders": {"output/x": 0}}, "output/x"),
            ({"folders": {"output/x": "never"}}, "output/x"),
            ({"output_max_age_s": 0}, "output_max_age_s"),
        ],
    )
    def test_what_makes_no_sense_is_refused_by_name(self, tmp_path: Path, values: dict[str, Any], named: str):
        environment = {
            f"GUARDED_JANITOR__{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
        with pytest.raises(SettingsError, match=named):
            load(None, environment)

    def test_maps_and_lists_come_from_the_environment_too(self):
        found = load(
            None, {"GUARDED_JANITOR__FOLDERS": '{"output\\\\a/": 60, "input": "off"}', "GUARDED_JANITOR__KEEP": "a,b*"}
        ).janitor
        assert found.folders == {"output/a": 60, "input": "off"}
        assert found.keep == ("a", "b*")

    def test_the_defaults(self):
        found = Settings().janitor
        assert (found.interval_s, found.output_max_age_s, found.temp_max_age_s, found.input_max_age_s) == (
            3600,
            86400,
            3600,
            604800,
        )


class TestTheCommandLine:
    def _run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARDED_")}
        return subprocess.run(
            [sys.executable, str(REPO), "janitor", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**environment, "PYTHONIOENCODING": "utf-8"},
            check=False,
        )

    def test_it_sweeps_by_the_same_rules_without_a_server(self, box: Box):
        for name in ("output/a.png", "output/example.png", "output/loras/x.safetensors", "temp/b.png", "output/new\nl"):
            put(box.base / name, 2 * DAY_S)
        put(box.output / "young.png", HOUR_S)
        age_folders(box.output)
        roots = ("--output", box.output, "--temp", box.temp, "--max-age", "24h", "--adopt-existing")
        dry = self._run(*roots, "--dry-run")
        assert dry.returncode == 0, dry
        assert sorted(dry.stdout.splitlines()[:-1]) == [
            "would delete output/a.png",
            "would delete output/new\\nl",
            "would delete temp/b.png",
        ]
        assert len(box.left()) == 6
        assert self._run(*roots).returncode == 0
        assert box.left() == {"output/example.png", "output/loras/x.safetensors", "output/young.png"}

    def test_what_was_there_before_the_first_start_is_left_and_said_so(self, box: Box):
        put(box.output / "a.png", 2 * DAY_S, size=7)
        time.sleep(0.05)
        user = box.base / "user"
        done = self._run("--output", box.output, "--user", user, "--max-age", "1h")
        assert done.returncode == 0, done
        assert "1 files (7 bytes) from before the first start" in done.stdout
        assert box.left() == {"output/a.png"}
        time.sleep(0.05)
        put(box.output / "b.png", 2 * DAY_S)
        assert self._run("--output", box.output, "--user", user, "--max-age", "1h").returncode == 0
        assert box.left() == {"output/a.png"}

    def test_a_dry_run_is_not_a_first_start(self, box: Box):
        self._run("--output", box.output, "--user", box.base / "user", "--dry-run")
        assert not (box.base / "user").exists()

    def test_the_job_database_is_asked_and_the_settings_are_read(self, box: Box, store: FailingStore):
        own = box.base / "user" / "__guarded"
        Marker(own, 0.0)
        body = json.dumps({"prompt": {"1": {"class_type": "L", "inputs": {"image": "named.png"}}}}).encode()
        store.submit(new_job(body=body), 10).result(LONG_S)
        store.close()
        (own / "guarded.toml").write_text(
            f'[store]\nurl = "sqlite:///{store.path.as_posix().lstrip("/") if os.name == "nt" else store.path}"\n'
            '[janitor]\nkeep = ["gold.png"]\n'
        )
        for name in ("named.png", "gold.png", "more gold.png", "other.png"):
            put(box.input / name)
        done = self._run("--input", box.input, "--user", box.base / "user", "--keep", "more*")
        assert done.returncode == 0, done
        assert box.left() == {"input/named.png", "input/gold.png", "input/more gold.png"}

    def test_beside_a_running_server_it_leaves_the_work_to_that(self, box: Box, store: FailingStore):
        own = box.base / "user" / "__guarded"
        own.mkdir(parents=True)
        (own / "guarded.toml").write_text(f'[store]\nurl = "sqlite:///{store.path}"\n')
        put(box.input / "a.png")
        done = self._run("--input", box.input, "--user", box.base / "user", "--adopt-existing")
        assert done.returncode == 2, done
        assert "its own janitor sweeps" in done.stdout
        assert box.left() == {"input/a.png"}

    @pytest.mark.parametrize("arguments", [[], ["--output", "/no/such/folder"], ["--max-age", "soon"]])
    def test_what_it_cannot_use_it_says(self, arguments: list[str]):
        done = self._run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("24h", 86400), ("1.5d", 129600)]
    )
    def test_ages_have_units(self, text: str, seconds: float):
        assert command.parse_age(text) == seconds
