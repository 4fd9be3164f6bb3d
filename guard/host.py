# Over 400 lines: a method for each thing that a host is asked or tells, with its promise.
"""The contract with the server that we live in: what the core may ask of it, and what it tells the core.

`host/comfyui` keeps this contract for ComfyUI and the sandbox. Host shapes (queue tuples, history dicts, node classes)
stop there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .errors import GuardError
from .graph import Declared, Names
from .job import ProgressBody, Verdict
from .spent import Spent
from .weight import Weigher


@dataclass(frozen=True)
class Refusal:
    """The host's answer to a prompt that it refuses, in its own words."""

    type: str
    message: str
    details: str
    extra_info: Mapping[str, Any]
    node_errors: Mapping[str, Any]


@dataclass(frozen=True)
class Rehearsal:
    """The host's answer to a prompt that it did not queue. `made`: what it would have, for :meth:`Host.keep`."""

    refusal: Refusal | None
    outputs_to_execute: tuple[str, ...] = ()
    made: object = None


@dataclass(frozen=True)
class ReportedFile:
    """A result file as a node named it. `path` is absolute; None where it is not inside the root of its `type`."""

    node_id: str
    filename: str
    subfolder: str
    type: str
    path: Path | None


@dataclass(frozen=True)
class Outcome:
    """What the worker reported at the end of one run.

    Attributes:
        success: whether the host calls it a success.
        interrupted: whether somebody's interrupt ended it.
        outputs: ComfyUI's history outputs, `{node_id: {key: [items]}}`.
        files: the files that `outputs` names.
        prompt: the graph that ran.
        not_made: (node id, file name) of files that the run did not make, although its nodes name them. They are not
            in `files`, and what names them is not in `outputs`.
        byproducts: files that nobody asked for, beside those in `files`: the silent twin of a film with sound, say.
        trespass: what the run tried to do with files that are none of its owner's business; mostly empty.
        refusal: why the host ended the run, whatever its nodes say; None: it did not.
        masks: ids of the nodes that get nothing but masks over links, as far as the classes of those before them say.
        cached: ids of the nodes that did not run because the host had their outputs from an earlier prompt.
        spent: what it took of the worker.
        exception_type, exception_message, node_id, node_type: about the node that raised, if one did.
    """

    success: bool
    interrupted: bool = False
    outputs: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[ReportedFile, ...] = ()
    prompt: Mapping[str, Any] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    cached: frozenset[str] = frozenset()
    not_made: tuple[tuple[str, str], ...] = ()
    byproducts: tuple[ReportedFile, ...] = ()
    trespass: str = ""
    refusal: GuardError | None = None
    spent: Spent | None = None
    exception_type: str = ""
    exception_message: str = ""
    node_id: str | None = None
    node_type: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a running job is: the steps of the current node, and per cent over all nodes that the job has to run."""

    value: float
    max: float
    node_id: str | None
    node_title: str | None
    percent: int

    def body(self) -> ProgressBody:
        """As JSON."""
        return ProgressBody(
            value=self.value, max=self.max, node_id=self.node_id, node_title=self.node_title, percent=self.percent
        )


@dataclass(frozen=True)
class Folders:
    """The host's folders; None for a root that is not there.

    The janitor deletes nothing in the folders of `keep`: models (some lie below output), the host's custom nodes, its
    user directory. `program` is the folder of the host's own code.
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

    The host calls `started`, `finished` and `unreadable` on the worker's thread; `finished` may hold it up until there
    is room for another check. The others must not block.
    """

    def started(self, job_id: str) -> bool:
        """The worker has taken the job. False: it has an ending, on disk or not, so stop the run."""

    def gives(self, job_id: str, path: str) -> None:
        """That file or folder of its keyed owner's, at its real path, is about to be looked at for the job. Any thread.

        From here to `finished` nobody may put something else there.
        """

    def reads(self, job_id: str, path: str, is_asked: bool) -> bool:
        """The job names that file of its keyed owner's, at its real path; `is_asked`: one of its nodes is about to read
        it. Any thread of the run; may block.

        False: it has to be looked at before it is read. Raises GuardError: why the job is not to read it.
        """

    def finished(self, job_id: str, outcome: Outcome, close: Callable[[Verdict], None]) -> None:
        """The run is over, and its slot free. Calls `close`, on any thread, with the verdict that counts once durable.

        Until then the host shows the job as running; the worker goes on.
        """

    def released(self, job_id: str) -> None:
        """The host no longer has the job, which did not run to its end: its slot is free."""

    def progressed(self, job_id: str, progress: Progress) -> None:
        """The job has made progress."""

    def previewed(self, job_id: str, mime: str, encode: Callable[[], bytes]) -> None:
        """There is a picture of the unfinished result. `encode` is slow; call it on any thread, or never."""

    def dropped(self, job_id: str) -> None:
        """Somebody took the job out of the host's queue; `released` follows."""

    def lost(self, job_id: str) -> None:
        """The host could not hand out the job, and no longer has it; `released` follows."""

    def unreadable(self, job_id: str, close: Callable[[Verdict], None], spent: Spent | None = None) -> None:
        """The run is over, but its report cannot be read. `close` as in `finished`."""

    def left_behind(
        self, job_id: str, error: GuardError, close: Callable[[Verdict], None], spent: Spent | None = None
    ) -> None:
        """The job's worker is gone, which ends the job with `error` unless it has an ending.

        `close` as in `finished`; `spent` is what the run had taken of it.
        """

    def native_started(self, prompt_id: str) -> None:
        """The worker has taken a prompt that did not come through the guard."""

    def native_finished(self, prompt_id: str) -> None:
        """The host no longer has that prompt."""

    def memory_freed(self, after: str | None) -> None:
        """The worker is about to free its models, as was asked for; `after`: the prompt that it has just let go of."""


