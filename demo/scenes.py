"""The scenes of the tour: what is done to jobs, and what has to come of it."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .client import Answer, Client, TourError
from .table import Table, outcome, quoted

#: Photos that the pip packages scikit-image and insightface carry; `make demo` unpacks both into `.venv/photos`.
PHOTOS = (
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/chelsea.png",
    "skimage/data/rocket.jpg",
    "skimage/data/motorcycle_left.png",
    "insightface/data/images/t1.jpg",
    "insightface/data/images/Tom_Hanks_54745.png",
)
#: The tour's server lets so many jobs wait, so that a full queue is soon had.
MAX_QUEUED = 5
SETTINGS = {"GUARDED_QUEUE__MAX_QUEUED": str(MAX_QUEUED)}

_PNG = b"\x89PNG\r\n\x1a\n"
#: What the promise to answer by the deadline allows on top of a job's own limit.
_LATE_BY_S = 1.0

Prompt = dict[str, dict[str, Any]]


class Tour:
    """One walk through all scenes, on a server that takes jobs.

    Args:
        restart: starts the killed server again and waits until it takes jobs; the seconds that took.
    """

    def __init__(
        self, client: Client, table: Table, base: Path, kill: Callable[[], None], restart: Callable[[], float]
    ) -> None:
        self._client = client
        self._table = table
        self._base = base
        self._kill = kill
        self._restart = restart
        self._seed = 0

    def walk(self) -> None:
        scenes: tuple[tuple[str, Callable[[], None]], ...] = (
            ("One job on a photo", self._one_job),
            ("Two at once: the second waits its turn", self._two_at_once),
            ("A job over its deadline, and the next one", self._over_its_deadline),
            ("Cancelled while it waits", self._cancelled_waiting),
            ("Cancelled while it runs", self._cancelled_running),
            ("Nodes that raise", self._raising),
            ("A picture that breaks off in the middle", self._truncated),
            (f"A full queue ({MAX_QUEUED} may wait on this server)", self._full_queue),
            ("Refused at the door", self._refused),
            (f"SIGKILL of the server: one job runs, {MAX_QUEUED} wait", self._killed),
            ("The books", self._books),
        )
        for number, (title, scene) in enumerate(scenes, start=1):
            self._table.scene(f"{number}. {title}")
            try:
                scene()
            except (TourError, OSError, KeyError, sqlite3.Error) as error:
                said = f"{type(error).__name__}: {error}" if not isinstance(error, TourError) else str(error)
                self._table.row(title, "the scene to its end", "broken off", faults=(said,))
                self._tidy_up()

    # The scenes. ---------------------------------------------------------------------------------------------

    def _one_job(self) -> None:
        answer = self._client.post(resized("astronaut.png", 256, "one"), wait_s=60)
        job = answer.guard.get("job") or {}
        if answer.status != 200 or not job:
            raise TourError(f"HTTP {answer.status}: {answer.raw.decode(errors='replace')[:300]}")
        self._table.job("astronaut.png, scaled to 256 × 256, saved", "succeeded", job)
        artifact = job["artifacts"][0]
        fetched = self._client.request("GET", artifact["url"])
        faults = _unless(
            (fetched.raw.startswith(_PNG), "it is no PNG"),
            (len(fetched.raw) == artifact["bytes"], f"{len(fetched.raw)} bytes came, {artifact['bytes']} were told"),
            (hashlib.sha256(fetched.raw).hexdigest() == artifact["sha256"], "its SHA-256 is another"),
            ((artifact["width"], artifact["height"]) == (256, 256), "its size is another"),
        )
        told = f"{len(fetched.raw) / 1024:.0f} KB {fetched.headers['Content-Type']}, SHA-256 as told"
        self._table.row("its picture, fetched", "HTTP 200", f"HTTP {fetched.status}", told=told, faults=faults)

    def _two_at_once(self) -> None:
        first = self._client.submit(self._slow(1.0, "coffee.png", "two"))
        self._client.running(first)
        answer = self._client.post(resized("t1.jpg", 320, "two"))
        guard = answer.guard
        self._table.row(
            "t1.jpg, sent while coffee.png runs",
            "queued, place 1",
            f"{guard.get('state')}, place {guard.get('position')}",
            told=quoted(guard.get("user_message")),
            faults=_unless(
                (_is_russian(guard.get("user_message")), "no Russian notice"), (guard.get("running") == 1, "running")
            ),
        )
        one, two = self._client.settled(first), self._client.settled(answer.body["prompt_id"])
        self._table.job("coffee.png, a run of 1 s", "succeeded", one)
        alone = two["started_at_ms"] is not None and two["started_at_ms"] >= one["settled_at_ms"]
        self._table.job("t1.jpg, after it", "succeeded", two, faults=_unless((alone, "both ran at once")))

    def _over_its_deadline(self) -> None:
        limit_s = 1.0
        late = self._client.submit(self._slow(30, "rocket.jpg", "late"), timeout_s=limit_s)
        following = self._client.submit(resized("rocket.jpg", 200, "late"))
        job = self._client.settled(late)
        ran_s = (job["settled_at_ms"] - job["started_at_ms"]) / 1000
        self._table.job(
            f"rocket.jpg, a run of 30 s, timeout_s {limit_s:g}",
            "failed generation_timeout",
            job,
            faults=_unless((ran_s <= limit_s + _LATE_BY_S, f"the verdict came after {ran_s:.2f} s")),
        )
        self._table.job("the next one", "succeeded", self._client.settled(following))

    def _cancelled_waiting(self) -> None:
        first = self._client.submit(self._slow(0.8, "chelsea.png", "cancelled"))
        self._client.running(first)
        second = self._client.submit(resized("coffee.png", 200, "cancelled"))
        job = self._client.cancel(second)
        self._table.job(
            "coffee.png, DELETE while it waits",
            "cancelled",
            job,
            faults=_unless((job["started_at_ms"] is None, "it had begun to run")),
        )
        self._table.job("chelsea.png, which was running", "succeeded", self._client.settled(first))

    def _cancelled_running(self) -> None:
        job_id = self._client.submit(self._slow(30, "chelsea.png", "cancelled"))
        self._client.running(job_id)
        time.sleep(0.2)
        self._client.cancel(job_id)
        job = self._client.settled(job_id)
        ran_s = (job["settled_at_ms"] - job["started_at_ms"]) / 1000
        self._table.job(
            "chelsea.png, a run of 30 s, DELETE",
            "cancelled",
            job,
            faults=_unless((ran_s <= 0.2 + _LATE_BY_S, f"it took {ran_s:.2f} s")),
        )
        after = self._client.submit(resized("chelsea.png", 200, "cancelled"))
        self._table.job("the next one", "succeeded", self._client.settled(after))

    def _raising(self) -> None:
        for kind, code in (("value_error", "generation_failed"), ("out_of_memory", "out_of_memory")):
            job_id = self._client.submit(self._fault("FaultRaise", kind=kind, message="the tour's own fault"))
            job = self._client.settled(job_id)
            culprit = ((job["error"] or {}).get("details") or {}).get("node_type")
            self._table.job(
                f"a node raises {kind}",
                f"failed {code}",
                job,
                faults=_unless((culprit == "FaultRaise", f"the node named is {culprit}")),
            )

    def _truncated(self) -> None:
        node = {"class_type": "FaultTruncatedImage", "inputs": {"filename_prefix": "truncated", "seed": self._next()}}
        job = self._client.settled(self._client.submit({"1": node}))
        left = [path.name for path in (self._base / "output").glob("truncated*")]
        faults = _unless((not left, f"still in the output folder: {', '.join(left)}"))
        self._table.job("half a PNG, which ComfyUI calls a success", "failed result_corrupt", job, faults=faults)

    def _full_queue(self) -> None:
        holder = self._client.submit(self._slow(1.0, "coffee.png", "full"))
        self._client.running(holder)
        waiting = self._fill("full")
        refused = self._client.post(resized("coffee.png", 100, "full"))
        retry_after = refused.headers.get("Retry-After")
        self._refusal(
            "one job too many",
            "429 queue_full",
            refused,
            faults=_unless((retry_after is not None and retry_after.isdigit(), f"Retry-After is {retry_after}")),
        )
        self._all_succeeded(f"the {len(waiting)} that wait", waiting, holder=holder)

    def _refused(self) -> None:
        unknown = resized("coffee.png", 100, "refused")
        unknown["2"]["class_type"] = "NodeOfAPackThatIsNotHere"
        ui_format = {"nodes": [{"id": 1, "type": "LoadImage", "widgets_values": ["coffee.png"]}], "links": []}
        for what, prompt, expected in (
            ("a node class that does not exist", unknown, "422 missing_node"),
            ("a workflow as the editor saves it", ui_format, "400 invalid_workflow"),
            ("a photo that is not there", resized("no_such_photo.png", 100, "refused"), "422 bad_image"),
        ):
            self._refusal(what, expected, self._client.post(prompt))
        open_jobs = self._client.open_jobs()
        none = _unless((not open_jobs, f"{len(open_jobs)} jobs are there"))
        self._table.row("jobs made by these", "0", str(len(open_jobs)), faults=none)

    def _killed(self) -> None:
        running = self._client.submit(self._slow(1.5, "motorcycle_left.png", "killed"))
        self._client.running(running)
        waiting = self._fill("killed")
        time.sleep(0.3)
        self._kill()
        self._table.say("       the server is dead; starting it again ...")
        took_s = self._restart()
        self._table.say(f"       it takes jobs again after {took_s:.1f} s")
        job = self._client.settled(running, within_s=120)
        self._table.job(
            "motorcycle_left.png, killed in its run",
            "succeeded",
            job,
            faults=_unless((job["attempts"] == 2, f"attempts is {job['attempts']}, not 2")),
        )
        self._all_succeeded(f"the {len(waiting)} that waited", waiting)
        times = Counter(state for state in self._ends([running, *waiting]).values())
        happened = ", ".join(f"{count} × {state}" for state, count in times.items())
        self._table.row("their ends in the database", f"{len(waiting) + 1} × succeeded", happened)

    def _books(self) -> None:
        """Over the whole tour: each job has one end, in the database as in the API."""
        with self._database() as db:
            states = dict(db.execute("SELECT job_id, state FROM jobs"))
        ends = self._ends(list(states))
        wrong = [job_id for job_id, state in states.items() if ends[job_id] != state]
        faults = tuple(f"{job_id} is {states[job_id]}; its ends: {ends[job_id] or 'none'}" for job_id in wrong)
        self._table.row(
            "jobs that have exactly one end",
            f"{len(states)} of {len(states)}",
            f"{len(states) - len(wrong)} of {len(states)}",
            faults=faults,
        )

    # Helpers. ------------------------------------------------------------------------------------------------

    def _fill(self, prefix: str) -> list[str]:
        """As many jobs as may wait, each on a photo of its own."""
        photos = [Path(photo).name for photo in PHOTOS[:MAX_QUEUED]]
        return [self._client.submit(resized(photo, 128 + 8 * place, prefix)) for place, photo in enumerate(photos)]

    def _all_succeeded(self, what: str, job_ids: list[str], holder: str | None = None) -> None:
        jobs = [self._client.settled(job_id, within_s=120) for job_id in job_ids]
        counts = Counter(outcome(job) for job in jobs)
        names = [artifact["filename"] for job in jobs for artifact in job["artifacts"]]
        in_order = all(one["settled_at_ms"] <= two["started_at_ms"] for one, two in itertools.pairwise(jobs))
        self._table.row(
            what,
            f"{len(jobs)} × succeeded",
            ", ".join(f"{count} × {state}" for state, count in counts.items()),
            refund=any(job["refund"] for job in jobs),
            told=f"{len(names)} pictures, one after the other: {names[0]} … {names[-1]}" if names else "",
            faults=_unless((in_order, "not one after the other, in the order of their coming")),
        )
        if holder is not None:
            self._client.settled(holder)

    def _refusal(self, what: str, expected: str, answer: Answer, faults: tuple[str, ...] = ()) -> None:
        text = answer.guard.get("user_message")
        self._table.row(
            what,
            expected,
            f"{answer.status} {answer.guard.get('code')}",
            refund=answer.guard.get("refund"),
            told=quoted(text),
            faults=(*faults, *_unless((_is_russian(text), "no Russian text"))),
        )

    def _fault(self, class_type: str, **inputs: Any) -> Prompt:
        """A faulty node between a photo and SaveImage."""
        return {
            "1": {"class_type": "LoadImage", "inputs": {"image": "coffee.png"}},
            "2": {"class_type": class_type, "inputs": {"image": ["1", 0], "seed": self._next(), **inputs}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "tour_fault"}},
        }

    def _slow(self, seconds: float, photo: str, prefix: str) -> Prompt:
        """A run of so many seconds over a photo, which listens to interrupts and reports progress."""
        prompt = self._fault("FaultSleep", seconds=seconds, checks_interrupt=True, steps=20)
        prompt["1"]["inputs"]["image"] = photo
        prompt["3"]["inputs"]["filename_prefix"] = f"tour_{prefix}"
        return prompt

    def _next(self) -> int:
        self._seed += 1
        return self._seed

    def _ends(self, job_ids: list[str]) -> dict[str, str]:
        """The terminal states that the transitions table has of each job, in order; one, where all is well."""
        with self._database() as db:
            rows = db.execute(
                "SELECT job_id, state FROM transitions WHERE state IN ('succeeded', 'failed', 'cancelled')"
            ).fetchall()
        return {job_id: " + ".join(state for other, state in rows if other == job_id) for job_id in job_ids}

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The job database, read-only, beside the server that writes it."""
        path = self._base / "user" / "__guarded" / "guarded.db"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            yield db

    def _tidy_up(self) -> None:
        """After a scene that broke off: nothing of it may be in the way of the next one."""
        try:
            for job_id in self._client.open_jobs():
                self._client.cancel(job_id)
        except (TourError, OSError, KeyError):
            self._kill()
            self._restart()


def resized(photo: str, side: int, prefix: str) -> Prompt:
    """LoadImage → ImageScale → SaveImage."""
    scale = {"upscale_method": "bilinear", "width": side, "height": side, "crop": "center"}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **scale}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": f"tour_{prefix}"}},
    }


def _unless(*claims: tuple[bool, str]) -> tuple[str, ...]:
    """What is said of each claim that does not hold."""
    return tuple(complaint for holds, complaint in claims if not holds)


def _is_russian(text: str | None) -> bool:
    return any("а" <= letter <= "я" for letter in text or "")
