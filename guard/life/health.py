"""Say whether the server can take a job now, and what is wrong where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from typing_extensions import TypedDict

from ..errors import DiskFullError, ServerUnavailableError
from ..host import Host

_ALARMS = {
    "draining": "No new job is taken: the server drains.",
    "restarting": "The process restarts, since it can no longer use the GPU.",
    "worker dead": "ComfyUI's worker thread is dead.",
    "worker stuck": "The worker hangs in a node, and watchdog.on_stuck is report.",
}


class AlarmBody(TypedDict):
    """Something that an operator should look at now."""

    code: str
    message: str


class HealthFacts(TypedDict):
    """The host and its features, why no job can be admitted now, and how many jobs and hung workers there are."""

    host: dict[str, Any]
    problems: list[str]
    queued: int
    hung_workers: int


class Queue(Protocol):
    """What the report of health asks of the job store: see :class:`guard.store.Store`."""

    @property
    def queued(self) -> int: ...


class Health:
    """What `/guarded/health` and `/guarded/ready` answer, and what admission asks first. Any thread."""

    def __init__(self, host: Host, store: Queue) -> None:
        self._host = host
        self._store = store
        self._serving = False
        #: Further problems: a name, a text for operators, and whether it is so now.
        self._watched: list[tuple[str, Callable[[], str], Callable[[], bool]]] = []
        #: What lets no job in although those that were admitted go on: the same.
        self._refusing: list[tuple[str, Callable[[], str], Callable[[], bool]]] = []
        #: What an operator should know although jobs run: the same.
        self._warned: list[tuple[str, Callable[[], str], Callable[[], bool]]] = []
        #: What keeps `/guarded/ready` from saying so, although jobs are taken and run: the same.
        self._unready: list[tuple[str, Callable[[], bool]]] = []
        self._disks_full: list[Callable[[], DiskFullError | None]] = []
        #: Those of them that another server may have room for.
        self._own_disks_full: list[Callable[[], DiskFullError | None]] = []
        #: Other servers run the jobs of this queue, too: see :meth:`hindrances`.
        self.has_others = False
        self.draining = False
        self.restarting = False
        #: The worker hangs, and watchdog.on_stuck is `report`.
        self.stuck = False

    def watch_disk(self, full: Callable[[], DiskFullError | None], *, is_own: bool = True) -> None:
        """Ask `full` before a job is admitted. Admitted jobs go on: the free space is there for their results.

        `is_own`: other servers of this queue may have room.
        """
        self._disks_full.append(full)
        if is_own:
            self._own_disks_full.append(full)

    def _disk_full(self) -> DiskFullError | None:
        return next((error for full in self._disks_full if (error := full()) is not None), None)

    def watch(self, name: str, text: str | Callable[[], str], is_so: Callable[[], bool]) -> None:
        """Report the problem `name` while `is_so()`, which any thread may call and which must not block.

        `text` says to operators what it means. No job is admitted or dispatched meanwhile.
        """
        self._watched.append((name, text if callable(text) else lambda: text, is_so))

    def watch_admission(self, name: str, text: Callable[[], str], is_so: Callable[[], bool]) -> None:
        """Report the problem `name` while `is_so()`, as with :meth:`watch`; but nothing is refused because of it: each
        job meets the error itself.
        """
        self._refusing.append((name, text, is_so))

    def warn(self, name: str, text: str | Callable[[], str], is_so: Callable[[], bool]) -> None:
        """Alarm operators while `is_so()`, as with :meth:`watch`; but jobs go on."""
        self._warned.append((name, text if callable(text) else lambda: text, is_so))

    def hold_ready(self, name: str, is_so: Callable[[], bool]) -> None:
        """Report the problem `name` to who asks whether the server is ready while `is_so()`; but jobs go on."""
        self._unready.append((name, is_so))

    def mark_serving(self) -> None:
        """The server serves, and every custom node is loaded: only from now on can a prompt be validated."""
        self._serving = True

    def problems(self) -> list[str]:
        """Why no job can run now; empty where one can."""
        problems = []
        if not self._serving:
            problems.append("starting")
        if self.draining:
            problems.append("draining")
        if self.restarting:
            problems.append("restarting")
        if not self._host.worker_alive():
            problems.append("worker dead")
        if self.stuck:
            problems.append("worker stuck")
        problems.extend(name for name, _text, is_so in self._watched if is_so())
        return problems

    def hindrances(self) -> list[str]:
        """Why no job may begin here now: the problems; and a full disk, where other servers may have room."""
        is_full = self.has_others and any(full() is not None for full in self._own_disks_full)
        return [*self.problems(), *(["disk full"] if is_full else [])]

    def refusals(self) -> list[str]:
        """Why no job can be admitted now: the problems, what refuses each job, a disk with too little free space."""
        refusing = [name for name, _text, is_so in self._refusing if is_so()]
        return [*self.problems(), *refusing, *(["disk full"] if self._disk_full() else [])]

    def unready(self) -> list[str]:
        """Why nobody should be sent here now: what refuses jobs, and what would make them wait for long."""
        return [*self.refusals(), *(name for name, is_so in self._unready if is_so())]

    def check_ready(self) -> None:
        """Raises ServerUnavailableError or DiskFullError unless a job can be admitted now."""
        if problems := self.problems():
            raise ServerUnavailableError(
                f"The server cannot take a job now: {', '.join(problems)}.",
                extra_info={"problems": problems},
                retry_after_s=10,
            )
        self.check_disk()

    def check_disk(self) -> None:
        """Raises DiskFullError if the disk has too little free space, or the job database none to grow."""
        if (full := self._disk_full()) is not None:
            raise full

    def alarms(self) -> list[AlarmBody]:
        """What an operator should look at now, each with a code and a message."""
        texts = {**_ALARMS, **{name: text() for name, text, _is_so in self._watched}}
        alarms = [(name.replace(" ", "_"), texts[name]) for name in self.problems() if name in texts]
        alarms.extend((name.replace(" ", "_"), text()) for name, text, is_so in self._refusing if is_so())
        alarms.extend((name.replace(" ", "_"), text()) for name, text, is_so in self._warned if is_so())
        if (full := self._disk_full()) is not None:
            alarms.append((full.code, f"{full.message} {full.details}".strip()))
        if hung := self._host.hung_workers():
            alarms.append(
                ("worker_hangs", f"{hung} worker(s) hang in a node and were left behind; a restart frees them.")
            )
        return [{"code": code, "message": message} for code, message in alarms]

    def facts(self) -> HealthFacts:
        """Details for operators, as JSON."""
        return {
            "host": self._host.describe(),
            "problems": self.refusals(),
            "queued": self._store.queued,
            "hung_workers": self._host.hung_workers(),
        }