class Supplier(Protocol):
    """Gives the host's worker its next job. The worker's thread."""

    def begin_next(self) -> bool:
        """The worker wants a prompt, and none waits in the host's queue: `put` the next job there.

        False: no job is ready. Waits for the commit that says that the job begins.
        """

    def go_on(self) -> None:
        """The worker takes what the host's queue has, or waits for it."""


class SocketListener(Protocol):
    """Passes the host's websocket messages on to sockets that the host does not know."""

    def wants(self, sid: str | None, is_picture: bool = False) -> bool:
        """Whether anybody listens to that client id (None: to what all hear). Any thread."""

    def passed(self, event: Any, data: Any, sid: str | None, message: str | bytes) -> None:
        """A message to one client id (None: to all): the host's event and data, and what its socket would be sent.

        Event loop, in the host's order.
        """


class Backlog(Protocol):
    """The guard's jobs, for the host to show in its own queue and history although it does not have them; `known` are
    the ids that it has. Any thread; the host's readers wait for the answers."""

    def count(self, known: Collection[str]) -> int:
        """How many jobs wait; costs nothing."""

    def __contains__(self, job_id: object) -> bool:
        """Whether that job waits, or is on its way to the host."""

    def is_of_a_key(self, job_id: object) -> bool:
        """Whether it waits for an owner with a key: who clears the host's queue as a whole does not mean it."""

    def waiting(self, known: Collection[str]) -> list[str]:
        """The ids of the jobs that wait, oldest first."""

    def rows(self, known: Collection[str]) -> list[list[Any]]:
        """The next waiting jobs, as `[number, prompt_id, prompt, extra_data, outputs_to_execute]`.

        Where they are much together, some come without their prompt.
        """

    def row(self, job_id: str) -> list[Any] | None:
        """The whole row of one job; None where it has settled."""

    def take_out(self, job_ids: Collection[str]) -> None:
        """Cancel jobs that somebody took out of the queue."""

    def history_entry(self, job_id: str) -> Mapping[str, Any] | None:
        """A settled job as an entry of ComfyUI's history."""

    def forget(self, job_id: str | None) -> None:
        """Hide the job (None: all), which somebody took out of the history."""


