"""What open jobs name, what owners have not fetched, and what the store forgets."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from unit.fakes import LONG_S, FailingStore, FakeFaces, FakeHost, new_id, new_job, settings, uploads
from unit.janitor import DAY_S, Box, put

from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.files.files import Files
from comfyui_guarded.guard.files.references import References
from comfyui_guarded.guard.janitor import Janitor
from comfyui_guarded.guard.janitor.in_use import InUse, collect_names, make_keys
from comfyui_guarded.guard.janitor.sweep import Sweep
from comfyui_guarded.guard.job import SUCCESS, Artifact, Result, Verdict
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.secrets import Secrets
from comfyui_guarded.guard.owners import folder_of
from comfyui_guarded.guard.quotas import Quotas
from comfyui_guarded.guard.store import IdempotencyKey, SqliteStore
from comfyui_guarded.guard.submit.admission import Admission
from comfyui_guarded.guard.submit.limits import Limits
from comfyui_guarded.guard.submit.request import Submission

ROOTS = ["/srv/output", "/srv/input"]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


def graph(*values: Any) -> dict[str, Any]:
    return {"1": {"class_type": "LoadImage", "inputs": {f"in{number}": value for number, value in enumerate(values)}}}


def queued(store: FailingStore, *values: Any, **facts: Any) -> str:
    job = new_job(body=json.dumps({"prompt": graph(*values)}).encode(), **facts)
    store.submit(job, 1_000_000).result(LONG_S)
    return job.job_id


@pytest.mark.parametrize(
    ("value", "root", "path"),
    [
        ("a.png", "input", "a.png"),
        ("a.png", "output", "a.png"),
        ("sub/a.png", "input", "sub/a.png"),
        ("sub\\a.png", "input", "sub/a.png"),
        ("./sub//x/../a.png", "input", "sub/a.png"),
        ("a.png [output]", "output", "a.png"),
        ("sub/a.png[temp]", "temp", "sub/a.png"),
        ("A.PNG", "input", "a.png"),
        ("e\u0301.png", "input", "é.png"),
        ("../output/a.png", "output", "a.png"),
        ("/srv/input/a.png", "input", "a.png"),
        (" lead and trail ", "input", " lead and trail "),
        (" a.png ", "input", "a.png"),
        (["x", {"deep": ["a.png"]}], "input", "a.png"),
        ("b.png\na.png\r\nc.png", "input", "a.png"),
        ("new\nline.png", "input", "new\nline.png"),
    ],
)
def test_a_prompt_names_a_file_in_every_way_that_a_node_may_read_it(value: Any, root: str, path: str):
    names = collect_names(graph(value), lambda: ROOTS)
    assert names & set(make_keys(root, path, [f"/srv/{root}"]))


@pytest.mark.parametrize(
    ("value", "root", "path"),
    [
        ("a.png", "input", "b.png"),
        ("a.png [output]", "input", "a.png"),
        ("sub/a.png", "input", "sub"),
        ("..", "input", "a.png"),
        (".", "input", "a.png"),
        ("", "input", "a.png"),
        (7, "input", "7"),
    ],
)
def test_what_a_prompt_does_not_name_it_does_not_hold(value: Any, root: str, path: str):
    assert not collect_names(graph(value), lambda: ROOTS) & set(make_keys(root, path, [f"/srv/{root}"]))


@pytest.mark.parametrize("prompt", [None, [], {"1": None}, {"1": {"inputs": "x.png"}}, {"1": {}}])
def test_prompts_of_any_shape_are_borne(prompt: Any):
    collect_names(prompt, lambda: ROOTS)
    InUse(lambda: ROOTS).add_stored(json.dumps({"prompt": prompt}).encode())
    InUse(lambda: ROOTS).add_stored(b"\xff")
    InUse(lambda: ROOTS).add_stored(b"[]")


def test_the_inputs_of_open_jobs_stay_and_those_of_settled_ones_go(box: Box, store: FailingStore):
    for name in ("queued.png", "running.png", "settled.png", "nobody.png", "set/1.png", "set/2.png"):
        put(box.input / name)
    put(box.output / "again.png")
    queued(store, "queued.png", "again.png [output]", "set")
    running = queued(store, "running.png", order=-2.0)
    settled = queued(store, "settled.png", order=-1.0)
    store.claim("h", 2).result(LONG_S)
    store.start(running).result(LONG_S)
    store.settle(settled, Verdict.of(_error())).result(LONG_S)
    report = box.janitor(store).sweep(time.time())
    assert box.left() == {
        "input/queued.png",
        "input/running.png",
        "input/set/1.png",
        "input/set/2.png",
        "output/again.png",
    }
    assert report.kept["in_use"].files == 5


def test_many_large_bodies_are_read_a_few_at_a_time(box: Box, store: FailingStore, monkeypatch):
    monkeypatch.setattr("comfyui_guarded.guard.store.queries.BODIES_BYTES", 1000)
    for number in range(30):
        put(box.input / f"{number}.png")
        queued(store, f"{number}.png", "x" * 300)
    assert box.janitor(store).sweep(time.time()).files == 0


def test_where_the_store_cannot_say_what_is_in_use_nothing_is_deleted(box: Box, store: FailingStore):
    put(box.input / "a.png")
    janitor = box.janitor(store)
    store._engine._lister.close()
    report = janitor.sweep(time.time())
    assert box.left() == {"input/a.png"}
    assert (report.files, report.errors) == (0, 1)


def test_while_nobody_can_read_the_database_only_what_no_job_can_need_is_swept(box: Box, tmp_path, clock):
    """By then each job that waits in it is overdue. Results are kept as long as for an owner who has not come yet."""
    (tmp_path / "guarded.db").mkdir()
    store = SqliteStore(tmp_path / "guarded.db", clock, open_now=False)
    store.serve("local", 2)
    for root in (box.output, box.temp, box.input):
        put(root / "old.png", 4 * DAY_S)
        put(root / "young.png", 2 * DAY_S)
    everything = box.left()
    blind = box.janitor(store, blind_after_s=0.0, min_free_bytes=2**62, target_free_bytes=2**62)
    patient = box.janitor(store, blind_after_s=LONG_S)
    assert patient.sweep(time.time()).errors == 1
    assert box.left() == everything
    report = blind.sweep(time.time())
    assert (report.files, report.errors) == (2, 1)
    assert everything - box.left() == {"output/old.png", "temp/old.png"}
    store.close()


def test_while_another_process_has_the_database_its_janitor_is_the_one_that_sweeps(box: Box, store, clock):
    other = SqliteStore(store.path, clock, open_now=False)
    other.serve("local", 2)
    put(box.output / "old.png")
    assert box.janitor(other, blind_after_s=0.1).sweep(time.time() + 1).files == 0
    other.close()


def _admission(store: FailingStore, host: FakeHost, clock: Clock, janitor: Janitor) -> Admission:
    references = References(host, Files(host, store))
    ready = _ready(host, store)
    placed = uploads(host.input_folder)
    limits, quotas = Limits(settings().limits, clock), Quotas(settings().limits)
    return Admission(
        settings(), store, host, ready, FakeFaces(), references, Secrets(), clock, placed, limits, quotas,
        janitor.in_use,
    )  # fmt: skip


class TestAdmissionDuringASweep:
    """A sweep that has begun does not know of jobs that come in now, unless it is told."""

    async def test_a_file_that_a_prompt_names_stays_from_before_its_validation_on(
        self, box: Box, store: FailingStore, host: FakeHost, clock: Clock
    ):
        janitor = box.janitor(store)
        admission = _admission(store, host, clock, janitor)
        put(box.input / "a.png")
        swept = []

        async def sweep() -> None:
            swept.append(await asyncio.to_thread(janitor.sweep, time.time()))

        host.during_rehearsal = sweep
        await admission.admit(Submission(json.dumps({"prompt": graph("a.png")}).encode(), LOCAL))
        assert swept[0].kept["in_use"].files == 1
        assert box.left() == {"input/a.png"}

    async def test_an_upload_stays_while_a_job_of_its_owner_names_it(
        self, box: Box, store: FailingStore, host: FakeHost, clock: Clock
    ):
        """The prompt says `a.png`; what is stored, and held, is where that lies."""
        host.places = box.folders
        janitor = box.janitor(store)
        for folder in (folder_of("mine"), folder_of("yours"), "."):
            put(box.input / folder / "a.png")
        prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
        raw = json.dumps({"prompt": prompt}).encode()
        await _admission(store, host, clock, janitor).admit(Submission(raw, Client("mine", operator=False)))
        await asyncio.to_thread(janitor.sweep, time.time())
        assert box.left() == {f"input/{folder_of('mine')}/a.png"}

    async def test_a_job_let_in_after_the_sweep_has_looked_into_the_store_is_safe(
        self, box: Box, store: FailingStore, host: FakeHost, clock: Clock, monkeypatch
    ):
        janitor = box.janitor(store)
        admission = _admission(store, host, clock, janitor)
        put(box.input / "a.png")
        looked, go_on = threading.Event(), threading.Event()
        walk = Sweep.walk

        def late(*args: Any) -> None:
            looked.set()
            go_on.wait(LONG_S)
            walk(*args)

        monkeypatch.setattr(Sweep, "walk", late)
        sweep = asyncio.create_task(asyncio.to_thread(janitor.sweep, time.time()))
        await asyncio.to_thread(looked.wait, LONG_S)
        await admission.admit(Submission(json.dumps({"prompt": graph("a.png")}).encode(), LOCAL))
        go_on.set()
        await sweep
        assert box.left() == {"input/a.png"}

    async def test_a_prompt_that_names_what_is_just_being_deleted_waits_until_that_is_over(self, box: Box):
        in_use = box.janitor().in_use
        with in_use.admission() as hold:
            with in_use.about_to_delete(lambda: ["a.png"]):
                keeping = asyncio.create_task(hold.keep(graph("a.png")))
                other = asyncio.create_task(hold.keep(graph("b.png")))
                await asyncio.wait_for(other, LONG_S)
                await asyncio.sleep(0.02)
                assert not keeping.done()
                assert in_use.names_any(["a.png"]), "but it is held from the first moment"
            await asyncio.wait_for(keeping, LONG_S)
        assert not in_use.names_any(["a.png"])
        assert not in_use._held

    async def test_under_a_storm_of_both_no_admitted_job_ever_misses_its_file(self, box: Box):
        """What ComfyUI saw at validation is there after the commit."""
        janitor = box.janitor(settle_s=0)
        path = box.input / "a.png"
        done = threading.Event()
        deleted = 0

        def sweep() -> None:
            nonlocal deleted
            while not done.is_set():
                deleted += janitor.sweep(time.time()).files

        thread = threading.Thread(target=sweep)
        thread.start()
        try:
            seen = 0
            for number in range(300):
                os.replace(put(box.base / "upload"), path)
                await asyncio.sleep(number % 4 * 0.0005)
                with janitor.in_use.admission() as hold:
                    await hold.keep(graph("a.png"))
                    if path.exists():
                        seen += 1
                        await asyncio.sleep(0.001)
                        assert path.exists()
        finally:
            done.set()
            thread.join()
        assert seen
        assert deleted


@pytest.fixture(params=["at hand", "by batch"])
def few_or_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few unread files the sweep has all at hand; of many it asks the store, batch by batch."""
    if request.param == "by batch":
        monkeypatch.setattr("comfyui_guarded.guard.janitor.known.UNREAD_AT_HAND", 0)


