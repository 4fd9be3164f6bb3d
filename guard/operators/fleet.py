"""What operators see of the fleet: each box, what it runs, and which boxes are late, gone, draining or different."""

from __future__ import annotations

import logging
import threading
from asyncio import wrap_future
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol, cast

from ..clock import Clock
from ..fleet import Membership, find_differences, read_version
from ..fleet.agreed import STATUS as SETTINGS
from ..job import Job
from ..life.health import Health
from ..signal import Signal
from ..store import Box, Member, Recovery
from .bodies import BoxBody, BoxRunBody, BoxState
from .gpu import Gpus

log = logging.getLogger("guarded.fleet")

#: A box is late after this part of the lease: it still has its jobs, and ten of its beats did not come.
LATE = 1 / 3
#: A box whose lease was over is shown for so long.
GONE_SHOWN_MS = 24 * 3_600_000
GONE_AT_MOST = 100
#: A machine's clock is wrong where it differs from the database's by more than this; it is told in steps of that.
CLOCK_OFF_MS = 5000
#: So many runs are shown.
RUNS = 1000
STATES: tuple[BoxState, ...] = ("alive", "draining", "late", "gone")
PROBLEMS = 20


class Records(Protocol):
    """What is asked of the store of a box: see :class:`guard.store.postgres_fleet.FleetStore`."""

    @property
    def is_keeper(self) -> bool: ...
    def list_runs(self, limit: int) -> Future[list[tuple[str, Job]]]: ...


