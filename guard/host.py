"""All that the core may ask of the server we live in, and all that it is told by it.

`host/comfyui` keeps this promise for ComfyUI and for the sandbox; host shapes (queue tuples, history dicts, node
classes) stop there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .errors import GuardError
from .job import ProgressBody, Verdict


@dataclass(frozen=True)
class Refusal:
    """The host's own answer to a prompt that it will not run, in its own words."""

    type: str
    message: str
    details: str
    extra_info: Mapping[str, Any]
    node_errors: Mapping[str, Any]


@dataclass(frozen=True)
class Rehearsal:
    """What the host said of a prompt that was shown to it but not queued."""

    refusal: Refusal | None
    outputs_to_execute: tuple[str, ...] = ()


class Names(enum.Enum):
    """What the text of a node's input names."""

    FILE = enum.auto()  # a file or folder in one of the host's folders, input where nothing else is said
    PATH = enum.auto()  # any path of the machine


@dataclass(frozen=True)
class ReportedFile:
    """A result file as a node named it. `path` is absolute and lies inside the root of its `type`, else None."""

    node_id: str
    filename: str
    subfolder: str
    type: str
    path: Path | None


@dataclass(frozen=True)
class Outcome:
    """What the worker reported at the end of one run.

    Attributes:
        success: as the host sees it.
        interrupted: someone's interrupt ended it.
        outputs: ComfyUI's history outputs, `{node_id: {key: [items]}}`.
        files: the files named in there.
        prompt: the graph that ran.
        cached: ids of the nodes that did not run, since the host had their outputs from an earlier prompt.
        exception_type, exception_message, node_id, node_type: of the node that raised, where one did.
    """

    success: bool
    interrupted: bool = False
    outputs: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[ReportedFile, ...] = ()
    prompt: Mapping[str, Any] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    exception_type: str = ""
    exception_message: str = ""
    node_id: str | None = None
    node_type: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a running job is: the current node's own steps, and per cent over all nodes that it has to run."""

    value: float
    max: float
    node_id: str | None
    node_title: str | None
    percent: int

    def body(self) -> ProgressBody:
        """As JSON."""
        return {
            "value": self.value,
            "max": self.max,
            "node_id": self.node_id,
            "node_title": self.node_title,
            "percent": self.percent,
        }


@dataclass(frozen=True)
class Folders:
    """Where files come and go; None for a root that is not there.

    `keep` are folders that are nobody's to tidy, wherever they lie: models (some are registered below output), the
    host's custom nodes, its user directory. `program` is the host's own code.
    """

    output: Path | None
    temp: Path | None
    input: Path | None
    keep: tuple[Path, ...] = ()
    program: Path | None = None

    def roots(self) -> dict[str, Path | None]:
        """The three roots by name, in the order of ROOTS."""
        return {"output": self.output, "temp": self.temp, "input": self.input}


class HostListener(Protocol):
    """What the host tells the core.

    `started` and `finished` come on the worker's thread and may hold it up; the others must not block.
    """

    def started(self, job_id: str) -> bool:
        """The worker has taken the job. False: it has ended meanwhile; stop it."""

    def finished(self, job_id: str, outcome: Outcome) -> Verdict:
        """The run is over; the verdict that holds, durable by the time this returns."""

    def released(self, job_id: str) -> None:
        """The host no longer has the job, whether it ran or not: its slot is free."""

    def progressed(self, job_id: str, progress: Progress) -> None:
        """The job has moved on."""

    def previewed(self, job_id: str, mime: str, encode: Callable[[], bytes]) -> None:
        """A picture of the unfinished result; `encode` takes its time, and may be called on any thread, or never."""

    def dropped(self, job_id: str) -> None:
        """Somebody took the job out of the host's queue; `released` follows."""

    def lost(self, job_id: str) -> None:
        """The host stumbled over the job before it ran, and has it no longer; `released` follows."""

    def unreadable(self, job_id: str) -> None:
        """The run is over, and the host's report of it makes no sense; `released` follows."""

    def native_started(self, prompt_id: str) -> None:
        """The worker has taken a prompt that did not come through the guard."""

    def native_finished(self, prompt_id: str) -> None:
        """The host no longer has that prompt."""


class SocketListener(Protocol):
    """Who sends the host's websocket messages on to sockets that the host does not know."""

    def wants(self, sid: str | None) -> bool:
        """Whether there is a socket of that client id (None: any socket). Any thread."""

    def passed(self, event: Any, data: Any, sid: str | None, message: str | bytes) -> None:
        """A message to one client id (None: to all): the host's event and data, and what its socket would be sent.

        Event loop, in the host's order.
        """