@pytest.mark.usefixtures("few_or_many")
class TestUnread:
    def _succeeded(self, store: FailingStore, *names: str, kind: str = "output") -> str:
        job_id = queued(store, "x")
        store.claim("h", 1).result(LONG_S)
        artifacts = []
        for index, name in enumerate(names):
            subfolder, _, filename = name.rpartition("/")
            artifacts.append(Artifact(index, "2", "image", filename, subfolder, kind, 10, "0" * 64))
        store.settle(job_id, SUCCESS, Result({}, tuple(artifacts))).result(LONG_S)
        store.release(job_id).result(LONG_S)
        return job_id

    def test_a_result_stays_until_its_owner_has_fetched_it(self, box: Box, store: FailingStore):
        for name in ("a.png", "sub/b.png", "c.png"):
            put(box.output / name, 2 * DAY_S)
        put(box.input / "a.png")
        job_id = self._succeeded(store, "a.png", "sub/b.png")
        janitor = box.janitor(store)
        report = janitor.sweep(time.time())
        assert box.left() == {"output/a.png", "output/sub/b.png"}
        assert report.kept["unread"].files == 2
        store.mark_fetched(job_id, 0).result(LONG_S)
        janitor.sweep(time.time())
        assert box.left() == {"output/sub/b.png"}

    def test_it_does_not_wait_for_ever(self, box: Box, store: FailingStore):
        put(box.temp / "a.png")
        self._succeeded(store, "a.png", kind="temp")
        janitor = box.janitor(store, unread_max_age_s=DAY_S)
        janitor.sweep(time.time() + DAY_S - 60)
        assert box.left() == {"temp/a.png"}
        janitor.sweep(time.time() + DAY_S + 60)
        assert box.left() == set()

    def test_it_is_remembered_across_restarts(self, box: Box, store: FailingStore, clock: Clock, tmp_path: Path):
        put(box.output / "a.png")
        self._succeeded(store, "a.png")
        store.close()
        again = FailingStore(store.path, clock)
        box.janitor(again).sweep(time.time())
        assert box.left() == {"output/a.png"}
        again.close()

    @pytest.mark.skipif("sys.platform != 'linux'", reason="names that are not UTF-8")
    def test_names_that_are_not_utf8_settle_and_are_kept(self, box: Box, store: FailingStore):
        put(box.output / "\udcff.png")
        self._succeeded(store, "\udcff.png")
        box.janitor(store).sweep(time.time())
        assert box.left() == {"output/\udcff.png"}

    def test_a_newer_job_of_the_same_name_takes_the_place_of_an_older(self, box: Box, store: FailingStore):
        put(box.output / "a.png")
        first = self._succeeded(store, "a.png")
        self._succeeded(store, "a.png")
        store.mark_fetched(first, 0).result(LONG_S)
        box.janitor(store).sweep(time.time())
        assert box.left() == {"output/a.png"}


