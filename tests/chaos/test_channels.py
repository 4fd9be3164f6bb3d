"""A job has one ending, on disk before anybody hears of it: a listener on every channel, through full disks, silent
stores, stops, and kills at every boundary.

`make channels` plays 500 schedules on the sandbox and 20 on each real ComfyUI (CHANNELS, CHANNELS_REAL).
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.conftest import database
from chaos.faults import STEPS, Books, Faults
from chaos.schedule import (
    KINDS,
    STALLED_AFTER_S,
    WAYS,
    Drain,
    Full,
    Gate,
    InBooks,
    Kill,
    Native,
    Pause,
    Reached,
    Room,
    Runs,
    Silent,
    Speaks,
    Stalled,
    Step,
    Stop,
    Submit,
    Term,
    played,
)
from contract.conftest import kinds, serves
from contract.test_webhooks import SETTINGS as WEBHOOKS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

SCHEDULES = int(os.environ.get("GUARDED_CHANNELS", "50"))
REAL_SCHEDULES = int(os.environ.get("GUARDED_CHANNELS_REAL", "3"))
#: Longer than a schedule with kills of a cold real ComfyUI may take on two busy cores.
SCHEDULE_WITHIN_S = 60

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.name == "nt", reason="signals"),
    pytest.mark.timeout(600 + SCHEDULE_WITHIN_S * max(SCHEDULES // 4, REAL_SCHEDULES)),
]

#: `native.mode`; how many jobs may be in front of the GPU there, and how many are checked at once at first.
MODES = {"open": (1, 2), "guarded": (2, 1), "closed": (1, 0)}
SETTINGS = {
    **WEBHOOKS,
    "GUARDED_WEBHOOKS__MAX_AGE_S": "3600",
    "GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "0.4",
    "GUARDED_WATCHDOG__MAX_DISOWNED": "8",
    "GUARDED_WATCHDOG__SHUTDOWN_GRACE_S": "1",
    "GUARDED_WATCHDOG__MAX_ATTEMPTS": "3",
    "GUARDED_STORE__STALLED_AFTER_S": str(STALLED_AFTER_S),
    "GUARDED_LOG__LEVEL": "DEBUG",  # which also says that a job has started
    **{f"GUARDED_JANITOR__{name}_FREE_BYTES": "0" for name in ("MIN", "TARGET", "FLOOR")},
}


@dataclass
class Server:
    host: HostProcess
    faults: Faults
    books: Books


class Servers:
    """One server for each mode, over all schedules; a new one where a schedule has failed."""

    def __init__(self, kind: HostKind, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._servers: dict[str, Server] = {}
        self._made = 0
        self._disks: list[Path] = []

    def play(self, mode: str, steps: list[Step]) -> None:
        server = self._servers.get(mode) or self._start(mode)
        try:
            asyncio.run(played(server.host, server.faults, server.books, mode, serves("/api/jobs")(self._kind), steps))
        except BaseException:
            self._servers.pop(mode)
            server.host.kill()
            raise

    def close(self) -> None:
        for server in self._servers.values():
            server.host.kill()
        for disk in self._disks:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def _start(self, mode: str) -> Server:
        self._made += 1
        base = self._folder / f"{mode}{self._made}"
        disk = self._mount(base / "disk")
        faults = Faults(base / "faults", disk)
        path = disk / "guarded.db" if disk else database(base)
        environment = {
            **SETTINGS,
            **faults.environment,
            "GUARDED_NATIVE__MODE": mode,
            "GUARDED_QUEUE__MAX_JOBS": str(MODES[mode][0]),
            "GUARDED_RESULTS__CHECKS_AT_ONCE": str(MODES[mode][1]),
            "GUARDED_STORE__URL": f"sqlite:///{path}",
        }
        host = HostProcess(self._kind, base, environment=environment).start()
        self._servers[mode] = Server(host, faults, Books(path))
        return self._servers[mode]

    def _mount(self, folder: Path) -> Path | None:
        """A small disk, where this user may mount one; elsewhere SQLite alone says that there is no room."""
        folder.mkdir(parents=True)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            options = ["-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
            subprocess.run(["mount", *options], check=True, capture_output=True)
            self._disks.append(folder)
            return folder
        return None


@pytest.fixture(scope="module", params=kinds())
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(request.param, tmp_path_factory.mktemp("channels"))
    yield servers
    servers.close()


which = st.sampled_from([-1, -1, 0, 1, 2])
submit = st.builds(Submit, st.sampled_from(list(KINDS)), st.sampled_from(["guarded", "guarded", "wait", "native"]))
pause = st.builds(Pause, st.sampled_from([0.0, 0.02, 0.1, 0.5]))
stop = st.builds(Stop, which, st.sampled_from(["DELETE", *WAYS]), st.booleans())
kill = st.builds(Kill, st.sampled_from([None, None, 0, 1, 2]))
drain = st.builds(Drain, st.booleans())
boundary = st.builds(Gate, st.sampled_from(["before", "after"]), st.sampled_from(STEPS))
inner = st.lists(
    st.one_of(submit, stop, st.just(Native()), drain, st.builds(Runs, which), pause, st.just(Stalled())), max_size=3
)


def act(*parts: st.SearchStrategy[object]) -> st.SearchStrategy[list[Step]]:
    """Steps that belong together; a part is a step or a list of them."""
    return st.tuples(*parts).map(
        lambda drawn: [step for part in drawn for step in (part if isinstance(part, list) else [part])]
    )


acts = st.one_of(
    act(submit, inner),
    act(submit, stop, pause),
    act(submit, st.builds(Runs, which), st.builds(Full, st.booleans()), inner, st.sampled_from([Room(), Kill()])),
    act(submit, pause, st.just(Silent()), inner, st.sampled_from([Speaks(), Kill()])),
    act(boundary, submit, inner, st.sampled_from([Reached(), Kill(), Kill(), Kill()]), st.just(Speaks())),
    act(submit, pause, st.one_of(kill, st.just(Term()))),
    # Some are checked, one runs, and others wait or are ready.
    act(st.just(Native()), st.lists(submit, min_size=2, max_size=4), pause, stop, drain, stop, st.one_of(kill, pause)),
)
schedules = st.lists(acts, min_size=1, max_size=3).map(lambda drawn: [step for steps in drawn for step in steps])
#: Nothing is made smaller: each try takes seconds, and the next may go well.
search = settings(
    phases=[Phase.explicit, Phase.generate],
    derandomize=SCHEDULES <= 50,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

#: What once went wrong, each in few steps.
ROWS = {
    "a disk that is full when a job ends": [Submit("picture"), Pause(0.3), Submit("slow"), Runs(1), Full(), Stalled()],
    "a disk that is full when a job ends, and a kill": [Submit("slow"), Runs(0), Full(), Stalled(), Kill()],
    "a disk without a free byte": [Submit("slow"), Runs(0), Full(True), Pause(1.0), Submit("picture"), Room()],
    "a store that says nothing, and a cancel": [
        *(Submit("hang in C"), Runs(0), Silent(), Stop(0, "DELETE", True), Stalled()),
        *(Pause(11.0), Speaks(), Submit("text")),
    ],
    "a store that says nothing, and a kill": [Submit("slow"), Submit("text"), Runs(0), Silent(), Stalled(), Kill()],
    "cancels between dispatch and start": [
        step for _ in range(8) for step in (Submit("text"), Stop(-1, "guarded delete", True))
    ],
    "a worker that dies": [Submit("dead worker"), Submit("dead worker"), Submit("exit"), Submit("text")],
}
BOUNDARIES = {
    f"a kill {when} the commit of {step}": [Submit("picture"), Pause(0.1), Gate(when, step), Submit("slow"), Kill()]
    for when in ("before", "after")
    for step in STEPS
}


def test_a_worker_that_waits_takes_a_new_job_in_one_commit(servers):
    steps = [Submit("text"), Pause(0.5), Gate("after", "dispatched"), Submit("text"), Reached(), InBooks("running")]
    servers.play("open", [*steps, Speaks()])


@pytest.mark.parametrize("row", ROWS)
def test_whatever_happens_at_the_end_of_a_job_every_channel_tells_the_same_end_once_it_is_on_disk(servers, row):
    servers.play("guarded", ROWS[row])


@pytest.mark.parametrize("servers", kinds(lambda kind: not kind.real), indirect=True)
@pytest.mark.parametrize("row", BOUNDARIES)
def test_a_kill_at_any_boundary_leaves_each_job_one_end_and_every_channel_tells_it(servers, row):
    servers.play("guarded", BOUNDARIES[row])


@pytest.mark.parametrize("servers", kinds(lambda kind: not kind.real), indirect=True)
@settings(search, max_examples=SCHEDULES)
@given(st.sampled_from(list(MODES)), schedules)
def test_in_any_schedule_every_channel_tells_the_same_end_once_it_is_on_disk(servers, mode, steps):
    servers.play(mode, steps)


@pytest.mark.parametrize("servers", kinds(lambda kind: kind.real), indirect=True)
@settings(search, max_examples=REAL_SCHEDULES)
@given(st.sampled_from(list(MODES)), schedules)
def test_in_any_schedule_on_comfyui_every_channel_tells_the_same_end_once_it_is_on_disk(servers, mode, steps):
    servers.play(mode, steps)
