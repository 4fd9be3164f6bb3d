"""Whether the process lives, and whether it can take a job now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import TypedDict

from ..errors import DiskFullError, ServerUnavailableError
from ..host import Host
from ..store import Store

_ALARMS = {
    "draining": "No new job is taken: the server drains.",
    "restarting": "The process restarts, since the GPU can no longer be used by it.",
    "worker dead": "ComfyUI's worker thread is dead.",
    "worker stuck": "The worker hangs in a node, and watchdog.on_stuck is report.",
}


class AlarmBody(TypedDict):
    """What an operator should look at now."""

    code: str
    message: str


class HealthFacts(TypedDict):
    """The host and its features, why no job can be let in now, and how many jobs and hung workers there are."""

    host: dict[str, Any]
    problems: list[str]
    queued: int
    hung_workers: int


class Health:
    """What `/guarded/health` and `/guarded/ready` say, and what admission asks first."""

    def __init__(self, host: Host, store: Store) -> None:
        self._host = host
        self._store = store
        self._serving = False
        self._disk_full: Callable[[], DiskFullError | None] = lambda: None
        self.draining = False
        self.restarting = False
        #: The worker hangs, and the settings say to leave it so.
        self.stuck = False

    def watch_disk(self, full: Callable[[], DiskFullError | None]) -> None:
        """Ask `full` before a job is let in. Those that are in already go on: the floor is kept for their results."""
        self._disk_full = full

    def mark_serving(self) -> None:
        """The server is up, every custom node loaded. Before that, a prompt would be judged too early."""
        self._serving = True

    def problems(self) -> list[str]:
        """Why no job can be taken now; empty where one can."""
        found = []
        if not self._serving:
            found.append("starting")
        if self.draining:
            found.append("draining")
        if self.restarting:
            found.append("restarting")
        if not self._host.worker_alive():
            found.append("worker dead")
        if self.stuck:
            found.append("worker stuck")
        return found

    def refusals(self) -> list[str]:
        """Why no job can be let in now: the problems, and a disk below its floor."""
        return [*self.problems(), *(["disk full"] if self._disk_full() else [])]

    def check_ready(self) -> None:
        """Raises ServerUnavailableError or DiskFullError unless a job can be let in now."""
        if problems := self.problems():
            raise ServerUnavailableError(
                f"The server cannot take a job now: {', '.join(problems)}.",
                extra_info={"problems": problems},
                retry_after_s=10,
            )
        self.check_disk()

    def check_disk(self) -> None:
        """Raises DiskFullError where nothing more may be written."""
        if (full := self._disk_full()) is not None:
            raise full

    def alarms(self) -> list[AlarmBody]:
        """What an operator should look at now."""
        found = [(name.replace(" ", "_"), text) for name, text in _ALARMS.items() if name in self.problems()]
        if (full := self._disk_full()) is not None:
            found.append((full.code, f"{full.message} Only {full.extra_info['free_bytes']} bytes are free."))
        if hung := self._host.hung_workers():
            found.append(
                ("worker_hangs", f"{hung} worker(s) hang in a node and were left behind; a restart frees them.")
            )
        return [{"code": code, "message": message} for code, message in found]

    def facts(self) -> HealthFacts:
        """More than the bare status, for callers who may see it."""
        return {
            "host": self._host.describe(),
            "problems": self.refusals(),
            "queued": self._store.queued,
            "hung_workers": self._host.hung_workers(),
        }