class Host(Weigher, Protocol):
    """What the core may ask of the server that we live in."""

    def listen(self, listener: HostListener, supplier: Supplier) -> None:
        """Tell `listener`, and ask `supplier`, from now on. Called once, before the worker starts."""

    async def rehearse(self, body: dict[str, Any], timeout_s: float) -> Rehearsal:
        """Let the host's own handler validate a `/prompt` body, without queueing it. Event loop. May change `body`.

        A validation that takes longer refuses the prompt.
        """

    def prepare(self, job_id: str, rehearsal: Rehearsal, size: int) -> Callable[[], None]:
        """Prepare to keep what a rehearsal made, for the job that it may become, of `size` bytes. Event loop.

        Returns what keeps it, to be called once there is that job, on any thread; a worker that waits then asks the
        supplier for it. The host uses it instead of a second validation, while nothing that the first one depends on
        can have changed.
        """

    def is_ready(self, job_id: str) -> bool:
        """Whether what was kept for the job can be used now. Any thread; looks at the prompt's files."""

    def discard(self, job_id: str) -> None:
        """Drop what was kept for a job that has settled. Any thread."""

    def put(self, job_id: str, client_id: str, folder: str) -> bool:
        """Put a job that was ready in front of all others in the host's queue. Any thread.

        False: what was kept for it can no longer be used, and it is not there. `folder`: as in `dispatch`. Raises
        CancelledError where its socket has heard meanwhile that it ended.
        """

    def is_between(self) -> bool:
        """Whether the worker is about to ask the supplier for its next job. Any thread."""

    async def dispatch(
        self,
        job_id: str,
        client_id: str,
        body: dict[str, Any],
        folder: str,
        *,
        first: bool = False,
        hidden: bool = False,
    ) -> Refusal | None:
        """Put a job into the host's queue: what was kept for it, or what its handler makes of `body`. Event loop.

        `folder`: its owner's below the roots, or empty. `first`: in front of all others. No list of the host's shows
        one that is `hidden`.
        """

    def held(self) -> frozenset[str]:
        """The ids of the prompts that the host really has, waiting, running or being ended. Any thread."""

    def let_go(self, job_id: str) -> None:
        """Forget a job that the host no longer has, although nobody has told us so. Any thread."""

    def stop(self, prompt_id: str) -> None:
        """Stop that prompt and no other: take it out of the queue, or interrupt its run.

        The stop stays set until the run has ended. Any thread; does not wait.
        """

    def inject(self, prompt_id: str) -> bool:
        """Raise an exception in the code of that prompt, and nowhere else, or end the program that it waits for.

        False if nothing was raised: it does not run, would keep a lock by that, or may end by itself now. Any thread.
        """

    def has_waiting(self) -> bool:
        """Whether a prompt waits in the host's queue, whoever queued it. Any thread."""

    def worker_away_s(self) -> float:
        """For how long the worker has had no prompt and asked for none: the host gives memory back. Any thread."""

    def replace_worker(self, prompt_id: str | None, error: GuardError) -> bool:
        """Disown the worker that has `prompt_id` (None: that is dead or away), and let another serve the queue.

        The host drops whatever the disowned thread returns or sends, and ends it at its next check. It closes the
        thread's prompt in its history and on its socket, with `error`; a job of the guard's once its ending is durable,
        with that (see `HostListener.left_behind`). False where none can be replaced. Any thread; does not wait.
        """

    def hung_workers(self) -> int:
        """How many disowned workers have not ended yet."""

    def free_memory(self) -> None:
        """Unload models and free memory, between two prompts. Any thread; does not wait."""

    def announce(self, job_id: str, client_id: str | None, error: GuardError, was_interrupted: bool = False) -> None:
        """Tell the job's websocket at once that the job ended with `error`, which is durable. Any thread.

        `client_id`: the socket's, as the host knows it; None where nobody listens. `was_interrupted`: somebody has
        stopped its run, if only one on another server.
        """

    def show_backlog(self, backlog: Backlog) -> None:
        """Show, delete and clear the guard's waiting jobs in the host's own queue from now on. Called once."""

    def queue_changed(self) -> None:
        """Tell the host's sockets that the backlog has changed. Any thread; does not wait."""

    def listen_sockets(self, listener: SocketListener) -> None:
        """Pass the host's websocket messages on from now on. Called once."""

    def executing(self, sid: str) -> str | None:
        """The id of the node that the host runs now for that client id. Event loop."""

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        """Note the feature flags of a client; returns the host's own, where it has any."""

    def find_flags(self, sid: str) -> Mapping[str, Any]:
        """The feature flags that a client with that id has told; empty where it has told none."""

    def socket_left(self, sid: str) -> None:
        """Forget the client id: the listener's last socket with it has closed."""

    def mark_names(self, name_box: Callable[[], str]) -> None:
        """Let the names of files that jobs save tell which of several servers they are from. Called once."""

    def has_socket(self, sid: str) -> bool:
        """Whether the host has a socket of its own with that client id. Any thread."""

    def tell_socket(self, sid: str, messages: Sequence[str | bytes]) -> None:
        """Send these, as they are, to the host's own socket with that client id, if there is one. Event loop.

        Does not wait. What it does not take is dropped, as the host does.
        """

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        """Send a node's `facts` to the websocket of the prompt that runs. The worker's thread."""

    def file_inputs(self, class_type: str) -> Mapping[str, Names]:
        """Which inputs of a node class name files, as the class declares. Event loop."""

    def declaration(self, class_type: str) -> Declared:
        """A node class as it declares itself. Event loop; what is remembered, any thread."""

    async def native(self, path: str, **match_info: str) -> bytes:
        """The JSON that the host's own GET route `path` answers; raises NotFoundError where it has none. Event loop."""

    def missing_classes(self, prompt: Mapping[str, Any]) -> list[str]:
        """The node classes of a prompt that the host lacks, sorted."""

    def worker_alive(self) -> bool:
        """Whether a thread serves the host's queue. True until one was found dead."""

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None:
        """Where a file of type `output`, `temp` or `input` lies; None where that is not inside its folder."""

    def file_to_save(self, subfolder: str, filename: str) -> Path | None:
        """Where a node of the job that runs in this thread may save an output file; None outside of its folder."""

    def folders(self) -> Folders:
        """The roots as they are now (the host may move them), and the folders to keep. Any thread."""

    def input_folder(self) -> Path:
        """Where uploads lie."""

    def model_folders(self) -> list[Path]:
        """The folders that hold the host's models, each kind in a folder of its own."""

    def find_model(self, folder: str, file: str) -> tuple[str, Path | None] | None:
        """The host's name for a model file of the kind `folder` (`checkpoints`), and where it lies; None: not there.

        Also finds `models/<folder>/<file>` of a kind that the host does not list. Waits for the disk. Any thread.
        """

    def video_memory(self) -> int | None:
        """Bytes of memory of the card that nodes run on; None where there is no card, or nobody knows."""

    def own_directory(self) -> Path:
        """The folder for settings and database, which no route of the host serves. It may not exist yet."""

    def describe(self) -> dict[str, Any]:
        """The host's name and version and the features that were detected, for health and doctor."""
