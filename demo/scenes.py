"""The scenes of the tour: what it does to jobs, and which outcome it expects."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .client import Answer, Client, TourError
from .table import Table, describe_outcome, quote

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
#: The tour's server lets this many jobs wait: few, so that the queue is soon full.
MAX_QUEUED = 5
SETTINGS = {"GUARDED_QUEUE__MAX_QUEUED": str(MAX_QUEUED), "GUARDED_JANITOR__SWEEP_NATIVE": "true"}

_PNG = b"\x89PNG\r\n\x1a\n"
#: The guard promises a verdict this long after a job's own limit, at the latest.
_LATE_BY_S = 1.0

Prompt = dict[str, dict[str, Any]]


class Tour:
    """One walk through all scenes, on a server that takes jobs.

    Args:
        restart: starts the killed server again, waits until it takes jobs, and returns how many seconds that took.
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
            ("One job on a photo", self._run_one),
            ("Two at once: the second waits its turn", self._run_two),
            ("A job over its deadline, and the next one", self._miss_deadline),
            ("Cancelled while it waits", self._cancel_waiting),
            ("Cancelled while it runs", self._cancel_running),
            ("Nodes that raise", self._raise_errors),
            ("A picture that breaks off in the middle", self._truncate),
            (f"A full queue ({MAX_QUEUED} may wait on this server)", self._overfill_queue),
            ("Refused at the door", self._submit_bad_prompts),
            (f"SIGKILL of the server: one job runs, {MAX_QUEUED} wait", self._kill_server),
            ("The books", self._check_books),
        )
        for number, (title, scene) in enumerate(scenes, start=1):
            self._table.print_scene(f"{number}. {title}")
            try:
                scene()
            except (TourError, OSError, KeyError, sqlite3.Error) as error:
                reason = f"{type(error).__name__}: {error}" if not isinstance(error, TourError) else str(error)
                self._table.print_row(title, "the scene to its end", "broken off", faults=(reason,))
                self._tidy_up()

    # The scenes. ---------------------------------------------------------------------------------------------

    def _run_one(self) -> None:
        answer = self._client.post(make_resize("astronaut.png", 256, "one"), wait_s=60)
        job = answer.guard.get("job") or {}
        if answer.status != 200 or not job:
            raise TourError(f"HTTP {answer.status}: {answer.raw.decode(errors='replace')[:300]}")
        self._table.print_job("astronaut.png, scaled to 256 × 256, saved", "succeeded", job)
        artifact = job["artifacts"][0]
        fetched = self._client.request("GET", artifact["url"])
        faults = _list_failures(
            (fetched.raw.startswith(_PNG), "it is no PNG"),
            (len(fetched.raw) == artifact["bytes"], f"{len(fetched.raw)} bytes came, {artifact['bytes']} were told"),
            (hashlib.sha256(fetched.raw).hexdigest() == artifact["sha256"], "its SHA-256 is another"),
            ((artifact["width"], artifact["height"]) == (256, 256), "its size is another"),
        )
        details = f"{len(fetched.raw) / 1024:.0f} KB {fetched.headers['Content-Type']}, SHA-256 as told"
        self._table.print_row(
            "its picture, fetched", "HTTP 200", f"HTTP {fetched.status}", details=details, faults=faults
        )

    def _run_two(self) -> None:
        first = self._client.submit(self._make_slow(1.0, "coffee.png", "two"))
        self._client.wait_running(first)
        answer = self._client.post(make_resize("t1.jpg", 320, "two"))
        guard = answer.guard
        self._table.print_row(
            "t1.jpg, sent while coffee.png runs",
            "queued, place 1",
            f"{guard.get('state')}, place {guard.get('position')}",
            details=quote(guard.get("user_message")),
            faults=_list_failures(
                (_is_russian(guard.get("user_message")), "no Russian notice"), (guard.get("running") == 1, "running")
            ),
        )
        one, two = self._client.wait_settled(first), self._client.wait_settled(answer.body["prompt_id"])
        self._table.print_job("coffee.png, a run of 1 s", "succeeded", one)
        alone = self._ran_in_turn([one["job_id"], two["job_id"]])
        self._table.print_job("t1.jpg, after it", "succeeded", two, faults=_list_failures((alone, "both ran at once")))

    def _miss_deadline(self) -> None:
        limit_s = 1.0
        late = self._client.submit(self._make_slow(30, "rocket.jpg", "late"), timeout_s=limit_s)
        following = self._client.submit(make_resize("rocket.jpg", 200, "late"))
        job = self._client.wait_settled(late)
        ran_s = (job["settled_at_ms"] - job["started_at_ms"]) / 1000
        self._table.print_job(
            f"rocket.jpg, a run of 30 s, timeout_s {limit_s:g}",
            "failed generation_timeout",
            job,
            faults=_list_failures((ran_s <= limit_s + _LATE_BY_S, f"the verdict came after {ran_s:.2f} s")),
        )
        self._table.print_job("the next one", "succeeded", self._client.wait_settled(following))

    def _cancel_waiting(self) -> None:
        first = self._client.submit(self._make_slow(0.8, "chelsea.png", "cancelled"))
        self._client.wait_running(first)
        second = self._client.submit(make_resize("coffee.png", 200, "cancelled"))
        job = self._client.cancel(second)
        self._table.print_job(
            "coffee.png, DELETE while it waits",
            "cancelled",
            job,
            faults=_list_failures((job["started_at_ms"] is None, "it had begun to run")),
        )
        self._table.print_job("chelsea.png, which was running", "succeeded", self._client.wait_settled(first))

    def _cancel_running(self) -> None:
        job_id = self._client.submit(self._make_slow(30, "chelsea.png", "cancelled"))
        self._client.wait_running(job_id)
        time.sleep(0.2)
        self._client.cancel(job_id)
        job = self._client.wait_settled(job_id)
        ran_s = (job["settled_at_ms"] - job["started_at_ms"]) / 1000
        self._table.print_job(
            "chelsea.png, a run of 30 s, DELETE",
            "cancelled",
            job,
            faults=_list_failures((ran_s <= 0.2 + _LATE_BY_S, f"it took {ran_s:.2f} s")),
        )
        after = self._client.submit(make_resize("chelsea.png", 200, "cancelled"))
        self._table.print_job("the next one", "succeeded", self._client.wait_settled(after))

    def _raise_errors(self) -> None:
        for kind, code in (("value_error", "generation_failed"), ("out_of_memory", "out_of_memory")):
            job_id = self._client.submit(self._make_fault("FaultRaise", kind=kind, message="the tour's own fault"))
            job = self._client.wait_settled(job_id)
            culprit = ((job["error"] or {}).get("details") or {}).get("node_type")
            self._table.print_job(
                f"a node raises {kind}",
                f"failed {code}",
                job,
                faults=_list_failures((culprit == "FaultRaise", f"the node named is {culprit}")),
            )

    def _truncate(self) -> None:
        node = {
            "class_type": "FaultTruncatedImage",
            "inputs": {"filename_prefix": "truncated", "seed": self._next_seed()},
        }
        job = self._client.wait_settled(self._client.submit({"1": node}))
        left = [path.name for path in (self._base / "output").glob("truncated*")]
        faults = _list_failures((not left, f"still in the output folder: {', '.join(left)}"))
        self._table.print_job("half a PNG, which ComfyUI calls a success", "failed result_corrupt", job, faults=faults)

    def _overfill_queue(self) -> None:
        holder = self._client.submit(self._make_slow(1.0, "coffee.png", "full"))
        self._client.wait_running(holder)
        waiting = self._fill_queue("full")
        refused = self._client.post(make_resize("coffee.png", 100, "full"))
        retry_after = refused.headers.get("Retry-After")
        self._check_refusal(
            "one job too many",
            "429 queue_full",
            refused,
            faults=_list_failures((retry_after is not None and retry_after.isdigit(), f"Retry-After is {retry_after}")),
        )
        self._check_all_succeeded(f"the {len(waiting)} that wait", waiting, holder=holder)

    def _submit_bad_prompts(self) -> None:
        unknown = make_resize("coffee.png", 100, "refused")
        unknown["2"]["class_type"] = "NodeOfAPackThatIsNotHere"
        no_output = {"nodes": [{"id": 1, "type": "LoadImage", "widgets_values": ["coffee.png"]}], "links": []}
        for what, prompt, expected in (
            ("a node class that does not exist", unknown, "422 missing_node"),
            ("an editor's workflow without an output", no_output, "400 invalid_workflow"),
            ("a photo that is not there", make_resize("no_such_photo.png", 100, "refused"), "422 bad_image"),
        ):
            self._check_refusal(what, expected, self._client.post(prompt))
        open_jobs = self._client.list_open_jobs()
        none = _list_failures((not open_jobs, f"{len(open_jobs)} jobs are there"))
        self._table.print_row("jobs made by these", "0", str(len(open_jobs)), faults=none)

    def _kill_server(self) -> None:
        running = self._client.submit(self._make_slow(1.5, "motorcycle_left.png", "killed"))
        self._client.wait_running(running)
        waiting = self._fill_queue("killed")
        time.sleep(0.3)
        self._kill()
        self._table.print("       the server is dead; starting it again ...")
        took_s = self._restart()
        self._table.print(f"       it takes jobs again after {took_s:.1f} s")
        job = self._client.wait_settled(running, within_s=120)
        self._table.print_job(
            "motorcycle_left.png, killed in its run",
            "succeeded",
            job,
            faults=_list_failures((job["attempts"] == 2, f"attempts is {job['attempts']}, not 2")),
        )
        self._check_all_succeeded(f"the {len(waiting)} that waited", waiting)
        times = Counter(state for state in self._read_ends([running, *waiting]).values())
        happened = ", ".join(f"{count} × {state}" for state, count in times.items())
        self._table.print_row("their ends in the database", f"{len(waiting) + 1} × succeeded", happened)

    def _check_books(self) -> None:
        """Check over the whole tour that each job has exactly one end in the database."""
        with self._open_database() as db:
            states = dict(db.execute("SELECT job_id, state FROM jobs"))
        ends = self._read_ends(list(states))
        wrong = [job_id for job_id, state in states.items() if ends[job_id] != state]
        faults = tuple(f"{job_id} is {states[job_id]}; its ends: {ends[job_id] or 'none'}" for job_id in wrong)
        self._table.print_row(
            "jobs that have exactly one end",
            f"{len(states)} of {len(states)}",
            f"{len(states) - len(wrong)} of {len(states)}",
            faults=faults,
        )

    # Helpers. ------------------------------------------------------------------------------------------------

    def _fill_queue(self, prefix: str) -> list[str]:
        """Submit as many jobs as may wait, each on a photo of its own."""
        photos = [Path(photo).name for photo in PHOTOS[:MAX_QUEUED]]
        return [self._client.submit(make_resize(photo, 128 + 8 * index, prefix)) for index, photo in enumerate(photos)]

    def _check_all_succeeded(self, what: str, job_ids: list[str], holder: str | None = None) -> None:
        jobs = [self._client.wait_settled(job_id, within_s=120) for job_id in job_ids]
        counts = Counter(describe_outcome(job) for job in jobs)
        names = [artifact["filename"] for job in jobs for artifact in job["artifacts"]]
        in_order = self._ran_in_turn(job_ids)
        self._table.print_row(
            what,
            f"{len(jobs)} × succeeded",
            ", ".join(f"{count} × {state}" for state, count in counts.items()),
            refund=any(job["refund"] for job in jobs),
            details=f"{len(names)} pictures, one after the other: {names[0]} … {names[-1]}" if names else "",
            faults=_list_failures((in_order, "not one after the other, in the order of their coming")),
        )
        if holder is not None:
            self._client.wait_settled(holder)

    def _check_refusal(self, what: str, expected: str, answer: Answer, faults: tuple[str, ...] = ()) -> None:
        text = answer.guard.get("user_message")
        self._table.print_row(
            what,
            expected,
            f"{answer.status} {answer.guard.get('code')}",
            refund=answer.guard.get("refund"),
            details=quote(text),
            faults=(*faults, *_list_failures((_is_russian(text), "no Russian text"))),
        )

    def _make_fault(self, class_type: str, **inputs: Any) -> Prompt:
        """Make a prompt with a faulty node between a photo and SaveImage."""
        return {
            "1": {"class_type": "LoadImage", "inputs": {"image": "coffee.png"}},
            "2": {"class_type": class_type, "inputs": {"image": ["1", 0], "seed": self._next_seed(), **inputs}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "tour_fault"}},
        }

    def _make_slow(self, seconds: float, photo: str, prefix: str) -> Prompt:
        """Make a prompt that runs for this long, checks for interrupts and reports progress."""
        prompt = self._make_fault("FaultSleep", seconds=seconds, checks_interrupt=True, steps=20)
        prompt["1"]["inputs"]["image"] = photo
        prompt["3"]["inputs"]["filename_prefix"] = f"tour_{prefix}"
        return prompt

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed

    def _ran_in_turn(self, job_ids: Iterable[str]) -> bool:
        """Whether the worker had let go of each job before it began the next; its files may be checked meanwhile."""
        at_ms: dict[tuple[str, str], int] = {}
        with self._open_database() as db:
            for job_id, state, when_ms in db.execute("SELECT job_id, state, at_ms FROM transitions ORDER BY event_id"):
                at_ms[job_id, state] = when_ms
        pairs = itertools.pairwise(job_ids)
        return all(at_ms[one, "validating"] <= at_ms[two, "running"] for one, two in pairs)

    def _read_ends(self, job_ids: list[str]) -> dict[str, str]:
        """Read each job's terminal states from the table `transitions`, in order; there should be one."""
        with self._open_database() as db:
            rows = db.execute(
                "SELECT job_id, state FROM transitions WHERE state IN ('succeeded', 'failed', 'cancelled')"
            ).fetchall()
        return {job_id: " + ".join(state for other, state in rows if other == job_id) for job_id in job_ids}

    @contextmanager
    def _open_database(self) -> Iterator[sqlite3.Connection]:
        """Open the job database read-only, while the server writes it."""
        path = self._base / "user" / "__guarded" / "guarded.db"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            yield db

    def _tidy_up(self) -> None:
        """End the jobs of a scene that broke off, so that they do not disturb the next one."""
        try:
            for job_id in self._client.list_open_jobs():
                self._client.cancel(job_id)
        except (TourError, OSError, KeyError):
            self._kill()
            self._restart()


def make_resize(photo: str, side: int, prefix: str) -> Prompt:
    """Make a prompt: LoadImage → ImageScale → SaveImage."""
    scale = {"upscale_method": "bilinear", "width": side, "height": side, "crop": "center"}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **scale}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": f"tour_{prefix}"}},
    }


def _list_failures(*claims: tuple[bool, str]) -> tuple[str, ...]:
    """The complaints of the claims that do not hold."""
    return tuple(complaint for holds, complaint in claims if not holds)


def _is_russian(text: str | None) -> bool:
    return any("а" <= letter <= "я" for letter in text or "")