class TestHistory:
    def test_jobs_that_settled_long_ago_are_forgotten_with_all_that_is_known_of_them(
        self, box: Box, store: FailingStore
    ):
        old = []
        for number in range(450):
            job = new_job()
            store.submit(job, 1000, IdempotencyKey(f"k{number}", "d"))
            old.append(job.job_id)
        for job_id in old:
            store.settle(job_id, Verdict.of(_error()))
        waiting = queued(store, "x")
        store.flush()
        janitor = box.janitor(store, history_max_age_s=DAY_S)
        assert janitor.sweep(time.time()).jobs == 0
        assert janitor.sweep(time.time() + 2 * DAY_S, dry_run=True).jobs == 0
        assert janitor.sweep(time.time() + 2 * DAY_S).jobs == 450
        assert store.get(old[0]).result(LONG_S) is None
        assert store.get(waiting).result(LONG_S) is not None
        counts = {}
        for table in ("jobs", "bodies", "transitions", "idempotency", "unread"):
            query = f"SELECT count(*) FROM {table}"
            counts[table] = store._engine.read(lambda db, query=query: db.execute(query).fetchone()[0]).result(LONG_S)
        assert counts == {"jobs": 1, "bodies": 1, "transitions": 1, "idempotency": 0, "unread": 0}
        # The key is free again.
        assert not store.submit(new_job(), 1000, IdempotencyKey("k1", "d")).result(LONG_S).replayed

    def test_a_settled_job_whose_worker_has_not_let_go_stays(self, box: Box, store: FailingStore):
        job_id = queued(store, "x")
        store.claim("h", 1).result(LONG_S)
        store.settle(job_id, Verdict.of(_error())).result(LONG_S)
        janitor = box.janitor(store, history_max_age_s=DAY_S)
        assert janitor.sweep(time.time() + 2 * DAY_S).jobs == 0
        store.release(job_id).result(LONG_S)
        assert janitor.sweep(time.time() + 2 * DAY_S).jobs == 1


def _error() -> Any:
    from comfyui_guarded.guard.errors import GenerationFailedError

    return GenerationFailedError("x", extra_info={"id": new_id()})


def _ready(host: FakeHost, store: FailingStore) -> Health:
    health = Health(host, store)
    health.mark_serving()
    return health
