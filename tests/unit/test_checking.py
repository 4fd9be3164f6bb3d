"""Checks beside the worker: how many at once, and the files that a later run might overwrite meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from unit.fakes import LONG_S, settings

from comfyui_guarded.guard.host import Outcome, ReportedFile
from comfyui_guarded.guard.life import checking
from comfyui_guarded.guard.life.check_places import WAITING, CheckPlaces
from comfyui_guarded.guard.life.checking import Checking
from comfyui_guarded.guard.outgoing import ResultOptions
from comfyui_guarded.guard.results import checks, convert

PROMPT = {"9": {"class_type": "SaveImage", "inputs": {}}, "8": {"class_type": "SaveLatest", "inputs": {}}}


class Studio:
    """Writes pictures as a node does, and collects the verdicts on them."""

    def __init__(self, folder: Path, **results):
        self.folder = folder
        self.checking = Checking(settings(results=results).results, folder / "quarantine", syncs=False)
        self.verdicts: dict[str, str | None] = {}
        self.threads: dict[str, str] = {}
        self.artifacts = {}
        self.changed = threading.Condition()
        #: Jobs for which the worker was let go.
        self.gone_on: list[str] = []
        self.then_gone_on = lambda: None

    def save(self, name: str, node_id: str = "9", seed: int = 0, blank: bool = False) -> Outcome:
        noise = np.random.default_rng(seed).integers(60, 200, (64, 64, 3), dtype=np.uint8)
        path = self.folder / name
        Image.fromarray(noise * 0 if blank else noise).save(path)
        if blank:
            path.write_bytes(path.read_bytes() + b"\0" * 2048)
        item = {"filename": name, "subfolder": "", "type": "output"}
        file = ReportedFile(node_id, name, "", "output", path)
        return Outcome(True, outputs={node_id: {"images": [item]}}, files=(file,), prompt=PROMPT)

    def check(self, job_id: str, outcome: Outcome, **options) -> None:
        def then(verdict, result) -> None:
            assert job_id in self.gone_on
            with self.changed:
                self.artifacts[job_id] = result.artifacts
                self.verdicts[job_id], self.threads[job_id] = verdict.code, threading.current_thread().name
                self.changed.notify_all()

        def go_on() -> None:
            self.gone_on.append(job_id)
            self.then_gone_on()

        self.checking.check(job_id, outcome, then, go_on, **options)

    def verdict(self, job_id: str) -> str | None:
        with self.changed:
            assert self.changed.wait_for(lambda: job_id in self.verdicts, LONG_S)
            return self.verdicts[job_id]

    def is_beside(self, job_id: str) -> bool:
        self.verdict(job_id)
        return self.threads[job_id] != threading.current_thread().name

    def earn_trust(self, node_id: str = "9", owner: str = "") -> None:
        for number in (91, 92):
            job_id = f"{owner} earlier {number}"
            self.check(job_id, self.save(f"{owner}_a_{node_id}_{number}.png", node_id, number), owner=owner)
            self.verdict(job_id)


@pytest.fixture
def studio(tmp_path) -> Studio:
    return Studio(tmp_path)


class Gate:
    """Lets checks in and holds them up."""

    def __init__(self, monkeypatch):
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        native = checking.checks.check

        def check(*args):
            self.entered.release()
            assert self.open.wait(LONG_S)
            return native(*args)

        monkeypatch.setattr(checking.checks, "check", check)


def test_what_names_each_file_anew_is_checked_beside_the_worker_from_the_second_time_on(studio):
    studio.check("1", studio.save("a_1.png", seed=1))
    studio.check("2", studio.save("a_2.png", seed=2))
    assert (studio.verdict("1"), studio.verdict("2")) == (None, None)
    assert (studio.is_beside("1"), studio.is_beside("2")) == (False, True)


def test_what_gives_its_file_a_fixed_name_is_always_checked_on_the_worker(studio):
    for number in range(4):
        studio.check(str(number), studio.save("latest.png", "8", number))
        assert not studio.is_beside(str(number))
    studio.check("other", studio.save("other.png", "8"))
    assert not studio.is_beside("other")


def test_a_node_that_counts_is_trusted_again_after_its_files_were_deleted(studio):
    studio.earn_trust()
    studio.check("first", studio.save("a_0.png"))
    studio.verdict("first")
    for needed in (4, 8):  # new names until it is trusted, twice as many as the time before
        (studio.folder / "a_0.png").unlink()
        beside = []
        for name in ("a_0.png", *(f"a_{needed}_{number}.png" for number in range(needed))):
            studio.check(f"{name} of {needed}", studio.save(name, seed=needed))
            beside.append(studio.is_beside(f"{name} of {needed}"))
        assert beside == [False] * (needed - 1) + [True] * 2


@pytest.mark.parametrize("names", [1, 2, 3])
def test_a_node_with_a_few_names_in_turns_is_trusted_no_more_once_the_first_comes_again(studio, names):
    for number in range(12):
        studio.check(str(number), studio.save(f"{number % names}.png", "8", number))
        assert not studio.is_beside(str(number)) or 0 < number < names


def test_a_node_that_overwrites_what_is_being_checked_is_never_trusted_again(studio, monkeypatch):
    studio.earn_trust()
    with monkeypatch.context() as patched:
        gate = Gate(patched)
        studio.check("1", studio.save("a_1.png", seed=1))
        assert gate.entered.acquire(timeout=LONG_S)
        threading.Timer(0.2, gate.open.set).start()
        studio.check("2", studio.save("a_1.png", seed=2))
        assert not studio.is_beside("2")
        assert studio.verdict("1") == "result_corrupt"
    for number in range(3, 20):
        studio.check(str(number), studio.save(f"a_{number}.png", seed=number))
        assert not studio.is_beside(str(number))


def test_without_checks_at_once_the_worker_checks(tmp_path):
    studio = Studio(tmp_path, checks_at_once=0)
    studio.earn_trust()
    studio.check("1", studio.save("a_1.png"))
    assert not studio.is_beside("1")


def test_a_file_that_is_set_aside_gives_its_name_back(studio):
    studio.earn_trust()
    studio.check("blank", studio.save("a_1.png", blank=True))
    assert studio.verdict("blank") == "result_blank"
    studio.check("good", studio.save("a_1.png", seed=3))
    assert studio.verdict("good") is None
    assert studio.is_beside("good")


def test_the_worker_waits_for_nobodys_checks_and_two_owners_leave_a_place_to_a_third(tmp_path, monkeypatch):
    studio = Studio(tmp_path, checks_at_once=2)
    owners = ("flood", "other", "third")
    for owner in owners:
        studio.earn_trust(owner=owner)
    gate = Gate(monkeypatch)
    jobs = [(f"{owner} {number}", owner) for owner in owners[:2] for number in range(6)]
    for number, (job_id, owner) in enumerate(jobs):
        studio.check(job_id, studio.save(f"a_{number}.png", seed=number), owner=owner)
    for _ in range(4):
        assert gate.entered.acquire(timeout=LONG_S)
    assert not gate.entered.acquire(timeout=0.1), "of one owner two at once"
    studio.check("third", studio.save("third.png"), owner="third")
    assert gate.entered.acquire(timeout=LONG_S)
    gate.open.set()
    assert {studio.verdict(job_id) for job_id in ("third", *(job_id for job_id, _owner in jobs))} == {None}


def test_whoever_asks_for_fixed_names_is_held_back_and_neither_the_worker_nor_others(tmp_path, monkeypatch):
    held_back = []
    studio = Studio(tmp_path / "of-a", checks_at_once=2)
    studio.folder.mkdir()
    studio.checking = Checking(settings().results, tmp_path / "q", syncs=False, hold_back=held_back.append)
    studio.then_gone_on = lambda: order.append(list(held_back))
    order = []
    for number in range(3):
        with monkeypatch.context() as patched:
            gate = Gate(patched)
            studio.check(str(number), studio.save("f_00001_.png", seed=number), owner="a", owner_folder="of-a")
            assert gate.entered.acquire(timeout=LONG_S)
            assert order[-1][-1] == {"a"}, "before its slot is free"
            assert held_back[-1] == {"a"}
            gate.open.set()
            assert studio.verdict(str(number)) is None
            assert studio.is_beside(str(number))
        assert held_back[-1] == frozenset()
    studio.earn_trust(owner="b")
    count = len(held_back)
    studio.check("of b", studio.save("b.png"), owner="b", owner_folder="of-a")
    assert studio.verdict("of b") is None
    assert len(held_back) == count, "what one owner asks for spoils nothing for others"
    studio.check("elsewhere", studio.save("f_00001_.png"), owner="a", owner_folder="of-another")
    assert not studio.is_beside("elsewhere"), "others may write there"


def test_nobody_is_held_back_by_what_has_failed(tmp_path, monkeypatch):
    held_back = []
    studio = Studio(tmp_path / "of-a")
    studio.folder.mkdir()
    facts = {"owner": "a", "owner_folder": "of-a"}

    def fail(*_args):
        raise OSError("unforeseen")

    for name, facts_of in (("check", {}), ("put", {"put_all": fail}), ("go_on", {})):
        held_back.clear()
        studio.checking = Checking(
            settings().results, tmp_path / "q", syncs=False, hold_back=held_back.append, **facts_of
        )
        with monkeypatch.context() as patched:
            if name == "check":
                patched.setattr(checking.checks, "check", fail)
            if name == "go_on":
                patched.setattr(studio, "then_gone_on", fail)
            with contextlib.suppress(OSError):
                studio.check(name, studio.save(f"{name}.png"), **facts)
            ends_s = time.monotonic() + LONG_S
            while held_back != [{"a"}, frozenset()] and time.monotonic() < ends_s:
                time.sleep(0.01)
            assert held_back == [{"a"}, frozenset()]


def test_a_job_that_has_ended_before_its_check_begins_is_not_checked(tmp_path, monkeypatch):
    studio = Studio(tmp_path, checks_at_once=1)
    studio.earn_trust()
    gate = Gate(monkeypatch)
    for number in range(4):
        studio.check(str(number), studio.save(f"a_{number}.png", seed=number))
    assert gate.entered.acquire(timeout=LONG_S)
    for number in (0, 2):
        studio.checking.drop(str(number))
    studio.checking.drop("unknown")
    gate.open.set()
    assert [studio.verdict(str(number)) for number in range(4)] == [None, None, "cancelled", None]
    assert [gate.entered.acquire(timeout=0.1) for _ in range(3)] == [True, True, False]
    assert not studio.checking._dropped


def test_an_owner_is_held_back_while_many_of_its_runs_wait_for_their_checks(tmp_path, monkeypatch):
    held_back = []
    checking_ = Checking(
        settings(results={"checks_at_once": 1}).results, tmp_path / "q", syncs=False, hold_back=held_back.append
    )
    studio = Studio(tmp_path)
    studio.checking = checking_
    studio.earn_trust(owner="a")
    gate = Gate(monkeypatch)
    for number in range(1 + WAITING):
        assert held_back == []
        studio.check(str(number), studio.save(f"a_{number}.png", seed=number), owner="a")
        if not number:
            assert gate.entered.acquire(timeout=LONG_S)
    assert held_back == [{"a"}]
    gate.open.set()
    assert [studio.verdict(str(number)) for number in range(1 + WAITING)] == [None] * (1 + WAITING)
    assert held_back == [{"a"}, frozenset()]


def test_places_go_by_turns_and_what_can_begin_has_begun():
    @hypothesis.given(
        steps=st.lists(st.sampled_from(["a", "b", "c", "end a", "end b", "end c"])), count=st.integers(2, 4)
    )
    def check(steps, count):
        held_back = [frozenset()]
        places = CheckPlaces(count, count - 1, held_back.append)
        under_way, waiting, passed = Counter(), {}, Counter()
        for number, step in enumerate(steps):
            owner = step[-1]
            if step == owner:
                if places.take(owner, number):
                    under_way[owner] += 1
                    assert not waiting.get(owner), "nobody passes what waits"
                else:
                    waiting.setdefault(owner, []).append(number)
            elif under_way[owner]:
                under_way[owner] -= 1
                begun = places.give_back(owner)
                if begun is not None:
                    (following,) = (name for name, numbers in waiting.items() if numbers[:1] == [begun])
                    waiting[following].pop(0)
                    under_way[following] += 1
                    passed[following] = 0
                    for name in waiting:
                        passed[name] += name != following and bool(waiting[name]) and under_way[name] < count - 1
                    assert max(passed.values()) <= 2, "each of the other two at most once"
            assert sum(under_way.values()) <= count
            assert max(under_way.values(), default=0) <= count - 1
            for name, numbers in waiting.items():
                has_place = under_way[name] < count - 1 and sum(under_way.values()) < count
                assert not (numbers and has_place), "a place stands empty"
            assert held_back[-1] == {name for name, numbers in waiting.items() if len(numbers) >= WAITING}

    check()


@pytest.mark.parametrize("blank", [False, True], ids=["good", "blank"])
def test_a_file_that_is_overwritten_while_it_is_checked_fails_its_job_and_stays_where_it_is(studio, monkeypatch, blank):
    studio.earn_trust()
    gate = Gate(monkeypatch)
    studio.check("1", studio.save("a_1.png", seed=1, blank=blank))
    assert gate.entered.acquire(timeout=LONG_S)
    studio.save("a_1.png", seed=2)  # another size of file, and another time
    gate.open.set()
    assert studio.verdict("1") == "result_corrupt"
    assert (studio.folder / "a_1.png").exists()


def test_checks_start_no_thread_each(studio, monkeypatch):
    started, native = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread.name), native(thread))[1])
    studio.earn_trust()
    for number in range(20):
        studio.check(str(number), studio.save(f"a_{number}.png"))
        assert studio.verdict(str(number)) is None
    assert len(started) <= 5, "two threads, with one that works for each, and one that works for the worker"


def test_a_check_that_raises_makes_room_again(tmp_path, monkeypatch):
    studio = Studio(tmp_path, checks_at_once=1)
    studio.earn_trust()
    monkeypatch.setattr(checking.checks, "check", lambda *_args: 1 / 0)
    for number in range(3):
        studio.check(str(number), studio.save(f"a_{number}.png"))
        assert studio.verdict(str(number)) == "internal_error"


def test_a_job_whose_nodes_report_more_than_is_kept_fails_and_is_refunded(tmp_path):
    studio = Studio(tmp_path, max_outputs_bytes=10_000)
    for job_id, length in (("much", 10_000), ("little", 9_000)):
        studio.check(job_id, Outcome(True, outputs={"9": {"text": ["x" * length]}}, prompt=PROMPT))
    assert studio.verdict("much") == "generation_failed"
    assert studio.verdict("little") is None
    unlimited = Studio(tmp_path, max_outputs_bytes=0)
    unlimited.check("much", Outcome(True, outputs={"9": {"text": ["x" * 10_000]}}, prompt=PROMPT))
    assert unlimited.verdict("much") is None


def test_who_converts_holds_up_neither_the_worker_nor_others(studio, monkeypatch):
    let_go, begun = threading.Event(), []
    native = convert.Converter.convert

    def encode(self, files, artifacts, options, **more):
        begun.append(files[0].filename)
        if files[0].filename.startswith("slow"):
            assert let_go.wait(LONG_S)
        return native(self, files, artifacts, options, **more)

    monkeypatch.setattr(convert.Converter, "convert", encode)
    studio.earn_trust(owner="a")
    studio.earn_trust(owner="b")
    webp = ResultOptions(format="webp")
    for number in range(4):
        studio.check(f"slow {number}", studio.save(f"slow_{number}.png"), options=webp, owner="a")
    studio.check("plain", studio.save("plain.png"), owner="b")
    assert studio.verdict("plain") is None
    studio.check("quick", studio.save("quick.png"), options=webp, owner="b")
    assert studio.verdict("quick") is None
    # Which one is a matter of whose check ended first.
    assert len([name for name in begun if name.startswith("slow")]) == 1, "one of an owner at once"
    let_go.set()
    assert [studio.verdict(f"slow {number}") for number in range(4)] == [None] * 4
    assert (studio.artifacts["slow 3"][0].converted.error, studio.artifacts["quick"][0].converted.error) == (None, None)


def test_who_has_waited_too_long_for_its_turn_has_no_copies_and_passes(tmp_path, monkeypatch):
    studio = Studio(tmp_path, convert_timeout_s=0.1)
    let_go, begun = threading.Event(), threading.Event()
    native = convert.Converter.convert

    def encode(self, files, artifacts, options, **more):
        if files[0].filename == "first.png":
            begun.set()
            assert let_go.wait(LONG_S)
        return native(self, files, artifacts, options, **more)

    monkeypatch.setattr(convert.Converter, "convert", encode)
    studio.earn_trust(owner="a")
    for name in ("first", "second"):
        studio.check(name, studio.save(f"{name}.png"), options=ResultOptions(format="webp"), owner="a")
        assert begun.wait(LONG_S)
    while not any(studio.checking._conversions._places.count_waiting()):  # the second one, once it is checked
        time.sleep(0.01)
    time.sleep(0.3)
    let_go.set()
    assert studio.verdict("second") is None
    assert studio.artifacts["second"][0].converted.error == "too_slow"


@pytest.fixture
def asked(monkeypatch):
    """The checks for which a thread of their own was asked."""
    asked: list[object] = []
    within = checking.within.run_within
    monkeypatch.setattr(checking.within, "run_within", lambda *args: (asked.append(args), within(*args))[1])
    return asked


def test_a_run_without_files_is_checked_without_another_thread(studio, asked):
    studio.check("words", Outcome(True, outputs={"8": {"text": ["hello"]}}, prompt=PROMPT))
    studio.check("nothing", Outcome(True, prompt=PROMPT))
    assert (studio.verdict("words"), studio.verdict("nothing")) == (None, "result_missing")
    assert not asked


def test_small_pngs_are_checked_without_another_thread_and_all_else_with_one(studio, asked):
    studio.check("good", studio.save("a.png"))
    studio.check("blank", studio.save("b.png", blank=True))
    assert (studio.verdict("good"), studio.verdict("blank")) == (None, "result_blank")
    assert not asked
    studio.check("gif", studio.save("a.gif"))
    assert studio.verdict("gif") is None
    assert len(asked) == 1


def test_a_check_that_waits_for_the_disk_has_a_thread_of_its_own(tmp_path, asked):
    studio = Studio(tmp_path)
    studio.checking = Checking(settings().results, tmp_path / "quarantine", syncs=True)
    studio.check("good", studio.save("a.png"))
    assert studio.verdict("good") is None
    assert asked


def _claim_size(path, width, height):
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "is_quick"),
    [
        (lambda path: None, True),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), True),
        (lambda path: _claim_size(path, 2048, 2048), True),
        (lambda path: _claim_size(path, 2049, 2048), False),
        (lambda path: _claim_size(path, 2**31, 1), False),
        (lambda path: path.write_bytes(path.read_bytes().ljust(checks.QUICK_BYTES + 1, b"\0")), False),
        (lambda path: path.write_bytes(b"GIF89a" + bytes(2000)), False),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(2000)), False),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), False),
        (lambda path: path.unlink(), False),
        (lambda path: (path.unlink(), path.mkdir()), False),
        pytest.param(
            lambda path: (path.unlink(), os.mkfifo(path)), False, marks=pytest.mark.skipif(os.name == "nt", reason="no")
        ),
    ],
)
def test_what_a_png_is_like_is_known_by_its_head_and_not_by_its_name(studio, spoil, is_quick):
    good, other = studio.save("good.png"), studio.save("other.png", node_id="8", seed=1)
    spoil(other.files[0].path)
    outcome = Outcome(True, outputs={**good.outputs, **other.outputs}, files=(*good.files, *other.files), prompt=PROMPT)
    assert checks.are_quick(outcome) is is_quick
    assert checks.are_quick(replace(outcome, files=good.files, byproducts=other.files)) is is_quick
