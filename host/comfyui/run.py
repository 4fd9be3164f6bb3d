"""One guarded job while ComfyUI has it."""

from __future__ import annotations

import math
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...guard.errors import GuardError
from ...guard.events.lines import Message
from ...guard.files.marks import Mark
from ...guard.graph import is_link
from ...guard.host import Progress
from . import report
from .meter import Meter
from .report import QueueItem

#: A pack's own `send_sync` below ours may block; the store's thread must not wait for that.
ORDER_WAIT_S = 0.5

#: What says how a job ended.
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Run:
    """What the hooks know of a job from its dispatch until the worker lets go of it.

    Attributes:
        client_id: the websocket that hears of it.
        folder: its owner's folder below ComfyUI's roots; empty for the roots themselves.
        hidden: ComfyUI's queue and history do not show it.
        began_ns: by root, the disk's time at which the run began.
        trespass: what it tried to do that no job of a keyed owner may.
        refusal: why the host has ended it, whatever its nodes say.
        checked: the owner's files that were looked at in this run, with what tells when they change.
        gives: told of each file or folder of its owner's before that is looked at.
        reads: told of each file of its owner's that it may read, and whether a node is about to: see
            :meth:`.HostListener.reads`.
        item: what ComfyUI has queued; `prompt` is the graph in it.
        meter: measures what it takes.
        withheld: events that no client may hear before the verdict, in order.
        is_over: whether the worker has let go of it.
        programs: what its nodes have started, as far as that may still be there.
    """

    def __init__(
        self,
        job_id: str,
        client_id: str,
        item: QueueItem,
        folder: str = "",
        hidden: bool = False,
        reads: Callable[[str, bool], bool] = lambda _path, _is_asked: True,
        gives: Callable[[str], None] = lambda _path: None,
    ) -> None:
        self.job_id = job_id
        self.client_id = client_id
        self.folder = folder
        self.hidden = hidden
        self.began_ns: dict[str, int] = {}
        self.trespass = ""
        self.refusal: GuardError | None = None
        self.checked: dict[str, Mark] = {}
        self.reads = reads
        self.gives = gives
        self.item = item
        self.prompt: Mapping[str, Any] = item[2]
        self.withheld: list[Message] = []
        self.programs: list[subprocess.Popen[Any]] = []
        self.meter = Meter()
        self._outputs = tuple(item[4])
        self._to_run = find_needed_nodes(self.prompt, self._outputs)
        self.is_over = False
        self._announced = threading.Lock()
        self._order = threading.RLock()

    def says(self, text: Any) -> bool:
        """Whether the prompt itself has the text among its inputs. Any thread."""
        waiting: list[Any] = [node["inputs"] for node in self.prompt.values()]
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict):
                waiting += item.values()
            elif isinstance(item, list):
                waiting += item
            elif item == text:
                return True
        return False

    def says_file(self, below: str, kind: str) -> bool:
        """Whether the prompt itself names that file of a root, so that it was checked before. Any thread."""
        return self.says(f"{below} [{kind}]") or self.says(f"{below}[{kind}]")

    def must_withhold(self, event: Any, data: Any) -> bool:
        """Whether an event says how the job ended, or lets a client conclude it."""
        if event == "executed":
            return any(report.find_files({"": data.get("output")}))
        if event == "progress_state":
            return self._has_run(data)
        return event in ENDS

    def withhold(self, message: Message) -> None:
        """Keep an event back; of each kind that says how the job ended, the last, since packs send such events too."""
        if message[0] in ENDS:
            self.withheld = [kept for kept in self.withheld if kept[0] != message[0]]
        self.withheld.append(message)

    def _has_run(self, data: Any) -> bool:
        """Whether a `progress_state` says that every node is finished."""
        try:
            nodes = data["nodes"]
            return self._to_run <= nodes.keys() and all(state["state"] == "finished" for state in nodes.values())
        except (AttributeError, TypeError, KeyError):
            return False

    def claim_announcement(self) -> bool:
        """True for the first caller, who must then tell the client of the job's error. Any thread."""
        return self._announced.acquire(blocking=False)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Send an event of the run, or its error, while nobody else does. Any thread; waits a moment at most."""
        has_lock = self._order.acquire(timeout=ORDER_WAIT_S)
        try:
            yield
        finally:
            if has_lock:
                self._order.release()

    @property
    def is_announced(self) -> bool:
        """Whether the client has been told of the job's error, or is being told. Any thread."""
        return self._announced.locked()

    def read_progress(self, event: Any, data: Any) -> Progress | None:
        """How far the job is, where the event says so."""
        try:
            if event == "execution_cached":
                self._to_run = find_needed_nodes(self.prompt, self._outputs, frozenset(map(str, data["nodes"])))
            elif event == "progress_state":
                return self._sum_progress(data["nodes"])
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError):
            pass  # nodes report what they like; that must not make them fail
        return None

    def _sum_progress(self, nodes: Mapping[str, Any]) -> Progress | None:
        done, current = 0.0, None
        for node_id, state in nodes.items():
            if node_id in self._to_run:
                done += min(float(state["value"]) / float(state["max"]), 1.0) if state["max"] else 0.0
            if state["state"] == "running":
                current = state
        if current is None:
            return None
        # A node that another node has put into the graph goes by that other one's name.
        node_id = str(current.get("display_node_id") or current["node_id"])
        value, limit = float(current["value"]), float(current["max"])
        if not (math.isfinite(value) and math.isfinite(limit)):
            return None
        percent = min(int(100 * done / max(len(self._to_run), 1)), 100)
        return Progress(value, limit, node_id, find_title(self.prompt, node_id), percent)


def find_needed_nodes(
    prompt: Mapping[str, Any], outputs: Iterable[str], cached: frozenset[str] = frozenset()
) -> frozenset[str]:
    """The nodes that have to run for those outputs: not the cached ones, nor what only they need."""
    needed: set[str] = set()
    waiting = [node_id for node_id in outputs if node_id in prompt]
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed and node_id not in cached:
            needed.add(node_id)
            links = [value for value in prompt[node_id]["inputs"].values() if is_link(value)]
            waiting += [link[0] for link in links if link[0] in prompt]
    return frozenset(needed)


def find_title(prompt: Mapping[str, Any], node_id: str) -> str | None:
    """What a person calls the node: its title in the editor, else its class."""
    node = prompt.get(node_id) or {}
    given = (node.get("_meta") or {}).get("title")
    return given if isinstance(given, str) and given else node.get("class_type")