class Backlog(Protocol):
    """The guard's jobs that the host is to show in its own queue and history although it does not have them.

    `known` are the ids of the prompts that it has. Any thread; the host's readers wait for the answers.
    """

    def count(self, known: Collection[str]) -> int:
        """How many there are; costs nothing."""

    def waiting(self, known: Collection[str]) -> list[str]:
        """Their ids, first come first."""

    def rows(self, known: Collection[str]) -> list[list[Any]]:
        """The next of them, as `[number, prompt_id, prompt, extra_data, outputs_to_execute]`.

        Where all of them together are much, some are without their prompt.
        """

    def row(self, job_id: str) -> list[Any] | None:
        """One of them, whole; None where it does not wait any more."""

    def take_out(self, job_ids: Collection[str]) -> None:
        """Somebody took them out of the queue."""

    def history_entry(self, job_id: str) -> Mapping[str, Any] | None:
        """A settled job as an entry of ComfyUI's history."""

    def forget(self, job_id: str | None) -> None:
        """Somebody took it (None: all) out of the history."""


class Host(Protocol):
    """The server that we live in."""

    def listen(self, listener: HostListener) -> None:
        """Begin to tell `listener`. Called once, before the worker starts."""

    async def rehearse(self, body: dict[str, Any]) -> Rehearsal:
        """Show a `/prompt` body to the host's own handler without queueing it. Event loop. May change `body`."""

    async def dispatch(self, job_id: str, client_id: str, body: dict[str, Any]) -> Refusal | None:
        """Put a job into the host's queue through its own handler, or say why it refused. Event loop."""

    def stop(self, prompt_id: str) -> None:
        """Stop that prompt and no other: out of the queue, at its next check, or in what it awaits.

        Holds until the worker has let go of it. Any thread; does not wait.
        """

    def inject(self, prompt_id: str) -> bool:
        """Raise an exception in the code of that prompt, and nowhere else. False: it is not running. Any thread."""

    def replace_worker(self, prompt_id: str | None, error: GuardError) -> bool:
        """Serve the queue with another worker; the one that has `prompt_id` (None: a dead one) is disowned.

        Whatever the disowned thread returns or sends is dropped, and it ends at its next check. Its prompt is closed
        with `error` in the host's history and on its socket, and `released` follows. False where there is nothing to
        replace, or no way to. Any thread.
        """

    def hung_workers(self) -> int:
        """How many disowned workers have not ended yet."""

    def free_memory(self) -> None:
        """Unload models and free memory, between two prompts. Any thread; does not wait."""

    def announce(self, job_id: str, client_id: str | None, error: GuardError) -> None:
        """Tell the job's websocket at once that it ended with `error`. Any thread.

        `client_id`: of that socket, as the host knows it; None where nobody listens.
        """

    def show_backlog(self, backlog: Backlog) -> None:
        """Show, delete and clear the guard's waiting jobs in the host's own queue from now on. Called once."""

    def queue_changed(self) -> None:
        """The backlog has changed: the host's sockets are to hear of it. Any thread; does not wait."""

    def listen_sockets(self, listener: SocketListener) -> None:
        """Pass the host's websocket messages on from now on. Called once."""

    def executing(self, sid: str) -> str | None:
        """The node that the host runs now for that client id. Event loop."""

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        """Note what a client of that id says it can do; the host's own feature flags, where it has any."""

    def socket_left(self, sid: str) -> None:
        """The last of the listener's sockets with that client id has closed."""

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        """Tell the websocket of the prompt that is running what its node has found. The worker's thread."""

    def file_inputs(self, class_type: str) -> Mapping[str, Names]:
        """Which inputs of a node class name files, by what the class declares. Event loop."""

    async def native(self, path: str, **match_info: str) -> bytes:
        """What the host's own GET route `path` (as it is registered) answers, JSON. Event loop.

        Raises NotFoundError where the host has no such route, or finds nothing.
        """

    def missing_classes(self, prompt: Mapping[str, Any]) -> list[str]:
        """The node classes of a prompt that the host lacks, sorted."""

    def worker_alive(self) -> bool:
        """Whether a thread serves the host's queue. True until one was seen to have died."""

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None:
        """Where a file of type `output`, `temp` or `input` lies; None where that is not inside its folder."""

    def folders(self) -> Folders:
        """The roots as they are now (the host may move them), and what to keep out of. Any thread."""

    def input_folder(self) -> Path:
        """Where uploads lie."""

    def model_folders(self) -> list[Path]:
        """The folders that hold the host's models, each kind in a folder of its own."""

    def model_name(self, folder: str, file: str) -> str | None:
        """How the host lists a model file of a kind (`checkpoints`), below whatever folder it lies; None: not there.

        Also found: `models/<folder>/<file>` of a kind that the host does not list. Waits for the disk. Any thread.
        """

    def video_memory(self) -> int | None:
        """Bytes of memory on the card that nodes run on, used or not; None where there is none, or nobody knows."""

    def own_directory(self) -> Path:
        """Where settings and database belong: a folder that no route of the host serves. It may not exist yet."""

    def describe(self) -> dict[str, Any]:
        """Name, version and what was feature-detected, for health and doctor."""