class FleetView:
    """Tells the other boxes about this one, and operators about all of them. `follow` runs on the fleet's thread."""

    def __init__(
        self, membership: Membership, member: Member, store: Records, health: Health, gpus: Gpus, clock: Clock
    ) -> None:
        self._membership = membership
        self._member = member
        self._store = store
        self._health = health
        self._gpus = gpus
        self._clock = clock
        self._lock = threading.Lock()
        self._before: Mapping[str, Box] = {}
        #: Boxes whose lease was over, as they were seen last.
        self._gone: dict[str, Box] = {}
        #: A box was lost: the code of the alarm, its text, no job, the box.
        self.alarmed: Signal[[str, str, None, str]] = Signal()

    def watch(self) -> None:
        """Begin: before the database is open."""
        self._membership.looked.subscribe(self.follow)
        self._membership.reaped.subscribe(self._tell_of_lost)
        health = self._health
        health.warn("box late", self._say_late, lambda: bool(self._list_late()))
        health.warn("boxes differ", self._say_versions, lambda: len(self._list_versions()) > 1)
        health.warn("clocks differ", self._say_clocks, lambda: bool(self._list_clocks()))

    def tell_version(self) -> None:
        """Let the others know which version this box has. Reads files."""
        try:
            self._member.tell("version", read_version())
        except OSError as error:
            log.warning("the other boxes do not hear which version this one has: %s", error)

    # The fleet's thread. -------------------------------------------------------------------------------------

    def follow(self, boxes: tuple[Box, ...]) -> None:
        """Note who has gone, and tell the others what has changed here."""
        now = {box.box: box for box in boxes}
        now_ms = self._clock.now_ms()
        with self._lock:
            for name, box in self._before.items():
                # One that leaves says so; one that is late by then has died.
                if name not in now and self._is_late(box, now_ms):
                    self._gone[name] = box
            kept = [box for name, box in self._gone.items() if name not in now]
            kept = sorted(
                (box for box in kept if now_ms - box.beat_at_ms < GONE_SHOWN_MS), key=lambda box: box.beat_at_ms
            )
            self._gone = {box.box: box for box in kept[-GONE_AT_MOST:]}
            self._before = now
        tell = self._member.tell
        gpu = self._gpus.ours
        tell("gpu", None if gpu is None else gpu.name)
        tell("gpu_bytes", None if gpu is None else gpu.vram_total_bytes)
        tell("problems", self._health.unready() or None)
        off_ms = self._clock.wall_ms() - now_ms  # the other one goes by the database's
        tell("clock_off_ms", round(off_ms / CLOCK_OFF_MS) * CLOCK_OFF_MS or None)

    def _tell_of_lost(self, reaped: Mapping[str, Recovery]) -> None:
        for name, recovery in reaped.items():
            self.alarmed(
                "box_lost",
                f"{name} was not heard of until its lease was over: {recovery.requeued} of its jobs wait again, "
                f"{len(recovery.settled)} could not be repeated.",
                None,
                name,
            )

    # Any thread. ---------------------------------------------------------------------------------------------

    @property
    def box(self) -> str:
        """The name of this box."""
        return self._member.box

    @property
    def is_keeper(self) -> bool:
        """Whether this box does what one is enough for: figures that are the same on all of them are its to tell."""
        return self._store.is_keeper

    def version(self) -> str:
        """The version of this box, empty until it is known."""
        version = self._member.status.get("version")
        return version if isinstance(version, str) else ""

    def count_slots(self) -> int:
        """How many jobs the boxes that live run at once."""
        return sum(box.max_jobs for box in self._membership.boxes if box.is_alive)

    def count_running(self) -> int:
        """How many jobs they have under way."""
        return sum(box.running for box in self._membership.boxes)

    def count_states(self) -> Counter[BoxState]:
        """How many boxes there are of each kind."""
        now_ms = self._clock.now_ms()
        return Counter(self._judge(box, now_ms) for box in self._list_all())

    def count_versions(self) -> int:
        """How many versions of this package they have."""
        return len(self._list_versions())

    def _list_all(self) -> list[Box]:
        with self._lock:
            gone = list(self._gone.values())
        boxes = self._membership.boxes
        return sorted(
            [*boxes, *(box for box in gone if box.box not in {one.box for one in boxes})], key=lambda b: b.box
        )

    def _silent_ms(self, box: Box, now_ms: int) -> int:
        return max(now_ms - box.beat_at_ms, 0)

    def _is_late(self, box: Box, now_ms: int) -> bool:
        return self._silent_ms(box, now_ms) > self._member.lease_ms * LATE

    def _judge(self, box: Box, now_ms: int) -> BoxState:
        if self._silent_ms(box, now_ms) > self._member.lease_ms or box.box in self._gone:
            return "gone"
        if self._is_late(box, now_ms):
            return "late"
        return "draining" if "draining" in _read_problems(box) else "alive"

    def _list_late(self) -> list[Box]:
        now_ms = self._clock.now_ms()
        return [box for box in self._membership.boxes if self._judge(box, now_ms) == "late"]

    def _list_versions(self) -> dict[str, list[str]]:
        versions: dict[str, list[str]] = {}
        for box in self._membership.boxes:
            if (version := box.text("version")) is not None:
                versions.setdefault(version, []).append(box.box)
        return versions

    def _list_clocks(self) -> dict[str, float]:
        offs = {box.box: _read_clock(box) for box in self._membership.boxes}
        return {name: off_ms / 1000 for name, off_ms in offs.items() if off_ms}

    def _say_late(self) -> str:
        now_ms = self._clock.now_ms()
        late = (f"{box.box} ({self._silent_ms(box, now_ms) / 1000:.0f} s)" for box in self._list_late())
        return f"Not heard of: {', '.join(late)}. Their jobs begin elsewhere once the lease is over."

    def _say_versions(self) -> str:
        versions = (f"{version}: {', '.join(names)}" for version, names in sorted(self._list_versions().items()))
        return f"The boxes have different versions of this package. {'; '.join(versions)}."

    def _say_clocks(self) -> str:
        offs = (f"{name}: {off_s:+.0f} s" for name, off_s in self._list_clocks().items())
        return f"Clocks of machines differ from the database's, by which all go: {', '.join(offs)}."

    # The event loop. -----------------------------------------------------------------------------------------

    async def list_bodies(self) -> list[BoxBody]:
        """Each box as JSON, by name. Raises GuardError where the database cannot be read."""
        runs: dict[str, list[BoxRunBody]] = {}
        for name, job in await wrap_future(self._store.list_runs(RUNS)):
            runs.setdefault(name, []).append(_describe_run(job))
        now_ms = self._clock.now_ms()
        versions = self._list_versions()
        usual = max(versions, key=lambda version: (len(versions[version]), version)) if versions else None
        differing = self._list_differing()
        return [
            self._describe(box, now_ms, usual, box.box in differing, runs.get(box.box, [])) for box in self._list_all()
        ]

    def _list_differing(self) -> set[str]:
        """The boxes with other settings than this one has, of those that must agree."""
        own = self._member.status.get(SETTINGS)
        found = find_differences(own, self._membership.boxes) if isinstance(own, dict) else {}
        return {name for names in found.values() for name in names}

    def _describe(
        self, box: Box, now_ms: int, usual: str | None, has_other_settings: bool, runs: list[BoxRunBody]
    ) -> BoxBody:
        version = box.text("version")
        differs = []
        if version is not None and version != usual:
            differs.append("version")
        if has_other_settings:
            differs.append("settings")
        if _read_clock(box):
            differs.append("clock")
        bytes_ = box.number("gpu_bytes")
        return {
            "box": box.box,
            "is_this": box.box == self._member.box,
            "state": self._judge(box, now_ms),
            "beat_at_ms": box.beat_at_ms,
            "url": box.url,
            "version": version,
            "gpu": box.text("gpu"),
            "gpu_bytes": None if bytes_ is None else int(bytes_),
            "max_jobs": box.max_jobs,
            "runs": runs,
            "problems": _read_problems(box),
            "clock_off_s": _read_clock(box) / 1000,
            "differs": differs,
        }


def _read_problems(box: Box) -> list[str]:
    return sorted(problem[:100] for problem in (box.texts("problems") or ()))[:PROBLEMS]


def _read_clock(box: Box) -> float:
    off_ms = box.status.get("clock_off_ms")
    return float(off_ms) if isinstance(off_ms, int) and not isinstance(off_ms, bool) and abs(off_ms) < 2**53 else 0.0


def _describe_run(job: Job) -> BoxRunBody:
    return {
        "job_id": job.job_id,
        "owner": job.owner,
        "template": job.template,
        "state": job.state.value,
        "since_ms": job.started_at_ms,
    }


def make_view(
    membership: Membership | None, member: Member | None, store: object, health: Health, gpus: Gpus, clock: Clock
) -> FleetView | None:
    """What is seen of the fleet; None where this server is in none. Before the database is open."""
    if membership is None or member is None:
        return None
    view = FleetView(membership, member, cast(Records, store), health, gpus, clock)
    view.watch()
    return view
